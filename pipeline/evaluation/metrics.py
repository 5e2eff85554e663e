r"""How close a reconstruction is to the truth: every figure over a stated HU window, in three dimensions.

The network's scale [0, 1] spans 4095 HU; published figures depend on the window, so ours state it. MONAI's own metrics
work on what :class:`InWindow` gives, with the window's width as their ``max_val`` or ``data_range``.
:class:`ReconstructionMetric` computes all figures of a patient in one pass, :class:`ReprojectionMetric` those that
need the radiographs; both are MONAI metrics, and :class:`FigureHandler` attaches them to an engine.
``docs/evaluation.md`` defines each figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics.regression import RegressionMetric
from torch import Tensor

from drr2ct.networks.interval import Output, estimate_of
from drr2ct.pipeline.evaluation.figures import (
    FIGURES,
    HU_NAMES,
    OTHER_NAMES,
    REPROJECTION_FIGURES,
    STRUCTURE_NAMES,
    WINDOW_NAMES,
    hu_figures,
    other_figures,
    window_figures,
)
from drr2ct.pipeline.evaluation.intervals import IntervalMetric
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW, SMALLEST_GRID, WINDOWS
from drr2ct.pipeline.evaluation.structures import (
    STRUCTURES,
    SURFACE_TOLERANCE_MM,
    body_mask,
    overlap_figures,
    structure_masks,
)
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.detector import covered_rectangle
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu


class InWindow:
    """Output transform for ``IgniteMetricHandler``: predictions and labels of an engine, in HU, clipped to a window.

    Args:
        window: (low, high) in HU.

    Raises:
        InputError: if the window is empty.
    """

    def __init__(self, window: Sequence[float] = DEFAULT_WINDOW) -> None:
        low, high = window
        if not low < high:
            raise InputError(f"HU window {tuple(window)} is empty; give (low, high).")
        self.window = (float(low), float(high))
        self._pick = from_engine(["pred", "label"])

    @property
    def width(self) -> float:
        """Range of values: what PSNR and SSIM need as their data range."""
        return self.window[1] - self.window[0]

    def __call__(self, output: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Decollated engine output → lists of (1, N, N, N)."""
        pred, label = self._pick(output)
        return [self.clip(p) for p in pred], [self.clip(t) for t in label]

    def clip(self, scaled: Output) -> Tensor:
        """[0, 1] → HU within the window; of an output with bounds the estimate."""
        return to_hu(estimate_of(scaled).detach().float()).clamp(*self.window)


class PredictionAndRadiographs:
    """Output transform for :class:`ReprojectionMetric`: predictions in HU, and what the network was given.

    A prediction takes its label's affine if that has one, so that a volume whose voxels differ in size by axis
    is projected as what it is.
    """

    def __init__(self) -> None:
        self._pick = from_engine(["pred", "label", "image"])

    def __call__(self, output: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Decollated engine output → lists of (1, N, N, N) in HU and of (V, H, W) in line integrals."""
        volumes = []
        pred, label, image = self._pick(output)
        for made, truth in zip(pred, label, strict=True):
            hu = to_hu(estimate_of(made).detach().float().as_subclass(Tensor))
            volumes.append(MetaTensor(hu, affine=truth.affine) if isinstance(truth, MetaTensor) else hu)
        return volumes, [x.detach().float().as_subclass(Tensor) * LINE_INTEGRAL_SCALE for x in image]


class ReconstructionMetric(RegressionMetric):
    """All figures of a reconstruction in one pass, so that masks are found once.

    Called with predictions and truths in HU, as lists of (1, N, N, N) or batches (B, 1, N, N, N), the last axis along
    the patient's z and the first along x; ``InWindow(HU_WINDOW)`` gives them. The buffer holds (patients, figures).

    Args:
        figures: names from :data:`FIGURES`; parts that none of them needs are not computed.
        spacing_mm: size of a voxel along each axis, for surface distances, where the truth has no affine.
        tolerance_mm: of the normalised surface Dice.
        reduction: see MONAI's ``RegressionMetric``; ``mean_batch`` is one mean per figure, without NaN.

    Raises:
        InputError: for an unknown figure, or volumes too small for SSIM's window.
    """

    def __init__(
        self,
        figures: Iterable[str] = FIGURES,
        spacing_mm: float | Sequence[float] = 1.0,
        tolerance_mm: float = SURFACE_TOLERANCE_MM,
        reduction: str = "mean_batch",
    ) -> None:
        super().__init__(reduction=reduction)
        self.figures = tuple(figures)
        unknown = [name for name in self.figures if name not in FIGURES]
        if unknown or not self.figures:
            raise InputError(f"figures {unknown} are unknown or none; choose from {', '.join(FIGURES)}.")
        self.spacing_mm = [spacing_mm] * 3 if isinstance(spacing_mm, (int, float)) else list(spacing_mm)
        self.tolerance_mm = tolerance_mm

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Tensor:
        """Compute and keep the figures of a batch: (B, figures)."""
        values = [self.compute(p, t) for p, t in zip(y_pred, y, strict=True)]
        rows = torch.tensor([[value[name] for name in self.figures] for value in values])
        self.extend(rows)
        return rows

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        return torch.tensor([list(self.compute(p, t).values()) for p, t in zip(y_pred, y, strict=True)])

    @torch.no_grad()
    def compute(self, pred: Tensor, truth: Tensor) -> dict[str, float]:
        """The figures of one patient, by name; nothing is kept.

        Args:
            pred: (1, N, N, N) in HU.
            truth: the same; if it is a ``MetaTensor``, its affine gives the spacing.

        Raises:
            InputError: if the shapes differ or are too small.
        """
        if pred.shape != truth.shape or pred.ndim != 4 or min(pred.shape[1:]) < SMALLEST_GRID:
            raise InputError(
                f"a reconstruction of shape {tuple(pred.shape)} cannot be compared with a truth of shape "
                f"{tuple(truth.shape)}; both must be (1, N, N, N) on one grid, N at least {SMALLEST_GRID}."
            )
        spacing = [float(s) for s in truth.pixdim] if isinstance(truth, MetaTensor) else self.spacing_mm
        pred, truth = (x.detach().as_subclass(Tensor).float() for x in (pred, truth))
        wanted = set(self.figures)
        body = body_mask(truth)
        found: dict[str, float] = {}
        asked = {name.replace("_body", "")[4:] for name in wanted & set(WINDOW_NAMES)}
        with_scales = "ms_ssim" in wanted
        suffixes = [suffix for suffix in WINDOWS if suffix in asked or (with_scales and not suffix)]
        if suffixes:
            found |= window_figures(suffixes, pred, truth, body, with_scales)
        if wanted & set(HU_NAMES):
            found |= hu_figures(pred, truth, body)
        if wanted & set(OTHER_NAMES):
            found |= other_figures(pred, truth, body, spacing)
        if wanted & set(STRUCTURE_NAMES):
            made, there = structure_masks(pred, body_mask(pred)), structure_masks(truth, body)
            for name in STRUCTURES:
                figures = overlap_figures(made[name], there[name], spacing, self.tolerance_mm)
                found |= {f"{what}_{name}": value for what, value in figures.items()}
        return {name: found[name] for name in self.figures}


def _relative_error(error: Float[Tensor, "views rows columns"], given: Float[Tensor, "views rows columns"]) -> float:
    """Mean over views of Σ|error| / Σ given within the rectangle of what is not 0; NaN for empty radiographs."""
    parts = []
    for wrong, image in zip(error, given, strict=True):
        if (image > 0).any():
            box = covered_rectangle(image > 0)
            parts.append(float(wrong[box].abs().sum() / image[box].sum()))
    return sum(parts) / len(parts) if parts else math.nan


class ReprojectionMetric(RegressionMetric):
    """How far the prediction's own radiographs are from those that the network was given, in line integrals.

    ``reprojection_mae`` is the mean absolute difference over views and pixels, ``reprojection_bias`` the signed mean
    (prediction minus input), ``reprojection_relative`` the mean absolute difference within the rectangle that a
    radiograph covers, as a part of the mean line integral there, averaged over views. What lies outside the grid
    (arms, the table) is missing from every prediction, so a perfect one is not at 0; and a mirrored or otherwise wrong
    volume may fit its radiographs: see ``chirality_db``.

    Called with predictions in HU, (1, N, N, N), and radiographs in line integrals, (V, H, W), NaN where they are not
    known; :class:`PredictionAndRadiographs` gives both.

    Args:
        geometry: the views, and the grid for predictions without an affine.
        reduction: see :class:`ReconstructionMetric`.
    """

    def __init__(self, geometry: BiplanarGeometry, reduction: str = "mean_batch") -> None:
        super().__init__(reduction=reduction)
        self.geometry = geometry
        self.figures = REPROJECTION_FIGURES

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Tensor:
        """Compute and keep the figures of a batch: (B, 3)."""
        rows = torch.cat([self._compute_metric(p[None], r[None]) for p, r in zip(y_pred, y, strict=True)])
        self.extend(rows)
        return rows

    @torch.no_grad()
    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        rows = []
        for volume, radiographs in zip(y_pred, y, strict=True):
            affine = volume.affine if isinstance(volume, MetaTensor) else self.geometry.grid.affine()
            plain = volume.as_subclass(Tensor).float()
            given = radiographs.to(plain)
            known = given.isfinite()
            error = torch.where(known, render_drr(plain, self.geometry, np.asarray(affine)) - given, 0.0)
            mean = [float(e.sum() / known.sum()) for e in (error.abs(), error)]
            rows.append([*mean, _relative_error(error, given.nan_to_num())])
        return torch.tensor(rows)


class FigureHandler(IgniteMetricHandler):
    """Attach a metric of several named figures: each lands in ``state.metrics`` and ``state.metric_details``.

    Args:
        metric_fn: a :class:`ReconstructionMetric`, :class:`ReprojectionMetric` or ``IntervalMetric``.
        output_transform: engine output → what it is called with.
    """

    def __init__(
        self,
        metric_fn: ReconstructionMetric | ReprojectionMetric | IntervalMetric,
        output_transform: Callable[[Any], Any],
    ) -> None:
        self.figures = metric_fn.figures
        super().__init__(metric_fn=metric_fn, output_transform=output_transform, save_details=False)

    def compute(self) -> Mapping[str, float]:
        """Means over all patients of all ranks, by figure."""
        means = self.metric_fn.aggregate("mean_batch")
        rows = self.metric_fn.get_buffer()
        details = cast(Any, self._engine).state.metric_details
        for column, name in enumerate(self.figures):
            details[name] = rows[:, column : column + 1]
        return {name: float(value) for name, value in zip(self.figures, means, strict=True)}
