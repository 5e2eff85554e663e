r"""What a network costs before a GPU is rented: memory, floating-point operations and time of a training step.

The real network, loss and optimiser run under torch's fake tensors, which have shapes and storages but no memory, so
nothing is computed and nothing here can drift from the code. Every storage is counted once, from the operation that
makes it to the moment its last reference goes: through forward, backward (with recomputation) and optimiser.

Not counted: what kernels use inside themselves (cuDNN and oneDNN workspaces), the CUDA context, and what an allocator
loses to fragmentation. :func:`needed_bytes` adds a margin for them.
"""

from __future__ import annotations

import functools
import re
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from drr2ct.networks import CascadeConfig, ProgressiveCascade, network_config
from drr2ct.networks.blocks import ResidualDenseBlock, group_count
from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.running.precision import PRECISIONS, AutocastInferer, clip_gradients
from drr2ct.transforms.files import replacing, write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError

ALLOCATOR_MARGIN = 0.10
"""Fraction added to the peak for kernels' workspaces and fragmentation."""
CONTEXT_BYTES = 2**29
"""Added for the CUDA context and the loaded kernels."""
MOST_BATCH = 1024
"""Where the search for the largest batch ends."""
FEWER_XRAY_CHANNELS = 96

_UNITS = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_RATES = {"g": 1e9, "t": 1e12, "p": 1e15}


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

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r} is unknown; choose from {', '.join(PRECISIONS)}.")
        for name in ("batch", "views", "size", "detector", "xray_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name.replace('_', ' ')} is {value}; it must be a positive whole number.")

    def config(self) -> CascadeConfig:
        """The network's configuration.

        Raises:
            InputError: as ``network_config``.
        """
        config = network_config(self.network, size=self.size, detector_size=self.detector)
        changes: dict[str, Any] = {}
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
        optimizer_state_bytes: AdamW's moments.
        resting_bytes: in use between steps: weights, gradients, moments and the batch.
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


Inside = Callable[[Any, Any, Any], int]


class StorageTracker(TorchDispatchMode):
    """Follows the memory of all tensors that operations make while it is entered, and counts their FLOPs.

    Views share their storage, which is counted once, when it first appears, until Python and autograd drop it.

    Args:
        inside: given an operation and its arguments, the most bytes that it allocates while it runs, its results
            included; by default none but these.

    Attributes:
        live: bytes in use.
        peak: most bytes in use; may be set back to ``live``.
        flops: so far, as ``torch.utils.flop_counter`` counts them.
        section: under which name peaks, growth and FLOPs are booked.
    """

    def __init__(self, inside: Inside | None = None) -> None:
        super().__init__()
        self.inside = inside
        self.live = self.peak = self.flops = 0
        self.section = ""
        self.section_peak: dict[str, int] = defaultdict(int)
        self.section_flops: dict[str, int] = defaultdict(int)
        self.section_growth: dict[str, int] = defaultdict(int)
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at what it made."""
        kwargs = kwargs or {}
        while_running = self.live + self.inside(func, args, kwargs) if self.inside else 0
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        if formula := flop_registry.get(func.overloadpacket):
            flops = formula(*args, **kwargs, out_val=result)
            self.flops += flops
            self.section_flops[self.section] += flops
        most = max(self.live, while_running)
        self.peak = max(self.peak, most)
        self.section_peak[self.section] = max(self.section_peak[self.section], most)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._storages:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            del self._storages[key]
            self._change(-size)

        self._storages[key] = weakref.ref(storage, freed)
        self._change(size)

    def _change(self, size: int) -> None:
        self.live += size
        self.section_growth[self.section] += size


class TrainingStep:
    """Network, default loss, optimiser and a random batch, as the bundle's ``train.yaml`` puts them together.

    Args:
        config: of the network.
        batch: samples.
        precision: as :class:`Settings` has it.
        device: where.
    """

    def __init__(self, config: CascadeConfig, batch: int, precision: str, device: torch.device | str = "cpu") -> None:
        with torch.device(device):  # not .to(device), which cannot move fake weights
            self.network = ProgressiveCascade(config)
        self.inferer = AutocastInferer(torch.device(device).type, precision)
        self.optimizer = clip_gradients(
            torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=1e-4), max_norm=1.0
        )
        views, size = len(config.geometry.views), config.geometry.grid.size
        self.image = torch.rand(batch, views, *config.geometry.detector_size, device=device)
        self.label = torch.rand(batch, 1, size, size, size, device=device)

    def settle(self) -> None:
        """Make the gradients and the optimiser's state, so that the next step is like all later ones."""
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()

    def infer(self) -> Tensor:
        """Reconstruct the batch, without gradients: (batch, 1, N, N, N)."""
        self.network.eval()
        with torch.no_grad():
            return self.inferer(self.image, self.network)

    def run(self, loss: nn.Module, phase: Callable[[str], None] = lambda name: None) -> None:
        """One training step, in the order of MONAI's ``SupervisedTrainer``.

        Args:
            loss: called with (prediction, target).
            phase: told when ``forward``, ``loss``, ``backward`` and ``optimiser`` begin.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=False)
        phase("forward")
        pred = self.inferer(self.image, self.network)
        phase("loss")
        value = loss(pred, self.label)
        phase("backward")
        value.backward()
        phase("optimiser")
        self.optimizer.step()
        # the trainer holds the prediction until the next iteration
        del pred


def _parts(network: ProgressiveCascade) -> list[tuple[str, list[nn.Module]]]:
    """Names and modules, in the order they run."""
    sizes = network.config.stage_sizes
    parts: list[tuple[str, list[nn.Module]]] = [("encoder", [network.encoder])]
    parts += [(f"stage {i + 1}, {n}³", [s]) for i, (n, s) in enumerate(zip(sizes, network.stages, strict=True))]
    parts += [(f"skip from stage {i + 1}", [s]) for i, s in zip(network.skip_stages, network.skips, strict=True)]
    if len(network.skips):
        parts.append(("skip fusion", [network.skip_fusion]))
    *refinement, head = network.refinement
    if refinement:
        parts.append(("refinement", refinement))
    return [*parts, ("head", [head])]


@runtime_checkable
class HasSection(Protocol):
    """What is told which part runs."""

    section: str


class Sections:
    """Tells the tracker which part runs: by module hooks going forward, by gradient hooks coming back.

    Args:
        tracker: that is told.
        network: whose parts they are.
    """

    def __init__(self, tracker: HasSection, network: ProgressiveCascade) -> None:
        self.tracker = tracker
        self.parts = _parts(network)
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.phase = ""  # until one begins, no part is noted: validation runs the network too
        following = [name for name, _ in self.parts[1:]] + ["loss"]
        self.handles = []
        for (name, modules), after in zip(self.parts, following, strict=True):
            for module in modules:
                self.handles.append(module.register_forward_pre_hook(self._entered(name)))
                last = module is modules[-1]
                self.handles.append(module.register_forward_hook(self._left(name, after if last else name)))

    def begin(self, phase: str) -> None:
        """Note the phase; loss and optimiser are sections of their own."""
        self.phase = phase
        self.tracker.section = {"forward": self.parts[0][0], "backward": "loss"}.get(phase, phase)

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self.handles:
            handle.remove()

    def _entered(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self.phase == "forward":  # not in recomputation
                self.tracker.section = name
                self.shapes.setdefault(name, [tuple(inputs[0].shape[1:]), ()])

        return hook

    def _left(self, name: str, after: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor | list[Tensor]) -> None:
            if self.phase != "forward":
                return
            # the encoder gives a list of maps, (batch, views, channels, h, w)
            outputs = output if isinstance(output, list) else [output]
            self.shapes[name][1] = tuple(outputs[-1].shape[2 if isinstance(output, list) else 1 :])
            for tensor in outputs:
                if tensor.requires_grad:
                    tensor.register_hook(self._returned(name))
            # what joins parts (a concatenation) belongs to the one that follows
            self.tracker.section = after

        return hook

    def _returned(self, name: str) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            self.tracker.section = name

        return hook


def plan_network(settings: Settings) -> Plan:
    """Trace one reconstruction and one training step (not the first: gradients and moments are there already).

    Raises:
        InputError: as :meth:`Settings.config`.
    """
    config = settings.config()
    rows, _ = config.geometry.detector_size
    resolved = replace(settings, size=config.geometry.grid.size, detector=rows, checkpointing=config.checkpointing)
    return replace(plan_config(config, settings.batch, settings.precision), settings=resolved)


@functools.lru_cache(maxsize=256)
def plan_config(config: CascadeConfig, batch: int, precision: str, inside: Inside | None = None) -> Plan:
    """:func:`plan_network` for a configuration that need not have a name (its plan's settings then have none).

    Args:
        config: of the network.
        batch: samples per step.
        precision: as :class:`Settings` has it.
        inside: what operations allocate inside themselves, see :class:`StorageTracker`.
    """
    loss = WeightedLoss()  # its window is computed, so it is made with real tensors
    # autocast for a GPU that is not there would switch itself off; the CPU's keeps the same types, fp16 too
    with FakeTensorMode(), StorageTracker(inside) as tracker:
        step = TrainingStep(config, batch, precision)
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


def parse_bytes(text: str) -> int:
    """``80 GiB`` → bytes; MB, GB, TB count in thousands, MiB, GiB, TiB in 1024s.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise InputError(f"memory {text!r} cannot be read; write a number and a unit, such as 80 GiB.")
    return int(float(match[1]) * unit)


def parse_rate(text: str) -> float:
    """``50 TFLOP/s`` → FLOP per second.

    Raises:
        InputError: for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([gtp])flop(?:/s|s)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InputError(f"throughput {text!r} cannot be read; write a number and a unit, such as 50 TFLOP/s.")
    return float(match[1]) * _RATES[match[2].lower()]


def needed_bytes(plan: Plan) -> int:
    """GPU memory to ask for: the step's peak, and a margin for what the trace cannot see."""
    return int(plan.step_peak_bytes * (1 + ALLOCATOR_MARGIN)) + CONTEXT_BYTES


def largest_batch(settings: Settings, memory_bytes: int) -> int:
    """Most samples per step that fit, 0 if not even one does; found and confirmed by tracing.

    Raises:
        InputError: as :func:`plan_network`.
    """

    def needs(batch: int) -> int:
        return needed_bytes(plan_network(replace(settings, batch=batch)))

    one = needs(1)
    if one > memory_bytes:
        return 0
    # the peak is a maximum of straight lines in the batch, so the first two only guess
    guess = min(1 + (memory_bytes - one) // max(needs(2) - one, 1), MOST_BATCH)
    fits, beyond = 1, MOST_BATCH + 1
    while fits + 1 < beyond:
        guess = min(max(guess, fits + 1), beyond - 1)
        if needs(guess) <= memory_bytes:
            fits, guess = guess, guess + 1
        else:
            beyond, guess = guess, (fits + guess) // 2
    return fits


def cheapest_change(settings: Settings, memory_bytes: int) -> tuple[str, Plan] | None:
    """What to change so that a step fits, and its plan; None if nothing tried is enough.

    Tried in the order of what they cost: bf16 (nothing), a smaller batch (more steps), activation checkpointing
    (computing the forward pass twice), fewer X-ray channels (another network); each alone, then one after the other.

    Raises:
        InputError: as :func:`plan_network`.
    """
    config = settings.config()
    changes: list[tuple[str, dict[str, Any]]] = []
    if settings.precision == "fp32":
        changes.append(("bf16", {"precision": "bf16"}))
    if settings.batch > 1:
        batch = max(min(largest_batch(settings, memory_bytes), settings.batch - 1), 1)
        changes.append((f"batch {batch}", {"batch": batch}))
    if not config.checkpointing:
        changes.append(("activation checkpointing", {"checkpointing": True}))
    if config.lift == "broadcast" and config.encoder_channels[-1] > FEWER_XRAY_CHANNELS:
        changes.append((f"{FEWER_XRAY_CHANNELS} X-ray channels", {"xray_channels": FEWER_XRAY_CHANNELS}))
    combined = [changes[: i + 1] for i in range(1, len(changes))]
    for tried in [[change] for change in changes] + combined:
        plan = plan_network(replace(settings, **{key: value for _, values in tried for key, value in values.items()}))
        if needed_bytes(plan) <= memory_bytes:
            return " and ".join(what for what, _ in tried), plan
    return None


def measure_throughput(settings: Settings) -> float:
    """FLOP per second of real training steps of this network, on the GPU if there is one, else on the CPU.

    The network is cut to the largest grid whose step stays short and small. The first of two steps warms up.

    Raises:
        InputError: as :func:`plan_network`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        memory, most_flops = torch.cuda.mem_get_info()[0], 100e12
    else:
        memory, most_flops = 2**30, 0.2e12
    full = settings.config().geometry
    precision = "bf16" if settings.precision == "fp16" and device.type == "cpu" else settings.precision
    for size in sorted({full.grid.size, 256, 128, 64, 32}, reverse=True):
        detector = max(full.detector_size[0] * size // full.grid.size, 32)
        small = replace(settings, batch=1, size=size, detector=detector, precision=precision)
        plan = plan_network(small)
        if size <= full.grid.size and needed_bytes(plan) <= memory and plan.step_flops <= most_flops:
            break
    step, loss = TrainingStep(small.config(), 1, precision, device), WeightedLoss()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        step.run(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return plan.step_flops / seconds


def checkpoint_metrics(paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Metrics of the last validation, by network; the best PSNR where several checkpoints are of one network.

    Raises:
        InputError: as ``read_checkpoint``.
    """
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        description = read_checkpoint(path)["description"]
        metrics = {name: float(value) for name, value in description.get("metrics", {}).items()}
        best = found.get(description["name"])
        if metrics and (best is None or metrics.get("psnr", 0) > best.get("psnr", 0)):
            found[description["name"]] = metrics
    return found


def size_text(number: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.1f} MiB"


def _flops(number: int) -> str:
    return f"{number / 1e12:.2f} TFLOP" if number >= 1e11 else f"{number / 1e9:.2f} GFLOP"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape[-3:])) if len(shape) >= 3 else "–"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if seconds >= 3600 else f"{seconds / 60:.1f} min"


@dataclass(frozen=True)
class TableText:
    """A table as strings: heading, column names, rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title)
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="right" if i else "left", overflow="fold")  # never cut
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a document."""
        lines = [self.columns, ("---", *["---:"] * (len(self.columns) - 1)), *self.rows]
        return "\n".join([f"### {self.title}", "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def stage_table(plan: Plan) -> TableText:
    """What each part costs."""
    columns = ("stage", "input → output", "channels", "RDBs", "growth", "parameters", "kept", "peak", "FLOP, forward")
    rows = [
        (
            s.name,
            f"{_shape(s.input)} → {_shape(s.output)}" if s.output else "",
            str(s.channels or ""),
            str(s.blocks or ""),
            str(s.growth or ""),
            f"{s.parameters:,}" if s.parameters else "",
            size_text(s.kept_bytes) if s.kept_bytes > 0 else "",
            size_text(s.peak_bytes),
            _flops(s.forward_flops) if s.forward_flops else "",
        )
        for s in plan.stages
    ]
    s = plan.settings
    title = (
        f"{s.network}: {s.size}³ from {s.views} views of {s.detector}², batch {s.batch}, {s.precision}, "
        f"checkpointing {'on' if s.checkpointing else 'off'}"
    )
    return TableText(title, columns, tuple(rows))


def totals(plan: Plan, memory_bytes: int | None, epoch_seconds: float | None, samples: int) -> list[str]:
    """Sentences below the stage table."""
    lines = [
        f"parameters {plan.parameters:,}; optimiser state {size_text(plan.optimizer_state_bytes)}",
        f"peak: {size_text(plan.forward_peak_bytes)} reconstructing, {size_text(plan.step_peak_bytes)} in a step",
        f"{_flops(plan.forward_flops)} forward, {_flops(plan.step_flops)} per training step",
    ]
    if epoch_seconds is not None:
        lines.append(f"{_duration(epoch_seconds)} per epoch of {samples} samples")
    if memory_bytes is None:
        return lines
    need, settings = needed_bytes(plan), plan.settings
    margin = f"{100 * ALLOCATOR_MARGIN:.0f} % and {size_text(CONTEXT_BYTES)} of margin"
    if need <= memory_bytes:
        batch = largest_batch(settings, memory_bytes)
        lines.append(
            f"fits {size_text(memory_bytes)}: needs {size_text(need)} with {margin}; largest batch that fits: {batch}"
        )
        return lines
    lines.append(f"does not fit {size_text(memory_bytes)}: needs {size_text(need)} with {margin}")
    change = cheapest_change(settings, memory_bytes)
    if change is None:
        lines.append("nothing tried makes it fit: bf16, batch 1, checkpointing, fewer X-ray channels")
    else:
        lines.append(f"cheapest change that makes it fit: {change[0]} ({size_text(needed_bytes(change[1]))})")
    lines.append(f"largest batch that fits as it is: {largest_batch(settings, memory_bytes)}")
    return lines


def comparison_table(
    plans: Sequence[Plan],
    memory_bytes: int | None,
    epoch_seconds: Sequence[float | None],
    metrics: Mapping[str, Mapping[str, float]],
) -> TableText:
    """One row per network; quality is that of checkpoints, or a dash."""
    columns = ["network", "voxels", "parameters", "peak, inference", "peak, step", "FLOP, forward", "FLOP, step"]
    columns += ["epoch", "fits", "PSNR, dB", "SSIM"]
    rows = []
    for plan, seconds in zip(plans, epoch_seconds, strict=True):
        name = plan.settings.network
        fits = "–" if memory_bytes is None else "yes" if needed_bytes(plan) <= memory_bytes else "no"
        quality = [f"{metrics[name][m]:.3f}" if m in metrics.get(name, {}) else "–" for m in ("psnr", "ssim")]
        rows.append(
            (
                name,
                f"{plan.settings.size}³",
                f"{plan.parameters:,}",
                size_text(plan.forward_peak_bytes),
                size_text(plan.step_peak_bytes),
                _flops(plan.forward_flops),
                _flops(plan.step_flops),
                "–" if seconds is None else _duration(seconds),
                fits,
                *quality,
            )
        )
    s = plans[0].settings
    return TableText(f"batch {s.batch}, {s.precision}, {s.views} views", tuple(columns), tuple(rows))


def run_plan(
    settings: Sequence[Settings],
    console: Console,
    gpu: str | None = None,
    samples: int = 0,
    throughput: str | None = None,
    checkpoints: Sequence[Path] = (),
    markdown: Path | None = None,
    json: Path | None = None,
    compare: bool = False,
) -> list[Plan]:
    """Plan, print, and write what was asked for.

    Args:
        settings: one network, or several to compare.
        console: where to print.
        gpu: memory such as ``80 GiB``; by default that of the GPU present, if any.
        samples: in an epoch; 0 to leave the time out.
        throughput: such as ``50 TFLOP/s``; measured on this machine by default.
        checkpoints: whose metrics a comparison shows.
        markdown: file for the tables.
        json: file for the figures: of a comparison, by network.
        compare: print the decision table instead of stages.

    Raises:
        InputError: for unusable settings, memory, throughput or checkpoints.
    """
    memory = parse_bytes(gpu) if gpu is not None else None
    rate = parse_rate(throughput) if throughput is not None else None
    for each in settings:
        each.config()  # all mistakes first
    metrics = checkpoint_metrics(checkpoints)
    if memory is None and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
    plans: list[Plan] = []
    epochs: list[float | None] = []
    text: list[str] = []
    with console.status("tracing") as status:
        for each in settings:
            status.update(f"tracing {each.network}")
            plan = plan_network(each)
            plans.append(plan)
            if samples:
                seconds = -(-samples // each.batch) * plan.step_flops / (rate or measure_throughput(each))
                epochs.append(seconds)
            else:
                epochs.append(None)
        if not compare:
            text = totals(plans[0], memory, epochs[0], samples)
    table = comparison_table(plans, memory, epochs, metrics) if compare else stage_table(plans[0])
    console.print(table.rich())
    for line in text:
        console.print(line, highlight=False)
    if markdown is not None:
        with replacing(markdown) as temporary:
            temporary.write_text(table.markdown() + "\n" + "".join(f"- {line}\n" for line in text))
    if json is not None:
        write_json(json, {p.settings.network: p.to_dict() for p in plans} if compare else plans[0].to_dict())
    return plans
