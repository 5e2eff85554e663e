import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drr2ct.transforms.radiographs.collimation import find_collimation, find_slanted_borders, within_borders


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
