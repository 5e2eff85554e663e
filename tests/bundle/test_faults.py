"""What goes wrong in a training besides being killed: NaN, unreadable patients, readers that die, full disks."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.running.bundle import find_input_error
from drr2ct.pipeline.running.precision import AutocastInferer
from drr2ct.pipeline.training.interrupt import SIGNALS
from tests.bundle.conftest import train
from tests.files import file_system, read_rows

ONE_EACH = {"batch_size": 1, "train#trainer#max_epochs": 1}
"""Four steps, each of one patient."""

BROKEN = "p3"


def rows_of(run: Path) -> list[dict[str, str]]:
    return read_rows(run / "epochs.csv")


def refusal(call: Callable[[], Any]) -> str:
    """What a run says when it stops."""
    with pytest.raises(Exception) as stopped:
        call()
    return str(find_input_error(stopped.value))


def poison(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], *steps: int) -> None:
    """Change the network's output at some of the training's steps (from 1)."""
    original = AutocastInferer.__call__
    seen = 0

    def poisoned(self: AutocastInferer, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal seen
        output = original(self, inputs, network, *args, **kwargs)
        seen += network.training
        return change(output) if network.training and seen in steps else output

    monkeypatch.setattr(AutocastInferer, "__call__", poisoned)


def times_nan(output: Tensor) -> Tensor:
    return output * torch.nan


def infinite_slope(output: Tensor) -> Tensor:
    """The same values, but their derivative is infinite."""
    return output + (output - output.detach()).abs().sqrt()


def optimiser_steps(run: Path) -> set[float]:
    state = read_checkpoint(run / "checkpoints" / "last.pt")["optimizer"]["state"]
    return {float(entry["step"]) for entry in state.values() if "step" in entry}


@pytest.mark.parametrize(("change", "says"), [(times_nan, "loss is nan"), (infinite_slope, "gradient is not finite")])
def test_a_step_that_is_not_finite_is_named_skipped_and_counted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    change: Callable[[Tensor], Tensor], says: str,
) -> None:  # fmt: skip
    poison(monkeypatch, change, 2)
    run = train(dataset, tmp_path / "run", **ONE_EACH)
    assert f"{says} at epoch 1, iteration 2, in the batch of p" in caplog.text
    assert optimiser_steps(run) == {3.0}
    content = read_checkpoint(run / "checkpoints" / "last.pt")
    assert all(bool(torch.isfinite(value).all()) for value in content["network"].values())
    assert [row["skipped"] for row in rows_of(run)] == ["1", "0"]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("training/skipped_steps")] == [1.0]
    losses = [event.value for event in events.Scalars("training/loss")]
    assert len(losses) == 4 and (losses[1] != losses[1]) == (change is times_nan), "nothing is hidden"


def test_steps_in_a_row_stop_the_run_and_leave_the_batch(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, times_nan, 1, 3, 4)
    message = refusal(lambda: train(dataset, tmp_path, **ONE_EACH, max_nonfinite_steps=2))
    assert "iteration 4" in message and "2 steps in a row" in message
    (path,) = tmp_path.glob("nonfinite_*.safetensors")
    assert str(path) in message
    with safe_open(path, framework="pt") as file:
        (patient,) = json.loads(file.metadata()["patients"])
        assert f"batch of {patient}," in message
        assert file.get_tensor("label").shape == (1, 1, 16, 16, 16)
        assert file.get_tensor("pred").isnan().all() and file.get_tensor("image").isfinite().all()


def test_one_bad_batch_costs_the_accumulated_step(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, times_nan, 1)
    run = train(dataset, tmp_path, **ONE_EACH, **{"train#trainer#accumulation_steps": 2})
    assert optimiser_steps(run) == {1.0}, "two of two batches each, one of them left out"
    assert rows_of(run)[0]["skipped"] == "1"


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Gradient scaling, as with fp16, on the CPU."""

    def begin_at(scale: float) -> None:
        monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda: torch.amp.GradScaler("cpu", init_scale=scale))

    return begin_at


def test_overflows_of_the_scaled_gradient_are_counted_and_no_fault(
    dataset: Path, tmp_path: Path, scaler: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    scaler(2.0**127)
    heavy = {"loss#terms#l1": 16.0}  # a gradient that this scale takes out of range
    run = train(dataset, tmp_path, **ONE_EACH, **heavy, **{"train#trainer#amp": True, "max_nonfinite_steps": 1})
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (overflows,) = [event.value for event in events.Scalars("training/scaler_overflows")]
    assert 0 < overflows <= 4 and optimiser_steps(run) <= {4.0 - overflows}
    assert [row["skipped"] for row in rows_of(run)] == ["0", "0"] and "not finite" not in caplog.text
    assert read_checkpoint(run / "checkpoints" / "last.pt")["scaler"]["scale"] == 2.0 ** (127 - overflows)
    more = {"train#trainer#amp": True, "train#trainer#max_epochs": 2, "max_nonfinite_steps": 1}
    train(dataset, tmp_path, **{**ONE_EACH, **more})
    events.Reload()
    before, after = [event.value for event in events.Scalars("training/scaler_overflows")]
    assert before == overflows and after < overflows, "it goes on from the scale that was found"


@pytest.mark.parametrize(
    ("scale", "harm", "steps", "says", "iteration"),
    [
        pytest.param(1024.0, times_nan, (2, 3), "loss is nan", "iteration 3", id="NaN is a fault with scaling too"),
        pytest.param(
            1.0, infinite_slope, (1, 2), "not by loss scaling", "iteration 2", id="a scale of one explains no overflow"
        ),
    ],
)
def test_what_loss_scaling_does_not_explain(
    dataset: Path,
    tmp_path: Path,
    scaler: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    scale: float,
    harm: Any,
    steps: tuple[int, int],
    says: str,
    iteration: str,
) -> None:
    scaler(scale)
    poison(monkeypatch, harm, *steps)
    message = refusal(
        lambda: train(dataset, tmp_path, **ONE_EACH, **{"train#trainer#amp": True, "max_nonfinite_steps": 2})
    )
    assert says in message and iteration in message


def test_a_training_that_fails_gives_the_signals_back(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)]
    poison(monkeypatch, times_nan, 1)
    refusal(lambda: train(dataset, tmp_path, max_nonfinite_steps=1))
    assert [signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)] == before


def test_a_validation_that_is_not_finite_is_never_the_best(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, calls = AutocastInferer.__call__, 0

    def first_validation_is_nan(self: AutocastInferer, inputs: Tensor, network: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += not network.training
        output = original(self, inputs, network, **kwargs)
        return output * torch.nan if not network.training and calls == 1 else output

    monkeypatch.setattr(AutocastInferer, "__call__", first_validation_is_nan)
    run = train(dataset, tmp_path)
    assert "in the validation of p" in caplog.text
    assert read_checkpoint(run / "checkpoints" / "best_loss.pt")["description"]["epoch"] == 2
    validation = [row for row in rows_of(run) if row["phase"] == "validation"]
    assert [row["loss"] == "nan" for row in validation] == [True, False]


@pytest.fixture
def broken(dataset: Path, tmp_path: Path) -> Path:
    """The data set with one training patient whose file is cut off."""
    root = tmp_path / "broken"
    shutil.copytree(dataset, root)
    assert BROKEN in [item["patient"] for item in load_datalist(root, "training")]
    path = root / BROKEN / f"{BROKEN}.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_a_patient_that_cannot_be_read_stops_the_run_by_name(broken: Path, tmp_path: Path, workers: int) -> None:
    message = refusal(lambda: train(broken, tmp_path / "run", **ONE_EACH, num_workers=workers))
    assert message.startswith(f"patient {BROKEN} cannot be read (") and "on_bad_sample" in message
    assert "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_or_is_skipped_reported_once_and_listed(
    broken: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    run = train(broken, tmp_path / "run", batch_size=1, on_bad_sample="skip", num_workers=workers)
    reports = [record.getMessage() for record in caplog.records if f"{BROKEN} cannot be read" in record.getMessage()]
    assert (
        len(reports) == 2
        and reports[0].endswith("; skipped")
        and reports[1].startswith("Patients that were skipped (1)")
    )
    assert {row["epoch"] for row in rows_of(run)} == {"1", "2"} and optimiser_steps(run) == {8.0}


def test_an_unknown_policy_is_refused(dataset: Path, tmp_path: Path) -> None:
    assert "on_bad_sample 'ignore' is unknown" in refusal(lambda: train(dataset, tmp_path, on_bad_sample="ignore"))


class _InWorker:
    """A data set whose loading processes die or sleep at the second sample."""

    def __init__(self, action: str) -> None:
        self.action = action
        self.parent = os.getpid()

    def __call__(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            if os.getpid() != self.parent and self.action == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.getpid() != self.parent and self.action == "stall":
                time.sleep(60)
            return original(*args, **kwargs)

        return read


@pytest.mark.parametrize(("action", "says"), [("die", "lower num_workers"), ("stall", "raise loader_timeout")])
def test_readers_that_die_or_stall_are_noticed(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, says: str
) -> None:
    from drr2ct.pipeline.data.loading import SeededSamples

    monkeypatch.setattr(SeededSamples, "__getitem__", _InWorker(action)(SeededSamples.__getitem__))
    began = time.monotonic()
    message = refusal(lambda: train(dataset, tmp_path, num_workers=1, loader_timeout=3.0))
    assert says in message and time.monotonic() - began < 30


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with file_system(tmp_path / "disk", mebibytes=3) as folder:
        yield folder


def test_a_full_disk_stops_the_run_and_it_goes_on_once_there_is_space(
    dataset: Path, tmp_path: Path, small_disk: Path
) -> None:
    settings = {"cache_dir": str(tmp_path / "cache"), "train#trainer#max_epochs": 3}
    train(dataset, small_disk / "run", **{**settings, "train#trainer#max_epochs": 1, "lr_scheduler#T_max": 3})
    kept = read_checkpoint(small_disk / "run" / "checkpoints" / "last.pt")["trainer"]["iteration"]
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 30000))
    message = refusal(lambda: train(dataset, small_disk / "run", **settings))
    assert "the disk is full" in message and "give the same command again" in message
    last = read_checkpoint(small_disk / "run" / "checkpoints" / "last.pt")
    assert last["trainer"]["iteration"] >= kept
    (small_disk / "ballast").unlink()
    train(dataset, small_disk / "run", **settings)
    whole = train(dataset, tmp_path / "whole", **settings)
    a, b = (read_checkpoint(run / "checkpoints" / "last.pt")["network"] for run in (small_disk / "run", whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_read_only_output_says_so(dataset: Path, tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "cannot be written (Read-only file system)" in refusal(lambda: train(dataset, small_disk / "run"))


def test_an_output_that_becomes_read_only_stops_the_run(
    dataset: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drr2ct.pipeline.checkpoints import files as checkpoint

    write = checkpoint._write_synced
    written = 0

    def then_read_only(path: Path, content: Any) -> None:
        nonlocal written
        written += 1
        if written == 2:
            subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False)
            raise OSError(30, "Read-only file system", str(path))
        write(path, content)

    monkeypatch.setattr(checkpoint, "_write_synced", then_read_only)
    message = refusal(lambda: train(dataset, small_disk / "run", cache_dir=str(tmp_path / "cache")))
    assert "read-only" in message
    assert read_checkpoint(small_disk / "run" / "checkpoints" / "last.pt")["trainer"]["iteration"] == 2


def test_a_clock_that_goes_backwards_changes_nothing_but_the_event_times(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [2_000_000_000.0]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    settings = {"cache_dir": str(tmp_path / "cache")}
    run = train(dataset, tmp_path / "run", **settings, **{"train#trainer#max_epochs": 1, "lr_scheduler#T_max": 2})
    monkeypatch.setattr(time, "time", backwards)
    train(dataset, run, **settings)
    monkeypatch.undo()
    whole = train(dataset, tmp_path / "whole", **settings)
    rows = rows_of(run)
    assert [(row["epoch"], row["loss"]) for row in rows] == [(row["epoch"], row["loss"]) for row in rows_of(whole)]
    assert all(float(row["seconds"]) >= 0 for row in rows)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("validation/psnr")] == [1, 2]


def test_the_fault_is_one_sentence_of_the_command(
    command: Callable[..., tuple[int, str]], broken: Path, tmp_path: Path
) -> None:
    from tests.bundle.conftest import SMALL, assert_one_sentence

    logging.getLogger().setLevel(logging.WARNING)
    sets = [f"--set={key}={json.dumps(value)}" for key, value in {**SMALL, **ONE_EACH}.items()]
    result = command("train", broken, "--output", tmp_path / "run", "--network", "cascade64", *sets)
    assert_one_sentence(result, f"patient {BROKEN} cannot be read")
