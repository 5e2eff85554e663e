"""Checkpoints: what a training leaves behind, and everything needed to use or go on with it.

A checkpoint is one file of tensors and plain types (``torch.load(weights_only=True)`` reads it)::

    network, optimizer, lr_scheduler, tensorboard, …    state dicts, to go on
    trainer, scaler                                     step, steps per epoch; of the gradient scaler, with fp16
    epoch_state                                         what gathers within an epoch, unless the epoch is closed
    gradients                                           of an accumulation that is under way
    best                                                best score so far, by metric
    description                                         plain facts, see description.py

The file is a zip archive; the CRC-32 of each of its entries is verified before anything is read from it. It is written
to a temporary name, synced and renamed, so a process that is killed leaves the one before. Weights to be passed on are
safetensors (:func:`write_release`): network and description alone, with a SHA-256 over both.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drr2ct.pipeline.running.faults import explain_fault
from drr2ct.transforms.files import refuse_to_replace, replacing
from drr2ct.transforms.validation import InputError, existing_file

CHECKPOINT_FORMAT = 1
RELEASE_SUFFIX = ".safetensors"
NO_WEIGHTS = "no network is shipped with this installation; give a checkpoint, such as RUN/checkpoints/best_psnr.pt."


class DamagedCheckpointError(InputError):
    """A checkpoint's file is not what was written."""


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


def as_paths(paths: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """One checkpoint, several or none, as a setting gives them.

    Raises:
        InputError: for anything else, such as a number.
    """
    found = [paths] if isinstance(paths, (str, Path)) else paths or []
    if not isinstance(found, Sequence) or not all(isinstance(path, (str, Path)) for path in found):
        raise InputError(f"{paths!r} is neither a checkpoint's path nor a list of such paths; give one of these.")
    return [Path(path) for path in found]


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


def read_if_there(path: str | Path | None) -> dict[str, Any] | None:
    """A checkpoint's content, or None without the file, so that a bundle without weights can be inspected.

    Raises:
        InputError: as :func:`read_checkpoint`, but for a missing file.
    """
    return read_checkpoint(path) if path is not None and Path(path).exists() else None


def description_of(path: str | Path | None, content: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
        path: of the checkpoint; None if none was given and none is shipped.
        content: of the checkpoint, if it was read already.

    Raises:
        InputError: as :func:`read_checkpoint`, or without a path.
    """
    if path is None:
        raise InputError(NO_WEIGHTS)
    content = read_checkpoint(path) if content is None else content
    description: dict[str, Any] = content["description"]
    return description


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


def write_release(checkpoint: str | Path, path: str | Path, overwrite: bool = False) -> Path:
    """Write a checkpoint's weights and description, without the state of its training, as safetensors.

    Args:
        checkpoint: of this project.
        path: with the suffix ``.safetensors``.
        overwrite: replace a file that is there.

    Raises:
        InputError: as :func:`read_checkpoint`, or for another suffix, or if the file exists or cannot be written.
    """
    path = Path(path)
    if path.suffix != RELEASE_SUFFIX:
        raise InputError(f"released weights are safetensors; name the file {path.with_suffix(RELEASE_SUFFIX)}.")
    refuse_to_replace(path, overwrite, [checkpoint])
    content = read_checkpoint(checkpoint)
    return write_weights(path, content["network"], content["description"])


def write_weights(path: Path, network: Mapping[str, Tensor], description: Mapping[str, Any]) -> Path:
    """Write weights and what is said of them as safetensors, with a SHA-256 over both.

    Raises:
        InputError: if the file cannot be written; what was there before stays.
    """
    weights = {name: value.contiguous() for name, value in network.items()}
    text = json.dumps(description)
    metadata = {"description": text, "sha256": _digest(weights, text)}
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(save(weights, metadata))  # save_file would let only its owner read it
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    return path


def weights_sha256(network: Mapping[str, Tensor]) -> str:
    """By which weights are known in whatever file they are: SHA-256 over names, types, shapes and values."""
    return _digest(network, "")


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
