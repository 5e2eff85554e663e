"""Seconds and memory of whole commands, of this checkout and of another in turn: what a change has gained, as ratios.

python benchmarks/speed.py [--against CHECKOUT [--other-checkpoint FILE]] [--network cascade64] [--repetitions 3]
    [--radiographs FOLDER] [--prepare PATIENTS] [--json FILE]

Each command runs in a process of its own, of both checkouts alternately, so that what else the machine does falls on
both. Processor time (of all threads, user and system) says most on a machine that is shared; the smallest of the
repetitions counts. The first line is what a user first sees, also of an error. Weights are random. A checkout that
cannot read this one's checkpoints is given one of its own, of a network of the same name. --radiographs adds the
shipped network of that name, with bounds and the fit to the radiographs, on those that drr2ct demo --reconstruct-only
left in FOLDER; the other checkout has its checkpoint there too, so neither bounds nor fit. --prepare (run with
PYTHONPATH=.) measures drr2ct prepare instead, of that many patients of 133 DICOM slices by two processes, whose time is
counted with the command's; resident is the command itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from drr2ct.transforms.files import write_json

CHECKOUT = Path(__file__).resolve().parents[1]

PACKAGES = ("bundles", "networks", "pipeline", "transforms")

WHOLE = "reconstruct, "
"""What the name of a command that needs a checkpoint begins with."""

SHOWN = {"--pa": "pa.nii.gz", "--lateral": "lat.nii.gz"}
"""The radiographs that the demonstration leaves."""

START = """
import atexit, os, sys
def write_peak():
    with open("/proc/self/status") as status, open(os.environ["PEAK"], "w") as file:
        file.write(next(line for line in status if line.startswith("VmHWM")))
atexit.register(write_peak)
sys.argv[0] = "drr2ct"
from drr2ct.pipeline.cli import main
main()
"""


@dataclass(frozen=True)
class Run:
    """One command, once: seconds, and the memory that was resident at most, in GiB."""

    wall: float
    processor: float
    first_line: float
    resident: float


def run_once(arguments: list[str], namespace: Path, folder: Path, expected: int) -> Run:
    """Run ``drr2ct …`` of a checkout.

    Raises:
        RuntimeError: if it ends otherwise than expected.
    """
    peak = folder / "peak"
    environment = {**os.environ, "PYTHONPATH": str(namespace), "COLUMNS": "120", "PEAK": str(peak)}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    text = process.stdout.readline()
    first_line = time.perf_counter() - began
    text += process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    if process.returncode != expected:
        raise RuntimeError(f"drr2ct {' '.join(arguments)} ended with {process.returncode}, not {expected}: {text}")
    resident = int(peak.read_text().split()[1]) / 2**20  # KiB; what the system counts begins with this process's own
    return Run(wall, usage.ru_utime + usage.ru_stime, first_line, resident)


def namespace_of(checkout: Path, folder: Path) -> Path:
    """A folder for ``PYTHONPATH``, by which ``drr2ct`` is a checkout's packages, without installing it."""
    place = folder / "drr2ct"
    place.mkdir(parents=True)
    for name in PACKAGES:
        (place / name).symlink_to(checkout.resolve() / name, target_is_directory=True)
    return folder


def write_inputs(folder: Path, name: str) -> list[str]:
    """A checkpoint and two radiographs; the options of ``drr2ct reconstruct`` for them."""
    import torch

    from drr2ct.networks import create_network
    from drr2ct.pipeline.checkpoints.description import describe
    from drr2ct.pipeline.checkpoints.files import write_checkpoint
    from drr2ct.transforms.radiographs.write import write_radiograph

    network = create_network(name)
    content = {"network": network.state_dict(), "description": describe(network, name, "cube", {"training": []})}
    write_checkpoint(folder / "checkpoint.pt", content)
    options = ["--checkpoint", str(folder / "checkpoint.pt")]
    for option, view in zip(("--pa", "--lateral"), network.config.geometry.views, strict=True):
        path = folder / f"{view.name}.nii.gz"
        write_radiograph(path, 6 * torch.rand(view.detector_size))
        options += [option, str(path)]
    return options


def reconstructing(inputs: list[str], network: str, radiographs: Path | None) -> dict[str, tuple[int, list[str]]]:
    """Commands by name, with how they end; some reconstruct: from ``inputs``, and as shipped from ``radiographs``."""
    nowhere = ["reconstruct", "--checkpoint", "no.pt", *inputs[2:], "--output", "ct.nii.gz"]
    commands = {
        "--help": (0, ["--help"]),
        "reconstruct --help": (0, ["reconstruct", "--help"]),
        "a wrong argument": (2, ["reconstruct", "--nonsense"]),
        "a file that is not there": (2, nowhere),
        f"{WHOLE}{network}": (0, ["reconstruct", *inputs, "--output", "ct.nii.gz", "--overwrite"]),
    }
    if radiographs is not None:
        places = {option: str(radiographs.resolve() / name) for option, name in SHOWN.items()}
        shipped = ["reconstruct", "--model", network, *chain.from_iterable(places.items()), "--output", "ct.nii.gz"]
        commands[f"{WHOLE}{network} as shipped"] = (0, [*shipped, "--overwrite"])
    return commands


def with_checkpoint(command: list[str], checkpoint: list[str]) -> list[str]:
    """The command with another checkpoint instead of its own (typer takes the last of two) or of a shipped one."""
    if "--model" in command:
        at = command.index("--model")
        command = command[:at] + command[at + 2 :]
    return command + checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of the repository")
    parser.add_argument("--other-checkpoint", type=Path, help="of that checkout's own")
    parser.add_argument("--network", default="cascade64", help="that reconstructs")
    parser.add_argument("--radiographs", type=Path, metavar="FOLDER", help="also as shipped, from the two in it")
    parser.add_argument("--prepare", type=int, default=0, metavar="PATIENTS", help="measure prepare instead")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkouts = {"this": namespace_of(CHECKOUT, folder / "this")}
        if arguments.against is not None:
            checkouts = {"other": namespace_of(arguments.against, folder / "other"), **checkouts}
        if arguments.prepare:
            from prepare import write_patients

            write_patients(folder / "source", arguments.prepare)
            name = f"prepare, {arguments.prepare} patients"
            commands = {name: (0, ["prepare", str(folder / "source"), "{new}"])}
            own: dict[str, list[str]] = {}
        else:
            inputs = write_inputs(folder, arguments.network)
            commands = reconstructing(inputs, arguments.network, arguments.radiographs)
            given = arguments.other_checkpoint
            own = {"other": ["--checkpoint", str(given.resolve())]} if given else {}
        found: dict[str, dict[str, list[Run]]] = {name: {which: [] for which in checkouts} for name in commands}
        with console.status("measuring"):
            for _ in range(arguments.repetitions):
                for name, (expected, command) in commands.items():
                    for which, namespace in checkouts.items():
                        new = tempfile.mkdtemp(dir=folder)
                        given = [argument.replace("{new}", new) for argument in command]
                        if which in own and name.startswith(WHOLE):
                            given = with_checkpoint(given, own[which])
                        found[name][which].append(run_once(given, namespace, folder, expected))
                        shutil.rmtree(new)
    load = os.getloadavg()[0]
    title = f"seconds and GiB, the smallest of {arguments.repetitions} (load of the machine {load:.1f})"
    table = Table("command", "measured", *checkouts, title=title, box=MARKDOWN)
    if len(checkouts) > 1:
        table.add_column("ratio")
    for name, runs in found.items():
        for kind, of in (("processor", name), ("wall", ""), ("first line", ""), ("resident", "")):
            least = [min(getattr(run, kind.replace(" ", "_")) for run in runs[which]) for which in checkouts]
            ratio = [f"{least[1] / least[0]:.2f}"] if len(least) > 1 else []
            table.add_row(of, kind, *(f"{value:.2f}" for value in least), *ratio)
    console.print(table)
    if arguments.json:
        plain = {name: {w: [asdict(run) for run in r] for w, r in runs.items()} for name, runs in found.items()}
        write_json(arguments.json, {"load": load, "commands": plain})


if __name__ == "__main__":
    main()
