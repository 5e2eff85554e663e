"""A reconstruction as one self-contained page: what was given, what was assumed, and the volume to look into."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.pipeline.pictures.planes import doubt_figure, planes_figure
from drr2ct.pipeline.pictures.radiographs import radiographs_figure, with_reprojection
from drr2ct.pipeline.pictures.scales import DISPLAY_WINDOW, DOUBT_RANGE
from drr2ct.pipeline.reports.page import VIEWER_STEP_HU, encode_doubt, encode_volume, viewer_values, write_page
from drr2ct.pipeline.reports.tables import geometry_tables
from drr2ct.pipeline.reports.wording import bounds_note
from drr2ct.transforms.geometry import BiplanarGeometry


def write_preview(
    path: str | Path,
    volume: MetaTensor,
    given: Float[Tensor, "views rows columns"],
    geometry: BiplanarGeometry,
    record: Mapping[str, Any],
    doubt: MetaTensor | None = None,
) -> Path:
    """Write the page; it needs no server and no network.

    Args:
        path: of the page.
        volume: (1, N, N, N) in HU on the network's grid, isocentre at the origin.
        given: line integrals that the network was given.
        geometry: of the network.
        record: of the reconstruction (``record_of``).
        doubt: (1, N, N, N), half of what lies between the bounds in HU, of a network that gives bounds.
    """
    views, grid = geometry_tables(geometry)
    low, high = DISPLAY_WINDOW
    top = max(float(given.max()), 1.0)
    pictures = [
        (planes_figure(volume, ""), f"Middle planes, {low:.0f} to {high:.0f} HU.".replace("-", "−")),
        (
            radiographs_figure(*with_reprojection(given, volume, geometry), geometry, top),
            "The X-rays as the network was given them, those that its own volume would give, and the difference.",
        ),
    ]
    pair: dict[str, Any] = {"prediction": encode_volume(volume), "fov_mm": geometry.grid.fov_mm}
    if doubt is not None:
        pair["doubt"] = encode_doubt(doubt)
        about = (
            f"Doubt: half of what lies between the lower and the upper bound, from 0 to {DOUBT_RANGE:.0f} HU and more."
        )
        pictures.insert(1, (doubt_figure(doubt), about))
    return write_page(
        path,
        "preview.html.j2",
        record=record,
        n_views=len(geometry.views),
        tables=(views, grid),
        pictures=[
            {"base64": _png(figure), "caption": caption, "width": 7 * figure.get_figwidth()}
            for figure, caption in pictures
        ],
        doubt_note=bounds_note(record.get("interval", {}).get("calibrated_on", 0)),
        viewer_note=f"On the network's grid, in steps of {VIEWER_STEP_HU:.0f} HU.",
        **viewer_values([pair], geometry.grid.size),
    )


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, facecolor="white")
    return base64.b64encode(stream.getvalue()).decode()
