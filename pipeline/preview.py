"""A reconstruction as one self-contained page: what was given, what was assumed, and the volume to look into."""

from __future__ import annotations

import base64
import importlib.metadata
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxtyping import Float
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.pipeline.figures import DISPLAY_WINDOW, planes_figure
from drr2ct.pipeline.report import VIEWER_STEP_HU, VIEWER_WINDOWS, encode_volume, geometry_tables, niivue_module
from drr2ct.pipeline.report_figures import radiographs_figure
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry


def write_preview(
    path: str | Path,
    volume: MetaTensor,
    given: Float[Tensor, "views rows columns"],
    geometry: BiplanarGeometry,
    record: Mapping[str, Any],
) -> Path:
    """Write the page; it needs no server and no network.

    Args:
        path: of the page.
        volume: (1, N, N, N) in HU on the network's grid, isocentre at the origin.
        given: line integrals that the network was given.
        geometry: of the network.
        record: of the reconstruction (``WriteReconstructions``).
    """
    path = Path(path)
    views, grid = geometry_tables(geometry)
    low, high = DISPLAY_WINDOW
    pictures = [
        (planes_figure(volume, ""), f"Middle planes, {low:.0f} to {high:.0f} HU.".replace("-", "−")),
        (
            radiographs_figure(given, render_drr(volume, geometry), geometry, top=max(float(given.max()), 1.0)),
            "The X-rays as the network was given them, those that its own volume would give, and the difference.",
        ),
    ]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_asset("preview.html.j2"))
    page = template.render(
        record=record,
        n_views=len(geometry.views),
        tables=(views, grid),
        pictures=[
            {"base64": _png(figure), "caption": caption, "width": 7 * figure.get_figwidth()}
            for figure, caption in pictures
        ],
        css=Markup(_asset("style.css")),
        windows=VIEWER_WINDOWS,
        step=1 / geometry.grid.size,
        data=Markup(
            json.dumps([{"prediction": encode_volume(volume), "fov_mm": geometry.grid.fov_mm}]).replace("<", "\\u003c")
        ),
        script=Markup(niivue_module() + "\n" + _asset("viewer.js")),
        version=importlib.metadata.version("drr2ct"),
        niivue=importlib.metadata.version("ipyniivue"),
        viewer_note=f"On the network's grid, in steps of {VIEWER_STEP_HU:.0f} HU.",
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _asset(name: str) -> str:
    return (files("drr2ct.pipeline") / "report_assets" / name).read_text(encoding="utf-8")


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, facecolor="white")
    return base64.b64encode(stream.getvalue()).decode()
