"""How good bounds are: what they cover, how wide they are, and whether they are wide where the estimate is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.metrics.regression import RegressionMetric
from scipy.stats import rankdata
from torch import Tensor

from drr2ct.networks.interval import TAIL, has_bounds
from drr2ct.pipeline.evaluation.figures import INTERVAL_FIGURES
from drr2ct.pipeline.evaluation.structures import TISSUES, Mask, body_mask
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

LEVEL = 1 - 2 * TAIL
"""Share of voxels that bounds are to cover."""
REGIONS = 16
"""Along each axis of a volume; of the default field of view, regions of 22.5 mm."""
SHARES = np.linspace(0, 0.95, 20)
"""Of a patient's voxels, what a sparsification leaves out."""

Bounded = Float[Tensor, "3 n m k"]
"""Estimate, lower and upper bound in HU."""


class BoundsAndTruth:
    """Output transform for :class:`IntervalMetric`: outputs with bounds, and labels, of an engine, in HU."""

    def __init__(self) -> None:
        self._pick = from_engine(["pred", "label"])

    def __call__(self, output: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Decollated engine output → lists of (3, N, N, N) and of (1, N, N, N)."""
        pred, label = self._pick(output)
        return [to_hu(plain(p)) for p in pred], [to_hu(plain(t)) for t in label]


def plain(volume: Tensor) -> Tensor:
    """A volume's values in float32, without metadata."""
    return (volume.as_tensor() if isinstance(volume, MetaTensor) else volume).detach().float()


def interval_figures(output: Bounded, truth: Float[Tensor, "1 n m k"], body: Mask) -> dict[str, float]:
    """The figures of :data:`~drr2ct.pipeline.evaluation.figures.INTERVAL_FIGURES`, by name.

    Args:
        output: estimate and bounds.
        truth: in HU.
        body: of the truth; a tissue is the truth's, in it.
    """
    inside = body.expand_as(truth)
    there = truth[inside]
    estimate, low, high = (volume[None][inside] for volume in output)
    covered = (low <= there) & (there <= high)
    found = {
        "interval_coverage": _mean(covered),
        "interval_width_hu": _mean(high - low),
        "interval_rank": rank_correlation(high - low, (estimate - there).abs()),
        "interval_rank_regions": rank_of_regions(output, truth, body),
        "interval_rank_volume": rank_of_volume(output, truth),
    }
    for name, (least, most) in TISSUES.items():
        found[f"interval_coverage_{name}"] = _mean(covered[(there >= least) & (there <= most)])
    return found


def region_means(volume: Float[Tensor, "1 n m k"], body: Mask) -> Float[Tensor, " regions"]:
    """Means over the body's voxels in each region: boxes of a sixteenth of the grid along each axis, half of it body.

    What is expected of an error is not what a single voxel's error is, which may be small by chance; of a few hundred
    voxels' mean it nearly is.
    """
    edges = [max(n // REGIONS, 1) for n in volume.shape[1:]]
    share = F.avg_pool3d(body.float(), edges)
    means = F.avg_pool3d(volume * body, edges) / share.clamp(min=1e-6)
    return means[share >= 0.5]


def rank_of_regions(output: Bounded, truth: Float[Tensor, "1 n m k"], body: Mask) -> float:
    """Spearman's correlation of the bounds' distance and the absolute error in the means of regions."""
    inside = body.expand_as(truth)
    width, error = output[2:] - output[1:2], (output[:1] - truth).abs()
    return rank_correlation(region_means(width, inside), region_means(error, inside))


def rank_of_volume(output: Bounded, truth: Float[Tensor, "1 n m k"]) -> float:
    """Spearman's correlation of the bounds' distance and the absolute error over all voxels, air around included."""
    return rank_correlation((output[2] - output[1]).flatten(), (output[0] - truth[0]).abs().flatten())


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else math.nan


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, of two lists of numbers; NaN where one of them is constant, or there are none."""
    if first.numel() < 2:
        return math.nan
    ranks = [rankdata(values.cpu().numpy()) for values in (first, second)]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def sparsification(width: Tensor, error: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute error of what is left when the widest (and at best the most wrong) voxels are left out.

    Sparsification plots: Ilg et al., *Uncertainty estimates and multi-hypotheses networks for optical flow*, ECCV 2018.

    Args:
        width: of each voxel.
        error: absolute, of each voxel.

    Returns:
        By width and by the error itself, at every one of :data:`SHARES`.
    """
    wrong = error.cpu().numpy().astype(np.float64)
    left = (np.round((1 - SHARES) * len(wrong))).astype(int).clip(1)

    def means(order: np.ndarray) -> np.ndarray:
        return np.cumsum(wrong[order])[left - 1] / left

    return means(np.argsort(width.cpu().numpy(), kind="stable")), means(np.argsort(wrong, kind="stable"))


class IntervalMetric(RegressionMetric):
    """Figures of bounds, as a MONAI metric; the buffer holds (patients, figures).

    Called with outputs (3, N, N, N) and truths (1, N, N, N) in HU; :class:`BoundsAndTruth` gives both.

    Args:
        reduction: see MONAI's ``RegressionMetric``.
    """

    def __init__(self, reduction: str = "mean_batch") -> None:
        super().__init__(reduction=reduction)
        self.figures = INTERVAL_FIGURES

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Tensor:
        """Compute and keep the figures of a batch: (B, figures)."""
        rows = torch.cat([self._compute_metric(p[None], t[None]) for p, t in zip(y_pred, y, strict=True)])
        self.extend(rows)
        return rows

    @torch.no_grad()
    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        rows = []
        for output, truth in zip(y_pred, y, strict=True):
            if not has_bounds(output):
                raise InputError("the interval's figures need a network with bounds (network_def#interval=true).")
            found = interval_figures(output, truth, body_mask(truth))
            rows.append([found[name] for name in self.figures])
        return torch.tensor(rows)
