r"""Structural similarity (Wang et al., *Image quality assessment*, IEEE TIP 13(4), 2004), in two and three dimensions.

Values and gradients are those of MONAI's ``SSIMMetric`` and ``SSIMLoss`` (Gaussian window, valid borders), computed
with one-dimensional windows and an analytic gradient, many times faster and in a fraction of the memory. The loss
(:class:`drr2ct.networks.losses.SSIMLoss`) and the metric share this one implementation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from monai.metrics.regression import KernelType, SSIMMetric
from torch import Tensor
from torch.autograd.function import once_differentiable

from drr2ct.transforms.validation import InputError

Windows = Sequence[Sequence[float]]
"""One-dimensional weights for each spatial axis."""


def gaussian_window(size: int, sigma: float) -> list[float]:
    """Normalised Gaussian weights, rounded to float32 as MONAI's are."""
    distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    weights = torch.exp(-((distance / sigma) ** 2) / 2)
    return (weights / weights.sum()).tolist()


_BLOCK = 2**19
"""Values that are summed at a time on a CPU: they, and what becomes of them, stay in its cache."""
_SLAB = 2**22
"""Values of an image that are compared at a time."""


def _blocks(axis: int, *images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same parts of images that differ in the size of ``axis`` only; on a GPU, or without values, there is one."""
    other = 3 if axis == 2 and images[0].ndim > 3 else 2
    # a plan's tensors are of a class of their own, and have no values that a cache could hold
    if images[0].is_cuda or type(images[0]) is not Tensor or other == axis:
        yield images
        return
    thickness = max(1, _BLOCK * images[0].shape[other] // max(images[0].numel(), 1))
    yield from zip(*(image.split(thickness, dim=other) for image in images), strict=True)


def windowed_mean(image: Tensor, windows: Windows) -> Tensor:
    """Weighted mean in every window that lies wholly inside the image.

    Shifted sums, not convolutions: many times faster than ``conv3d`` on a CPU, and never TF32 on a GPU, whose
    three digits would drown the small differences E[x²] − E[x]².
    """
    for axis, weights in enumerate(windows, start=2):
        shape = list(image.shape)
        length = shape[axis] = shape[axis] - len(weights) + 1
        result = image.new_empty(shape)
        for source, total in _blocks(axis, image, result):
            torch.mul(source.narrow(axis, 0, length), weights[0], out=total)
            for start, weight in enumerate(weights[1:], start=1):
                total.add_(source.narrow(axis, start, length), alpha=weight)
        image = result
    return image


def _spread(gradient: Tensor, windows: Windows) -> Tensor:
    """Transpose of :func:`windowed_mean`."""
    for axis, weights in enumerate(windows, start=2):
        shape = list(gradient.shape)
        length = shape[axis]
        shape[axis] = length + len(weights) - 1
        result = gradient.new_zeros(shape)
        for source, total in _blocks(axis, gradient, result):
            for start, weight in enumerate(weights):
                total.narrow(axis, start, length).add_(source, alpha=weight)
        gradient = result
    return gradient


def similarity_factors(
    first: Tensor, second: Tensor, squares: Tensor, product: Tensor, c1: float, c2: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SSIM at every position of the window, as its two factors.

    Equation 13 of Wang et al. with its variances and covariance written as E[x²] − E[x]² and E[xy] − E[x]E[y]; only
    the sum of the two variances occurs, so their windows are one.

    Args:
        first: windowed mean of one image.
        second: of the other.
        squares: of the sum of both images' squares; overwritten.
        product: of their product; overwritten.
        c1: stability constant of the luminance.
        c2: stability constant of the contrast.

    Returns:
        Luminance, and contrast and structure in one; SSIM is their product. Then the denominator of each.
    """
    product_of_means = first * second
    squares_of_means = first.square().add_(second.square())
    contrast_below = squares.sub_(squares_of_means).add_(c2)
    contrast = product.sub_(product_of_means).mul_(2).add_(c2).div_(contrast_below)
    luminance_below = squares_of_means.add_(c1)
    luminance = product_of_means.mul_(2).add_(c1).div_(luminance_below)
    return luminance, contrast, luminance_below, contrast_below


def _slabs(images: Tensor, windows: Windows) -> Iterator[tuple[int, int]]:
    """First position of the window and number of positions along the first axis that are computed at a time.

    So few that what lies between is small: on a CPU fresh memory for whole volumes costs more than computing twice
    what two slabs share. On every device alike, so that a plan holds for all.
    """
    reach = len(windows[0]) - 1
    length = images.shape[2] - reach
    thickness = max(_SLAB * images.shape[2] // max(images.numel(), 1), 2 * reach, 1)
    for start in range(0, length, thickness):
        yield start, min(thickness, length - start)


class _MeanSSIM(torch.autograd.Function):
    """Mean SSIM of each sample, (batch, channel, *spatial) twice → (batch,); its gradient is computed along with it."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, windows: Windows, c1: float, c2: float) -> Tensor:
        ctx.wanted = list(ctx.needs_input_grad[:2])
        gradients = [torch.zeros_like(first) if wanted else first.new_empty(0) for wanted in ctx.wanted]
        total, count = torch.zeros(first.shape[0], dtype=torch.float64, device=first.device), 0
        for start, length in _slabs(first, windows):
            part = (2, start, length + len(windows[0]) - 1)
            similarity, parts = _similarity(first.narrow(*part), second.narrow(*part), windows, c1, c2, ctx.wanted)
            total += similarity.flatten(1).sum(dim=1, dtype=torch.float64)
            count += similarity[0].numel()
            for gradient, summand in zip(gradients, parts, strict=True):
                if summand is not None:
                    gradient.narrow(*part).add_(summand)
        ctx.save_for_backward(*gradients)
        ctx.count = count
        return (total / count).to(first.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale = (gradient / ctx.count).reshape(-1, *[1] * (ctx.saved_tensors[0].ndim - 1))
        return (
            *(own * scale if wanted else None for wanted, own in zip(ctx.wanted, ctx.saved_tensors, strict=True)),
            None,
            None,
            None,
        )


def _similarity(
    first: Tensor, second: Tensor, windows: Windows, c1: float, c2: float, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """SSIM at every position of the window, and the gradients of its sum by those images where they are wanted."""
    mean_1, mean_2 = windowed_mean(first, windows), windowed_mean(second, windows)
    squares = windowed_mean(first * first + second * second, windows)
    product = windowed_mean(first * second, windows)
    luminance, contrast, luminance_below, contrast_below = similarity_factors(mean_1, mean_2, squares, product, c1, c2)
    similarity = luminance * contrast
    if not any(wanted):
        return similarity, [None, None]
    # derivatives by E[xy], by E[x² + y²] (the same for both inputs), and by the mean of each input
    by_product = 2 * luminance / contrast_below
    by_squares = -similarity / contrast_below
    to_other = 2 * contrast / luminance_below - by_product
    to_own = -2 * similarity / luminance_below - 2 * by_squares
    products, doubled = _spread(by_product, windows), _spread(by_squares, windows).mul_(2)
    gradients: list[Tensor | None] = [None, None]
    for i, (own, other, mean, mean_of_other) in enumerate(
        ((first, second, mean_1, mean_2), (second, first, mean_2, mean_1))
    ):
        if wanted[i]:
            by_mean = _spread(to_other * mean_of_other + to_own * mean, windows)
            gradients[i] = by_mean.addcmul_(doubled, own).addcmul_(products, other)
    return similarity, gradients


def mean_ssim(
    first: Float[Tensor, ...],
    second: Float[Tensor, ...],
    windows: Windows,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Float[Tensor, " batch"]:
    """SSIM averaged over channels and over every position where the whole window fits; differentiable in both images.

    Computed in float32 (float64 for float64 images), also under autocast.

    Args:
        first: images or volumes, (batch, channel, *spatial).
        second: the others, same shape.
        windows: weights along each spatial axis, e.g. three times ``gaussian_window(11, 1.5)``.
        data_range: difference between the greatest and the least possible value.
        k1: stability constant of the luminance.
        k2: stability constant of the contrast.

    Raises:
        InputError: if the shapes differ, or the image is smaller than the window.
    """
    if first.shape != second.shape:
        raise InputError(f"SSIM compares images of one shape, got {tuple(first.shape)} and {tuple(second.shape)}.")
    spatial = tuple(first.shape[2:])
    if len(spatial) != len(windows):
        raise InputError(f"SSIM was set up for {len(windows)} spatial axes but the images have {len(spatial)}.")
    if any(n < len(window) for n, window in zip(spatial, windows, strict=True)):
        sizes = "×".join(str(len(window)) for window in windows)
        raise InputError(f"SSIM needs images of at least {sizes} (its window), got {'×'.join(map(str, spatial))}.")
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    # metadata would only slow the arithmetic down
    first, second = (x.as_subclass(Tensor).to(dtype).contiguous() for x in (first, second))
    return _MeanSSIM.apply(first, second, windows, (k1 * data_range) ** 2, (k2 * data_range) ** 2)


class SeparableSSIMMetric(SSIMMetric):
    """MONAI's ``SSIMMetric`` with the same arguments and values, computed by :func:`mean_ssim`."""

    @property
    def windows(self) -> Windows:
        """Weights along each spatial axis."""
        if self.kernel_type == KernelType.UNIFORM:
            return [[1 / size] * size for size in self.kernel_size]
        pairs = zip(self.kernel_size, self.kernel_sigma, strict=True)
        return [gaussian_window(size, sigma) for size, sigma in pairs]

    def _compute_metric(self, y_pred: Tensor, y: Tensor) -> Tensor:
        value = mean_ssim(y_pred, y, self.windows, self.data_range, self.k1, self.k2)
        return value.unsqueeze(1)
