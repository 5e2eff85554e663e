"""Similarity of a pair of volumes by this package, by MONAI and by torchmetrics: values, and processor time.

python benchmarks/against.py [--size 96] [--repetitions 3]

What is not installed is left out and named. All take turns. torchmetrics pads the borders that the others leave out, so
its SSIM is another number. The last column is the physical limit: both volumes read once from memory, at the bandwidth
that a copy reaches here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from monai.metrics import PSNRMetric, SSIMMetric
from monai.metrics.regression import RegressionMetric
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from side_by_side import copied_bytes_per_second, least_seconds
from torch import Tensor

from drr2ct.networks.ssim import SeparableSSIMMetric
from drr2ct.pipeline.evaluation.similarity import psnr

Measure = Callable[[], float]


def mean_of(metric: RegressionMetric, pred: Tensor, truth: Tensor) -> float:
    """A MONAI metric's one number for one pair."""
    return float(torch.as_tensor(metric(pred, truth)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    console = Console()
    generator = torch.Generator().manual_seed(0)
    truth = F.avg_pool3d(torch.rand(1, 1, *[arguments.size] * 3, generator=generator), 3, 1, 1)
    pred = F.avg_pool3d(truth, 5, 1, 2)
    ssim = {"this package": SeparableSSIMMetric(3, data_range=1.0), "MONAI": SSIMMetric(3, data_range=1.0)}
    measures: dict[str, dict[str, Measure]] = {
        "SSIM": {name: partial(mean_of, metric, pred, truth) for name, metric in ssim.items()},
        "PSNR": {
            "this package": lambda: psnr(pred[0], truth[0], 1.0),
            "MONAI": partial(mean_of, PSNRMetric(1.0), pred, truth),
        },
    }
    if importlib.util.find_spec("torchmetrics") is None:
        console.print("left out: torchmetrics, which is not installed")
    else:
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

        measures["SSIM"]["torchmetrics"] = lambda: float(
            structural_similarity_index_measure(pred, truth, sigma=1.5, data_range=1.0)
        )
        measures["PSNR"]["torchmetrics"] = lambda: float(peak_signal_noise_ratio(pred, truth, data_range=1.0))
    limit = 2 * truth.numel() * truth.element_size() / copied_bytes_per_second()
    title = f"{arguments.size}³, threads: {torch.get_num_threads()}, smallest of {arguments.repetitions}"
    table = Table("figure", "by", "value", "processor, ms", "ratio", "limit, ms", box=MARKDOWN)
    for figure, by in measures.items():
        values = {name: measure() for name, measure in by.items()}
        least = least_seconds(by, arguments.repetitions)
        for name, seconds in least.items():
            ratio = seconds / least["this package"]
            table.add_row(
                figure, name, f"{values[name]:.4f}", f"{1e3 * seconds:.0f}", f"{ratio:.1f}", f"{1e3 * limit:.1f}"
            )
    table.title = f"{title} (load {os.getloadavg()[0]:.1f})"
    console.print(table)


if __name__ == "__main__":
    main()
