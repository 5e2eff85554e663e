"""Radiographs of one CT in one geometry by this package and by other programs: processor time, and agreement.

python benchmarks/against_drr.py [--detectors 256 512] [--repetitions 3]

Others are used if they can be imported (diffdrr, plastimatch and gvxr are wheels; gvxr also needs EGL), otherwise
named; none has to be in the package's own environment: PYTHONPATH may lead to them. All take turns. Time is that of
both views, from the CT in memory in HU, in the order of axes that each reads files into. But plastimatch's is that of
its command, which starts, reads attenuations from a file and writes the picture; and gvxr's starts from surfaces,
which took the time named. The last columns are the physical limit: the CT's 16-bit voxels read once and the pixels
written, at the bandwidth of a copy; and Joseph's arithmetic, 8 FLOPs where a ray crosses a plane of voxels, at the
rate of a product of matrices.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import drr_adapters
import numpy as np
import torch
from drr_adapters import Render
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from side_by_side import (
    JOSEPH_FLOPS,
    copied_bytes_per_second,
    least_seconds,
    planes_crossed,
    processor_seconds,
    product_flops_per_second,
)

from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import LoadCT

OURS = "this package, RTK"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", type=int, nargs="+", default=[256, 512], help="rows and columns")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    console = Console(width=140)
    ct = LoadCT()(sample_ct())
    table = Table("detector", "by", "processor, s", "ratio", "difference, %", "bytes, ms", "FLOPs, ms", box=MARKDOWN)
    table.title = f"{' × '.join(map(str, ct.shape[1:]))}, two views, smallest of {arguments.repetitions}"
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], Render]] = {
            OURS: lambda: lambda geometry: render_drr(ct, geometry, engine="rtk").numpy(),
            "this package, nanodrr": lambda: lambda geometry: render_drr(ct, geometry, engine="nanodrr").numpy(),
            "RTK's filter, plainly": partial(drr_adapters.plain_rtk, ct),
            **{f"DiffDRR, {name}": partial(drr_adapters.diffdrr, ct, name) for name in ("siddon", "trilinear")},
            **{
                f"plastimatch, {name}": partial(drr_adapters.plastimatch, ct, Path(folder), name)
                for name in ("exact", "uniform")
            },
            "gVirtualXray, surfaces": partial(drr_adapters.gvxr, ct),
        }
        renders: dict[str, Render] = {}
        for name, make in makers.items():
            try:
                preparing = processor_seconds(lambda: renders.update({name: make()}))  # noqa: B023
                console.print(f"{name}: prepared in {preparing:.1f} s")
            except ImportError as error:
                console.print(f"left out: {name} ({error})")
        bandwidth, rate = copied_bytes_per_second(), product_flops_per_second()
        console.print(f"a copy: {bandwidth / 1e9:.1f} GB/s, a product: {rate / 1e9:.0f} GFLOP/s")
        for size in arguments.detectors:
            geometry = BiplanarGeometry.from_angles(detector_size=size)
            images = {name: render(geometry) for name, render in renders.items()}  # the first loads libraries
            seconds = least_seconds({name: partial(r, geometry) for name, r in renders.items()}, arguments.repetitions)
            affine = drr_adapters.isocentric_affine(ct)
            crossed = sum(planes_crossed(view, affine, tuple(ct.shape[1:])) for view in geometry.views)
            moved = 2 * ct.numel() + 4 * images[OURS].size
            limits = (f"{1e3 * moved / bandwidth:.1f}", f"{1e3 * crossed * JOSEPH_FLOPS / rate:.1f}")
            for name, image in images.items():
                # line integrals of the same attenuation: no scale is fitted
                difference = 100 * np.abs(image - images[OURS]).mean() / images[OURS].mean()
                ratio = seconds[name] / seconds[OURS]
                table.add_row(f"{size}²", name, f"{seconds[name]:.3f}", f"{ratio:.1f}", f"{difference:.2f}", *limits)
    console.print(table)
    console.print(f"threads: {torch.get_num_threads()}, load {os.getloadavg()[0]:.1f}", highlight=False)


if __name__ == "__main__":
    main()
