"""Handlers of the training engine: what is logged, and what stops it."""

from __future__ import annotations

import csv
import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.figures import DISPLAY_WINDOW, ERROR_RANGE, grey, mid_planes
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

CSV_COLUMNS = ("epoch", "phase", "loss", "psnr", "ssim", "lr", "seconds")


def batch_patients(batch: Any) -> list[str]:
    """Names of the patients of a batch: collated, or decollated as MONAI's engines leave it after an iteration."""
    if isinstance(batch, Mapping):
        names = batch.get("patient", [])
        return [str(name) for name in ([names] if isinstance(names, str) else names)]
    return [str(sample["patient"]) for sample in batch if isinstance(sample, Mapping) and "patient" in sample]


def engine_output(engine: Engine) -> Any:
    """What the iteration gave: a dictionary, and once it is completed a list of them, one per sample."""
    return engine.state.output


class NonFiniteLossError(InputError):
    """A loss was NaN or infinite; the message names the batch."""


class StopOnNonFiniteLoss:
    """Stop at the first loss that is NaN or infinite, before it reaches the weights, and name the batch."""

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        """Check the loss just computed."""
        loss = engine_output(trainer)["loss"]
        if not torch.isfinite(loss).all():
            patients = ", ".join(batch_patients(trainer.state.batch)) or "unknown"
            raise NonFiniteLossError(
                f"loss is {loss.item()} at epoch {trainer.state.epoch}, iteration {trainer.state.iteration}, in the "
                f"batch of {patients}; check their data, or train with precision fp32 or a lower learning rate."
            )


class EpochCSV:
    """One row per epoch and phase: epoch, phase, loss, PSNR, SSIM, learning rate, seconds.

    Metrics are those of the engines: ``loss`` (of training, the mean over iterations), ``psnr``, ``ssim``. Attach it
    after the validation handler. Rows of epochs that a resumed training will repeat are dropped.

    Args:
        path: of the CSV file.
        evaluator: the validation engine.
        optimizer: whose learning rate is noted.
    """

    def __init__(self, path: str | Path, evaluator: Engine, optimizer: torch.optim.Optimizer) -> None:
        self.path = Path(path)
        self.evaluator = evaluator
        self.optimizer = optimizer
        self._losses: list[float] = []
        self._lr = 0.0
        self._train_seconds = self._began = self._validation_began = 0.0
        self._validation_seconds: float | None = None
        self._opened = False

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        self.evaluator.add_event_handler(Events.STARTED, self._validation_started)
        self.evaluator.add_event_handler(Events.COMPLETED, self._validation_completed)

    def _epoch_started(self, trainer: Engine) -> None:
        if not self._opened:  # not at STARTED: a checkpoint may only then set the epoch
            self._open(trainer.state.epoch)
        self._losses, self._validation_seconds, self._began = [], None, time.monotonic()

    def _open(self, first_epoch: int) -> None:
        rows = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < first_epoch]
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._opened = True

    def _iteration_completed(self, trainer: Engine) -> None:
        self._losses.append(float(engine_output(trainer)[0]["loss"]))
        # the rate this epoch ran with; the scheduler has stepped before the epoch's row is written
        self._lr = self.optimizer.param_groups[0]["lr"]
        self._train_seconds = time.monotonic() - self._began

    def _validation_started(self) -> None:
        self._validation_began = time.monotonic()

    def _validation_completed(self) -> None:
        self._validation_seconds = time.monotonic() - self._validation_began

    def _epoch_completed(self, trainer: Engine) -> None:
        loss = sum(self._losses) / len(self._losses)
        rows = [self._row(trainer, "training", {**trainer.state.metrics, "loss": loss}, self._train_seconds)]
        if self._validation_seconds is not None:
            rows.append(self._row(trainer, "validation", self.evaluator.state.metrics, self._validation_seconds))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, CSV_COLUMNS).writerows(rows)

    def _row(self, trainer: Engine, phase: str, metrics: Mapping[str, float], seconds: float) -> dict[str, Any]:
        values = {name: f"{float(metrics[name]):.6g}" if name in metrics else "" for name in ("loss", "psnr", "ssim")}
        return {
            "epoch": trainer.state.epoch,
            "phase": phase,
            **values,
            "lr": f"{self._lr:.6g}",
            "seconds": f"{seconds:.3f}",
        }


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: allocated on a CUDA device, or resident for this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TensorBoardScalars:
    """Per iteration: loss and its terms, learning rate, seconds; per epoch: the metrics, and peak memory.

    Args:
        writer: of the run's event file.
        evaluator: the validation engine, whose metrics are written at the trainer's epoch.
        optimizer: whose learning rate is written.
        loss: whose last terms are written, one by one.
        device: whose peak memory is written.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        evaluator: Engine,
        optimizer: torch.optim.Optimizer,
        loss: WeightedLoss,
        device: torch.device,
    ) -> None:
        self.writer = writer
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.loss = loss
        self.device = device
        self._terms: dict[str, Tensor] = {}
        self._began = 0.0

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self._loss_completed)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.add_event_handler(Events.COMPLETED, self.writer.flush)

        @self.evaluator.on(Events.COMPLETED)
        def _validated() -> None:
            for name, value in self.evaluator.state.metrics.items():
                self.writer.add_scalar(f"validation/{name}", value, trainer.state.epoch)

    def _iteration_started(self) -> None:
        self._began = time.monotonic()

    def _loss_completed(self) -> None:
        self._terms = dict(self.loss.last_terms)

    def _iteration_completed(self, trainer: Engine) -> None:
        step = trainer.state.iteration
        self.writer.add_scalar("training/loss", float(engine_output(trainer)[0]["loss"]), step)
        for name, value in self._terms.items():
            self.writer.add_scalar(f"training/loss_{name}", value.item(), step)
        self.writer.add_scalar("training/lr", self.optimizer.param_groups[0]["lr"], step)
        self.writer.add_scalar("training/seconds_per_iteration", time.monotonic() - self._began, step)

    def _epoch_completed(self, trainer: Engine) -> None:
        for name, value in trainer.state.metrics.items():
            self.writer.add_scalar(f"training/{name}", value, trainer.state.epoch)
        self.writer.add_scalar("training/peak_memory_gib", peak_memory_bytes(self.device) / 2**30, trainer.state.epoch)
        self.writer.flush()


class TensorBoardPlanes:
    """Truth, prediction and error in three planes, and the radiographs, of the first validation patient.

    Fixed HU window, so that epochs can be compared. Attach to the evaluator.

    Args:
        writer: of the run's event file.
        geometry: says where the volumes' axes point.
        interval: write at every so many epochs.
    """

    def __init__(self, writer: SummaryWriter, geometry: BiplanarGeometry, interval: int = 1) -> None:
        self.writer = writer
        self.geometry = geometry
        self.interval = interval

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        """Write the pictures of the batch's first patient."""
        epoch = evaluator.state.epoch  # the trainer's: MONAI's ValidationHandler passes it on
        if evaluator.state.iteration > 1 or epoch % self.interval:
            return
        sample = engine_output(evaluator)[0]
        label, pred = sample["label"], sample["pred"]
        affine = torch.from_numpy(self.geometry.grid.affine())
        truth, made = (MetaTensor(to_hu(volume.detach().cpu().float()), affine) for volume in (label, pred))
        error = MetaTensor(made.as_tensor() - truth.as_tensor(), affine)
        for name, volume, window in (
            ("truth", truth, DISPLAY_WINDOW),
            ("prediction", made, DISPLAY_WINDOW),
            ("error", error, (-ERROR_RANGE, ERROR_RANGE)),
        ):
            for plane, values in mid_planes(volume).items():
                self.writer.add_image(f"{plane}/{name}", grey(values, *window), epoch, dataformats="HW")
        for view, radiograph in zip(self.geometry.views, sample["image"].cpu().numpy(), strict=True):
            shown = grey(radiograph, 0.0, max(1.0, float(radiograph.max())))
            self.writer.add_image(f"radiographs/{view.name}", shown, epoch, dataformats="HW")


class TimeBudget:
    """Train for a stated time: anneal the learning rate by a cosine over it, and stop when it is used up.

    For comparisons at equal time, and for demonstrations. Use it instead of a learning rate scheduler.

    Args:
        optimizer: whose learning rates are set, from their initial value down to ``eta_min``.
        seconds: of training, validation excluded.
        eta_min: learning rate at the end.
        warm_up: fraction of the time in which the rate rises linearly from zero.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, seconds: float, eta_min: float = 1e-6, warm_up: float = 0.02
    ) -> None:
        if not seconds > 0:
            raise InputError(f"a time budget of {seconds} s is not positive.")
        self.optimizer = optimizer
        self.seconds = seconds
        self.eta_min = eta_min
        self.warm_up = warm_up
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.used = 0.0
        self._began = 0.0

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        trainer.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def state_dict(self) -> dict[str, float]:
        """Seconds used, for checkpoints."""
        return {"used": self.used}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint."""
        self.used = state["used"]

    def _iteration_started(self) -> None:
        self._began = time.monotonic()
        done = min(1.0, self.used / self.seconds)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            cosine = self.eta_min + (rate - self.eta_min) * (1 + math.cos(math.pi * done)) / 2
            group["lr"] = cosine * min(1.0, max(done, 1e-3) / self.warm_up) if self.warm_up else cosine

    def _iteration_completed(self, trainer: Engine) -> None:
        self.used += time.monotonic() - self._began
        if self.used >= self.seconds:
            trainer.terminate()


class RichProgress:
    """A progress bar with the loss and the last validation PSNR: over epochs, or over a time budget.

    Args:
        evaluator: the validation engine.
        budget: if training stops by time, the handler that says so.
    """

    def __init__(self, evaluator: Engine, budget: TimeBudget | None = None) -> None:
        self.evaluator = evaluator
        self.budget = budget
        count = TextColumn("{task.completed:.0f}/{task.total:.0f} s") if budget else MofNCompleteColumn()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            count,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._loss = math.nan

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        trainer.add_event_handler(Events.STARTED, self._started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._stop)

    def _started(self, trainer: Engine) -> None:
        if self.budget is None:
            total = float((trainer.state.max_epochs or 0) * (trainer.state.epoch_length or 0))
        else:
            total = self.budget.seconds
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def _iteration_completed(self, trainer: Engine) -> None:
        loss = float(engine_output(trainer)[0]["loss"])
        self._loss = loss if math.isnan(self._loss) else 0.95 * self._loss + 0.05 * loss
        psnr = self.evaluator.state.metrics.get("psnr")
        note = f"epoch {trainer.state.epoch}, loss {self._loss:.4f}" + (f", PSNR {psnr:.2f} dB" if psnr else "")
        done = float(trainer.state.iteration) if self.budget is None else min(self.budget.used, self.budget.seconds)
        self._progress.update(self._task, completed=done, description=note)

    def _stop(self, *args: Any) -> None:
        self._progress.stop()
        if len(args) > 1 and isinstance(args[1], BaseException):
            raise args[1]  # ignite swallows an exception that a handler has seen
