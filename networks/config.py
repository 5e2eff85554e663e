"""What a cascade is built from: its stages, skips and settings, checked, and as plain types."""

import difflib
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from drr2ct.networks.blocks import ACTIVATIONS
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError, whole_number

LIFTS = ("backprojection", "broadcast")


@dataclass(frozen=True)
class StageConfig:
    """One stage: grow, take the X-rays in, refine.

    Args:
        channels: width of the stage.
        scale: how many times finer than the stage before (or the learned volume); 1 keeps the size.
        norm_groups: most groups of the normalisation after the growing convolution; 0 for none, there and in the
            residual dense blocks.
        grow_kernel: edge of the growing convolution's kernel. With 1 it is computed before the upsampling, which gives
            the same at an eighth of the cost.
        blocks: number of residual dense blocks.
        growth: channels that each of their layers adds.
        layers: layers in each of them.
        lift_channels: channels that a view gives to this stage (back-projection only).
        halvings: above 0, the stage corrects the volume that the stages before give: it sees that, and what its own
            radiographs lack of those given, and after its blocks refines by a U-shape of so many halvings.
    """

    channels: int
    scale: int = 2
    norm_groups: int = 8
    grow_kernel: int = 3
    blocks: int = 1
    growth: int = 16
    layers: int = 3
    lift_channels: int = 16
    halvings: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            least = 0 if f.name in ("blocks", "norm_groups", "halvings") else 1
            whole_number(f"a stage's {f.name}", value, least)
        if self.grow_kernel % 2 == 0:
            raise InputError(f"a stage's grow_kernel is {self.grow_kernel}; it must be odd.")


@dataclass(frozen=True)
class SkipConfig:
    """A stage's result, upsampled to the last stage's size and convolved, for the fusion before the refinement.

    Args:
        stage: index of the stage.
        channels: after the convolution.
        kernel: edge of the convolution's kernel.
        norm_groups: groups of the normalisation that follows, with an activation; 0 for neither.
    """

    stage: int
    channels: int
    kernel: int = 1
    norm_groups: int = 0


@dataclass(frozen=True)
class CascadeConfig:
    """Everything that :class:`drr2ct.networks.cascade.ProgressiveCascade` is built from.

    The volumes' sizes follow from the geometry: the head gives the grid's size, and every stage's scale divides it
    on the way back to the learned volume.

    Args:
        geometry: grid and views that the network is for.
        stages: from coarse to fine.
        lift: ``backprojection`` (each view along its own rays) or ``broadcast`` (stacked views along one axis).
        encoder_channels: of the X-ray encoder's levels.
        encoder_norm_groups: groups of each level of the stacked encoder; the largest, of the pyramid.
        volume_channels: of the learned volume that the cascade starts from.
        depth_weight: amplitude of the sine weight along the broadcast axis.
        fuse: take the X-rays in ``before`` or ``after`` the stage's residual dense blocks.
        fuse_norm_groups: most groups of a normalisation after that fusion, with an activation; 0 for neither.
        skips: earlier stages whose results join the last one's.
        skip_fusion_channels: after the convolution that joins them.
        skip_fusion_norm_groups: groups of the normalisation after it.
        refinement_blocks: residual dense blocks after the last stage.
        refinement_growth: channels that each of their layers adds.
        refinement_layers: layers in each of them.
        refinement: (channels, norm groups) of the 3³ convolutions that follow.
        confidence: weigh the views voxel by voxel when they are joined (back-projection only).
        output_stages: how many of the last stages give a volume, each by a head of its own: the first of them the
            volume, the following ones what they add to it, at the size that their head makes, from radiographs that
            are halved to fit that. So a network grown by a stage contains the network that it was. 1: only the last.
        halve_radiographs: how often radiographs are halved, by 2×2 averages, before anything else sees them.
        head_scale: 1 for a 1³ convolution to the volume, above 1 for a sub-voxel head that makes it so much finer.
        transformer_layers: transformer blocks at the first stage; 0 for none.
        transformer_heads: their attention heads.
        activation: after convolutions, one of ``gelu``, ``leakyrelu``, ``relu``, ``silu``.
        block_activation: the same, inside residual dense blocks.
        checkpointing: recompute activations in the backward pass instead of keeping them (less memory, more time).
        channels_last: lay weights, and with them all activations, out channels last, which a training does where it is
            known to be faster (``network.to(memory_format=…)`` cannot, as it takes one of 2-D and 3-D weights only).
        interval: give a lower and an upper bound beside the estimate (``drr2ct.networks.interval``).
        members: of how many networks the first volumes are joined (``drr2ct.networks.ensemble``): its own and those of
            ``members`` - 1 more of :attr:`coarsest`. Further stages add to what they agree on.

    Raises:
        InputError: if the values do not make a network.
    """

    geometry: BiplanarGeometry
    stages: tuple[StageConfig, ...]
    lift: str = "backprojection"
    encoder_channels: tuple[int, ...] = (16, 32, 48, 64)
    encoder_norm_groups: tuple[int, ...] = (8,)
    volume_channels: int = 16
    depth_weight: float = 0.0
    fuse: str = "before"
    fuse_norm_groups: int = 0
    skips: tuple[SkipConfig, ...] = ()
    skip_fusion_channels: int = 128
    skip_fusion_norm_groups: int = 16
    refinement_blocks: int = 0
    refinement_growth: int = 8
    refinement_layers: int = 3
    refinement: tuple[tuple[int, int], ...] = ()
    confidence: bool = False
    output_stages: int = 1
    halve_radiographs: int = 0
    head_scale: int = 1
    transformer_layers: int = 0
    transformer_heads: int = 4
    activation: str = "relu"
    block_activation: str = "relu"
    checkpointing: bool = False
    channels_last: bool = False
    interval: bool = False
    members: int = 1

    def __post_init__(self) -> None:
        if self.lift not in LIFTS:
            raise InputError(f"lift {self.lift!r} is unknown; use one of {', '.join(LIFTS)}.")
        if self.fuse not in ("before", "after"):
            raise InputError(f"fuse {self.fuse!r} is unknown; use before or after (the residual dense blocks).")
        for what in ("activation", "block_activation"):
            if getattr(self, what) not in ACTIVATIONS:
                raise InputError(f"{what} {getattr(self, what)!r} is unknown; use one of {', '.join(ACTIVATIONS)}.")
        if not self.stages:
            raise InputError("a cascade needs at least one stage.")
        if not self.encoder_channels or not self.encoder_norm_groups:
            raise InputError("a cascade needs at least one level in encoder_channels and in encoder_norm_groups.")
        if self.lift == "broadcast" and len(self.encoder_channels) != len(self.encoder_norm_groups):
            raise InputError(
                f"encoder_channels has {len(self.encoder_channels)} entries but encoder_norm_groups has "
                f"{len(self.encoder_norm_groups)}; the stacked encoder needs one of each per layer."
            )
        finer = self.head_scale * math.prod(stage.scale for stage in self.stages)
        size = self.geometry.grid.size
        if finer < 1 or size % finer:
            raise InputError(
                f"a grid of {size}³ voxels cannot be reached by {len(self.stages)} stages that refine {finer}-fold; "
                f"use a size that is a multiple of {finer}, or other stages."
            )
        _check_stages(self)
        whole_number("members", self.members, 1)
        whole_number("halve_radiographs", self.halve_radiographs, 0)
        if self.lift == "broadcast" and self.halve_radiographs:
            raise InputError("halve_radiographs needs lift backprojection, not broadcast.")
        if self.output_stages > 1 and self.lift == "broadcast":
            raise InputError("output_stages above 1 need lift backprojection, not broadcast.")
        if self.confidence and self.lift != "backprojection":
            raise InputError("confidence weighs lifted views; it needs lift backprojection, not broadcast.")
        if self.transformer_layers and self.stages[0].channels % self.transformer_heads:
            raise InputError(
                f"the first stage's {self.stages[0].channels} channels cannot be shared by "
                f"{self.transformer_heads} attention heads; choose a divisor."
            )

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Edge of every stage's volume, in voxels."""
        sizes = [self.geometry.grid.size // self.head_scale]
        for stage in reversed(self.stages[1:]):
            sizes.insert(0, sizes[0] // stage.scale)
        return tuple(sizes)

    @property
    def radiograph_levels(self) -> tuple[int, ...]:
        """How often each stage's radiographs are halved before they are encoded.

        With ``output_stages`` a stage that gives a volume sees them as a network that ends with it would: halved as
        often as later stages double that volume. Earlier ones share the encoder of the first that gives one.
        """
        first, levels = len(self.stages) - self.output_stages, [self.halve_radiographs]
        for stage in reversed(self.stages[first + 1 :]):
            levels.insert(0, levels[0] + int(math.log2(stage.scale)))
        return (levels[0],) * first + tuple(levels)

    @property
    def volume_size(self) -> int:
        """Edge of the learned volume, in voxels."""
        return self.stage_sizes[0] // self.stages[0].scale

    def first_stages(self, count: int) -> "CascadeConfig":
        """The first stages with their head: a network of its own, whose volume is the grid's cube in larger voxels.

        It takes the same radiographs, and shares the names of layers and, but for the head, most of their shapes.

        Raises:
            InputError: for a number of stages that there are not.
        """
        if not 1 <= count <= len(self.stages):
            raise InputError(f"there are {len(self.stages)} stages; {count} of them cannot be taken.")
        return replace(
            self,
            geometry=self.geometry.resized(size=self.stage_sizes[count - 1] * self.head_scale),
            stages=self.stages[:count],
            skips=tuple(skip for skip in self.skips if skip.stage < count - 1),
            output_stages=max(self.output_stages - (len(self.stages) - count), 1),
            halve_radiographs=self.radiograph_levels[count - 1],
        )

    @property
    def coarsest(self) -> "CascadeConfig":
        """The network that gives the first of the volumes, alone and without bounds."""
        first = self.first_stages(len(self.stages) - self.output_stages + 1)
        return replace(first, interval=False, members=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what JSON and YAML files and checkpoints hold."""

        def plain(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return asdict(value) if isinstance(value, (StageConfig, SkipConfig)) else value

        values = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        return {**values, "geometry": self.geometry.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "CascadeConfig":
        """Inverse of :meth:`to_dict`; entries may also be the real types, and missing ones keep their defaults.

        Raises:
            InputError: for unknown entries, or values of the wrong kind.
        """
        for name in ("geometry", "stages"):
            if name not in data:
                raise InputError(f"a network configuration needs {name}.")
        return cls(**_parsed(data))

    def with_overrides(self, overrides: dict[str, Any]) -> "CascadeConfig":
        """The same with some fields replaced; values as in :meth:`from_dict`.

        Raises:
            InputError: as :meth:`from_dict`.
        """
        return replace(self, **_parsed(overrides))


def _check_stages(config: CascadeConfig) -> None:
    """Whether what stages give and take is there."""
    for skip in config.skips:
        if not 0 <= skip.stage < len(config.stages) - 1:
            raise InputError(f"skip from stage {skip.stage} is not from an earlier one of {len(config.stages)}.")
    if not 1 <= config.output_stages <= len(config.stages):
        raise InputError(
            f"output_stages is {config.output_stages}; it must be between 1 and {len(config.stages)} stages."
        )
    if any(stage.scale not in (1, 2, 4) for stage in config.stages[len(config.stages) - config.output_stages + 1 :]):
        raise InputError("stages that add to the volume of the stage before refine 1-, 2- or 4-fold.")
    for i, (stage, edge) in enumerate(zip(config.stages, config.stage_sizes, strict=True)):
        if stage.halvings and i <= len(config.stages) - config.output_stages:
            raise InputError(f"stage {i + 1} has halvings, but no stage before it gives a volume to correct.")
        if stage.halvings and config.fuse != "before":
            raise InputError(f"stage {i + 1} has halvings; then fuse must be before, not {config.fuse}.")
        if edge % 2**stage.halvings:
            raise InputError(f"stage {i + 1} has {edge}³ voxels, which cannot be halved {stage.halvings} times.")


def _parsed(data: dict[str, Any]) -> dict[str, Any]:
    """Fields of :class:`CascadeConfig` from plain types."""
    known = [f.name for f in fields(CascadeConfig)]
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}."
            raise InputError(f"network setting {name!r} is unknown; {hint}")
    parsed = dict(data)
    name = "geometry"
    try:
        if name in data and not isinstance(data[name], BiplanarGeometry):
            parsed[name] = BiplanarGeometry.from_dict(data[name])
        for name, kind in (("stages", StageConfig), ("skips", SkipConfig)):
            if name in data:
                parsed[name] = tuple(item if isinstance(item, kind) else kind(**item) for item in data[name])
        for name in ("encoder_channels", "encoder_norm_groups"):
            if name in data:
                parsed[name] = tuple(int(item) for item in data[name])
        name = "refinement"
        if name in data:
            parsed[name] = tuple((int(channels), int(groups)) for channels, groups in data[name])
    except (KeyError, TypeError) as error:
        raise InputError(f"network setting {name} cannot be read ({error}); see CascadeConfig for its form.") from error
    return parsed
