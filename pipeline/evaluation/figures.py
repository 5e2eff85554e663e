"""The figures of one reconstruction: their names, and each group of them computed in one pass over the volumes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from drr2ct.pipeline.evaluation.similarity import (
    DEFAULT_WINDOW,
    SMALLEST_GRID,
    WINDOWS,
    Volume,
    chirality_margin,
    clipped,
    decibels,
    detail_explained,
    gradient_similarity,
    legacy_x2ct_psnr,
    ms_ssim_from,
    planes,
    ssim_planes,
    total,
)
from drr2ct.pipeline.evaluation.structures import STRUCTURES, TISSUES, Mask
from drr2ct.transforms.volume import HU_WINDOW

WINDOW_NAMES = tuple(f"{what}{s}{where}" for s in WINDOWS for where in ("", "_body") for what in ("psnr", "ssim"))
HU_NAMES = ("mae_hu", *(f"{what}_hu_{name}" for name in ("body", *TISSUES) for what in ("mae", "bias")))
OTHER_NAMES = ("gms_body", "detail_explained", "chirality_db", "legacy_x2ct_psnr")
STRUCTURE_NAMES = tuple(f"{what}_{name}" for name in STRUCTURES for what in ("dice", "nsd", "hd95"))

FIGURES = (
    "psnr",
    "ssim",
    "mae_hu",
    *(name for name in (*WINDOW_NAMES, *HU_NAMES) if name not in ("psnr", "ssim", "mae_hu")),
    "ms_ssim",
    *OTHER_NAMES,
    *STRUCTURE_NAMES,
)
"""Every figure of :class:`drr2ct.pipeline.evaluation.metrics.ReconstructionMetric`, in the order of the tables."""

REPROJECTION_FIGURES = ("reprojection_mae", "reprojection_bias", "reprojection_relative")

INTERVAL_FIGURES = (
    "interval_coverage",
    "interval_width_hu",
    "interval_rank",
    "interval_rank_regions",
    "interval_rank_volume",
    *(f"interval_coverage_{name}" for name in TISSUES),
)
"""Of a network with bounds: ``drr2ct.pipeline.evaluation.intervals``."""


def lower_is_better(figure: str) -> bool:
    """Errors, biases and distances, as opposed to similarities."""
    return figure.startswith(("mae_", "bias_", "hd95_", "reprojection_", "interval_width"))


def _count(mask: Mask) -> int:
    return int(mask.count_nonzero())  # many times faster than the sum of booleans


def _means(sums: np.ndarray, counts: Sequence[int]) -> list[float]:
    """NaN of nothing."""
    return [float(found) / count if count else math.nan for found, count in zip(sums, counts, strict=True)]


def window_figures(
    suffixes: Sequence[str], pred: Volume, truth: Volume, body: Mask, with_scales: bool
) -> dict[str, float]:
    """PSNR and SSIM in the windows of those suffixes (see ``WINDOWS``), everywhere and in the body; MS-SSIM if wanted.

    What the windows share is computed once.
    """
    windows = [WINDOWS[suffix] for suffix in suffixes]
    squares = np.zeros((len(windows), 2))
    for p, t, mask in planes(pred, truth, body):
        inside = mask.float()
        sums: dict[int, tuple[float, float]] = {}
        pairs = clipped(p, t, windows)
        for pair in pairs:
            if id(pair) not in sums:
                square = (pair[0] - pair[1]).square_()
                sums[id(pair)] = total(square), total(square.mul_(inside))
        squares += [sums[id(pair)] for pair in pairs]
    margin = SMALLEST_GRID // 2
    inner = body[:, margin:-margin, margin:-margin, margin:-margin]
    similar, done = np.zeros((len(windows), 3)), 0
    for parts in ssim_planes(pred, truth, windows):
        inside = inner[:, done : done + parts[0][0].shape[1]].float()
        done += inside.shape[1]
        similar += [(total(ssim), total(contrast), total(ssim.mul_(inside))) for ssim, contrast in parts]
    counts, inner_counts = [body.numel(), _count(body)], [inner.numel(), inner.numel(), _count(inner)]
    figures: dict[str, float] = {}
    for suffix, window, errors, similarities in zip(suffixes, windows, squares, similar, strict=True):
        error, body_error = _means(errors, counts)
        ssim, contrast, body_ssim = _means(similarities, inner_counts)
        width = window[1] - window[0]
        figures |= {
            f"psnr{suffix}": decibels(error, width),
            f"ssim{suffix}": ssim,
            f"psnr{suffix}_body": decibels(body_error, width),
            f"ssim{suffix}_body": body_ssim,
        }
        if with_scales and not suffix:
            figures["ms_ssim"] = ms_ssim_from((ssim, contrast), pred, truth, window)
    return figures


def hu_figures(pred: Volume, truth: Volume, body: Mask) -> dict[str, float]:
    """Mean absolute error and bias: everywhere, in the body, in each tissue of the truth; NaN where there is none."""
    names = ("", "body", *TISSUES)
    sums = {name: np.zeros(3) for name in names}  # |error|, error, voxels
    for p, t, inside in planes(pred, truth, body, window=HU_WINDOW):
        error = p - t
        signed = total(error)
        sums[""] += total(error.abs()), signed, error.numel()
        error, there = error.masked_select(inside), t.masked_select(inside)
        tissues = {name: (there >= low) & (there <= high) for name, (low, high) in TISSUES.items()}
        parts = {"body": error, **{name: error.masked_select(mask) for name, mask in tissues.items()}}
        for name, values in parts.items():
            signed = total(values)
            sums[name] += total(values.abs_()), signed, values.numel()
    figures = {}
    for name, (absolute, signed, count) in sums.items():
        suffix = f"_{name}" if name else ""
        figures[f"mae_hu{suffix}"] = absolute / count if count else math.nan
        figures[f"bias_hu{suffix}"] = signed / count if count else math.nan
    return figures


def other_figures(pred: Volume, truth: Volume, body: Mask, spacing_mm: Sequence[float]) -> dict[str, float]:
    """Gradient similarity in the body, detail, chirality margin, and PSNR as older tables have it."""
    low, high = DEFAULT_WINDOW
    pred, truth = pred.clamp(low, high), truth.clamp(low, high)
    similarity = gradient_similarity(pred, truth, high - low)
    in_body = sum(total(g.mul_(inside)) for g, inside in planes(similarity, body))
    count = _count(body)
    return {
        "gms_body": in_body / count if count else math.nan,
        "detail_explained": detail_explained(pred, truth, spacing_mm),
        "chirality_db": chirality_margin(pred, truth, high - low),
        "legacy_x2ct_psnr": legacy_x2ct_psnr(pred, truth),
    }
