"""Checkpoint files: damage is noticed, what cannot be written leaves the one before, what is released loads."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import DamagedCheckpointError, read_checkpoint, write_checkpoint, write_release
from drr2ct.pipeline.checkpoints.inspection import checkpoint_facts
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.running.faults import explain_fault
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.files import file_system

STAGES = [{"channels": 8, "scale": 1, "growth": 4, "layers": 1, "lift_channels": 4}]


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(8), detector_size=8)
    network = create_network(
        "cascade64", geometry=geometry, stages=STAGES, encoder_channels=[4], encoder_norm_groups=[2]
    )
    about = describe(network, "cascade64", "cube", {"training": [{"patient": "p1"}], "validation": []})
    return {"network": network.state_dict(), "description": {**about, "epoch": 3, "iteration": 12, "metrics": {}}}


@pytest.fixture(scope="module")
def written(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "last.pt", content)


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_byte_is_noticed_or_changes_nothing(
    written: Path, tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    whole = written if suffix == ".pt" else write_release(written, folder / "whole.safetensors")
    raw = bytearray(whole.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    damaged = folder / f"damaged{suffix}"
    damaged.write_bytes(raw)
    try:
        found = read_checkpoint(damaged)
    except InputError:
        return
    assert_same_weights(read_checkpoint(whole)["network"], found["network"])
    assert found["description"] == read_checkpoint(whole)["description"]


def test_a_flipped_weight_is_noticed(written: Path, content: dict[str, Any], tmp_path: Path) -> None:
    # torch.load itself does not look at the checksums of its archive
    weights = max(content["network"].values(), key=torch.Tensor.numel).numpy().tobytes()
    raw = bytearray(written.read_bytes())
    raw[raw.index(weights) + len(weights) // 2] ^= 1
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(raw)
    torch.load(damaged, weights_only=True)
    with pytest.raises(DamagedCheckpointError, match="checksum"):
        read_checkpoint(damaged)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_noticed(written: Path, tmp_path: Path, part: float) -> None:
    raw = written.read_bytes()
    (tmp_path / "cut.pt").write_bytes(raw[: int(len(raw) * part)])
    with pytest.raises(DamagedCheckpointError, match="copy it again"):
        read_checkpoint(tmp_path / "cut.pt")


def test_released_weights_are_the_network_and_its_description(
    written: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    path = write_release(written, tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["description"])["patients"]["training"] == ["p1"]
    assert_same_weights(content["network"], dict(load_network(path).state_dict()))
    assert load_network(path).config == load_network(written).config
    again = read_checkpoint(write_release(path, tmp_path / "again.safetensors"))  # its header's order may differ
    assert again["description"] == read_checkpoint(path)["description"]
    assert_same_weights(again["network"], read_checkpoint(path)["network"])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        write_release(written, tmp_path / "model.bin")


def test_facts_are_plain_and_complete(written: Path, tmp_path: Path) -> None:
    facts = json.loads(json.dumps(checkpoint_facts(written)))
    assert facts["config"]["geometry"]["grid"]["size"] == 8 and facts["hu_window"] == [-1024.0, 3071.0]
    assert (
        facts["patients"]["training"] == ["p1"] and facts["epoch"] == 3 and {"torch", "git"} <= set(facts["versions"])
    )
    assert not facts["resumable"]


def test_the_folder_is_synced_after_the_rename(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    sync, rename = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        happened.append("folder" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        sync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        happened.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    write_checkpoint(tmp_path / "last.pt", content)
    assert happened == ["file", "rename", "folder"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with file_system(tmp_path / "disk", mebibytes=1) as folder:
        yield folder


def test_a_full_disk_leaves_the_checkpoint_before(content: dict[str, Any], small_disk: Path) -> None:
    path = write_checkpoint(small_disk / "last.pt", content)
    before = path.read_bytes()
    (small_disk / "other").write_bytes(bytes(2**20 - 2 * len(before) - 2**14))
    with pytest.raises(InputError, match=r"disk is full.*free space"):
        write_checkpoint(path, {**content, "ballast": torch.rand(2**18)})
    assert path.read_bytes() == before and {p.name for p in small_disk.iterdir()} == {"last.pt", "other"}
    (small_disk / "other").write_bytes(bytes(2**20 - len(before) - 2**14))
    with pytest.raises(InputError, match="disk is full"):
        write_release(path, small_disk / "model.safetensors")


def test_a_limit_on_file_sizes_is_a_full_disk(content: dict[str, Any], tmp_path: Path) -> None:
    """Where nothing can be mounted: the limit on the size of a file fails in the same way."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(InputError, match="the disk is full"):
            write_checkpoint(tmp_path / "last.pt", content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.iterdir())


def test_a_read_only_file_system_says_so(content: dict[str, Any], small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match="read-only"):
        write_checkpoint(small_disk / "last.pt", content)


def test_faults_are_found_behind_what_they_cause() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as error:
        assert "/disk/file" in str(explain_fault(error))
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert "num_workers" in str(explain_fault(died))
    assert "loader_timeout" in str(explain_fault(RuntimeError("DataLoader timed out after 5 seconds")))
    assert explain_fault(RuntimeError("anything else")) is None and explain_fault(None) is None
