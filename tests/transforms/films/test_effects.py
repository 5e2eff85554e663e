"""What each effect on a radiograph means: scatter, noise, blur, field, marker."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.detector import extend_from_edge
from drr2ct.transforms.films.blur import RandDetectorBlurd, RandMotionBlurd, apply_detector_blur, apply_motion_blur
from drr2ct.transforms.films.field import Field, RandFilmFieldd
from drr2ct.transforms.films.marker import Marker, RandFilmMarkerd, apply_marker
from drr2ct.transforms.films.noise import RandQuantumNoised, apply_quantum_noise
from drr2ct.transforms.films.scatter import BODY_LINE_INTEGRAL, RandScatterd, apply_scatter, scattered_radiation
from drr2ct.transforms.validation import InputError
from tests.transforms.phantoms import GEOMETRY, phantom_radiographs

PITCH = GEOMETRY.views[0].pixel_pitch_mm
PA = phantom_radiographs(1)[0, 0] * LINE_INTEGRAL_SCALE


def test_scatter_is_a_smooth_share_of_the_primary() -> None:
    scattered = scattered_radiation(PA, 0.5, 50.0, PITCH)
    body = PA > BODY_LINE_INTEGRAL
    primary = torch.exp(-PA)
    assert float(scattered.min()) >= 0
    assert float(scattered[body].mean() / primary[body].mean()) == pytest.approx(0.5, rel=1e-4)
    # smooth: neighbours, a fifth of the width apart, differ little
    steps = [float(torch.diff(image).abs().max()) / float(image.max()) for image in (scattered, primary)]
    assert steps[0] < 0.1 < 0.3 < steps[1]
    # thickest where least comes through
    ratio = scattered / primary
    thick, thin = PA[body].quantile(0.9) < PA, body & (PA[body].quantile(0.3) > PA)
    assert float(ratio[thick].mean()) > 3 * float(ratio[thin].mean())


def test_scatter_lowers_line_integrals_and_a_film_of_air_has_none() -> None:
    veiled = apply_scatter(PA, 0.3, 40.0, PITCH)
    assert bool((veiled <= PA + 1e-6).all()) and float((PA - veiled).mean()) > 0.01
    # and more the more there is
    assert bool((apply_scatter(PA, 0.6, 40.0, PITCH) <= veiled + 1e-6).all())
    air = torch.zeros(32, 32)
    assert torch.equal(apply_scatter(air, 0.5, 40.0, PITCH), air)
    torch.testing.assert_close(apply_scatter(PA, 0.0, 40.0, PITCH), PA, atol=1e-5, rtol=1e-5)


def test_counting_noise_is_that_of_the_photons() -> None:
    level = 2.0 / LINE_INTEGRAL_SCALE
    flat = torch.full((2, 200, 200), level)
    noise = RandQuantumNoised("image", (1e4, 1e4))
    noise.set_random_state(0)
    noisy = noise({"image": flat})["image"]
    assert torch.equal(flat, torch.full((2, 200, 200), level))
    spread = float((noisy * LINE_INTEGRAL_SCALE).std())
    assert spread == pytest.approx(1 / np.sqrt(1e4 * np.exp(-2.0)), rel=0.03)
    assert float(noisy.mean()) == pytest.approx(level, rel=1e-3)
    noise.set_random_state(0)
    assert torch.equal(noise({"image": flat})["image"], noisy)
    assert not torch.equal(noise({"image": flat})["image"], noisy)


def test_a_starved_pixel_stays_finite() -> None:
    dark = apply_quantum_noise(torch.full((8, 8), 30.0), 1e4, 0)
    assert float(dark.max()) == pytest.approx(math.log(1e4 / 0.5), rel=1e-5)


def pinhole(rows: int = 65) -> Tensor:
    lines = torch.full((rows, rows), 50.0)
    lines[rows // 2, rows // 2] = 0.0
    return lines


def test_detector_blur_spreads_intensity_over_millimetres() -> None:
    spread = torch.exp(-apply_detector_blur(pinhole(), 4.0, 2.0))
    offsets = torch.arange(65.0) - 32
    assert float(spread.sum()) == pytest.approx(1, abs=0.01)
    for axis in (0, 1):
        assert float((spread.sum(axis) * offsets**2).sum()) == pytest.approx(4, rel=0.05)  # (4 mm / 2 mm)²
    assert torch.equal(apply_detector_blur(PA, 0.0, 2.0), -torch.log(torch.exp(-PA)))


@settings(max_examples=20, deadline=None)
@given(st.floats(2.0, 20.0), st.floats(0.0, 180.0))
def test_motion_blur_is_a_path_of_its_length(length: float, direction: float) -> None:
    spread = torch.exp(-apply_motion_blur(pinhole(), length, direction, 1.0))
    spread = spread / spread.sum()
    offsets = torch.arange(65.0) - 32
    down, across = (float((spread.sum(axis) * offsets**2).sum()) for axis in (1, 0))
    angle = math.radians(direction)
    # an even path has the variance L² / 12; sharing between pixels adds at most 1/4 along each axis
    assert length**2 / 12 * math.sin(angle) ** 2 == pytest.approx(down, rel=0.2, abs=0.3)
    assert length**2 / 12 * math.cos(angle) ** 2 == pytest.approx(across, rel=0.2, abs=0.3)
    centre = [float((spread.sum(axis) * offsets).sum()) for axis in (0, 1)]
    assert centre == pytest.approx([0, 0], abs=1e-3)


def test_a_field_is_its_rectangle_on_the_detector() -> None:
    view = GEOMETRY.views[0]
    covered = Field((200.0, 100.0), (30.0, -40.0)).covered(view)
    area = float(covered.sum()) * view.pixel_pitch_mm**2
    assert area == pytest.approx(200 * 100, rel=0.1)
    rows, columns = torch.nonzero(covered, as_tuple=True)
    middle = [(float(found.float().mean()) - 31.5) * view.pixel_pitch_mm for found in (rows, columns)]
    assert middle == pytest.approx([30, -40], abs=view.pixel_pitch_mm)
    turned = Field((200.0, 100.0), (30.0, -40.0), 45.0).covered(view)
    assert float(turned.sum()) == pytest.approx(float(covered.sum()), rel=0.1) and not torch.equal(turned, covered)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_outside_is_the_nearest_that_was_seen_not_air(seed: int, turned: bool) -> None:
    state = np.random.RandomState(seed)
    image = torch.from_numpy(state.uniform(1, 2, (24, 24))).float()
    covered = torch.zeros(24, 24, dtype=torch.bool)
    top, left = state.randint(0, 12, 2)
    covered[top : top + state.randint(1, 12), left : left + state.randint(1, 12)] = True
    if turned:
        covered[state.randint(24), state.randint(24)] = True
    filled = extend_from_edge(image, covered)
    assert torch.equal(filled[covered], image[covered])
    assert float(filled.min()) >= 1
    seen = torch.nonzero(covered).float()
    for row, column in state.randint(0, 24, (10, 2)):
        away = (seen - torch.tensor([row, column])).norm(dim=1)
        nearest = seen[away <= away.min() + 1e-4].long()
        assert float(filled[row, column]) in [float(image[r, c]) for r, c in nearest]


def test_a_field_that_shows_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="shows nothing"):
        extend_from_edge(PA, torch.zeros_like(PA, dtype=torch.bool))


def test_a_marker_is_as_bright_as_the_densest_and_where_it_is_put() -> None:
    marked = apply_marker(PA, Marker("L", (-120.0, 100.0), 40.0), PITCH)
    changed = torch.nonzero((marked - PA).abs() > 0.01).float()
    centre = (changed.amin(dim=0) + changed.amax(dim=0)) / 2
    place = ((centre - 31.5) * PITCH).tolist()
    assert place == pytest.approx([-120, 100], abs=2 * PITCH)
    height = float(changed[:, 0].amax() - changed[:, 0].amin() + 1) * PITCH
    assert height == pytest.approx(40, abs=2 * PITCH)
    assert bool((marked >= PA - 1e-6).all()) and float(marked.max()) <= float(PA.max()) + 1e-5
    assert torch.equal(apply_marker(PA, Marker("L", (-120.0, 100.0), 40.0, opacity=0.0), PITCH), PA)


EFFECTS = [
    RandScatterd("image", GEOMETRY),
    RandDetectorBlurd("image", GEOMETRY),
    RandMotionBlurd("image", GEOMETRY),
    RandFilmFieldd("image", GEOMETRY),
    RandFilmMarkerd("image", GEOMETRY),
]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: type(effect).__name__)
def test_the_seed_decides_and_each_view_has_its_own(effect) -> None:
    sample = {"image": phantom_radiographs(1)[0], "label": "untouched"}
    before = sample["image"].clone()

    def made(seed: int) -> Tensor:
        effect.set_random_state(seed)
        result = effect(sample)
        assert result["label"] == "untouched" and result["image"].shape == before.shape
        assert bool(torch.isfinite(result["image"]).all()) and float(result["image"].min()) > -1e-5
        return result["image"]

    first, again, other = made(1), made(1), made(2)
    assert torch.equal(sample["image"], before)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, before)
    assert len(set(map(str, effect._drawn))) == len(GEOMETRY.views)


def test_without_luck_nothing_changes() -> None:
    effect = RandScatterd("image", GEOMETRY, prob=0.0)
    sample = {"image": PA[None]}
    assert effect(sample)["image"] is sample["image"]


def test_ranges_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="ratio"):
        RandScatterd("image", GEOMETRY, ratio=(0.5, 0.1))
    with pytest.raises(InputError, match="length_mm"):
        RandMotionBlurd("image", GEOMETRY, length_mm=(-1.0, 2.0))
    with pytest.raises(InputError, match="no range"):
        RandQuantumNoised("image", (1e6, 1e4))
