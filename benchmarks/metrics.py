"""Time and peak memory of each part of the evaluation of one pair of volumes, of all of it, and of MONAI's own SSIM.

OMP_NUM_THREADS=2 python benchmarks/metrics.py [--ct FILE] [--size 256] [--without-monai]

The prediction is the CT blurred by a box of five voxels. Memory is that of the process with both volumes loaded; the
kernel's high-water mark is set back before each part (Linux).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.metrics import SSIMMetric
from rich.console import Console
from rich.table import Table

from drr2ct.networks.ssim import SeparableSSIMMetric
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.evaluation.figures import FIGURES
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.pipeline.evaluation.structures import body_mask
from drr2ct.pipeline.running.memory import peak_resident_bytes, resident_bytes, restart_peak
from drr2ct.pipeline.running.startup import use_large_pages
from drr2ct.transforms.geometry import VolumeGrid
from drr2ct.transforms.volume import LoadCT, ResampleToGrid

PARTS = {
    "PSNR, SSIM −1024…1476, MS-SSIM": ["psnr", "ms_ssim"],
    "PSNR, SSIM −1024…1024": ["psnr_narrow"],
    "PSNR, SSIM −1024…3071": ["psnr_full"],
    "errors in HU by tissue": ["mae_hu"],
    "gradients, chirality, legacy": ["gms_body"],
    "Dice, NSD, HD95": ["dice_body"],
}
"""Each also finds the body in the truth, as the whole does once."""


def main() -> None:
    use_large_pages()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, default=sample_ct())
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--without-monai", action="store_true", help="leave MONAI's SSIM out, which takes longest")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    truth = ResampleToGrid(VolumeGrid(arguments.size, vertical_flip=False))(LoadCT()(arguments.ct))
    pred = MetaTensor(F.avg_pool3d(truth.as_tensor(), 5, 1, 2), affine=truth.affine)
    x, y = (v.as_tensor().clamp(*DEFAULT_WINDOW)[None] for v in (pred, truth))
    width = DEFAULT_WINDOW[1] - DEFAULT_WINDOW[0]

    def part(figures: list[str]) -> Callable[[], object]:
        return lambda: ReconstructionMetric(figures).compute(pred, truth)

    jobs: dict[str, Callable[[], object]] = {"body mask": lambda: body_mask(truth.as_tensor())}
    jobs |= {name: part(figures) for name, figures in PARTS.items()}
    jobs |= {"all figures": part(list(FIGURES))}
    ours, monai = (kind(3, data_range=width) for kind in (SeparableSSIMMetric, SSIMMetric))
    jobs |= {"for comparison, SSIM alone: ours": lambda: ours(x, y)}
    if not arguments.without_monai:
        jobs |= {"for comparison, SSIM alone: MONAI's": lambda: monai(x, y)}
    threads = torch.get_num_threads()
    load = os.getloadavg()[0]
    table = Table(title=f"{arguments.size}³, {threads} thread{'s' * (threads > 1)}, load of the machine {load:.1f}")
    table.add_column("part")
    for name in ("seconds", "of them computing", "peak GiB"):
        table.add_column(name, justify="right")
    for name, job in jobs.items():
        restart_peak()
        began, busy = time.perf_counter(), time.process_time()
        job()
        wall, computing = time.perf_counter() - began, time.process_time() - busy
        table.add_row(name, f"{wall:.2f}", f"{computing:.2f}", f"{peak_resident_bytes() / 2**30:.2f}")
    Console().print(table)
    print(f"the process held {resident_bytes() / 2**30:.2f} GiB at the end; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
