"""Memory that runs out: what is said, and how a training goes on."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensor

from drr2ct.networks import ProgressiveCascade, create_network, network_config
from drr2ct.pipeline.checkpoints.files import read_checkpoint, write_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.cache import CachedDataset
from drr2ct.pipeline.data.datalist import dataset_geometry, load_datalist
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, run_bundle
from drr2ct.pipeline.training.memory_fallback import asked_bytes, find_out_of_memory, next_reduction, shrink_checkpoint
from drr2ct.transforms.preprocessing import files_to_samples
from tests.bundle.conftest import TRAIN, train
from tests.files import read_rows

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1073741824 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA_MESSAGE = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.10 GiB."


def run_out(monkeypatch: pytest.MonkeyPatch, when: Any, after: int = 0) -> list[int]:
    """Let the last stage fail in training from the given step on, for networks that ``when`` says are too large."""
    steps: list[int] = []
    real = ProgressiveCascade._refined

    def refined(network: ProgressiveCascade, volume: torch.Tensor) -> torch.Tensor:
        if network.training and not isinstance(volume, FakeTensor):  # the plan is traced while it fails
            steps.append(1)
            if len(steps) > after and when(network):
                raise RuntimeError(CPU_MESSAGE)
        return real(network, volume)

    monkeypatch.setattr(ProgressiveCascade, "_refined", refined)
    return steps


def test_only_memory_errors_are_taken_for_one() -> None:
    assert find_out_of_memory(RuntimeError(CPU_MESSAGE)) is not None
    assert find_out_of_memory(torch.OutOfMemoryError(CUDA_MESSAGE)) is not None
    assert find_out_of_memory(MemoryError()) is not None
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = MemoryError("Unable to allocate 64.0 MiB for an array")
    assert find_out_of_memory(wrapped) is wrapped.__cause__
    assert find_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert find_out_of_memory(ValueError("out of memory")) is None
    assert asked_bytes(CPU_MESSAGE) == 2**30
    assert asked_bytes(CUDA_MESSAGE) == int(20.5 * 2**30)
    assert asked_bytes("out of memory") is None


def test_the_order_of_reductions() -> None:
    names = []
    config, precision = network_config("direct256"), "fp32"
    while (reduction := next_reduction(config, precision)) is not None:
        names.append(reduction.name)
        config, precision = reduction.config, reduction.precision
    assert names == ["activation checkpointing", "bf16", "96 X-ray channels"]
    assert config.encoder_channels == (64, 128, 256, 96) and config.checkpointing
    ours = network_config("cascade256", checkpointing=True)
    assert next_reduction(ours, "bf16") is None
    assert next_reduction(ours, "fp16") is None


def test_a_training_goes_on_as_if_it_had_begun_so(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    common: dict[str, Any] = {"cache_dir": str(tmp_path / "cache"), "train#trainer#max_epochs": 3}
    lean = {"network_def#checkpointing": True}
    wanted = read_checkpoint(train(dataset, tmp_path / "whole", **common, **lean) / "checkpoints" / "last.pt")
    # two steps an epoch: it fails in the second epoch's second
    run_out(monkeypatch, lambda network: not network.checkpointing, after=3)
    with caplog.at_level(logging.WARNING):
        run = train(dataset, tmp_path / "run", on_oom="reduce", **common)
    found = read_checkpoint(run / "checkpoints" / "last.pt")
    assert found["description"]["reductions"] == ["activation checkpointing"]
    assert found["description"]["epoch"] == 3
    assert wanted["description"]["reductions"] == []
    for name, value in wanted["network"].items():
        assert torch.allclose(value, found["network"][name], atol=1e-6), name
    epochs = [row["epoch"] for row in read_rows(run / "epochs.csv") if row["phase"] == "training"]
    assert epochs == ["1", "2", "3"]
    (message,) = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert "in head (forward pass), at epoch 2, iteration 4, for 1.00 GiB more" in message
    assert "from the last checkpoint with activation checkpointing" in message
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["network_def"]["checkpointing"] is True and saved["reductions"] == ["activation checkpointing"]


def test_by_default_it_says_what_to_change(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, lambda network: True)
    with pytest.raises(Exception) as stopped:
        train(dataset, tmp_path / "run")
    message = str(find_input_error(stopped.value))
    assert "\n" not in message
    assert message.startswith(
        "out of memory in head (forward pass), at epoch 1, iteration 1, for 1.00 GiB more; by plan"
    )
    assert "smaller batch_size" in message
    assert "activation checkpointing (--set network_def#checkpointing=True, " in message
    assert message.endswith("or on_oom=reduce.")


@pytest.mark.slow
def test_when_nothing_is_left_it_stops(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(monkeypatch, lambda network: True)
    with pytest.raises(Exception) as stopped:
        train(dataset, tmp_path / "run", on_oom="reduce", batch_size=1)
    assert "nothing cheaper is left for this network: use a smaller size" in str(find_input_error(stopped.value))
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["reductions"] == ["activation checkpointing", "bf16"]


def test_a_first_design_ends_with_fewer_xray_channels(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(monkeypatch, lambda network: network.config.encoder_channels[-1] > 96, after=4)
    # narrow but for the channels that become fewer: bf16 is emulated on most CPUs
    stages = [{"channels": 8, "norm_groups": 4, "blocks": blocks, "growth": 4, "layers": 2} for blocks in (1, 1, 1, 0)]
    narrow = {
        "stages": stages,
        "encoder_channels": [8, 16, 16, 128],
        "encoder_norm_groups": [2, 4, 4, 16],
        "skips": [{"stage": stage, "channels": 8} for stage in range(3)],
        "skip_fusion_channels": 8,
        "skip_fusion_norm_groups": 4,
        "refinement": [[8, 4]],
    }
    settings = {
        "dataset_dir": str(dataset), "output_dir": str(tmp_path), "size": 16, "detector_size": 32, "precision": "fp32",
        "train#trainer#max_epochs": 2, "num_workers": 0, "on_oom": "reduce", "network_def#checkpointing": True,
        **{f"network_def#{key}": value for key, value in narrow.items()},
    }  # fmt: skip
    run_bundle([bundle_file(TRAIN), bundle_file("configs/networks/direct256.yaml")], settings)
    description = read_checkpoint(tmp_path / "checkpoints" / "last.pt")["description"]
    assert description["reductions"] == ["bf16", "96 X-ray channels"]
    assert description["epoch"] == 2
    network = load_network(tmp_path / "checkpoints" / "last.pt")
    assert network.config.encoder_channels[-1] == 96 and network.config.checkpointing
    assert load_network(tmp_path / "checkpoints" / "before_reduction.pt").config.encoder_channels[-1] == 128


def test_a_shrunk_checkpoint_keeps_the_leading_channels(tmp_path: Path) -> None:
    network = create_network("direct256", size=16, detector_size=32)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(1, 2, 32, 32)).mean().backward()
    optimizer.step()
    path = tmp_path / "last.pt"
    content = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "best": {}}
    description = {"format": 1, "name": "direct256", "config": network.config.to_dict()}
    write_checkpoint(path, {**content, "description": description})
    reduction = next_reduction(network_config("direct256", size=16, detector_size=32, checkpointing=True), "bf16")
    assert reduction is not None
    shrink_checkpoint(path, reduction.config)
    smaller, shrunk = load_network(path), read_checkpoint(path)
    changed = 0
    for name, value in smaller.state_dict().items():
        old = network.state_dict()[name]
        assert torch.equal(value, old[tuple(slice(n) for n in value.shape)]), name
        changed += value.shape != old.shape
    # the encoder's last convolution and normalisation, and the fusion of each of the four stages
    assert changed == 4 + 4
    # a step of the optimiser goes on from the moments
    again = torch.optim.AdamW(smaller.parameters())
    again.load_state_dict(shrunk["optimizer"])
    smaller(torch.rand(1, 2, 32, 32)).mean().backward()
    again.step()
    before = optimizer.state_dict()["state"]
    assert all(
        torch.is_nonzero(state["step"] == before[i]["step"] + 1) for i, state in again.state_dict()["state"].items()
    )


def test_unknown_words_are_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as refused:
        train(dataset, tmp_path / "run", on_oom="shrink")
    assert "on_oom 'shrink' is unknown; choose from stop, reduce" in str(find_input_error(refused.value))


LIMITED = """
import atexit, resource, sys
import drr2ct.pipeline.training.memory_fallback as fallback
mebibytes = int(sys.argv.pop())
real = fallback.Where.attach
def mapped(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
def attach(where, trainer):  # everything is loaded and set up: so much more may be mapped
    used = mapped("VmSize")
    if mebibytes:
        resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * 2**20, resource.RLIM_INFINITY))
    else:
        atexit.register(lambda: print("needs", (mapped("VmPeak") - used) // 2**20))
    fallback.Where.attach = real
    real(where, trainer)
fallback.Where.attach = attach
from drr2ct.pipeline.cli import main
main()
"""


@pytest.mark.slow
def test_a_process_that_really_runs_out(dataset: Path, tmp_path: Path) -> None:
    geometry = dataset_geometry(str(dataset), size=64, detector_size=128)
    views = [view.name for view in geometry.views]
    for part in ("training", "validation"):  # the renderer's libraries would need more than the network
        items = load_datalist(str(dataset), part, views, (0.8, 0.1, 0.1), 0)
        list(CachedDataset(items, files_to_samples(geometry), tmp_path / "cache"))
    stages = json.dumps(
        [
            {"channels": 64, "scale": 1, "growth": 24, "layers": 4, "lift_channels": 16},
            {"channels": 32, "growth": 24, "layers": 3, "lift_channels": 16},
        ]
    )

    def run(folder: str, mebibytes: int, *settings: str) -> subprocess.CompletedProcess[str]:
        arguments = [
            "train", dataset, "--output", tmp_path / folder, "--network", "cascade64", "--epochs", 1,
            "--set", f"cache_dir={tmp_path / 'cache'}", "--set", "precision=fp32", "--set", "batch_size=4",
            "--set", "look_at_cts=false",  # which maps more than a step, and only in the first run
            "--set", f"network_def#stages={stages}", "--set", "network_def#encoder_channels=[16,32,48,64]",
            *(word for setting in settings for word in ("--set", setting)), mebibytes,
        ]  # fmt: skip
        # by itself glibc soon takes blocks of up to 32 MiB from its heap, which seldom shrinks when they are freed
        malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**18)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **malloc}
        command = [sys.executable, "-c", LIMITED, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    # how much a step needs depends on the CPU, for which oneDNN chooses its algorithms
    needs = int(run("enough", 0).stdout.split("needs")[1])
    done = run("run", int(0.9 * needs), "on_oom=reduce")
    assert done.returncode == 0, done.stderr
    assert "out of memory in " in done.stderr
    reductions = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["description"]["reductions"]
    assert reductions == ["activation checkpointing"]  # which needs a tenth less
