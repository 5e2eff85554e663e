"""Preprocessed samples kept on disk, and recomputed when a file or the preprocessing changes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import PersistentDataset

from drr2ct.transforms.geometry import BiplanarGeometry


class CachedDataset(PersistentDataset):
    """MONAI's ``PersistentDataset``, keyed on what a sample depends on.

    The key is made of the item, the size and modification time of its files, the geometry, the settings, and the
    version of this package: MONAI's own key knows neither the files' content nor the transform's settings.

    Args:
        data: data list items.
        transform: whose deterministic part is cached; its samples must not carry metadata, which is not kept.
        cache_dir: folder of the cache.
        geometry: that the transform was built for.
        settings: the transform's other settings, plain types.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[..., Any],
        cache_dir: str | Path,
        geometry: BiplanarGeometry,
        settings: Mapping[str, Any],
    ) -> None:
        about = {
            "geometry": geometry.to_dict(),
            "settings": dict(settings),
            "version": importlib.metadata.version("drr2ct"),
        }
        super().__init__(data, transform, cache_dir, hash_func=lambda item: _digest({**about, "item": _stamp(item)}))


def _stamp(value: Any) -> Any:
    """The item, with each path joined by its file's size and modification time."""
    if isinstance(value, Mapping):
        return {key: _stamp(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stamp(entry) for entry in value]
    if isinstance(value, (str, Path)) and (path := Path(value)).exists():
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [str(path.resolve()), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]
    return value


def _digest(content: Any) -> bytes:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest().encode()
