"""Resampling gives what MONAI gives, and puts every plane where it is said to lie, wherever a part ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from scipy import ndimage

from drr2ct.transforms.resampling import resampled


@settings(max_examples=20, deadline=None)
@given(planes=st.integers(2, 40), angle=st.floats(-0.4, 0.4), seed=st.integers(0, 99))
def test_it_is_as_monai_has_it(planes: int, angle: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    volume = torch.from_numpy(random.random((2, 9, 11, 7), dtype=np.float32))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine, target = np.diag([3.0, 2, 4, 1]), np.eye(4)
    affine[:3, 3] = random.uniform(-4, 4, 3)
    target[:3, :3] = turn * (27 / planes, 2.5, 3.1)
    target[:3, 3] = random.uniform(-4, 4, 3)
    shape = (planes, 8, 9)
    whole = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True, dtype=np.float32)(
        MetaTensor(volume, affine=affine), dst_affine=torch.from_numpy(target), spatial_size=shape
    )
    found = resampled(volume, affine, target, shape)
    torch.testing.assert_close(found, whole.as_tensor(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("planes", [1, 9, 17, 64])
def test_the_last_plane_lies_where_it_is_said_to(planes: int) -> None:
    volume = torch.rand(1, 20, 8, 8)
    target = np.diag([19 / max(planes - 1, 1), 1, 1, 1])
    found = resampled(volume, np.eye(4), target, (planes, 8, 8))[0].numpy()
    where = np.linspace(0, 19, planes)[:, None, None], np.arange(8)[:, None], np.arange(8)
    expected = ndimage.map_coordinates(volume[0].numpy(), np.stack(np.broadcast_arrays(*where)), order=1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
