"""Patients per minute of ``drr2ct prepare``, and where the time goes.

PYTHONPATH=. python benchmarks/prepare.py [--ct FILE] [--shape 512 512 133] [--patients 6] [--workers 2]

One real CT is interpolated to the given size, written as DICOM series of several patients, and prepared. Processor time
is of all processes and their threads; on a machine that is shared it says more than the clock.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.data.prepare import prepare
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.data.settings import PrepareSettings
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import LoadCT
from tests.pipeline.data.dicom_files import write_series


def processor_seconds() -> float:
    """User and system time of this process and of those that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, default=sample_ct())
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 133))
    parser.add_argument("--patients", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    ct = LoadCT()(arguments.ct)
    extent = np.linalg.norm(np.asarray(ct.affine)[:3, :3], axis=0) * ct.shape[1:]
    spacing = [round(float(v), 4) for v in extent / np.array(arguments.shape)]
    values = F.interpolate(ct.as_tensor()[None], size=tuple(arguments.shape), mode="trilinear")[0, 0]
    noise = (
        torch.randn(values.shape, generator=torch.Generator().manual_seed(0)) * 20
    )  # so that it compresses as a scan
    values = (values + noise).clamp(-1024, 3071).numpy()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.patients):
            write_series(Path(folder) / "source" / f"p{i}", values, patient=f"p{i}", spacing=spacing)
        start, busy = time.perf_counter(), processor_seconds()
        settings = PrepareSettings(BiplanarGeometry.from_angles())
        summary = prepare(Path(folder) / "source", Path(folder) / "set", settings, arguments.workers)
        seconds, busy = time.perf_counter() - start, processor_seconds() - busy
    table = Table(
        "step", "s per patient", title=f"{'×'.join(map(str, arguments.shape))}, {arguments.workers} processes"
    )
    for step, total in summary.seconds.items():
        table.add_row(step, f"{total / summary.made:.2f}")
    console = Console()
    console.print(table)
    rate = 60 * summary.made / seconds
    console.print(f"{summary.made} patients in {seconds:.1f} s: {rate:.1f} per minute, with start and headers")
    console.print(f"processor time: {busy:.1f} s, {busy / summary.made:.2f} s a patient")


if __name__ == "__main__":
    main()
