"""What is used of nanodrr, imported when a radiograph is rendered with it."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any


@functools.cache
def subject_and_render() -> tuple[Any, Any]:
    """``nanodrr.data.Subject`` and ``nanodrr.drr.render``.

    nanodrr reads files with TorchIO, and that with SimpleITK. Rays need neither: where they are missing, as on a
    machine that only trains, two names take their place while nanodrr is imported.

    Raises:
        ModuleNotFoundError: if nanodrr itself is missing.
    """
    try:
        import torchio  # noqa: F401
    except ModuleNotFoundError:
        stand_in = ModuleType("torchio")
        vars(stand_in).update(LabelMap=object, ScalarImage=object)
        sys.modules["torchio"] = stand_in
        try:
            return _imported()
        finally:
            del sys.modules["torchio"]
    return _imported()


def _imported() -> tuple[Any, Any]:
    from nanodrr.data import Subject
    from nanodrr.drr import render

    return Subject, render
