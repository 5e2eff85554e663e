"""Seconds of one training step on a CPU, forward, loss and backward, of this checkout and of another in turn.

python benchmarks/training_step.py [--networks cascade64 cascade128] [--variants plain last interval]
    [--against CHECKOUT] [--repetitions 2] [--json FILE]

``last`` is ``channels_last=true``, ``interval`` the network with bounds, which learns both. Processor time of all
threads counts, the smallest of the repetitions, since a shared machine says little by the clock; each repeats the step
for two seconds. The gradients of both checkouts are compared: the same seed, weights, radiographs and target. Where a
network of that name has other parameters there, the table says so, and the ratio is of two networks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from speed import CHECKOUT, namespace_of

from drr2ct.networks import create_network
from drr2ct.networks.losses import WeightedLoss
from drr2ct.transforms.files import write_json

VARIANTS = {"plain": {}, "last": {"channels_last": True}, "interval": {"interval": True}}
PARTS = ("forward", "loss", "backward")
LEAST = 2.0
"""Seconds that the steps of a repetition take together, at least."""
TOLERANCE = 1e-3
"""Of the norm of a parameter's gradient."""


def measure(name: str, variant: str, gradients: Path) -> dict[str, float]:
    """One step: seconds of each part and the most resident memory; its gradients go into a file."""
    try:  # as the command does, in checkouts that do
        from drr2ct.pipeline.running.startup import use_large_pages
    except ImportError:
        pass
    else:
        use_large_pages()
    torch.manual_seed(0)
    network = create_network(name, **VARIANTS[variant])
    with torch.no_grad():
        for output in network.outputs[1:]:  # they begin at zero, and would hide what differs before them
            for parameter in output.parameters():
                parameter.normal_(std=0.01)
    geometry, loss = network.config.geometry, WeightedLoss()
    image = torch.rand(1, len(geometry.views), *geometry.detector_size)
    target = torch.rand(1, 1, *[geometry.grid.size] * 3)
    seconds: list[dict[str, float]] = []
    while len(seconds) < 2 or sum(sum(found.values()) for found in seconds) < LEAST:  # the first prepares the kernels
        network.zero_grad()
        times = [time.process_time()]
        pred = network(image)
        times.append(time.process_time())
        value = loss(pred, target)
        times.append(time.process_time())
        value.backward()
        times.append(time.process_time())
        seconds.append({part: b - a for part, a, b in zip(PARTS, times, times[1:], strict=False)})
        del pred, value
    torch.save({key: p.grad for key, p in network.named_parameters() if p.grad is not None}, gradients)
    return {part: min(found[part] for found in seconds) for part in PARTS}


def measured_apart(namespace: Path, name: str, variant: str, gradients: Path) -> dict[str, float]:
    """The same in a process of its own, of a checkout; with the process's peak of resident memory, GiB."""
    command = [sys.executable, __file__, "--measure", name, variant, str(gradients)]
    environment = {**os.environ, "PYTHONPATH": str(namespace)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**json.loads(text.splitlines()[-1]), "GiB": usage.ru_maxrss / 2**20}


def largest_difference(one: Path, other: Path) -> float | None:
    """Of two files of gradients, by norm, as a share of each parameter's; without those that are but rounding errors.

    By norm, since a value within rounding of a rectifier's zero or of the target changes single entries by much. None
    of two networks with other parameters.
    """
    first, second = torch.load(one, weights_only=True), torch.load(other, weights_only=True)
    if {key: g.shape for key, g in first.items()} != {key: g.shape for key, g in second.items()}:
        return None
    norms = {key: float(gradient.norm()) for key, gradient in second.items()}
    there = [key for key, norm in norms.items() if norm > 1e-6 * max(norms.values())]  # a bias before a normalisation
    return max(float((first[key] - second[key]).norm()) / norms[key] for key in there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["cascade64", "cascade128"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--against", type=Path, help="another checkout of the repository")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, variant, gradients = arguments.measure
        print(json.dumps(measure(name, variant, Path(gradients))))
        return
    columns = ("forward", "loss", "backward", "step", "GiB", "ratio", "gradients differ by")
    title = f"processor seconds, threads: {torch.get_num_threads()} (load {os.getloadavg()[0]:.1f})"
    table = Table("network", "variant", "checkout", *columns, title=title, box=MARKDOWN)
    figures, differ = [], 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkouts = {"this": namespace_of(CHECKOUT, folder / "this")}
        if arguments.against is not None:
            checkouts = {"other": namespace_of(arguments.against, folder / "other"), **checkouts}
        for name in arguments.networks:
            for variant in arguments.variants:
                runs = [
                    {which: measured_apart(space, name, variant, folder / which / "gradients.pt")
                     for which, space in checkouts.items()}
                    for _ in range(arguments.repetitions)
                ]  # fmt: skip
                least = {w: {k: min(run[w][k] for run in runs) for k in (*PARTS, "GiB")} for w in checkouts}
                steps = {which: sum(found[part] for part in PARTS) for which, found in least.items()}
                for which, found in least.items():
                    cells = [f"{found[part]:.3f}" for part in PARTS] + [f"{steps[which]:.3f}", f"{found['GiB']:.2f}"]
                    if which == "this" and "other" in checkouts:
                        far = largest_difference(*(folder / w / "gradients.pt" for w in ("this", "other")))
                        differ = max(differ, far or 0.0)
                        said = "another network" if far is None else f"{far:.0e}"
                        cells += [f"{steps['this'] / steps['other']:.2f}", said]
                    table.add_row(name, variant, which, *cells)
                    figures.append({"network": name, "variant": variant, "checkout": which, **found})
    Console(width=140).print(table)
    if arguments.json:
        write_json(arguments.json, {"load": os.getloadavg()[0], "steps": figures})
    if differ > TOLERANCE:
        raise SystemExit(f"the gradients differ by {differ:.1g} of their norm, more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
