"""What of a training goes into a checkpoint, and back: weights, optimiser, schedule, scaler, an epoch under way."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.handlers import IgniteMetricHandler

from drr2ct.pipeline.checkpoints.networks import load_weights
from drr2ct.pipeline.running.distributed import gather, rank, world_size
from drr2ct.pipeline.training.tensorboard import EventLog
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


class TrainingState:
    """The objects of a training that have a state, together with the trainer, its scaler and its gradients.

    Args:
        objects: by name; ``network`` is needed.
        of_epoch: objects whose state starts anew with every epoch, by name.
    """

    def __init__(self, objects: Mapping[str, Any], of_epoch: Mapping[str, Any]) -> None:
        if "network" not in objects:
            raise InputError("what is saved of a training must hold its network; add it to the configuration's saved.")
        self.objects = dict(objects)
        self.of_epoch = dict(of_epoch)
        self._to_restore: Mapping[str, Any] | None = None

    @property
    def epoch_is_open(self) -> bool:
        """What was loaded lies within an epoch, or at its end before that was noted."""
        return self._to_restore is not None

    def begin_anew(self) -> None:
        """There is nothing to go on from: what an earlier run logged here is dropped."""
        for item in self.objects.values():
            if isinstance(item, EventLog):
                item.load_state_dict({})

    def content(
        self, trainer: SupervisedTrainer, done: int, epoch_state: list[dict[str, Any]] | None
    ) -> dict[str, Any]:
        """The states by name, after so many complete steps; ``epoch_state`` is what :meth:`gathered` gave, or None."""
        content = {name: item.state_dict() for name, item in self.objects.items()}
        length = trainer.state.epoch_length
        content["trainer"] = {"iteration": done, "epoch_length": length, "max_epochs": trainer.state.max_epochs}
        if trainer.scaler is not None:
            content["scaler"] = trainer.scaler.state_dict()
        if accumulating(trainer, done):
            gradients = enumerate(p.grad for p in _parameters(trainer))
            content["gradients"] = {place: gradient for place, gradient in gradients if gradient is not None}
        return {**content, "epoch_state": epoch_state}

    def gathered(self, within_epoch: bool) -> list[dict[str, Any]] | None:
        """What gathers within an epoch, of every process; None where the epoch is closed. All processes must call."""
        for item in self.objects.values():
            if hasattr(item, "consolidate_state_dict"):  # an optimiser whose state is spread over the processes
                item.consolidate_state_dict(to=0)
        if not within_epoch:
            return None
        return gather({name: item.state_dict() for name, item in self.of_epoch.items()})

    def check(self, trainer: SupervisedTrainer, path: Path, content: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that this training cannot go on from.

        Raises:
            InputError: if states are missing or of another optimiser, or it has trained all epochs already.
        """
        missing = [name for name in ("trainer", "best", *self.objects) if name not in content]
        if missing:
            raise InputError(
                f"checkpoint {path} holds no state of {', '.join(missing)}, so this configuration cannot go on from "
                "it; choose another output_dir."
            )
        for name, item in self.objects.items():
            if isinstance(item, torch.optim.Optimizer):
                theirs, ours = content[name]["param_groups"][0], item.param_groups[0]
                if lacking := sorted(ours.keys() - theirs.keys()):
                    raise InputError(
                        f"checkpoint {path} was trained by another optimiser, which has no {', '.join(lacking)}: set "
                        f"{name}#_target_ to that one (torch.optim.AdamW?) or choose another output_dir."
                    )
        state = content["trainer"]
        finished = state["iteration"] // state["epoch_length"]
        if content.get("epoch_state") is None and finished >= (trainer.state.max_epochs or 0):
            raise InputError(
                f"checkpoint {path} has already trained {finished} epochs of {trainer.state.max_epochs}; "
                "raise max_epochs to go on, or choose another output_dir."
            )

    def load(self, trainer: SupervisedTrainer, path: Path, content: Mapping[str, Any]) -> int:
        """Put all states back but those of an epoch under way, see :meth:`restore_epoch`.

        Returns:
            Steps made.
        """
        load_weights(self.objects["network"], path, content)
        horizons = {name: item.T_max for name, item in self.objects.items() if hasattr(item, "T_max")}
        for name, item in self.objects.items():
            if name != "network":
                item.load_state_dict(content[name])
        for name, horizon in horizons.items():
            if self.objects[name].T_max != horizon:
                _change_horizon(self.objects[name], horizon)
        if trainer.scaler is not None and "scaler" in content:
            trainer.scaler.load_state_dict(content["scaler"])
        for place, gradient in content.get("gradients", {}).items():
            _parameters(trainer)[place].grad = gradient.to(trainer.state.device)
        return self._position(trainer, path, content)

    def _position(self, trainer: SupervisedTrainer, path: Path, content: Mapping[str, Any]) -> int:
        """Steps made; where their number per epoch has changed, the epoch that was under way begins again."""
        step, length = content["trainer"]["iteration"], content["trainer"]["epoch_length"]
        now = trainer.state.epoch_length
        states = content.get("epoch_state")
        if now == length and (states is None or len(states) == world_size()):
            self._to_restore = None if states is None else states[rank()]
            return step
        epoch = step // length if states is None else (step - 1) // length
        logger.warning(
            "%s was written with %d steps per epoch, now there are %d: it goes on from the start of epoch %d.",
            path, length, now, epoch + 1,
        )  # fmt: skip
        return epoch * now

    def restore_epoch(self) -> None:
        """Put back what had gathered within the epoch under way, once."""
        if self._to_restore is not None:
            for name, item in self.of_epoch.items():
                item.load_state_dict(self._to_restore[name])
            self._to_restore = None


def accumulating(trainer: SupervisedTrainer, done: int) -> bool:
    """The last of so many complete steps was not the last of an accumulation of gradients."""
    return done % trainer.state.epoch_length % trainer.accumulation_steps != 0


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
