"""Figures of a training: what was recorded, over epochs or iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from drr2ct.pipeline.reports.runs import Run

_COLOURS = ("#1f5f99", "#c8641e", "#3c8a4e", "#8a4f9e", "#5a6875")
_MAX_POINTS = 1500
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Name → (x, y)."""


def curve_figure(
    curves: Curves, x_label: str, y_label: str, logarithmic: bool = False, from_zero: bool = False
) -> Figure:
    """Lines over epochs or iterations; long ones are thinned to what a page can show."""
    figure = Figure(figsize=(4.4, 3.0))
    axes = figure.add_axes((0.2, 0.16, 0.78, 0.8))
    for colour, (name, (x, y)) in zip(_COLOURS * (1 + len(curves) // len(_COLOURS)), curves.items(), strict=False):
        step = max(1, len(x) // _MAX_POINTS)
        axes.plot(x[::step], y[::step], color=colour, label=name, marker="o" if len(x) < 30 else None, markersize=3)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.locator_params(axis="x", nbins=5, integer=True)
    if logarithmic:
        axes.set_yscale("log")
        axes.locator_params(axis="y", subs=(1, 2, 5))
        # short, as 7×10⁻⁴ would push the axis' name out of the figure
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.yaxis.set_minor_formatter("")
    if from_zero:
        # a level line would lie on the upper edge
        axes.set_ylim(0, 1.1 * max(max(y, default=0) for _, y in curves.values()) or 1)
    if len(curves) > 1:
        axes.legend(fontsize=9)
    axes.grid(color="#d8dee4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def training_figures(run: Run) -> list[tuple[str, Figure, str]]:
    """(name, figure, caption) of everything that was recorded in training."""

    def column(name: str) -> Curves:
        curves = {}
        for phase in ("training", "validation"):
            rows = [row for row in run.phase(phase) if not math.isnan(row.get(name, math.nan))]
            if rows:
                curves[phase] = ([row["epoch"] for row in rows], [row[name] for row in rows])
        return curves

    terms = {
        tag.removeprefix("training/loss_"): v for tag, v in run.scalars.items() if tag.startswith("training/loss_")
    }
    peak = run.scalars.get("training/peak_memory_gib")
    rates = column("lr")
    found = (
        ("loss", column("loss"), "epoch", "loss", "Loss: what training minimises"),
        ("loss_terms", terms, "iteration", "loss term", "Terms of the loss, before weighting"),
        ("psnr", column("psnr"), "epoch", "PSNR (dB)", "PSNR: higher is better"),
        ("ssim", column("ssim"), "epoch", "SSIM", "SSIM: higher is better, 1 is identical"),
        (
            "learning_rate",
            {"training": rates["training"]} if "training" in rates else {},
            "epoch",
            "learning rate",
            "Learning rate",
        ),
        ("seconds", column("seconds"), "epoch", "seconds", "Time per epoch"),
        ("memory", {"peak": peak} if peak else {}, "epoch", "GiB", "Peak memory"),
    )
    logarithmic = ("loss_terms", "learning_rate")
    return [
        (name, curve_figure(curves, x, y, name in logarithmic, name in ("seconds", "memory")), caption)
        for name, curves, x, y, caption in found
        if curves
    ]
