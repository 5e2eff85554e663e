"""The progressive cascade: one class for all named networks, built from a small configuration."""

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from drr2ct.networks.blocks import (
    ResidualDenseBlock,
    Upsample,
    conv_norm_act,
    group_count,
    output_head,
)
from drr2ct.networks.config import CascadeConfig, SkipConfig
from drr2ct.networks.convolution import Conv3d
from drr2ct.networks.encoder import PyramidEncoder, StackedEncoder, pyramid_level
from drr2ct.networks.ensemble import agreed_and_spread
from drr2ct.networks.interval import IntervalHead, OnPlanes
from drr2ct.networks.recompute import recomputed, recording
from drr2ct.networks.stage import build_stage, mixed
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError

_CORRECTED = 0.1
"""Part of what a correcting stage's head gives that is added: what it corrects is a tenth of the volume or less."""


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
        geometric = config.lift == "backprojection"
        levels = tuple(pyramid_level(config.geometry, size) for size in sizes)
        # counted from the first stage that has one: a network grown by further stages finds its heads by their names
        self.first_output = len(config.stages) - config.output_stages
        if geometric:
            self.encoder: nn.Module = self._pyramid(range(self.first_output + 1), levels)
        else:
            self.encoder = StackedEncoder(
                len(config.geometry.views),
                config.encoder_channels,
                config.encoder_norm_groups,
                config.activation,
                len(sizes),
            )
        self.fine_encoders = nn.ModuleList(
            self._pyramid([i], levels) for i in range(self.first_output + 1, len(config.stages))
        )
        # scaled so that its share in the first convolution is neither lost nor dominant
        self.volume = nn.Parameter(0.1 * torch.randn(1, config.volume_channels, *[config.volume_size] * 3))

        stages: list[nn.Module] = []
        width = config.volume_channels
        for i, stage in enumerate(config.stages):
            stages.append(build_stage(config, i, width))
            width = stage.channels
        self.stages = nn.ModuleList(stages)

        self.skip_stages = [skip.stage for skip in config.skips]
        self.skips = nn.ModuleList(self._skip(skip) for skip in config.skips)
        if config.skips:
            inputs = width + sum(skip.channels for skip in config.skips)
            width = config.skip_fusion_channels
            self.skip_fusion: nn.Module = mixed(inputs, width, config.skip_fusion_norm_groups, config.activation)
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
        # a head whose output counts less moves it less with each of Muon's steps, which are all of one size
        self.shares = [_CORRECTED if stage.halvings else 1.0 for stage in config.stages[self.first_output :]]
        scales = [1, *(stage.scale for stage in config.stages[self.first_output + 1 :])]
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
        first: Tensor | None = None
        total: Tensor | None = None
        spread: Tensor | None = None
        for i, stage in enumerate(self.stages):
            volume = stage(volume, maps[i], total, x)
            if i in self.skip_stages:
                kept.append(volume)
            if i == len(self.stages) - 1:
                volume = self._refined(self._with_skips(volume, kept))
            for j, (output, enlarge) in enumerate(zip(self.outputs, self.enlarge)):  # noqa: B905 (TorchScript)
                if i == self.first_output + j:
                    given.append(volume)
                    if total is None:
                        first, spread = self._agreed(output(volume), x)
                        total = first
                    else:
                        total = enlarge(total) + self.shares[j] * output(volume)
        assert first is not None and total is not None  # the last stage gives a volume
        interval = self.interval
        return total if interval is None else interval(total, first, given, spread)

    def _agreed(self, first: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the members say of the first volume, and how far they differ; without others, the volume itself."""
        if len(self.members) == 0:
            return first, None
        volumes = [first]
        for member in self.members:
            other = member(x)
            assert isinstance(other, Tensor)  # it has no bounds
            volumes.append(other)
        return agreed_and_spread(volumes)

    def _with_skips(self, volume: Tensor, kept: list[Tensor]) -> Tensor:
        if len(kept) == 0:
            return volume
        parts: list[Tensor] = [volume]
        for i, skip in enumerate(self.skips):
            parts.append(skip(kept[i]))
        return self.skip_fusion(torch.cat(parts, dim=1))

    def _refined(self, volume: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if self.checkpointing and recording():
                for part in self.refinement:
                    volume = recomputed(part, volume)
                return volume
        for part in self.refinement:
            volume = part(volume)
        return volume
