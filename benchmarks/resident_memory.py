"""Memory of this process, as Linux counts it; for the benchmarks beside this file."""

from pathlib import Path


def resident_bytes() -> int:
    """What the process holds now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most it held since it began, or since :func:`restart_peak`."""
    return _status("VmHWM")


def restart_peak() -> None:
    """Make the high-water mark what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))
