from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.films.console import (
    Console,
    RandCompressiond,
    apply_compression,
    compressed,
    console_picture,
    read_back,
)
from drr2ct.transforms.films.scatter import BODY_LINE_INTEGRAL
from drr2ct.transforms.films.tone import RandExposured, RandToneCurved, apply_exposure, apply_tone_curve
from drr2ct.transforms.radiographs.intensity import radiograph_quantiles
from drr2ct.transforms.validation import InputError
from tests.transforms.phantoms import GEOMETRY, phantom_radiographs

PITCH = GEOMETRY.views[0].pixel_pitch_mm
PA = phantom_radiographs(1)[0, 0] * LINE_INTEGRAL_SCALE
BODY = PA > BODY_LINE_INTEGRAL


def test_twice_the_exposure_is_ln_two_less() -> None:
    lines = torch.tensor([[0.0, 0.5, 3.0]])
    torch.testing.assert_close(apply_exposure(lines, 2.0), torch.tensor([[0.0, 0.0, 3 - math.log(2)]]))
    torch.testing.assert_close(apply_exposure(lines, 0.5), lines + math.log(2))


@settings(max_examples=40, deadline=None)
@given(st.floats(-0.6, 0.6), st.floats(-0.8, 0.8), st.floats(-0.6, 0.6))
def test_a_tone_curve_rises_everywhere_and_leaves_air(offset: float, contrast: float, bend: float) -> None:
    changed = apply_tone_curve(PA, offset, contrast, bend)
    order = torch.argsort(PA.flatten())
    steps = torch.diff(changed.flatten()[order])
    assert float(steps.min()) > -1e-5
    assert float(changed[PA == 0].abs().max()) == 0
    assert bool(torch.isfinite(changed).all())


def test_the_numbers_of_a_tone_curve_are_what_they_say() -> None:
    median = float(PA[BODY].median())
    at = lambda image: float(image[(PA - median).abs() < 0.1].mean())  # noqa: E731
    assert at(apply_tone_curve(PA, 0.0, 0.0, 0.0)) == pytest.approx(at(PA), abs=1e-3)
    # at the median, the taper is 1 / 1.25
    assert at(apply_tone_curve(PA, 0.1, 0.0, 0.0)) - at(PA) == pytest.approx(0.08 * median, rel=0.02)
    steeper = apply_tone_curve(PA, 0.0, 0.3, 0.0)
    assert at(steeper) == pytest.approx(at(PA), abs=0.02 * median)
    assert float(steeper[BODY].std()) > 1.05 * float(PA[BODY].std())
    assert torch.equal(apply_tone_curve(torch.zeros(4, 4), 0.5, 0.5, 0.5), torch.zeros(4, 4))


def test_compression_takes_slow_variations_and_keeps_mean_and_air() -> None:
    flat = compressed(PA, 0.5, 30.0, PITCH)
    assert torch.equal(flat[~BODY], PA[~BODY])
    assert float(flat[BODY].mean()) == pytest.approx(float(PA[BODY].mean()), rel=0.05)
    assert float(flat[BODY].std()) < 0.85 * float(PA[BODY].std())
    assert torch.equal(compressed(PA, 0.0, 30.0, PITCH), PA)
    # with its histogram put right, detail stands out more than before
    restored = apply_compression(PA, 0.5, 30.0, PITCH)
    own, wanted = (radiograph_quantiles([image / LINE_INTEGRAL_SCALE]) for image in (restored, PA))
    assert own[5:60] == pytest.approx(wanted[5:60], abs=0.03)
    assert float((restored - PA)[BODY].std()) > 0.05


@pytest.mark.parametrize("exposure", [0.5, 2.0])
@pytest.mark.parametrize("steepness", [0.0, 6.0])
def test_matching_undoes_exposure_window_and_curve(exposure: float, steepness: float) -> None:
    picture = console_picture(PA, Console(exposure, compression=0.0, window=(0.0, 1.0), steepness=steepness), PITCH)
    assert float(picture.min()) == 0 and float(picture.max()) == 1
    assert len(torch.unique(picture)) <= 256
    read = read_back(picture, radiograph_quantiles([PA / LINE_INTEGRAL_SCALE]))
    # below BODY_LEVEL of the picture's range nothing is matched, and a steep curve puts more there
    inner = PA[BODY].quantile(0.1) < PA
    assert float((read - PA)[inner].abs().mean()) < (0.1 if steepness else 0.05) * float(PA[inner].mean())


@pytest.mark.parametrize("transform", [RandExposured, RandToneCurved, RandCompressiond])
def test_the_seed_decides(transform) -> None:
    effect = transform("image", GEOMETRY)
    sample = {"image": phantom_radiographs(1)[0]}

    def made(seed: int) -> torch.Tensor:
        effect.set_random_state(seed)
        return effect(sample)["image"]

    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))
    assert bool(torch.isfinite(made(3)).all())
    effect.set_random_state(1)
    drawn = [effect.draw(GEOMETRY.views[0]) for _ in range(200)]
    assert len({str(d) for d in drawn}) == 200
    if transform is RandExposured:
        assert 0.5 <= min(drawn) < 0.6 and 1.7 < max(drawn) <= 2.0
        assert np.mean(np.log(drawn)) == pytest.approx(0, abs=0.1)


def test_mistakes_are_refused() -> None:
    with pytest.raises(InputError, match="factor"):
        RandExposured("image", GEOMETRY, (0.0, 1.0))
    with pytest.raises(InputError, match="cannot be negative"):
        RandToneCurved("image", GEOMETRY, offset=-0.1)
    with pytest.raises(InputError, match="compression"):
        RandCompressiond("image", GEOMETRY, (0.5, 0.1))
