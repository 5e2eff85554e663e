"""Memory of this process: on a CUDA device what is allocated, on a CPU what is resident, as Linux counts it.

Also what the machine has left.
"""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def memory_bytes(device: torch.device) -> int:
    """Memory in use now: allocated on a CUDA device, or resident for this process on a CPU (0 where it is not told)."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: allocated on a CUDA device, or resident on a CPU (0 where it is not told)."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def resident_bytes() -> int:
    """What the process holds in memory now; 0 where it is not told."""
    return _entry("VmRSS")


def peak_resident_bytes() -> int:
    """The most it held since it began, or since :func:`restart_peak`; 0 where it is not told."""
    return _entry("VmHWM")


def restart_peak() -> None:
    """Make the high-water mark what the process holds now (Linux), to measure one part of a program."""
    Path("/proc/self/clear_refs").write_text("5")


def available_bytes() -> int | None:
    """What the process can still have without swapping, of the machine and of its container; None if it is not told."""
    found = [_entry("MemAvailable", _MACHINE)]
    if _CONTAINER.exists() and (limit := _CONTAINER.read_text().strip()).isdecimal():
        found.append(max(int(limit) - resident_bytes(), 1))
    return min(filter(None, found), default=None)


def _entry(name: str, file: Path = _STATUS) -> int:
    if not file.exists():
        return 0
    found = [line.split()[1] for line in file.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(found[0]) if found else 0
