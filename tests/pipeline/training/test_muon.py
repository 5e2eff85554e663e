import copy

import pytest
import torch
from torch import nn

from drr2ct.networks import create_network
from drr2ct.pipeline.training.muon import Muon, is_kernel, orthogonalised
from drr2ct.transforms.validation import InputError


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 1, 1))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    network(torch.rand(1, 2, 4, 4, 4, generator=generator)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(6, 54), (54, 6), (8, 8)])
def test_directions_stay_and_lengths_become_alike(shape: tuple[int, int]) -> None:
    left, values, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    found = left.T @ orthogonalised(left * values @ right) @ right.T
    assert (found - found.diag().diag()).abs().max() < 1e-4
    assert found.diag().min() > 0.6 and found.diag().max() < 1.3
    assert not orthogonalised(torch.zeros(3, 4)).any()


def test_kernels_of_a_cascade_are_told_by_their_shape() -> None:
    named = dict(create_network("cascade64", size=32, detector_size=64).named_parameters())
    kernels = {name for name, parameter in named.items() if is_kernel(parameter)}
    assert kernels and all(name.endswith("weight") for name in kernels)
    assert not is_kernel(named["volume"]) and not any(is_kernel(named[name]) for name in named if name.endswith("bias"))


def test_a_first_step_is_as_large_as_adams() -> None:
    """0.2 of the rate in the root mean square over a kernel, whatever its gradient; all else as AdamW moves it."""
    network = small()
    other = copy.deepcopy(network)
    before = copy.deepcopy(network)
    step(network, Muon(network.parameters(), 1e-2, weight_decay=0.1), 0)
    step(other, torch.optim.AdamW(other.parameters(), 1e-2, weight_decay=0.1), 0)
    moved = network[0].weight - before[0].weight * (1 - 1e-2 * 0.1)
    assert moved.square().mean().sqrt().item() == pytest.approx(0.2e-2, rel=0.25)
    for found, expected in zip(network.parameters(), other.parameters(), strict=True):
        assert is_kernel(found) or torch.equal(found, expected)


def test_it_goes_on_exactly_where_it_stopped() -> None:
    network = small()
    optimizer = Muon(network.parameters(), 1e-2)
    for seed in range(3):
        step(network, optimizer, seed)
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())
    step(network, optimizer, 3)
    again = small()
    again.load_state_dict(weights)
    other = Muon(again.parameters(), 1e-2)
    other.load_state_dict(state)
    step(again, other, 3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_it_gets_down_and_layouts_do_not_matter() -> None:
    plain, last = small(), small().to(memory_format=torch.channels_last_3d)
    optimizers = [Muon(network.parameters(), 1e-2) for network in (plain, last)]
    for seed in range(30):
        for network, optimizer in zip((plain, last), optimizers, strict=True):
            step(network, optimizer, seed)
    for one, other in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    x = torch.rand(1, 2, 4, 4, 4)
    assert plain(x).square().mean() < 0.2 * small()(x).square().mean()


def test_frozen_parameters_stay() -> None:
    network = small()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    step(network, Muon(network.parameters(), 1e-2), 0)
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InputError, match="Muon"):
        Muon(small().parameters(), **settings)
