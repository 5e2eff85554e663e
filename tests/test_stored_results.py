"""What is kept in benchmarks/results is of the networks that its commands train now, so that they print their tables.

A field that a configuration gains is told in ``LATER`` of benchmarks/cascades.py, if nothing is different by default.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cascades import VARIANTS
from drr2ct.pipeline.running.bundle import bundle_file
from tests.files import chest, write_nifti

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "cascades.py"
RESULTS = PROGRAM.with_name("results")
ROWS = sorted(row for row in RESULTS.glob("*/results/*") if row.name.split("+")[0] in VARIANTS)
FILMS = sorted(path.parent for path in RESULTS.glob("films*/settings.json"))


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.parents[1].name}, {row.name}")
def test_a_row_is_of_its_variant(row: Path) -> None:
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8"))["digest"] for path in row.glob("*.json")}
    assert kept
    assert set(kept.values()) == {VARIANTS[row.name.split("+")[0]].digest()}


@pytest.mark.parametrize("folder", FILMS, ids=lambda folder: folder.name)
def test_films_are_of_the_recipe(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert settings["network"] == VARIANTS["cascade64"].digest()
    assert settings["recipe"] == hashlib.sha256(bundle_file("configs/recipes/films.yaml").read_bytes()).hexdigest()


def test_another_network_is_told_from_it() -> None:
    assert len({variant.digest() for variant in VARIANTS.values()}) == len(VARIANTS)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("one-patient", ["--seconds", 150, "--training", 384], ["25.89", "+5.63", "0.716"]),
        ("three-groups", ["--seconds", 120, "--groups", 3], ["23.03", "+5.75", "0.585"]),
    ],
)
def test_the_first_results_print_their_table(
    name: str, arguments: list[object], says: list[str], tmp_path: Path
) -> None:
    """What docs/networks.md says of cascade64, by a command that finds all of it there and trains nothing."""
    output = Path(shutil.copytree(RESULTS / name, tmp_path / name))
    settings = json.loads((output / "settings.json").read_text(encoding="utf-8"))
    words = [PROGRAM, "--output", output, *arguments, "--threads", 1, "--clock", "cpu", "--variants", "cascade64"]
    if "patients" in settings:
        for patient in (*settings["patients"][:-1], "somebody else"):  # the last is the sample
            write_nifti(tmp_path / "cts" / patient / "ct.nii.gz", chest())
        refused = run(*words, "--cts", tmp_path / "cts")
        assert refused.returncode == 2 and "choose another folder" in refused.stderr
        words += ["--cts", tmp_path / "cts", "--patients", *settings["patients"][:-1]]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("│ cascade64 "))
    assert all(figure in row for figure in says), row
    assert json.loads((output / "settings.json").read_text(encoding="utf-8")) == settings
