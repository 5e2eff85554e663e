"""What is done about NaN and infinity: a bad step is skipped and named, a bad prediction counts as bad."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from safetensors.torch import save_file
from torch import Tensor

from drr2ct.pipeline.running.distributed import any_process
from drr2ct.pipeline.running.engines import batch_patients, engine_output
from drr2ct.transforms.files import replacing
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)


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
