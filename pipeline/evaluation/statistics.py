"""What a list of patients' figures says: summaries with intervals, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from drr2ct.networks.interval import TAIL
from drr2ct.pipeline.evaluation.figures import lower_is_better
from drr2ct.transforms.validation import InputError

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Of one figure over patients that have it.

    Args:
        count: of those patients.
        mean: over them.
        std: sample standard deviation (n − 1); None for one patient.
        median: over them.
        worst: the least value; the greatest where lower is better; the one furthest from 0 for a bias, from 0.9 for a
            coverage.
        worst_patient: who has it.
        low: lower end of the mean's interval; None for one patient.
        high: upper end.
    """

    count: int
    mean: float
    std: float | None
    median: float
    worst: float
    worst_patient: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedDifference:
    """Of one figure between two models on the same patients.

    Args:
        count: of patients that both have.
        difference: mean of first − second.
        low: lower end of its interval; None for one patient.
        high: upper end.
        better: share of patients on which the first is better.
    """

    count: int
    difference: float
    low: float | None
    high: float | None
    better: float


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """95 % percentile bootstrap interval of the mean, resampling patients (Efron & Tibshirani 1993, ch. 13).

    Returns:
        Lower and upper end; None for fewer than two values.
    """
    if len(values) < 2:
        return None, None
    result = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=RESAMPLES,
        batch=1000,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def badness(figure: str, value: float) -> float:
    """The greater, the worse: the value, its negative, its absolute value for a signed error, or how far off it is."""
    if figure.startswith("interval_coverage"):
        return abs(value - (1 - 2 * TAIL))
    if "bias" in figure:
        return abs(value)
    return value if lower_is_better(figure) else -value


def summarise(figure: str, values: Mapping[str, float], seed: int = 0) -> Summary | None:
    """Summary of one figure.

    Args:
        figure: its name; says which end is the worst.
        values: by patient; NaN where it is not defined.
        seed: of the bootstrap.

    Returns:
        None if no patient has the figure.
    """
    defined = {patient: value for patient, value in values.items() if not math.isnan(value)}
    if not defined:
        return None
    numbers = np.array(list(defined.values()))
    worst = max(defined, key=lambda patient: badness(figure, defined[patient]))
    low, high = bootstrap_interval(numbers.tolist(), seed)
    return Summary(
        count=len(numbers),
        mean=float(numbers.mean()),
        std=float(numbers.std(ddof=1)) if len(numbers) > 1 else None,
        median=float(np.median(numbers)),
        worst=defined[worst],
        worst_patient=worst,
        low=low,
        high=high,
    )


def compare_paired(
    figure: str, first: Mapping[str, float], second: Mapping[str, float], seed: int = 0
) -> PairedDifference | None:
    """First − second on the patients that both have; the interval is over these differences.

    Args:
        figure: its name; says which model is better.
        first: values of one model, by patient.
        second: values of the other.
        seed: of the bootstrap.

    Returns:
        None if the figure is defined for none of them.

    Raises:
        InputError: if the two have no patient in common.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        raise InputError(
            "the two evaluations have no patient in common; evaluate both models on the same test patients."
        )
    pairs = [(first[p], second[p]) for p in common if not (math.isnan(first[p]) or math.isnan(second[p]))]
    if not pairs:
        return None
    differences = [a - b for a, b in pairs]
    low, high = bootstrap_interval(differences, seed)
    better = sum(badness(figure, a) < badness(figure, b) for a, b in pairs) / len(pairs)
    return PairedDifference(len(pairs), float(np.mean(differences)), low, high, better)
