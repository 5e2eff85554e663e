"""Train the shipped networks again, from CTs to calibrated bounds, by one command.

python benchmarks/shipped.py CTS --output DIR [--to cascade256] [--share 1] [--validation PATIENT …] [--list]

CTS is a folder of patient folders with CTs, finer than 2 mm or not. The three networks, their members and their bounds
are trained one after the other by configs/recipes/shipped.yaml, on one CPU thread beside a process that makes samples:
some eight hours. Each step is a command of drr2ct, printed before it runs; --list prints them all and does nothing.
What is finished is not made again, and a training that was stopped goes on where it was, by the same command. --to
cascade64 or cascade128 ends there, and a later call goes on from it. --share 0.01 gives every training a hundredth of
its time, to see it work. The patients of the validation, by whom epochs are chosen and bounds calibrated, are the
recipe's unless others are given.

Writes DIR/<step>, a folder for each training, and DIR/cascade64.pt, cascade128.pt and cascade256.pt: networks with
calibrated bounds, for drr2ct reconstruct --checkpoint, evaluate, and release. The four hours of the shipped cascade64
were several runs, each from the weights of the one before (docs/networks.md, The optimiser); here they are one.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from claims import otherwise_claimed
from leave_out import DECAY, FILMS, FROZEN, MEMBERS, RATE, VARIATIONS, joined

from drr2ct.pipeline.data.patients import find_patients
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.transforms.validation import InputError

NETWORKS = ("cascade64", "cascade128", "cascade256")
JOINED = "members"
"""The step that makes one network of three."""
BOUNDS = {
    "cascade64": (420.0, {"variations": 10}),
    "cascade128": (400.0, {"variations": 3, "learning_rate": 3.0e-3}),
    "cascade256": (300.0, {"variations": 1, "learning_rate": 1.0e-3}),
}
"""Seconds, and what is set, of the training of each network's bounds."""


@dataclass(frozen=True)
class Training:
    """One of the trainings of which the shipped networks are made."""

    name: str
    network: str
    seconds: float
    begins: str | None = None
    """The step whose weights it begins with."""
    kind: str = "films"
    """One of leave_out.MEMBERS."""
    seed: int = 0
    films: float | None = None
    """Share of a finer network's samples that are films, and of those with another pose."""


TRAININGS = (
    Training("films", "cascade64", 14_400),
    Training("films-1", "cascade64", 2_400, seed=1),
    # on radiographs as they are rendered it is better without films, and the others outvote it where it errs
    Training("rendered-3", "cascade64", 2_400, kind="rendered", seed=3),
    Training("correct", "cascade128", 2_400, JOINED, films=FILMS["cascade128"]),
    # trained long, films cost next to nothing
    Training("correct-more", "cascade128", 4_500, "correct", films=0.5),
    Training("correct-most", "cascade128", 4_500, "correct-more", films=0.5),
    Training("fine", "cascade256", 500, "correct-most", films=FILMS["cascade256"]),
)
LAST = {training.network: training.name for training in TRAININGS} | {"cascade64": JOINED}
"""The step that a network is finished with, but for its bounds."""


@dataclass(frozen=True)
class Step:
    """A command, and what it is called."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where all of it is done."""

    cts: Path
    output: Path
    validation: tuple[str, ...]
    share: float

    def best(self, step: str) -> Path:
        """The weights that a step's successor begins with."""
        return self.output / f"{JOINED}.pt" if step == JOINED else self.run(step, "best_loss.pt")

    def run(self, step: str, checkpoint: str) -> Path:
        """A checkpoint of a training."""
        return self.output / step / "checkpoints" / checkpoint

    def train(self, name: str, network: str, seconds: float, recipes: Sequence[str], settings: dict[str, Any]) -> Step:
        """A training of the recipe."""
        words = ["train", str(self.cts), "--output", str(self.output / name), "--network", network]
        words += ["--vary", "between-patients"]
        for recipe in recipes:
            words += ["--recipe", recipe]
        settings = settings | {
            "train_seconds": seconds * self.share,
            "batch_size": 1,
            "validation_patients": list(self.validation),
            "registration_dir": str(self.output / "registration"),
        }
        for key, value in settings.items():
            # as JSON, which YAML reads; a text as it is
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        return Step(name, tuple(words))


def of_training(training: Training, place: Place) -> Step:
    """Its command."""
    recipes = list(MEMBERS[training.kind])
    settings: dict[str, Any] = {
        "seed": training.seed,
        "variations": VARIATIONS[training.network],
        "average_decay": DECAY[training.network],
    }
    if training.begins is not None:
        recipes += ["freeze", "correct"]
        settings |= {
            "network_def#members": 3,
            "transfer_from": str(place.best(training.begins)),
            "freeze": [*FROZEN[training.network], "members.*"],
            "learning_rate": RATE[training.network],
            "film_share": training.films,
            "film_pose#prob": training.films,
        }
    return place.train(training.name, training.network, training.seconds, recipes, settings)


def bounds(network: str, place: Place) -> Iterator[Step]:
    """Those of a finished network, calibrated."""
    name = f"bounds-{network}"
    seconds, own = BOUNDS[network]
    settings = own | {"transfer_from": str(place.best(LAST[network]))}
    coarser = NETWORKS[: NETWORKS.index(network)]
    if coarser:
        settings["bounds_from"] = str(place.output / f"{coarser[-1]}.pt")
    yield place.train(name, network, seconds, ("films", "time_budget", "shipped", "interval"), settings)
    words = ["calibrate", str(place.output / "validation"), "--part", "all", "--checkpoint", str(place.best(name))]
    yield Step(f"calibrated-{network}", (*words, "--output", str(place.output / f"{network}.pt"), "--overwrite"))


def steps(place: Place, finest: str) -> Iterator[Step]:
    """All of them, in their order."""
    for network in NETWORKS[: NETWORKS.index(finest) + 1]:
        own = [training for training in TRAININGS if training.network == network]
        for training in own:
            yield of_training(training, place)
        if network == "cascade64":
            first, *others = own
            members = [str(place.best(first.name)), *(str(place.run(other.name, "last.pt")) for other in others)]
            yield Step(JOINED, ("join", *members, "--output", str(place.best(JOINED)), "--overwrite"))
        yield from bounds(network, place)


def validation_cts(place: Place) -> dict[str, Path]:
    """Those of the patients of the validation.

    Raises:
        SystemExit: one of them is not there.
    """
    try:
        found = {item["patient"]: Path(item["label"]) for item in find_patients(place.cts)}
    except InputError as error:
        sys.exit(str(error))
    missing = [patient for patient in place.validation if patient not in found]
    if missing:
        sys.exit(f"{place.cts} has no patient {', '.join(missing)}; name those of the validation with --validation.")
    return {patient: found[patient] for patient in place.validation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cts", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--to", choices=NETWORKS, default=NETWORKS[-1], help="the finest network")
    parser.add_argument("--share", type=float, default=1.0, help="of each training's time")
    parser.add_argument("--validation", nargs="+", metavar="PATIENT", help="by default those of the recipe")
    parser.add_argument("--list", action="store_true", help="print the commands, and run none")
    arguments = parser.parse_args()
    if arguments.share <= 0:
        parser.error("--share: give a number above 0")
    recipe = yaml.safe_load(Path(bundle_file("configs/recipes/shipped.yaml")).read_text(encoding="utf-8"))
    validation = tuple(arguments.validation or recipe["validation_patients"])
    place = Place(arguments.cts, arguments.output, validation, arguments.share)
    if not arguments.list:
        cts = validation_cts(place)
        settings = {"cts": str(place.cts.resolve()), "validation": validation, "share": place.share}
        if other := otherwise_claimed(place.output, settings):
            sys.exit(f"{other}; choose another --output, or the same settings.")
        joined(cts, place.output / "validation")
    program = str(Path(sys.executable).with_name("drr2ct"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for step in steps(place, arguments.to):
        done = arguments.output / f"{step.name}.done"
        if not arguments.list and done.exists():
            continue
        print(shlex.join(("drr2ct", *step.command)), flush=True)
        if not arguments.list:
            status = subprocess.run([program, *step.command], env=environment, check=False).returncode
            if status:
                sys.exit(status)
            done.touch()
    if not arguments.list:
        networks = NETWORKS[: NETWORKS.index(arguments.to) + 1]
        print(f"finished: {', '.join(str(place.output / f'{network}.pt') for network in networks)}")


if __name__ == "__main__":
    main()
