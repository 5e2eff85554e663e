"""``drr2ct prepare`` in processes of its own: under torchrun, killed, and with workers that die."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

import drr2ct.pipeline.data.candidates as module
from drr2ct.pipeline.data.candidates import find_candidates
from drr2ct.pipeline.data.prepare import prepare
from drr2ct.pipeline.data.settings import PrepareSettings
from drr2ct.pipeline.running.workers import worker_pool
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from tests.files import chest, write_nifti
from tests.pipeline.data.dicom_files import SHAPE, write_series
from tests.pipeline.data.test_prepare import contents

COMMAND = Path(sys.executable).with_name("drr2ct")
OPTIONS = ("--detector", "64", "--fov-mm", "300")
SETTINGS = PrepareSettings(BiplanarGeometry.from_angles(VolumeGrid(256, 300.0), detector_size=64))


def patients(folder: Path, count: int = 6) -> Path:
    """Large enough that each takes a few tenths of a second."""
    noise = np.random.default_rng(0).normal(0, 20, (96, 96, 80))
    for i in range(count):
        thick = np.kron(chest((24, 24, 20), seed=i), np.ones((4, 4, 4))) + noise
        write_nifti(folder / f"p{i}.nii.gz", thick.astype(np.float32), np.diag([3.0, 3, 3, 1]))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patients(tmp_path_factory.mktemp("prepare") / "source")


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> dict[str, bytes]:
    """What one process makes of it in one go."""
    dest = source.parent / "undisturbed" / "set"
    assert prepare(source, dest, SETTINGS).complete
    return contents(dest)


def start(*arguments: object) -> subprocess.Popen[str]:
    words = [*map(str, arguments), *OPTIONS]
    wide = {**os.environ, "COLUMNS": "300"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=wide)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def ready(dest: Path) -> int:
    return len(list(dest.glob("p*/p*.json")))


@pytest.mark.slow
def test_torchrun_gives_what_one_process_gives(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    dest = tmp_path / "set"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc_per_node", 2]
    output = finish(start(*torchrun, COMMAND, "prepare", source, dest, "--workers", 1))
    assert contents(dest) == undisturbed
    made = sorted(line.split(", ")[1] for line in output.splitlines() if " patients in " in line)
    assert made == ["3 made now"] * 2, "each rank takes its part"


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    dest, rng = tmp_path / "set", random.Random(time.time())
    for until in (1, 3):
        process = start(COMMAND, "prepare", source, dest, "--workers", 2)
        while ready(dest) < until and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay := rng.uniform(0, 0.3))
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, "workers end with the run, they must not write beside its successor"
    assert prepare(source, dest, SETTINGS).complete
    assert contents(dest) == undisturbed, f"killed {delay} s after {until} patients were ready"


def kill_the_maker_of(name: str, process: subprocess.Popen[str], dest: Path, times: int) -> int:
    """Kill the workers whenever one begins this patient; how often that was."""
    killed = 0
    began = dest / ".partial" / name
    while killed < times and process.poll() is None:
        if began.exists():
            workers = workers_of(process)
            for worker in workers:
                with suppress(psutil.Error):
                    worker.suspend()
            if began.exists():  # still, now that none can finish it
                for worker in workers:
                    with suppress(psutil.Error):  # the pool itself ends the others when one is gone
                        worker.kill()
                        worker.wait(20)
                shutil.rmtree(began, ignore_errors=True)
                killed += 1
            for worker in workers:
                with suppress(psutil.Error):
                    worker.resume()
        time.sleep(0.002)
    return killed


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of its pool."""
    with suppress(psutil.Error):
        children = psutil.Process(process.pid).children()
        return [child for child in children if child.is_running() and "spawn_main" in " ".join(child.cmdline())]
    return []


@pytest.mark.slow
def test_a_worker_that_dies_is_named_by_its_patient(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    dest = tmp_path / "set"
    process = start(COMMAND, "prepare", source, dest, "--workers", 2)
    # whoever worked beside it is tried again too, each alone: so this patient it was
    assert kill_the_maker_of("p3", process, dest, times=2) == 2
    output = finish(process)
    assert output.count(" left out: ") == 1
    assert "p3 left out: the process that made it died; there may be too little memory" in output
    assert "5 patients in" in output and not (dest / "p3").exists()
    assert prepare(source, dest, SETTINGS).complete
    (dest / ".failed").rmdir()
    assert contents(dest) == undisturbed


@pytest.mark.slow
def test_headers_of_a_large_tree_are_read_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        write_series(tmp_path / f"{i}", chest(SHAPE), patient=f"P{i}")
    alone = find_candidates(tmp_path)
    monkeypatch.setattr(module, "_MANY_FILES", 10)
    with worker_pool(2) as pool:
        assert find_candidates(tmp_path, pool=pool) == alone and len(alone) == 4
