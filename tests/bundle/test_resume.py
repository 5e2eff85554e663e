"""A training that is killed at any moment ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from drr2ct.pipeline import cli
from drr2ct.pipeline.checkpoints.files import read_checkpoint, write_checkpoint
from drr2ct.pipeline.running.bundle import find_input_error
from tests.bundle.conftest import train
from tests.bundle.processes import KillAt, Slow, finish, random_fault, start
from tests.files import read_rows

EPOCHS = 4
SETTINGS: dict[str, Any] = {
    "train#trainer#max_epochs": EPOCHS,
    "batch_size": 1,  # four steps in an epoch
    "save_interval": 0.0,  # a checkpoint after every step
}
CLOCKS = ("second", "memory", "throughput", "samples", "waiting")
"""Tags with one of these in their name tell what the clock or the machine says."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {**SETTINGS, "cache_dir": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory, cache: dict[str, Any]) -> Path:
    """The training that nobody interrupts."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert finish(start(dataset, output, cache)) == 0, output.with_suffix(".log").read_text()
    return output


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, however nested."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def rows_of(run: Path) -> list[dict[str, str]]:
    rows = read_rows(run / "epochs.csv")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def scalars_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def images_of(run: Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    return {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


def assert_same_run(first: Path, second: Path) -> None:
    a, b = (read_checkpoint(run / "checkpoints" / "last.pt") for run in (first, second))
    for name in ("network", "optimizer", "lr_scheduler", "trainer", "best"):
        assert same(a[name], b[name]), name
    assert a["description"]["metrics"] == b["description"]["metrics"]
    for metric in ("loss", "psnr", "ssim"):
        best = [read_checkpoint(run / "checkpoints" / f"best_{metric}.pt") for run in (first, second)]
        assert same(best[0]["network"], best[1]["network"]), metric
        assert best[0]["description"]["epoch"] == best[1]["description"]["epoch"]
    assert rows_of(first) == rows_of(second)
    one, two = scalars_of(first), scalars_of(second)
    assert one.keys() == two.keys()
    for tag in one:
        steps = [[step for step, _ in scalars[tag]] for scalars in (one, two)]
        if tag.startswith("speed/"):  # an epoch that a process did not make a step of has no speed
            assert steps[1] == sorted(set(steps[1]) & set(steps[0])), tag
            continue
        assert steps[0] == steps[1], tag
        if not any(word in tag for word in CLOCKS):
            assert one[tag] == two[tag], tag
    assert images_of(first) == images_of(second)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(KillAt("half save", 3), id="writing a checkpoint"),
        pytest.param(KillAt("after row", 1), id="between row and checkpoint"),
        pytest.param(KillAt("before rename", 8), id="renaming", marks=pytest.mark.slow),
    ],
)
def test_killed_once(dataset: Path, whole: Path, cache: dict[str, Any], tmp_path: Path, fault: KillAt) -> None:
    assert finish(start(dataset, tmp_path / "run", cache, fault)) == -signal.SIGKILL
    assert finish(start(dataset, tmp_path / "run", cache)) == 0
    assert_same_run(whole, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "nothing half written is left"


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "times"), [(0, 10), (2, 3)])
def test_killed_again_and_again(dataset: Path, cache: dict[str, Any], tmp_path: Path, workers: int, times: int) -> None:
    settings = {**cache, "num_workers": workers, "train#trainer#max_epochs": 30}
    rng = random.Random(workers)
    for _ in range(times):
        anywhere = rng.random() < 0.3
        process = start(dataset, tmp_path / "run", settings, None if anywhere else random_fault(rng))
        if anywhere:
            # counted in saves, of which there is one a step: a fast machine would be through in a few seconds
            wait_for_saves(tmp_path / "run" / "checkpoints" / "last.pt", process, rng.randint(0, 4))
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        assert finish(process) == -signal.SIGKILL, "it was over too early to be killed so often"
    assert finish(start(dataset, tmp_path / "run", settings)) == 0
    assert finish(start(dataset, tmp_path / "whole", {**settings, "num_workers": 0, "save_interval": 300.0})) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def wait_for(path: Path, process: Any, seconds: float = 60.0) -> None:
    """Until the training has written a file."""
    began = time.monotonic()
    while not path.exists():
        assert process.is_alive() and time.monotonic() - began < seconds, path
        time.sleep(0.02)


def wait_for_saves(path: Path, process: Any, count: int, seconds: float = 60.0) -> None:
    """Until the training has replaced a file so many times, or is over."""
    began = time.monotonic()
    before = inode_of(path)
    while count and process.is_alive():
        assert time.monotonic() - began < seconds, path
        time.sleep(0.001)
        now = inode_of(path)
        if now not in (before, None):
            before, count = now, count - 1


def inode_of(path: Path) -> int | None:
    """The number of the file that is there, if one is."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_saves_and_leaves(
    dataset: Path, whole: Path, cache: dict[str, Any], tmp_path: Path, number: int, status: int, name: str
) -> None:
    settings = {**cache, "save_interval": 1000.0}
    process = start(dataset, tmp_path / "run", settings)
    wait_for(tmp_path / "run" / "checkpoints" / "last.pt", process)
    os.kill(process.pid, number)
    began = time.monotonic()
    assert finish(process) == status
    assert time.monotonic() - began < 10
    said = (tmp_path / "run.log").read_text()
    assert f"stopped by {name}; the same command goes on" in said and "Traceback" not in said
    assert finish(start(dataset, tmp_path / "run", settings)) == 0
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize(
    ("place", "count", "step"),
    [
        pytest.param("network", 3, 2, id="a long step"),
        pytest.param("network", 5, 4, id="a long validation"),
        pytest.param("reader", 3, 2, id="a slow reader", marks=pytest.mark.slow),
        pytest.param("reader", 5, 4, id="a slow reader of the validation", marks=pytest.mark.slow),
    ],
)
def test_a_signal_within_what_takes_long(
    dataset: Path, whole: Path, cache: dict[str, Any], tmp_path: Path, place: str, count: int, step: int
) -> None:
    settings = {**cache, "save_interval": 1000.0, "interruption#grace": 0.5}
    process = start(dataset, tmp_path / "run", settings, Slow(place, count))
    wait_for(tmp_path / "run" / "slow", process)
    os.kill(process.pid, signal.SIGTERM)
    began = time.monotonic()
    assert finish(process) == 143
    assert time.monotonic() - began < 8
    content = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert content["trainer"]["iteration"] == step and content["epoch_state"] is not None, "all complete steps are kept"
    assert finish(start(dataset, tmp_path / "run", settings)) == 0
    assert_same_run(whole, tmp_path / "run")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    dataset: Path, whole: Path, cache: dict[str, Any], tmp_path: Path
) -> None:
    assert finish(start(dataset, tmp_path / "run", cache, KillAt("before step", 7))) == -signal.SIGKILL
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    raw = bytearray(last.read_bytes())
    raw[len(raw) // 3] ^= 255
    last.write_bytes(raw)
    assert finish(start(dataset, tmp_path / "run", cache)) == 0
    assert "Going on from the one before, previous.pt" in (tmp_path / "run.log").read_text()
    assert_same_run(whole, tmp_path / "run")


def test_when_both_are_damaged_nothing_is_overwritten(run: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes((run / "checkpoints" / "last.pt").read_bytes()[:1000])
    with pytest.raises(Exception) as refused:
        train(dataset, tmp_path / "run")
    assert "no checkpoint in" in str(find_input_error(refused.value))
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "previous.pt"]


def test_a_longer_training_goes_on_along_the_longer_cosine(
    dataset: Path, cache: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = {**SETTINGS, "cache_dir": cache["cache_dir"], "train#trainer#max_epochs": 2}
    train(dataset, tmp_path / "run", **first)
    train(dataset, tmp_path / "run", **{**first, "train#trainer#max_epochs": 4})
    assert "lasts 4 epochs" in caplog.text
    rates = [float(row["lr"]) for row in rows_of(tmp_path / "run") if row["phase"] == "training"]
    short = [1e-3, (1e-3 + 1e-6) / 2]
    assert rates[:2] == pytest.approx(short, rel=1e-4)
    middle, late = ((1e-3 - 1e-6) * (1 + math.cos(math.pi * epoch / 4)) / 2 + 1e-6 for epoch in (2, 3))
    assert rates[2:] == pytest.approx([middle, late], rel=1e-4)


@pytest.mark.slow
def test_accumulated_gradients_are_gone_on_with(dataset: Path, cache: dict[str, Any], tmp_path: Path) -> None:
    settings = {**cache, "train#trainer#accumulation_steps": 3, "train#trainer#max_epochs": 2}
    assert finish(start(dataset, tmp_path / "whole", settings)) == 0
    assert finish(start(dataset, tmp_path / "run", settings, KillAt("before scalar", 12))) == -signal.SIGKILL
    content = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert "gradients" in content, "killed within an accumulation"
    assert finish(start(dataset, tmp_path / "run", settings)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_other_steps_per_epoch_begin_the_epoch_again(dataset: Path, cache: dict[str, Any], tmp_path: Path) -> None:
    assert finish(start(dataset, tmp_path / "run", cache, KillAt("before step", 3))) == -signal.SIGKILL
    assert finish(start(dataset, tmp_path / "run", {**cache, "batch_size": 2})) == 0
    assert (
        "with 4 steps per epoch, now there are 2: it goes on from the start of epoch 1"
        in (tmp_path / "run.log").read_text()
    )
    assert [row["epoch"] for row in rows_of(tmp_path / "run") if row["phase"] == "training"] == ["1", "2", "3", "4"]


def test_a_checkpoint_of_another_configuration_is_refused(run: Path, dataset: Path, tmp_path: Path) -> None:
    content = read_checkpoint(run / "checkpoints" / "last.pt")
    del content["lr_scheduler"]
    write_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", content)
    with pytest.raises(Exception) as refused:
        train(dataset, tmp_path / "run", **{"train#trainer#max_epochs": 3})
    assert "holds no state of lr_scheduler" in str(find_input_error(refused.value))


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_checkpoint_by_another_optimiser_is_refused(run: Path, dataset: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    changes = {"train#trainer#max_epochs": 3, "optimizer#_target_": f"torch.optim.{name}"}
    with pytest.raises(Exception) as refused:
        train(dataset, tmp_path / "run", **changes)
    assert "was trained by another optimiser, which has no" in str(find_input_error(refused.value))


def test_inspect_prints_and_exports(run: Path, tmp_path: Path) -> None:
    last, released = run / "checkpoints" / "last.pt", tmp_path / "model.safetensors"
    runner = CliRunner(env={"COLUMNS": "200"})
    tables = runner.invoke(cli.app, ["inspect", str(last), "--export", str(released)])
    assert tables.exit_code == 0
    for fact in ("cascade64", "epoch 2, step 4", "16³ voxels", "-1024 to 3071", "psnr", "pa", "lat", "git", "p2, p3"):
        assert fact in tables.stdout, fact
    facts = json.loads(runner.invoke(cli.app, ["inspect", str(released), "--json"]).stdout)
    assert facts["iteration"] == 4 and not facts["resumable"] and facts["config"]["geometry"]["views"]
    assert same(read_checkpoint(released)["network"], read_checkpoint(last)["network"])
