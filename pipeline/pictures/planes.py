"""Middle planes of volumes: one alone, or truth, prediction and error side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from monai.data import MetaTensor
from monai.transforms import Orientation

from drr2ct.pipeline.pictures.figures import bare
from drr2ct.pipeline.pictures.scales import show_doubt, show_error, show_hu

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mid_planes(volume: MetaTensor) -> dict[str, Float[np.ndarray, "rows columns"]]:
    """The three middle planes, as radiologists hang them: head or front up, the patient's right on the left.

    Args:
        volume: (1, I, J, K) with an affine.

    Returns:
        ``axial``, ``coronal`` and ``sagittal`` (facing left), rows × columns.
    """
    values = Orientation("LPI", labels=None)(volume)[0].cpu().numpy()
    i, j, k = (n // 2 for n in values.shape)
    # LPI: index 0 is right, front, head
    return {"axial": values[:, :, k].T, "coronal": values[:, j, :].T, "sagittal": values[i, :, :].T}


def planes_figure(volume: MetaTensor, title: str) -> Figure:
    """Three planes of one volume in HU."""
    from matplotlib.figure import Figure  # not at the top: TensorBoard's planes need none

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, (name, plane) in zip(figure.subplots(1, 3), mid_planes(volume).items(), strict=True):
        show_hu(axes, plane)
        axes.set_title(name, fontsize=10)
        axes.axis("off")
    return figure


def doubt_figure(doubt: MetaTensor) -> Figure:
    """Three planes of half of what lies between bounds, (1, I, J, K) in HU, with the colours' meaning."""
    from matplotlib.figure import Figure  # see above

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    row = figure.subplots(1, 3)
    for axes, (name, plane) in zip(row, mid_planes(doubt).items(), strict=True):
        shown = show_doubt(axes, plane)
        axes.set_title(name, fontsize=10)
        axes.axis("off")
    figure.colorbar(shown, ax=row, label="± HU", extend="max", shrink=0.8)
    return figure


def comparison_figure(truth: MetaTensor, prediction: MetaTensor) -> Figure:
    """Middle planes of truth, prediction and error, one row per plane, on one grey and one colour scale.

    Args:
        truth: (1, N, N, N) in HU.
        prediction: (1, N, N, N) in HU on the same voxels.
    """
    from matplotlib.figure import Figure  # as above

    error = MetaTensor(prediction.as_tensor() - truth.as_tensor(), affine=truth.affine)
    columns = [mid_planes(volume) for volume in (truth, prediction, error)]
    figure = Figure(figsize=(5.6, 6.6), layout="constrained")
    grid = figure.subplots(3, 3)
    for row, plane in zip(grid, columns[0], strict=True):
        for axes, volume in zip(row[:2], columns, strict=False):
            show_hu(axes, volume[plane])
        shown = show_error(row[2], columns[2][plane])
        row[0].set_ylabel(plane, fontsize=10)
    bare(grid, ("truth", "prediction", "error"))
    figure.colorbar(shown, ax=grid, label="error in HU", orientation="horizontal", shrink=0.6, aspect=30)
    return figure
