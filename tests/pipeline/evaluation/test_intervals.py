from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from drr2ct.pipeline.evaluation.figures import INTERVAL_FIGURES, lower_is_better
from drr2ct.pipeline.evaluation.intervals import (
    BoundsAndTruth,
    IntervalMetric,
    interval_figures,
    rank_correlation,
    region_means,
    sparsification,
)
from drr2ct.pipeline.evaluation.statistics import badness
from drr2ct.transforms.validation import InputError


def patient() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Soft tissue (40 HU) with a lung (−800 HU) in it: bounds hold in the one and not in the other."""
    truth = torch.full((1, 12, 12, 12), -1000.0)
    truth[:, 2:10, 2:10, 2:10] = 40.0
    truth[:, 4:6, 4:6, 3:9] = -800.0
    body = torch.zeros(1, 12, 12, 12, dtype=torch.bool)
    body[:, 2:10, 2:10, 2:10] = True
    lung = truth == -800.0
    estimate = truth + torch.where(lung, 100.0, 10.0)
    half = torch.where(lung, 50.0, 20.0)
    return torch.cat([estimate, estimate - half, estimate + 2 * half]), truth, body


def test_figures_of_a_case_by_hand() -> None:
    output, truth, body = patient()
    found = interval_figures(output, truth, body)
    assert tuple(found) == INTERVAL_FIGURES
    assert found["interval_coverage"] == pytest.approx(1 - 24 / 512)
    assert found["interval_coverage_soft"] == 1 and found["interval_coverage_lung"] == 0
    assert math.isnan(found["interval_coverage_bone"])
    assert found["interval_width_hu"] == pytest.approx((24 * 150 + 488 * 60) / 512)
    assert found["interval_rank"] == pytest.approx(1.0), "wider where more wrong"
    everywhere = found["interval_rank_volume"]
    assert everywhere == pytest.approx(1.0), "air as wide as soft tissue, and as wrong"
    assert found["interval_rank_regions"] == pytest.approx(1.0), "of so small a volume each voxel is a region"


def test_regions_are_means_over_the_body() -> None:
    """Where a voxel's error is chance, and its expectation is not; one region is half body, one is less."""
    body = torch.zeros(1, 64, 32, 32, dtype=torch.bool)
    body[:, :32] = True
    body[:, 32:34, :2, :2] = True  # half of the region of 4×2×2 voxels that begins there
    body[:, 36:37, :2, :2] = True
    volume = torch.arange(64.0)[None, :, None, None].expand(1, 64, 32, 32) * body + 1e6 * ~body
    means = region_means(volume, body)
    assert means.numel() == 8 * 16 * 16 + 1 and means[:256].eq(1.5).all() and means[-1] == 32.5
    generator = torch.Generator().manual_seed(0)
    width = 1 + torch.arange(16.0).repeat_interleave(2)[None, None, None].expand(1, 64, 32, 32)
    error = width * torch.randn(width.shape, generator=generator).abs()
    everywhere = torch.ones_like(body)
    assert rank_correlation(region_means(width, everywhere), region_means(error, everywhere)) > 0.9
    assert rank_correlation(width.flatten(), error.flatten()) < 0.7


def test_ranks() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(x, x.exp()) == pytest.approx(1) and rank_correlation(x, -x) == pytest.approx(-1)
    assert math.isnan(rank_correlation(x, torch.ones(4))) and math.isnan(rank_correlation(x[:0], x[:0]))


def test_leaving_out_the_widest_leaves_out_errors_only_if_width_tells() -> None:
    error = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    by_width, best = sparsification(error.square(), error)
    assert np.allclose(by_width, best) and best[0] == pytest.approx(float(error.mean())) and best[-1] < 0.06
    by_chance, _ = sparsification(torch.rand(1000), error)
    assert abs(by_chance[10] - by_chance[0]) < 0.05


def test_the_metric_through_an_engines_output() -> None:
    output, truth, _ = patient()
    scaled = [(volume + 1024) / 4095 for volume in (output, truth)]
    made, there = BoundsAndTruth()([{"pred": scaled[0], "label": scaled[1]}])
    metric = IntervalMetric()
    row = metric(made, there)
    assert row.shape == (1, len(INTERVAL_FIGURES)) and row[0, 0] == pytest.approx(1 - 24 / 512)
    with pytest.raises(InputError, match="network_def#interval=true"):
        metric([output[:1]], [truth])


def test_what_is_worse() -> None:
    assert badness("interval_coverage", 0.99) > badness("interval_coverage", 0.85)
    assert lower_is_better("interval_width_hu") and badness("interval_rank", 0.2) > badness("interval_rank", 0.6)
