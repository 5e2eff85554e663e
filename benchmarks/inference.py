"""Time and memory of reconstructing one volume from two radiographs on a CPU, each network in a process of its own.

python benchmarks/inference.py [--networks cascade256 direct256] [--precision bf16] [--threads 2] [--json FILE]

The process starts, imports, reads a checkpoint (random weights) and two radiographs, and reconstructs. Networks that by
plan need more than --most are planned only. Peak resident memory is of the whole process, libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.running.memory import peak_resident_bytes, resident_bytes
from drr2ct.pipeline.running.startup import use_large_pages
from drr2ct.transforms.files import write_json


def measure(folder: Path, precision: str, threads: int, began: float) -> dict[str, float]:
    """Seconds since ``began`` (start of the process) and bytes."""
    import torch

    from drr2ct.pipeline.checkpoints.networks import load_network
    from drr2ct.pipeline.running.precision import AutocastInferer
    from drr2ct.transforms.preprocessing import files_to_samples

    torch.set_num_threads(threads)
    imported = time.time()
    network = load_network(folder / "checkpoint.pt")
    views = [str(folder / f"{view.name}.nii.gz") for view in network.config.geometry.views]
    image = files_to_samples(network.config.geometry, with_ct=False)({"patient": "p", "image": views})["image"][None]
    loaded = time.time()
    libraries = resident_bytes()
    inferer = AutocastInferer("cpu", precision)
    with torch.inference_mode():
        start = time.time()
        volume = inferer(image, network)
        first = time.time() - start
        total = time.time() - began
        peak = peak_resident_bytes()
        del volume
        start, processor = time.time(), time.process_time()
        inferer(image, network)
        second = time.time() - start
        processor = time.process_time() - processor
    return {
        "import_seconds": imported - began,
        "load_seconds": loaded - imported,
        "first_seconds": first,
        "second_seconds": second,
        "second_processor_seconds": processor,
        "total_seconds": total,
        "peak_bytes": peak,
        "before_bytes": libraries,
    }


def measured_apart(name: str, precision: str, threads: int) -> dict[str, float]:
    import torch

    from drr2ct.networks import create_network
    from drr2ct.pipeline.checkpoints.description import describe
    from drr2ct.pipeline.checkpoints.files import write_checkpoint
    from drr2ct.transforms.radiographs.write import write_radiograph

    network = create_network(name, channels_last=precision == "bf16")
    with tempfile.TemporaryDirectory() as folder:
        description = describe(network, name, "cube", {"training": []})
        write_checkpoint(Path(folder) / "checkpoint.pt", {"network": network.state_dict(), "description": description})
        for view in network.config.geometry.views:
            write_radiograph(Path(folder) / f"{view.name}.nii.gz", 6 * torch.rand(view.detector_size))
        command = [sys.executable, __file__, "--measure", folder, precision, str(threads), repr(time.time())]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    use_large_pages()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["cascade256", "direct256"])
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=float, default=8.0, help="GiB; networks that need more are planned only")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, precision, threads, began = arguments.measure
        print(json.dumps(measure(Path(folder), precision, int(threads), float(began))))
        return

    from drr2ct.pipeline.planning.plan import Settings, plan_network

    load = os.getloadavg()[0]
    table = Table(
        title=f"one volume from two radiographs, {arguments.precision}, {arguments.threads} threads (load {load:.1f})"
    )
    columns = (
        "network",
        "TFLOP",
        "first, s",
        "again, s",
        "processor, s",
        "with start and loading, s",
        "planned, GiB",
        "resident, GiB",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "network" else "right")
    figures: list[dict[str, Any]] = []
    console = Console()
    for name in arguments.networks:
        plan = plan_network(Settings(name, precision=arguments.precision))
        planned = plan.forward_peak_bytes / 2**30
        row = {"network": name, "forward_flops": plan.forward_flops, "planned_bytes": plan.forward_peak_bytes}
        cells = ["–"] * 5
        if planned <= arguments.most:
            with console.status(f"measuring {name}"):
                found = measured_apart(name, arguments.precision, arguments.threads)
            row.update(found)
            seconds = [found[f"{key}_seconds"] for key in ("first", "second", "second_processor", "total")]
            cells = [*(f"{value:.1f}" for value in seconds), f"{found['peak_bytes'] / 2**30:.2f}"]
        table.add_row(name, f"{plan.forward_flops / 1e12:.2f}", *cells[:4], f"{planned:.2f}", cells[4])
        figures.append(row)
    console.print(table)
    if arguments.json:
        write_json(arguments.json, {"load": load, "networks": figures})


if __name__ == "__main__":
    main()
