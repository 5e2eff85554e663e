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
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics.regression import RegressionMetric
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from torch import Tensor

from drr2ct.networks.ssim import gaussian_window, windowed_mean
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW, to_hu

DEFAULT_WINDOW = (-1024.0, 1476.0)
"""HU; a range of 2500."""

WINDOWS = {"": DEFAULT_WINDOW, "_narrow": (-1024.0, 1024.0), "_full": HU_WINDOW}
"""HU windows by the suffix of their figures: ``psnr``, ``psnr_narrow``, ``psnr_full``."""

BODY_THRESHOLD_HU = -500.0
TISSUES = {"lung": (-950.0, -500.0), "fat": (-150.0, -30.0), "soft": (0.0, 100.0), "bone": (300.0, HU_WINDOW[1])}
"""Tissues of the truth, inside the body; HU, both ends included."""

STRUCTURES = ("body", "lung", "bone")
"""Found by thresholds in the truth and in the prediction, each on its own."""

SURFACE_TOLERANCE_MM = 3.0
"""Distance within which a surface counts as found."""

GRADIENT_CONSTANT = 0.0026
"""Of the gradient similarity, for values in [0, 1]: Xue et al.'s 170 for 0…255."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, finest first (Wang et al., *Multi-scale structural similarity*, Asilomar 2003)."""

_WINDOW_SIZE, _WINDOW_SIGMA = 11, 1.5
_IDENTICAL_DB = 100.0
_PLANES = 32

Volume = Float[Tensor, "1 n m k"]
Mask = Bool[Tensor, "1 n m k"]


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

    def clip(self, scaled: Tensor) -> Tensor:
        """[0, 1] → HU within the window. Any shape."""
        return to_hu(scaled.detach().float()).clamp(*self.window)


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
            hu = to_hu(made.detach().float().as_subclass(Tensor))
            volumes.append(MetaTensor(hu, affine=truth.affine) if isinstance(truth, MetaTensor) else hu)
        return volumes, [x.detach().float().as_subclass(Tensor) * LINE_INTEGRAL_SCALE for x in image]


def psnr(pred: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"], data_range: float) -> float:
    """Peak signal-to-noise ratio in dB of values in one window; 100 dB at most, which identical values get."""
    if not pred.numel():
        return float("nan")
    error = float((pred - truth).square().mean(dtype=torch.float64))
    return min(_IDENTICAL_DB, 10 * math.log10(data_range**2 / error)) if error else _IDENTICAL_DB


def _windowed_mean(image: Volume, window: Sequence[float]) -> Float[Tensor, "1 n-10 m-10 k-10"]:
    """SSIM's Gaussian mean, a few planes at a time: they stay in the cache, which is three times faster at 256³."""
    one = [1.0]
    planes = [windowed_mean(part[None], [one, window, window])[0] for part in image.split(_PLANES, dim=1)]
    rows = torch.cat(planes, dim=1).split(_PLANES, dim=2)
    return torch.cat([windowed_mean(part[None], [window, one, one])[0] for part in rows], dim=2)


def ssim_maps(
    pred: Volume, truth: Volume, data_range: float
) -> tuple[Float[Tensor, "1 n-10 m-10 k-10"], Float[Tensor, "1 n-10 m-10 k-10"]]:
    """SSIM and its contrast-structure factor at every position where the whole Gaussian window (11, σ 1.5) fits.

    Wang et al., IEEE TIP 13(4), 2004, with population variances, as MONAI has it; the mean of the first is MONAI's
    ``SSIMMetric``. Each axis of the result is 10 shorter.
    """
    window = gaussian_window(_WINDOW_SIZE, _WINDOW_SIGMA)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean, other = _windowed_mean(pred, window), _windowed_mean(truth, window)
    product = mean * other
    squares = mean.square_().add_(other.square_())
    below = _windowed_mean((pred * pred).addcmul_(truth, truth), window).sub_(squares).add_(c2)
    contrast = _windowed_mean(pred * truth, window).sub_(product).mul_(2).add_(c2).div_(below)
    luminance = product.mul_(2).add_(c1).div_(squares.add_(c1))
    return luminance.mul_(contrast), contrast


def ms_ssim(pred: Volume, truth: Volume, data_range: float) -> float:
    """Multi-scale SSIM with as many of the five scales as the volume has room for (11 voxels at the coarsest).

    MONAI's ``MultiScaleSSIMMetric`` with the first weights, renormalised to sum 1: five scales from 176 voxels on,
    four from 88, three from 44.
    """
    scales = _scales(pred)
    similarity, contrast = ssim_maps(pred, truth, data_range)
    return _ms_ssim_from(float((contrast if scales > 1 else similarity).mean()), pred, truth, data_range)


def _scales(volume: Volume) -> int:
    return max(1, min(len(MS_SSIM_WEIGHTS), int(np.log2(min(volume.shape[1:]) / _WINDOW_SIZE)) + 1))


def _ms_ssim_from(finest: float, pred: Volume, truth: Volume, data_range: float) -> float:
    """The product over scales, when that of the finest is known."""
    scales = _scales(pred)
    means = [finest]
    for scale in range(1, scales):
        pred, truth = F.avg_pool3d(pred, 2), F.avg_pool3d(truth, 2)
        similarity, contrast = ssim_maps(pred, truth, data_range)
        means.append(float((contrast if scale < scales - 1 else similarity).mean()))
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    return float(np.prod(np.maximum(means, 0.0) ** weights))


def gradient_similarity(pred: Volume, truth: Volume, data_range: float) -> Volume:
    """Gradient-magnitude similarity at every voxel: 1 where edges are equally strong.

    Xue et al., *Gradient magnitude similarity deviation*, IEEE TIP 23(2), 2014, with central differences in three
    dimensions on values scaled to [0, 1].
    """
    length = pred.shape[1]
    parts = []
    for start in range(0, length, _PLANES):  # a few planes at a time, with one more on each side
        low, high = max(0, start - 1), min(length, start + _PLANES + 1)
        kept = slice(start - low, start - low + min(_PLANES, length - start))
        first, second = (_squared_gradient(x[:, low:high])[:, kept] / data_range**2 for x in (pred, truth))
        below = (first + second).add_(GRADIENT_CONSTANT)
        parts.append(first.mul_(second).sqrt_().mul_(2).add_(GRADIENT_CONSTANT).div_(below))
    return torch.cat(parts, dim=1)


def _squared_gradient(volume: Volume) -> Volume:
    return torch.stack([torch.gradient(volume, dim=axis)[0].square_() for axis in range(1, 4)]).sum(dim=0)


def body_mask(hu: Volume) -> Mask:
    """The patient: the largest connected component above −500 HU, with its holes filled axial slice by slice.

    Slice by slice, because the windpipe opens the lungs to the outside at the end of a scan. The last axis is z.
    """
    labels, count = ndimage.label((hu[0] > BODY_THRESHOLD_HU).cpu().numpy())
    if not count:
        return torch.zeros_like(hu, dtype=torch.bool)
    body = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[1, 1, ::2] = False
    # air that reaches no side of its slice is inside
    regions, count = ndimage.label(~body, structure=in_plane)
    outside = np.zeros(count + 1, dtype=bool)
    for face in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        outside[np.unique(face)] = True
    outside[0] = False  # the body itself
    return torch.from_numpy(~outside[regions])[None].to(hu.device)


def structure_masks(hu: Volume, body: Mask) -> dict[str, Mask]:
    """The masks of :data:`STRUCTURES`: the body, air in it (lungs and airways, up to −500 HU), and bone (> 300 HU)."""
    return {"body": body, "lung": (hu < BODY_THRESHOLD_HU) & body, "bone": (hu > TISSUES["bone"][0]) & body}


def overlap_figures(
    pred: Mask, truth: Mask, spacing_mm: Sequence[float], tolerance_mm: float = SURFACE_TOLERANCE_MM
) -> dict[str, float]:
    """Dice, normalised surface Dice and 95th percentile of the symmetric surface distance of two masks.

    Surfaces are MONAI's: mask voxels with a neighbour outside the mask, distances between their centres.

    Args:
        pred: the predicted mask.
        truth: the true one.
        spacing_mm: size of a voxel along each axis.
        tolerance_mm: a surface voxel within this distance of the other surface counts as found.

    Returns:
        ``dice`` and ``nsd`` in [0, 1] and ``hd95`` in mm. Without the structure in the truth, all are NaN; missing
        from the prediction alone, Dice and NSD are 0 and HD95 is NaN.
    """
    nan = float("nan")
    if not truth.any():
        return {"dice": nan, "nsd": nan, "hd95": nan}
    if not pred.any():
        return {"dice": 0.0, "nsd": 0.0, "hd95": nan}
    dice = 2 * int((pred & truth).sum()) / (int(pred.sum()) + int(truth.sum()))
    _, distances, _ = get_edge_surface_distance(
        pred[0].cpu(), truth[0].cpu(), distance_metric="euclidean", spacing=tuple(spacing_mm), symmetric=True
    )
    found = [d.numpy().astype(np.float64) for d in distances]
    near = sum(int((d <= tolerance_mm + 1e-6).sum()) for d in found)
    return {
        "dice": dice,
        "nsd": near / sum(d.size for d in found),
        "hd95": max(float(np.percentile(d, 95)) for d in found),
    }


def chirality_margin(pred: Volume, truth: Volume, data_range: float) -> float:
    """PSNR of the prediction minus that of its left-right mirror image, dB: negative for a mirrored reconstruction."""
    return psnr(pred, truth, data_range) - psnr(pred.flip(1), truth, data_range)


def legacy_x2ct_psnr(pred_hu: Volume, truth_hu: Volume) -> float:
    """PSNR as older tables have it (X2CT-GAN, CVPR 2019): not comparable with ours, and always higher.

    HU + 1024 clipped to 0…2500, peak 4095; PSNR of each slice (100 dB where it has no error), averaged over the slices
    of each axis, then over the axes.
    """
    squares = ((pred_hu[0] + 1024).clamp_(0, 2500) - (truth_hu[0] + 1024).clamp_(0, 2500)).square_()
    means = [squares.mean(dim=[o for o in range(3) if o != axis], dtype=torch.float64) for axis in range(3)]
    return float(torch.stack([_slice_psnr(mean).mean() for mean in means]).mean())


def _slice_psnr(squares: Float[Tensor, " slices"]) -> Float[Tensor, " slices"]:
    return torch.where(squares > 0, 10 * torch.log10(4095**2 / squares.clamp(min=1e-300)), _IDENTICAL_DB)


def _window_figures(suffix: str, pred: Volume, truth: Volume, body: Mask) -> dict[str, float]:
    low, high = WINDOWS[suffix]
    pred, truth, width = pred.clamp(low, high), truth.clamp(low, high), high - low
    similarity, contrast = ssim_maps(pred, truth, width)
    margin = _WINDOW_SIZE // 2
    inner = body[:, margin:-margin, margin:-margin, margin:-margin]
    figures = (
        {}
        if suffix
        else {
            "ms_ssim": _ms_ssim_from(float((contrast if _scales(pred) > 1 else similarity).mean()), pred, truth, width)
        }
    )
    return figures | {
        f"psnr{suffix}": psnr(pred, truth, width),
        f"ssim{suffix}": float(similarity.mean()),
        f"psnr{suffix}_body": psnr(pred[body], truth[body], width),
        f"ssim{suffix}_body": float(similarity[inner].mean()),
    }


def _hu_figures(pred: Volume, truth: Volume, body: Mask) -> dict[str, float]:
    figures = {"mae_hu": float((pred - truth).abs_().mean(dtype=torch.float64))}
    there = truth[body]
    error = (pred[body] - there).double()
    inside = {"body": error, **{name: error[(there >= lo) & (there <= hi)] for name, (lo, hi) in TISSUES.items()}}
    for name, values in inside.items():
        figures[f"mae_hu_{name}"] = float(values.abs().mean())
        figures[f"bias_hu_{name}"] = float(values.mean())
    return figures


def _other_figures(pred: Volume, truth: Volume, body: Mask) -> dict[str, float]:
    low, high = DEFAULT_WINDOW
    pred, truth = pred.clamp(low, high), truth.clamp(low, high)
    return {
        "gms_body": float(gradient_similarity(pred, truth, high - low)[body].mean()),
        "chirality_db": chirality_margin(pred, truth, high - low),
        "legacy_x2ct_psnr": legacy_x2ct_psnr(pred, truth),
    }


_WINDOW_NAMES = tuple(f"{what}{s}{where}" for s in WINDOWS for where in ("", "_body") for what in ("psnr", "ssim"))
_HU_NAMES = ("mae_hu", *(f"{what}_hu_{name}" for name in ("body", *TISSUES) for what in ("mae", "bias")))
_OTHER_NAMES = ("gms_body", "chirality_db", "legacy_x2ct_psnr")
_STRUCTURE_NAMES = tuple(f"{what}_{name}" for name in STRUCTURES for what in ("dice", "nsd", "hd95"))
FIGURES = (
    "psnr",
    "ssim",
    "mae_hu",
    *(name for name in (*_WINDOW_NAMES, *_HU_NAMES) if name not in ("psnr", "ssim", "mae_hu")),
    "ms_ssim",
    *_OTHER_NAMES,
    *_STRUCTURE_NAMES,
)
"""Every figure of :class:`ReconstructionMetric`, in the order of the tables."""

REPROJECTION_FIGURES = ("reprojection_mae", "reprojection_bias")


def lower_is_better(figure: str) -> bool:
    """Errors, biases and distances, as opposed to similarities."""
    return figure.startswith(("mae_", "bias_", "hd95_", "reprojection_"))


def higher_is_better(figure: str) -> bool:
    """Similarities, PSNR and the chirality margin."""
    return not lower_is_better(figure)


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
        if pred.shape != truth.shape or pred.ndim != 4 or min(pred.shape[1:]) < _WINDOW_SIZE:
            raise InputError(
                f"a reconstruction of shape {tuple(pred.shape)} cannot be compared with a truth of shape "
                f"{tuple(truth.shape)}; both must be (1, N, N, N) on one grid, N at least {_WINDOW_SIZE}."
            )
        spacing = [float(s) for s in truth.pixdim] if isinstance(truth, MetaTensor) else self.spacing_mm
        pred, truth = (x.detach().as_subclass(Tensor).float().clamp(*HU_WINDOW) for x in (pred, truth))
        wanted = set(self.figures)
        body = body_mask(truth)
        found: dict[str, float] = {}
        for suffix in WINDOWS:
            names = {name for name in _WINDOW_NAMES if name.replace("_body", "")[4:] == suffix}
            if wanted & (names if suffix else {*names, "ms_ssim"}):
                found |= _window_figures(suffix, pred, truth, body)
        if wanted & set(_HU_NAMES):
            found |= _hu_figures(pred, truth, body)
        if wanted & set(_OTHER_NAMES):
            found |= _other_figures(pred, truth, body)
        if wanted & set(_STRUCTURE_NAMES):
            made, there = structure_masks(pred, body_mask(pred)), structure_masks(truth, body)
            for name in STRUCTURES:
                figures = overlap_figures(made[name], there[name], spacing, self.tolerance_mm)
                found |= {f"{what}_{name}": value for what, value in figures.items()}
        return {name: found[name] for name in self.figures}


class ReprojectionMetric(RegressionMetric):
    """How far the prediction's own radiographs are from those that the network was given, in line integrals.

    ``reprojection_mae`` is the mean absolute difference over views and pixels, ``reprojection_bias`` the signed mean
    (prediction minus input). What lies outside the grid (arms, the table) is missing from every prediction, so a
    perfect one is not at 0; and a mirrored or otherwise wrong volume may fit its radiographs: see ``chirality_db``.

    Called with predictions in HU, (1, N, N, N), and radiographs in line integrals, (V, H, W);
    :class:`PredictionAndRadiographs` gives both.

    Args:
        geometry: the views, and the grid for predictions without an affine.
        reduction: see :class:`ReconstructionMetric`.
    """

    def __init__(self, geometry: BiplanarGeometry, reduction: str = "mean_batch") -> None:
        super().__init__(reduction=reduction)
        self.geometry = geometry
        self.figures = REPROJECTION_FIGURES

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> Tensor:
        """Compute and keep the figures of a batch: (B, 2)."""
        rows = torch.cat([self._compute_metric(p[None], r[None]) for p, r in zip(y_pred, y, strict=True)])
        self.extend(rows)
        return rows

    @torch.no_grad()
    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        rows = []
        for volume, radiographs in zip(y_pred, y, strict=True):
            affine = volume.affine if isinstance(volume, MetaTensor) else self.geometry.grid.affine()
            plain = volume.as_subclass(Tensor).float()
            error = render_drr(plain, self.geometry, np.asarray(affine)) - radiographs.to(plain)
            rows.append([float(error.abs().mean()), float(error.mean())])
        return torch.tensor(rows)


class FigureHandler(IgniteMetricHandler):
    """Attach a metric of several named figures: each lands in ``state.metrics`` and ``state.metric_details``.

    Args:
        metric_fn: a :class:`ReconstructionMetric` or :class:`ReprojectionMetric`.
        output_transform: engine output → what it is called with.
    """

    def __init__(
        self, metric_fn: ReconstructionMetric | ReprojectionMetric, output_transform: Callable[[Any], Any]
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
