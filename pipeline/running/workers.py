"""Processes beside a first one: what they talk over, one thread each in a pool, and an end with their parent."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.util import get_temp_dir
from pathlib import Path

from drr2ct.pipeline.running.startup import start_lightly

LONGEST_FOR_SOCKETS = 70
"""Bytes of a folder's path in which sockets can lie: 103 at most (macOS), of which Python's own names need 33."""


def keep_sockets_short() -> None:
    """Let processes talk to each other also where the folder for temporary files has a long path, as clusters' have.

    A socket's address holds some hundred bytes. One that is longer stops a server, and a data loader for good: it
    waits for what its processes cannot send. Python's sockets then lie in ``/tmp``, all other files where they should;
    it does the same by itself from 3.14 on. What it remembers here, its child processes inherit.
    """
    usual = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOR_SOCKETS and Path("/tmp").is_dir():
        tempfile.tempdir = "/tmp"
        try:
            get_temp_dir()
        finally:
            tempfile.tempdir = usual


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """So many processes, which start at the first task.

    Spawned, not forked: torch's and ITK's pools of threads do not survive a fork.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker)


def _begin_worker() -> None:
    """One thread for each process, and an end with its parent: else one that outlives it would go on writing.

    Ctrl-C reaches all processes of a terminal; the parent's answer to it is enough.
    """
    start_lightly()
    import torch  # not before: this is what makes the imports that follow it light

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
