"""Checkpoints: what a training leaves behind, and everything needed to use or go on with it.

A checkpoint is one file of tensors and plain types (``torch.load(weights_only=True)`` reads it)::

    network, optimizer, lr_scheduler, trainer, random_state    state dicts, to go on
    best                                                       best score so far, by metric
    description                                                plain facts, see describe()
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
import pickle
import platform
import random
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from drr2ct.networks import CascadeConfig, ProgressiveCascade, create_network
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import replacing
from drr2ct.transforms.validation import InputError, existing_file
from drr2ct.transforms.volume import HU_WINDOW

CHECKPOINT_FORMAT = 1
_PACKAGES = ("drr2ct", "torch", "monai", "pytorch-ignite", "numpy", "nanodrr", "itk-rtk")

logger = logging.getLogger(__name__)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, and the git revision if run from a checkout."""
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # installed from a wheel
        found["git"] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return found


def describe(
    network: ProgressiveCascade, name: str, mode: str, datalists: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """What a user of the weights must know, in plain types.

    Args:
        network: its configuration holds the geometry.
        name: of the configuration, as in ``list_networks``.
        mode: how CTs were put on the grid, ``cube`` or ``resize``.
        datalists: data lists by part; only patients' names are kept.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "name": name,
        "config": network.config.to_dict(),
        "mode": mode,
        "hu_window": list(HU_WINDOW),
        "line_integral_scale": LINE_INTEGRAL_SCALE,
        "patients": {part: [str(item["patient"]) for item in items] for part, items in datalists.items()},
        "versions": versions(),
    }


def write_checkpoint(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write and flush to the disk; there is never half a checkpoint."""
    path = Path(path)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    return path


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project.

    Raises:
        InputError: if the file is missing, damaged, holds code (which is never run), or is not such a checkpoint.
    """
    path = existing_file(path, "checkpoint")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} holds more than tensors and plain values, or is damaged; it was not loaded."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {path} cannot be read; it may be truncated: copy it again.") from error
    if not isinstance(content, dict) or "description" not in content or "network" not in content:
        raise InputError(f"checkpoint {path} was not written by drr2ct; give a file such as checkpoints/best_psnr.pt.")
    found = content["description"].get("format")
    if found != CHECKPOINT_FORMAT:
        raise InputError(f"checkpoint {path} has format {found}; this version reads {CHECKPOINT_FORMAT}.")
    return content


def network_of(path: str | Path, name: str, **overrides: Any) -> ProgressiveCascade:
    """The network that a checkpoint's weights are for, still with random weights (see :func:`load_weights`).

    Args:
        path: of the checkpoint. Without one, the network of that name is built, so that a bundle without weights can
            be inspected.
        name: one of ``list_networks``.
        **overrides: of its configuration.

    Raises:
        InputError: as :func:`read_checkpoint`.
    """
    if not Path(path).exists():
        return create_network(name, **overrides)
    return ProgressiveCascade(CascadeConfig.from_dict(read_checkpoint(path)["description"]["config"]))


def load_network(path: str | Path, device: torch.device | str = "cpu") -> ProgressiveCascade:
    """The network of a checkpoint with its weights, in evaluation mode.

    Raises:
        InputError: as :func:`read_checkpoint`, or if the weights do not fit the configuration beside them.
    """
    content = read_checkpoint(path, device)
    network = ProgressiveCascade(CascadeConfig.from_dict(content["description"]["config"])).to(device)
    load_weights(network, path, content)
    return network.eval()


def load_weights(network: torch.nn.Module, path: str | Path, content: Mapping[str, Any] | None = None) -> None:
    """Put a checkpoint's weights into a network of the same configuration.

    Args:
        network: of the configuration that the checkpoint describes.
        path: of the checkpoint.
        content: of the checkpoint, if it was read already.

    Raises:
        InputError: as :func:`read_checkpoint`, or if the checkpoint is of another network.
    """
    content = read_checkpoint(path) if content is None else content
    try:
        network.load_state_dict(content["network"])
    except RuntimeError as error:
        name = content["description"].get("name")
        raise InputError(
            f"checkpoint {path} is of another network ({name}); use the network and overrides it was trained with."
        ) from error


class RandomState:
    """State of the random number generators of Python, NumPy and torch, as tensors and plain types."""

    def state_dict(self) -> dict[str, Any]:
        """The generators' present states."""
        version, internal, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state()
        return {
            "python": [version, list(internal), gauss],
            "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators."""
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class CheckpointHandler:
    """Save the last state after every epoch, and the best by each metric after every validation; resume.

    Files: ``last.pt`` and ``best_<metric>.pt``. Attach to the trainer after the handlers that validate and that step
    the learning rate, so that what they change is in the file.

    Args:
        folder: where to.
        save_dict: objects with a state, by name; ``network`` is needed. The trainer and the random state are added.
        description: see :func:`describe`.
        evaluator: whose metrics are compared.
        best: metric name → ``max`` or ``min``.
        resume: go on from ``last.pt`` if it is there.
    """

    def __init__(
        self,
        folder: str | Path,
        save_dict: Mapping[str, Any],
        description: Mapping[str, Any],
        evaluator: Engine,
        best: Mapping[str, str],
        resume: bool = True,
    ) -> None:
        if unknown := set(best.values()) - {"min", "max"}:
            raise InputError(f"best checkpoints are chosen by 'min' or 'max', not {', '.join(map(repr, unknown))}.")
        self.folder = Path(folder)
        self.save_dict = {**save_dict, "random_state": RandomState()}
        self.description = dict(description)
        self.evaluator = evaluator
        self.directions = dict(best)
        self.resume = resume
        self.best: dict[str, float] = {}
        self._validated: int | None = None
        self._saved: int | None = None

    @property
    def last(self) -> Path:
        """The file that a resumed training goes on from."""
        return self.folder / "last.pt"

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer and on the evaluator."""
        self.save_dict["trainer"] = trainer
        trainer.add_event_handler(Events.STARTED, self._started)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.add_event_handler(Events.COMPLETED, self._completed)
        self.evaluator.add_event_handler(Events.COMPLETED, self._evaluated(trainer))

    def _evaluated(self, trainer: Engine) -> Callable[[], None]:
        def note() -> None:
            self._validated = trainer.state.iteration

        return note

    def _started(self, trainer: Engine) -> None:
        if not (self.resume and self.last.exists()):
            return
        content = read_checkpoint(self.last)
        load_weights(self.save_dict["network"], self.last, content)
        max_epochs = trainer.state.max_epochs
        others = {name: item for name, item in self.save_dict.items() if name != "network"}
        Checkpoint.load_objects(others, content)
        self.best = dict(content["best"])
        if trainer.state.epoch >= (max_epochs or 0):
            raise InputError(
                f"checkpoint {self.last} has already trained {trainer.state.epoch} epochs of {max_epochs}; "
                "raise max_epochs to go on, or choose another output_dir."
            )
        trainer.state.max_epochs = max_epochs
        logger.info("resumed from %s: epoch %d", self.last, trainer.state.epoch)

    def _content(self, trainer: Engine) -> dict[str, Any]:
        metrics = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        progress = {"epoch": trainer.state.epoch, "iteration": trainer.state.iteration, "metrics": metrics}
        states = {name: item.state_dict() for name, item in self.save_dict.items()}
        return {**states, "best": dict(self.best), "description": {**self.description, **progress}}

    def _epoch_completed(self, trainer: Engine) -> None:
        improved = []
        if self._validated == trainer.state.iteration:
            for name, direction in self.directions.items():
                value = float(self.evaluator.state.metrics[name])
                previous = self.best.get(name)
                if previous is None or (value > previous if direction == "max" else value < previous):
                    self.best[name] = value
                    improved.append(name)
        content = self._content(trainer)
        for name in improved:
            write_checkpoint(self.folder / f"best_{name}.pt", content)
        write_checkpoint(self.last, content)
        self._saved = trainer.state.iteration

    def _completed(self, trainer: Engine) -> None:
        if self._saved != trainer.state.iteration:  # stopped within an epoch
            write_checkpoint(self.last, self._content(trainer))
