"""What every output says of itself: which code made it, and that it is not for clinical use."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("drr2ct", "torch", "monai", "pytorch-ignite", "numpy", "nanodrr", "itk-rtk")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on, and the git revision if run from a checkout."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # installed from a wheel
        found["git"] = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a machine that only trains has no RTK, or runs a checkout
        return "not installed"


DISCLAIMER = "drr2ct: research use only, not for clinical use"


NOTE = f"{DISCLAIMER}; two views cannot determine a volume, what they do not show is inferred"
