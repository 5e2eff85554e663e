"""Planned against measured memory of training steps, each measured in a process of its own.

python benchmarks/planner.py [--networks cascade256 direct256] [--sizes 32 64 96] [--precisions bf16 fp32]
    [--markdown FILE] [--json FILE]

On a CPU the resident memory's high-water mark over one step is compared, above what is resident between steps (weights,
gradients, moments, batch, libraries); the first steps, in which kernels are compiled, are not counted.

A CPU's convolutions work on copies: oneDNN brings what it reads and writes into its own layout, and in half precision
again for the gradient of the weights; where it is not used, the columns of im2col take its place. No trace of tensors
can see that, and a GPU does not have it. So the plan for a CPU is the trace, plus what each convolution allocates
inside itself, found by running every one that differs once, alone, under torch's profiler. The table shows both. With
CUDA the allocator's own peak is compared with the trace alone.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # before torch: its profiler is talkative

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.planning.plan import Settings, plan_config
from drr2ct.pipeline.planning.tables import TableText
from drr2ct.pipeline.planning.tracing import TrainingStep, bundle_optimizer
from drr2ct.pipeline.running.console import wide_console
from drr2ct.pipeline.running.memory import peak_resident_bytes, resident_bytes, restart_peak
from drr2ct.pipeline.running.startup import use_large_pages
from drr2ct.transforms.files import write_json

TOLERANCE = {"cpu": 0.15, "cuda": 0.10}
CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


def settings_of(network: str, size: int, precision: str) -> Settings:
    return Settings(network, precision=precision, size=size, detector=2 * size)


class InsideConvolutions:
    """What convolutions allocate while they run, by running each once with tensors of these shapes."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> int:
        """Bytes; 0 for other operations."""
        if func.overloadpacket not in CONVOLUTIONS:
            return 0
        leaves, form = tree_flatten((args, kwargs))
        key = (func, str(form), tuple(_described(leaf) for leaf in leaves))
        if key not in self.known:
            with _disable_current_modes(), torch.no_grad(), torch.autocast("cpu", enabled=False):
                real = tree_map(lambda leaf: _real(leaf) if isinstance(leaf, torch.Tensor) else leaf, (args, kwargs))
                func(*real[0], **real[1])  # compiles
                self.known[key] = most_allocated(lambda: func(*real[0], **real[1]))
        return self.known[key]


def _described(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else str(leaf)


def _real(fake: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tuple(fake.shape), fake.stride(), dtype=fake.dtype).fill_(0.5)


def most_allocated(work: Any) -> int:
    """Most bytes that torch's allocator gave out at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    found: list[tuple[int, int]] = []

    def walk(events: Sequence[Any]) -> None:
        for event in events:
            if event.name == "[memory]":
                found.append((event.start_time_ns, event.typed[1].alloc_size))
            walk(event.children)

    assert profiler.profiler is not None and result is not None
    walk(profiler.profiler.kineto_results.experimental_event_tree())
    live = most = 0
    for _, size in sorted(found, key=lambda event: event[0]):
        live += size
        most = max(most, live)
    return most


def measure(settings: Settings, device: str) -> int:
    """Bytes that one step needs above what is there between steps."""
    optimizer = bundle_optimizer(settings.network)
    step, loss = TrainingStep(settings.config(), 1, settings.precision, optimizer, device), WeightedLoss()
    step.settle()
    for _ in range(2):
        step.run(loss)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.run(loss)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    restart_peak()
    before = resident_bytes()
    step.run(loss)
    return peak_resident_bytes() - before


def measured_apart(network: str, size: int, precision: str, device: str) -> int:
    # every tensor above 64 KB is mapped on its own, and so given back when it is freed
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--measure", network, str(size), precision, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    use_large_pages()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["cascade256", "direct256"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 96])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--most", type=float, default=6.0, help="GiB; steps that need more are left out")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        network, size, precision, device = arguments.measure
        print(measure(settings_of(network, int(size), precision), device))
        return

    console = wide_console()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    inside = InsideConvolutions()
    columns = (
        "network",
        "size",
        "precision",
        "device",
        "traced",
        "planned",
        "measured",
        "planned / measured − 1",
        "within",
    )
    rows: list[tuple[str, ...]] = []
    figures: list[dict[str, Any]] = []
    for network in arguments.networks:
        for size in arguments.sizes:
            for precision in arguments.precisions:
                settings = settings_of(network, size, precision)
                trace = plan_config(settings.config(), 1, precision, name=settings.network)
                if trace.step_peak_bytes > arguments.most * 2**30:
                    continue
                for device in devices:
                    with console.status(f"{network} {size}³ {precision} on {device}"):
                        plan = (
                            plan_config(settings.config(), 1, precision, inside, settings.network)
                            if device == "cpu"
                            else trace
                        )
                        measured = measured_apart(network, size, precision, device)
                    traced, planned = (p.step_peak_bytes - p.resting_bytes for p in (trace, plan))
                    error, bound = planned / measured - 1, TOLERANCE[device]
                    verdict = f"{'' if abs(error) <= bound else 'not '}{100 * bound:.0f} %"
                    numbers = [f"{value / 2**20:.1f}" for value in (traced, planned, measured)]
                    rows.append((network, f"{size}³", precision, device, *numbers, f"{100 * error:+.1f} %", verdict))
                    console.print(" ".join(rows[-1]), style="dim", highlight=False)
                    row = {"network": network, "size": size, "precision": precision, "device": device}
                    amounts = {"traced_bytes": traced, "planned_bytes": planned, "measured_bytes": measured}
                    figures.append({**row, **amounts, "error": error})
    title = f"memory of a training step above what is resident between steps, MiB ({torch.get_num_threads()} threads)"
    table = TableText(title, columns, tuple(rows))
    console.print(table.rich())
    if arguments.markdown:
        arguments.markdown.write_text(table.markdown())
    if arguments.json:
        write_json(arguments.json, {"torch": str(torch.__version__), "steps": figures})


if __name__ == "__main__":
    main()
