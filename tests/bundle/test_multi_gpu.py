"""Training with several processes, as users start it: torchrun, here with gloo on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, run_bundle
from drr2ct.pipeline.training.muon import Muon, is_kernel
from tests.bundle.conftest import SMALL, TRAIN
from tests.files import chest, read_rows, write_nifti

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
EPOCHS, KILLED_EPOCHS = 3, 6
# with a large eps AdamW's step is proportional to the gradient, and does not blow up its rounding errors
SETTINGS: dict[str, Any] = {
    **SMALL,
    "optimizer#_target_": "torch.optim.AdamW",
    "learning_rate": 0.03,
    "optimizer#eps": 0.1,
    "split_fractions": [0.5, 0.375, 0.125],
}


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four to train on, and three to validate on, which two processes cannot share evenly."""
    root = tmp_path_factory.mktemp("patients")
    for i in range(8):
        write_nifti(root / f"p{i}" / f"p{i}.nii.gz", chest((30, 28 + i, 26), seed=i))
    return root


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def started(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment(), check=False)


def arguments(settings: dict[str, Any]) -> list[str]:
    """For ``monai.bundle run``."""
    return [part for key, value in settings.items() for part in (f"--{key}", plain(value))]


def plain(value: Any) -> str:
    """A value as it is typed on a command line."""
    return json.dumps(value) if isinstance(value, (list, dict, bool)) else str(value)


def by_monai(overlays: list[str], settings: dict[str, Any]) -> list[str]:
    files = [str(bundle_file(f"configs/{name}.yaml")) for name in ("train", *overlays)]
    meta = ["--meta_file", str(bundle_file("configs/metadata.json"))]
    return [*TORCHRUN, "-m", "monai.bundle", "run", *meta, "--config_file", str(files), *arguments(settings)]


def rows(run: Path) -> list[dict[str, str]]:
    return read_rows(run / "epochs.csv")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.pt")["network"]


def worst(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


@pytest.fixture(scope="module")
def both(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A training by one process, the same by two with half the batch each, and what these wrote to stdout."""
    folder = tmp_path_factory.mktemp("runs")
    common = {**SETTINGS, "dataset_dir": str(patients), "train#trainer#max_epochs": EPOCHS}
    run_bundle([bundle_file(TRAIN)], {**common, "output_dir": str(folder / "one"), "batch_size": 2})
    settings = {**common, "output_dir": str(folder / "two"), "batch_size": 1}
    result = started(by_monai(["multi_gpu_train"], settings))
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "one", folder / "two", result.stdout


def test_two_processes_train_as_one(both: tuple[Path, Path, str]) -> None:
    one, two, _ = both
    assert worst(weights(one), weights(two)) < 1e-5
    assert [(row["epoch"], row["phase"]) for row in rows(two)] == [(row["epoch"], row["phase"]) for row in rows(one)]
    for expected, found in zip(rows(one), rows(two), strict=True):
        for name in ("loss", "psnr", "ssim"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-4), (name, found)
    assert read_checkpoint(two / "checkpoints" / "last.pt")["best"].keys() == {"loss", "psnr", "ssim"}


def test_only_one_process_writes(both: tuple[Path, Path, str]) -> None:
    _, two, output = both
    assert len(list((two / "tensorboard").iterdir())) == 1
    lines = [line for line in output.splitlines() if line.startswith("epoch ")]
    assert [line.split(",")[0] for line in lines] == [f"epoch {i + 1}/{EPOCHS}" for i in range(EPOCHS)]
    assert len(list((two / "cache").glob("*.pt"))) == 7, "each sample once"
    assert yaml.safe_load((two / "config.yaml").read_text())["warm_cache"] is True
    assert not list(two.rglob(".*")), "no temporary files are left"


def test_its_checkpoint_is_an_ordinary_one(both: tuple[Path, Path, str], patients: Path, tmp_path: Path) -> None:
    two = both[1]
    network = load_network(two / "checkpoints" / "best_psnr.pt")
    assert not any(name.startswith("module.") for name in network.state_dict())
    # one process goes on where two were
    settings = {**SETTINGS, "dataset_dir": str(patients), "train#trainer#max_epochs": EPOCHS + 1, "batch_size": 2}
    run_bundle([bundle_file(TRAIN)], {**settings, "output_dir": str(two)})
    assert read_checkpoint(two / "checkpoints" / "last.pt")["description"]["epoch"] == EPOCHS + 1
    assert len(rows(two)) == 2 * (EPOCHS + 1)


@pytest.fixture(scope="module")
def killed(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Two trainings by ``drr2ct train`` alike, in the second of which a process is killed; and what that one wrote."""
    folder = tmp_path_factory.mktemp("killed")
    # one patient to validate on; five to train on, of which one fills up
    settings = {**SMALL, "batch_size": 1, "split_fractions": [0.7, 0.1, 0.2]}
    command = [*TORCHRUN, "--max-restarts", "3", "--no-python", str(Path(sys.executable).with_name("drr2ct")), "train"]
    command += [str(patients), "--epochs", str(KILLED_EPOCHS), "--network", "cascade64"]
    command += ["--recipe", "sharded_optimizer", "--recipe", "weight_average"]
    command += [f"--set={key}={plain(value)}" for key, value in settings.items()]
    calm, run, log = folder / "calm", folder / "run", folder / "log"
    result = started([*command, "--output", str(calm)])
    assert result.returncode == 0, result.stderr[-3000:]
    with log.open("w") as file:
        job = subprocess.Popen([*command, "--output", str(run)], stdout=file, stderr=file, env=environment())
    try:
        deadline = time.monotonic() + 300
        while not ((run / "epochs.csv").exists() and len(rows(run)) >= 4):
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        second = next(p for p in psutil.Process(job.pid).children() if p.environ().get("RANK") == "1")
        second.send_signal(signal.SIGKILL)
        assert job.wait(timeout=300) == 0, log.read_text()[-3000:]
    finally:
        job.terminate()
    return calm, run, log.read_text()


def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(killed: tuple[Path, Path, str]) -> None:
    calm, run, log = killed
    first, second = (read_checkpoint(path / "checkpoints" / "last.pt") for path in (calm, run))
    for part in ("network", "training_network"):
        assert worst(first[part], second[part]) == 0, "as if nothing had happened"
    assert first["best"] == second["best"] and first["weight_average"] == second["weight_average"]
    expected, found = rows(calm), rows(run)
    assert len(expected) == 2 * KILLED_EPOCHS
    for row in (*expected, *found):
        row.pop("seconds")
    assert found == expected
    began = [line for line in log.splitlines() if line.startswith("epoch 1/")]
    assert len(began) == 1, "it went on, and did not begin again"


def test_a_sharded_optimizer_is_saved_whole(killed: tuple[Path, Path, str]) -> None:
    path = killed[1] / "checkpoints" / "last.pt"
    content = read_checkpoint(path)
    ordinary = Muon(load_network(path).parameters())
    ordinary.load_state_dict(content["optimizer"])
    assert len(ordinary.state) == len(content["network"])
    for parameter, state in ordinary.state.items():
        assert state["momentum" if is_kernel(parameter) else "exp_avg_sq"].abs().max() > 0
        assert is_kernel(parameter) or state["step"] == 3 * KILLED_EPOCHS


def test_torchrun_without_the_overlay_is_refused(
    patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Exception) as refused:
        run_bundle([bundle_file(TRAIN)], {**SETTINGS, "dataset_dir": str(patients), "output_dir": str(tmp_path)})
    assert "add multi_gpu_train.yaml" in str(find_input_error(refused.value))
