"""The lungs are found in any orientation, beside other air, and not where there are none."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from drr2ct.transforms.lungs import find_lungs
from tests.files import chest

SPACING = 5.0
SHAPE = (64, 60, 150)
BASE = np.array([-160.0, -150.0, -400.0])


def body() -> np.ndarray:
    """A trunk of 750 mm with lungs in its upper third, room around it; axes R, A, S."""
    values = np.full(SHAPE, -1000.0, dtype=np.float32)
    x, y, z = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * SPACING for n in SHAPE], indexing="ij")
    values[(x / 140) ** 2 + (y / 100) ** 2 < 1] = 30
    for side in (-1, 1):
        values[((x - 62 * side) / 45) ** 2 + ((y - 5) / 65) ** 2 + ((z - 230) / 110) ** 2 < 1] = -850
    return values


def centre_of_lungs() -> np.ndarray:
    """Where :func:`body` has them, in patient coordinates."""
    return BASE + (np.array(SHAPE) - 1) / 2 * SPACING + [0, 5, 230]


def as_ct(values: np.ndarray, axes: str = "RAS") -> MetaTensor:
    affine = np.diag([SPACING, SPACING, SPACING, 1])
    affine[:3, 3] = BASE
    start, end = (nib.orientations.axcodes2ornt(codes) for codes in ("RAS", axes))
    image = nib.Nifti1Image(values, affine).as_reoriented(nib.orientations.ornt_transform(start, end))
    return MetaTensor(torch.from_numpy(np.asarray(image.dataobj).copy())[None], affine=torch.from_numpy(image.affine))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAI", "SRA", "PIL"])
def test_they_are_found_where_they_are_however_the_ct_is_stored(axes: str) -> None:
    lungs = find_lungs(as_ct(body(), axes))
    assert lungs is not None
    np.testing.assert_allclose(lungs.centre, centre_of_lungs(), atol=SPACING)
    ellipsoids = 2 * 4 / 3 * np.pi * 45 * 65 * 110 / 1e6
    assert lungs.litres == pytest.approx(ellipsoids, rel=0.1)


def bowel(values: np.ndarray) -> None:
    values[15:50, 15:45, 30:60] = -1000  # larger than a lung


def stool(values: np.ndarray) -> None:
    values[28:34, 28:40, 30:36] = -700  # as light as a lung, small and elsewhere


def couch(values: np.ndarray) -> None:
    """A hollow couch below the back."""
    values[2:62, 1:7] = 60
    values[3:61, 2:6] = -920


def pocket(values: np.ndarray) -> None:
    """Arms that touch the trunk in front and behind, with room air between."""
    values[1:4, 12:48] = 40
    values[1:14, 12:15] = 40
    values[1:14, 45:48] = 40


def windpipe(values: np.ndarray) -> None:
    """Air from between the lungs through the upper end, and a side branch to each."""
    values[31:33, 30:33, 118:] = -1000
    values[20:44, 30:33, 118:121] = -1000


def one_filled(values: np.ndarray) -> None:
    """Most of one lung is fluid."""
    values[:32][(values[:32] == -850) & (np.arange(SHAPE[2]) < 130)] = 20


@pytest.mark.parametrize("spoil", [bowel, stool, couch, pocket, windpipe, one_filled])
def test_other_air_does_not_lead_astray(spoil: Callable[[np.ndarray], None]) -> None:
    values = body()
    spoil(values)
    lungs = find_lungs(as_ct(values))
    assert lungs is not None
    off = np.abs(np.subtract(lungs.centre, centre_of_lungs()))
    assert off[2] < 20 and off[1] < 10
    assert off[0] < (70 if spoil is one_filled else 10)


@pytest.mark.parametrize("spoil", [bowel, couch, pocket])
def test_there_are_none_in_a_body_without(spoil: Callable[[np.ndarray], None]) -> None:
    values = body()
    values[values == -850] = 30
    assert find_lungs(as_ct(values)) is None
    spoil(values)
    assert find_lungs(as_ct(values)) is None


def test_nor_in_air_or_in_a_block() -> None:
    for value in (-1000.0, 40.0):
        assert find_lungs(as_ct(np.full((20, 20, 20), value, dtype=np.float32))) is None


def test_coarse_and_thin_scans_will_do() -> None:
    lungs = find_lungs(MetaTensor(torch.from_numpy(chest((20, 18, 8)))[None], affine=np.diag([14.0, 14, 3, 1])))
    assert lungs is not None and abs(lungs.centre[2] - 10.5) < 4
