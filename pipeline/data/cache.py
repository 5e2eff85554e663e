"""Preprocessed samples kept on disk, recomputed when a file or the preprocessing changes, and varied after that.

A sample is one file. Its floating-point tensors are kept in 16 bits, as whole multiples of 1/32767 of each one's
largest magnitude: the error is at most half of that, 0.063 HU for a CT over the HU window (a scanner's own step is
1 HU) and 1.5e-5 of the largest line integral for radiographs. Air, zero in both, stays exact. A CT of 256³ voxels
with two radiographs of 512² pixels takes 33 MiB.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import io
import json
import logging
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.transforms import Randomizable, RandomizableTrait, Transform
from torch import Tensor
from torch.utils.data import Dataset

import drr2ct.transforms
from drr2ct.pipeline.running.faults import disk_is_full
from drr2ct.transforms.files import replacing
from drr2ct.transforms.validation import InputError

CACHE_FORMAT = 1
_LEVELS = 32767
logger = logging.getLogger(__name__)


class CachedDataset(PersistentDataset):
    """MONAI's ``PersistentDataset`` in 16 bits, keyed on what a sample depends on.

    The key is made of the item, the size and modification time of its files, every setting of the deterministic
    transforms, and the code of ``drr2ct.transforms``: MONAI's own key knows neither files nor code. A sample is the
    same whether it was just computed or read. Entries hold tensors and plain types only; a damaged one is computed
    again; writers need not know of each other.

    Args:
        data: data list items.
        transform: whose part up to the first random transform is cached, with the metadata of its tensors.
        cache_dir: folder of the cache.

    Raises:
        InputError: if the folder cannot be written; when a sample is asked for, also if its disk is full.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable[..., Any], cache_dir: str | Path) -> None:
        try:
            super().__init__(data, transform, cache_dir, hash_func=self._key)
        except OSError as error:
            raise InputError(
                f"cache folder {cache_dir} cannot be made ({error.strerror}); set cache_dir to another."
            ) from error
        self.folder = Path(cache_dir)
        steps = []
        for step in self.transform.flatten().transforms:
            if isinstance(step, RandomizableTrait) or not isinstance(step, Transform):
                break
            steps.append(step)
        self._about = {"format": CACHE_FORMAT, "transform": fingerprint(steps), "code": _code()}

    def _key(self, item: Mapping[str, Any]) -> bytes:
        content = json.dumps({**self._about, "item": stamp(item)}, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest().encode()

    def _cachecheck(self, item_transformed: Any) -> Any:
        path = self.folder / f"{self.hash_func(item_transformed).decode()}.pt"
        if (stored := read_entry(path)) is not None:
            return decoded(stored)
        # a copy: transforms may change what they are given, and the item is the key
        stored = encoded(self._pre_transform(copy.deepcopy(item_transformed)))
        self._write(path, stored)
        return decoded(stored)

    def _write(self, path: Path, stored: Any) -> None:
        content = io.BytesIO()  # torch.save hides the reason why a file cannot be written
        torch.save(stored, content)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(content.getbuffer())
        except OSError as error:
            if not disk_is_full(error):
                raise InputError(
                    f"cache folder {self.folder} cannot be written ({error.strerror}); set cache_dir to another."
                ) from error
            size = content.getbuffer().nbytes
            raise InputError(
                f"cache folder {self.folder} is full ({error.strerror}): a sample takes {size / 2**20:.1f} MiB, all "
                f"{len(self.data)} take {size * len(self.data) / 2**30:.2f} GiB; free space, or set cache_dir to "
                "another disk."
            ) from error


class AugmentedDataset(Dataset[dict[str, Any]]):
    """Samples of another data set, varied at random by seed, epoch and index, and as plain tensors.

    :class:`~drr2ct.pipeline.data.loading.SeededSamples` seeds ``transform`` for each sample. So what a sample becomes
    depends on these three numbers alone: not on worker processes, on ranks, or on whether the training was resumed.

    Args:
        dataset: of samples; not changed.
        augmentation: random transforms (MONAI's ``Compose`` of them, or one); None for no variation.
        repeats: so many samples of each in an epoch, which the augmentation tells apart.

    Raises:
        InputError: for an augmentation that cannot be seeded, or less than one sample of each.
    """

    def __init__(self, dataset: Dataset[Any], augmentation: Any | None = None, repeats: int = 1) -> None:
        if augmentation is not None and not isinstance(augmentation, Randomizable):
            raise InputError(
                f"augmentation {type(augmentation).__name__} cannot be seeded; give a random transform of MONAI's kind."
            )
        if repeats < 1:
            raise InputError(f"variations is {repeats}; an epoch needs at least 1 of each patient.")
        self.dataset = dataset
        self.transform: Any = augmentation
        self.repeats = repeats

    def __len__(self) -> int:
        return self.repeats * len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index % len(self.dataset)]  # type: ignore[arg-type]
        if self.transform is not None:
            sample = self.transform(dict(sample))
        # metadata of different files need not stack in a batch, and training has no use for it
        return {key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in sample.items()}


def encoded(value: Any) -> Any:
    """A sample in tensors and plain types, its floating-point tensors in 16 bits with a checksum."""
    if isinstance(value, MetaTensor):
        stored = encoded(value.as_tensor())
        return {**stored, "meta": _plain(value.meta), "applied": _plain(value.applied_operations)}
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            step = float(value.abs().max()) / _LEVELS
            levels = (value / step if step > 0 else value).round().to(torch.int16).contiguous()
            return {"levels": levels, "step": step, "checksum": _checksum(levels)}
        return {"tensor": value}
    if isinstance(value, Mapping):
        return {"entries": {str(key): encoded(entry) for key, entry in value.items()}}
    return {"plain": _plain(value)}


def decoded(stored: Any) -> Any:
    """Inverse of :func:`encoded`; floating-point tensors are float32."""
    if "entries" in stored:
        return {key: decoded(entry) for key, entry in stored["entries"].items()}
    if "plain" in stored:
        return _restored(stored["plain"])
    if "tensor" in stored:
        value = stored["tensor"]
    else:
        # NumPy converts in one pass, into large memory pages: six times as fast as torch on one core
        levels = stored["levels"].numpy()
        value = torch.from_numpy(np.multiply(levels, np.float32(stored["step"]), dtype=np.float32))
    if "meta" not in stored:
        return value
    return MetaTensor(value, meta=_restored(stored["meta"]), applied_operations=_restored(stored["applied"]))


def read_entry(path: Path) -> Any:
    """What :func:`encoded` gave, as the file holds it; None if there is none or (with a warning) a damaged one.

    The file is mapped into memory, not read: decoding takes it from the page cache.
    """
    if not path.exists():
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for entry in stored["entries"].values():
            if "levels" in entry and _checksum(entry["levels"]) != entry["checksum"]:
                raise ValueError("checksum")
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("cache entry %s is damaged; it is computed again", path)
        return None
    return stored


def _checksum(levels: Tensor) -> int:
    return zlib.crc32(levels.reshape(-1).numpy().view(np.uint8).data)


def _plain(value: Any) -> Any:
    """Metadata in what ``torch.load(weights_only=True)`` reads."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry) for entry in value) if type(value) in (list, tuple) else list(value)
    if isinstance(value, np.ndarray):
        return {"__numpy__": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, MetaTensor):
        return value.as_tensor()
    if value is None or isinstance(value, (bool, int, float, str, Tensor, torch.dtype)):
        return value
    return str(value)


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"__numpy__"}:
            return value["__numpy__"].numpy()
        return {key: _restored(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_restored(entry) for entry in value)
    return value


def fingerprint(value: Any) -> Any:
    """What a transform does, in plain types: its class and, through all its parts, its settings."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): fingerprint(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = [fingerprint(entry) for entry in value]
        return sorted(entries, key=str) if isinstance(value, (set, frozenset)) else entries
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, (Path, np.generic, torch.dtype, Enum)):
        return str(value)
    name = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    about = f"{name.__module__}.{name.__qualname__}"
    if name is value or not hasattr(value, "__dict__"):
        return about
    # R is a random state
    return [about, {key: fingerprint(entry) for key, entry in sorted(vars(value).items()) if key != "R"}]


@cache
def _code() -> str:
    """Digest of the code that makes samples."""
    folder = Path(drr2ct.transforms.__file__).parent
    content = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(content + importlib.metadata.version("monai").encode()).hexdigest()


def stamp(value: Any) -> Any:
    """An item with each path joined by its file's size and modification time: what tells a changed file."""
    if isinstance(value, Mapping):
        return {key: stamp(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [stamp(entry) for entry in value]
    if isinstance(value, (str, Path)) and (path := Path(value)).exists():
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [str(path.resolve()), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]
    return value
