"""HU windows that are computed together give what each gives alone."""

import pytest
import torch
from monai.metrics.regression import PSNRMetric, SSIMMetric

from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from drr2ct.pipeline.evaluation.similarity import WINDOWS, ssim_planes
from tests.pipeline.evaluation.volumes import blurred, volume


def with_dense_voxels(size: int, places: list[tuple[int, int, int]]) -> torch.Tensor:
    """Where alone the windows differ: in no, the first, the last or a middle plane, and in corners."""
    truth = volume(size).clamp(max=900.0)
    for place in places:
        truth[(0, *place)] = 2500.0
    return truth


@pytest.mark.parametrize(
    "places", [[], [(0, 0, 0)], [(39, 39, 39)], [(20, 3, 38)], [(7, 39, 0), (8, 0, 39)], [(16, 20, 20), (31, 5, 5)]]
)
def test_each_window_is_monais(places):
    truth = with_dense_voxels(40, places)
    pred = blurred(truth)
    together = ReconstructionMetric(["psnr", "ssim", "psnr_narrow", "ssim_narrow", "psnr_full", "ssim_full"])
    found = together.compute(pred, truth)
    for suffix, window in WINDOWS.items():
        x, y = (v.clamp(*window)[None] for v in (pred, truth))
        width = window[1] - window[0]
        assert found[f"psnr{suffix}"] == pytest.approx(float(PSNRMetric(width)(x, y)), abs=1e-4)
        assert found[f"ssim{suffix}"] == pytest.approx(float(SSIMMetric(3, data_range=width)(x, y)), abs=1e-4)


def test_every_position_is_as_alone():
    truth = with_dense_voxels(40, [(20, 20, 20)])
    pred = blurred(truth)
    alone = [torch.cat([part[0][0] for part in ssim_planes(pred, truth, [w])], dim=1) for w in WINDOWS.values()]
    together = list(ssim_planes(pred, truth, list(WINDOWS.values())))
    for number, expected in enumerate(alone):
        torch.testing.assert_close(torch.cat([part[number][0] for part in together], dim=1), expected)
