"""Patients per minute of ``drr2ct prepare``, and where the time goes.

PYTHONPATH=. python benchmarks/prepare.py [--ct FILE] [--shape 512 512 133] [--patients 6] [--workers 2]

One real CT is interpolated to the given size, written as DICOM series of several patients, and prepared. Processor time
is of all processes and their threads; on a machine that is shared it says more than the clock. `speed.py --prepare`
compares the whole command with another checkout's.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path


def processor_seconds() -> float:
    """User and system time of this process and of those that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


def write_patients(folder: Path, count: int, ct: Path | None = None, shape: tuple[int, ...] = (512, 512, 133)) -> None:
    """DICOM series of one CT (the sample), interpolated to a shape, as of several patients."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from drr2ct.pipeline.data.sample.cts import sample_ct
    from drr2ct.transforms.volume import LoadCT
    from tests.pipeline.data.dicom_files import write_series

    read = LoadCT()(ct or sample_ct())
    extent = np.linalg.norm(np.asarray(read.affine)[:3, :3], axis=0) * read.shape[1:]
    spacing = [round(float(v), 4) for v in extent / np.array(shape)]
    values = F.interpolate(read.as_tensor()[None], size=shape, mode="trilinear")[0, 0]
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)) * 20  # as a scan compresses
    values = (values + noise).clamp(-1024, 3071)
    for i in range(count):
        write_series(folder / f"p{i}", values.numpy(), patient=f"p{i}", spacing=spacing)


def main() -> None:
    # here and not above: the processes that prepare import this file too, and are to start as those of the command do
    from drr2ct.pipeline.running.startup import start_lightly

    start_lightly()
    from rich.console import Console
    from rich.table import Table

    from drr2ct.pipeline.data.prepare import prepare
    from drr2ct.pipeline.data.settings import PrepareSettings
    from drr2ct.transforms.geometry import BiplanarGeometry

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, help="by default the sample")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 133))
    parser.add_argument("--patients", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write_patients(Path(folder) / "source", arguments.patients, arguments.ct, tuple(arguments.shape))
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
