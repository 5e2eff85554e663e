"""What the process holds, and the most it held."""

import mmap

import psutil
import torch

from drr2ct.pipeline.running.memory import available_bytes, memory_bytes, peak_memory_bytes, restart_peak

CPU = torch.device("cpu")


def test_memory_is_that_of_this_process() -> None:
    before = memory_bytes(CPU)
    with mmap.mmap(-1, 64 * 2**20) as held:  # a tensor's memory may have been the process's before
        held.write(b"1" * len(held))
        assert memory_bytes(CPU) - before > 0.9 * len(held)


def test_the_peak_stays_until_it_is_restarted() -> None:
    restart_peak()
    before = peak_memory_bytes(CPU)
    with mmap.mmap(-1, 64 * 2**20) as held:
        held.write(b"1" * len(held))
        size = len(held)
    assert peak_memory_bytes(CPU) - before > 0.9 * size
    restart_peak()
    assert peak_memory_bytes(CPU) - before < 0.5 * size


def test_no_more_is_left_than_the_machine_has() -> None:
    assert 0 < (available_bytes() or 1) <= psutil.virtual_memory().total
