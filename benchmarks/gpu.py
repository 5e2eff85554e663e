"""Whether everything holds on a GPU, and how fast it is: one command of at most ten minutes, one table, one JSON file.

python benchmarks/gpu.py [--json gpu.json]
python benchmarks/gpu.py --device cpu --size 32 --networks cascade64    # the same on a CPU, small

It runs from a checkout, nothing installed: Python, torch, MONAI, NumPy, jaxtyping; for DRRs, nanodrr with roma and
platformdirs; for trainings, what MONAI's bundles need (docs/gpu.md). None of ITK, RTK, SimpleITK or pydicom is needed,
nor a network. What is missing is named beside the part that needs it.

Parts, each in a process of its own, so that one that fails takes nothing with it:

- ``drr``: radiographs and their gradients by nanodrr on the device agree with an independent ray caster, with
  nanodrr's CPU path, and with RTK where that is installed; time of the default's two views.
- ``network NAME``: time of a training step and of a reconstruction in bf16 and fp16, and CUDA's peaks beside the
  planner's.
- ``resume``: a training that is killed ends where one that nobody disturbs ends, as exactly as two undisturbed ones.
- ``processes``: two processes (NCCL, or gloo on a CPU) train as one does; where there are two GPUs.
- ``compiled NAME``: the times again under ``torch.compile``; last, as compiling takes what time is left.

A part is not begun, or is stopped, where the time would be over, and the table says so. The exit status is 1 if
anything failed, 0 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = Path(__file__).with_name("gpu_parts.py")
MARK = "RESULT "
"""Begins the lines of a part's output that hold a result."""
LEAST_SECONDS = 15.0
"""A part is not begun with less time than this."""
LIMITS = {"machine": 90.0, "drr": 120.0, "network": 120.0, "resume": 300.0, "processes": 240.0, "compiled": 240.0}
"""Seconds after which a part has failed on a GPU; on a CPU, four times as many."""


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Args:
        part: that it is of.
        what: was looked at.
        verdict: ``ok``, ``failed``, ``skipped`` (for lack of time or of a GPU) or ``measured``.
        says: the finding in words.
        figures: the same as numbers.
    """

    part: str
    what: str
    verdict: str
    says: str
    figures: dict[str, Any] = field(default_factory=dict)


def run_part(arguments: Sequence[str], limit: float, environment: dict[str, str]) -> Iterator[Result]:
    """Run a part in a process of its own, and hand on what it finds as it finds it.

    Args:
        arguments: of ``gpu_parts.py``; the first is the part.
        limit: seconds after which it, and all that it has started, is killed.
        environment: of the process.

    Yields:
        Its results, and at its end one more if it failed or ran out of time.
    """
    name = " ".join(arguments[:2]) if arguments[0] in ("network", "compiled") else arguments[0]
    timed_out = threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(PARTS), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )

        def stop() -> None:
            timed_out.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    yield Result(name, **json.loads(line.removeprefix(MARK)))
            status = process.wait()
        finally:
            timer.cancel()
            stop()  # what it has left running
        errors.seek(0)
        last = [line.strip() for line in errors.read().splitlines() if line.strip()][-1:]
    if timed_out.is_set() and status == -signal.SIGKILL:
        yield Result(name, "time", "stopped", f"stopped after {limit:.0f} s")
    elif status:
        yield Result(name, "end", "failed", f"exit status {status}: {' '.join(last)}"[:300])


@contextlib.contextmanager
def importable(device: str) -> Iterator[dict[str, str]]:
    """An environment in which ``drr2ct`` is this checkout, whether or not it is installed."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "drr2ct"
        package.mkdir()
        for name in ("transforms", "networks", "pipeline", "bundles"):
            (package / name).symlink_to(ROOT / name, target_is_directory=True)
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        yield environment


def revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return "not a git checkout"


def table(results: Sequence[Result]) -> str:
    """Markdown, aligned."""
    rows = [("part", "what", "found", "verdict"), *((r.part, r.what, r.says, r.verdict) for r in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, help="voxels along each axis, and half the pixels; each network's own")
    parser.add_argument("--networks", nargs="+", help="all named networks by default")
    parser.add_argument("--parts", nargs="+", choices=[*LIMITS][1:], default=[*LIMITS][1:])
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--json", type=Path, help="also write everything to this file, after each part")
    arguments = parser.parse_args()

    began = time.monotonic()
    results: list[Result] = []
    report: dict[str, Any] = {"revision": revision(), "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    report |= {"device": arguments.device, "size": arguments.size, "minutes": arguments.minutes}

    def left() -> float:
        return 60 * arguments.minutes - (time.monotonic() - began)

    def note(result: Result) -> None:
        results.append(result)
        print(f"{time.monotonic() - began:6.1f} s  {result.part}: {result.what}: {result.says} [{result.verdict}]")
        sys.stdout.flush()

    def save() -> None:
        report["seconds"] = time.monotonic() - began
        report["results"] = [asdict(result) for result in results]
        if arguments.json:
            temporary = arguments.json.with_name(f".{arguments.json.name}.tmp")
            temporary.write_text(json.dumps(report, indent=1))
            temporary.replace(arguments.json)

    with importable(arguments.device) as environment:

        def part(*words: str) -> None:
            least = min(LEAST_SECONDS, 30 * arguments.minutes)
            if left() < least:
                note(Result(" ".join(words[:2]), "time", "skipped", f"not begun: {max(0.0, left()):.0f} s are left"))
                return
            options = ["--device", arguments.device, *(["--size", str(arguments.size)] if arguments.size else [])]
            own = LIMITS[words[0]] * (4 if arguments.device == "cpu" else 1)
            limit = min(own, left())
            for result in run_part([*words, *options], limit, environment):
                if result.verdict == "stopped":  # its own limit is a fault, the end of the time is not
                    verdict = "failed" if limit == own else "skipped"
                    result = Result(result.part, result.what, verdict, result.says)
                if words[0] == "machine" and result.verdict == "measured":
                    report["machine"] = result.figures
                note(result)
            save()

        part("machine")
        if "machine" in report:
            networks = arguments.networks or report["machine"]["networks"]
            for name in arguments.parts:
                for words in [(name, n) for n in networks] if name in ("network", "compiled") else [(name,)]:
                    part(*words)
    save()
    print(f"\nrevision {report['revision']}, {report['seconds']:.0f} s\n{table(results)}")
    failed = [result for result in results if result.verdict == "failed"]
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
