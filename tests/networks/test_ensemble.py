"""What members of an ensemble agree on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drr2ct.networks.ensemble import AGREED, agreed_and_spread


def volumes(members: int, seed: int = 0, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(batch, 1, 4, 4, 4, generator=generator) for _ in range(members)]


@given(st.integers(2, 5), st.integers(0, 1000), st.floats(0.0, 2.0))
def test_each_counts_by_its_distance_from_the_others(members: int, seed: int, off: float) -> None:
    said = volumes(members, seed)
    said[0] = said[0] + off
    arrays = [volume.double().numpy() for volume in said]
    weights = []
    for i, own in enumerate(arrays):
        others = np.mean([other for j, other in enumerate(arrays) if j != i], axis=0)
        weights.append(1 / (np.mean((own - others) ** 2) + AGREED) ** 2)
    agreed, spread = agreed_and_spread(said)
    np.testing.assert_allclose(agreed, np.average(arrays, axis=0, weights=weights), atol=1e-5)
    np.testing.assert_allclose(spread, np.std(arrays, axis=0), atol=1e-5)


def test_two_count_alike() -> None:
    one, other = volumes(2)
    other = other * 3 + 1
    assert torch.allclose(agreed_and_spread([one, other])[0], (one + other) / 2, atol=1e-6)


def test_those_who_agree_count_alike_and_one_lost_hardly() -> None:
    base = volumes(1)[0]
    near = [base, base + 0.01, base - 0.01]
    assert torch.allclose(agreed_and_spread(near)[0], base, atol=1e-3)
    agreed = agreed_and_spread([base, base + 0.01, base + 0.5])[0]
    plain_mean = base + 0.17
    assert (agreed - base).abs().max() < 0.2 * (plain_mean - base).abs().max()


def test_order_does_not_matter_and_samples_are_weighed_by_themselves() -> None:
    said = volumes(3, batch=2)
    said[2][1] += 1.0
    whole = agreed_and_spread(said)
    for order in itertools.permutations(range(3)):
        for a, b in zip(agreed_and_spread([said[i] for i in order]), whole, strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    for sample in range(2):
        alone = agreed_and_spread([volume[sample : sample + 1] for volume in said])
        assert torch.allclose(alone[0], whole[0][sample : sample + 1], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_of_the_members_type(dtype: torch.dtype) -> None:
    agreed, spread = agreed_and_spread([volume.to(dtype) for volume in volumes(3)])
    assert agreed.dtype == dtype and spread.dtype == torch.float32


def test_gradients_pass_through_members_and_not_through_weights() -> None:
    said = [volume.requires_grad_() for volume in volumes(3)]
    agreed, spread = agreed_and_spread(said)
    agreed.sum().backward()
    shares = torch.stack([volume.grad for volume in said])  # each voxel's is the member's weight
    assert torch.allclose(shares.sum(dim=0), torch.ones_like(shares[0]), atol=1e-6)
    assert all(torch.allclose(share, share.flatten()[0].expand_as(share)) for share in shares)
    assert not spread.requires_grad
