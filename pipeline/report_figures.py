"""Figures of the report: training curves, and one patient's radiographs and planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.pipeline.figures import DISPLAY_WINDOW, ERROR_RANGE, mid_planes
from drr2ct.transforms.geometry import BiplanarGeometry

_COLOURS = ("#1f5f99", "#c8641e", "#3c8a4e", "#8a4f9e", "#5a6875")
_MAX_POINTS = 1500

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name → (x, y)."""


def curve_figure(
    curves: Curves, x_label: str, y_label: str, logarithmic: bool = False, from_zero: bool = False
) -> Figure:
    """Lines over epochs or iterations; long ones are thinned to what a page can show."""
    figure = Figure(figsize=(4.4, 3.0), layout="constrained")
    axes = figure.subplots()
    for colour, (name, (x, y)) in zip(_COLOURS * (1 + len(curves) // len(_COLOURS)), curves.items(), strict=False):
        step = max(1, len(x) // _MAX_POINTS)
        axes.plot(x[::step], y[::step], color=colour, label=name, marker="o" if len(x) < 30 else None, markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if logarithmic:
        axes.set_yscale("log")
    if from_zero:
        axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(fontsize=9)
    axes.grid(color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
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
    _bare(grid, ("given X-ray", "reprojection", "difference"))
    figure.colorbar(
        shown, ax=grid, label="difference of line integrals", orientation="horizontal", shrink=0.6, aspect=30
    )
    return figure


def planes_figure(truth: MetaTensor, prediction: MetaTensor) -> Figure:
    """Middle planes of truth, prediction and error, one row per plane, on one grey and one colour scale.

    Args:
        truth: (1, N, N, N) in HU.
        prediction: (1, N, N, N) in HU on the same voxels.
    """
    error = MetaTensor(prediction.as_tensor() - truth.as_tensor(), affine=truth.affine)
    columns = [mid_planes(volume) for volume in (truth, prediction, error)]
    figure = Figure(figsize=(5.6, 6.6), layout="constrained")
    grid = figure.subplots(3, 3)
    for row, plane in zip(grid, columns[0], strict=True):
        for axes, volume in zip(row[:2], columns, strict=False):
            axes.imshow(volume[plane], cmap="gray", vmin=DISPLAY_WINDOW[0], vmax=DISPLAY_WINDOW[1])
        shown = row[2].imshow(columns[2][plane], cmap="RdBu_r", vmin=-ERROR_RANGE, vmax=ERROR_RANGE)
        row[0].set_ylabel(plane, fontsize=10)
    _bare(grid, ("truth", "prediction", "error"))
    figure.colorbar(shown, ax=grid, label="error in HU", orientation="horizontal", shrink=0.6, aspect=30)
    return figure


def _bare(grid: np.ndarray, titles: Sequence[str]) -> None:
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=11)
