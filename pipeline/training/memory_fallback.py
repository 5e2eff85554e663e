"""When memory runs out in a training: say where, how much is needed and what to change, or change it and go on.

Going on means: the same configuration with the next cheaper setting, from the last checkpoint. The settings, in the
order of what they cost:

1. activation checkpointing: the same network, its forward pass computed twice;
2. bf16: the same network in half precision;
3. 96 X-ray channels, for networks of the first designs: another network. It keeps the first 96 channels of the
   encoder's last layer and what reads them, with their moments in the optimiser; the rest of these weights is dropped.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from drr2ct.networks import CascadeConfig, ProgressiveCascade
from drr2ct.pipeline.checkpoints.files import read_checkpoint, write_checkpoint
from drr2ct.pipeline.planning.fitting import FEWER_XRAY_CHANNELS
from drr2ct.pipeline.planning.plan import Plan, plan_config, xray_channels
from drr2ct.pipeline.planning.tables import size_text
from drr2ct.pipeline.planning.tracing import Sections
from drr2ct.pipeline.running.bundle import run_bundle
from drr2ct.pipeline.running.distributed import world_size
from drr2ct.pipeline.running.faults import causes
from drr2ct.transforms.validation import InputError, whole_number

ON_OOM = ("stop", "reduce")

_SIGNS = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same, on other systems
    "out of memory",  # CUDA
    "std::bad_alloc",
    "could not create a memory object",  # oneDNN
    "could not create a primitive",  # the same, where its own code found no room
    "ALLOC_FAILED",  # cuDNN, cuBLAS
)
_ASKED = re.compile(r"tried to allocate (\d+(?:\.\d+)?)\s*(bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}

logger = logging.getLogger(__name__)


class TrainingMemoryError(InputError):
    """The training needs more memory than there is; the message says where, how much, and what to change."""


@dataclass(frozen=True)
class Reduction:
    """A cheaper setting.

    Args:
        name: for messages.
        overrides: of the bundle's keys, in plain types.
        config: of the network with it.
        precision: with it.
    """

    name: str
    overrides: Mapping[str, Any]
    config: CascadeConfig
    precision: str

    @property
    def option(self) -> str:
        """How a user asks for it."""
        return " ".join(f"--set {key}={value}".replace(", ", ",") for key, value in self.overrides.items())


def find_out_of_memory(error: BaseException | None) -> BaseException | None:
    """The exception in a chain that says that memory ran out, on a GPU, on a CPU, or in a loader's process."""
    for cause in causes(error):
        if isinstance(cause, (torch.OutOfMemoryError, MemoryError)):
            return cause
        if isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _SIGNS):
            return cause
    return None


def asked_bytes(message: str) -> int | None:
    """How much the failed allocation was for, if the message says so."""
    found = _ASKED.search(message)
    return int(float(found[1]) * _UNITS[found[2].lower()]) if found else None


def next_reduction(config: CascadeConfig, precision: str) -> Reduction | None:
    """The cheapest setting that is not in use yet; None if there is none left.

    Args:
        config: of the network.
        precision: that it is trained in.
    """
    if not config.checkpointing:
        return Reduction(
            "activation checkpointing",
            {"network_def#checkpointing": True},
            config.with_overrides({"checkpointing": True}),
            precision,
        )
    if precision == "fp32":
        return Reduction("bf16", {"precision": "bf16"}, config, "bf16")
    if config.lift == "broadcast" and config.encoder_channels[-1] > FEWER_XRAY_CHANNELS:
        changes = xray_channels(config, FEWER_XRAY_CHANNELS)
        return Reduction(
            f"{FEWER_XRAY_CHANNELS} X-ray channels",
            {f"network_def#{key}": list(value) for key, value in changes.items()},
            config.with_overrides(dict(changes)),
            precision,
        )
    return None


class Where:
    """Knows which part of the network a training step is in.

    Args:
        network: that is trained.
    """

    def __init__(self, network: ProgressiveCascade) -> None:
        self.section = ""
        self.phase = ""
        self.sections = Sections(self, network)

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        for event, phase in (
            (Events.EPOCH_STARTED, "loading"),
            (Events.ITERATION_STARTED, "forward"),
            (IterationEvents.FORWARD_COMPLETED, "loss"),
            (IterationEvents.LOSS_COMPLETED, "backward"),
            (IterationEvents.BACKWARD_COMPLETED, "optimiser"),
            (IterationEvents.MODEL_COMPLETED, "loading"),
            (Events.EPOCH_COMPLETED, "validation"),
        ):
            trainer.add_event_handler(event, self._begin, phase)

    def _begin(self, phase: str) -> None:
        self.phase = phase
        self.sections.begin(phase)

    def __str__(self) -> str:
        if self.phase in ("forward", "backward"):
            return f"in {self.section} ({self.phase} pass)"
        return {"": "before the first step", "loss": "in the loss", "optimiser": "in the optimiser"}.get(
            self.phase, f"in {self.phase}"
        )


def run_training(
    trainer: Engine,
    network: ProgressiveCascade,
    precision: str,
    on_oom: str,
    output_dir: str | Path,
    ckpt_dir: str | Path,
    resume: bool,
    reductions: Sequence[str],
    writer: SummaryWriter,
) -> None:
    """Train; if memory runs out, say so, and with ``reduce`` go on from the last checkpoint with a cheaper setting.

    The setting is written into ``config.yaml`` (which so runs again as the training ended) and, as ``reductions``, into
    the description of all checkpoints from then on.

    Args:
        trainer: the engine.
        network: that it trains, without the wrapper for several processes.
        precision: that it trains in.
        on_oom: ``stop`` or ``reduce``.
        output_dir: with the run's ``config.yaml``.
        ckpt_dir: with its checkpoints.
        resume: whether the run goes on from a checkpoint that it finds.
        reductions: made so far.
        writer: of the run's event file; closed before the training goes on.

    Raises:
        TrainingMemoryError: if memory ran out, and nothing cheaper is left or asked for.
        InputError: for an unknown ``on_oom``, or a training of no epochs or steps.
    """
    if on_oom not in ON_OOM:
        raise InputError(f"on_oom {on_oom!r} is unknown; choose from {', '.join(ON_OOM)}.")
    for name in ("max_epochs", "epoch_length"):  # with no steps the engine says nothing and leaves nothing
        if (number := getattr(trainer.state, name)) is not None:
            whole_number(f"train#trainer#{name}", number, 1)
    last = Path(ckpt_dir) / "last.pt"
    before = last.stat().st_mtime_ns if last.exists() else None
    where = Where(network)
    where.attach(trainer)
    batch = getattr(getattr(trainer, "data_loader", None), "batch_size", None) or 1
    try:
        trainer.run()
        return
    except Exception as error:
        found = find_out_of_memory(error)
        if found is None:
            raise
        step = f"at epoch {trainer.state.epoch}, iteration {trainer.state.iteration}"
        failed = f"out of memory {where}, {step}{_asked(str(found))}"
        del found  # its frames hold tensors
    finally:
        where.sections.remove()
    # only out here has the exception gone, and what its frames held
    config = network.config
    _release(trainer, network)
    reduction = next_reduction(config, precision)
    message = f"{failed}{_planned(config, batch, precision)}; {_advice(reduction, batch)}"
    saved_config = Path(output_dir) / "config.yaml"
    if on_oom == "stop" or reduction is None or world_size() > 1 or not saved_config.exists():
        raise TrainingMemoryError(message)
    written = last.exists() and (resume or last.stat().st_mtime_ns != before)
    start = "from the last checkpoint" if written else "from the start"
    logger.warning("%s. Going on %s with %s.", message.removesuffix("."), start, reduction.name)
    if written and reduction.config.encoder_channels != config.encoder_channels:
        shrink_checkpoint(last, reduction.config)
    writer.close()
    run_bundle(
        [saved_config],
        {
            **reduction.overrides,
            "output_dir": Path(output_dir),
            "resume": written,
            "reductions": [*reductions, reduction.name],
        },
    )


def _asked(message: str) -> str:
    size = asked_bytes(message)
    return "" if size is None else f", for {size_text(size)} more"


def _plan(config: CascadeConfig, batch: int, precision: str) -> Plan | None:
    try:
        return plan_config(config, batch, precision)
    except (RuntimeError, MemoryError):  # where memory is short the plan may not find any either
        return None


def _planned(config: CascadeConfig, batch: int, precision: str) -> str:
    plan = _plan(config, batch, precision)
    return "" if plan is None else f"; by plan a step needs {size_text(plan.step_peak_bytes)} in {precision}"


def _advice(reduction: Reduction | None, batch: int) -> str:
    smaller = "a smaller batch_size, " if batch > 1 else ""
    if reduction is None:
        return f"nothing cheaper is left for this network: use {smaller}a smaller size, another network or more memory."
    plan = _plan(reduction.config, batch, reduction.precision)
    needs = "" if plan is None else f", {size_text(plan.step_peak_bytes)} by plan"
    return f"use {smaller}{reduction.name} ({reduction.option}{needs}), or on_oom=reduce."


def _release(trainer: Engine, network: ProgressiveCascade) -> None:
    """Free what the failed training holds, which its configuration still refers to."""
    trainer.state.output = trainer.state.batch = None
    optimizer = getattr(trainer, "optimizer", None)
    if optimizer is not None:
        optimizer.state.clear()
    for parameter in network.parameters():
        parameter.grad = None
        parameter.data = parameter.data.new_empty(0)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def shrink_checkpoint(path: Path, config: CascadeConfig) -> None:
    """Make a checkpoint fit a network of fewer X-ray channels; the original is kept as ``before_reduction.pt``.

    Of every tensor that is smaller in the new network the leading part is taken: the first channels of the encoder's
    last layer and, X-ray channels being the last of what a fusion joins, all that reads them.

    Args:
        path: of the checkpoint.
        config: of the smaller network.
    """
    content = read_checkpoint(path)
    write_checkpoint(path.with_name("before_reduction.pt"), content)
    with torch.device("meta"):
        network = ProgressiveCascade(config)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    parameters = [parameter.shape for parameter in network.parameters()]

    def leading(value: Tensor, shape: torch.Size) -> Tensor:
        return value[tuple(slice(n) for n in shape)].clone(memory_format=torch.contiguous_format)

    def fitted(value: Any) -> Any:
        """Also what follows the weights under their names, for example their running average."""
        if not isinstance(value, Mapping):
            return value
        return {
            key: leading(entry, shapes[key])
            if isinstance(entry, Tensor) and key in shapes and entry.ndim == len(shapes[key])
            else fitted(entry)
            for key, entry in value.items()
        }

    smaller = {name: fitted(entry) for name, entry in content.items()}
    if "optimizer" in content:
        moments = {
            index: {
                name: leading(entry, parameters[index])
                if isinstance(entry, Tensor) and entry.ndim == len(parameters[index])
                else entry
                for name, entry in state.items()
            }
            for index, state in content["optimizer"]["state"].items()
        }
        smaller["optimizer"] = {**content["optimizer"], "state": moments}
    smaller["description"] = {**content["description"], "config": config.to_dict()}
    write_checkpoint(path, smaller)
