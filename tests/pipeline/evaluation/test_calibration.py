"""Whether calibrated bounds cover what they say, on errors that are made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drr2ct.networks.interval import IntervalHead
from drr2ct.pipeline.evaluation.calibration import (
    UNCALIBRATED,
    apply_calibration,
    calibrate,
    coverage,
    left_out_coverage,
    patient_scores,
    weighted_quantile,
)


def body(seed: int, too_narrow: float = 3.0, skew: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A block of tissue in air; errors of two sizes, bounds that know which but are too narrow."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(1, 24, 24, 24)
    truth[:, 4:20, 4:20, 4:20] = 0.25
    spread = torch.where(torch.rand(truth.shape, generator=generator) > 0.5, 0.02, 0.004)
    estimate = truth + spread * torch.randn(truth.shape, generator=generator)
    return torch.cat([estimate, estimate - spread / too_narrow, estimate + skew * spread / too_narrow]), truth


def test_coverage_is_what_is_said_on_patients_left_out() -> None:
    patients = [patient_scores(*body(seed)) for seed in range(6)]
    assert coverage(patients[0], UNCALIBRATED) < 0.5
    calibration = calibrate(patients)
    assert np.mean([coverage(p, calibration) for p in patients]) == pytest.approx(0.9, abs=0.005)
    others = [patient_scores(*body(seed)) for seed in range(10, 14)]
    assert np.mean([coverage(p, calibration) for p in others]) == pytest.approx(0.9, abs=0.02)
    assert np.mean(left_out_coverage(patients)) == pytest.approx(0.9, abs=0.02)
    assert left_out_coverage(patients[:1]) == []


def test_either_bound_has_its_own_factor() -> None:
    patients = [patient_scores(*body(seed, skew=2.0)) for seed in range(4)]
    lower, upper = calibrate(patients, by_width=False).factors
    assert lower[0] == pytest.approx(2 * upper[0], rel=0.05) and len(set(lower)) == 1
    assert lower[0] == pytest.approx(3 * 1.645, rel=0.05), "the 95 % quantile of a normal error"


def test_factors_differ_by_width_where_that_is_needed() -> None:
    """Narrow bounds are wrong by more widths than wide ones: one factor covers neither as it should."""

    def skewed(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        output, truth = body(seed)
        estimate, low, high = output
        power = torch.stack(
            [estimate, estimate - (estimate - low) ** 2 / 0.004, estimate + (high - estimate) ** 2 / 0.004]
        )
        return power, truth

    patients = [patient_scores(*skewed(seed)) for seed in range(4)]
    fitted = {by_width: calibrate(patients, by_width) for by_width in (False, True)}
    narrow = {}
    for by_width, calibration in fitted.items():
        within = []
        for p in patients:
            small = p.logarithm[0] < np.log(0.002)
            ok = [p.score[t] <= calibration.factor(t, p.logarithm[t]) for t in range(2)]
            within.append((ok[0] & ok[1])[small].mean())
        narrow[by_width] = np.mean(within)
    assert narrow[True] == pytest.approx(0.9, abs=0.02) and narrow[False] < 0.83


def test_air_has_factors_of_its_own_and_the_body_keeps_its_coverage() -> None:
    """Around the body bounds are a hundred times narrower, and wrong by twice as many widths."""

    def patient(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        output, truth = body(seed)
        estimate, low, high = output
        outside = truth[0] < 0.1
        middle = torch.where(outside, truth[0] + (estimate - truth[0]) / 50, estimate)
        half = [torch.where(outside, width / 100, width) for width in (estimate - low, high - estimate)]
        return torch.stack([middle, middle - half[0], middle + half[1]]), truth

    bodies, air = ([patient_scores(*patient(seed), around=around) for seed in range(4)] for around in (False, True))
    plain, own = calibrate(bodies), calibrate(bodies, around=air)
    for scores, least in ((bodies, 0.88), (air, 0.0)):
        assert np.mean([coverage(p, plain) for p in scores]) >= least
        assert np.mean([coverage(p, own) for p in scores]) == pytest.approx(0.9, abs=0.015)
    assert np.mean([coverage(p, plain) for p in air]) < 0.7 and np.all(np.diff(own.knots) > 0)
    assert np.mean(left_out_coverage(bodies, around=air)) == pytest.approx(0.9, abs=0.02)
    alike = [patient_scores(*body(seed), around=True) for seed in range(4)]
    assert calibrate(bodies, around=alike) == plain, "as wide as the body's: it has none"


def test_patients_count_alike_whatever_their_size() -> None:
    assert weighted_quantile(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 8.0]), 0.5) == 2.0
    assert weighted_quantile(np.array([1.0, 2.0]), np.ones(2), 1.0) == 2.0


def test_the_head_gives_what_was_calibrated() -> None:
    torch.manual_seed(0)
    head = IntervalHead([4], 1).eval()
    with torch.no_grad():
        head.heads[0][0].weight.mul_(10)
    _, truth = body(0)
    features = torch.rand(1, 4, 24, 24, 24)
    estimate = truth[None] + 0.03 * torch.randn(1, 1, 24, 24, 24)
    scores = patient_scores(head(estimate, estimate, [features])[0], truth)
    calibration = calibrate([scores])
    apply_calibration(head, calibration)
    _, low, high = head(estimate, estimate, [features])[0].detach()
    inside = truth[0] > 0.1
    assert float(((low <= truth[0]) & (truth[0] <= high))[inside].float().mean()) == pytest.approx(0.9, abs=0.01)
