"""Checkpoints: what a training leaves behind, and everything needed to use or go on with it.

A checkpoint is one file of tensors and plain types (``torch.load(weights_only=True)`` reads it)::

    network, optimizer, lr_scheduler, tensorboard, …    state dicts, to go on
    trainer, scaler                                     step, steps per epoch; of the gradient scaler, with fp16
    epoch_state                                         what gathers within an epoch, unless the epoch is closed
    gradients                                           of an accumulation that is under way
    best                                                best score so far, by metric
    description                                         plain facts, see describe()

The file is a zip archive; the CRC-32 of each of its entries is verified before anything is read from it. It is written
to a temporary name, synced and renamed, so a process that is killed leaves the one before. Weights to be passed on are
safetensors (:func:`write_release`): network and description alone, with a SHA-256 over both.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import os
import pickle
import platform
import subprocess
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.handlers import IgniteMetricHandler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from drr2ct.networks import CascadeConfig, ProgressiveCascade, create_network
from drr2ct.pipeline.distributed import any_process, gather, is_main_process, rank, wait, world_size
from drr2ct.pipeline.faults import explain_fault
from drr2ct.pipeline.handlers import EventLog
from drr2ct.pipeline.identity import ct_fingerprints
from drr2ct.pipeline.interrupt import Interruption
from drr2ct.pipeline.loading import PatientLoader
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import replacing
from drr2ct.transforms.radiograph_intensity import radiograph_statistics
from drr2ct.transforms.validation import InputError, existing_file
from drr2ct.transforms.volume import HU_WINDOW

CHECKPOINT_FORMAT = 1
RELEASE_SUFFIX = ".safetensors"
_PACKAGES = ("drr2ct", "torch", "monai", "pytorch-ignite", "numpy", "nanodrr", "itk-rtk")

logger = logging.getLogger(__name__)


class DamagedCheckpointError(InputError):
    """A checkpoint's file is not what was written."""


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
        datalists: data lists by part; patients' names are kept, and of the training's CTs a hash of parts of the file,
            by which an evaluation knows them under another name.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "name": name,
        "config": network.config.to_dict(),
        "mode": mode,
        "hu_window": list(HU_WINDOW),
        "line_integral_scale": LINE_INTEGRAL_SCALE,
        "patients": {part: [str(item["patient"]) for item in items] for part, items in datalists.items()},
        # read by the process that writes the description, not by every one
        "training_cts": ct_fingerprints(datalists.get("training", [])) if is_main_process() else [],
        "versions": versions(),
    }


def write_checkpoint(path: str | Path, content: Mapping[str, Any], keep: Path | None = None) -> Path:
    """Write, sync and rename; there is never half a checkpoint, and a power cut leaves this one or the one before.

    Args:
        path: of the checkpoint.
        content: tensors and plain types.
        keep: name for the one that is replaced, if it is to stay; at every moment one of the two is complete.

    Raises:
        InputError: if it cannot be written; what was there before stays.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary:
            _write_synced(temporary, content)
            if keep is not None and path.exists():
                path.replace(keep)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise _not_written(path, error) from error
    return path


def _write_synced(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_written(path: Path, error: Exception) -> InputError:
    reason = explain_fault(error) or " ".join(str(error).split())
    return InputError(f"checkpoint {path} could not be written, the one before is intact: {reason}")


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project, or its released weights.

    Raises:
        InputError: if the file is missing, holds code (which is never run), or is not such a checkpoint.
        DamagedCheckpointError: if a checksum does not fit.
    """
    path = existing_file(path, "checkpoint")
    if path.suffix == RELEASE_SUFFIX:
        return _checked(path, _read_release(path, device))
    _verify(path)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"checkpoint {path} holds more than tensors and plain values; it was not loaded.") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise DamagedCheckpointError(f"checkpoint {path} cannot be read; copy it again.") from error
    return _checked(path, content)


def _verify(path: Path) -> None:
    """Compare the archive's CRC-32s (torch itself does not)."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged header can make the reader fail in any way
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"checkpoint {path} cannot be read ({error.strerror}); give a file such as checkpoints/best_psnr.pt."
            ) from error
        raise DamagedCheckpointError(
            f"checkpoint {path} cannot be read and was not loaded; it is truncated, damaged, or no archive as torch "
            "writes them: copy it again."
        ) from error
    if damaged is not None:
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged: the checksum of {damaged} does not fit; copy it again."
        )


def _checked(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or "description" not in content or "network" not in content:
        raise InputError(f"checkpoint {path} was not written by drr2ct; give a file such as checkpoints/best_psnr.pt.")
    found = content["description"].get("format")
    if found != CHECKPOINT_FORMAT:
        raise InputError(f"checkpoint {path} has format {found}; this version reads {CHECKPOINT_FORMAT}.")
    return content


def write_release(checkpoint: str | Path, path: str | Path) -> Path:
    """Write a checkpoint's weights and description, without the state of its training, as safetensors.

    Args:
        checkpoint: of this project.
        path: with the suffix ``.safetensors``.

    Raises:
        InputError: as :func:`read_checkpoint`, or for another suffix, or if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != RELEASE_SUFFIX:
        raise InputError(f"released weights are safetensors; name the file {path.with_suffix(RELEASE_SUFFIX)}.")
    content = read_checkpoint(checkpoint)
    weights = {name: value.contiguous() for name, value in content["network"].items()}
    description = json.dumps(content["description"])
    metadata = {"description": description, "sha256": _digest(weights, description)}
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(save(weights, metadata))  # save_file would let only its owner read it
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    return path


def _read_release(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpointError(f"weights {path} cannot be read ({error}); copy them again.") from error
    if "description" not in metadata:
        raise InputError(f"weights {path} were not written by drr2ct.")
    if _digest(weights, metadata["description"]) != metadata.get("sha256"):
        raise DamagedCheckpointError(f"weights {path} are damaged: the checksum does not fit; copy them again.")
    return {"network": weights, "description": json.loads(metadata["description"])}


def _digest(weights: Mapping[str, Tensor], description: str) -> str:
    digest = hashlib.sha256(description.encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
