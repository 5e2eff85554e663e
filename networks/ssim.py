r"""Structural similarity (Wang et al., *Image quality assessment*, IEEE TIP 13(4), 2004), in two and three dimensions.

Values and gradients are those of MONAI's ``SSIMMetric`` and ``SSIMLoss`` (Gaussian window, valid borders), computed
with one-dimensional windows and an analytic gradient, many times faster and in a fraction of the memory. The loss
(:class:`drr2ct.networks.losses.SSIMLoss`) and the metric share this one implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def windowed_mean(image: Tensor, windows: Windows) -> Tensor:
    """Weighted mean in every window that lies wholly inside the image.

    Shifted sums, not convolutions: twelve times faster than ``conv3d`` on a CPU, and never TF32 on a GPU, whose
    three digits would drown the small differences E[x²] − E[x]².
    """
    for axis, weights in enumerate(windows, start=2):
        length = image.shape[axis] - len(weights) + 1
        total = image.narrow(axis, 0, length) * weights[0]
        for start, weight in enumerate(weights[1:], start=1):
            total.add_(image.narrow(axis, start, length), alpha=weight)
        image = total
    return image


def _spread(gradient: Tensor, windows: Windows) -> Tensor:
    """Transpose of :func:`windowed_mean`."""
    for axis, weights in enumerate(windows, start=2):
        length = gradient.shape[axis]
        shape = list(gradient.shape)
        shape[axis] = length + len(weights) - 1
        total = gradient.new_zeros(shape)
        for start, weight in enumerate(weights):
            total.narrow(axis, start, length).add_(gradient, alpha=weight)
        gradient = total
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


class _MeanSSIM(torch.autograd.Function):
    """Mean SSIM of each sample, (batch, channel, *spatial) twice → (batch,)."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, windows: Windows, c1: float, c2: float) -> Tensor:
        mean_1, mean_2 = windowed_mean(first, windows), windowed_mean(second, windows)
        squares = windowed_mean(first * first + second * second, windows)
        product = windowed_mean(first * second, windows)
        luminance, contrast, luminance_below, contrast_below = similarity_factors(
            mean_1, mean_2, squares, product, c1, c2
        )
        similarity = luminance * contrast
        value = similarity.flatten(1).mean(dim=1)

        ctx.windows = windows
        saved: list[Tensor] = []
        if any(ctx.needs_input_grad[:2]):
            # derivatives by E[xy], by E[x² + y²] (the same for both inputs), and by the mean of each input
            by_product = 2 * luminance / contrast_below
            by_squares = -similarity / contrast_below
            to_other = 2 * contrast / luminance_below - by_product
            to_own = -2 * similarity / luminance_below - 2 * by_squares
            saved = [first, second, by_product, by_squares]
            saved.append(to_other * mean_2 + to_own * mean_1 if ctx.needs_input_grad[0] else first.new_empty(0))
            saved.append(to_other * mean_1 + to_own * mean_2 if ctx.needs_input_grad[1] else first.new_empty(0))
        ctx.save_for_backward(*saved)
        ctx.count = similarity[0].numel()
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        first, second, by_product, by_squares, by_first, by_second = ctx.saved_tensors
        product = _spread(by_product, ctx.windows)
        squares = _spread(by_squares, ctx.windows).mul_(2)
        scale = (gradient / ctx.count).reshape(-1, *[1] * (first.ndim - 1))
        result: list[Tensor | None] = [None, None]
        for i, (own, other, by_mean) in enumerate(((first, second, by_first), (second, first, by_second))):
            if ctx.needs_input_grad[i]:
                result[i] = _spread(by_mean, ctx.windows).addcmul_(squares, own).addcmul_(product, other).mul_(scale)
        return (*result, None, None, None)


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
