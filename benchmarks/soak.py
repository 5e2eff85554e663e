"""Train many short epochs at 32³ while the process is killed at random, and see whether anything is lost or grows.

For the first part of the time or of the epochs the training process is killed with SIGKILL after random times and
started again; then it runs on undisturbed, while its memory and its open files are watched. At the end the run must
hold every epoch once.

    python benchmarks/soak.py --seconds 900
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid

SIZE, DETECTOR = 32, 64
KILLED_PART = 0.6
"""Of the time and of the epochs; the rest is one undisturbed process."""
MEAN_LIFE_S = 5.0
WARM_UP_EPOCHS = 20
"""Of the undisturbed process, before its memory is compared."""


def train(data: Path, output: Path, epochs: int, log: Path) -> None:
    """One process's training, as ``drr2ct train`` does it."""
    import torch

    from drr2ct.pipeline import cli

    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    torch.set_num_threads(1)
    settings = {
        "size": SIZE,
        "detector_size": DETECTOR,
        "precision": "fp32",
        "num_workers": 0,
        "save_interval": 2.0,
        "network_def#stages": [
            {"channels": 8, "scale": 1, "growth": 4, "layers": 2, "lift_channels": 4},
            {"channels": 8, "growth": 4, "layers": 2, "lift_channels": 4},
        ],
        "network_def#encoder_channels": [4, 8],
        "network_def#encoder_norm_groups": [2],
    }
    sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    arguments = ["train", str(data), f"--output={output}", "--network=cascade64", f"--epochs={epochs}"]
    sys.argv = ["drr2ct", *arguments, *sets]
    cli.main()


def epochs_of(run: Path) -> list[int]:
    """Epochs with a complete row of training."""
    path = run / "epochs.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file) if row["phase"] == "training"]


def soak(folder: Path, seconds: float, epochs: int, seed: int) -> dict[str, Any]:
    """Kill and start again, then watch; returns the figures."""
    data, run, log = folder / "data", folder / "run", folder / "log.txt"
    geometry = BiplanarGeometry.from_angles(VolumeGrid(SIZE), detector_size=DETECTOR)
    write_cohort(data, CohortPlan((sample_ct(),), geometry, 4, 1, 1, seed=seed))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drr2ct.pipeline.cli", "drr2ct.pipeline.training.checkpoint_handler"])

    def begin() -> BaseProcess:
        process = context.Process(target=train, args=(data, run, epochs, log))
        process.start()
        return process

    rng = random.Random(seed)
    began = time.monotonic()
    kills = 0
    lost_s: list[float] = []
    lost_epochs = 0.0
    while time.monotonic() - began < KILLED_PART * seconds and max(epochs_of(run), default=0) < KILLED_PART * epochs:
        process = begin()
        process.join(min(rng.expovariate(1 / MEAN_LIFE_S), KILLED_PART * seconds - (time.monotonic() - began)))
        if process.exitcode is not None:
            raise SystemExit(f"the training ended by itself, with status {process.exitcode}; see {log}")
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        last = run / "checkpoints" / "last.pt"
        if not last.exists():
            last = run / "checkpoints" / "previous.pt"
        if last.exists():
            lost_s.append(max(0.0, time.time() - last.stat().st_mtime))
            state = read_checkpoint(last)["trainer"]
            lost_epochs += max(0.0, max(epochs_of(run), default=0) - state["iteration"] / state["epoch_length"])

    process = begin()
    watched = psutil.Process(process.pid)
    samples: list[tuple[int, int, int]] = []
    while process.is_alive() and time.monotonic() - began < seconds:
        time.sleep(1)
        try:
            samples.append((max(epochs_of(run), default=0), watched.num_fds(), watched.memory_info().rss))
        except psutil.NoSuchProcess:
            break
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    status = process.exitcode

    found = epochs_of(run)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    steps = [event.step for event in events.Scalars("training/loss")]
    warm = [sample for sample in samples if sample[0] >= samples[0][0] + WARM_UP_EPOCHS]
    figures: dict[str, Any] = {
        "seconds": time.monotonic() - began,
        "kills": kills,
        "epochs": len(found),
        "epochs_missing_or_twice": len(set(range(1, max(found) + 1)) ^ set(found)) + len(found) - len(set(found)),
        "steps_missing_or_twice": len(set(range(1, max(steps) + 1)) ^ set(steps)) + len(steps) - len(set(steps)),
        "complete_epochs_lost": lost_epochs,
        "seconds_lost_mean": statistics.mean(lost_s) if lost_s else 0.0,
        "seconds_lost_max": max(lost_s, default=0.0),
        "exit_status": status,
        "half_written_files": len(list((run / "checkpoints").glob(".*"))),
        "traceback": "Traceback" in log.read_text(),
    }
    if len(warm) > 1:
        figures |= {
            "watched_epochs": warm[-1][0] - warm[0][0],
            "open_files": [warm[0][1], warm[-1][1]],
            "memory_mib": [round(warm[0][2] / 2**20, 1), round(warm[-1][2] / 2**20, 1)],
        }
    return figures


def main() -> None:
    """Print the figures; status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--epochs", type=int, default=2500, help="more than the time is enough for, to use it up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(Path(folder), arguments.seconds, arguments.epochs, arguments.seed)
    for name, value in figures.items():
        print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")
    if arguments.output is not None:
        write_json(arguments.output, figures)
    if figures["epochs_missing_or_twice"] or figures["steps_missing_or_twice"] or figures["traceback"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
