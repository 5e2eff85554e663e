from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drr2ct.networks import create_network, network_config
from drr2ct.networks.cascade import ProgressiveCascade
from drr2ct.networks.config import StageConfig
from drr2ct.networks.widening import can_widen, widened

FURTHER = st.tuples(*[st.integers(0, 5)] * 3, st.integers(0, 2))


def small(**overrides: object) -> ProgressiveCascade:
    return create_network("cascade64", size=16, detector_size=24, **overrides)


def of_three_stages() -> ProgressiveCascade:
    finer = StageConfig(16, norm_groups=0, grow_kernel=1, growth=16, layers=1, lift_channels=8)
    stages = (*network_config("cascade64").stages, finer)
    return create_network("cascade64", size=32, detector_size=24, stages=stages, output_stages=2)


def larger(narrow: ProgressiveCascade, further: list[tuple[int, ...]]) -> ProgressiveCascade:
    """Each stage wider by some channels, growth and lifted channels, and deeper by some blocks."""
    stages = tuple(
        dataclasses.replace(
            stage,
            channels=stage.channels + channels,
            growth=stage.growth + growth,
            lift_channels=stage.lift_channels + lifted,
            blocks=stage.blocks + blocks,
        )
        for stage, (channels, growth, lifted, blocks) in zip(narrow.config.stages, further, strict=True)
    )
    return ProgressiveCascade(dataclasses.replace(narrow.config, stages=stages))


def loaded(wide: ProgressiveCascade, narrow: ProgressiveCascade) -> ProgressiveCascade:
    weights: dict[str, Tensor] = narrow.state_dict()
    wide.load_state_dict({**weights, **widened(wide, narrow.config, weights)}, strict=False)
    return wide


def disturbed(network: ProgressiveCascade) -> ProgressiveCascade:
    """Also those weights that begin with zeros have something to say."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


@settings(max_examples=15, deadline=None)
@given(further=st.lists(FURTHER, min_size=3, max_size=3), seed=st.integers(0, 99))
def test_a_wider_network_begins_with_what_the_narrower_gives(further: list[tuple[int, ...]], seed: int) -> None:
    torch.manual_seed(seed)
    narrow = disturbed(of_three_stages())
    wide = larger(narrow, further)
    assert can_widen(narrow.config, wide.config)
    radiographs = torch.rand(1, 2, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(loaded(wide, narrow)(radiographs), narrow(radiographs), rtol=1e-4, atol=1e-5)


def test_what_is_new_learns() -> None:
    torch.manual_seed(0)
    narrow = disturbed(small())
    wide = loaded(larger(narrow, [(4, 2, 3, 1), (2, 1, 2, 1)]), narrow)
    optimizer = torch.optim.SGD(wide.parameters(), 1e-2)
    radiographs = torch.rand(2, 2, 24, 24)
    for _ in range(2):  # after one step what is new is read, so that in the next its own weights have a gradient
        optimizer.zero_grad()
        wide(radiographs).square().mean().backward()
        optimizer.step()
    still = [name for name, parameter in wide.named_parameters() if not parameter.grad.abs().any()]  # type: ignore[union-attr]
    assert not still
    mix, layer = wide.get_parameter("stages.0.fusion.mix.weight"), "stages.0.blocks.0.layers.1.0.weight"
    assert mix.shape[:2] == (36, 32 + 2 * 19) and mix.grad is not None
    assert mix.grad[:, 32 + 16 : 32 + 19].abs().sum() > 0, "further channels that the first view gives"
    assert wide.get_parameter(layer).shape[:2] == (18, 36 + 18)


def test_grown_and_widened_at_once() -> None:
    torch.manual_seed(0)
    narrow = disturbed(small())
    fine = create_network("cascade128", size=32, detector_size=48).config
    coarse = dataclasses.replace(fine.stages[0], channels=40, blocks=3)
    wide = loaded(ProgressiveCascade(dataclasses.replace(fine, stages=(coarse, *fine.stages[1:]))), narrow)
    radiographs = torch.rand(1, 2, 48, 48)
    with torch.no_grad():
        before = F.interpolate(narrow(F.avg_pool2d(radiographs, 2)), scale_factor=2, mode="trilinear")
        torch.testing.assert_close(wide(radiographs), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ({}, {"encoder_channels": (8, 16, 24, 48)}),
        ({}, {"volume_channels": 48}),
        ({"members": 2}, {"members": 2}),
        ({"transformer_layers": 1}, {"transformer_layers": 1}),
        ({}, {"stages": [{"channels": 64, "scale": 1}, {"channels": 32}]}),  # those are normalised
        ({}, {"stages": [{"channels": 16, "scale": 1, "norm_groups": 0}, {"channels": 16, "norm_groups": 0}]}),
    ],
)
def test_what_cannot_be_widened(narrow: dict[str, object], wide: dict[str, object]) -> None:
    assert not can_widen(small(**narrow).config, small(**wide).config)


def test_a_stage_that_corrects_cannot_be_widened() -> None:
    config = network_config("cascade128", size=32, detector_size=24)
    assert not can_widen(config, config)
