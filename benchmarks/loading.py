"""Seconds per sample, by part: from files, from the cache, and with augmentation; and what a GPU asks for.

python benchmarks/loading.py [--ct FILE] [--size 256] [--detector 512] [--throughput "50 TFLOP/s"] [--json FILE]

On one core, the best of several repetitions; a varied sample, the mean over as many variations, in seconds of the
processor. Cold: after the entry was dropped from the page cache, where the system lets it go. What a GPU asks for is
planned: the FLOPs of cascade256's training step over the stated throughput.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.data import list_data_collate
from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.data.cache import AugmentedDataset, CachedDataset, decoded, read_entry
from drr2ct.pipeline.planning.fitting import parse_rate
from drr2ct.pipeline.planning.plan import Settings, plan_network
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.pipeline.running.startup import use_large_pages
from drr2ct.transforms.films.noise import RandQuantumNoised
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept, files_to_samples, kept_to_samples

SAMPLE = Path(__file__).resolve().parents[1] / "pipeline/data/sample/lidc-idri-0001/lidc-idri-0001.nii.gz"


VARIED = ((64, 128), (128, 256), (256, 512))
"""Voxels of the grid and pixels of the detector, along each axis."""

STEPS = {"RandVaryd": "warp", "RenderDRRd": "render", "OntoGridd": "label"}


def seconds(work: Callable[[], Any], repetitions: int) -> float:
    best = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def dropped_from_page_cache(path: Path) -> bool:
    """Whether the file has gone; some file systems keep it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.preadv(handle, [bytearray(2**20)], path.stat().st_size // 2, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def varied_sample(ct: Path, size: int, detector: int, repetitions: int) -> dict[str, float]:
    """Seconds of each step that makes another patient of a CT, the mean over as many patients; memory in MiB."""
    geometry = BiplanarGeometry.from_angles(VolumeGrid(size), detector_size=detector)
    item = {"patient": "patient", "label": str(ct)}
    keep = files_to_kept(geometry)
    times = {"memory": 0.0, "keep": seconds(lambda: keep(item), 2)}
    kept = keep(item)
    times["memory"] = kept["label"].numel() * kept["label"].element_size() / 2**20
    chain = kept_to_samples(geometry)
    chain.set_random_state(0)
    times |= dict.fromkeys((*STEPS, "all"), 0.0)
    for number in range(-1, repetitions):
        sample: Any = kept
        for step in chain.transforms:
            start = time.process_time()
            sample = step(sample)
            spent = (time.process_time() - start) / repetitions * (number >= 0)  # the first loads libraries
            times["all"] += spent
            if type(step).__name__ in STEPS:
                times[type(step).__name__] += spent
    return times


def main() -> None:
    use_large_pages()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, default=SAMPLE)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--detector", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--throughput", default="50 TFLOP/s", help="of the GPU that trains")
    parser.add_argument("--folder", type=Path, help="for the cache; a temporary one by default")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    geometry = BiplanarGeometry.from_angles(VolumeGrid(arguments.size), detector_size=arguments.detector)
    item = {"patient": "patient", "label": str(arguments.ct)}
    rows: list[tuple[str, float]] = []
    n = arguments.repetitions
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, Console().status("measuring"):
        steps = files_to_samples(geometry).transforms
        sample: Any = item
        for step in steps:
            step(sample)  # loads libraries
            rows.append((f"files: {type(step).__name__}", seconds(lambda: step(sample), 2)))  # noqa: B023
            sample = step(sample)
        rows.append(("files, all", sum(value for _, value in rows)))

        cached = CachedDataset([item], files_to_samples(geometry), folder)
        first = cached[0]
        (entry,) = Path(folder).glob("*.pt")
        rows.append(("cache: read and check", seconds(lambda: read_entry(entry), n)))
        stored = read_entry(entry)
        rows.append(("cache: to float32", seconds(lambda: decoded(stored), n)))
        rows.append(("cached sample", seconds(lambda: cached[0], n)))
        loader_set = AugmentedDataset(cached)
        rows.append(("cached sample in a batch", seconds(lambda: list_data_collate([loader_set[0]]), n)))
        cold = [seconds(lambda: cached[0], 1) for _ in range(3) if dropped_from_page_cache(entry)]
        if cold:
            rows.append(("cached sample, cold", min(cold)))

        noise = RandQuantumNoised("image")
        rows.append(("augmentation: noise", seconds(lambda: noise(first), n)))

        varied = {(n, d): varied_sample(arguments.ct, n, d, arguments.repetitions) for n, d in VARIED}

    size, detector, load = arguments.size, arguments.detector, os.getloadavg()[0]
    table = Table(title=f"seconds per sample on one core, {size}³, {detector}² (load {load:.1f})")
    table.add_column("part")
    table.add_column("s", justify="right")
    for name, value in rows:
        table.add_row(name, f"{value:.3f}")
    console = Console()
    console.print(table)
    table = Table(title="seconds for a varied sample on one core, rendered from the kept CT")
    for name in ("grid", "detector", "kept, MiB", "keep, once", *STEPS.values(), "all"):
        table.add_column(name, justify="right")
    for (voxels, pixels), times in varied.items():
        table.add_row(f"{voxels}³", f"{pixels}²", *(f"{value:.3f}" for value in times.values()))
    console.print(table)
    found = dict(rows)
    step_flops = plan_network(Settings("cascade256")).step_flops
    wanted = step_flops / parse_rate(arguments.throughput)
    cores = found["cached sample in a batch"] / wanted
    cores_varied = varied[VARIED[-1]]["all"] / wanted
    console.print(
        f"a step of cascade256 ({step_flops / 1e12:.2f} TFLOP) takes {wanted:.3f} s at {arguments.throughput}: "
        f"{cores:.1f} cores keep up from the cache, {cores_varied:.1f} with {bundle_file('configs/vary.yaml').name}",
        highlight=False,
    )
    if arguments.json:
        content = {"seconds": found, "varied": {str(n): times for (n, _), times in varied.items()}}
        content |= {"gpu_seconds": wanted, "load": load}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
