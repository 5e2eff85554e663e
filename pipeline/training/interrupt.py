"""Leave a training in good order when a scheduler or the user asks for it: SIGTERM and Ctrl-C.

Python runs a signal's handler between two of its own instructions, so one that raised at once could cut an
optimiser's step in two. Instead the request is noted and met at the next safe point, which is usually the end of the
step. Where none comes within the grace time (a long validation, a stalled reader, a huge volume on a CPU) the training
is left from within the step, which is then repeated on resuming; but never between the backward pass and the end of
a step, where weights change.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from drr2ct.pipeline.running.distributed import is_main_process, world_size

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_RETRY_SECONDS = 0.2


class Interrupted(SystemExit):
    """Ends the process with the status that shells give a signal: 143 for SIGTERM, 130 for Ctrl-C."""


class Interruption:
    """On SIGTERM or Ctrl-C save and leave, within 10 s wherever a step's optimiser and metrics take less than 5 s.

    Attach it to the trainer before handlers that watch for exceptions. :class:`CheckpointHandler` asks it after every
    step and saves; ``save`` is what it leaves here for a way out from within a step.

    Args:
        evaluator: the validation engine, which can be left at any time: the epoch's training is saved before it runs.
        grace: seconds to wait for the end of a step.
    """

    def __init__(self, evaluator: Engine, grace: float = 4.0) -> None:
        self.evaluator = evaluator
        self.grace = grace
        self.requested: int | None = None
        self.save: Callable[[], None] = lambda: None
        self._leavable = False
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer and on the evaluator."""
        trainer.add_event_handler(Events.STARTED, self._install)
        trainer.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._restore)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._safe)
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._unsafe)
        self.evaluator.add_event_handler(Events.STARTED | Events.ITERATION_COMPLETED, self._safe)
        self.evaluator.add_event_handler(Events.COMPLETED, self._unsafe)

    @contextmanager
    def leavable(self) -> Iterator[None]:
        """While something runs at the end of an epoch that may take long and can be repeated."""
        self._safe()
        try:
            yield
        finally:
            self._unsafe()

    def leave(self) -> None:
        """Say so and end the process.

        Raises:
            Interrupted: always.
        """
        number = self.requested or signal.SIGTERM  # none: another process was asked
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if is_main_process():
            print(f"\ndrr2ct: stopped by {name}; the same command goes on from the last checkpoint.", file=sys.stderr)
        raise Interrupted(128 + number)

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the main thread's
        self._process = os.getpid()
        self.requested = None
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._grace_over)

    def _restore(self, *_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        self._leavable = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        # data loading processes inherit this handler; Ctrl-C reaches them too, and they must work on to the step's end
        if os.getpid() == self._process and self.requested is None:
            self.requested = number
            signal.setitimer(signal.ITIMER_REAL, self.grace)

    def _grace_over(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self._leavable:
            self.save()
            self.leave()
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)

    def _safe(self) -> None:
        self._leavable = True
        # of several processes all must leave at the same step, or those that go on wait for the others forever
        if self.requested is not None and world_size() == 1:
            self.save()
            self.leave()

    def _unsafe(self) -> None:
        self._leavable = False
