"""The progressive cascade: one class for all named networks, built from a small configuration."""

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from drr2ct.networks.blocks import (
    ResidualDenseBlock,
    Upsample,
    VolumeTransformer,
    conv_norm_act,
    group_count,
    output_head,
)
from drr2ct.networks.config import CascadeConfig, SkipConfig, StageConfig
from drr2ct.networks.convolution import Conv3d
from drr2ct.networks.encoder import PyramidEncoder, StackedEncoder, pyramid_level
from drr2ct.networks.ensemble import agreed_and_spread
from drr2ct.networks.interval import IntervalHead, OnPlanes
from drr2ct.networks.lifting import BackprojectionLift, BroadcastLift, ConfidenceLift
from drr2ct.networks.recompute import recomputed, recording
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError


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
    """

    def __init__(
        self, grow: nn.Module, fusion: Fusion, blocks: list[nn.Module], fuse_before: bool, checkpointing: bool
    ) -> None:
        super().__init__()
        self.grow = grow
        self.fusion = fusion
        self.blocks = nn.ModuleList(blocks)
        self.fuse_before = fuse_before
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, maps: Tensor) -> Tensor:
        """(batch, channels before, m, m, m) and (batch, views, features, h, w) → (batch, channels, n, n, n)."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if self.checkpointing and recording():
                return self._forward_checkpointed(x, maps)
        x = self.grow(x)
        if self.fuse_before:
            x = self.fusion(x, maps)
        for block in self.blocks:
            x = block(x)
        if not self.fuse_before:
            x = self.fusion(x, maps)
        return x

    @torch.jit.unused
    def _forward_checkpointed(self, x: Tensor, maps: Tensor) -> Tensor:
        x = recomputed(self.grow, x)
        if self.fuse_before:
            x = recomputed(self.fusion, x, maps)
        for block in self.blocks:
            x = recomputed(block, x)
        return x if self.fuse_before else recomputed(self.fusion, x, maps)


@torch.jit.unused
def _checked(x: Tensor, geometry: BiplanarGeometry) -> Tensor:
    """Radiographs without metadata: the affine of a radiograph is not that of the volume."""
    views, (rows, columns) = len(geometry.views), geometry.detector_size
    if x.ndim != 4 or tuple(x.shape[1:]) != (views, rows, columns):
        names = ", ".join(view.name for view in geometry.views)
        raise InputError(
            f"radiographs of shape {tuple(x.shape)} do not fit the network's geometry; it takes (batch, {views}, "
            f"{rows}, {columns}), the views {names}: resample them, or create the network for their geometry."
        )
    return x.as_tensor() if isinstance(x, MetaTensor) else x


class ProgressiveCascade(nn.Module):
    """Radiographs in, one CT volume out, grown from a learned volume by stages that each take the X-rays in.

    Called with (batch, views, H, W) scaled line integrals of the configuration's geometry, it returns
    (batch, 1, N, N, N), the CT in [0, 1] over the HU window, on the geometry's grid; one tensor in training and in
    evaluation. The output is not clipped: a loss needs its gradient outside the range too. With ``interval`` there are
    three channels, estimate, lower and upper bound, and in training :class:`drr2ct.networks.interval.OnPlanes`; the
    estimate and its gradients are the same as without.

    Args:
        config: what to build.

    Raises:
        InputError: (when called) if the radiographs do not fit the geometry.
    """

    skip_stages: list[int]

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = config.checkpointing
        sizes = config.stage_sizes
        views = len(config.geometry.views)
        geometric = config.lift == "backprojection"
        levels = tuple(pyramid_level(config.geometry, size) for size in sizes)
        # counted from the first stage that has one: a network grown by further stages finds its heads by their names
        self.first_output = len(config.stages) - config.output_stages
        if geometric:
            self.encoder: nn.Module = self._pyramid(range(self.first_output + 1), levels)
        else:
            self.encoder = StackedEncoder(
                views, config.encoder_channels, config.encoder_norm_groups, config.activation, len(sizes)
            )
        self.fine_encoders = nn.ModuleList(
            self._pyramid([i], levels) for i in range(self.first_output + 1, len(config.stages))
        )
        # scaled so that its share in the first convolution is neither lost nor dominant
        self.volume = nn.Parameter(0.1 * torch.randn(1, config.volume_channels, *[config.volume_size] * 3))

        stages: list[nn.Module] = []
        width = config.volume_channels
        for stage, size, level in zip(config.stages, sizes, levels, strict=True):
            if geometric:
                lift: nn.Module = BackprojectionLift(config.geometry, size, level)
                if config.confidence:
                    lift = ConfidenceLift(lift, views)
                lifted = views * stage.lift_channels
            else:
                lift, lifted = BroadcastLift(size, config.depth_weight), config.encoder_channels[-1]
            grow = self._grow(width, stage)
            # a stage that does not grow takes the volume as it is, and the fusion sets its width
            inputs = width if stage.scale == 1 and config.fuse == "before" else stage.channels
            mix = self._mix(inputs + lifted, stage.channels, config.fuse_norm_groups)
            blocks: list[nn.Module] = [
                ResidualDenseBlock(
                    stage.channels, stage.growth, stage.layers, config.block_activation, bool(stage.norm_groups)
                )
                for _ in range(stage.blocks)
            ]
            if config.transformer_layers and not stages:
                blocks.append(
                    VolumeTransformer(stage.channels, size, config.transformer_layers, config.transformer_heads)
                )
            stages.append(Stage(grow, Fusion(lift, mix), blocks, config.fuse == "before", config.checkpointing))
            width = stage.channels
        self.stages = nn.ModuleList(stages)

        self.skip_stages = [skip.stage for skip in config.skips]
        self.skips = nn.ModuleList(self._skip(skip) for skip in config.skips)
        if config.skips:
            inputs = width + sum(skip.channels for skip in config.skips)
            width = config.skip_fusion_channels
            self.skip_fusion: nn.Module = self._mix(inputs, width, config.skip_fusion_norm_groups)
        else:
            self.skip_fusion = nn.Identity()

        refinement: list[nn.Module] = [
            ResidualDenseBlock(width, config.refinement_growth, config.refinement_layers, config.block_activation)
            for _ in range(config.refinement_blocks)
        ]
        for channels, groups in config.refinement:
            refinement.append(conv_norm_act(3, width, channels, 3, group_count(channels, groups), config.activation))
            width = channels
        self.refinement = nn.ModuleList(refinement)

        widths = [stage.channels for stage in config.stages[self.first_output : -1]]
        self.outputs = nn.ModuleList(output_head(channels, config.head_scale) for channels in (*widths, width))
        for output in self.outputs[1:]:
            # adds nothing, to begin with, to what the stages before give
            for parameter in output.parameters():
                nn.init.zeros_(parameter)
        scales = [*(stage.scale for stage in config.stages[self.first_output + 1 :]), 1]
        self.enlarge = nn.ModuleList(Upsample(scale) if scale > 1 else nn.Identity() for scale in scales)
        self.members = nn.ModuleList(ProgressiveCascade(config.coarsest) for _ in range(config.members - 1))
        # last, so that a seed gives all else the weights that it has without
        self.interval: IntervalHead | None = None
        if config.interval:
            self.interval = IntervalHead(
                [*widths, width], config.head_scale, config.activation, spread=config.members > 1
            )
        if config.channels_last:
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            for parameter in self.parameters():
                if parameter.ndim in formats:
                    parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])

    def _pyramid(self, stages: Sequence[int], levels: tuple[int, ...]) -> PyramidEncoder:
        """An encoder for these stages, of radiographs halved to fit the volume that the last of them gives."""
        config, first = self.config, self.config.radiograph_levels[stages[-1]]
        return PyramidEncoder(
            config.encoder_channels,
            tuple(max(levels[i] - first, 0) for i in stages),
            tuple(config.stages[i].lift_channels + config.confidence for i in stages),
            max(config.encoder_norm_groups),
            config.activation,
            first,
        )

    def _grow(self, width: int, stage: StageConfig) -> nn.Module:
        if stage.scale == 1 and self.config.fuse == "before":
            return nn.Identity()
        groups = group_count(stage.channels, stage.norm_groups)
        layers = conv_norm_act(3, width, stage.channels, stage.grow_kernel, groups, self.config.activation)
        if stage.scale == 1:
            return layers
        if stage.grow_kernel == 1:
            # a weighted sum of channels and one of neighbours can be exchanged
            return nn.Sequential(layers[0], Upsample(stage.scale), *list(layers)[1:])
        return nn.Sequential(Upsample(stage.scale), *layers)

    def _mix(self, inputs: int, width: int, norm_groups: int) -> nn.Module:
        if not norm_groups:
            return Conv3d(inputs, width)
        return conv_norm_act(3, inputs, width, 1, group_count(width, norm_groups), self.config.activation)

    def _skip(self, skip: SkipConfig) -> nn.Module:
        sizes = self.config.stage_sizes
        width = self.config.stages[skip.stage].channels
        up = Upsample(sizes[-1] // sizes[skip.stage])
        if not skip.norm_groups:
            return nn.Sequential(up, Conv3d(width, skip.channels, skip.kernel))
        groups = group_count(skip.channels, skip.norm_groups)
        return nn.Sequential(up, *conv_norm_act(3, width, skip.channels, skip.kernel, groups, self.config.activation))

    def forward(self, x: Tensor) -> Tensor | OnPlanes:
        """(batch, views, H, W) → (batch, 1, N, N, N); with an interval 3 channels, in training :class:`OnPlanes`."""
        if not torch.jit.is_scripting():  # noqa: SIM102
            if not torch.jit.is_tracing():
                x = _checked(x, self.config.geometry)
        maps: list[Tensor] = self.encoder(x)
        for encoder in self.fine_encoders:
            maps.append(encoder(x)[0])  # noqa: PERF401 (TorchScript)
        volume = self.volume.expand(x.shape[0], -1, -1, -1, -1)
        kept: list[Tensor] = []
        given: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            volume = stage(volume, maps[i])
            if i >= self.first_output:
                given.append(volume)
            if i in self.skip_stages:
                kept.append(volume)
        if len(kept) > 0:
            parts: list[Tensor] = [volume]
            for i, skip in enumerate(self.skips):
                parts.append(skip(kept[i]))
            volume = self.skip_fusion(torch.cat(parts, dim=1))
        given[-1] = self._refined(volume)
        first = self.outputs[0](given[0])
        spread: Tensor | None = None
        if len(self.members) > 0:
            volumes = [first]
            for member in self.members:
                other = member(x)
                assert isinstance(other, Tensor)  # it has no bounds
                volumes.append(other)
            first, spread = agreed_and_spread(volumes)
        total = first
        for i, (output, enlarge) in enumerate(zip(self.outputs, self.enlarge)):  # noqa: B905 (TorchScript)
            total = enlarge(first if i == 0 else total + output(given[i]))
        interval = self.interval
        return total if interval is None else interval(total, first, given, spread)

    def _refined(self, volume: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if self.checkpointing and recording():
                for part in self.refinement:
                    volume = recomputed(part, volume)
                return volume
        for part in self.refinement:
            volume = part(volume)
        return volume
