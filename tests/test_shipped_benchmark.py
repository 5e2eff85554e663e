"""The command that trains the shipped networks again."""

from __future__ import annotations

import shlex
import subprocess
import sys
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.pipeline.running.plain import typed_value
from tests.files import chest, write_nifti

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "shipped.py"
NETWORKS = ("cascade64", "cascade128", "cascade256")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, PROGRAM, *arguments]
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)


def commands(output: Path, *arguments: object) -> list[list[str]]:
    """What is listed, without the first word of each."""
    listed = run("CTS", "--output", output, "--list", *arguments)
    assert listed.returncode == 0, listed.stderr
    return [shlex.split(line)[1:] for line in listed.stdout.splitlines()]


def values(words: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def settings(words: list[str]) -> dict[str, object]:
    return {key: typed_value(value) for key, _, value in (text.partition("=") for text in values(words, "--set"))}


def test_each_step_begins_with_what_one_before_made(tmp_path: Path) -> None:
    made: set[Path] = set()
    for words in commands(tmp_path):
        own = settings(words)
        begins = [Path(str(own[key])) for key in ("transfer_from", "bounds_from") if key in own]
        begins += [Path(value) for value in values(words, "--checkpoint")]
        if words[0] == "join":
            begins += [Path(word) for word in words[1:4]]
        for path in begins:
            folder = path.parents[1] if path.parent.name == "checkpoints" else path
            assert folder in made, f"{path} is of no step before"
        made |= {Path(value) for value in values(words, "--output")}
    assert {tmp_path / f"{network}.pt" for network in NETWORKS} <= made
    assert not list(tmp_path.iterdir()), "listing writes nothing"


def test_recipes_and_frozen_layers_are_there(tmp_path: Path) -> None:
    trained = [words for words in commands(tmp_path) if words[0] == "train"]
    for words in trained:
        for recipe in values(words, "--recipe"):
            assert bundle_file(f"configs/recipes/{recipe}.yaml").is_file()
        own = settings(words)
        if "freeze" in own:
            network = create_network(values(words, "--network")[0], members=own["network_def#members"])
            names = [name for name, _ in network.named_parameters()]
            for pattern in own["freeze"]:  # type: ignore[attr-defined]
                assert any(fnmatch(name, pattern) for name in names), pattern
            left = {name.split(".")[0] for name in names if not any(fnmatch(name, p) for p in own["freeze"])}  # type: ignore[attr-defined]
            assert left == {"stages", "outputs", "fine_encoders"}, "the new stage, its head and its encoder learn"
    assert {values(words, "--network")[0] for words in trained} == set(NETWORKS)


def test_the_finest_network_can_be_chosen(tmp_path: Path) -> None:
    every, some = commands(tmp_path), commands(tmp_path, "--to", "cascade128")
    assert some == every[: len(some)]
    assert str(tmp_path / "cascade128.pt") in some[-1]


@pytest.fixture(scope="module")
def cts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cts")
    affine = np.diag([-9.0, -9, 10, 1])
    affine[:3, 3] = [150, 140, -200]
    for number in range(4):
        write_nifti(folder / f"p{number}" / "ct.nii.gz", chest(seed=number), affine)
    return folder


def test_a_patient_that_is_not_there_is_refused(cts: Path, tmp_path: Path) -> None:
    refused = run(cts, "--output", tmp_path / "run", "--validation", "p3", "p9")
    assert refused.returncode == 1 and refused.stdout == ""
    says = f"{cts} has no patient p9; name those of the validation with --validation."
    assert refused.stderr.splitlines()[-1] == says
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_cts_to_calibrated_bounds(cts: Path, tmp_path: Path) -> None:
    """With four crude chests and a few seconds; a step that fails is made again, and only that."""
    output = tmp_path / "run"
    arguments = (cts, "--output", output, "--to", "cascade64", "--share", "0.0002", "--validation", "p2", "p3")
    output.mkdir()
    (output / f"{NETWORKS[0]}.pt").mkdir()  # in the way of the last step
    failed = run(*arguments)
    assert failed.returncode != 0
    assert failed.stdout.splitlines()[-1].startswith("drr2ct calibrate"), failed.stderr
    (output / f"{NETWORKS[0]}.pt").rmdir()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("drr2ct ")] == ["calibrate"]
    description = read_checkpoint(output / f"{NETWORKS[0]}.pt")["description"]
    assert description["config"]["members"] == 3
    assert description["interval"]["patients"] == ["p2", "p3"]
    assert description["patients"] == {"training": ["p0", "p1"], "validation": ["p2", "p3"]}
    assert run(*arguments).stdout == f"finished: {output / NETWORKS[0]}.pt\n", "nothing is left to be done"
    other = run(*arguments[:-1], "p1")
    assert other.returncode == 1 and "choose another --output" in other.stderr
