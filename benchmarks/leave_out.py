"""The shipped networks' recipe on patients left out: for each group of patients, networks trained on all the others.

python benchmarks/leave_out.py CTS --output DIR --seconds cascade64=1800 cascade128=400 [--groups 4] [--only 0 1]
    [--begin CHECKPOINTS] [--members films rendered=600] [--registration DIR] [--seed 0]

CTS is a folder of patient folders; the sample CT of the package joins them. For each group, networks are trained up the
cascade by configs/recipes/shipped.yaml, each beginning with the one before, for the given times on one CPU thread, and
judged by drr2ct evaluate on the patients left out, as they are. Nothing is chosen by those: what is judged are the
last weights. With --begin, the first of them begins with CHECKPOINTS/<group>.pt, a network that the same patients were
left out of: a coarser one, or one of the same kind, which is then trained on, with half of its samples as films (with
--seed 1, so that it sees others than before). --only trains some groups now; a finer network for a few of them is
another call, in another folder, whose --begin holds the coarser ones.

--members films rendered=600 trains the coarsest network of each group twice more, from the next seeds: as the first
and as long, and for 600 seconds without films, on radiographs as they are rendered. They are joined (drr2ct join),
what comes of that is judged beside the first alone, and finer networks correct that.

Writes DIR/group-<number>/<network>/run and …/evaluation (<network>-with-<members> for those of several), and prints a
table of all that is there. What is finished is not made again, and a training goes on where it was stopped.
`drr2ct release NAME --left-out` takes the evaluations into the model card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import otherwise_claimed
from rich.table import Table

from drr2ct.networks import network_config
from drr2ct.pipeline.checkpoints.description import members_of
from drr2ct.pipeline.checkpoints.ensemble import join
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.data.sample.cts import real_cts
from drr2ct.pipeline.evaluation.protocol import read_patients
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.pipeline.running.console import wide_console

RECIPES = ("films", "time_budget", "shipped", "weight_average")
MEMBERS = {"films": RECIPES, "rendered": tuple(name for name in RECIPES if name != "films")}
"""Kinds of an ensemble's further members, and their recipes."""
VARIATIONS = {"cascade64": 10, "cascade128": 4, "cascade256": 2}
"""Of each patient in an epoch."""
DECAY = {"cascade64": 0.995, "cascade128": 0.98, "cascade256": 0.95}
"""Of the average of the weights, in a step."""
RATE = {"cascade128": 2.0e-3, "cascade256": 1.0e-3}
"""Of a finer network."""
FILMS = {"cascade128": 0.25, "cascade256": 0.5}
"""Share of a finer network's samples that are films, and of those whose pose is varied; of one trained on, a half."""
FROZEN = {
    "cascade128": ["encoder.*", "volume", "stages.[01].*", "outputs.0.*"],
    "cascade256": ["encoder.*", "volume", "stages.[012].*", "outputs.[01].*", "fine_encoders.0.*"],
}
"""Of a finer network: what the coarser one has learned."""
MEAN = "mean_volume"
COLUMNS = {
    "PSNR, dB": ("psnr", ".2f"),
    "SSIM": ("ssim", ".3f"),
    "MAE, HU": ("mae_hu", ".1f"),
    "PSNR to 3071 HU": ("psnr_full", ".2f"),
    "lung Dice": ("dice_lung", ".3f"),
    "bone Dice": ("dice_bone", ".3f"),
    "detail": ("detail_explained", ".3f"),
}
"""Of the table: figure of the protocol, and how it is printed. Gains are over the mean volume."""


@dataclass(frozen=True)
class Group:
    """Patients who are left out together, and where that is done."""

    patients: tuple[str, ...]
    place: Path
    cts: Mapping[str, Path]
    """Of all patients."""
    data: Path
    """All of them, as a data set."""
    registration: Path


@dataclass(frozen=True)
class Member:
    """A further member of an ensemble."""

    kind: str
    seconds: float | None
    """None: as long as the first."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.kind if self.seconds is None else f"{self.kind}{self.seconds:g}s"


def parsed_member(text: str) -> Member:
    """Of KIND or KIND=SECONDS.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    kind, given, number = text.partition("=")
    if kind not in MEMBERS or (given and not _is_number(number)):
        raise argparse.ArgumentTypeError(f"{text}: give {' or '.join(MEMBERS)}, or one of them with =SECONDS")
    return Member(kind, float(number) if given else None)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def train(
    network: str,
    run: Path,
    group: Group,
    seconds: float,
    before: Path | None,
    seed: int,
    recipes: Sequence[str] = RECIPES,
) -> None:
    """A network of everybody but a group."""
    settings: dict[str, Any] = {
        "dataset_dir": str(group.data),
        "output_dir": str(run),
        "seed": seed,
        "validation_patients": list(group.patients),
        "val_interval": 1_000_000,  # nothing is chosen
        "vary": "between-patients",
        "registration_dir": str(group.registration),
        "transfer_from": None if before is None else str(before),
        "train_seconds": seconds,
        "batch_size": 1,
        "look_at_cts": False,  # they are the same in each
        "variations": VARIATIONS[network],
        "average_decay": DECAY[network],
    }
    names = [f"networks/{network}", "vary", *(f"recipes/{name}" for name in recipes)]
    description = {} if before is None else read_checkpoint(before)["description"]
    members = members_of(description) if description else 1
    settings["network_def#members"] = members
    if network in FROZEN:
        names += ["recipes/freeze", "recipes/correct"]
        # a pattern that matches nothing would be refused
        settings["freeze"] = [*FROZEN[network], *(["members.*"] if members > 1 else [])]
        films = 0.5 if description.get("name") == network else FILMS[network]
        settings |= {"film_share": films, "film_pose#prob": films, "learning_rate": RATE[network]}
    run_bundle([bundle_file(f"configs/{name}.yaml") for name in ("train", *names)], settings)


def evaluate(weights: Path, folder: Path, group: Group) -> None:
    """The protocol of drr2ct evaluate on a group."""
    settings = {
        "dataset_dir": str(group.data),
        "datalist": [{"patient": patient, "label": str(group.cts[patient].resolve())} for patient in group.patients],
        "checkpoint": str(weights),
        "output_dir": str(folder),
        "export_grid": "none",
    }
    run_bundle([bundle_file("configs/evaluate.yaml")], settings)


def is_judged(folder: Path) -> bool:
    """Whether a network's evaluation is finished."""
    return (folder / "evaluation" / "baselines.json").exists()


def joined(cts: Mapping[str, Path], folder: Path) -> Path:
    """A data set of all CTs, as links."""
    for patient, path in cts.items():
        place = folder / patient / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(path.resolve())
    return folder


def with_members(group: Group, first: Path, members: Sequence[Member], network: str, seconds: float, seed: int) -> Path:
    """Train a group's further members, and join them with the first; the checkpoint."""
    trained = []
    for number, member in enumerate(members, start=1):
        run = group.place / "members" / f"{member.name}-{number}"
        trained.append(run / "checkpoints" / "last.pt")
        if not (done := run.with_name(f"{run.name}.done")).exists():
            print(f"{group.place.name}, {network}, member {run.name}", flush=True)
            time = seconds if member.seconds is None else member.seconds
            train(network, run, group, time, None, seed + number, MEMBERS[member.kind])
            done.touch()
    path = group.place / named(network, members) / "network.pt"
    if not is_judged(path.parent):
        join(first, trained, path, overwrite=True)
    return path


def named(network: str, members: Sequence[Member]) -> str:
    """A network's folder."""
    return "-".join([network, "with", *(member.name for member in members)]) if members else network


def print_table(output: Path, networks: list[str]) -> None:
    """Of each network: means over all patients left out so far, beside the baselines on the same patients."""
    table = Table(title="patients left out; 3-D, −1024 … 1476 HU; gain: over the mean of the training CTs")
    table.add_column("network")
    for column in ("patients", *COLUMNS, "gain, dB", "least gain"):
        table.add_column(column, justify="right")
    ensembles = {path.name for network in networks for path in output.glob(f"group-*/{network}-with-*")}
    for network in [*networks, *sorted(ensembles)]:
        found: dict[str, dict[str, dict[str, float]]] = {}
        for folder in sorted(output.glob(f"group-*/{network}/evaluation")):
            if not is_judged(folder.parent):  # under way, in another process
                continue
            found.setdefault(network, {}).update(read_patients(folder))
            for name, records in json.loads((folder / "baselines.json").read_text())["baselines"].items():
                found.setdefault(name, {}).update({r["patient"]: r["figures"] for r in records["patients"]})
        for name, patients in found.items():
            cells = []
            for key, form in COLUMNS.values():
                values = np.array([own.get(key) for own in patients.values()], dtype=float)
                known = values[np.isfinite(values)]
                cells.append(f"{known.mean():{form}}" if len(known) else "")
            if MEAN in found:
                gains = [own["psnr"] - found[MEAN][patient]["psnr"] for patient, own in patients.items()]
                cells += [f"{np.mean(gains):+.2f}", f"{min(gains):+.2f}"]
            table.add_row(name if name == network else f"  {name}", str(len(patients)), *cells)
        table.add_section()
    wide_console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cts", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", nargs="+", required=True, metavar="NETWORK=SECONDS", help="from coarse to fine")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--only", type=int, nargs="+", help="groups to train now, from 0; all by default")
    parser.add_argument(
        "--begin", type=Path, help="folder of checkpoints <group>.pt that the first network begins with"
    )
    parser.add_argument(
        "--members",
        nargs="+",
        type=parsed_member,
        default=[],
        metavar="KIND[=SECONDS]",
        help="more networks to join",
    )
    parser.add_argument("--registration", type=Path, help="where registrations are kept; default: in the output folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seconds: dict[str, float] = {}
    for text in arguments.seconds:
        network, _, number = text.partition("=")
        if network not in DECAY or not _is_number(number):
            parser.error(f"--seconds {text}: give NETWORK=SECONDS, with one of {', '.join(DECAY)}")
        seconds[network] = float(number)
    if list(seconds) != sorted(seconds, key=list(DECAY).index):
        parser.error("--seconds: give coarser networks first, as each begins with the one before")
    cts = real_cts(arguments.cts)
    patients = list(cts)
    if not 2 <= arguments.groups <= len(patients):
        parser.error(f"--groups: {len(patients)} patients cannot be left out in {arguments.groups} groups")
    if min(arguments.only or [0]) < 0 or max(arguments.only or [0]) >= arguments.groups:
        parser.error(f"--only: groups are 0 to {arguments.groups - 1}")
    settings = {
        "seconds": seconds,
        "groups": arguments.groups,
        "seed": arguments.seed,
        "patients": patients,
        "networks": {network: network_config(network).to_dict() for network in seconds},
        "begin": None if arguments.begin is None else str(arguments.begin),
    }
    if other := otherwise_claimed(arguments.output, settings):
        parser.error(f"{other}; choose another folder")
    torch.set_num_threads(1)
    data = joined(cts, arguments.output / "data")
    registration = arguments.registration or arguments.output / "registration"
    for number in arguments.only or range(arguments.groups):
        group = Group(
            tuple(patients[number :: arguments.groups]), arguments.output / f"group-{number}", cts, data, registration
        )
        before = None if arguments.begin is None else arguments.begin / f"{number}.pt"
        members: Sequence[Member] = ()
        for network in seconds:
            folder = group.place / named(network, members)
            last = folder / "run" / "checkpoints" / "last.pt"
            if not is_judged(folder):
                print(f"{group.place.name}, {network}, without {', '.join(group.patients)}", flush=True)
                train(network, folder / "run", group, seconds[network], before, arguments.seed)
                evaluate(last, folder / "evaluation", group)
            before = last
            if arguments.members and not members:  # of the coarsest
                members = arguments.members
                before = with_members(group, last, members, network, seconds[network], arguments.seed)
                if not is_judged(before.parent):
                    evaluate(before, before.parent / "evaluation", group)
    print_table(arguments.output, list(seconds))


if __name__ == "__main__":
    main()
