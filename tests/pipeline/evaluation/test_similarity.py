"""Similarities against independent implementations and hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric

from drr2ct.pipeline.evaluation import similarity
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from tests.pipeline.evaluation.volumes import blurred, volume


@pytest.mark.parametrize(("size", "scales"), [(64, 3), pytest.param(176, 5, marks=pytest.mark.slow)])
def test_ms_ssim_is_monais(size, scales):
    truth, pred = volume(size), blurred(volume(size))
    weights = np.array(similarity.MS_SSIM_WEIGHTS[:scales])
    monai = MultiScaleSSIMMetric(3, data_range=2500.0, weights=(weights / weights.sum()).tolist())
    x, y = pred.clamp(*similarity.DEFAULT_WINDOW), truth.clamp(*similarity.DEFAULT_WINDOW)
    expected = float(monai(x[None], y[None]))
    assert similarity.ms_ssim(x, y, 2500.0) == pytest.approx(expected, abs=1e-4)
    assert ReconstructionMetric(["ms_ssim"]).compute(pred, truth)["ms_ssim"] == pytest.approx(expected, abs=1e-4)


def test_gradient_similarity_by_hand():
    ramp = torch.arange(40.0).expand(1, 12, 12, 40) * 10
    steeper = ramp * 2
    a, b = (10 / 2500) ** 2, (20 / 2500) ** 2
    c = similarity.GRADIENT_CONSTANT
    expected = (2 * math.sqrt(a * b) + c) / (a + b + c)
    got = similarity.gradient_similarity(ramp, steeper, 2500.0)
    torch.testing.assert_close(got, torch.full_like(got, expected))


def test_legacy_figure_by_hand():
    truth = torch.full((1, 12, 12, 12), -1024.0)
    pred = truth.clone()
    pred[0, 0] = -1014.0  # one slice of the first axis is wrong by 10
    first = (10 * math.log10(4095**2 / 100) + 11 * 100) / 12
    others = 10 * math.log10(4095**2 / (100 / 12))
    assert similarity.legacy_x2ct_psnr(pred, truth) == pytest.approx((first + 2 * others) / 3)
    # HU + 1024 is clipped to 0…2500: beyond its ends there is no error
    assert similarity.legacy_x2ct_psnr(torch.full_like(truth, 3000.0), torch.full_like(truth, 1476.0)) == 100
    assert similarity.legacy_x2ct_psnr(torch.full_like(truth, -2000.0), truth) == 100
