import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drr2ct.transforms.radiographs.collimation import (
    find_collimation,
    find_round_field,
    find_slanted_borders,
    within_borders,
)


def body(rows=240, columns=200, seed=0):
    """A smooth picture without straight borders, from 0.15 to 0.85."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.normal(size=(1, 1, 12, 10)))
    smooth = F.interpolate(noise, size=(rows, columns), mode="bicubic")[0, 0].numpy()
    return 0.15 + 0.7 * (smooth - smooth.min()) / np.ptp(smooth)


@settings(max_examples=60, deadline=None)
@given(
    margins=st.tuples(*[st.integers(0, 60)] * 4),
    bright=st.booleans(),
    noise=st.floats(0, 0.008),
    blur=st.booleans(),
    seed=st.integers(0, 5),
)
def test_collimated_borders_are_found_on_every_side(margins, bright, noise, blur, seed):
    """Also where only one, or none, is collimated; a border of a few pixels may pass for the picture's own."""
    top, bottom, left, right = ((0 if m < 6 else m) for m in margins)
    image = body(seed=seed)
    rows, columns = image.shape
    covered = np.ones_like(image, dtype=bool)
    covered[top : rows - bottom, left : columns - right] = False
    mixed = torch.from_numpy(covered.astype(np.float64))[None, None]
    if blur:  # penumbra of three pixels
        mixed = F.avg_pool2d(F.pad(mixed, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = mixed[0, 0].numpy()
    image = (1 - share) * image + share * (1.0 if bright else 0.0)
    image = image + np.random.default_rng(seed).normal(0, 1, image.shape) * noise
    found = find_collimation((image * 4000).astype(np.float32))
    np.testing.assert_allclose(found, (top, rows - bottom, left, columns - right), atol=3 if blur else 1)


def test_a_marker_on_the_border_and_two_tones_do_no_harm():
    image = body()
    image[:30] = 1.0
    image[:, :25] = 0.0
    image[10:20, 60:70] = 0.3  # a letter
    assert find_collimation(image) == (30, 240, 25, 200)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(6, 18),
    penumbra=st.integers(1, 5),
    hairline=st.integers(0, 1),
    through=st.floats(0.1, 0.5),
    turns=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_an_unexposed_strip_through_which_the_patient_shines(width, penumbra, hairline, through, turns, seed):
    image = body(seed=seed)
    columns = image.shape[1]
    share = np.clip((np.arange(columns) - (columns - width)) / penumbra, 0, 1)
    image += share * (1 - through) * (1 - image)  # at the edge not less than 1 - through
    image[:, columns - hairline :] = 0.1
    expected = [(0, 0), (0, 0)]
    expected[1 - turns % 2] = (0, width) if turns in (0, 3) else (width, 0)
    turned = np.rot90(image, turns)
    top, bottom, left, right = find_collimation(turned)
    found = [(top, turned.shape[0] - bottom), (left, turned.shape[1] - right)]
    np.testing.assert_allclose(found, expected, atol=penumbra + 4)
    assert find_collimation(body(seed=seed)) == (0, 240, 0, 200)


def test_a_dark_background_that_the_body_reaches_into_is_not_collimation():
    rows, columns = np.meshgrid(np.linspace(-1, 1, 240), np.linspace(-1, 1, 200), indexing="ij")
    neck_and_trunk = np.clip(1.2 - (columns / (0.35 + 0.3 * (rows > -0.4))) ** 2 - 0.2 * rows**2, 0, None)
    assert find_collimation(neck_and_trunk) == (0, 240, 0, 200)
    assert find_collimation(np.zeros((20, 20))) == (0, 20, 0, 20)


@settings(max_examples=40, deadline=None)
@example(depth=0.03, rise=0.03, falls=True, white=True, turns=0, seed=2)  # cut along a line less steep, once
@given(
    depth=st.floats(0.03, 0.1),
    rise=st.floats(0.02, 0.07),
    falls=st.booleans(),
    white=st.booleans(),
    turns=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_a_slanted_border_is_found_on_every_side(depth, rise, falls, white, turns, seed):
    image = body(256, 256, seed)
    ends = (depth + rise / 2, depth - rise / 2) if falls else (depth - rise / 2, depth + rise / 2)
    covered = within_borders((256, 256), {"upper": ends})
    image[~covered] = 1.2 if white else -0.2
    turned, wanted = np.rot90(image, turns), np.rot90(covered, turns)
    found = find_slanted_borders(turned)
    assert list(found) == [("upper", "left", "lower", "right")[turns]]
    kept = within_borders(turned.shape, found)
    assert not (kept & ~wanted).any()  # nothing of the border is kept, and little of the picture is lost
    assert (wanted & ~kept).mean() < 0.025
    assert find_slanted_borders(body(256, 256, seed)) == {}


def test_the_slanted_outline_of_a_body_is_no_border():
    rows, columns = np.meshgrid(np.linspace(-1, 1, 240), np.linspace(-1, 1, 200), indexing="ij")
    leaning = np.clip(1 - ((columns - 0.05 * rows) / 0.8) ** 2, 0, None) ** 0.7
    assert find_slanted_borders(leaning) == {}
    assert find_slanted_borders(np.zeros((20, 20))) == {}


def film(air=20, noise=2.0, size=400):
    """A trunk of 8 bits that leans, beside air that is nearly black, in rows that end within it; no borders."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    trunk = np.clip(1 - ((columns - 0.15 * rows) / (0.6 + 0.05 * rows)) ** 2, 0, None) ** 0.7
    drawn = np.random.default_rng(0).normal(0, noise, trunk.shape) if noise else 0
    return np.clip(np.rint(air + 200 * trunk + drawn), 1 if air else 0, 255).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(margins=st.tuples(*[st.sampled_from((0, 8, 25, 60))] * 4), value=st.sampled_from((0, 128, 255)))
def test_lines_of_one_value_are_a_frame_whatever_they_end_at(margins, value):
    top, bottom, left, right = margins
    framed = np.pad(film(), ((top, bottom), (left, right)), constant_values=value)
    assert find_collimation(framed) == (top, top + 400, left, left + 400)
    assert find_slanted_borders(framed[top : top + 400, left : left + 400]) == {}


def test_a_frame_with_a_caption_and_as_jpeg_stores_it():
    framed = np.pad(film(), ((0, 60), (0, 0))).astype(float)
    framed[420:440, 30:60] = 255
    assert find_collimation(framed) == (0, 400, 0, 400)
    wavy = np.pad(film(), 25) + np.random.default_rng(1).integers(0, 3, (450, 450))
    assert find_collimation(wavy) == (25, 425, 25, 425)


def test_a_frame_beside_air_of_its_own_value_is_as_wide_as_on_three_sides():
    cut = film(air=0, noise=0)[:, 150:]  # the body reaches the left side, beside the right one there is air
    assert not cut[:, -10:].any()
    assert find_collimation(np.pad(cut, 40)) == (40, 440, 40, 40 + cut.shape[1])


def test_bars_of_a_screenshot_beside_air_of_their_own_value_leave_the_shape_of_a_film():
    touching = film(air=0, noise=0)[:, 30:]
    screen = np.pad(touching, ((0, 0), (165, 165)))
    top, bottom, left, right = find_collimation(screen)
    assert (top, bottom, left) == (0, 400, 700 - right)
    assert left >= 165 and (right - left) / 400 >= 35 / 43 - 0.01


def test_air_of_one_value_is_no_frame():
    plain = film(air=0, noise=0)
    assert find_collimation(plain) == (0, 400, 0, 400)


@pytest.mark.parametrize("wide", range(4))
def test_air_as_wide_on_three_sides_as_a_frame_would_be_is_none(wide):
    """Around what was rendered without noise, where no outline comes at once."""
    rows, columns = np.meshgrid(np.linspace(-1, 1, 300), np.linspace(-1, 1, 240), indexing="ij")
    trunk = np.clip(1 - columns**2 - rows**2, 0, None)
    margins = [60] * 4
    margins[wide] += 50
    for _ in range(5):  # until what passes for one value is equally wide
        drawn = np.pad(trunk, (tuple(margins[:2]), tuple(margins[2:])))
        air = drawn <= 0.012 * drawn.max()
        lines = [air.mean(axis=1) > 0.92, air.mean(axis=1)[::-1] > 0.92]
        lines += [air.mean(axis=0) > 0.92, air.mean(axis=0)[::-1] > 0.92]
        found = [int(np.argmin(line)) for line in lines]
        margins = [m + 70 + 50 * (side == wide) - f for side, (m, f) in enumerate(zip(margins, found, strict=True))]
    assert sorted(found)[:3] == [70] * 3
    assert find_collimation(drawn) == (0, drawn.shape[0], 0, drawn.shape[1])


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(("row", "column", "radius"), [(119.5, 99.5, 90), (100, 105, 118), (125, 95, 125)])
def test_a_round_field_is_found_also_where_the_picture_cuts_it(value, row, column, radius):
    rows, columns = np.ogrid[:240, :200]
    circle = np.hypot(rows - row, columns - column) <= radius
    found = find_round_field(np.where(circle, body(), value))
    assert found is not None and not (found & ~circle).any() and (circle & ~found).mean() < 0.04


@pytest.mark.parametrize("picture", [body(), film(air=0, noise=0), np.pad(body(), 30), np.zeros((20, 20))])
def test_corners_are_no_round_field(picture):
    assert find_round_field(picture) is None
