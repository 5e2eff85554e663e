"""One stage of a cascade: grow, take the X-rays in, refine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drr2ct.networks.blocks import (
    ResidualDenseBlock,
    Upsample,
    UShape,
    VolumeTransformer,
    conv_norm_act,
    group_count,
)
from drr2ct.networks.config import CascadeConfig, StageConfig
from drr2ct.networks.convolution import Conv3d
from drr2ct.networks.encoder import pyramid_level
from drr2ct.networks.lifting import BackprojectionLift, BroadcastLift, ConfidenceLift
from drr2ct.networks.projection import ReprojectionLift
from drr2ct.networks.recompute import recomputed, recording


class Fusion(nn.Module):
    """Lifts a stage's X-ray maps into its volume and joins them with it.

    Args:
        lift: from maps to a volume.
        mix: from the concatenation to the stage's width.
    """

    def __init__(self, lift: nn.Module, mix: nn.Module) -> None:
        super().__init__()
        self.lift = lift
        self.mix = mix

    def forward(self, x: Tensor, maps: Tensor) -> Tensor:
        """(batch, channels, n, n, n) and (batch, views, features, h, w) → (batch, channels, n, n, n)."""
        return self.mix(torch.cat([x, self.lift(maps).to(x.dtype)], dim=1))


class Stage(nn.Module):
    """Grow, then fuse and refine, in either order.

    Args:
        grow: from the stage before to this one's size and width.
        fusion: takes the X-rays in.
        blocks: what refines.
        fuse_before: fuse before refining.
        checkpointing: keep only the input of each of these parts for the backward pass.
        reprojection: takes in the volume so far and what its radiographs lack, before the fusion.
    """

    def __init__(
        self,
        grow: nn.Module,
        fusion: Fusion,
        blocks: list[nn.Module],
        fuse_before: bool,
        checkpointing: bool,
        reprojection: ReprojectionLift | None = None,
    ) -> None:
        super().__init__()
        self.grow = grow
        self.fusion = fusion
        self.blocks = nn.ModuleList(blocks)
        self.fuse_before = fuse_before
        self.checkpointing = checkpointing
        self.reprojection = reprojection

    def forward(self, x: Tensor, maps: Tensor, so_far: Tensor | None, radiographs: Tensor) -> Tensor:
        """One stage's features from the one's before.

        Args:
            x: (batch, channels before, m, m, m).
            maps: (batch, views, features, h, w).
            so_far: the volume that the stages before give, (batch, 1, M, M, M), if they do.
            radiographs: (batch, views, H, W).

        Returns:
            (batch, channels, n, n, n).
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if self.checkpointing and recording():
                return self._forward_checkpointed(x, maps, so_far, radiographs)
        x = self._with_reprojection(self.grow(x), so_far, radiographs)
        if self.fuse_before:
            x = self.fusion(x, maps)
        for block in self.blocks:
            x = block(x)
        if not self.fuse_before:
            x = self.fusion(x, maps)
        return x

    def _with_reprojection(self, x: Tensor, so_far: Tensor | None, radiographs: Tensor) -> Tensor:
        reprojection = self.reprojection
        if reprojection is None:
            return x
        assert so_far is not None  # the configuration sees to it
        return torch.cat([x, reprojection(so_far, radiographs).to(x.dtype)], dim=1)

    @torch.jit.unused
    def _forward_checkpointed(self, x: Tensor, maps: Tensor, so_far: Tensor | None, radiographs: Tensor) -> Tensor:
        x = self._with_reprojection(recomputed(self.grow, x), so_far, radiographs)
        if self.fuse_before:
            x = recomputed(self.fusion, x, maps)
        for block in self.blocks:
            x = recomputed(block, x)
        return x if self.fuse_before else recomputed(self.fusion, x, maps)


def build_stage(config: CascadeConfig, index: int, width: int) -> Stage:
    """A configuration's stage, with random weights.

    Args:
        config: of the network.
        index: of the stage.
        width: channels of what comes before.
    """
    stage, size = config.stages[index], config.stage_sizes[index]
    views = len(config.geometry.views)
    if config.lift == "backprojection":
        lift: nn.Module = BackprojectionLift(config.geometry, size, pyramid_level(config.geometry, size))
        if config.confidence:
            lift = ConfidenceLift(lift, views)
        lifted = views * stage.lift_channels
    else:
        lift, lifted = BroadcastLift(size, config.depth_weight), config.encoder_channels[-1]
    grow = _grow(config, width, stage)
    # a stage that does not grow takes the volume as it is, and the fusion sets its width
    inputs = width if stage.scale == 1 and config.fuse == "before" else stage.channels
    reprojection = None
    if stage.halvings:
        reprojection = ReprojectionLift(config.geometry, size, config.head_scale, stage.scale)
        inputs += reprojection.channels
    mix = mixed(inputs + lifted, stage.channels, config.fuse_norm_groups, config.activation)
    blocks: list[nn.Module] = [
        ResidualDenseBlock(stage.channels, stage.growth, stage.layers, config.block_activation, bool(stage.norm_groups))
        for _ in range(stage.blocks)
    ]
    if stage.halvings:
        blocks.append(UShape(stage.channels, stage.halvings, config.block_activation, stage.norm_groups))
    if config.transformer_layers and not index:
        blocks.append(VolumeTransformer(stage.channels, size, config.transformer_layers, config.transformer_heads))
    return Stage(grow, Fusion(lift, mix), blocks, config.fuse == "before", config.checkpointing, reprojection)


def _grow(config: CascadeConfig, width: int, stage: StageConfig) -> nn.Module:
    if stage.scale == 1 and config.fuse == "before":
        return nn.Identity()
    groups = group_count(stage.channels, stage.norm_groups)
    layers = conv_norm_act(3, width, stage.channels, stage.grow_kernel, groups, config.activation)
    if stage.scale == 1:
        return layers
    if stage.grow_kernel == 1:
        # a weighted sum of channels and one of neighbours can be exchanged
        return nn.Sequential(layers[0], Upsample(stage.scale), *list(layers)[1:])
    return nn.Sequential(Upsample(stage.scale), *layers)


def mixed(inputs: int, width: int, norm_groups: int, activation: str) -> nn.Module:
    """What joins channels of several origins: a 1³ convolution; with groups, normalisation and activation after it."""
    if not norm_groups:
        return Conv3d(inputs, width)
    return conv_norm_act(3, inputs, width, 1, group_count(width, norm_groups), activation)
