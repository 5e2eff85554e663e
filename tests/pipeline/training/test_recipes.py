from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from drr2ct.networks import create_network, list_networks, network_config
from drr2ct.pipeline.training.recipes import (
    StopWithoutImprovement,
    WeightAverage,
    coarse_config,
    coarse_size,
    parse_growth,
    trainable_parameters,
)
from drr2ct.transforms.validation import InputError


def moved(network: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> list[torch.Tensor]:
    weights = []
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        weights.append(network.weight.detach().clone())
    return weights


def test_the_average_follows_its_formula_and_resumes() -> None:
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    average = WeightAverage(network, optimizer, decay=0.4)
    weights = moved(network, optimizer, 6)
    expected = weights[0]  # the first update takes the weights as they are
    for updates, weight in enumerate(weights[1:], start=1):
        decay = min(0.4, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(average.network.weight, expected, atol=1e-6)
    assert average.state_dict() == {"updates": 6}

    other = nn.Linear(3, 2)
    other.load_state_dict(network.state_dict())
    optimizer_too = torch.optim.SGD(other.parameters(), lr=0.1)
    resumed = WeightAverage(other, optimizer_too, decay=0.4)
    resumed.network.load_state_dict(average.network.state_dict())
    resumed.load_state_dict(average.state_dict())
    moved(network, optimizer, 2)
    moved(other, optimizer_too, 2)
    assert torch.equal(resumed.network.weight, average.network.weight)
    with pytest.raises(InputError, match="below 1"):
        WeightAverage(network, optimizer, decay=1.0)


def engines(scores: list[float]) -> tuple[Engine, Engine]:
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)

    @trainer.on(Events.EPOCH_COMPLETED)
    def _validate() -> None:
        evaluator.run([0])

    @evaluator.on(Events.EPOCH_COMPLETED)
    def _score() -> None:
        evaluator.state.metrics["psnr"] = scores[trainer.state.epoch - 1]

    return trainer, evaluator


@pytest.mark.parametrize(
    ("scores", "mode", "epochs"),
    [
        ([1, 2, 3, 2, 2, 9], "max", 5),
        ([1, 2, 1, 2.5, 2, 2], "max", 6),
        ([3, 2, 1, 2, 2, 0], "min", 5),
        ([1, 2, 3, 4, 5, 6], "max", 6),
    ],
)
def test_it_stops_after_patience_without_improvement(scores: list[float], mode: str, epochs: int) -> None:
    trainer, evaluator = engines(scores)
    StopWithoutImprovement(evaluator, "psnr", 2, mode).attach(trainer)
    trainer.run([0], max_epochs=6)
    assert trainer.state.epoch == epochs


def test_early_stopping_counts_on_after_a_resume_and_stays_stopped() -> None:
    trainer, evaluator = engines([3, 2, 9])
    handler = StopWithoutImprovement(evaluator, "psnr", 2)
    handler.attach(trainer)
    trainer.run([0], max_epochs=2)

    trainer, evaluator = engines([1, 9])
    resumed = StopWithoutImprovement(evaluator, "psnr", 2)
    resumed.attach(trainer)
    resumed.load_state_dict(handler.state_dict())
    trainer.run([0], max_epochs=5)
    assert trainer.state.epoch == 1, "the second validation below the best of before"

    trainer, evaluator = engines([9])
    again = StopWithoutImprovement(evaluator, "psnr", 2)
    again.attach(trainer)
    again.load_state_dict(resumed.state_dict())
    with pytest.raises(InputError, match="raise early_stopping_patience"):
        trainer.run([0], max_epochs=1)


def test_early_stopping_refuses_what_it_cannot_do() -> None:
    trainer, evaluator = engines([1])
    with pytest.raises(InputError, match="max or min"):
        StopWithoutImprovement(evaluator, mode="best")
    with pytest.raises(InputError, match="below 1"):
        StopWithoutImprovement(evaluator, patience=0)
    StopWithoutImprovement(evaluator, "dice").attach(trainer)
    with pytest.raises(InputError, match="'dice' is not measured; choose from psnr"):
        trainer.run([0], max_epochs=1)


def test_freezing_by_pattern() -> None:
    network = create_network("cascade64", size=16, detector_size=24)
    left = trainable_parameters(network, ["encoder.*", "stages.0.*"])
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if name.startswith(("encoder.", "stages.0."))}
    assert sum(p.numel() for p in left) + sum(p.numel() for n, p in network.named_parameters() if n in frozen) == sum(
        p.numel() for p in network.parameters()
    )
    assert len(trainable_parameters(network, [])) == len(list(network.parameters())), "and thaws again"
    with pytest.raises(InputError, match=r"'encodr\.\*' matches no parameter; .* volume, encoder, stages\.0"):
        trainable_parameters(network, ["encoder.*", "encodr.*"])
    with pytest.raises(InputError, match="nothing to train"):
        trainable_parameters(network, ["*"])


@pytest.mark.parametrize("name", list_networks())
def test_coarse_stages_are_networks(name: str) -> None:
    whole = network_config(name)
    count = len(whole.stages)
    for stages in range(1, count + 1):
        config = coarse_config(name, stages)
        assert config.stage_sizes == whole.stage_sizes[:stages]
        assert config.volume_size == whole.volume_size
        assert config.geometry.grid.size == coarse_size(name, stages) == config.stage_sizes[-1] * whole.head_scale
    assert coarse_config(name, count) == whole
    with pytest.raises(InputError, match=f"{name} has {count} stages"):
        coarse_config(name, count + 1)


def test_growth_is_read() -> None:
    assert parse_growth("2:50,3:20") == [(2, 50), (3, 20)]
    for text in ("2", "2:x", "", "3:5,2:5", "2:0"):
        with pytest.raises(InputError, match="growth"):
            parse_growth(text)
