"""Plans as they are read: the table of a network's parts, the comparison of several, in the terminal and in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.planning.fitting import (
    ALLOCATOR_MARGIN,
    CONTEXT_BYTES,
    cheapest_change,
    largest_batch,
    measure_throughput,
    needed_bytes,
    parse_bytes,
    parse_rate,
)
from drr2ct.pipeline.planning.plan import Plan, Settings, plan_network
from drr2ct.transforms.files import refuse_to_lose, refuse_unwritable, replacing, write_json


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
        InputError: for unusable settings, memory, throughput or checkpoints, or files that cannot be written.
    """
    written = [path for path in (markdown, json) if path is not None]
    refuse_unwritable(written)
    refuse_to_lose(written, checkpoints)
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
