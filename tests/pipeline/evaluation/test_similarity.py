"""Similarities against independent implementations and hand-computed cases."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.regression import MultiScaleSSIMMetric

from drr2ct.pipeline.evaluation import similarity
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from tests.pipeline.evaluation.volumes import blurred, volume


@pytest.mark.parametrize(("size", "scales"), [(64, 3), (104, 4), pytest.param(176, 5, marks=pytest.mark.slow)])
def test_ms_ssim_is_monais(size, scales):
    truth, pred = volume(size), blurred(volume(size))
    weights = np.array(similarity.MS_SSIM_WEIGHTS[:scales])
    monai = MultiScaleSSIMMetric(3, data_range=2500.0, weights=(weights / weights.sum()).tolist())
    x, y = pred.clamp(*similarity.DEFAULT_WINDOW), truth.clamp(*similarity.DEFAULT_WINDOW)
    expected = float(monai(x[None], y[None]))
    assert similarity.ms_ssim(x, y, similarity.DEFAULT_WINDOW) == pytest.approx(expected, abs=1e-4)
    assert ReconstructionMetric(["ms_ssim"]).compute(pred, truth)["ms_ssim"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("size", "scales"), [(21, 1), (22, 2), (87, 3), (175, 4), (176, 5), (360, 5)])
def test_ms_ssim_takes_as_many_scales_as_there_is_room_for(size, scales, monkeypatch):
    sizes = []
    monkeypatch.setattr(similarity, "_mean_similarity", lambda pred, *_: sizes.append(pred.shape[1]) or (1.0, 0.5))
    nothing = torch.zeros(1, size, size, size)
    similarity.ms_ssim(nothing, nothing, (0, 1))
    assert sizes == [size // 2**scale for scale in range(scales)]


def test_gradient_similarity_by_hand():
    ramp = torch.arange(40.0).expand(1, 12, 12, 40) * 10
    steeper = ramp * 2
    a, b = (10 / 2500) ** 2, (20 / 2500) ** 2
    c = similarity.GRADIENT_CONSTANT
    expected = (2 * math.sqrt(a * b) + c) / (a + b + c)
    got = similarity.gradient_similarity(ramp, steeper, 2500.0)
    torch.testing.assert_close(got, torch.full_like(got, expected))


@pytest.mark.parametrize("size", [(24, 26, 28), (24, 24, 25)])
def test_detail_is_a_share_of_the_spectrum_above_its_frequency(size):
    spacing = (1.5, 2.0, 1.4)
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(1, *size, generator=generator)
    pred = truth + torch.randn(1, *size, generator=generator) / 2
    frequencies = np.meshgrid(*(np.fft.fftfreq(n, mm) for n, mm in zip(size, spacing, strict=True)), indexing="ij")
    above = sum(f**2 for f in frequencies) > 1 / 11**2
    taper = np.einsum("i,j,k->ijk", *(np.hanning(n) for n in size))
    powers = [(np.abs(np.fft.fftn(x[0].numpy() * taper)) ** 2)[above].sum() for x in (pred - truth, truth)]
    assert similarity.detail_explained(pred, truth, spacing) == pytest.approx(1 - powers[0] / powers[1], abs=1e-5)
    assert similarity.detail_explained(truth, truth, spacing) == 1
    assert similarity.detail_explained(-truth, truth, spacing) == pytest.approx(-3)
    assert math.isnan(similarity.detail_explained(truth, truth, (5.6, 5.6, 5.6)))  # cannot hold it


def test_what_is_smooth_is_no_detail():
    place = torch.arange(64.0)
    coarse, fine = (torch.sin(2 * math.pi * place / period).expand(1, 64, 64, 64) for period in (32, 5))
    assert similarity.detail_explained(coarse, coarse + fine, (1.0,) * 3) == pytest.approx(0, abs=1e-3)
    assert similarity.detail_explained(3 * coarse + fine, coarse + fine, (1.0,) * 3) == pytest.approx(1, abs=1e-3)
    assert similarity.detail_explained(coarse + fine, coarse + fine.roll(2, 3), (1.0,) * 3) < -0.5  # in a wrong place


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
