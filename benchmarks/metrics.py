"""Time of each part of the evaluation of one pair of volumes, and the memory that all of it takes.

python benchmarks/metrics.py [--ct FILE] [--size 256]
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.demo import sample_ct
from drr2ct.pipeline.metrics import FIGURES, ReconstructionMetric
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


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, default=sample_ct())
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    truth = ResampleToGrid(VolumeGrid(arguments.size, vertical_flip=False))(LoadCT()(arguments.ct))
    pred = MetaTensor(F.avg_pool3d(truth.as_tensor(), 5, 1, 2), affine=truth.affine)
    before = peak_gib()
    table = Table(title=f"{arguments.size}³, {torch.get_num_threads()} threads; each part finds the body anew")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    for name, figures in {**PARTS, "all": list(FIGURES)}.items():
        began = time.perf_counter()
        ReconstructionMetric(figures).compute(pred, truth)
        table.add_row(name, f"{time.perf_counter() - began:.2f}")
    Console().print(table)
    print(f"peak resident memory {peak_gib():.2f} GiB, before the first figure {before:.2f} GiB")


if __name__ == "__main__":
    main()
