"""The program that measures on a GPU, run on a CPU and small, so that it works the first time on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of the parts."""
    path = tmp_path / "parts.py"
    monkeypatch.setattr(gpu, "PARTS", path)
    return path


LINE = 'print(\'RESULT {"what": "w", "verdict": "ok", "says": "s", "figures": {"a": 1}}\', flush=True)'


def test_a_part_hands_on_what_it_finds(part: Path) -> None:
    part.write_text(f"{LINE}\nprint('other')")
    assert list(gpu.run_part(["network", "n"], 30, dict(os.environ))) == [
        gpu.Result("network n", "w", "ok", "s", {"a": 1})
    ]


def test_a_part_that_fails_says_why_and_keeps_what_it_found(part: Path) -> None:
    part.write_text(f"{LINE}\nraise SystemExit('nothing is installed')")
    first, second = gpu.run_part(["drr"], 30, dict(os.environ))
    assert first.verdict == "ok"
    assert second.verdict == "failed" and "nothing is installed" in second.says


def test_a_part_without_end_is_stopped_with_what_it_started(part: Path, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    part.write_text(
        f"import subprocess, sys, time\n{LINE}\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)"
    )
    began = time.monotonic()
    first, second = gpu.run_part(["drr"], 3, dict(os.environ))
    assert time.monotonic() - began < 30
    assert (first.verdict, second.verdict) == ("ok", "stopped")
    alive.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not alive.exists(), "its child lives on"


def run(folder: Path, *options: str, **environment: str) -> tuple[int, dict, str]:
    report = folder / "gpu.json"
    command = [sys.executable, str(Path(gpu.__file__)), "--device", "cpu", "--size", "16", "--networks", "cascade64"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [*command, *options, "--json", str(report)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=variables,
    )
    return done.returncode, json.loads(report.read_text()), done.stdout + done.stderr


def test_without_time_every_part_is_named_as_skipped(tmp_path: Path) -> None:
    status, report, output = run(tmp_path, "--minutes", "0")
    assert status == 0
    assert [result["verdict"] for result in report["results"]] == ["skipped"]
    assert "not begun" in output


@pytest.mark.slow
def test_everything_is_found_on_a_cpu(tmp_path: Path) -> None:
    status, report, output = run(tmp_path, "--parts", "drr", "network", "resume", "processes", "--minutes", "30")
    assert status == 0, output
    found = {result["what"]: result for result in report["results"]}
    assert found["DRRs against an independent ray caster"]["figures"]["relative_difference"] < 0.01
    assert found["DRRs against RTK on the CPU"]["verdict"] == "ok"
    assert found["gradient against a small step"]["verdict"] == "ok"
    assert found["killed and resumed"]["figures"]["resumed"] == 0
    assert found["two processes"]["figures"]["difference"] < 1e-4
    step = next(result for what, result in found.items() if what.startswith("step, "))
    assert min(step["figures"]["seconds"]) > 0
    assert report["machine"]["versions"]["torch"] and report["revision"]


@pytest.mark.slow
def test_a_part_whose_package_is_missing_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "nanodrr.py").write_text("raise ModuleNotFoundError('hidden', name='nanodrr')")
    status, report, _ = run(tmp_path, "--parts", "drr", "network", PYTHONPATH=str(tmp_path))
    verdicts = {(result["part"], result["verdict"]) for result in report["results"]}
    assert status == 1
    assert ("drr", "failed") in verdicts and ("network cascade64", "measured") in verdicts
    assert any("nanodrr is not installed" in result["says"] for result in report["results"])
