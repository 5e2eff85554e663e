"""Watching a training: speed, waiting and memory, histograms, the HPARAMS tab, and a plain line per epoch for logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from drr2ct.pipeline.running.distributed import world_size
from drr2ct.pipeline.running.engines import engine_output
from drr2ct.pipeline.running.memory import memory_bytes, peak_memory_bytes


class TrainingMonitor:
    """Per epoch: samples per second, the share of the time spent waiting for data, memory; histograms on demand.

    Where the output is no terminal, and a progress bar would be garbage, it prints one plain line per epoch as well.

    The time of an epoch runs to its last step, so validation is not in it. Samples are those of all processes; the
    waiting, and the loss of the line, are this process's. Attach it after the validation handler.

    Args:
        writer: of the run's event file.
        network: whose weights and gradients the histograms show.
        optimizer: whose learning rate the line shows.
        evaluator: the validation engine, whose metrics the line shows.
        device: whose memory is written.
        histogram_interval: write histograms at every so many epochs; 0 for never.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        device: torch.device,
        histogram_interval: int = 0,
    ) -> None:
        self.writer = writer
        self.network = network
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.device = device
        self.histogram_interval = histogram_interval
        self._samples = 0
        self._losses: list[float] = []
        self._rate = 0.0
        self._began = self._waited = self._asked = self._ended = 0.0
        self._validated = -1

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._batch_asked)
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._batch_came)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        self.evaluator.add_event_handler(Events.COMPLETED, lambda: setattr(self, "_validated", trainer.state.epoch))

    def _epoch_started(self) -> None:
        self._samples, self._losses, self._waited = 0, [], 0.0
        self._began = self._ended = time.monotonic()

    def _batch_asked(self) -> None:
        self._asked = time.monotonic()

    def _batch_came(self) -> None:
        self._waited += time.monotonic() - self._asked

    def _iteration_completed(self, trainer: Engine) -> None:
        output = engine_output(trainer)
        self._samples += len(output)
        self._losses.append(float(output[0]["loss"]))
        self._rate = self.optimizer.param_groups[0]["lr"]  # the scheduler steps before the line is printed
        self._ended = time.monotonic()

    def _epoch_completed(self, trainer: Engine) -> None:
        epoch, seconds = trainer.state.epoch, max(self._ended - self._began, 1e-9)
        speed, waiting = self._samples * world_size() / seconds, self._waited / seconds
        if self._samples:  # else all steps were made before the training was resumed
            self.writer.add_scalar("speed/samples_per_second", speed, epoch)
            self.writer.add_scalar("speed/waiting_for_data_share", waiting, epoch)
        self.writer.add_scalar("memory/now_gib", memory_bytes(self.device) / 2**30, epoch)
        self.writer.add_scalar("memory/peak_gib", peak_memory_bytes(self.device) / 2**30, epoch)
        if self.histogram_interval and epoch % self.histogram_interval == 0:
            for name, parameter in self.network.named_parameters():
                self.writer.add_histogram(f"weights/{name}", parameter, epoch)
                if parameter.grad is not None:  # of the last step, clipped
                    self.writer.add_histogram(f"gradients/{name}", parameter.grad, epoch)
        if not sys.stdout.isatty():
            print(self._line(trainer, speed, waiting), flush=True)

    def _line(self, trainer: Engine, speed: float, waiting: float) -> str:
        state = trainer.state
        parts = [f"epoch {state.epoch}/{state.max_epochs}"]
        if self._losses:
            parts.append(f"loss {sum(self._losses) / len(self._losses):.4g}")
        if self._validated == state.epoch:
            found = self.evaluator.state.metrics.items()
            parts.append("validation " + " ".join(f"{name} {float(value):.4g}" for name, value in found))
        if self._samples:
            parts += [f"lr {self._rate:.3g}", f"{speed:.3g} samples/s", f"waiting {100 * waiting:.0f} %"]
            parts.append(f"{time.monotonic() - self._began:.1f} s")
        parts.append(f"{peak_memory_bytes(self.device) / 2**30:.1f} GiB")
        return ", ".join(parts)


class HyperparameterTab:
    """TensorBoard's HPARAMS tab: what a run was set to, beside its last (so, at the end, its final) metrics.

    Args:
        writer: of the run's event file.
        hyperparameters: plain values; nested ones appear as ``a/b``, others than numbers and switches as text.
        metrics: tags of scalars that the run writes.
    """

    def __init__(self, writer: SummaryWriter, hyperparameters: Mapping[str, Any], metrics: Sequence[str]) -> None:
        self.writer = writer
        self.hyperparameters = flattened(hyperparameters)
        self.metrics = list(metrics)
        self._written = False

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        trainer.add_event_handler(Events.ITERATION_STARTED, self._write)

    def _write(self) -> None:
        if self._written:  # with the first batch, not before: a run whose data is refused leaves no event file
            return
        self._written = True
        # SummaryWriter.add_hparams would open a run of its own beside this one
        for summary in hparams(self.hyperparameters, dict.fromkeys(self.metrics, 0.0)):
            self.writer._get_file_writer().add_summary(summary)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, float | bool | str]:
    """Nested settings as one level of numbers, switches and text."""
    flat: dict[str, float | bool | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value if isinstance(value, (bool, int, float)) else str(value)
    return flat
