"""Maps of space and the volumes seen through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drr2ct.transforms.varied import warping
from drr2ct.transforms.varied.warping import cubic_weights, grid_points, resample, smallest_jacobian


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=3, max_size=3), st.integers(0, 2**31))
def test_the_identity_keeps_a_volume_and_a_shift_moves_it(size: list[int], seed: int) -> None:
    volume = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, *size))).float()
    indices = grid_points((0, 0, 0), [n - 1 for n in size], (2, 3, 4))
    assert float((resample(volume, indices, size) - volume).abs().max()) < 1e-5
    shift = torch.tensor([1.0, 0.0, -1.0])[:, None, None, None]
    moved = resample(volume, indices + shift, size)
    wanted = volume[:, [min(i + 1, size[0] - 1) for i in range(size[0])]]
    wanted = wanted[..., [max(k - 1, 0) for k in range(size[2])]]
    assert float((moved - wanted).abs().max()) < 1e-5, "what stood at x + t comes to stand at x; the border goes on"


def test_slabs_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = torch.rand(1, 12, 9, 11)
    indices = grid_points((1, -2, 0.5), (9, 11, 8.25), (3, 4, 3)) + torch.rand(3, 3, 4, 3)
    whole = resample(volume, indices, (10, 8, 7))
    monkeypatch.setattr(warping, "_SLAB", 100)
    assert torch.allclose(resample(volume, indices, (10, 8, 7)), whole, atol=1e-5)
    assert torch.equal(resample((volume * 100).short(), indices, (4, 4, 4)).isfinite(), torch.ones(1, 4, 4, 4) > 0)


def test_cubic_interpolation_passes_through_its_points_and_keeps_lines() -> None:
    values = torch.tensor([3.0, -1.0, 2.0, 5.0, 4.0])
    assert torch.allclose(cubic_weights(torch.arange(5.0), 5) @ values, values, atol=1e-6)
    inside = torch.linspace(1, 3, 21)
    assert torch.allclose(cubic_weights(inside, 5) @ torch.arange(5.0), inside, atol=1e-5)
    beyond = cubic_weights(torch.tensor([-3.0, 7.0]), 5) @ values
    assert beyond.tolist() == pytest.approx([3.0, 4.0])
    fine = torch.linspace(0, 4, 4001)
    slope = (cubic_weights(fine, 5) @ values).diff() * 1000
    assert float(slope.diff().abs().max()) < 0.1, "no creases"


@given(st.floats(0.5, 1.5), st.floats(-0.4, 0.4))
def test_the_jacobian_of_an_affine_map_is_its_determinant(scale: float, shear: float) -> None:
    points = grid_points((-30, -30, -30), (30, 40, 50), (4, 5, 6))
    matrix = torch.tensor([[scale, shear, 0], [0, 1.0, shear], [0, 0, -1.0]])
    found = smallest_jacobian(torch.einsum("ab,bxyz->axyz", matrix, points), (20, 70 / 4, 16))
    assert found == pytest.approx(-scale, rel=1e-3)


def test_a_fold_is_found_where_it_is() -> None:
    points = grid_points((-50, -50, -50), (50, 50, 50), (11, 11, 11))
    bump = 30 * torch.exp(-points.square().sum(dim=0) / (2 * 12**2))
    folded = points.clone()
    folded[0] += bump
    assert smallest_jacobian(points, (10, 10, 10)) == pytest.approx(1, rel=1e-4)
    assert smallest_jacobian(folded, (10, 10, 10)) < 0
