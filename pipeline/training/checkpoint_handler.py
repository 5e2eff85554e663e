"""When a training is saved, and which checkpoint it goes on from."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch.utils.data import Dataset

from drr2ct.pipeline.checkpoints.files import DamagedCheckpointError, read_checkpoint, write_checkpoint
from drr2ct.pipeline.data.loading import PatientLoader
from drr2ct.pipeline.running.distributed import any_process, is_main_process, wait, world_size
from drr2ct.pipeline.training.interrupt import Interruption
from drr2ct.pipeline.training.reprojection import NoteReprojection
from drr2ct.pipeline.training.state import TrainingState, accumulating
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from drr2ct.transforms.validation import InputError

LAST = "last.pt"
"""What a resumed training goes on from."""
PREVIOUS = "previous.pt"
"""The one before, for when the last is damaged."""

logger = logging.getLogger(__name__)


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
        description: see :func:`~drr2ct.pipeline.checkpoints.description.describe`.
        evaluator: whose metrics are compared.
        best: metric name → ``max`` or ``min``.
        resume: go on from ``last.pt`` if it is there.
        epoch_state: objects with a state that starts anew with every epoch.
        interruption: says when to save and leave.
        save_interval: seconds between checkpoints within an epoch.
        training_set: whose radiographs the description is to hold the statistics of, taken at the end of an epoch.
        reprojection: collects what the description is to hold of the evaluator's reprojection errors.
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
        reprojection: NoteReprojection | None = None,
    ) -> None:
        if unknown := set(best.values()) - {"min", "max"}:
            raise InputError(f"best checkpoints are chosen by 'min' or 'max', not {', '.join(map(repr, unknown))}.")
        self.folder = Path(folder)
        self.state = TrainingState(save_dict, epoch_state or {})
        self.description = dict(description)
        self.evaluator = evaluator
        self.directions = dict(best)
        self.resume = resume
        self.interruption = interruption
        self.save_interval = save_interval
        self.training_set = training_set
        self.reprojection = reprojection
        self.best: dict[str, float] = {}
        self._validated: int | None = None
        self._done = 0  # steps that are complete; the trainer counts one that has begun
        self._saved = 0
        self._saved_at = 0.0

    def attach(self, trainer: SupervisedTrainer) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.STARTED, self._started)
        trainer.add_event_handler(Events.EPOCH_STARTED, self.state.restore_epoch)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.add_event_handler(Events.COMPLETED, self._completed)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self._failed)
        self.evaluator.add_event_handler(Events.COMPLETED, self._evaluated, trainer)
        if self.reprojection is not None:
            self.reprojection.attach(self.evaluator)
        if self.interruption is not None:
            self.interruption.save = lambda: self._save_within_step(trainer)

    def _evaluated(self, trainer: Engine) -> None:
        self._validated = trainer.state.iteration

    def _started(self, trainer: SupervisedTrainer) -> None:
        self._saved_at = time.monotonic()
        found = newest_checkpoint(self.folder) if self.resume else None
        if found is None:
            self.state.begin_anew()
            return
        path, content = found
        self.state.check(trainer, path, content)
        self._take_over(path, content)
        step, length = self.state.load(trainer, path, content), trainer.state.epoch_length
        trainer.state.iteration, trainer.state.epoch = step, step // length
        self._done = self._saved = step
        logger.info("resumed from %s: epoch %d, step %d", path, trainer.state.epoch, step)
        if not self.state.epoch_is_open:
            return
        if within := step % length:
            if not isinstance(trainer.data_loader, PatientLoader):
                raise InputError(f"checkpoint {path} lies within an epoch, which only a PatientLoader can go on with.")
            trainer.data_loader.skip_batches(within)
        else:  # all steps of the epoch were made, but what belongs to its end was not
            self.state.restore_epoch()
            trainer.fire_event(Events.EPOCH_COMPLETED)

    def _take_over(self, path: Path, content: Mapping[str, Any]) -> None:
        """Best scores, the radiographs' statistics, the reprojection errors, and whom the weights have learned from."""
        earlier = content["description"]
        before, now = (about.get("patients", {}).get("training", []) for about in (earlier, self.description))
        if before != now:
            more = [patient for patient in now if patient not in before]
            logger.warning(
                "The training patients are not those of %s: it goes on with other data (%d that are new); the %d from "
                "before stay on record as trained on.",
                path,
                len(more),
                len(before),
            )
            patients = {**self.description.get("patients", {}), "training": [*before, *more]}
            cts = {*earlier.get("training_cts", []), *self.description.get("training_cts", [])}
            self.description |= {"patients": patients, "training_cts": sorted(cts)}
        self.best = dict(content["best"])
        for name in ("radiographs", "reprojection"):
            if name in content["description"]:
                self.description[name] = content["description"][name]

    def _save(self, trainer: SupervisedTrainer, within_epoch: bool, improved: Sequence[str] = ()) -> None:
        """Write ``last.pt``; what it was becomes ``previous.pt``."""
        # an epoch that a time budget closed early goes on if it is resumed
        within_epoch |= self._done % trainer.state.epoch_length != 0
        epoch_state = self.state.gathered(within_epoch)
        self._saved, self._saved_at = self._done, time.monotonic()
        if not is_main_process():
            return
        length = trainer.state.epoch_length
        progress = {
            "epoch": (self._done - 1) // length + 1 if within_epoch else self._done // length,
            "iteration": self._done,
            "metrics": {name: float(value) for name, value in self.evaluator.state.metrics.items()},
        }
        content = {
            **self.state.content(trainer, self._done, epoch_state),
            "best": dict(self.best),
            "description": {**self.description, **progress},
        }
        for name in improved:
            write_checkpoint(self.folder / f"best_{name}.pt", content)
        write_checkpoint(self.folder / LAST, content, keep=self.folder / PREVIOUS)

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
        if self._saved != self._done and not accumulating(trainer, self._done) and world_size() == 1:
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
        if self.reprojection is not None and (reference := self.reprojection.reference()) is not None:
            self.description["reprojection"] = reference
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


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint of a run, or the one before if it is damaged; None if there is none.

    Every process must call it: the main one clears away what a killed one left, and a damaged last checkpoint.

    Raises:
        InputError: if there are checkpoints, and none can be read.
    """
    last = folder / LAST
    if is_main_process():
        for leftover in folder.glob(".*.pt"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
    wait()
    damage: InputError | None = None
    for path in (last, folder / PREVIOUS):
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
                last.replace(last.with_suffix(".damaged"))
        return path, content
    if damage is not None:
        raise InputError(
            f"no checkpoint in {folder} can be read: {damage} Start in another output_dir, or with resume "
            "false to begin again here."
        )
    return None
