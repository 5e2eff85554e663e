"""Parts that the encoders and the cascades are built from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.blocks import SubpixelUpsample, TransformerBlock
from monai.networks.layers import get_act_layer
from monai.networks.utils import icnr_init
from torch import Tensor, nn

from drr2ct.networks.convolution import Conv3d

ACTIVATIONS = ("gelu", "leakyrelu", "relu", "silu")

OUTPUT_BIAS = 0.15
"""What an untrained network puts into every voxel: about the mean of a chest CT in [0, 1] over −1024…3071 HU."""


def activation_layer(name: str) -> nn.Module:
    """The activation of that name (one of :data:`ACTIVATIONS`), in place where its gradient allows that."""
    return get_act_layer(name if name == "gelu" else (name, {"inplace": True}))


class Upsample(nn.Module):
    """Trilinear, by a whole factor."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = float(scale)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, x, y, z) → scale times larger."""
        if not x.is_cuda and x.dtype != torch.float32:
            # a CPU's kernel for half precision is several times faster where channels are last
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return F.interpolate(x, scale_factor=self.scale, mode="trilinear", align_corners=False)


def group_count(channels: int, at_most: int) -> int:
    """The largest divisor of ``channels`` that is not above ``at_most``; 0 for 0."""
    return next((n for n in range(min(channels, at_most), 0, -1) if channels % n == 0), 0)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that stays in the precision of its input.

    Autocast would turn it, and all that follows until the next convolution, to float32: twice the memory. The
    kernels accumulate in float32 anyway. Groups, not batches, since a batch of volumes is one or two.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, *spatial) → the same."""
        if torch.jit.is_scripting() or input.dtype == self.weight.dtype:
            return nn.functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        with torch.autocast(input.device.type, enabled=False):
            weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return nn.functional.group_norm(input, self.num_groups, weight, bias, self.eps)


def conv_norm_act(
    dims: int, in_channels: int, out_channels: int, kernel: int, groups: int, activation: str, stride: int = 1
) -> nn.Sequential:
    """Convolution that keeps the size (in 2-D, divides it by the stride), normalisation with ``groups``, activation.

    With 0 groups there is no normalisation, and the weights begin so large that the convolution keeps the variance
    through rectifiers (He et al., *Delving Deep into Rectifiers*, ICCV 2015).
    """
    if dims == 3:
        conv: nn.Conv2d | nn.Conv3d = Conv3d(in_channels, out_channels, kernel)
    else:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)
    if groups:
        return nn.Sequential(conv, GroupNorm(groups, out_channels), activation_layer(activation))
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None  # for the type checker
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, activation_layer(activation))


class ResidualDenseBlock(nn.Module):
    """Residual dense block (Zhang et al., *Residual Dense Network for Image Super-Resolution*, CVPR 2018), in 3-D.

    Each layer is a 3³ convolution of everything so far to ``growth`` channels, normalisation and activation; a 1³
    convolution brings the concatenation of all back to ``channels``, and the input is added.

    Args:
        channels: of the input and of the output.
        growth: channels that each layer adds.
        layers: number of layers.
        activation: one of :data:`ACTIVATIONS`.
        normalised: normalise in at most 8 groups (the largest divisor of ``growth`` up to it).
    """

    def __init__(
        self, channels: int, growth: int, layers: int, activation: str = "gelu", normalised: bool = True
    ) -> None:
        super().__init__()
        groups = group_count(growth, 8) if normalised else 0
        self.layers = nn.ModuleList(
            conv_norm_act(3, channels + i * growth, growth, 3, groups, activation) for i in range(layers)
        )
        self.fuse = Conv3d(channels + layers * growth, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, x, y, z) → the same."""
        features = x
        for layer in self.layers:
            features = torch.cat([features, layer(features)], dim=1)
        return x + self.fuse(features)


class UShape(nn.Module):
    """Convolutions of ever fewer voxels and back (Ronneberger et al., *U-Net*, MICCAI 2015), in 3-D.

    So it sees far at a low cost. At each size a 3³ convolution on the way down and one on the way up. Between sizes
    features are averaged over 2³ voxels, and interpolated back; what comes back is added.

    Args:
        channels: of the input and of the output; each halving has as many more.
        halvings: of the edge.
        activation: one of :data:`ACTIVATIONS`.
        norm_groups: most groups of the normalisation after each convolution; 0 for none.
        wider: channels that each halving adds; as many as there are, if not given.
    """

    def __init__(
        self, channels: int, halvings: int, activation: str, norm_groups: int, wider: int | None = None
    ) -> None:
        super().__init__()
        step = wider or channels
        groups = group_count(channels, norm_groups)
        self.enter = conv_norm_act(3, channels, channels, 3, groups, activation)
        if halvings:
            below = channels + step
            self.below: nn.Module = nn.Sequential(
                nn.AvgPool3d(2),
                Conv3d(channels, below),
                UShape(below, halvings - 1, activation, norm_groups, step),
                Conv3d(below, channels),
                Upsample(2),
            )
        else:
            self.below = conv_norm_act(3, channels, channels, 3, groups, activation)
        self.leave = conv_norm_act(3, channels, channels, 3, groups, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, x, y, z), edges multiples of 2^halvings → the same."""
        x = self.enter(x)
        return self.leave(x + self.below(x))


def output_head(channels: int, upscale: int = 1, bias: float = OUTPUT_BIAS) -> nn.Module:
    """Last layer, to one channel; an untrained one gives nearly ``bias`` everywhere.

    With ``upscale`` above 1 it is a sub-voxel head (3-D pixel shuffle): a 3³ convolution computes the upscale³
    values inside each voxel, so that no wide map exists at the final size. Otherwise a 1³ convolution.
    """
    if upscale == 1:
        head: nn.Module = Conv3d(channels, 1)
    else:
        convolution = Conv3d(channels, upscale**3, 3)
        icnr_init(convolution, upscale)  # equal within a voxel, so training starts without a checkerboard
        head = SubpixelUpsample(3, channels, 1, upscale, conv_block=convolution, apply_pad_pool=False)
    parameters = dict(head.named_parameters())
    prefix = "" if upscale == 1 else "conv_block."
    weight = parameters[prefix + "weight"]
    with torch.no_grad():
        # a standard deviation of 0.05 for inputs of unit variance
        weight.mul_(0.05 / (weight.square().mean() * weight[0].numel()).sqrt())
        parameters[prefix + "bias"].fill_(bias)
    return head


class VolumeTransformer(nn.Module):
    """MONAI ``TransformerBlock``s over all voxels of a small cube, with a learned position embedding.

    Args:
        channels: of the cube and of the tokens.
        size: edge of the cube; size³ tokens.
        layers: number of blocks.
        heads: attention heads; must divide ``channels``.
    """

    def __init__(self, channels: int, size: int, layers: int, heads: int) -> None:
        super().__init__()
        self.size = size
        self.position = nn.Parameter(0.02 * torch.randn(1, size**3, channels))
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, 2 * channels, heads, use_flash_attention=True) for _ in range(layers)
        )
        for block in self.blocks:
            # of an attention that is not there: distributed training stops at parameters without a gradient
            block.norm_cross_attn = nn.Identity()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, size, size, size) → the same; the tokens' result is added to the input."""
        tokens = x.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens).transpose(1, 2)
        return x + tokens.reshape(x.shape)
