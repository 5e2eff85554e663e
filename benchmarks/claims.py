"""What the results in a folder are of: noted once, and nothing else is put among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drr2ct.transforms.files import write_json


def otherwise_claimed(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Note in a folder's ``settings.json`` what its results are of, unless it holds those of other settings.

    Args:
        folder: which need not be there yet.
        settings: what JSON holds.

    Returns:
        A sentence's beginning that names what differs; None where all is well.
    """
    path = folder / "settings.json"
    wanted = json.loads(json.dumps(settings))
    if path.exists() and (there := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        changed = ", ".join(key for key in {**wanted, **there} if there.get(key) != wanted.get(key))
        return f"{folder} holds results with other settings ({path}: {changed})"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)
    return None
