"""``epochs.csv``: one row per epoch and phase."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from drr2ct.pipeline.running.distributed import is_main_process, mean_over_processes
from drr2ct.pipeline.running.engines import engine_output
from drr2ct.pipeline.training.numerics import SkipNonFiniteSteps
from drr2ct.transforms.files import replacing

CSV_COLUMNS = ("epoch", "phase", "loss", "psnr", "ssim", "lr", "seconds", "skipped")


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
        self._opened = True
        if not self.path.exists():  # made with the first row: a run that is refused until then leaves none
            return
        with self.path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < first_epoch]
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, CSV_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

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
            writer = csv.DictWriter(file, CSV_COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
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
