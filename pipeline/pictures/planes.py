"""Middle planes of volumes: one alone, or truth, prediction and error side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from monai.data import MetaTensor
from monai.transforms import Orientation

from drr2ct.pipeline.pictures.figures import compared
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

    figure = Figure(figsize=(9.6, 3.6))
    figure.suptitle(title)
    row = figure.subplots(1, 3, gridspec_kw={"left": 0.01, "right": 0.99, "top": 0.86, "bottom": 0.01, "wspace": 0.03})
    for axes, (name, plane) in zip(row, mid_planes(volume).items(), strict=True):
        show_hu(axes, plane)
        axes.set_title(name, fontsize=10)
        axes.axis("off")
    return figure


def doubt_figure(doubt: MetaTensor) -> Figure:
    """Three planes of half of what lies between bounds, (1, I, J, K) in HU, with the colours' meaning."""
    from matplotlib.figure import Figure  # see above

    figure = Figure(figsize=(10.4, 3.4))
    row = figure.subplots(1, 3, gridspec_kw={"left": 0.01, "right": 0.9, "top": 0.92, "bottom": 0.01, "wspace": 0.03})
    for axes, (name, plane) in zip(row, mid_planes(doubt).items(), strict=True):
        shown = show_doubt(axes, plane)
        axes.set_title(name, fontsize=10)
        axes.axis("off")
    figure.colorbar(shown, cax=figure.add_axes((0.915, 0.1, 0.013, 0.74)), label="± HU", extend="max")
    return figure


def comparison_figure(truth: MetaTensor, prediction: MetaTensor) -> Figure:
    """Middle planes of truth, prediction and error, one row per plane, on one grey and one colour scale.

    Args:
        truth: (1, N, N, N) in HU.
        prediction: (1, N, N, N) in HU on the same voxels.
    """
    planes = mid_planes(truth)
    figure, grid, scale = compared(len(planes), ("truth", "prediction", "error"))
    for row, (name, seen), made in zip(grid, planes.items(), mid_planes(prediction).values(), strict=True):
        show_hu(row[0], seen)
        show_hu(row[1], made)
        shown = show_error(row[2], made - seen)
        row[0].set_ylabel(name, fontsize=10)
    figure.colorbar(shown, cax=scale, label="error in HU", orientation="horizontal")
    return figure
