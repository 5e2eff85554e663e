"""Where predictions are put in space."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Orientation

from drr2ct.pipeline.volumes import placing
from drr2ct.pipeline.volumes.placing import (
    half_width,
    place_bounds,
    place_like,
    place_on_grid,
    place_resized,
    refuse_too_large,
)
from drr2ct.transforms import BiplanarGeometry, ResampleToGrid, VolumeGrid
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import AIR_HU, HU_WINDOW, bounding_box_centre


def geometry_of(size: int, fov_mm: float = 320.0, flip: bool = True) -> BiplanarGeometry:
    return BiplanarGeometry.from_angles(VolumeGrid(size, fov_mm, flip), detector_size=32)


def ramp(geometry: BiplanarGeometry) -> tuple[torch.Tensor, np.ndarray]:
    """A prediction whose HU is a linear function of the place, different along each axis, and its coefficients."""
    slope = np.array([1.5, -2.0, 3.5])
    hu = geometry.grid.centres() @ torch.from_numpy(slope).float() + 900
    low, high = HU_WINDOW
    return ((hu - low) / (high - low))[None], slope


def places(volume: MetaTensor) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape[1:]), indexing="ij"), -1).reshape(-1, 3)
    affine = np.asarray(volume.affine, dtype=np.float64)
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("size", [24, 32, 48, 61])
def test_another_size_leaves_everything_at_its_place(size: int, flip: bool) -> None:
    geometry = geometry_of(32, flip=flip)
    prediction, slope = ramp(geometry)
    made = place_resized(prediction, geometry, size)
    assert made.shape == (1, size, size, size)
    expected = places(made) @ slope + 900
    inside = np.abs(places(made)).max(axis=1) < 160 - 3 * 320 / min(size, 32)  # edges are replicated
    assert np.allclose(made[0].numpy().ravel()[inside], expected[inside], atol=0.5)


@settings(max_examples=25, deadline=None)
@given(
    axes=st.sampled_from(["RAS", "LPS", "LAI", "SAR", "PIR"]),
    shape=st.tuples(*[st.integers(9, 40)] * 3),
    spacing=st.tuples(*[st.floats(2.0, 9.0)] * 3),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    flip=st.booleans(),
)
def test_on_a_cts_voxels_everything_is_at_its_place(axes, shape, spacing, origin, flip) -> None:
    geometry = geometry_of(32, flip=flip)
    prediction, slope = ramp(geometry)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    upright = MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(affine))
    ct = Orientation(axes, labels=None)(upright)
    centre = bounding_box_centre(ct)
    ct.meta["isocentre"] = centre.tolist()
    made = place_like(prediction, geometry, ct)
    assert made.shape == ct.shape and np.allclose(made.affine, ct.affine)
    away = places(made) - centre
    inside = np.abs(away).max(axis=1) < 160 - 20
    assert np.allclose(made[0].numpy().ravel()[inside], (away @ slope + 900)[inside], atol=2)
    outside = np.abs(away).max(axis=1) > 165.1  # half a voxel beyond the grid, over which it fades
    assert (made[0].numpy().ravel()[outside] == AIR_HU).all()


@pytest.mark.parametrize("mode", ["cube", "resize"])
@pytest.mark.parametrize("flip", [True, False])
def test_a_ct_that_went_onto_the_grid_comes_back(mode: str, flip: bool) -> None:
    geometry = geometry_of(40, 240.0, flip)
    affine = np.diag([-6.0, -6.0, 8.0, 1.0])
    affine[:3, 3] = [90, 70, -500]
    index = np.stack(np.meshgrid(*map(np.arange, (30, 24, 20)), indexing="ij"), -1)
    hu = 300 * np.sin(index @ np.array([0.3, 0.2, 0.25])) - 200
    ct = MetaTensor(torch.from_numpy(hu).float()[None], affine=torch.from_numpy(affine))
    ct.meta["isocentre"] = bounding_box_centre(ct).tolist()
    on_grid = ResampleToGrid(geometry.grid, mode)(Orientation("RAS", labels=None)(ct)).as_tensor()
    low, high = HU_WINDOW
    prediction = (on_grid - low) / (high - low)
    made = place_like(prediction.flip(3) if flip else prediction, geometry, ct, mode)
    inner = (slice(None), *[slice(3, -3)] * 3)
    assert (made.as_tensor()[inner] - ct.as_tensor()[inner]).abs().mean() < 15


def test_a_network_that_gives_more_than_the_window_is_clipped() -> None:
    geometry = geometry_of(16)
    made = place_on_grid(torch.linspace(-1, 2, 16**3).reshape(1, 16, 16, 16), geometry)
    assert (float(made.min()), float(made.max())) == HU_WINDOW


def test_bounds_go_where_their_estimate_goes_and_know_nothing_outside() -> None:
    geometry = geometry_of(32)
    prediction, _ = ramp(geometry)
    output = torch.cat([prediction, prediction - 0.01, prediction + 0.03])
    larger = np.diag([8.0, 8, 8, 1])
    larger[:3, 3] = -8.0 * 63 / 2
    ct = MetaTensor(torch.zeros(1, 64, 64, 64), affine=torch.from_numpy(larger))
    for place in (
        lambda scaled: place_on_grid(scaled, geometry),
        lambda scaled: place_resized(scaled, geometry, 24),
        lambda scaled: place_like(scaled, geometry, ct),
    ):
        volume, bounds = place(prediction), place_bounds(place, output)
        inside = torch.from_numpy(np.abs(places(volume)).max(axis=1) < 130).reshape(volume.shape[1:])
        assert np.allclose(bounds.affine, volume.affine)
        assert torch.allclose(volume[0][inside] - bounds[0][inside], torch.tensor(0.01 * 4095), atol=0.1)
        assert torch.allclose(bounds[1][inside] - volume[0][inside], torch.tensor(0.03 * 4095), atol=0.1)
        assert torch.allclose(half_width(bounds)[0][inside], torch.tensor(0.02 * 4095), atol=0.1)
    assert bounds[:, 0, 0, 0].tolist() == list(HU_WINDOW), "of the CT's corner, outside the grid"


def test_a_volume_that_memory_does_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "available_bytes", lambda: 16 * 2**30)
    with pytest.raises(InputError, match=r"takes 20\.5 GiB of memory, and 16\.0 GiB are left; .* of 920 or"):
        refuse_too_large(1000, with_bounds=True)
    refuse_too_large(1000, with_bounds=False)
    refuse_too_large(920, with_bounds=True)
    monkeypatch.setattr(placing, "available_bytes", lambda: None)
    refuse_too_large(1000, with_bounds=True)
