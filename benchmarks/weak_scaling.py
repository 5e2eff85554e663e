"""Weak scaling, measured: samples per second of 1, 2, … processes with one batch each, and the time of the gradients.

python benchmarks/weak_scaling.py [--processes 1 2] [--network cascade64] [--steps 20] [--batch 1] [--json FILE]

Starts itself under torchrun. On a CPU the processes have one thread each and talk by gloo, on GPUs one GPU each and NCCL.
The data are random and in memory: loading is not in it. Processes beyond the cores share them, so there efficiency
says nothing.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from drr2ct.networks import create_network
from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.running.distributed import is_main_process, local_device, parallel, start, stop, world_size
from drr2ct.pipeline.running.precision import AutocastInferer, choose_precision, clip_gradients
from drr2ct.transforms.files import write_json


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """In each process: seconds of a step, of its gradients' reduction alone, and of a step without it."""
    torch.set_num_threads(1)
    device = local_device()
    start(device)
    network = create_network(arguments.network).to(device)
    joined = parallel(network, device)
    optimizer = clip_gradients(torch.optim.AdamW(network.parameters()), 1.0)
    inferer = AutocastInferer(device.type, choose_precision(device))
    loss, config = WeightedLoss(), network.config
    image = torch.rand(arguments.batch, len(config.geometry.views), *config.geometry.detector_size, device=device)
    label = torch.rand(arguments.batch, 1, *[config.geometry.grid.size] * 3, device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss(inferer(image, joined), label).mean().backward()
        optimizer.step()

    gradients = torch.zeros(sum(p.numel() for p in network.parameters()), device=device)

    def seconds(work) -> float:
        work()
        dist.barrier()
        began = time.perf_counter()
        for _ in range(arguments.steps):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / arguments.steps

    def alone() -> None:
        with joined.no_sync():
            step()

    found = {"step": seconds(step), "alone": seconds(alone), "gradients": seconds(lambda: dist.all_reduce(gradients))}
    slowest = torch.tensor(list(found.values()), device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return {
        **dict(zip(found, slowest.tolist(), strict=True)),
        "processes": world_size(),
        "samples_per_second": world_size() * arguments.batch / float(slowest[0]),
        "gradient_bytes": 4 * gradients.numel(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--network", default="cascade64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        found = measure(arguments)
        if is_main_process():
            write_json(arguments.measure, found)
        stop()
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.processes:
            file = Path(folder) / f"{count}.json"
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
            options = ["--network", arguments.network, "--steps", str(arguments.steps), "--batch", str(arguments.batch)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([*torchrun, __file__, "--measure", str(file), *options], check=True, env=environment)
            rows.append(json.loads(file.read_text()))
    cores, load = os.cpu_count(), os.getloadavg()[0]
    table = Table(title=f"{arguments.network}, batch {arguments.batch} per process, {cores} cores, load {load:.1f}")
    columns = ("processes", "step, ms", "without reduction, ms", "reduction alone, ms", "samples/s", "efficiency")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        efficiency = (
            row["samples_per_second"] / row["processes"] / (rows[0]["samples_per_second"] / rows[0]["processes"])
        )
        times = [f"{1e3 * row[name]:.1f}" for name in ("step", "alone", "gradients")]
        table.add_row(str(row["processes"]), *times, f"{row['samples_per_second']:.2f}", f"{100 * efficiency:.0f} %")
    Console().print(table)
    print(f"gradients: {rows[0]['gradient_bytes'] / 2**20:.1f} MiB")
    if arguments.json:
        write_json(arguments.json, {"load": load, "cores": cores, "rows": rows})


if __name__ == "__main__":
    main()
