r"""How close a reconstruction is to the truth: every figure over a stated HU window, in three dimensions.

The network's scale [0, 1] spans 4095 HU; published figures depend on the window, so ours state it. MONAI's own metrics
work on what :class:`InWindow` gives, with the window's width as their ``max_val`` or ``data_range``.
:class:`ReconstructionMetric` computes all figures of a patient in one pass, :class:`ReprojectionMetric` those that
need the radiographs; both are MONAI metrics, and :class:`FigureHandler` attaches them to an engine.
``docs/evaluation.md`` defines each figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics.regression import RegressionMetric
from scipy import ndimage
from scipy.spatial import KDTree
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
SMALLEST_GRID = _WINDOW_SIZE
"""Voxels along each axis that SSIM needs."""
_PLANES = 8
"""What is computed at a time: it stays in the processor's cache, which is several times faster at 256³."""

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


def _planes(*volumes: Tensor, window: Sequence[float] | None = None) -> Iterator[tuple[Tensor, ...]]:
    """The volumes a few planes at a time, those of floating point clipped to the window."""
    for parts in zip(*(volume.split(_PLANES, dim=1) for volume in volumes), strict=True):
        yield tuple(p if window is None or p.dtype == torch.bool else p.clamp(*window) for p in parts)


def _decibels(mean_square: float, data_range: float) -> float:
    if math.isnan(mean_square):
        return math.nan
    return min(_IDENTICAL_DB, 10 * math.log10(data_range**2 / mean_square)) if mean_square else _IDENTICAL_DB


def psnr(pred: Volume, truth: Volume, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB of values in one window; 100 dB at most, which identical values get."""
    squares = sum(float((p - t).square_().sum(dtype=torch.float64)) for p, t in _planes(pred, truth))
    return _decibels(squares / pred.numel(), data_range)


def ssim_planes(pred: Volume, truth: Volume, data_range: float) -> Iterator[tuple[Volume, Volume]]:
    """SSIM and its contrast-structure factor at every position where the whole Gaussian window (11, σ 1.5) fits.

    Wang et al., IEEE TIP 13(4), 2004, with population variances, as MONAI has it; the mean of the first is MONAI's
    ``SSIMMetric``. Both come a few planes at a time, in order along the first axis; each axis of the whole is 10
    shorter than the volumes'.
    """
    weights, one = gaussian_window(_WINDOW_SIZE, _WINDOW_SIGMA), [1.0]
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    kept: list[Tensor] = []
    for p, t in _planes(pred, truth):
        moments = torch.stack([p, t, (p * p).addcmul_(t, t), p * t], dim=1)
        smooth = torch.cat([*kept, windowed_mean(moments, [one, weights, weights])], dim=2)
        kept = [smooth[:, :, 1 - _WINDOW_SIZE :]]
        if smooth.shape[2] < _WINDOW_SIZE:
            continue
        mean, other, below, above = windowed_mean(smooth, [weights, one, one]).unbind(dim=1)
        product = mean * other
        squares = mean.square_().add_(other.square_())
        contrast = above.sub_(product).mul_(2).add_(c2).div_(below.sub_(squares).add_(c2))
        luminance = product.mul_(2).add_(c1).div_(squares.add_(c1))
        yield luminance.mul_(contrast), contrast


def _mean_similarity(pred: Volume, truth: Volume, data_range: float) -> tuple[float, float]:
    """Means of SSIM and of its contrast-structure factor."""
    sums = [
        torch.stack([similarity.sum(dtype=torch.float64), contrast.sum(dtype=torch.float64)])
        for similarity, contrast in ssim_planes(pred, truth, data_range)
    ]
    similarity, contrast = (torch.stack(sums).sum(dim=0) / _positions(pred)).tolist()
    return similarity, contrast


def _positions(volume: Volume) -> int:
    """Where SSIM's window fits."""
    return math.prod(n - _WINDOW_SIZE + 1 for n in volume.shape[1:])


def ms_ssim(pred: Volume, truth: Volume, data_range: float) -> float:
    """Multi-scale SSIM with as many of the five scales as the volume has room for (11 voxels at the coarsest).

    MONAI's ``MultiScaleSSIMMetric`` with the first weights, renormalised to sum 1: five scales from 176 voxels on,
    four from 88, three from 44.
    """
    return _ms_ssim_from(_mean_similarity(pred, truth, data_range), pred, truth, data_range)


def _ms_ssim_from(finest: tuple[float, float], pred: Volume, truth: Volume, data_range: float) -> float:
    """The product over scales, when the mean SSIM and contrast of the finest are known."""
    scales = max(1, min(len(MS_SSIM_WEIGHTS), int(np.log2(min(pred.shape[1:]) / _WINDOW_SIZE)) + 1))
    means = [finest]
    for _ in range(1, scales):
        pred, truth = F.avg_pool3d(pred, 2), F.avg_pool3d(truth, 2)
        means.append(_mean_similarity(pred, truth, data_range))
    factors = [*(contrast for _, contrast in means[:-1]), means[-1][0]]
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    return float(np.prod(np.maximum(factors, 0.0) ** weights))


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
        first, second = (_squared_gradient(x[:, low:high] / data_range)[:, kept] for x in (pred, truth))
        below = (first + second).add_(GRADIENT_CONSTANT)
        parts.append(first.mul_(second).sqrt_().mul_(2).add_(GRADIENT_CONSTANT).div_(below))
    return torch.cat(parts, dim=1)


def _squared_gradient(volume: Volume) -> Volume:
    x, y, z = (torch.gradient(volume, dim=axis)[0] for axis in range(1, 4))
    return x.square_().addcmul_(y, y).addcmul_(z, z)


def body_mask(hu: Volume) -> Mask:
    """The patient: the largest connected component above −500 HU, with its holes filled axial slice by slice.

    Slice by slice, because the windpipe opens the lungs to the outside at the end of a scan. The last axis is z.
    """
    body = np.zeros(hu.shape[1:], dtype=bool)
    labels, count = ndimage.label((hu[0] > BODY_THRESHOLD_HU).cpu().numpy())
    if not count:
        return torch.from_numpy(body)[None].to(hu.device)
    # plane by plane: bincount would make 8-byte numbers of the whole volume
    sizes = np.sum([np.bincount(plane.ravel(), minlength=count + 1) for plane in labels], axis=0)
    largest = 1 + int(sizes[1:].argmax())
    box = ndimage.find_objects(labels, largest)[-1]
    inside = labels[box] == largest
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[1, 1, ::2] = False
    # air that reaches no side of its slice is inside; where it reaches the box's, it also reaches the slice's
    regions, count = ndimage.label(~inside, structure=in_plane)
    outside = np.zeros(count + 1, dtype=bool)
    for face in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        outside[np.unique(face)] = True
    outside[0] = False  # the body itself
    body[box] = ~outside[regions]
    return torch.from_numpy(body)[None].to(hu.device)


def structure_masks(hu: Volume, body: Mask) -> dict[str, Mask]:
    """The masks of :data:`STRUCTURES`: the body, air in it (lungs and airways, up to −500 HU), and bone (> 300 HU)."""
    return {"body": body, "lung": (hu < BODY_THRESHOLD_HU) & body, "bone": (hu > TISSUES["bone"][0]) & body}


def surface(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Voxels of the mask with one of their six neighbours, or the volume's end, outside it."""
    inner = mask.copy()
    for axis in range(3):
        here, there = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[[0, -1]] = False
    return mask & ~inner


def surface_distances(
    first: Bool[np.ndarray, "i j k"], second: Bool[np.ndarray, "i j k"], spacing_mm: Sequence[float]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Distance (mm) of each voxel of one mask's surface to the nearest of the other's, both ways; neither is empty.

    Values are those of MONAI's ``get_edge_surface_distance``.
    """
    edges = surface(first), surface(second)
    points = [np.argwhere(edge) for edge in edges]
    trees = [KDTree(p * np.asarray(spacing_mm), leafsize=32, balanced_tree=False) for p in points]
    found = []
    for here, edge, tree in zip(points, edges[::-1], trees[::-1], strict=True):
        distances = np.zeros(len(here))
        apart = ~edge[tuple(here.T)]  # where surfaces coincide there is nothing to look for
        distances[apart] = tree.query(here[apart] * np.asarray(spacing_mm), workers=torch.get_num_threads())[0]
        found.append(distances)
    return found[0], found[1]


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
    made, there = pred[0].cpu().numpy(), truth[0].cpu().numpy()
    counts = int(np.count_nonzero(made)), int(np.count_nonzero(there))
    if not counts[1]:
        return {"dice": nan, "nsd": nan, "hd95": nan}
    if not counts[0]:
        return {"dice": 0.0, "nsd": 0.0, "hd95": nan}
    distances = surface_distances(made, there, spacing_mm)
    near = sum(int(np.count_nonzero(d <= tolerance_mm + 1e-6)) for d in distances)
    return {
        "dice": 2 * int(np.count_nonzero(made & there)) / sum(counts),
        "nsd": near / sum(d.size for d in distances),
        "hd95": max(float(np.percentile(d, 95)) for d in distances),
    }


def chirality_margin(pred: Volume, truth: Volume, data_range: float) -> float:
    """PSNR of the prediction minus that of its left-right mirror image, dB: negative for a mirrored reconstruction."""
    return psnr(pred, truth, data_range) - psnr(pred.flip(1), truth, data_range)


def legacy_x2ct_psnr(pred_hu: Volume, truth_hu: Volume) -> float:
    """PSNR as older tables have it (X2CT-GAN, CVPR 2019): not comparable with ours, and always higher.

    HU + 1024 clipped to 0…2500, peak 4095; PSNR of each slice (100 dB where it has no error), averaged over the slices
    of each axis, then over the axes.
    """
    size = pred_hu.shape[1:]
    along_x = []
    over_x = torch.zeros(size[1:], dtype=torch.float64)
    for pred, truth in _planes(pred_hu, truth_hu, window=DEFAULT_WINDOW):  # HU + 1024 in 0…2500
        squares = (pred - truth).square_()[0]
        along_x.append(squares.mean(dim=(1, 2), dtype=torch.float64).cpu())
        over_x += squares.sum(dim=0, dtype=torch.float64).cpu() / size[0]
    means = (torch.cat(along_x), over_x.mean(dim=1), over_x.mean(dim=0))
    return float(torch.stack([_slice_psnr(mean).mean() for mean in means]).mean())


def _slice_psnr(squares: Float[Tensor, " slices"]) -> Float[Tensor, " slices"]:
    return torch.where(squares > 0, 10 * torch.log10(4095**2 / squares.clamp(min=1e-300)), _IDENTICAL_DB)


def _window_figures(suffix: str, pred: Volume, truth: Volume, body: Mask, with_scales: bool) -> dict[str, float]:
    low, high = WINDOWS[suffix]
    width = high - low
    pred, truth = pred.clamp(low, high), truth.clamp(low, high)
    sums = torch.zeros(2, dtype=torch.float64)
    for p, t, inside in _planes(pred, truth, body):
        squares = (p - t).square_()
        sums[0] += squares.sum(dtype=torch.float64).cpu()
        sums[1] += squares.mul_(inside).sum(dtype=torch.float64).cpu()
    error, body_error = (sums / torch.tensor([body.numel(), int(body.sum())])).tolist()
    margin = _WINDOW_SIZE // 2
    inner = body[:, margin:-margin, margin:-margin, margin:-margin]
    sums, done = torch.zeros(3, dtype=torch.float64), 0
    for similarity, contrast in ssim_planes(pred, truth, width):
        inside = inner[:, done : done + similarity.shape[1]]
        done += similarity.shape[1]
        sums[:2] += torch.stack([x.sum(dtype=torch.float64) for x in (similarity, contrast)]).cpu()
        sums[2] += similarity.mul_(inside).sum(dtype=torch.float64).cpu()
    ssim, contrast_mean, body_ssim = (sums / torch.tensor([inner.numel(), inner.numel(), int(inner.sum())])).tolist()
    scales = {"ms_ssim": _ms_ssim_from((ssim, contrast_mean), pred, truth, width)} if with_scales else {}
    return scales | {
        f"psnr{suffix}": _decibels(error, width),
        f"ssim{suffix}": ssim,
        f"psnr{suffix}_body": _decibels(body_error, width),
        f"ssim{suffix}_body": body_ssim,
    }


def _hu_figures(pred: Volume, truth: Volume, body: Mask) -> dict[str, float]:
    names = ("", "body", *TISSUES)
    sums = {name: np.zeros(3) for name in names}  # |error|, error, voxels
    for p, t, inside in _planes(pred, truth, body, window=HU_WINDOW):
        error = p - t
        signed = float(error.sum(dtype=torch.float64))
        sums[""] += float(error.abs().sum(dtype=torch.float64)), signed, error.numel()
        error, there = error.masked_select(inside), t.masked_select(inside)
        tissues = {name: (there >= low) & (there <= high) for name, (low, high) in TISSUES.items()}
        parts = {"body": error, **{name: error.masked_select(mask) for name, mask in tissues.items()}}
        for name, values in parts.items():
            signed = float(values.sum(dtype=torch.float64))
            sums[name] += float(values.abs_().sum(dtype=torch.float64)), signed, values.numel()
    figures = {}
    for name, (absolute, signed, count) in sums.items():
        suffix = f"_{name}" if name else ""
        figures[f"mae_hu{suffix}"] = absolute / count if count else math.nan
        figures[f"bias_hu{suffix}"] = signed / count if count else math.nan
    return figures


def _other_figures(pred: Volume, truth: Volume, body: Mask) -> dict[str, float]:
    low, high = DEFAULT_WINDOW
    pred, truth = pred.clamp(low, high), truth.clamp(low, high)
    similarity = gradient_similarity(pred, truth, high - low)
    in_body = sum(float(g.mul_(inside).sum(dtype=torch.float64)) for g, inside in _planes(similarity, body))
    count = int(body.sum())
    return {
        "gms_body": in_body / count if count else math.nan,
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
        pred, truth = (x.detach().as_subclass(Tensor).float() for x in (pred, truth))
        wanted = set(self.figures)
        body = body_mask(truth)
        found: dict[str, float] = {}
        for suffix in WINDOWS:
            names = {name for name in _WINDOW_NAMES if name.replace("_body", "")[4:] == suffix}
            if wanted & (names if suffix else {*names, "ms_ssim"}):
                found |= _window_figures(suffix, pred, truth, body, not suffix and "ms_ssim" in wanted)
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
