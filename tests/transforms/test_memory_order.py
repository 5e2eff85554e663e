"""Passes along memory: the same result in any layout."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from drr2ct.transforms.memory_order import block_means, value_range


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_means_of_blocks_are_those_of_pooling_in_any_layout(order: tuple[int, int, int]) -> None:
    stored = torch.randn(13, 12, 11, generator=torch.Generator().manual_seed(0))
    volume = stored.permute(order)[None]
    before = volume.clone()
    for edges in ([3, 2, 4], [1, 1, 1], [1, 5, 1]):
        assert torch.allclose(block_means(volume, edges), F.avg_pool3d(volume, edges), atol=1e-6)
    assert torch.equal(volume, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_range_of_values_tells_what_is_not_finite(bad: float) -> None:
    values = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)
    assert value_range(values) == (0.0, 23.0)
    spoilt = values.clone()
    spoilt[1, 1, 1] = bad
    assert not all(map(math.isfinite, value_range(spoilt)))
