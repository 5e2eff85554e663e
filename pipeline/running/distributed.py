"""Training with several processes: who writes, who gets which patients, and what they tell each other.

``torchrun`` starts one process per GPU (or per part of a CPU) and describes itself in environment variables. Without
it every function here says what is true of a single process, so the same configuration and handlers serve both.

Tensors of the training go through NCCL on GPUs and gloo on CPUs. What processes tell each other besides (waiting for
a cache, losses, random states, a wish to stop) goes through a gloo group of its own, which waits for a day where the
training's group gives up after minutes.
"""

from __future__ import annotations

import datetime
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.data import DataLoader
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, Sampler, Subset

from drr2ct.transforms.validation import InputError

PATIENCE = datetime.timedelta(days=1)
"""How long processes wait for each other outside of training steps."""

JOINING = datetime.timedelta(minutes=10)
"""How long processes wait for each other when they start."""

_ANSWER = datetime.timedelta(seconds=5)

_control: dist.ProcessGroup | None = None
_shared: dist.Store | None = None
_starts = 0


def world_size() -> int:
    """Number of processes that ``torchrun`` started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this one is."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Whether this process is the one that writes files and to the terminal."""
    return rank() == 0


def local_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none.

    Raises:
        InputError: if there are more processes on this machine than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= count:
        raise InputError(f"process {local} has no GPU of its own, there are {count}; use --nproc_per_node {count}.")
    return torch.device("cuda", local)


def start(device: torch.device) -> None:
    """Join the other processes; the first step of a run.

    Raises:
        InputError: if it was not started by ``torchrun``.
    """
    global _control
    if "WORLD_SIZE" not in os.environ:
        raise InputError(
            "multi_gpu_train.yaml needs torchrun: torchrun --standalone --nproc_per_node N -m monai.bundle run …"
        )
    if dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=_own_store(), rank=rank(), world_size=world_size()
    )
    _control = dist.new_group(backend="gloo", timeout=PATIENCE)
    idist.get_rank()  # ignite's first look at the group is collective: not later, where only some processes may ask


def _own_store() -> dist.Store:
    """Where the processes find each other: on a server that the first of them opens.

    ``torchrun`` (torch 2.13) keeps one store over all restarts, and a process that looks a moment too soon finds the
    addresses of processes that are dead. So that store only says where the server is; a dead one does not answer, and
    the question is repeated.

    Raises:
        InputError: if no server answers.
    """
    global _shared, _starts
    host = os.environ["MASTER_ADDR"]
    if _shared is None:
        opens = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        _shared = dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=opens, wait_for_workers=False)
    _starts += 1  # a process may train several times, and the server of the time before may still be there
    place = f"drr2ct/server/{_starts}"
    if rank() == 0:
        server = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        _shared.set(place, str(server.port))
        return server
    deadline = time.monotonic() + JOINING.total_seconds()
    while time.monotonic() < deadline:
        try:
            client = dist.TCPStore(host, int(_shared.get(place)), is_master=False, timeout=_ANSWER)
        except dist.DistError:
            continue
        client.set_timeout(JOINING)
        return client
    raise InputError(f"the first process, at {host}, does not answer; check the network between the machines.")


def stop() -> None:
    """Leave the other processes; the last step of a run."""
    global _control
    if dist.is_initialized():
        dist.destroy_process_group()
    _control = None


def refuse_lonely_processes() -> None:
    """Several processes that do not know of each other would train apart and overwrite each other's files.

    Raises:
        InputError: if ``torchrun`` started several, and the configuration does not join them.
    """
    if world_size() > 1 and not dist.is_initialized():
        raise InputError(
            f"torchrun started {world_size()} processes, but this configuration is for one; "
            "add multi_gpu_train.yaml after train.yaml, or start it without torchrun."
        )


def parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The network with gradients averaged over the processes, and with the weights of the first.

    Its buffers are constant and alike everywhere, and all its weights take part in every step.
    """
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
    )


class PatientShare(Sampler[int]):
    """Indices of the samples that this process evaluates: every so many, and none twice.

    ``DistributedSampler`` repeats samples until all processes have equally many, and so shifts the mean. Here shares
    may differ by one, and MONAI's metrics gather unequal numbers. With fewer samples than processes each process
    takes all of them: a process without any would leave the others waiting, and a mean over equal copies is exact.
    """

    def __init__(self, dataset: Sized) -> None:
        self.count = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices())

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> range:
        return share(self.count) if self.count >= world_size() else range(self.count)


def share(count: int) -> range:
    """Indices of ``count`` items that fall to this process: disjoint, together all, unequal by at most one."""
    return range(rank(), count, world_size())


def warm_cache(samples: Sequence[Dataset], num_workers: int = 0) -> None:
    """Prepare every sample of some cached data sets once, each process its share, and wait for all.

    Without it, the first epoch would prepare them in the training's random shares, and processes would wait for the
    slowest at every step. Where a failure leaves a process behind, ``torchrun`` ends the others.

    Args:
        samples: ``SeededSamples`` of data sets that are cached on a disk which all processes share; they name a patient
            that cannot be read, or take another, as in the training.
        num_workers: of the loader that reads them.
    """
    for dataset in samples:
        mine = Subset(dataset, [(0, index) for index in share(len(dataset))])  # type: ignore[arg-type,misc]
        for _ in DataLoader(mine, batch_size=1, num_workers=num_workers, collate_fn=_nothing):
            pass
    wait()


def _nothing(samples: Any) -> None:
    """Collate to nothing, so that workers do not send what only has to be on the disk."""


def wait() -> None:
    """Until all processes are here."""
    if _control is not None:
        dist.barrier(_control)


def any_process(flag: bool) -> bool:
    """Whether it is so in any process; all must ask at the same point."""
    if _control is None:
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX, _control)
    return bool(value)


def mean_over_processes(total: float, count: int) -> float:
    """Σ total / Σ count over all processes; all must ask at the same point. NaN for a count of 0."""
    value = torch.tensor([total, float(count)], dtype=torch.float64)
    if _control is not None:
        dist.all_reduce(value, dist.ReduceOp.SUM, _control)
    return float(value[0] / value[1])


def gather(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each process holds (tensors and plain types), in the order of ranks; all must ask at the same point."""
    if _control is None:
        return [dict(content)]
    file = io.BytesIO()
    torch.save(dict(content), file)
    own = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    lengths = [torch.tensor(0) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor(len(own)), _control)
    longest = int(max(lengths))
    padded = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(padded, torch.nn.functional.pad(own, (0, longest - len(own))), _control)
    return [
        torch.load(io.BytesIO(data[:length].numpy().tobytes()), weights_only=True)
        for data, length in zip(padded, map(int, lengths), strict=True)
    ]
