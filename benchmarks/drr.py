"""Time and agreement of the two DRR engines on one CT, side by side.

python benchmarks/drr.py [--ct FILE] [--detector 512] [--repeats 5] [--json FILE]

The time is from a CT in memory to the radiographs of all views, without loading the CT or the engine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import LoadCT

SAMPLE = Path(__file__).parents[1] / "data/sample/lidc-idri-0001/lidc-idri-0001.nii.gz"


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        cpu = names[0] if names else cpu
    packages = {name: version(name) for name in ("torch", "itk-rtk", "nanodrr")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": cores, "gpu": gpu, "python": platform.python_version(), **packages}


def timed(volume: torch.Tensor, geometry: BiplanarGeometry, engine: str, repeats: int) -> tuple[list[float], Any]:
    """Seconds of each repeat, and the radiographs on the CPU; the first run, which loads the engine, is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        radiographs = render_drr(volume, geometry, engine=engine)
        if radiographs.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[1:], radiographs.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, default=SAMPLE)
    parser.add_argument("--detector", type=int, default=512, help="rows and columns")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")

    volume = LoadCT()(arguments.ct)
    geometry = BiplanarGeometry.from_angles(detector_size=arguments.detector)
    runs = {"RTK, CPU": ("rtk", volume), "nanodrr, CPU": ("nanodrr", volume)}
    if torch.cuda.is_available():
        runs["nanodrr, CUDA"] = ("nanodrr", volume.cuda())
    results: dict[str, Any] = {}
    for name, (engine, ct) in runs.items():
        seconds, radiographs = timed(ct, geometry, engine, arguments.repeats)
        results[name] = {"seconds": seconds, "median": statistics.median(seconds), "radiographs": radiographs}

    reference = results["RTK, CPU"]
    info = machine()
    shape, detector = "×".join(map(str, volume.shape[1:])), arguments.detector
    table = Table(title=f"{arguments.ct.name} ({shape}), {len(geometry.views)} views of {detector}×{detector}")
    for column in ("engine", "median of " + str(arguments.repeats), "time / RTK", "mean |difference| / mean signal"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, result in results.items():
        radiographs = result.pop("radiographs")
        signal = reference.setdefault("signal", radiographs)
        result["ratio"] = result["median"] / reference["median"]
        result["relative_difference"] = ((radiographs - signal).abs().mean() / signal.mean()).item()
        table.add_row(
            name, f"{result['median']:.3f} s", f"{result['ratio']:.1f}", f"{100 * result['relative_difference']:.3f} %"
        )
    del reference["signal"]
    console = Console()
    console.print(", ".join(f"{key} {value}" for key, value in info.items() if value is not None))
    console.print(table)
    if arguments.json:
        figures = {"machine": info, "ct": str(arguments.ct), "shape": list(volume.shape[1:]), "detector": detector}
        write_json(arguments.json, {**figures, "engines": results})


if __name__ == "__main__":
    main()
