"""Known doubt: for every voxel a lower and an upper bound beside the estimate.

An output without bounds is (batch, 1, N, N, N), one with bounds (batch, 3, N, N, N): estimate, lower, upper, all in
[0, 1] over the HU window. While a network is trained, bounds are made on some planes only (:class:`OnPlanes`). Whatever
wants the estimate alone asks :func:`estimate_of`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.blocks import SubpixelUpsample
from monai.networks.utils import icnr_init
from torch import Tensor, nn

from drr2ct.networks.blocks import activation_layer
from drr2ct.networks.convolution import Conv3d

TAIL = 0.05
"""Share of voxels that are meant to lie below the lower bound, and above the upper one: 90 % lie between."""
WIDTH_UNIT = 0.05
"""What a width is measured in; an untrained head puts each bound 0.035, 142 HU, from the estimate."""
_HIDDEN, _HIDDEN_FINE = 16, 8
"""Channels between the two convolutions, of the first stage that gives a volume and of the others."""
_CONTEXTS = (2, 4, 8)
"""Edge of the blocks, in voxels of a stage's features, over which the surroundings are averaged."""
KNOTS = 8
"""Predicted widths at which a calibration has its factors."""
_EVERY = 4
"""Of so many transverse planes of the features that bounds begin with, one is trained on."""


class OnPlanes(NamedTuple):
    """What a network with bounds gives while it is trained: the estimate, and bounds on some transverse planes.

    The head sees each voxel's features by themselves, so it learns from a part of the voxels what it would from all, at
    a part of the cost; a plane and the next tell nearly the same.

    Args:
        estimate: (batch, 1, N, N, N), float32.
        bounds: lower and upper, (batch, 2, N, N, planes), float32, which the whole volume would have there.
        planes: indices along z, (batch, planes), the same for each of a batch.
    """

    estimate: Tensor
    bounds: Tensor
    planes: Tensor

    def cut(self, volume: Tensor) -> Tensor:
        """(batch, channels, N, N, N) → (batch, channels, N, N, planes)."""
        return volume.index_select(-1, self.planes[0])


Output = Tensor | Sequence[Tensor]
"""What a network gives: a tensor or :class:`OnPlanes`, of which decollating a batch makes a list for each sample."""


def has_bounds(output: Output) -> bool:
    """Whether an output, with or without its batch dimension, holds more than the estimate."""
    return not isinstance(output, Tensor) or output.shape[-4] > 1


def estimate_of(output: Output) -> Tensor:
    """The estimate, (…, 1, N, N, N), of an output with or without bounds."""
    return output.narrow(-4, 0, 1) if isinstance(output, Tensor) else output[0]


def resized(volume: Tensor, like: Tensor) -> Tensor:
    """(batch, channels, n, n, n), interpolated to the size of another volume."""
    if volume.shape[-1] == like.shape[-1]:
        return volume
    size = [like.shape[-3], like.shape[-2], like.shape[-1]]
    return F.interpolate(volume, size=size, mode="trilinear", align_corners=False)


def surroundings(
    estimate: Tensor, upscale: int, contexts: list[int], at: Tensor | None = None, spread: Tensor | None = None
) -> Tensor:
    """What an estimate looks like around each voxel of the features that it is made of.

    Errors are large at its edges and where much happens nearby, which a feature alone does not tell; and where the
    members of an ensemble disagree.

    Args:
        estimate: (batch, 1, N, N, N).
        upscale: its voxels along each edge of a voxel of the features.
        contexts: edges of blocks of features, over which is averaged.
        at: planes of features along z, all by default.
        spread: standard deviation of the members' estimates, (batch, 1, N, N, N).

    Returns:
        (batch, 2 · (upscale³ + contexts), n, n, planes): its values and ten times the length of its gradient, voxel by
        voxel, which makes them alike in size; then their mean and root mean square over each kind of block. With a
        spread, half as many more: 25 times that, likewise.
    """
    near = F.pad(estimate.float(), [1, 1, 1, 1, 1, 1], mode="replicate")
    steepness = (
        (near[:, :, 2:, 1:-1, 1:-1] - near[:, :, :-2, 1:-1, 1:-1]).square()
        + (near[:, :, 1:-1, 2:, 1:-1] - near[:, :, 1:-1, :-2, 1:-1]).square()
        + (near[:, :, 1:-1, 1:-1, 2:] - near[:, :, 1:-1, 1:-1, :-2]).square()
    ) * 5.0**2
    found = [_around(torch.cat([estimate.float(), steepness], dim=1), 1, upscale, contexts, at)]
    if spread is not None:
        found.append(_around((spread.float() * 25.0).square(), 0, upscale, contexts, at))
    return torch.cat(found, dim=1)


def _around(maps: Tensor, plain: int, upscale: int, contexts: list[int], at: Tensor | None) -> Tensor:
    """Maps voxel by voxel and over blocks; of all but the first so many, which are squares, the root."""
    n = maps.shape[-1] // upscale
    cells = maps.reshape(-1, maps.shape[1], n, upscale, n, upscale, n, upscale)
    if at is not None:
        cells = cells.index_select(-2, at)
    cells = cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(2, 4)
    found = [torch.cat([cells[:, :plain], cells[:, plain:].sqrt()], dim=1).flatten(1, 2)]
    means = F.avg_pool3d(maps, upscale)
    for edge in contexts:
        block = F.avg_pool3d(means, min(edge, n))
        block = resized(torch.cat([block[:, :plain], block[:, plain:].sqrt()], dim=1), means)
        found.append(block if at is None else block.index_select(-1, at))
    return torch.cat(found, dim=1)


class _Blocks:
    """The planes that bounds are trained on, at the sizes of all stages: what becomes of some planes of features.

    Args:
        n: edge of the first features.
        whole: take all planes as one block, instead of one in :data:`_EVERY`.
    """

    def __init__(self, n: int, whole: bool) -> None:
        self.n = n
        self.first = [0] if whole else list(range(min(1, n - 1), n, _EVERY))
        self.depth = n if whole else 1

    def planes(self, size: int) -> int:
        """How many there are of each block at this size: the two in the middle, or all."""
        deep = self.depth * size // self.n
        return deep if self.depth > 1 else min(deep, 2)

    def indices(self, like: Tensor) -> Tensor:
        """Those planes, along z, of a volume (…, m, m, m)."""
        size = like.shape[-1]
        planes = self.planes(size)
        starts = [((2 * first + self.depth) * size // self.n - planes) // 2 for first in self.first]
        return torch.tensor([start + i for start in starts for i in range(planes)], device=like.device)

    def resized(self, cut: Tensor, size: int) -> Tensor:
        """(batch, channels, k, k, planes), of blocks, interpolated to what they are at another size."""
        batch, k = cut.shape[0], cut.shape[-2]
        blocks = cut.unflatten(-1, (len(self.first), -1)).permute(0, 4, 1, 2, 3, 5).flatten(0, 1)
        deep = blocks.shape[-1] * size // k
        if size != k:
            blocks = F.interpolate(blocks, size=[size, size, deep], mode="trilinear", align_corners=False)
        planes = self.planes(size)
        blocks = blocks.narrow(-1, (deep - planes) // 2, planes)
        return blocks.unflatten(0, (batch, -1)).permute(0, 2, 3, 4, 1, 5).flatten(-2)


class IntervalHead(nn.Module):
    """From the features that the estimate is made of to how far below and above it the truth may lie.

    It sees the features and the estimate detached: no gradient of it reaches what makes the estimate. Two widths are
    summed over the stages that give a volume, coarse to fine, by two convolutions of 1³ of each. The first of these
    stages sees what its volume looks like besides (:func:`surroundings`), and its second convolution is sub-voxel like
    the estimate's own head. Finer stages add theirs on the grid of their features, which are the finest volume's voxels
    twice as large; a softplus makes the sum positive, and it is interpolated to the volume.

    In training all this is done on some transverse planes, in the middle of what becomes of one plane of features:
    there what is interpolated lies between what is known, so that bounds are those of the whole volume.

    In evaluation the widths are multiplied by a calibration's factors, a broken line over the logarithm of the width,
    before they are interpolated, which is an eighth of the work; between the head's own voxels this differs a little
    from what was calibrated on the volume's. Until :meth:`calibrate` they are 1. In training they are left out, as the
    loss is to form the widths themselves.

    Args:
        channels: of the features of each of these stages.
        upscale: voxels of a stage's volume along each edge of a voxel of its features.
        activation: between the two convolutions.
        spread: see how much the members of an ensemble disagree.
    """

    knots: Tensor
    factors: Tensor

    def __init__(self, channels: Sequence[int], upscale: int, activation: str = "relu", spread: bool = False) -> None:
        super().__init__()
        self.upscale = upscale
        self.contexts = list(_CONTEXTS)
        last = Conv3d(_HIDDEN, 2 * upscale**3)
        icnr_init(last, upscale)
        assert last.bias is not None  # for the type checker
        with torch.no_grad():  # as flat in the beginning as the estimate
            last.weight.mul_(0.05 / (last.weight.square().mean() * _HIDDEN).sqrt())
            last.bias.zero_()
        shuffled = SubpixelUpsample(3, _HIDDEN, 2, upscale, conv_block=last, apply_pad_pool=False)
        seen = channels[0] + (3 if spread else 2) * (upscale**3 + len(_CONTEXTS))
        self.heads = nn.ModuleList([nn.Sequential(Conv3d(seen, _HIDDEN), activation_layer(activation), shuffled)])
        for width in channels[1:]:
            last = Conv3d(_HIDDEN_FINE, 2)
            for parameter in last.parameters():  # finer stages add nothing yet
                nn.init.zeros_(parameter)
            self.heads.append(nn.Sequential(Conv3d(width, _HIDDEN_FINE), activation_layer(activation), last))
        self.unit = WIDTH_UNIT
        self.register_buffer("knots", torch.empty(KNOTS))
        self.register_buffer("factors", torch.empty(2, KNOTS))
        self.reset_calibration()

    def forward(
        self, estimate: Tensor, first: Tensor, features: list[Tensor], spread: Tensor | None = None
    ) -> Tensor | OnPlanes:
        """Bounds beside an estimate.

        Args:
            estimate: (batch, 1, N, N, N).
            first: the volume of the first stage that gives one, (batch, 1, m, m, m); where there is but one, the
                estimate.
            features: of each of these stages, (batch, channels, n, n, n).
            spread: standard deviation of the members' first volumes, where the head sees it.

        Returns:
            (batch, 3, N, N, N), float32; in training :class:`OnPlanes`.
        """
        first, features = first.detach(), [volume.detach() for volume in features]
        spread = None if spread is None else spread.detach()
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if self.training:
                return self._on_planes(estimate, first, features, spread)
        seen = surroundings(first, self.upscale, self.contexts, None, spread)
        total = self.heads[0](torch.cat([features[0], seen.to(features[0].dtype)], dim=1))
        for i, head in enumerate(self.heads):
            if i > 0:  # TorchScript cannot call what a slice of modules gives
                total = resized(total, features[i]) + head(features[i])
        widths = F.softplus(total).float() * self.unit
        widths = resized(widths * self.factor(widths), estimate)  # there are an eighth as many before
        middle = estimate.detach().float()
        return torch.cat([estimate.float(), middle - widths[:, :1], middle + widths[:, 1:]], dim=1)

    @torch.jit.unused
    def _on_planes(self, estimate: Tensor, first: Tensor, features: list[Tensor], spread: Tensor | None) -> OnPlanes:
        n, later = features[0].shape[-1], [volume.shape[-1] for volume in features[1:]]
        # where a single plane of widths is resized, it would need those beside it
        blocks = _Blocks(n, whole=bool(later) and min(n * self.upscale, *later) == n)
        at, planes = blocks.indices(features[0]), blocks.indices(estimate)
        x = features[0].index_select(-1, at)
        seen = surroundings(first, self.upscale, self.contexts, at, spread)
        total = self.heads[0](torch.cat([x, seen.to(x.dtype)], dim=1))
        for head, volume in zip(self.heads[1:], features[1:], strict=True):
            x = volume.index_select(-1, blocks.indices(volume))
            total = blocks.resized(total, volume.shape[-1]) + head(x)
        widths = blocks.resized(F.softplus(total).float() * self.unit, estimate.shape[-1])
        middle = estimate.detach().index_select(-1, planes).float()
        bounds = torch.cat([middle - widths[:, :1], middle + widths[:, 1:]], dim=1)
        return OnPlanes(estimate.float(), bounds, planes.expand(len(estimate), -1))

    def factor(self, widths: Tensor) -> Tensor:
        """What a calibration multiplies widths by: (batch, 2, n, n, n) → the same."""
        logarithm = widths.log()
        factors = self.factors.reshape(1, 2, -1, 1, 1, 1)
        result = factors[:, :, 0].expand_as(widths).clone()
        for k in range(self.knots.shape[0] - 1):
            share = (logarithm - self.knots[k]).div_(self.knots[k + 1] - self.knots[k]).clamp_(0.0, 1.0)
            result.addcmul_(share, factors[:, :, k + 1] - factors[:, :, k])
        return result

    def reset_calibration(self) -> None:
        """All factors 1."""
        self.calibrate(range(-KNOTS, 0), [[1.0] * KNOTS] * 2)

    def calibrate(self, knots: Sequence[float], factors: Sequence[Sequence[float]]) -> None:
        """Set the factors of the lower and of the upper width at increasing logarithms of the width."""
        self.knots.copy_(torch.tensor(knots))
        self.factors.copy_(torch.tensor(factors))


def interval_heads(network: nn.Module) -> list[IntervalHead]:
    """Of a network, also within a wrapper: one or none."""
    return [module for module in network.modules() if isinstance(module, IntervalHead)]


def interval_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Weights that make bounds and nothing else; empty for a network without."""
    return [parameter for head in interval_heads(network) for parameter in head.parameters()]
