"""What is kept in benchmarks/results is of the networks that its commands train now, so that they print their tables.

A field that a configuration gains is told in ``LATER`` of benchmarks/cascades.py, if nothing is different by default.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from benchmarks.cascades import VARIANTS
from drr2ct.pipeline.running.bundle import bundle_file

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
ROWS = sorted(row for row in RESULTS.glob("*/results/*") if row.name.split("+")[0] in VARIANTS)
FILMS = sorted(path.parent for path in RESULTS.glob("films*/settings.json"))


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
