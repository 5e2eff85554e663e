"""Training on endless variations, as a user runs it: killed and resumed, it ends where the uninterrupted one ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from tests.bundle.conftest import assert_one_sentence
from tests.bundle.processes import KillAt, finish, start
from tests.bundle.test_resume import assert_same_run, rows_of

SETTINGS: dict[str, Any] = {"train#trainer#max_epochs": 3, "batch_size": 1, "save_interval": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(("vary", "workers"), [("within-patients", 2), ("between-patients", 0)])
def test_a_killed_training_goes_on_exactly(dataset: Path, tmp_path: Path, vary: str, workers: int) -> None:
    settings = {**SETTINGS, "vary": vary, "num_workers": workers}
    assert finish(start(dataset, tmp_path / "whole", settings)) == 0, (tmp_path / "whole.log").read_text()
    assert finish(start(dataset, tmp_path / "run", settings, KillAt("half save", 3))) == -signal.SIGKILL
    assert finish(start(dataset, tmp_path / "run", settings)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if row["phase"] == "training"]
    assert len(set(losses)) == 3
    description = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["description"]
    assert description["radiographs"], "what unvaried ones look like is noted"
    assert (tmp_path / "run" / "registration").exists() == (vary == "between-patients")


def test_an_unknown_way_is_refused(command, dataset: Path, tmp_path: Path) -> None:
    result = command("train", dataset, "--output", tmp_path / "run", "--network", "cascade64", "--vary", "around")
    assert_one_sentence(result, "choose off")
