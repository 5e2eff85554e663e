"""Trainings in processes of their own, which can be killed: forked from a server that has imported everything once."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch._inductor",
        "torch.onnx",
        "itk.RTK",
        "drr2ct.pipeline.checkpoints.description",
        "drr2ct.pipeline.data.cache",
        "drr2ct.pipeline.data.survey",
        "drr2ct.pipeline.training.checkpoint_handler",
        "drr2ct.pipeline.training.epoch_csv",
        "drr2ct.pipeline.training.memory_fallback",
        "drr2ct.pipeline.training.muon",
        "drr2ct.pipeline.training.progress",
        "drr2ct.pipeline.training.transfer",
        "tests.bundle.conftest",
    ]
)
"""What a training imports: without it every process would, for three of its seven seconds."""


def start(dataset: Path, output: Path, overrides: dict[str, Any], fault: Any = None) -> BaseProcess:
    """Begin a training of the small network; ``fault`` is called in the process before it trains.

    Among the overrides, ``vary`` is the command's option, not a key.
    """
    process = _context.Process(target=_train, args=(dataset, output, overrides, fault))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120.0) -> int:
    """Its exit status, negative for a signal that it did not handle."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the training was not over after {seconds} s")
    return process.exitcode


def _train(dataset: Path, output: Path, overrides: dict[str, Any], fault: Callable[[], None] | None) -> None:
    """``drr2ct train …``, with what it prints in a file beside the output."""
    import torch

    from drr2ct.pipeline import cli
    from tests.bundle.conftest import SMALL

    output.parent.mkdir(parents=True, exist_ok=True)
    for stream in (sys.stdout, sys.stderr):
        log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, stream.fileno())
    torch.set_num_threads(1)
    # as a process started by hand has it: loading processes are then its children, and end when it is killed
    multiprocessing.set_start_method("fork", force=True)
    settings = {**SMALL, **overrides}
    vary = settings.pop("vary", "off")
    assignments = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    options = [f"--output={output}", "--network=cascade64", f"--vary={vary}"]
    sys.argv = ["drr2ct", "train", str(dataset), *options, *assignments]
    if fault is not None:
        fault()
    try:
        cli.main()
    finally:
        sys.stderr.flush()


class KillAt:
    """Kill this process with SIGKILL at the n-th call of some function, before it, in the middle or after it."""

    def __init__(self, place: str, count: int) -> None:
        self.place = place
        self.count = count

    def __call__(self) -> None:
        """Arm."""
        import csv
        import os
        import pathlib

        import torch
        from torch.utils.tensorboard import SummaryWriter

        from drr2ct.pipeline.training.muon import Muon

        owners: dict[str, tuple[Any, str]] = {
            "save": (torch, "save"),
            "sync": (os, "fsync"),
            "rename": (pathlib.Path, "replace"),
            "row": (csv.DictWriter, "writerows"),
            "scalar": (SummaryWriter, "add_scalar"),
            "step": (Muon, "step"),
        }
        owner, name = owners[self.place.split()[-1]]
        original = getattr(owner, name)
        left = self.count

        def armed(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if self.place.startswith("after"):
                    original(*args, **kwargs)
                if self.place.startswith("half"):
                    _write_half(args[1], original, args[0])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, armed)


def _write_half(file: Any, save: Callable[..., Any], content: Any) -> None:
    import io

    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()


class Slow:
    """From the n-th call on, make a part of the training take a minute, and write a file ``slow`` when it begins."""

    def __init__(self, place: str, count: int) -> None:
        self.place = place
        self.count = count

    def __call__(self) -> None:
        """Arm."""
        from drr2ct.pipeline.data import loading
        from drr2ct.pipeline.running import precision

        owner: Any = {"reader": loading.SeededSamples, "network": precision.AutocastInferer}[self.place]
        name = {"reader": "__getitem__", "network": "__call__"}[self.place]
        original = getattr(owner, name)
        output = Path(sys.argv[3].partition("=")[2])
        left = self.count

        def slow(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                (output / "slow").touch()
                time.sleep(60)
            return original(*args, **kwargs)

        setattr(owner, name, slow)


def random_fault(rng: random.Random) -> KillAt:
    """One of the places, at one of the first calls there."""
    place, most = rng.choice(
        [
            ("half save", 6), ("before save", 6), ("after save", 6), ("before sync", 12), ("before rename", 10),
            ("after rename", 10), ("before row", 1), ("after row", 1), ("before scalar", 40), ("before step", 5),
            ("after step", 5),
        ]
    )  # fmt: skip
    return KillAt(place, rng.randint(1, most))
