"""Pictures: three planes of a volume on one fixed HU window, and an overview of a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch import Tensor

from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError

DISPLAY_WINDOW = (-1024.0, 600.0)
"""HU shown as black and white."""
ERROR_RANGE = 600.0
"""HU of error shown in full blue or red."""
PLANES = ("axial", "coronal", "sagittal")


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


def grey(values: Float[np.ndarray, "rows columns"], low: float, high: float) -> UInt8[np.ndarray, "rows columns"]:
    """Values to 8-bit grey, black at ``low`` and white at ``high``."""
    return (np.clip((values - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG.

    Raises:
        InputError: if the name does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise InputError(f"picture {path} must end in .png.")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, facecolor="white")
    return path


def planes_figure(volume: MetaTensor, title: str) -> Figure:
    """Three planes of one volume in HU."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, (name, plane) in zip(figure.subplots(1, 3), mid_planes(volume).items(), strict=True):
        axes.imshow(plane, cmap="gray", vmin=DISPLAY_WINDOW[0], vmax=DISPLAY_WINDOW[1])
        axes.set_title(name, fontsize=10)
        axes.axis("off")
    return figure


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
            if name == "error":
                shown = axes.imshow(values, cmap="RdBu_r", vmin=-ERROR_RANGE, vmax=ERROR_RANGE)
            else:
                shown = axes.imshow(values, cmap="gray", vmin=DISPLAY_WINDOW[0], vmax=DISPLAY_WINDOW[1])
            axes.set_title(f"{name}, {plane}", fontsize=10)
            axes.axis("off")
        right.colorbar(shown, ax=row, label="HU", shrink=0.8)
    return figure


def radiographs_figure(
    given: Float[Tensor, "views rows columns"],
    reprojected: Float[Tensor, "views rows columns"],
    geometry: BiplanarGeometry,
    top: float,
) -> Figure:
    """What the network was given, what its volume would look like on X-rays, and the difference; one row per view.

    Args:
        given: line integrals, in the order of the geometry's views.
        reprojected: line integrals of the prediction.
        geometry: whose views they are.
        top: line integral shown in white, alike for all patients; a quarter of it is the end of the difference's scale.
    """
    views = len(geometry.views)
    figure = Figure(figsize=(5.6, 1.95 * views + 0.75), layout="constrained")
    grid = figure.subplots(views, 3, squeeze=False)
    limit = top / 4
    for row, view, seen, made in zip(grid, geometry.views, given.cpu().numpy(), reprojected.cpu().numpy(), strict=True):
        row[0].imshow(seen, cmap="gray", vmin=0, vmax=top)
        row[1].imshow(made, cmap="gray", vmin=0, vmax=top)
        shown = row[2].imshow(made - seen, cmap="RdBu_r", vmin=-limit, vmax=limit)
        row[0].set_ylabel(f"{view.name} ({view.gantry_angle_deg:g}°)", fontsize=10)
    bare(grid, ("given X-ray", "reprojection", "difference"))
    figure.colorbar(
        shown, ax=grid, label="difference of line integrals", orientation="horizontal", shrink=0.6, aspect=30
    )
    return figure


def bare(grid: np.ndarray, titles: Sequence[str]) -> None:
    """Take ticks and frames off a grid of axes (rows × columns), and put a title above each column."""
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=11)
