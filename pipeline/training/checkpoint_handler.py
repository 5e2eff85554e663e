"""When a training is saved, and how it goes on from there."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import IgniteMetricHandler
from torch.utils.data import Dataset

from drr2ct.pipeline.checkpoints.checkpoint import (
    DamagedCheckpointError,
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from drr2ct.pipeline.data.loading import PatientLoader
from drr2ct.pipeline.running.distributed import any_process, gather, is_main_process, rank, wait, world_size
from drr2ct.pipeline.training.handlers import EventLog
from drr2ct.pipeline.training.interrupt import Interruption
from drr2ct.transforms.radiograph_intensity import radiograph_statistics
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)


class MetricBuffers:
    """What the metrics of an engine have gathered so far in this epoch, as a state.

    Args:
        groups: metrics by name, as MONAI's engines take them.
    """

    def __init__(self, groups: Sequence[Mapping[str, IgniteMetricHandler]]) -> None:
        self.metrics = {name: metric.metric_fn for group in groups for name, metric in group.items()}

    def state_dict(self) -> dict[str, Any]:
        """Values of this process, one row per sample; ``get_buffer`` would gather those of all processes."""
        buffers = {name: metric._buffers for name, metric in self.metrics.items()}
        return {name: [torch.stack(b) for b in found] for name, found in buffers.items() if found is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        for name, metric in self.metrics.items():
            metric.reset()
            if name in state:
                metric.extend(*state[name])


class CheckpointHandler:
    """Save and resume, so that a resumed training goes on as if it had not been interrupted.

    ``last.pt`` is written after every epoch, before its validation too, and every ``save_interval`` seconds within it;
    the one before stays as ``previous.pt``. ``best_<metric>.pt`` is written after a validation that improves it.
    Attach it last of all the trainer's handlers, so that what they change is in the file.

    On resuming, epoch and step, weights, optimiser, schedule and scaler are those of the checkpoint, while the
    schedule's length is the configuration's: with more epochs the rate goes on along the longer cosine.

    Args:
        folder: where to.
        save_dict: objects with a state, by name; ``network`` is needed. The trainer and its scaler are added.
        description: see :func:`describe`.
        evaluator: whose metrics are compared.
        best: metric name → ``max`` or ``min``.
        resume: go on from ``last.pt`` if it is there.
        epoch_state: objects with a state that starts anew with every epoch.
        interruption: says when to save and leave.
        save_interval: seconds between checkpoints within an epoch.
        training_set: whose radiographs the description is to hold the statistics of, taken at the end of an epoch.
    """

    def __init__(
        self,
        folder: str | Path,
        save_dict: Mapping[str, Any],
        description: Mapping[str, Any],
        evaluator: Engine,
        best: Mapping[str, str],
        resume: bool = True,
        epoch_state: Mapping[str, Any] | None = None,
        interruption: Interruption | None = None,
        save_interval: float = 300.0,
        training_set: Dataset | None = None,
    ) -> None:
        if unknown := set(best.values()) - {"min", "max"}:
            raise InputError(f"best checkpoints are chosen by 'min' or 'max', not {', '.join(map(repr, unknown))}.")
        self.folder = Path(folder)
        self.save_dict = dict(save_dict)
        self.description = dict(description)
        self.evaluator = evaluator
        self.directions = dict(best)
        self.resume = resume
        self.epoch_state = dict(epoch_state or {})
        self.interruption = interruption
        self.save_interval = save_interval
        self.training_set = training_set
        self.best: dict[str, float] = {}
        self._validated: int | None = None
        self._done = 0  # steps that are complete; the trainer counts one that has begun
        self._saved = 0
        self._saved_at = 0.0
        self._to_restore: Mapping[str, Any] | None = None

    @property
    def last(self) -> Path:
        """The file that a resumed training goes on from."""
        return self.folder / "last.pt"

    @property
    def previous(self) -> Path:
        """The one before, for when the last is damaged."""
        return self.folder / "previous.pt"

    def attach(self, trainer: SupervisedTrainer) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.STARTED, self._started)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._restore_epoch_state)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.add_event_handler(Events.COMPLETED, self._completed)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self._failed)
        self.evaluator.add_event_handler(Events.COMPLETED, self._evaluated(trainer))
        if self.interruption is not None:
            self.interruption.save = lambda: self._save_within_step(trainer)

    def _evaluated(self, trainer: Engine) -> Callable[[], None]:
        def note() -> None:
            self._validated = trainer.state.iteration

        return note

    # resuming

    def _started(self, trainer: SupervisedTrainer) -> None:
        self._saved_at = time.monotonic()
        found = self._newest() if self.resume else None
        if found is None:
            for item in self.save_dict.values():
                if isinstance(item, EventLog):
                    item.load_state_dict({})  # nothing of a run that left no checkpoint, or is not gone on with
            return
        path, content = found
        self._check(trainer, path, content)
        self._load(trainer, path, content)
        step, length = self._position(trainer, path, content)
        trainer.state.iteration, trainer.state.epoch = step, step // length
        self._done = self._saved = step
        logger.info("resumed from %s: epoch %d, step %d", path, trainer.state.epoch, step)
        if self._to_restore is None:
            return
        if within := step % length:
            if not isinstance(trainer.data_loader, PatientLoader):
                raise InputError(f"checkpoint {path} lies within an epoch, which only a PatientLoader can go on with.")
            trainer.data_loader.skip_batches(within)
        else:  # all steps of the epoch were made, but what belongs to its end was not
            self._restore_epoch_state()
            trainer.fire_event(Events.EPOCH_COMPLETED)

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The last checkpoint, or the one before if it is damaged; None if there is none."""
        if is_main_process():
            for leftover in self.folder.glob(".*.pt"):  # of a process that was killed while writing
                leftover.unlink(missing_ok=True)
        wait()
        damage: InputError | None = None
        for path in (self.last, self.previous):
            if not path.exists():
                continue
            try:
                content = read_checkpoint(path)
            except DamagedCheckpointError as error:
                damage = error
                continue
            if damage is not None:
                logger.warning("%s Going on from the one before, %s.", damage, path.name)
                wait()
                if is_main_process():  # else it would take the good one's place when the next is written
                    self.last.replace(self.last.with_suffix(".damaged"))
            return path, content
        if damage is not None:
            raise InputError(
                f"no checkpoint in {self.folder} can be read: {damage} Start in another output_dir, or with resume "
                "false to begin again here."
            )
        return None

    def _check(self, trainer: SupervisedTrainer, path: Path, content: Mapping[str, Any]) -> None:
        missing = [name for name in ("trainer", "best", *self.save_dict) if name not in content]
        if missing:
            raise InputError(
                f"checkpoint {path} holds no state of {', '.join(missing)}, so this configuration cannot go on from "
                "it; choose another output_dir."
            )
        state = content["trainer"]
        finished = state["iteration"] // state["epoch_length"]
        if content.get("epoch_state") is None and finished >= (trainer.state.max_epochs or 0):
            raise InputError(
                f"checkpoint {path} has already trained {finished} epochs of {trainer.state.max_epochs}; "
                "raise max_epochs to go on, or choose another output_dir."
            )
        before, now = (
            about.get("patients", {}).get("training") for about in (content["description"], self.description)
        )
        if before != now:
            logger.warning("The training patients are not those of %s: it goes on, but with other data.", path)

    def _load(self, trainer: SupervisedTrainer, path: Path, content: Mapping[str, Any]) -> None:
        load_weights(self.save_dict["network"], path, content)
        horizons = {name: item.T_max for name, item in self.save_dict.items() if hasattr(item, "T_max")}
        for name, item in self.save_dict.items():
            if name != "network":
                item.load_state_dict(content[name])
        for name, horizon in horizons.items():
            if self.save_dict[name].T_max != horizon:
                _change_horizon(self.save_dict[name], horizon)
        if trainer.scaler is not None and "scaler" in content:
            trainer.scaler.load_state_dict(content["scaler"])
        for place, gradient in content.get("gradients", {}).items():
            _parameters(trainer)[place].grad = gradient.to(trainer.state.device)
        self.best = dict(content["best"])
        if "radiographs" in content["description"]:
            self.description["radiographs"] = content["description"]["radiographs"]

    def _position(self, trainer: SupervisedTrainer, path: Path, content: Mapping[str, Any]) -> tuple[int, int]:
        """Steps made and steps per epoch; where the latter has changed, the epoch that was under way begins again."""
        step, length = content["trainer"]["iteration"], content["trainer"]["epoch_length"]
        now = trainer.state.epoch_length
        states = content.get("epoch_state")
        if now == length and (states is None or len(states) == world_size()):
            self._to_restore = None if states is None else states[rank()]
            return step, length
        epoch = step // length if states is None else (step - 1) // length
        logger.warning(
            "%s was written with %d steps per epoch, now there are %d: it goes on from the start of epoch %d.",
            path, length, now, epoch + 1,
        )  # fmt: skip
        return epoch * now, now

    def _restore_epoch_state(self) -> None:
        if self._to_restore is not None:
            for name, item in self.epoch_state.items():
                item.load_state_dict(self._to_restore[name])
            self._to_restore = None

    # saving

    def _save(self, trainer: SupervisedTrainer, within_epoch: bool, improved: Sequence[str] = ()) -> None:
        """Write ``last.pt``; what it was becomes ``previous.pt``."""
        for item in self.save_dict.values():
            if hasattr(item, "consolidate_state_dict"):  # an optimiser whose state is spread over the processes
                item.consolidate_state_dict(to=0)
        gathering = {name: item.state_dict() for name, item in self.epoch_state.items()} if within_epoch else {}
        epoch_state = gather(gathering) if within_epoch else None
        self._saved, self._saved_at = self._done, time.monotonic()
        if not is_main_process():
            return
        content = self._content(trainer, epoch_state)
        for name in improved:
            write_checkpoint(self.folder / f"best_{name}.pt", content)
        write_checkpoint(self.last, content, keep=self.previous)

    def _content(self, trainer: SupervisedTrainer, epoch_state: list[dict[str, Any]] | None) -> dict[str, Any]:
        metrics = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        length = trainer.state.epoch_length
        epoch = self._done // length if epoch_state is None else (self._done - 1) // length + 1
        progress = {"epoch": epoch, "iteration": self._done, "metrics": metrics}
        content = {name: item.state_dict() for name, item in self.save_dict.items()}
        content["trainer"] = {"iteration": self._done, "epoch_length": length, "max_epochs": trainer.state.max_epochs}
        if trainer.scaler is not None:
            content["scaler"] = trainer.scaler.state_dict()
        if self._accumulating(trainer):
            gradients = enumerate(p.grad for p in _parameters(trainer))
            content["gradients"] = {place: gradient for place, gradient in gradients if gradient is not None}
        return {
            **content,
            "epoch_state": epoch_state,
            "best": dict(self.best),
            "description": {**self.description, **progress},
        }

    def _accumulating(self, trainer: SupervisedTrainer) -> bool:
        """The last complete step was not the last of an accumulation."""
        within = self._done % trainer.state.epoch_length
        return within % trainer.accumulation_steps != 0

    def _iteration_completed(self, trainer: SupervisedTrainer) -> None:
        self._done = trainer.state.iteration
        leaving = self.interruption is not None and self.interruption.requested is not None
        due = time.monotonic() - self._saved_at >= self.save_interval
        wanted = any_process(leaving or due)
        if wanted or self._done % trainer.state.epoch_length == 0:
            self._save(trainer, within_epoch=True)
        if wanted and any_process(leaving) and self.interruption is not None:
            self.interruption.leave()

    def _save_within_step(self, trainer: SupervisedTrainer) -> None:
        """Save what the last complete step left, if nothing of it has been changed since."""
        if self._saved != self._done and not self._accumulating(trainer) and world_size() == 1:
            self._save(trainer, within_epoch=True)

    def _epoch_completed(self, trainer: SupervisedTrainer) -> None:
        improved = []
        if self._validated == trainer.state.iteration:
            for name, direction in self.directions.items():
                value = float(self.evaluator.state.metrics[name])
                previous = self.best.get(name)
                better = previous is None or (value > previous if direction == "max" else value < previous)
                if better and math.isfinite(value):
                    self.best[name] = value
                    improved.append(name)
        self._describe_radiographs()
        self._save(trainer, within_epoch=False, improved=improved)

    def _describe_radiographs(self) -> None:
        if self.training_set is None or "radiographs" in self.description or not is_main_process():
            return
        try:
            with nullcontext() if self.interruption is None else self.interruption.leavable():
                self.description["radiographs"] = radiograph_statistics(self.training_set)
        except Exception as error:  # a patient that the training skips
            logger.warning("What the radiographs look like is not noted in the checkpoints (%s).", error)
            self.training_set = None

    def _completed(self, trainer: SupervisedTrainer) -> None:
        if self._saved != self._done:  # stopped within an epoch
            self._save(trainer, within_epoch=True)

    def _failed(self, error: BaseException) -> None:
        raise error  # ignite swallows an exception that a handler has seen


def _parameters(trainer: SupervisedTrainer) -> list[torch.nn.Parameter]:
    return [p for group in trainer.optimizer.param_groups for p in group["params"]]


def _change_horizon(scheduler: Any, horizon: int) -> None:
    """Go on along the cosine of another length, from where the scheduler's count of epochs is on it."""
    scheduler.T_max = horizon
    fall = (1 + math.cos(math.pi * scheduler.last_epoch / horizon)) / 2
    rates = [scheduler.eta_min + (base - scheduler.eta_min) * fall for base in scheduler.base_lrs]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
    logger.warning("The schedule now lasts %d epochs: the learning rate goes on at %.3g.", horizon, rates[0])
