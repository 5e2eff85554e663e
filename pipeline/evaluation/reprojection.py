"""How large reprojection differences usually are, as a training notes it, and the verdict on one against that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

REFERENCE_FORMAT = 1

DOUBTFUL = 2.0
"""A volume whose reprojection error is so many times the usual one is not to be trusted."""


@dataclass(frozen=True)
class Verdict:
    """What a reprojection error says.

    Args:
        sentence: in words.
        doubtful: it speaks against the volume.
    """

    sentence: str
    doubtful: bool


def reprojection_reference(relative: Sequence[float]) -> dict[str, Any] | None:
    """What checkpoints hold of the errors of patients that the network was not trained on; None without any.

    Args:
        relative: ``reprojection_relative`` of each.
    """
    finite = np.array([value for value in relative if math.isfinite(value)])
    if not finite.size:
        return None
    return {
        "format": REFERENCE_FORMAT,
        "patients": int(finite.size),
        "median": float(np.median(finite)),
        "largest": float(finite.max()),
    }


def reprojection_verdict(relative: float, reference: Mapping[str, Any] | None) -> Verdict:
    """Judge one volume.

    Args:
        relative: its ``reprojection_relative``.
        reference: of :func:`reprojection_reference`; None of checkpoints that were written before there was one.
    """
    own = f"The volume's own radiographs differ from those given by {relative:.0%} of these"
    if reference is None:
        return Verdict(f"{own}; the checkpoint does not hold what is usual, so that was not judged.", False)
    times = relative / max(reference["median"], 1e-6)
    patients = "1 patient" if reference["patients"] == 1 else f"{reference['patients']} patients"
    usual = f"{times:.1f} times what it is on the {patients} of the training's validation ({reference['median']:.0%})"
    # not finite: an empty radiograph
    if not times < max(DOUBTFUL, 1.25 * reference["largest"] / max(reference["median"], 1e-6)):
        return Verdict(f"{own}, {usual}: do not trust the volume.", True)
    return Verdict(f"{own}, {usual}.", False)
