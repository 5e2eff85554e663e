"""Planned against measured memory of training steps, each measured in a process of its own.

python benchmarks/planner.py [--networks cascade256 direct256] [--sizes 32 64 96] [--precisions bf16 fp32] [--json FILE]

On a CPU the resident memory's high-water mark over one step is compared, above what is resident between steps (weights,
gradients, moments, batch, libraries); the first step, in which kernels are compiled, is not counted. oneDNN's scratch
memory is in the measurement and not in the plan. With CUDA the allocator's own peak is compared as well.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.plan import Settings, TrainingStep, plan_network

TOLERANCE = {"cpu": 0.15, "cuda": 0.10}


def settings_of(network: str, size: int, precision: str) -> Settings:
    return Settings(network, precision=precision, size=size, detector=2 * size)


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(settings: Settings, device: str) -> int:
    """Bytes that one step needs above what is there between steps."""
    step, loss = TrainingStep(settings, device), WeightedLoss()
    step.settle()
    step.run(loss)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.run(loss)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = status_bytes("VmRSS")
    step.run(loss)
    return status_bytes("VmHWM") - before


def measured_apart(network: str, size: int, precision: str, device: str) -> int:
    # every tensor above 64 KB is mapped on its own, and so given back when it is freed
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--measure", network, str(size), precision, device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["cascade256", "direct256"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64, 96])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        network, size, precision, device = arguments.measure
        print(measure(settings_of(network, int(size), precision), device))
        return

    console = Console()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    table = Table(title="memory of a training step above what is resident between steps, MiB")
    for column in ("network", "size", "precision", "device", "planned", "measured", "planned / measured − 1", "within"):
        table.add_column(column, justify="left" if column == "network" else "right")
    figures: list[dict[str, Any]] = []
    for network in arguments.networks:
        for size in arguments.sizes:
            for precision in arguments.precisions:
                plan = plan_network(settings_of(network, size, precision))
                planned = plan.step_peak_bytes - plan.resting_bytes
                for device in devices:
                    with console.status(f"measuring {network} {size}³ {precision} on {device}"):
                        measured = measured_apart(network, size, precision, device)
                    error, bound = planned / measured - 1, TOLERANCE[device]
                    verdict = f"{'' if abs(error) <= bound else 'not '}{100 * bound:.0f} %"
                    numbers = (f"{planned / 2**20:.0f}", f"{measured / 2**20:.0f}", f"{100 * error:+.1f} %")
                    cells = (network, f"{size}³", precision, device, *numbers, verdict)
                    table.add_row(*cells)
                    console.print(" ".join(cells), style="dim", highlight=False)
                    row = {"network": network, "size": size, "precision": precision, "device": device}
                    figures.append({**row, "planned_bytes": planned, "measured_bytes": measured, "error": error})
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "steps": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
