"""Whether two patients are one: by name, and by the content of their CT files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drr2ct.pipeline.data.candidate import VOLUME_SUFFIXES

_PIECE = 1 << 16


def patient_names(item: Mapping[str, Any]) -> set[str]:
    """Names by which a data list's patient may be known elsewhere: its own, and those of its CT's file and folder.

    Without folders, suffixes and capitals, in which copies of a data set differ.
    """
    names = {_bare(str(item["patient"]))}
    if "label" in item:
        path = Path(item["label"])
        names |= {_bare(path.name), _bare(path.parent.name)}
    return names - {""}


def _bare(name: str) -> str:
    name = Path(name.replace("\\", "/")).name.casefold()
    return next((name.removesuffix(suffix) for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), name)


def ct_fingerprint(path: str | Path) -> str | None:
    """Hash of a CT's size and of the first, middle and last 64 KiB of its files; None if it is not there.

    Names and places do not enter, so a copy has the same; a CT that was resampled or compressed anew has another.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(_file_fingerprint(file) for file in path.iterdir() if file.is_file())
        return hashlib.sha256("".join(files).encode()).hexdigest()
    return _file_fingerprint(path) if path.is_file() else None


def _file_fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - _PIECE)):
            file.seek(start)
            digest.update(file.read(_PIECE))
    return digest.hexdigest()


def ct_fingerprints(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of the CTs of a data list that are there."""
    found = (ct_fingerprint(item["label"]) for item in items if "label" in item)
    return sorted({fingerprint for fingerprint in found if fingerprint})


def trained_on(description: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of some patients that a checkpoint was trained on.

    Args:
        description: of the checkpoint: names of its patients, and the fingerprints of their CTs if it has them.
        items: of a data list.
    """
    names = {_bare(name) for name in description["patients"].get("training", [])}
    fingerprints = set(description.get("training_cts", []))
    return [
        item
        for item in items
        if patient_names(item) & names
        or (fingerprints and "label" in item and ct_fingerprint(item["label"]) in fingerprints)
    ]
