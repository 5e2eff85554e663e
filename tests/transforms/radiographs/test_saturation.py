import numpy as np
import pytest
import torch

from drr2ct.transforms.radiographs.intensity import match_quantiles, quantiles_for_field
from drr2ct.transforms.radiographs.saturation import (
    censored_difference,
    clipping_notes,
    find_clipping,
    saturated_share,
)
from tests.transforms.drawn_films import line_integrals, statistics

ROWS = slice(36, 92)  # within the scan


def test_black_within_the_patient_is_not_known_and_air_beside_is():
    truth = line_integrals()[0][ROWS]
    clipped = truth.clamp(min=float(truth[truth > 0.5].quantile(0.25)))
    clipped = clipped - clipped.min()
    found = find_clipping(clipped, torch.ones_like(truth, dtype=torch.bool))
    assert 0.1 < found.shares[0] < 0.35 and found.shares[1] < 0.01
    assert not found.thin[:, :3].any() and not found.thin[truth < 0.05].any()  # beside the patient is air
    notes, warnings = clipping_notes(found, "pa.png")
    assert not notes and "not known" in warnings[0] and f"{found.shares[0]:.0%}" in warnings[0]


def test_what_is_clipped_does_not_squeeze_the_rest():
    """The soft tissue of a picture whose lungs are black keeps its line integrals."""
    truth = line_integrals()[0][ROWS]
    everywhere = torch.ones_like(truth, dtype=torch.bool)
    lungs = truth.clamp(min=float(truth[truth > 0.5].quantile(0.25)))
    picture = (lungs - lungs.min()) / (lungs.max() - lungs.min())
    own = np.quantile((truth[truth > 0.05 * truth.quantile(0.995)] / 6).numpy(), np.linspace(0, 1, 65)).tolist()
    found = find_clipping(picture, everywhere)
    known = found.body & ~found.unknown & (truth > float(truth[found.body].quantile(0.4)))
    error = [
        float((6 * match_quantiles(picture, own, everywhere, body) - truth)[known].abs().mean())
        for body in (found.body, None)
    ]
    assert error[0] < 0.25 and error[0] < 0.4 * error[1]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_dark_tones_before_black_air_are_the_patient(gamma):
    truth = line_integrals()[0][ROWS]
    skin = truth > 0.05 * truth.quantile(0.995)
    picture = (255 * ((truth - 0.1) / (truth.max() - 0.1)).clamp(min=0) ** gamma).round()
    body = find_clipping(picture, torch.ones_like(skin)).body
    assert float((body != skin).float().mean()) < 0.03


def test_air_that_is_not_of_one_value_is_no_patient():
    """Scatter and noise beside the patient: up to 4 % of the range, but for a collimated margin that is black."""
    truth = line_integrals()[0][ROWS]
    skin = truth > 0.05 * truth.quantile(0.995)
    noise = 0.04 * truth.max() * torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    picture = torch.where(skin, truth, noise)
    picture[:, :2] = 0.0
    body = find_clipping(picture, torch.ones_like(skin)).body
    assert float((body != skin).float().mean()) < 0.02


@pytest.mark.parametrize("exposure", [1.0, 1.8])
def test_the_exposure_beyond_full_scale_is_found(exposure):
    """An open field at full scale, and lungs too: what the line integrals lack is one number."""
    truth = line_integrals()[0][ROWS]
    found_in_file = (truth - exposure).clamp(min=0)
    clipping = find_clipping(found_in_file, torch.ones_like(truth, dtype=torch.bool))
    quantiles = quantiles_for_field(statistics()["views"][0], 0.5)
    assert 6 * censored_difference(quantiles, found_in_file / 6, clipping) == pytest.approx(exposure, abs=0.5)


def circle(shape, radius):
    rows, columns = (torch.arange(count) - (count - 1) / 2 for count in shape)
    return (rows[:, None] ** 2 + columns**2) < radius**2


def test_air_within_a_round_shutter_is_not_enclosed_by_the_body():
    """A trunk in a round field: the field's outermost column holds few of the pixels of air beside it."""
    columns = torch.linspace(-1, 1, 120)
    trunk = (1 - (columns / 0.5) ** 2).clamp(min=0).sqrt().expand(120, 120)
    tilted = trunk * (torch.linspace(-1, 1, 120)[:, None] > -0.9)
    arms = tilted + 0.5 * ((columns.abs() > 0.9) & (torch.linspace(-1, 1, 120).abs()[:, None] < 0.2))
    for picture in (tilted, arms):
        found = find_clipping(picture, circle(picture.shape, 58))
        assert found.shares[0] < 0.01
    lung = tilted.clone()
    lung[40:60, 50:60] = 0
    assert find_clipping(lung, circle(lung.shape, 58)).thin[45:55, 52:58].all()


@pytest.mark.parametrize("full", [16383.0, 65535.0])
def test_a_detector_that_saturates_below_its_numbers_is_known_by_its_noise(full):
    rng = np.random.default_rng(0)
    fine = torch.nn.functional.interpolate(line_integrals()[:1, None], scale_factor=3, mode="bilinear")[0, 0]
    expected = 30000 * np.exp(-fine.numpy())
    noisy = np.rint(rng.normal(expected, np.sqrt(expected + 1))).clip(0)
    share, level = saturated_share(noisy.clip(max=15000), None, full)
    assert share == pytest.approx(float((expected > 15000).mean()), abs=0.02) and level == 15000 / full
    assert saturated_share(noisy, None, 65535.0)[0] == 0  # noisy air, not saturated
    assert saturated_share(np.rint(expected), None, 65535.0)[0] == 0  # air of one number, without noise


def test_only_what_is_covered_can_be_at_full_scale():
    counts = np.pad(np.rint(12000 * np.exp(-line_integrals()[0].numpy())), 20, constant_values=16383)
    covered = np.zeros(counts.shape, dtype=bool)
    covered[20:-20, 20:-20] = True
    assert saturated_share(counts, covered, 16383.0)[0] == 0
    assert saturated_share(counts, None, 16383.0)[0] > 0.2
