"""The record beside a volume, by which a later run knows whether the volume is finished, and whether it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drr2ct.pipeline.reconstruction.destination import Destination
from drr2ct.transforms.validation import InputError

RECORD_FORMAT = 1


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_finished(destination: Destination, key: Mapping[str, Any], own_folder: bool, with_page: bool) -> bool:
    """Whether what is to be made lies there already, made of the same and in the same way.

    Args:
        destination: of the patient.
        key: what the volume depends on: hashes of checkpoint and radiographs, settings. The record holds it.
        own_folder: the volume lies in a folder that is ours, so that one without a record was left by a run that was
            stopped; otherwise it is somebody's file.
        with_page: a page is wanted beside it.

    Raises:
        InputError: if something else lies there.
    """
    volume, record = destination.volume, destination.beside(".json")
    if not (volume.exists() or record.exists()):
        return False
    found = _read(record)
    if found.get("key") is None:
        if own_folder and not record.exists():
            return False
        raise InputError(f"{volume if volume.exists() else record} exists; give another output, or overwrite.")
    if found.get("volume") != volume.name:
        raise InputError(f"{record} is the record of {found.get('volume')}; give the output another name.")
    changed = [name.split("_")[0] for name in key if found["key"].get(name) != key[name]]
    if changed:
        raise InputError(
            f"{volume} was made with other {' and '.join(changed)}; give another output, or overwrite to replace it."
        )
    return volume.exists() and not (with_page and not destination.beside(".html").exists())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
