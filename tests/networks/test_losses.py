import math

import pytest
import torch
from torch import nn

from drr2ct.networks.losses import (
    LOSSES,
    GradientDifferenceLoss,
    L1Loss,
    L2Loss,
    ReprojectionLoss,
    SpectralLoss,
    SSIMLoss,
    TotalVariationLoss,
    WeightedLoss,
)
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import project_volume
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError


def ramp(n: int = 12, step: float = 0.05, axis: int = 2) -> torch.Tensor:
    line = step * torch.arange(n, dtype=torch.float32)
    shape = [1, 1, 1, 1, 1]
    shape[axis] = n
    return line.reshape(shape).expand(1, 1, n, n, n).contiguous()


def test_l1_is_the_mean_absolute_error() -> None:
    pred = torch.zeros(1, 1, 2, 2, 2)
    target = torch.zeros(1, 1, 2, 2, 2)
    target[0, 0, 0, 0, 0], target[0, 0, 1, 1, 1] = 0.8, -0.4
    assert L1Loss()(pred, target).item() == pytest.approx(1.2 / 8)


def test_l2_is_the_mean_squared_error() -> None:
    pred = torch.zeros(1, 1, 2, 2, 2)
    target = torch.zeros(1, 1, 2, 2, 2)
    target[0, 0, 0, 0, 0], target[0, 0, 1, 1, 1] = 0.8, -0.4
    assert L2Loss()(pred, target).item() == pytest.approx((0.64 + 0.16) / 8)


def test_gradient_difference_of_two_ramps() -> None:
    assert GradientDifferenceLoss()(ramp(step=0.05), ramp(step=0.02)).item() == pytest.approx(0.03, abs=1e-6)
    # strengths, not directions: another axis is wrong twice, the mirrored ramp not at all
    assert GradientDifferenceLoss()(ramp(axis=2), ramp(axis=4)).item() == pytest.approx(0.1, abs=1e-6)
    assert GradientDifferenceLoss()(ramp(), ramp().flip(2)).item() == pytest.approx(0, abs=1e-6)


def test_total_variation_of_a_ramp_ignores_the_target() -> None:
    assert TotalVariationLoss()(ramp(step=0.03), torch.rand(1, 1, 12, 12, 12)).item() == pytest.approx(0.03, abs=1e-6)


def test_spectral_loss_ignores_translation_but_not_scale() -> None:
    pred = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    assert SpectralLoss()(pred, pred.roll(3, dims=2)).item() == pytest.approx(0, abs=1e-6)
    # a constant has one non-zero coefficient, n³ · c / √n³ in the orthonormal transform, among 8 · 8 · 5
    constant = torch.full((1, 1, 8, 8, 8), 0.5)
    assert SpectralLoss()(constant, 0 * constant).item() == pytest.approx(0.5 * math.sqrt(512) / 320, rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_are_zero_at_the_truth_and_improve_along_their_gradient(name: str) -> None:
    torch.manual_seed(0)
    target, loss = torch.rand(2, 1, 16, 16, 16), LOSSES[name]()
    pred = (target + 0.2 * torch.rand_like(target)).requires_grad_()
    value = loss(pred, target)
    (gradient,) = torch.autograd.grad(value, pred)
    assert value.ndim == 0
    assert loss(pred - 1e-3 * gradient / gradient.abs().max(), target) < value
    if name != "total_variation":
        assert loss(target, target).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_are_computed_in_float32_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    pred, target = torch.rand(1, 1, 12, 12, 12).bfloat16(), torch.rand(1, 1, 12, 12, 12)
    plain = LOSSES[name]()(pred.float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        value = LOSSES[name]()(pred, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain.item(), rel=1e-6)


def test_losses_refuse_to_broadcast() -> None:
    with pytest.raises(InputError, match="one grid"):
        L1Loss()(torch.zeros(1, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4))


def test_weighted_loss_adds_and_remembers_its_terms() -> None:
    torch.manual_seed(0)
    pred, target = torch.rand(1, 1, 12, 12, 12, requires_grad=True), torch.rand(1, 1, 12, 12, 12)
    loss = WeightedLoss({"l1": 1.0, "ssim": 0.25, "mse": (2, nn.MSELoss())})
    value = loss(pred, target)
    l1, ssim, mse = L1Loss()(pred, target), SSIMLoss()(pred, target), ((pred - target) ** 2).mean()
    assert value.item() == pytest.approx((l1 + 0.25 * ssim + 2 * mse).item(), rel=1e-6)
    assert value.requires_grad
    assert list(loss.last_terms) == ["l1", "ssim", "mse"]
    assert not any(term.requires_grad for term in loss.last_terms.values())
    assert loss.last_terms["ssim"].item() == pytest.approx(ssim.item())


def test_default_loss_is_l1_and_ssim() -> None:
    assert WeightedLoss().weights == {"l1": 1.0, "ssim": 0.1}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "at least one"),
        ({"l1": 0.0}, "weight of loss l1"),
        ({"ssim": -1.0}, "weight of loss ssim"),
        ({"l1": math.nan}, "weight of loss l1"),
        ({"sim": 1.0}, "did you mean ssim"),
        ({"reprojection": 1.0}, "needs a geometry"),
    ],
)
def test_weighted_loss_refuses(terms: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        WeightedLoss(terms)


def test_reprojection_loss_is_the_difference_of_the_radiographs() -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=24)
    target = torch.full((1, 1, 16, 16, 16), 0.006)
    pred = target.clone()
    pred[..., 4:12, 4:12, 4:12] = 0.25
    pred.requires_grad_()
    loss = ReprojectionLoss(geometry)
    value = loss(pred, target)
    drrs = [project_volume(volume.detach() * 4095 - 1024, geometry) for volume in (pred, target)]
    assert value.item() == pytest.approx((drrs[0] - drrs[1]).abs().mean().item() / LINE_INTEGRAL_SCALE, rel=1e-4)
    assert loss(target, target).item() == 0
    (gradient,) = torch.autograd.grad(value, pred)
    # less of the dense block would bring the radiographs closer
    assert (gradient[..., 5:11, 5:11, 5:11] > 0).all()


def test_reprojection_loss_sees_a_mirrored_volume() -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=24)
    target = torch.full((1, 1, 16, 16, 16), 0.006)
    target[..., 2:5, 10:14, 3:6] = 0.4
    for axis in (2, 3, 4):
        assert ReprojectionLoss(geometry)(target.flip(axis), target) > 0.01


def test_reprojection_loss_refuses_an_empty_window() -> None:
    with pytest.raises(InputError, match="empty"):
        ReprojectionLoss(BiplanarGeometry.from_angles(VolumeGrid(16)), (100.0, -100.0))
