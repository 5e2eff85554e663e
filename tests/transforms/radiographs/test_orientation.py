import numpy as np
import pytest
import torch

from drr2ct.transforms.radiographs.orientation import (
    STATES,
    Orientation,
    choose_orientation,
    orientation_scores,
)
from drr2ct.transforms.validation import InputError
from tests.transforms.drawn_films import FIELD, GEOMETRY, PITCH, line_integrals, statistics, toned


def scores(picture, view, pixel_mm=None):
    template = np.asarray(statistics()["views"][view]["thumbnail"], dtype=np.float32)
    return orientation_scores(picture, template, 128 * PITCH, pixel_mm)


def stored_so_that(picture, state):
    """The picture that ``state`` turns upright."""
    flips = [axis for axis, done in ((0, state.upside_down), (1, state.mirrored)) if done]
    turned = picture.flip(flips) if flips else picture
    return turned.T if state.transposed else turned


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("state", STATES, ids=str)
def test_every_turn_and_polarity_of_a_lateral_film_is_found(state, inverted):
    film = toned(line_integrals()[1][FIELD])
    stored = stored_so_that(1 - film if inverted else film, state)
    found, notes = choose_orientation(scores(stored, 1), GEOMETRY.views[1], "lat.png")
    assert found == Orientation(state.transposed, state.upside_down, state.mirrored, inverted)
    torch.testing.assert_close(found.turn(stored), 1 - film if inverted else film)
    assert len(notes) == (not state.as_stored) + inverted
    if state == Orientation(mirrored=True):
        assert notes[0].startswith("lat.png faced right: mirrored")


@pytest.mark.parametrize("quarters", range(4))
def test_a_frontal_film_is_turned_but_never_mirrored(quarters):
    film = toned(line_integrals()[0][FIELD])
    stored = torch.rot90(film, quarters)
    found, _ = choose_orientation(scores(stored, 0), GEOMETRY.views[0], "pa.png")
    torch.testing.assert_close(found.turn(stored), film)
    # its mirror image is turned the same way and stays a mirror image
    found, _ = choose_orientation(scores(torch.rot90(film.flip(1), quarters), 0), GEOMETRY.views[0], "pa.png")
    torch.testing.assert_close(found.turn(torch.rot90(film.flip(1), quarters)), film.flip(1))


def test_a_known_size_is_used():
    film = toned(line_integrals()[1][FIELD])
    right, wrong = (max(scores(film, 1, mm).values()) for mm in (PITCH, 1.5 * PITCH))
    assert right > wrong + 0.1


def test_what_is_no_chest_is_refused_with_its_scores():
    noise = torch.rand(60, 70, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"whichever way it is turned|cannot be told how.*as-is"):
        choose_orientation(scores(noise, 1), GEOMETRY.views[1], "noise.png")
    tie = dict.fromkeys([*STATES, Orientation(inverted=True)], 0.5)
    with pytest.raises(InputError, match=r"cannot be told.*as stored 0\.50.*--orientation as-is"):
        choose_orientation(tie, GEOMETRY.views[1], "tie.png")


def test_a_polarity_that_is_stated_is_not_questioned():
    film = toned(line_integrals()[1][FIELD])
    found, _ = choose_orientation(scores(1 - film, 1), GEOMETRY.views[1], "lat.png", inverted=True)
    assert found == Orientation(inverted=True)
    with pytest.raises(InputError):
        choose_orientation(scores(1 - film, 1), GEOMETRY.views[1], "lat.png", inverted=False)
