"""The progress bar of a training."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine, Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from drr2ct.pipeline.running.engines import engine_output
from drr2ct.pipeline.training.time_budget import TimeBudget


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
