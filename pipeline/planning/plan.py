"""What a network costs before a GPU is rented: memory and floating-point operations of a training step, by its parts.

The real network, loss and optimiser run under torch's fake tensors, which have shapes and storages but no memory, so
nothing is computed and nothing here can drift from the code.

Not counted: what kernels use inside themselves (cuDNN and oneDNN workspaces), the CUDA context, and what an allocator
loses to fragmentation. :func:`drr2ct.pipeline.planning.fitting.needed_bytes` adds a margin for them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from drr2ct.networks import CascadeConfig, network_config
from drr2ct.networks.blocks import ResidualDenseBlock, group_count
from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.planning.tracing import Inside, Sections, StorageTracker, TrainingStep, bundle_optimizer
from drr2ct.pipeline.running.precision import PRECISIONS
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError, whole_number


@dataclass(frozen=True)
class Settings:
    """What is planned.

    Args:
        network: one of ``list_networks``.
        batch: samples per step.
        precision: ``bf16``, ``fp16`` or ``fp32``.
        views: number of radiographs, at even angles over a half turn from PA on (two: PA and lateral).
        size: edge of the volume, in voxels; the network's own by default.
        detector: rows and columns of a radiograph; the network's own by default.
        checkpointing: recompute activations; as the network has it by default.
        xray_channels: of the X-ray encoder's last level; as the network has them by default.
        interval: with bounds beside the estimate.
        members: of an ensemble.

    Raises:
        InputError: for an unknown precision, or a number below 1. An unknown network or an impossible size is refused
            when the network is built.
    """

    network: str
    batch: int = 1
    precision: str = "bf16"
    views: int = 2
    size: int | None = None
    detector: int | None = None
    checkpointing: bool | None = None
    xray_channels: int | None = None
    interval: bool = False
    members: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r} is unknown; choose from {', '.join(PRECISIONS)}.")
        for name in ("batch", "views", "size", "detector", "xray_channels"):
            value = getattr(self, name)
            if value is not None:
                whole_number(name.replace("_", " "), value, 1)

    def config(self) -> CascadeConfig:
        """The network's configuration.

        Raises:
            InputError: as ``network_config``.
        """
        config = network_config(self.network, size=self.size, detector_size=self.detector)
        changes: dict[str, Any] = {"interval": self.interval, "members": self.members}
        if self.views != len(config.geometry.views):
            angles = [180 * i / self.views for i in range(self.views)]
            changes["geometry"] = BiplanarGeometry.from_angles(
                config.geometry.grid, angles, detector_size=config.geometry.detector_size
            )
        if self.checkpointing is not None:
            changes["checkpointing"] = self.checkpointing
        if self.xray_channels is not None:
            changes.update(xray_channels(config, self.xray_channels))
        return config.with_overrides(changes)


def xray_channels(config: CascadeConfig, channels: int) -> dict[str, tuple[int, ...]]:
    """What to change in a configuration so that the X-ray encoder's last level has so many channels."""
    *earlier, groups = config.encoder_norm_groups
    return {
        "encoder_channels": (*config.encoder_channels[:-1], channels),
        "encoder_norm_groups": (*earlier, group_count(channels, groups)),
    }


@dataclass(frozen=True)
class StagePlan:
    """One part of the network (or the loss, or the optimiser).

    Args:
        name: of the part.
        input: shape of what it is given, without batch; empty for loss and optimiser.
        output: shape of its result, without batch; of the encoder, one view's map for the last stage.
        channels: of its result.
        blocks: number of residual dense blocks.
        growth: channels that each of their layers adds.
        parameters: number of weights.
        kept_bytes: what it leaves behind for the backward pass, its result included.
        peak_bytes: most memory in use, of everything, while it runs (forward, backward or recomputation).
        forward_flops: of the forward pass.
        step_flops: of forward, backward and recomputation.
    """

    name: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    channels: int
    blocks: int
    growth: int
    parameters: int
    kept_bytes: int
    peak_bytes: int
    forward_flops: int
    step_flops: int


@dataclass(frozen=True)
class Plan:
    """Cost of a network; see :func:`plan_network`.

    Args:
        settings: what was planned, with the defaults resolved.
        parameters: number of weights.
        forward_flops: of one forward pass of the batch (a multiplication and an addition are two).
        step_flops: of one training step.
        forward_peak_bytes: most memory in use while a batch is reconstructed, without gradients.
        step_peak_bytes: the same in a training step.
        optimizer_state_bytes: the optimiser's momenta (Muon's, or AdamW's of the first designs).
        resting_bytes: in use between steps: weights, gradients, momenta and the batch.
        stages: in the order they run.
    """

    settings: Settings
    parameters: int
    forward_flops: int
    step_flops: int
    forward_peak_bytes: int
    step_peak_bytes: int
    optimizer_state_bytes: int
    resting_bytes: int
    stages: tuple[StagePlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``--json`` writes them."""
        return asdict(self)


def plan_network(settings: Settings) -> Plan:
    """Trace one reconstruction and one training step (not the first: gradients and momenta are there already).

    Raises:
        InputError: as :meth:`Settings.config`.
    """
    config = settings.config()
    rows, _ = config.geometry.detector_size
    resolved = replace(settings, size=config.geometry.grid.size, detector=rows, checkpointing=config.checkpointing)
    return replace(plan_config(config, settings.batch, settings.precision, name=settings.network), settings=resolved)


@functools.lru_cache(maxsize=256)
def plan_config(
    config: CascadeConfig, batch: int, precision: str, inside: Inside | None = None, name: str = ""
) -> Plan:
    """:func:`plan_network` for a configuration that need not have a name (its plan's settings then have none).

    Args:
        config: of the network.
        batch: samples per step.
        precision: as :class:`Settings` has it.
        inside: what operations allocate inside themselves, see :class:`StorageTracker`.
        name: of the network, if it has one: some are trained by another optimiser.
    """
    optimizer = bundle_optimizer(name)
    loss = WeightedLoss()  # its window is computed, so it is made with real tensors
    # autocast for a GPU that is not there would switch itself off; the CPU's keeps the same types, fp16 too
    with FakeTensorMode(), StorageTracker(inside) as tracker:
        step = TrainingStep(config, batch, precision, optimizer)
        network = step.network
        parameters = sum(parameter.numel() for parameter in network.parameters())

        tracker.peak, flops = tracker.live, tracker.flops
        step.infer()
        forward_peak, forward_flops = tracker.peak, tracker.flops - flops

        step.settle()
        state = [t for values in step.optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        state_bytes = sum(t.untyped_storage().nbytes() for t in state)

        sections = Sections(tracker, network)
        for booked in (tracker.section_peak, tracker.section_flops, tracker.section_growth):
            booked.clear()
        resting = tracker.peak = tracker.live
        flops = tracker.flops
        after_forward: dict[str, dict[str, int]] = {}

        def phase(name: str) -> None:
            if name == "backward":
                after_forward["growth"] = dict(tracker.section_growth)
                after_forward["flops"] = dict(tracker.section_flops)
            sections.begin(name)

        step.run(loss, phase)
        step_peak, step_flops = tracker.peak, tracker.flops - flops

    def stage(name: str, modules: Sequence[nn.Module]) -> StagePlan:
        given, result = sections.shapes.get(name, [(), ()])
        blocks = [m for module in modules for m in module.modules() if isinstance(m, ResidualDenseBlock)]
        return StagePlan(
            name=name,
            input=given,
            output=result,
            channels=result[0] if result else 0,
            blocks=len(blocks),
            growth=next((c.out_channels for b in blocks for c in b.layers.modules() if isinstance(c, nn.Conv3d)), 0),
            parameters=sum(p.numel() for module in modules for p in module.parameters()),
            kept_bytes=after_forward["growth"].get(name, 0),
            peak_bytes=tracker.section_peak[name],
            forward_flops=after_forward["flops"].get(name, 0),
            step_flops=tracker.section_flops[name],
        )

    return Plan(
        settings=Settings("", batch, precision, len(config.geometry.views)),
        parameters=parameters,
        forward_flops=forward_flops,
        step_flops=step_flops,
        forward_peak_bytes=forward_peak,
        step_peak_bytes=step_peak,
        optimizer_state_bytes=state_bytes,
        resting_bytes=resting,
        stages=tuple(stage(name, modules) for name, modules in [*sections.parts, ("loss", []), ("optimiser", [])]),
    )
