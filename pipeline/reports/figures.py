"""Figures of the report: training curves, and one patient's radiographs and planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from monai.data import MetaTensor

from drr2ct.pipeline.pictures.figures import DISPLAY_WINDOW, ERROR_RANGE, bare, mid_planes

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
    bare(grid, ("truth", "prediction", "error"))
    figure.colorbar(shown, ax=grid, label="error in HU", orientation="horizontal", shrink=0.6, aspect=30)
    return figure
