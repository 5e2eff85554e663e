from __future__ import annotations

import contextlib
import io
import re
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from drr2ct.pipeline.training.monitoring import HyperparameterTab, TrainingMonitor, flattened

EPOCHS, STEPS, BATCH = 2, 5, 3
WAIT, WORK = 0.03, 0.01


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventAccumulator, list[str]]:
    """A training of two epochs: its event file, and the lines it printed."""
    tmp_path = tmp_path_factory.mktemp("run")
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.25)
    evaluator = Engine(lambda *_: None)

    def step(engine: Engine, batch: torch.Tensor) -> list[dict[str, float]]:
        time.sleep(WORK)
        network(batch).sum().backward()
        return [{"loss": float(engine.state.iteration)}] * BATCH

    class SlowData:
        def __len__(self) -> int:
            return STEPS

        def __iter__(self):
            for _ in range(STEPS):
                time.sleep(WAIT)
                yield torch.ones(BATCH, 2)

    trainer = Engine(step)

    @trainer.on(Events.EPOCH_COMPLETED)
    def _validate() -> None:
        time.sleep(0.2)  # not part of the epoch's time
        evaluator.run([0])
        evaluator.state.metrics["psnr"] = 20.0 + trainer.state.epoch

    writer = SummaryWriter(tmp_path)
    TrainingMonitor(writer, network, optimizer, evaluator, torch.device("cpu"), histogram_interval=2).attach(trainer)
    settings = {"lr": 0.25, "on": True, "loss": {"l1": 1.0}, "sizes": [1, 2]}
    HyperparameterTab(writer, settings, ["validation/psnr"]).attach(trainer)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        trainer.run(SlowData(), max_epochs=EPOCHS)
    writer.close()
    return EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload(), output.getvalue().splitlines()


@pytest.fixture
def events(run: tuple[EventAccumulator, list[str]]) -> EventAccumulator:
    return run[0]


def test_speed_waiting_and_memory(events: EventAccumulator) -> None:
    for event in events.Scalars("speed/waiting_for_data_share"):
        assert 0.5 < event.value < 0.9  # 0.75 but for what a busy machine adds to either
    for event in events.Scalars("speed/samples_per_second"):
        assert 0.3 < event.value / (BATCH / (WAIT + WORK)) <= 1
    assert [event.step for event in events.Scalars("memory/peak_gib")] == [1, 2]
    now, peak = events.Scalars("memory/now_gib")[-1].value, events.Scalars("memory/peak_gib")[-1].value
    assert 0.05 < now <= peak * 1.01


def test_histograms_are_written_when_asked(events: EventAccumulator) -> None:
    names = {"weights/weight", "weights/bias", "gradients/weight", "gradients/bias"}
    assert set(events.Tags()["histograms"]) == names
    (gradient,) = events.Histograms("gradients/weight")
    assert gradient.step == 2
    value = gradient.histogram_value
    assert value.num == 2 and value.sum == pytest.approx(2 * BATCH * STEPS * EPOCHS)


def test_one_plain_line_per_epoch(run: tuple[EventAccumulator, list[str]]) -> None:
    lines = run[1]
    assert len(lines) == EPOCHS
    assert lines[0].startswith("epoch 1/2, loss 3, validation psnr 21, lr 0.25, ")
    assert lines[1].startswith("epoch 2/2, loss 8, validation psnr 22, ")
    assert " samples/s, waiting " in lines[0] and "\x1b" not in lines[0]


def test_an_epoch_that_a_resumed_training_only_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, trainer, evaluator = nn.Linear(2, 1), Engine(lambda *_: None), Engine(lambda *_: None)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    writer = SummaryWriter(tmp_path)
    TrainingMonitor(writer, network, optimizer, evaluator, torch.device("cpu")).attach(trainer)
    trainer.state.epoch, trainer.state.max_epochs = 2, 5
    trainer.fire_event(Events.EPOCH_COMPLETED)
    writer.close()
    assert re.fullmatch(r"epoch 2/5, \d+\.\d GiB\n", capsys.readouterr().out)
    assert not any(tag.startswith("speed") for tag in EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"])


def test_hyperparameters_can_be_read_back(events: EventAccumulator) -> None:
    from tensorboard.plugins.hparams import metadata

    content = events.SummaryMetadata
    experiment = metadata.parse_experiment_plugin_data(content("_hparams_/experiment").plugin_data.content)
    assert [info.name.tag for info in experiment.metric_infos] == ["validation/psnr"]
    start = metadata.parse_session_start_info_plugin_data(content("_hparams_/session_start_info").plugin_data.content)
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert values == {"lr": 0.25, "on": True, "loss/l1": 1.0, "sizes": "[1, 2]"}


def test_flattening() -> None:
    assert flattened({"a": {"b": {"c": 1}}, "d": None}) == {"a/b/c": 1, "d": "None"}
