"""Training for a stated time instead of a number of epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from ignite.engine import Engine, Events

from drr2ct.transforms.validation import InputError


def annealed(rate: float, done: float, eta_min: float = 1e-6, warm_up: float = 0.02) -> float:
    """The learning rate after a part ``done`` (0 to 1) of a training: a linear rise, a cosine down to ``eta_min``."""
    cosine = eta_min + (rate - eta_min) * (1 + math.cos(math.pi * done)) / 2
    return cosine * min(1.0, max(done, 1e-3) / warm_up) if warm_up else cosine


class TimeBudget:
    """Train for a stated time: anneal the learning rate by a cosine over it, and stop when it is used up.

    For comparisons at equal time, and for demonstrations. Use it instead of a learning rate scheduler. The epoch in
    which the time ends is closed where it is, so that the last weights are validated; with more ``seconds``, a resumed
    training goes on within it.

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
        self._ended = False

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        trainer.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        trainer.add_event_handler(Events.TERMINATE, self._terminated)
        trainer.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def state_dict(self) -> dict[str, float]:
        """Seconds used, for checkpoints."""
        return {"used": self.used}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint."""
        self.used = state["used"]

    def _epoch_started(self, trainer: Engine) -> None:
        if self.used >= self.seconds:  # a finished training is started again
            trainer.terminate()

    def _iteration_started(self) -> None:
        self._began = time.monotonic()
        done = min(1.0, self.used / self.seconds)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = annealed(rate, done, self.eta_min, self.warm_up)

    def _iteration_completed(self, trainer: Engine) -> None:
        self.used += time.monotonic() - self._began
        if self.used >= self.seconds:
            self._ended = True
            trainer.terminate()

    def _terminated(self, trainer: Engine) -> None:
        if self._ended:  # a termination leaves out what belongs to an epoch's end, even after its last step
            self._ended = False
            trainer.fire_event(Events.EPOCH_COMPLETED)
