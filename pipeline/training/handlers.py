"""Handlers of the training engine: what is logged, and what stops it."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.pictures.figures import DISPLAY_WINDOW, ERROR_RANGE, grey, mid_planes
from drr2ct.pipeline.running.distributed import any_process, is_main_process, mean_over_processes
from drr2ct.pipeline.running.engines import batch_patients, engine_output
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

CSV_COLUMNS = ("epoch", "phase", "loss", "psnr", "ssim", "lr", "seconds", "skipped")

logger = logging.getLogger(__name__)


class Attach:
    """Handlers that other parts of a configuration refer to, as one entry of its list of handlers.

    A plain reference in that list ends MONAI's ``check_properties``, which takes every entry for a dictionary.

    Args:
        handlers: attached in this order.
    """

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = list(handlers)

    def attach(self, engine: Engine) -> None:
        """Register all on the engine."""
        for handler in self.handlers:
            handler.attach(engine)


class NonFiniteLossError(InputError):
    """Too many steps in a row gave NaN or infinity; the message names the batch."""


class SkipNonFiniteSteps:
    """Name and skip every step whose loss or gradient is NaN or infinite, count them, and stop after some in a row.

    A step is skipped by taking its gradients away from the optimiser, so neither weights nor moments change. Under
    gradient accumulation one bad batch costs the whole accumulated step. With fp16, steps that the gradient scaler
    skips because the scaled gradient overflows are counted apart and are no fault, until the scale has sunk to 1.

    Args:
        optimizer: of the training.
        folder: where the batch that stops the run is saved, ``nonfinite_<step>.safetensors``.
        max_in_a_row: stop at so many skipped steps in a row.

    Attributes:
        skipped: steps skipped in this epoch.
        overflows: steps that the scaler skipped in this epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, folder: str | Path, max_in_a_row: int = 3) -> None:
        if max_in_a_row < 1:
            raise InputError(f"max_nonfinite_steps is {max_in_a_row}; it must be 1 or more.")
        self.optimizer = optimizer
        self.folder = Path(folder)
        self.max_in_a_row = max_in_a_row
        self.skipped = self.overflows = 0
        self._in_a_row = 0
        self._discard = False  # the gradients gathered for the next step of the optimiser
        self._fault = ""
        self._tensors: dict[str, Tensor] = {}
        self._patients: list[str] = []
        self._scale = 0.0

    def attach(self, trainer: SupervisedTrainer) -> None:
        """Register on the trainer and on the optimiser."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        trainer.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self._loss_completed)
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._backward_completed)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        self.optimizer.register_step_pre_hook(self._before_step)

    def state_dict(self) -> dict[str, int | bool]:
        """Counts, for checkpoints within an epoch."""
        return {
            "skipped": self.skipped,
            "overflows": self.overflows,
            "in_a_row": self._in_a_row,
            "discard": self._discard,
        }

    def load_state_dict(self, state: Mapping[str, int | bool]) -> None:
        """Go on counting."""
        self.skipped, self.overflows = int(state["skipped"]), int(state["overflows"])
        self._in_a_row, self._discard = int(state["in_a_row"]), bool(state["discard"])

    def _epoch_started(self) -> None:
        self.skipped = self.overflows = 0

    def _iteration_started(self, trainer: SupervisedTrainer) -> None:
        if (trainer.state.iteration - 1) % trainer.state.epoch_length % trainer.accumulation_steps == 0:
            self._discard = False
        self._fault, self._tensors = "", {}
        self._scale = _scale(trainer)

    def _loss_completed(self, trainer: SupervisedTrainer) -> None:
        output = engine_output(trainer)
        # collated here; MONAI takes the batch apart before the iteration is completed
        self._patients = batch_patients(trainer.state.batch)
        if not torch.isfinite(output["loss"]).all():
            self._fault = f"loss is {output['loss'].item()}"

    def _backward_completed(self, trainer: SupervisedTrainer) -> None:
        fault = self._fault
        # the scaler looks at scaled gradients itself; in an accumulation they hold the earlier batches' too
        if not fault and not self._discard and not self._scale and not _finite_gradients(self.optimizer):
            fault = "gradient is not finite"
        if any_process(bool(fault)) and not fault:
            fault = "loss or gradient of another process is not finite"
        self._fault = fault
        if fault:
            self._discard = True
            output = engine_output(trainer)
            self._tensors = {name: output[name].detach() for name in ("image", "label", "pred", "loss")}

    def _before_step(self, *_: Any) -> None:
        if self._discard:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            self._in_a_row = 0

    def _iteration_completed(self, trainer: SupervisedTrainer) -> None:
        if not self._fault and _scale(trainer) < self._scale:
            self.overflows += 1
            if self._scale > 1:
                return
            self._fault = "gradient is not finite, and not by loss scaling"
        if not self._fault:
            return
        self.skipped += 1
        self._in_a_row += 1
        patients = ", ".join(self._patients) or "unknown"
        place = f"epoch {trainer.state.epoch}, iteration {trainer.state.iteration}, in the batch of {patients}"
        if self._in_a_row < self.max_in_a_row:
            logger.warning("%s at %s; the step is skipped.", self._fault, place)
            return
        path = self._save_batch(trainer)
        raise NonFiniteLossError(
            f"{self._fault} at {place}, and so were {self._in_a_row} steps in a row; the batch is in {path}: check "
            "these patients' data, or train with precision fp32 or a lower learning rate."
        )

    def _save_batch(self, trainer: SupervisedTrainer) -> Path:
        path = self.folder / f"nonfinite_{trainer.state.iteration}.safetensors"
        tensors = {name: value.cpu().contiguous().as_subclass(Tensor) for name, value in self._tensors.items()}
        about = {"patients": json.dumps(self._patients), "fault": self._fault, "epoch": str(trainer.state.epoch)}
        with replacing(path) as temporary:
            save_file(tensors, temporary, about)
        return path


class NameNonFinitePredictions:
    """In validation, name patients whose prediction is NaN or infinite, and make that epoch's metrics NaN.

    MONAI's metrics leave NaN out of their means, so that a network that gives nothing else would have a loss of 0.
    Attach it to the evaluator.
    """

    def __init__(self) -> None:
        self._found = False

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._completed)

    def _look(self, evaluator: Engine) -> None:
        for patient, sample in zip(batch_patients(evaluator.state.batch), engine_output(evaluator), strict=True):
            if not torch.isfinite(sample["pred"]).all():
                self._found = True
                logger.warning("The prediction is not finite in the validation of %s.", patient)

    def _completed(self, evaluator: Engine) -> None:
        if any_process(self._found):
            evaluator.state.metrics.update(dict.fromkeys(evaluator.state.metrics, math.nan))
        self._found = False


def _scale(trainer: SupervisedTrainer) -> float:
    """Of the gradients; 0 where they are not scaled."""
    return trainer.scaler.get_scale() if trainer.scaler is not None and trainer.scaler.is_enabled() else 0.0


def _finite_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """One number to look at instead of every gradient: a sum of absolute values is finite if all are."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)))


class EpochCSV:
    """One row per epoch and phase: epoch, phase, loss, PSNR, SSIM, learning rate, seconds, skipped steps.

    Metrics are those of the engines: ``loss`` (of training, the mean over the steps that were made), ``psnr``,
    ``ssim``. Attach it after the validation handler. Rows of epochs that a resumed training will repeat are dropped.

    Args:
        path: of the CSV file.
        evaluator: the validation engine.
        optimizer: whose learning rate is noted.
        numerics: counts skipped steps.
    """

    def __init__(
        self,
        path: str | Path,
        evaluator: Engine,
        optimizer: torch.optim.Optimizer,
        numerics: SkipNonFiniteSteps | None = None,
    ) -> None:
        self.path = Path(path)
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.numerics = numerics
        self._losses: list[float] = []
        self._lr = 0.0
        self._train_seconds = self._earlier_seconds = self._began = self._validation_began = 0.0
        self._validation_seconds: float | None = None
        self._opened = False

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        self.evaluator.add_event_handler(Events.STARTED, self._validation_started)
        self.evaluator.add_event_handler(Events.COMPLETED, self._validation_completed)

    def state_dict(self) -> dict[str, Any]:
        """What the epoch's row will be made of, for checkpoints within an epoch."""
        return {"losses": list(self._losses), "lr": self._lr, "seconds": self._train_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on within an epoch."""
        self._losses, self._lr = list(state["losses"]), state["lr"]
        self._train_seconds = self._earlier_seconds = state["seconds"]

    def _epoch_started(self, trainer: Engine) -> None:
        self._open(trainer.state.epoch)
        self._losses, self._validation_seconds, self._began = [], None, time.monotonic()
        self._earlier_seconds = 0.0

    def _open(self, first_epoch: int) -> None:
        if self._opened or not is_main_process():  # not done at STARTED: a checkpoint may only then set the epoch
            return
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
        loss = float(engine_output(trainer)[0]["loss"])
        if math.isfinite(loss):  # else the step is skipped, and counted
            self._losses.append(loss)
        # the rate this epoch ran with; the scheduler has stepped before the epoch's row is written
        self._lr = self.optimizer.param_groups[0]["lr"]
        self._train_seconds = self._earlier_seconds + time.monotonic() - self._began

    def _validation_started(self) -> None:
        self._validation_began = time.monotonic()

    def _validation_completed(self) -> None:
        self._validation_seconds = time.monotonic() - self._validation_began

    def _epoch_completed(self, trainer: Engine) -> None:
        self._open(trainer.state.epoch)
        loss = mean_over_processes(sum(self._losses), len(self._losses))
        rows = [self._row(trainer, "training", {**trainer.state.metrics, "loss": loss}, self._train_seconds)]
        if self._validation_seconds is not None:
            rows.append(self._row(trainer, "validation", self.evaluator.state.metrics, self._validation_seconds))
        if not is_main_process():
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, CSV_COLUMNS).writerows(rows)
            file.flush()
            os.fsync(file.fileno())  # before the checkpoint says that the epoch is complete

    def _row(self, trainer: Engine, phase: str, metrics: Mapping[str, float], seconds: float) -> dict[str, Any]:
        values = {name: f"{float(metrics[name]):.6g}" if name in metrics else "" for name in ("loss", "psnr", "ssim")}
        return {
            "epoch": trainer.state.epoch,
            "phase": phase,
            **values,
            "lr": f"{self._lr:.6g}",
            "seconds": f"{seconds:.3f}",
            "skipped": self.numerics.skipped if self.numerics is not None and phase == "training" else 0,
        }


class EventLog(SummaryWriter):
    """TensorBoard's writer, which makes its file with the first event, and goes back to where a checkpoint was.

    Its state is the size of every event file of the folder. Events that came later are cut off on resuming, whatever
    their tags and steps count; TensorBoard's own ``purge_step`` compares one number with steps, which here count
    iterations for some tags and epochs for others.

    Args:
        log_dir: of the event files.
    """

    def __init__(self, log_dir: str | Path) -> None:
        self._folder = Path(log_dir)
        self._earlier = self._files()
        self._opened = False
        if is_main_process():
            self._await_later_name()
            super().__init__(str(log_dir))
            self._opened = True
        else:
            self.all_writers = None  # flush and close do nothing

    def _get_file_writer(self) -> Any:
        # torch asks for it before every event, and once when this is made: too early, as the run may yet be refused
        return super()._get_file_writer() if self._opened else None

    def _await_later_name(self) -> None:
        """TensorBoard reads files in the order of their names, which begin with the second that they were made in."""
        stamps = [path.name.split(".")[3] for path in self._earlier]
        last = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
        while 0 <= last - int(time.time()) < 2:  # not where the clock was set back: that may be long
            time.sleep(0.05)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("events.out.tfevents.*"))

    def state_dict(self) -> dict[str, int]:
        """Sizes in bytes of the event files by name, which are synced to the disk."""
        self.flush()
        sizes = {}
        for path in self._files():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                sizes[path.name] = path.stat().st_size
        return sizes

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the files that were there before this one was opened; those that are not in the state are removed."""
        if not is_main_process():
            return
        for path in self._earlier:
            if path.name not in state:
                path.unlink(missing_ok=True)
            elif path.stat().st_size > state[path.name]:
                os.truncate(path, state[path.name])


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
        numerics: whose counts of skipped steps are written.
    """

    def __init__(
        self,
        writer: SummaryWriter,
        evaluator: Engine,
        optimizer: torch.optim.Optimizer,
        loss: WeightedLoss,
        device: torch.device,
        numerics: SkipNonFiniteSteps | None = None,
    ) -> None:
        self.writer = writer
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.loss = loss
        self.device = device
        self.numerics = numerics
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
        if self.numerics is not None:
            self.writer.add_scalar("training/skipped_steps", self.numerics.skipped, trainer.state.epoch)
            self.writer.add_scalar("training/scaler_overflows", self.numerics.overflows, trainer.state.epoch)
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
        plain = (volume.detach().cpu().float().as_subclass(Tensor) for volume in (label, pred))
        truth, made = (MetaTensor(to_hu(volume), affine) for volume in plain)
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


def annealed(rate: float, done: float, eta_min: float = 1e-6, warm_up: float = 0.02) -> float:
    """The learning rate after a part ``done`` (0 to 1) of a training: a linear rise, a cosine down to ``eta_min``."""
    cosine = eta_min + (rate - eta_min) * (1 + math.cos(math.pi * done)) / 2
    return cosine * min(1.0, max(done, 1e-3) / warm_up) if warm_up else cosine


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
            group["lr"] = annealed(rate, done, self.eta_min, self.warm_up)

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
            disable=not Console().is_terminal,  # a log gets a line per epoch from the monitor
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
