"""Training on many GPUs, on paper: time of a step and of an epoch, and what is lost first; to 64 GPUs and 50,000 CTs.

python benchmarks/scaling_model.py [--networks cascade256 direct256] [--gpus 1 8 64] [--cts 50000] [--markdown FILE] …

Nothing is run. A step's FLOPs, the weights and the memory are planned from the real network (drr2ct plan); every other
number is an assumption, and an argument. The model, for n GPUs on m machines of g each, batch b per GPU:

  compute    FLOPs of a step of b samples / throughput
  gradients  4 bytes per weight, reduced within a machine, then between them (each machine's network carries a machine's
             whole gradient), by rings: 2 (g-1)/g · bytes / nvlink + 2 (m-1)/m · bytes / network, and for each bucket of
             25 MiB a latency per ring step. Of it, the share `overlap` of the backward pass (two thirds of compute)
             hides as much as it is long.
  loading    cached bytes of b samples / (what one CPU core decodes · loader processes per GPU)
  storage    cached bytes of n·b samples / bandwidth of the storage that all machines share, but for the part of the
             cache that fits into one machine's memory (each draws from all CTs in every epoch)
  step       the longest of compute + what is not hidden of the gradients, loading, and storage
  epoch      steps, validation (a forward pass of every validation CT, spread over the GPUs), and a serial part
             (checkpoint, pictures) in which all processes wait for the first
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from drr2ct.networks import network_config
from drr2ct.pipeline.planning.fitting import needed_bytes, parse_rate
from drr2ct.pipeline.planning.plan import Settings, plan_network
from drr2ct.pipeline.planning.tables import TableText
from drr2ct.transforms.files import replacing

BUCKET = 25 * 2**20
HEADER = 0.01  # of a cached sample: names, metadata
VALIDATION = 0.125  # validation CTs per training CT, as a split of 0.8/0.1/0.1 has them
LOSS = 0.1  # share of the time from which on something counts as breaking


@dataclass(frozen=True)
class Machine:
    """What is assumed of the cluster; bytes, seconds, FLOP per second."""

    flops: float  # sustained by one GPU
    per_machine: int  # GPUs
    nvlink: float  # bandwidth of one GPU
    network: float  # bandwidth of one machine
    latency: float  # of a ring step
    overlap: float  # share of the backward pass that communication can hide behind
    decode: float  # bandwidth of one core, from a cached file to the batch
    workers: int  # loader processes per GPU
    storage: float  # bandwidth, all machines together
    memory: float  # of one machine, that holds cached files
    serial: float  # per epoch


@dataclass(frozen=True)
class Training:
    """What is trained; bytes, FLOP."""

    network: str
    batch: int  # per GPU
    cts: int
    step_flops: int
    forward_flops: int
    weights: int
    stored: float  # per sample in the cache


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch, by part, and of a step."""

    compute: float
    gradients: float
    loading: float
    storage: float
    validation: float
    serial: float
    step: dict[str, float]

    @property
    def lost(self) -> dict[str, float]:
        """Seconds in which the GPUs wait, by reason."""
        return {name: getattr(self, name) for name in ("gradients", "loading", "storage", "serial")}

    @property
    def total(self) -> float:
        """Seconds of the epoch."""
        return self.compute + self.validation + sum(self.lost.values())

    @property
    def busy(self) -> float:
        """Share of the time in which the GPUs compute."""
        return (self.compute + self.validation) / self.total


def sample_bytes(network: str) -> float:
    """Of a sample in the cache: the volume and the radiographs in 16 bits."""
    geometry = network_config(network).geometry
    rows, columns = geometry.detector_size
    return 2 * (geometry.grid.size**3 + len(geometry.views) * rows * columns) * (1 + HEADER)


def epoch(gpus: int, training: Training, machine: Machine) -> Epoch:
    within = min(gpus, machine.per_machine)
    machines = -(-gpus // machine.per_machine)
    payload = 4.0 * training.weights
    rings = 2 * (within - 1) + 2 * (machines - 1)
    gradients = (
        2 * (within - 1) / within * payload / machine.nvlink
        + 2 * (machines - 1) / machines * payload / machine.network
        + machine.latency * rings * -(-payload // BUCKET)
    )
    compute = training.step_flops / machine.flops
    exposed = max(0.0, gradients - machine.overlap * compute * 2 / 3)
    # the order of an epoch is drawn anew over all CTs, so a machine meets any of them, not a part of its own
    missed = max(0.0, 1 - machine.memory / (training.stored * training.cts))
    loading = training.batch * training.stored / (machine.decode * machine.workers)
    storage = gpus * training.batch * training.stored * missed / machine.storage
    waiting = max(0.0, loading - compute - exposed, storage - compute - exposed)
    steps = -(-training.cts // (gpus * training.batch))
    validated = training.cts * VALIDATION / gpus
    return Epoch(
        compute=steps * compute,
        gradients=steps * exposed,
        loading=steps * waiting if loading >= storage else 0.0,
        storage=steps * waiting if storage > loading else 0.0,
        validation=validated * training.forward_flops / training.batch / machine.flops,
        serial=machine.serial,
        step={"compute": compute, "gradients": gradients, "loading": loading, "storage": storage},
    )


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count != 1 else ''}"


def table(network: str, arguments: argparse.Namespace, machine: Machine) -> tuple[TableText, list[str]]:
    plan = plan_network(Settings(network, arguments.batch, "bf16"))
    training = Training(
        network,
        arguments.batch,
        arguments.cts,
        plan.step_flops,
        plan.forward_flops,
        plan.parameters,
        sample_bytes(network),
    )
    rows: list[tuple[str, ...]] = []
    breaks: str | None = None
    closest: tuple[float, str, int] = (0.0, "", 0)
    for gpus in arguments.gpus:
        now = epoch(gpus, training, machine)
        worst = max(now.lost, key=lambda name: now.lost[name])
        if breaks is None and now.lost[worst] > LOSS * now.total:
            share = 100 * now.lost[worst] / now.total
            breaks = f"breaks first: {worst}, which takes {share:.0f} % of the time with {_gpus(gpus)}"
        for name in ("gradients", "loading", "storage"):
            closest = max(closest, (now.step[name] / now.step["compute"], name, gpus))
        speed = training.cts / (now.total - now.validation - now.serial)
        rows.append(
            (
                str(gpus),
                *(f"{1e3 * now.step[name]:.1f}" for name in ("compute", "gradients", "loading", "storage")),
                f"{speed:,.1f}",
                f"{speed * training.stored / 1e9:.2f}",
                f"{now.total / 60:,.1f}",
                f"{100 * now.busy:.0f} %",
                worst if now.busy < 0.995 else "–",
                f"{now.total * arguments.epochs / 86400:,.2f}",
            )
        )
    columns = ("GPUs", "compute, ms", "gradients, ms", "loading, ms", "storage, ms", "samples/s", "read, GB/s")
    columns += ("epoch, min", "GPUs busy", "lost most to", f"{arguments.epochs} epochs, days")
    ratio, name, gpus = closest
    cores = machine.workers * max(arguments.gpus)
    notes = [
        f"{plan.step_flops / 1e12:.2f} TFLOP per step, {plan.parameters:,} weights, "
        f"{needed_bytes(plan) / 2**30:.1f} GiB of GPU memory; {training.stored / 2**20:.1f} MiB per cached sample, "
        f"{training.stored * arguments.cts / 2**40:.2f} TiB for all, made by {cores} cores in "
        f"{arguments.cts * arguments.prepare_seconds / cores / 3600:.1f} h, once",
        f"AdamW's moments are {plan.optimizer_state_bytes / 2**20:.0f} MiB, "
        f"{100 * plan.optimizer_state_bytes / plan.step_peak_bytes:.2f} % of a step's peak: what sharding could save",
        breaks or f"nothing takes {100 * LOSS:.0f} % of the time up to {max(arguments.gpus)} GPUs",
        f"of what runs beside the computing, {name} comes closest: {100 * ratio:.0f} % as long, with {_gpus(gpus)}",
    ]
    return TableText(f"{network}, batch {arguments.batch} per GPU, {arguments.cts:,} CTs", columns, tuple(rows)), notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["cascade128", "cascade256", "direct128", "direct256"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--batch", type=int, default=1, help="samples per GPU and step")
    parser.add_argument("--cts", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--throughput", default="50 TFLOP/s", help="sustained by one GPU")
    parser.add_argument("--gpus-per-machine", type=int, default=8)
    parser.add_argument("--nvlink", type=float, default=200, help="GB/s of one GPU")
    parser.add_argument("--network", type=float, default=25, help="GB/s of one machine (8 × 25 Gbit/s)")
    parser.add_argument("--latency", type=float, default=20, help="µs per ring step")
    parser.add_argument("--overlap", type=float, default=0.8, help="of the backward pass")
    parser.add_argument("--decode", type=float, default=0.58, help="GB/s of one core (see benchmarks/loading.py)")
    parser.add_argument("--workers", type=int, default=4, help="loader processes per GPU")
    parser.add_argument("--storage", type=float, default=10, help="GB/s, all machines together")
    parser.add_argument("--memory", type=float, default=500, help="GB of a machine that hold cached files")
    parser.add_argument("--serial-seconds", type=float, default=5, help="per epoch: checkpoint, pictures")
    parser.add_argument("--prepare-seconds", type=float, default=10, help="CPU per CT")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    given = parser.parse_args()
    machine = Machine(
        flops=parse_rate(given.throughput),
        per_machine=given.gpus_per_machine,
        nvlink=given.nvlink * 1e9,
        network=given.network * 1e9,
        latency=given.latency * 1e-6,
        overlap=given.overlap,
        decode=given.decode * 1e9,
        workers=given.workers,
        storage=given.storage * 1e9,
        memory=given.memory * 1e9,
        serial=given.serial_seconds,
    )
    console, text = Console(), []
    for network in given.networks:
        made, notes = table(network, given, machine)
        console.print(made.rich())
        for note in notes:
            console.print(note, highlight=False, soft_wrap=True)
        text += [made.markdown(), *(f"- {note}" for note in notes), ""]
    if given.markdown:
        with replacing(given.markdown) as temporary:
            temporary.write_text("\n".join(text))


if __name__ == "__main__":
    main()
