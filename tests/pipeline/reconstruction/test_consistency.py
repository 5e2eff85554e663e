"""Fitting a prediction to its radiographs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.inferers import SimpleInferer

from drr2ct.networks.losses import ReprojectionLoss
from drr2ct.pipeline.evaluation.baselines import evaluate_baselines
from drr2ct.pipeline.evaluation.intervals import interval_figures
from drr2ct.pipeline.evaluation.structures import body_mask
from drr2ct.pipeline.reconstruction import consistency
from drr2ct.pipeline.reconstruction.consistency import (
    LARGEST_DIFFERENCE,
    FittedInferer,
    fit_to_radiographs,
    fitted_prediction,
    with_fit,
)
from drr2ct.transforms.films.shared import smoothed
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=32)
PROJECT = ReprojectionLoss(GEOMETRY).project


def bodies(*soft_tissue: float) -> torch.Tensor:
    """Boxes of soft tissue in air, one per value (HU)."""
    volume = torch.zeros(len(soft_tissue), 1, 16, 16, 16)
    for body, hu in zip(volume, soft_tissue, strict=True):
        body[:, 4:12, 5:11, 3:13] = (hu + 1024) / 4095
    return volume


def blurred(volume: torch.Tensor) -> torch.Tensor:
    return 0.8 * volume + 0.2 * F.avg_pool3d(volume, 3, 1, 1)


def structures(images: torch.Tensor) -> torch.Tensor:
    """Without what is smoother than 60 mm on the detector."""
    pitch = GEOMETRY.views[0].pixel_pitch_mm
    return images - smoothed(images, 60.0, pitch)


def residual(volume: torch.Tensor, radiographs: torch.Tensor) -> float:
    return float(structures(PROJECT(volume[None])[0] - radiographs).square().sum())


def test_a_volume_that_fits_stays_as_it_is() -> None:
    truth = bodies(40.0)
    volume, fit = fit_to_radiographs(truth[0], PROJECT(truth)[0], GEOMETRY, 3)
    assert fit.steps == 3 and fit.difference < 0.01  # the two projectors are within a percent
    assert torch.allclose(volume, truth[0], atol=1e-3)


def test_every_step_brings_the_radiographs_closer_and_the_volume_too() -> None:
    truth = bodies(60.0)
    radiographs = PROJECT(truth)[0]
    guess = blurred(truth)[0]
    fits = [guess, *(fit_to_radiographs(guess, radiographs, GEOMETRY, steps)[0] for steps in (1, 2, 3))]
    residuals = [residual(fit, radiographs) for fit in fits]
    assert all(after < before for before, after in itertools.pairwise(residuals))
    assert residuals[1] < 0.3 * residuals[0]
    errors = [float((fit - truth[0]).square().mean()) for fit in fits]
    assert errors[1] < errors[0] and errors[2] < errors[0]


def test_a_change_goes_where_surfaces_are() -> None:
    truth = F.avg_pool3d(bodies(60.0), 3, 1, 1)
    guess = (truth[0] + truth[0].roll(1, 1)) / 2  # a body that was put too far by half a voxel
    step = fit_to_radiographs(guess, PROJECT(truth)[0], GEOMETRY, 1)[0] - guess
    slope = torch.stack(torch.gradient(guess, dim=(1, 2, 3))).norm(dim=0)
    steep = slope > 0.5 * slope.max()
    inside = (slope < 0.1 * slope.max()) & (guess > 0.2)
    assert steep.any() and inside.any()
    assert step[steep].abs().mean() > 1.6 * step[inside].abs().mean()  # 1.3 if all voxels counted alike
    assert (guess + step - truth[0]).square().mean() < 0.6 * (guess - truth[0]).square().mean()


def test_one_step_is_the_best_length_along_its_direction() -> None:
    truth = 0.26 + 0.02 * (bodies(60.0) > 0)  # within one line of the attenuation, where the search is exact
    radiographs = PROJECT(truth)[0]
    guess = (truth - 0.002 * (bodies(60.0) > 0))[0]
    step = fit_to_radiographs(guess, radiographs, GEOMETRY, 1)[0] - guess
    best = residual(guess + step, radiographs)
    assert best < residual(guess + 0.8 * step, radiographs)
    assert best < residual(guess + 1.2 * step, radiographs)


def test_what_is_smooth_is_not_taken_for_anatomy() -> None:
    truth = bodies(60.0)
    radiographs, guess = PROJECT(truth)[0], blurred(truth)[0]
    exact = fit_to_radiographs(guess, radiographs, GEOMETRY, 2)[0]
    brighter = fit_to_radiographs(guess, radiographs - 0.05, GEOMETRY, 2)[0]  # another exposure
    changed = (exact - guess).square().mean()
    assert (brighter - exact).square().mean() < 1e-4 * changed


def test_a_films_curve_is_undone() -> None:
    guess = bodies(60.0)[0]
    truth = guess.clone()
    truth[:, 6:8, 6:8, 6:8] = 0.35  # what the network has missed
    radiographs = PROJECT(truth[None])[0]
    most = radiographs.amax()
    film = torch.stack([(0.7 + 0.5 * radiographs[0] / most) * radiographs[0], 1.4 * radiographs[1]])
    exact, fit = fit_to_radiographs(guess, radiographs, GEOMETRY, 1)
    assert fit.steps == 1 and not fit.tone_matched and "tone" not in fit.sentence()
    undone, of_film = fit_to_radiographs(guess, film, GEOMETRY, 1)
    assert of_film.tone_matched and of_film.difference < 1.1 * fit.difference and "tone matched" in of_film.sentence()
    before, after, best = (float((volume - truth).square().mean()) for volume in (guess, undone, exact))
    assert before - after > 0.5 * (before - best) > 0


def test_a_negative_is_no_films_curve() -> None:
    truth = bodies(60.0)
    radiographs, guess = PROJECT(truth)[0], blurred(truth)[0]
    for wrong in (radiographs.amax() - radiographs, 5 * radiographs):
        volume, fit = fit_to_radiographs(guess, wrong, GEOMETRY, 1)
        assert fit.steps == 0 and not fit.tone_matched and torch.equal(volume, guess)


def test_views_that_do_not_belong_together_are_left_alone() -> None:
    truth = bodies(60.0)
    radiographs, guess = PROJECT(truth)[0], blurred(truth)[0]
    radiographs[1] = radiographs[1].roll(4, dims=0)  # the lateral at another height
    volume, fit = fit_to_radiographs(guess, radiographs, GEOMETRY, 2)
    assert fit.difference > LARGEST_DIFFERENCE and fit.steps == 0
    assert torch.equal(volume, guess)
    assert f"more than {LARGEST_DIFFERENCE:.0%}" in fit.sentence()


def test_what_is_not_covered_changes_nothing() -> None:
    truth = bodies(60.0)
    radiographs, guess = PROJECT(truth)[0], blurred(truth)[0]
    covered = torch.ones_like(radiographs, dtype=torch.bool)
    covered[:, :, :10] = False
    spoilt = torch.where(covered, radiographs, 3.0)
    fits = [fit_to_radiographs(guess, image, GEOMETRY, 1, covered) for image in (radiographs, spoilt)]
    (first, one), (second, other) = fits
    assert one.steps == other.steps == 1
    assert torch.equal(first, second)
    assert not torch.equal(fit_to_radiographs(guess, radiographs, GEOMETRY, 1)[0], first)


def test_a_fine_volume_takes_over_what_a_coarse_one_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = F.interpolate(F.avg_pool3d(bodies(60.0), 3, 1, 1), scale_factor=2, mode="trilinear")
    geometry = GEOMETRY.resized(32, (64, 64))
    radiographs, guess = ReprojectionLoss(geometry).project(truth)[0], truth[0].roll(1, 1)
    whole = fit_to_radiographs(guess, radiographs, geometry, 1)[0]
    monkeypatch.setattr(consistency, "_LARGEST_GRID", 16)
    coarse = fit_to_radiographs(guess, radiographs, geometry, 1)[0]
    before, after = ((volume - truth[0]).square().mean() for volume in (guess, coarse))
    assert after < before
    alike = torch.corrcoef(torch.stack([(whole - guess).flatten(), (coarse - guess).flatten()]))[0, 1]
    assert 0.8 < alike < 0.999


def test_the_inferer_fits_each_patient_on_its_own() -> None:
    truth = bodies(60.0, -50.0)
    radiographs, guesses = PROJECT(truth), blurred(truth)
    plain = FittedInferer(SimpleInferer(), GEOMETRY)(radiographs, lambda x: guesses)
    assert torch.equal(plain, guesses)
    together = FittedInferer(SimpleInferer(), GEOMETRY, 2)(radiographs, lambda x: guesses)
    alone = [fit_to_radiographs(g, r, GEOMETRY, 2)[0] for g, r in zip(guesses, radiographs, strict=True)]
    assert torch.equal(together, torch.stack(alone)) and not together.requires_grad


def test_an_evaluation_names_who_is_not_fitted(caplog: pytest.LogCaptureFixture) -> None:
    truth = bodies(60.0, -50.0)
    radiographs = PROJECT(truth)
    radiographs[1] = radiographs[1].roll((12, 12), (-2, -1))  # shifted
    inferer = FittedInferer(SimpleInferer(), GEOMETRY, 1)
    engine = Engine(lambda engine, batch: inferer(batch["image"], lambda x: blurred(truth)))
    inferer.attach(engine)
    made = engine.run([{"image": radiographs, "patient": ["a", "b"]}]).output
    assert torch.equal(made[1], blurred(truth)[1]) and not torch.equal(made[0], blurred(truth)[0])
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("b: It was not fitted to the radiographs: ")


@pytest.mark.parametrize(("steps", "mode", "says"), [(-1, "cube", "whole number"), (1, "resize", "mode resize")])
def test_what_cannot_be_fitted_is_refused(steps: int, mode: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        FittedInferer(SimpleInferer(), GEOMETRY, steps, mode)


def test_bounds_go_with_their_estimate() -> None:
    truth = bodies(60.0)
    estimate = blurred(truth)
    output = torch.cat([estimate, estimate - 0.01, estimate + 0.02], dim=1)
    fitted = FittedInferer(SimpleInferer(), GEOMETRY, 1)(PROJECT(truth), lambda _: output)[0]
    alone = fit_to_radiographs(estimate[0], PROJECT(truth)[0], GEOMETRY, 1)[0]
    assert torch.equal(fitted[:1], alone)
    assert torch.allclose(fitted[1:2], alone - 0.01, atol=1e-6)
    assert torch.allclose(fitted[2:], alone + 0.02, atol=1e-6)


class Blurred(torch.nn.Module):
    """A network that gives a blurred body, and bounds 40 HU around it."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = torch.nn.Parameter(blurred(bodies(60.0)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.volume, self.volume - 40 / 4095, self.volume + 40 / 4095], dim=1)


def test_what_a_fit_makes_of_a_network_is_judged_beside_it() -> None:
    truth, network = bodies(60.0)[0], Blurred()
    image = PROJECT(truth[None])[0]
    sample = {"patient": "p", "image": image, "label": truth}
    made_by = {"plain": lambda given: network(given[None])[0].detach(), "fitted": with_fit(network, GEOMETRY)}
    found = evaluate_baselines([sample], [], lambda item: item, GEOMETRY, ["psnr"], made_by, with_bounds=True)
    plain, fitted = (found[name]["p"] for name in made_by)
    assert fitted["psnr"] > plain["psnr"] + 0.5
    assert fitted["interval_width_hu"] == pytest.approx(plain["interval_width_hu"], abs=1)
    expected, fit = fitted_prediction(network(image[None])[0].detach(), image, GEOMETRY, 1)
    assert fit.steps == 1
    torch.testing.assert_close(made_by["fitted"](image), expected)
    bounds = interval_figures(to_hu(expected), to_hu(truth), body_mask(to_hu(truth)))
    assert fitted["interval_coverage"] == pytest.approx(bounds["interval_coverage"])
