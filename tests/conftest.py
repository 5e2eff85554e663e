"""Shared by all tests: every annotated shape and type of the package is checked while they run."""

from __future__ import annotations

import os

# before torch is imported: processes that share the cores do not each start a thread for every one
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))

import psutil
from jaxtyping import install_import_hook

import tests.typechecking  # noqa: F401  # the hook looks it up by name

install_import_hook("drr2ct", "tests.typechecking.check")

BYTES_PER_WORKER = 4 * 2**30
"""What a test process and those that it starts may hold."""


def pytest_xdist_auto_num_workers() -> int:
    """One process per core (``-n auto``), as far as memory allows."""
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    return max(1, min(cores, memory // BYTES_PER_WORKER))
