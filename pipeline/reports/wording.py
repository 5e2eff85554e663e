"""Figures in words: their names, digits and units, and what is said where nothing was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from drr2ct.pipeline.evaluation.intervals import LEVEL
from drr2ct.pipeline.evaluation.similarity import DETAIL_FREQUENCY, WINDOWS
from drr2ct.pipeline.evaluation.structures import SURFACE_TOLERANCE_MM, TISSUES

NOT_MEASURED = "not measured"
_MEASURES = {
    "psnr": ("PSNR", "dB"), "ssim": ("SSIM", ""), "mae_hu": ("Mean absolute error", "HU"), "bias_hu": ("Bias", "HU"),
    "dice": ("Dice overlap", ""), "nsd": (f"Surface within {SURFACE_TOLERANCE_MM:g} mm (NSD)", ""),
    "hd95": ("95 % surface distance", "mm"),
}  # fmt: skip
_NAMED = {
    "ms_ssim": "Multi-scale SSIM",
    "gms_body": "Gradient similarity (sharpness), body",
    "detail_explained": f"Detail below {1 / DETAIL_FREQUENCY:.0f} mm that is explained",
    "chirality_db": "Margin over the mirror image (dB)",
    "legacy_x2ct_psnr": "PSNR as older tables have it (X2CT, not comparable; dB)",
    "reprojection_mae": "Reprojection error (line integrals)",
    "reprojection_bias": "Reprojection bias (line integrals)",
    "reprojection_relative": "Reprojection error (part of the radiograph)",
    "interval_coverage": f"Within the bounds, body (meant: {LEVEL:.2f})",
    "interval_width_hu": "From lower to upper bound, body (HU)",
    "interval_rank": "Rank correlation of width and error, body",
    "interval_rank_regions": "Rank correlation of width and error, regions of 22 mm",
    "interval_rank_volume": "Rank correlation of width and error, whole volume",
    **{f"interval_coverage_{name}": f"Within the bounds, {name}" for name in TISSUES},
}


def bounds_note(patients: int) -> str:
    """What a page says beside a doubt, of bounds that are calibrated on so many patients."""
    said = "At the cross-hair: the estimate, and half of what lies between its lower and upper bound. "
    if not patients:
        return f"{said}The bounds are not calibrated: nothing is known of how often they hold."
    return (
        f"{said}The bounds are meant to hold for {LEVEL:.0%} of the body's voxels, in the mean of patients like the "
        f"{patients} on which they are calibrated."
    )


def figure_name(figure: str) -> str:
    """A column of the tables in words, with its window or place and its unit."""
    if figure in _NAMED:
        return _NAMED[figure]
    rest = next((m for m in _MEASURES if figure == m or figure.startswith(f"{m}_")), None)
    if rest is None:
        return figure
    words, unit = _MEASURES[rest]
    details = []
    for part in figure.removeprefix(rest).split("_"):
        if f"_{part}" in WINDOWS and part:
            low, high = WINDOWS[f"_{part}"]
            details.append(f"{low:.0f} … {high:.0f} HU".replace("-", "−"))
        elif part:
            details.append(part)
    return ", ".join([words, *details]) + (f" ({unit})" if unit else "")


def value_text(value: float | None, figure: str) -> str:
    """A figure as text, with digits that suit it."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    digits = (
        3
        if re.match(r"(ssim|ms_ssim|gms|dice|nsd|detail|reprojection|interval_(coverage|rank))", figure)
        else 2
        if re.search(r"psnr|_db", figure)
        else 1
    )
    sign = "+" if "bias" in figure else ""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def interval_text(low: float | None, high: float | None, figure: str) -> str:
    """An interval of a figure as text."""
    return NOT_MEASURED if low is None or high is None else f"{value_text(low, figure)} … {value_text(high, figure)}"


def window_text(window: Sequence[float]) -> str:
    """A window of HU as text, with its width."""
    low, high = window
    return f"{low:.0f} … {high:.0f} HU (range {high - low:.0f})".replace("-", "−")
