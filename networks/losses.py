"""Losses between a predicted and a true CT, both (batch, 1, N, N, N), mostly in [0, 1] over the HU window.

Each is a module called with (prediction, target) that returns a scalar, computed in float32 also under autocast.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from drr2ct.networks.interval import TAIL, OnPlanes, estimate_of, has_bounds
from drr2ct.networks.ssim import gaussian_window, mean_ssim
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.body import TISSUE_HU, within_tissue
from drr2ct.transforms.drr import project_volume
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW

Volume = Float[Tensor, "batch 1 n n n"]
Scalar = Float[Tensor, ""]

DEFAULT_TERMS = {"l1": 1.0, "ssim": 0.1}
"""Half-trained networks have a mean error near 0.03 and a dissimilarity near 0.3: so weighted, both count alike."""


class Loss(nn.Module):
    """Compares two volumes in float32 with autocast off: half precision is too coarse for sums over a volume."""

    def forward(self, pred: Float[Tensor, ...], target: Float[Tensor, ...]) -> Scalar:
        """Prediction and target → the loss.

        Raises:
            InputError: if their shapes differ (broadcasting would hide a mistake).
        """
        if pred.shape != target.shape:
            raise InputError(
                f"the loss compares a prediction of shape {tuple(pred.shape)} with a target of shape "
                f"{tuple(target.shape)}; they must be on one grid."
            )
        with torch.autocast(pred.device.type, enabled=False):
            return self.compare(pred.as_subclass(Tensor).float(), target.as_subclass(Tensor).float())

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """What the loss is, in float32."""
        raise NotImplementedError


class L1Loss(Loss):
    """Mean absolute error."""

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """Mean of |p − t|."""
        return (pred - target).abs().mean()


class L2Loss(Loss):
    """Mean squared error: its optimum is the mean of what is possible, that of the absolute error the median."""

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """Mean of (p − t)²."""
        return (pred - target).square().mean()


class SSIMLoss(Loss):
    """One minus the structural similarity, as MONAI's ``SSIMLoss``.

    Args:
        data_range: difference between the greatest and the least possible value.
        win_size: edge of the Gaussian window, in voxels.
        sigma: its standard deviation, in voxels.
    """

    def __init__(self, data_range: float = 1.0, win_size: int = 11, sigma: float = 1.5) -> None:
        super().__init__()
        self.data_range = data_range
        self.window = gaussian_window(win_size, sigma)

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """1 − SSIM, mean over the batch."""
        return 1 - mean_ssim(pred, target, [self.window] * (pred.ndim - 2), self.data_range).mean()


class GradientDifferenceLoss(Loss):
    """Difference of edge strengths (Mathieu et al., *Deep multi-scale video prediction beyond MSE*, ICLR 2016)."""

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """Mean of ||∂p| − |∂t|| over voxels, summed over the three axes."""
        terms = [(pred.diff(dim=a).abs() - target.diff(dim=a).abs()).abs().mean() for a in range(2, pred.ndim)]
        return torch.stack(terms).sum()


class SpectralLoss(Loss):
    """Difference of Fourier magnitudes: texture at the right scale, wherever it lies."""

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """Mean of ||P| − |T|| over the frequencies of the orthonormal transform."""
        axes = tuple(range(2, pred.ndim))
        magnitudes = [torch.fft.rfftn(volume, dim=axes, norm="ortho").abs() for volume in (pred, target)]
        return (magnitudes[0] - magnitudes[1]).abs().mean()


class TotalVariationLoss(Loss):
    """Anisotropic total variation of the prediction (Rudin et al., Physica D 60, 1992); the target is not used."""

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """Mean of |∂p| over voxels, summed over the three axes."""
        return torch.stack([pred.diff(dim=a).abs().mean() for a in range(2, pred.ndim)]).sum()


class ReprojectionLoss(Loss):
    """Mean absolute difference of the two volumes' radiographs, in scaled line integrals as the networks see them.

    Args:
        geometry: views to project to; its grid is the volumes'.
        hu_window: HU that the values 0 and 1 stand for.

    Raises:
        InputError: for an empty window.
    """

    def __init__(self, geometry: BiplanarGeometry, hu_window: tuple[float, float] = HU_WINDOW) -> None:
        super().__init__()
        low, high = hu_window
        if not low < high:
            raise InputError(f"HU window {low:g}…{high:g} is empty; give its lower end first.")
        self.geometry = geometry
        self.low, self.high = float(low), float(high)

    def compare(self, pred: Volume, target: Volume) -> Scalar:
        """Mean of |DRR(p) − DRR(t)| over pixels and views."""
        with torch.no_grad():
            wanted = self.project(target)
        return (self.project(pred) - wanted).abs().mean()

    def project(self, volume: Volume) -> Float[Tensor, "batch views h w"]:
        """A volume on the network's scale → its radiographs, scaled line integrals. Differentiable."""
        return project_volume(volume * (self.high - self.low) + self.low, self.geometry) / LINE_INTEGRAL_SCALE


_BODY_VALUE = (TISSUE_HU - HU_WINDOW[0]) / (HU_WINDOW[1] - HU_WINDOW[0])
"""On the network's scale, more is tissue."""
_BODY_GRID = 64
"""Voxels along an edge of the grid on which the body is looked for."""
_OUTSIDE = 0.3
"""What a voxel outside the body counts, of one within."""


def body_weights(truth: Float[Tensor, "batch 1 n n planes"]) -> Float[Tensor, "batch 1 m m planes"]:
    """How much voxels count in the loss of bounds: 1 in the body, 0.3 elsewhere, on planes of 64² or so.

    Air around the patient is most of a volume and certain: without this, bounds would learn it first. Where there is no
    tissue at all, everything counts.
    """
    n = truth.shape[-2]
    factor = math.gcd(n, max(n // _BODY_GRID, 1))
    inside = within_tissue(F.avg_pool3d(truth, (factor, factor, 1))[:, 0] > _BODY_VALUE)[:, None]
    inside = inside | ~inside.flatten(1).any(dim=1).reshape(-1, 1, 1, 1, 1)
    return torch.where(inside, 1.0, _OUTSIDE)


def _weigh(volume: Tensor, weights: Tensor) -> Tensor:
    """Multiplied in place, each weight for a block of voxels of a plane."""
    m, planes = weights.shape[-2:]
    edge = volume.shape[-2] // m
    blocks = volume.view(-1, 1, m, edge, m, edge, planes)
    blocks.mul_(weights.reshape(-1, 1, m, 1, m, 1, planes))
    return volume


class _Pinball(torch.autograd.Function):
    """Weighted mean pinball loss of a bound, ``side`` 1 below and -1 above; it keeps nothing large of its own."""

    @staticmethod
    def forward(ctx: Any, bound: Tensor, truth: Tensor, weights: Tensor, side: int) -> Tensor:
        ctx.save_for_backward(bound, truth, weights)
        ctx.side = side
        inside = _weigh((truth - bound).contiguous(), weights * (side / weights.mean()))
        return TAIL * inside.mean() - inside.clamp_(max=0).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        bound, truth, weights = ctx.saved_tensors
        missed = (truth < bound) if ctx.side > 0 else (truth > bound)
        scale = gradients[0] * ctx.side / (missed.numel() * weights.mean())
        return _weigh(missed.float().sub_(TAIL).contiguous(), weights * scale), None, None, None


class IntervalLoss(nn.Module):
    r"""How badly bounds fit: the pinball losses of the quantiles 5 and 95 %.

    Their sum is a twentieth of the interval score (Gneiting and Raftery, *Strictly proper scoring rules, prediction,
    and estimation*, JASA 102, 2007, eq. 43): :math:`0.05\,(u - l) + (l - t)_+ + (t - u)_+`. What lies outside the body
    counts less (:func:`body_weights`), which leaves the best bounds of every voxel what they are. Called with an output
    that has bounds; the estimate in it is not looked at.
    """

    def forward(self, output: Float[Tensor, ...] | OnPlanes, target: Float[Tensor, ...]) -> Scalar:
        """Output with bounds, of the whole volume or on planes, and target → weighted mean over their voxels.

        Raises:
            InputError: for an output without bounds, or on another grid than the target.
        """
        estimate = estimate_of(output)
        if not has_bounds(output) or estimate.shape != target.shape:
            raise InputError(
                f"the interval loss compares bounds with a target, not an estimate of shape {tuple(estimate.shape)} "
                f"with {tuple(target.shape)}; set network_def#interval=true."
            )
        with torch.autocast(target.device.type, enabled=False):
            truth = target.as_subclass(Tensor).float()
            if isinstance(output, OnPlanes):
                bounds, truth = output.bounds, output.cut(truth)
            else:
                bounds = output[:, 1:].as_subclass(Tensor).float()
            low, high = bounds.split(1, dim=1)
            weights = body_weights(truth)
            return _Pinball.apply(low, truth, weights, 1) + _Pinball.apply(high, truth, weights, -1)


INTERVAL = "interval"
"""The term that is there, with weight 1, whenever an output has bounds: it trains nothing else."""

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "l1": L1Loss,
    "l2": L2Loss,
    "ssim": SSIMLoss,
    "gradient": GradientDifferenceLoss,
    "spectral": SpectralLoss,
    "total_variation": TotalVariationLoss,
}
"""Terms that compare an estimate and need no arguments, by name."""


class WeightedLoss(nn.Module):
    """Weighted sum of named terms; after each call ``last_terms`` holds every term's own value, for logging.

    Terms see the estimate. Of an output that has bounds, :class:`IntervalLoss` joins them, named or not.

    Args:
        terms: name → weight, for a name in :data:`LOSSES`; or name → (weight, module), for any module that is
            called with (prediction, target), e.g. ``{"reprojection": (0.1, ReprojectionLoss(geometry))}``.

    Attributes:
        last_terms: name → detached, unweighted value of the last call.

    Raises:
        InputError: for no terms, an unknown name, or a weight that is not positive.
    """

    def __init__(self, terms: Mapping[str, float | tuple[float, nn.Module]] = DEFAULT_TERMS) -> None:
        super().__init__()
        if not terms:
            raise InputError("a weighted loss needs at least one term.")
        self.weights: dict[str, float] = {}
        modules: dict[str, nn.Module] = {}
        for name, term in terms.items():
            weight, module = term if isinstance(term, (tuple, list)) else (term, None)
            if module is None:
                module = _builtin(name)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
                raise InputError(f"the weight of loss {name} is {weight!r}; give a positive number or leave it out.")
            self.weights[name] = float(weight)
            modules[name] = module
        self.terms = nn.ModuleDict(modules)
        self.last_terms: dict[str, Tensor] = {}

    def forward(self, pred: Float[Tensor, ...] | OnPlanes, target: Float[Tensor, ...]) -> Scalar:
        """Prediction and target → the weighted sum."""
        estimate = estimate_of(pred)
        values: dict[str, Tensor] = {}
        if has_bounds(pred):  # first: it leaves little behind, and nothing of the others is there yet
            values[INTERVAL] = (self.terms[INTERVAL] if INTERVAL in self.terms else IntervalLoss())(pred, target)
        values |= {name: module(estimate, target) for name, module in self.terms.items() if name not in values}
        self.last_terms = {name: value.detach() for name, value in values.items()}
        return torch.stack([self.weights.get(name, 1.0) * value for name, value in values.items()]).sum()


def _builtin(name: str) -> nn.Module:
    if name in LOSSES:
        return LOSSES[name]()
    if name == INTERVAL:
        return IntervalLoss()
    if name == "reprojection":
        raise InputError("loss reprojection needs a geometry; give (weight, ReprojectionLoss(geometry)).")
    near = difflib.get_close_matches(name, LOSSES, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"loss {name!r} is unknown; {hint}the losses are {', '.join(LOSSES)}, reprojection, interval.")
