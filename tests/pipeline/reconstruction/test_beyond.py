"""What lies beyond the field of view, in radiographs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from drr2ct.pipeline.reconstruction.beyond import _least_squares_of_shares, projected_beyond
from drr2ct.pipeline.reconstruction.consistency import LARGEST_DIFFERENCE, fit_to_radiographs
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.volume import HU_WINDOW

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=64)
ROOM = VolumeGrid(24, 540.0)
"""The cube of the geometry and four voxels around it."""
INSIDE = (slice(None), slice(4, 20), slice(4, 20), slice(4, 20))
ALL: Callable[[Tensor], Tensor] = lambda images: images  # noqa: E731


def radiographs_of(room: Tensor) -> Tensor:
    return render_drr(room, GEOMETRY, affine=ROOM.affine(), isocentre=(0.0, 0.0, 0.0))


def body(*ends: tuple[int, int]) -> Tensor:
    """Water in the room, from one voxel up to another along each axis; HU."""
    room = torch.full((1, 24, 24, 24), -1024.0)
    room[(slice(None), *(slice(*end) for end in ends))] = 0.0
    return room


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("first", [True, False])
def test_what_continues_a_face_is_found(axis: int, first: bool) -> None:
    ends = [(8, 16)] * 3
    ends[axis] = (1, 12) if first else (12, 23)  # three voxels, 67.5 mm, beyond that face
    room = body(*ends)
    missing = radiographs_of(room) - render_drr(room[INSIDE], GEOMETRY, affine=GEOMETRY.grid.affine())
    assert missing.amax() > 0.5
    found = projected_beyond(room[INSIDE], missing, ALL, GEOMETRY)
    assert (found - missing).norm() < 0.05 * missing.norm()


def test_as_much_of_it_as_is_there() -> None:
    room = body((3, 12), (8, 16), (8, 16))  # one voxel, the first layer
    missing = radiographs_of(room) - render_drr(room[INSIDE], GEOMETRY, affine=GEOMETRY.grid.affine())
    found = projected_beyond(room[INSIDE], missing, ALL, GEOMETRY)
    assert (found - missing).norm() < 0.05 * missing.norm()
    assert not projected_beyond(room[INSIDE], -missing, ALL, GEOMETRY).any(), "nothing is less than nothing"


def test_shares_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        columns, wanted = generator.normal(size=(50, 12)), 2 * generator.normal(size=50)
        columns[:, 1] = columns[:, 0] + 0.3 * columns[:, 1]  # two layers of a face look alike
        shares = _least_squares_of_shares(columns.T @ columns, columns.T @ wanted)
        assert np.allclose(shares, lsq_linear(columns, wanted, bounds=(0, 1), method="bvls").x, atol=1e-4)


def test_nothing_continues_air() -> None:
    room = body((8, 16), (8, 16), (8, 16))
    assert not projected_beyond(room[INSIDE], torch.ones(2, 64, 64), ALL, GEOMETRY).any()


def test_a_body_that_the_field_cuts_is_not_squeezed_into_it() -> None:
    low, high = HU_WINDOW
    room = body((1, 23), (8, 16), (6, 18))  # arms
    room[:, 10:14, 10:14, 8:16] = -800.0
    truth = (room[INSIDE] - low) / (high - low)
    guess = truth.clone()
    guess[:, 6:10, 6:9, 5:11] = (-760.0 - low) / (high - low)
    volume, fit = fit_to_radiographs(guess, radiographs_of(room) / LINE_INTEGRAL_SCALE, GEOMETRY, 1)
    assert fit.steps == 1 and fit.difference < LARGEST_DIFFERENCE / 2
    assert fit.beyond == pytest.approx(float(radiographs_of(beyond(room)).sum() / radiographs_of(room).sum()), rel=0.05)
    assert f"{fit.beyond:.0%} of what they attenuate was taken to lie beyond the field of view" in fit.sentence()
    assert np.abs((volume - guess).numpy()).max() * (high - low) < 100


def beyond(room: Tensor) -> Tensor:
    around = room.clone()
    around[INSIDE] = -1024.0
    return around
