"""How alike two volumes are, within one HU window: PSNR, SSIM, MS-SSIM, gradients, and which way round they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from drr2ct.networks.ssim import gaussian_window, similarity_factors, windowed_mean
from drr2ct.transforms.volume import HU_WINDOW

DEFAULT_WINDOW = (-1024.0, 1476.0)
"""HU; a range of 2500."""

WINDOWS = {"": DEFAULT_WINDOW, "_narrow": (-1024.0, 1024.0), "_full": HU_WINDOW}
"""HU windows by the suffix of their figures: ``psnr``, ``psnr_narrow``, ``psnr_full``."""

GRADIENT_CONSTANT = 0.0026
"""Of the gradient similarity, for values in [0, 1]: Xue et al.'s 170 for 0…255."""

DETAIL_FREQUENCY = 1 / 11
"""Cycles per mm above which structure is detail: the finest that voxels of 5.5 mm could hold."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, finest first (Wang et al., *Multi-scale structural similarity*, Asilomar 2003)."""

SMALLEST_GRID = 11
"""Voxels along each axis that SSIM needs: its window's."""

_SIGMA = 1.5

_IDENTICAL_DB = 100.0

_PLANES = 8
"""What is computed at a time: it stays in the processor's cache, which is several times faster at 256³."""

Volume = Float[Tensor, "1 n m k"]


def planes(*volumes: Tensor, window: Sequence[float] | None = None) -> Iterator[tuple[Tensor, ...]]:
    """The volumes a few planes at a time, those of floating point clipped to the window."""
    for parts in zip(*(volume.split(_PLANES, dim=1) for volume in volumes), strict=True):
        yield tuple(p if window is None or p.dtype == torch.bool else p.clamp(*window) for p in parts)


def total(values: Tensor) -> float:
    """Sum of all values of a few planes: so few that float32, which PyTorch adds up in a cascade, is exact enough.

    To convert each value to float64 before takes twenty times as long.
    """
    return float(values.sum())


def decibels(mean_square: float, data_range: float) -> float:
    """A mean squared error as PSNR, 100 dB at most; NaN stays NaN."""
    if math.isnan(mean_square):
        return math.nan
    return min(_IDENTICAL_DB, 10 * math.log10(data_range**2 / mean_square)) if mean_square else _IDENTICAL_DB


def psnr(pred: Volume, truth: Volume, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB of values in one window; 100 dB at most, which identical values get."""
    squares = sum(total((p - t).square_()) for p, t in planes(pred, truth))
    return decibels(squares / pred.numel(), data_range)


Pair = tuple[Volume, Volume]


def clipped(pred: Volume, truth: Volume, windows: Sequence[Sequence[float]]) -> list[Pair]:
    """Both volumes in each window; the very pair of the first where another window's is equal."""
    pairs = [(pred.clamp(*window), truth.clamp(*window)) for window in windows]
    return [pairs[0] if all(map(torch.equal, pair, pairs[0])) else pair for pair in pairs]


def ssim_planes(pred: Volume, truth: Volume, windows: Sequence[Sequence[float]]) -> Iterator[list[Pair]]:
    """SSIM and its contrast-structure factor at every position where the whole Gaussian window (11, σ 1.5) fits.

    Wang et al., IEEE TIP 13(4), 2004, with population variances, as MONAI has it; the mean of the first is MONAI's
    ``SSIMMetric``. Both come a few planes at a time, in order along the first axis; each axis of the whole is 10
    shorter than the volumes'.

    Args:
        pred: (1, n, m, k) in HU.
        truth: the same.
        windows: HU windows, to which both are clipped; their widths are the data ranges. What several share is computed
            once: they differ in few voxels only.

    Yields:
        for each window SSIM and the factor.
    """
    weights = gaussian_window(SMALLEST_GRID, _SIGMA)
    reach = SMALLEST_GRID - 1
    kept: list[list[Tensor]] = []  # moments of the planes before that the window still reaches
    for p, t in planes(pred, truth):
        new = _moments_of(clipped(p, t, windows), weights)
        reached: list[list[Tensor]] = []
        for i, moments in enumerate(new):
            shared = i > 0 and moments is new[0] and (not kept or kept[i] is kept[0])
            reached.append(reached[0] if shared else [*(kept[i] if kept else ()), moments])
        thickness = [part.shape[2] for part in reached[0]]
        first = _last(reached[0], reach)
        kept = [first if parts is reached[0] else _last(parts, reach) for parts in reached]
        count = sum(thickness) - reach
        if count < 1:
            continue
        # across the few planes, a product with each part is several times faster than shifted sums
        across = torch.zeros(count, sum(thickness), device=pred.device)
        for offset, weight in enumerate(weights):
            across.diagonal(offset).fill_(weight)
        found = []
        for (low, high), parts in zip(windows, reached, strict=True):
            c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
            mean, other, squares, product = _across(across.split(thickness, dim=1), parts)
            luminance, contrast, *_ = similarity_factors(mean, other, squares, product, c1, c2)
            found.append((luminance.mul_(contrast), contrast))
        yield found


def _last(parts: Sequence[Tensor], count: int) -> list[Tensor]:
    """The last planes of those that lie in parts along axis 2."""
    kept: list[Tensor] = []
    for part in reversed(parts):
        missing = count - sum(x.shape[2] for x in kept)
        if missing > 0:
            kept.insert(0, part[:, :, -missing:])
    return kept


def _across(
    weights: Sequence[Float[Tensor, "positions _planes"]], parts: Sequence[Float[Tensor, "1 4 _planes rows columns"]]
) -> list[Float[Tensor, "1 positions rows columns"]]:
    """Weighted sums over planes that lie in parts."""
    size = parts[0].shape[3:]
    found = []
    for which in range(4):
        mean = weights[0] @ parts[0][0, which].flatten(1)
        for weight, part in zip(weights[1:], parts[1:], strict=True):
            mean.addmm_(weight, part[0, which].flatten(1))
        found.append(mean.unflatten(1, size)[None])
    return found


def _moments_of(pairs: Sequence[Pair], weights: Sequence[float]) -> list[Tensor]:
    """Means in the window within each plane, (1, 4, planes, rows, columns) for each pair: as ``similarity_factors``."""

    def mean(pred: Tensor, truth: Tensor) -> Tensor:
        moments = torch.stack([pred, truth, (pred * pred).addcmul_(truth, truth), pred * truth], dim=1)
        return windowed_mean(moments, [[1.0], weights, weights])

    shared = mean(*pairs[0])
    found = [shared]
    for pair in pairs[1:]:
        own = shared
        if pair is not pairs[0]:  # anew where they differ, and as far around as the window reaches
            other = (pair[0] != pairs[0][0]).logical_or_(pair[1] != pairs[0][1])[0].any(dim=0)
            inner, outer = zip(*(_reach(other.any(dim=axis), len(weights)) for axis in (1, 0)), strict=True)
            own = shared.clone()
            own[..., *inner] = mean(*(x[..., *outer] for x in pair))
        found.append(own)
    return found


def _reach(marked: Bool[Tensor, " n"], size: int) -> tuple[slice, slice]:
    """Positions of a window of so many voxels that hold a marked voxel, and the voxels that those windows hold."""
    where = marked.nonzero()
    first = max(int(where.min()) - size + 1, 0)
    last = min(int(where.max()), len(marked) - size)
    return slice(first, last + 1), slice(first, last + size)


def _mean_similarity(pred: Volume, truth: Volume, window: Sequence[float]) -> tuple[float, float]:
    """Means of SSIM and of its contrast-structure factor."""
    sums = np.zeros(2)
    for [(similarity, contrast)] in ssim_planes(pred, truth, [window]):
        sums += total(similarity), total(contrast)
    similarity, contrast = (sums / _positions(pred)).tolist()
    return similarity, contrast


def _positions(volume: Volume) -> int:
    """Where SSIM's window fits."""
    return math.prod(n - SMALLEST_GRID + 1 for n in volume.shape[1:])


def ms_ssim(pred: Volume, truth: Volume, window: Sequence[float]) -> float:
    """Multi-scale SSIM with as many of the five scales as the volume has room for (11 voxels at the coarsest).

    MONAI's ``MultiScaleSSIMMetric`` with the first weights, renormalised to sum 1: five scales from 176 voxels on,
    four from 88, three from 44.
    """
    return ms_ssim_from(_mean_similarity(pred, truth, window), pred, truth, window)


def ms_ssim_from(finest: tuple[float, float], pred: Volume, truth: Volume, window: Sequence[float]) -> float:
    """The product over scales, when the mean SSIM and contrast of the finest are known."""
    scales = max(1, min(len(MS_SSIM_WEIGHTS), int(np.log2(min(pred.shape[1:]) / SMALLEST_GRID)) + 1))
    means = [finest]
    pred, truth = pred.clamp(*window), truth.clamp(*window)
    for _ in range(1, scales):
        pred, truth = F.avg_pool3d(pred, 2), F.avg_pool3d(truth, 2)
        means.append(_mean_similarity(pred, truth, window))
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


def chirality_margin(pred: Volume, truth: Volume, data_range: float) -> float:
    """PSNR of the prediction minus that of its left-right mirror image, dB: negative for a mirrored reconstruction."""
    return psnr(pred, truth, data_range) - psnr(pred.flip(1), truth, data_range)


def detail_explained(pred: Volume, truth: Volume, spacing_mm: Sequence[float]) -> float:
    """Share of the truth's detail that the prediction holds: 1 − |error|² / |truth|² over the band of detail.

    The band is every spatial frequency above :data:`DETAIL_FREQUENCY` cycles per mm; the volumes are tapered by a Hann
    window along each axis, so that the faces of the field of view are no detail. A blurred volume is near 0, and detail
    in the wrong place counts twice, as what is missing and as what is there: a negative share.

    Args:
        pred: within one HU window.
        truth: within the same.
        spacing_mm: of the voxels along each axis.

    Returns:
        at most 1; NaN where the voxels are too large to hold the band, or the truth has nothing in it.
    """
    if max(spacing_mm) >= 0.5 / DETAIL_FREQUENCY:
        return math.nan
    there = _detail_power(truth, spacing_mm)
    return 1 - _detail_power(pred - truth, spacing_mm) / there if there > 0 else math.nan


def _detail_power(volume: Volume, spacing_mm: Sequence[float]) -> float:
    """Sum of |spectrum|² over the band of detail.

    What the axes transformed so far put beyond the band's edge stays there whatever the others say, and its power is
    known without transforming those (Parseval): of 256³ voxels of 1.4 mm a quarter is left for the second axis, and a
    sixteenth for the third.
    """
    n, m, k = volume.shape[1:]
    device = volume.device
    tapers = [torch.hann_window(count, periodic=False, device=device) for count in (n, m, k)]
    across = tapers[1][:, None] * tapers[2]
    first, second = (torch.fft.fftfreq(c, mm, device=device) for c, mm in zip((n, m), spacing_mm[:2], strict=True))
    third = torch.fft.rfftfreq(k, spacing_mm[2], device=device)
    # of a real signal half the spectrum is kept; its inner planes stand for two
    counts_for = torch.ones_like(third)
    counts_for[1 : (k + 1) // 2] = 2.0
    slow = int((third <= DETAIL_FREQUENCY).sum())
    in_plane = second.square()[:, None] + third[:slow].square()
    beyond = in_plane > DETAIL_FREQUENCY**2
    counts_in_plane = counts_for[:slow].expand_as(beyond)
    power, kept = 0.0, []
    for part, taper in planes(volume, tapers[0][None, :, None, None]):
        lines = torch.fft.rfft(part[0] * across * taper[0])
        power += n * m * total(_squared(lines[..., slow:]) * counts_for[slow:])
        slices = torch.fft.fft(lines[..., :slow], dim=1)
        power += n * total(_squared(slices) * (beyond * counts_in_plane))
        kept.append(slices[:, ~beyond])
    spectrum = torch.fft.fft(torch.cat(kept), dim=0)
    outside = first.square()[:, None] + in_plane[~beyond] > DETAIL_FREQUENCY**2
    return power + total(_squared(spectrum) * (outside * counts_in_plane[~beyond]))


def _squared(spectrum: Complex[Tensor, ...]) -> Float[Tensor, ...]:
    return torch.view_as_real(spectrum).square().sum(dim=-1)


def legacy_x2ct_psnr(pred_hu: Volume, truth_hu: Volume) -> float:
    """PSNR as older tables have it (X2CT-GAN, CVPR 2019): not comparable with ours, and always higher.

    HU + 1024 clipped to 0…2500, peak 4095; PSNR of each slice (100 dB where it has no error), averaged over the slices
    of each axis, then over the axes.
    """
    size = pred_hu.shape[1:]
    along_x = []
    over_x = torch.zeros(size[1:], dtype=torch.float64)
    for pred, truth in planes(pred_hu, truth_hu, window=DEFAULT_WINDOW):  # HU + 1024 in 0…2500
        squares = (pred - truth).square_()[0]
        along_x.append(squares.mean(dim=(1, 2), dtype=torch.float64).cpu())
        over_x += squares.sum(dim=0, dtype=torch.float64).cpu() / size[0]
    means = (torch.cat(along_x), over_x.mean(dim=1), over_x.mean(dim=0))
    return float(torch.stack([_slice_psnr(mean).mean() for mean in means]).mean())


def _slice_psnr(squares: Float[Tensor, " slices"]) -> Float[Tensor, " slices"]:
    return torch.where(squares > 0, 10 * torch.log10(4095**2 / squares.clamp(min=1e-300)), _IDENTICAL_DB)
