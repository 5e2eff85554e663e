"""One picture of a whole reconstruction: radiographs, truth, reconstruction and error."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.pipeline.pictures.planes import mid_planes
from drr2ct.pipeline.pictures.scales import show_error, show_hu
from drr2ct.transforms.geometry import BiplanarGeometry


def overview_figure(
    radiographs: Float[Tensor, "views rows columns"],
    truth: MetaTensor,
    prediction: MetaTensor,
    geometry: BiplanarGeometry,
    title: str,
) -> Figure:
    """Radiographs, and truth, reconstruction and error in three planes.

    Args:
        radiographs: line integrals, in the order of the geometry's views.
        truth: (1, N, N, N) in HU.
        prediction: (1, N, N, N) in HU on the same voxels.
        geometry: whose views the radiographs are.
        title: above the picture.
    """
    n_views = len(geometry.views)
    figure = Figure(figsize=(12.4, 9.2), layout="constrained")
    figure.suptitle(title, fontsize=12)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 2.6))
    left, right = halves
    for axes, view, radiograph in zip(
        left.subplots(n_views, 1, squeeze=False)[:, 0], geometry.views, radiographs, strict=True
    ):
        # bright is dense, as in a clinical radiograph
        axes.imshow(radiograph.cpu().numpy(), cmap="gray", vmin=0)
        axes.set_title(f"radiograph {view.name} ({view.gantry_angle_deg:g}°)", fontsize=10)
        axes.axis("off")
    error = MetaTensor(prediction.as_tensor() - truth.as_tensor(), meta=truth.meta)
    rows = {"truth": truth, "reconstruction": prediction, "error": error}
    grid = right.subplots(3, 3)
    for row, (name, volume) in zip(grid, rows.items(), strict=True):
        for axes, (plane, values) in zip(row, mid_planes(volume).items(), strict=True):
            shown = show_error(axes, values) if name == "error" else show_hu(axes, values)
            axes.set_title(f"{name}, {plane}", fontsize=10)
            axes.axis("off")
        right.colorbar(shown, ax=row, label="HU", shrink=0.8)
    return figure
