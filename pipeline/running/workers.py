"""Processes of a pool: one thread each, and an end with their parent."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process

from drr2ct.pipeline.running.startup import start_lightly


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
