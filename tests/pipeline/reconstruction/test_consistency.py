"""Fitting a prediction to its radiographs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SimpleInferer

from drr2ct.networks.losses import ReprojectionLoss
from drr2ct.pipeline.reconstruction.consistency import FittedInferer, fit_to_radiographs
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=32)
PROJECT = ReprojectionLoss(GEOMETRY).project


def bodies(*soft_tissue: float) -> torch.Tensor:
    """Boxes of soft tissue in air, one per value (HU)."""
    volume = torch.zeros(len(soft_tissue), 1, 16, 16, 16)
    for body, hu in zip(volume, soft_tissue, strict=True):
        body[:, 4:12, 5:11, 3:13] = (hu + 1024) / 4095
    return volume


def residual(volume: torch.Tensor, radiographs: torch.Tensor) -> torch.Tensor:
    return (PROJECT(volume) - radiographs).square().flatten(1).sum(dim=1)


def test_a_volume_that_fits_stays_as_it_is() -> None:
    truth = bodies(40.0)
    assert torch.allclose(fit_to_radiographs(truth, PROJECT(truth), GEOMETRY, 3), truth, atol=1e-6)


def test_every_step_brings_the_radiographs_closer_and_the_volume_too() -> None:
    truth = bodies(60.0)
    radiographs = PROJECT(truth)
    guess = F.avg_pool3d(truth, 5, 1, 2) * 0.8
    fits = [guess, *(fit_to_radiographs(guess, radiographs, GEOMETRY, steps) for steps in (1, 2, 3))]
    residuals = [residual(fit, radiographs).item() for fit in fits]
    assert all(after < before for before, after in itertools.pairwise(residuals))
    assert residuals[2] < 0.2 * residuals[0]
    assert (fits[2] - truth).square().mean() < (guess - truth).square().mean()


def test_one_step_is_the_best_length_along_its_direction() -> None:
    truth = 0.26 + 0.02 * (bodies(60.0) > 0)  # within one line of the attenuation, where the search is exact
    radiographs = PROJECT(truth)
    guess = truth * 0.98
    step = fit_to_radiographs(guess, radiographs, GEOMETRY, 1) - guess
    best = residual(guess + step, radiographs)
    assert best < residual(guess + 0.8 * step, radiographs)
    assert best < residual(guess + 1.2 * step, radiographs)


def test_patients_of_a_batch_do_not_mix() -> None:
    guesses, radiographs = bodies(0.0, 300.0), PROJECT(bodies(60.0, -50.0))
    together = fit_to_radiographs(guesses, radiographs, GEOMETRY, 2)
    alone = [fit_to_radiographs(guesses[i : i + 1], radiographs[i : i + 1], GEOMETRY, 2) for i in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_the_inferer_fits_even_where_gradients_are_off() -> None:
    truth = bodies(60.0)
    radiographs = PROJECT(truth)
    with torch.no_grad():
        plain = FittedInferer(SimpleInferer(), GEOMETRY)(radiographs, lambda x: truth * 0.9)
        fitted = FittedInferer(SimpleInferer(), GEOMETRY, 2)(radiographs, lambda x: truth * 0.9)
    assert torch.equal(plain, truth * 0.9)
    assert residual(fitted, radiographs) < 0.2 * residual(plain, radiographs)
    assert not fitted.requires_grad


@pytest.mark.parametrize(("steps", "mode", "says"), [(-1, "cube", "whole number"), (1, "resize", "mode resize")])
def test_what_cannot_be_fitted_is_refused(steps: int, mode: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        FittedInferer(SimpleInferer(), GEOMETRY, steps, mode)


def test_bounds_go_with_their_estimate() -> None:
    truth = bodies(60.0)
    estimate = F.avg_pool3d(truth, 5, 1, 2) * 0.8
    output = torch.cat([estimate, estimate - 0.01, estimate + 0.02], dim=1)
    fitted = FittedInferer(SimpleInferer(), GEOMETRY, 1)(PROJECT(truth), lambda _: output)
    alone = fit_to_radiographs(estimate, PROJECT(truth), GEOMETRY, 1)
    assert torch.equal(fitted[:, :1], alone)
    assert torch.allclose(fitted[:, 1:2], alone - 0.01, atol=1e-6)
    assert torch.allclose(fitted[:, 2:], alone + 0.02, atol=1e-6)
