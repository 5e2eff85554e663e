"""A tiny data set and a run on it, shared by the tests of the bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drr2ct.pipeline import cli
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from tests.files import chest, write_nifti

SMALL: dict[str, Any] = {
    "network_name": "cascade64",
    "size": 16,
    "detector_size": 24,
    "num_workers": 0,
    "precision": "fp32",
    "batch_size": 2,
    "network_def#stages": [
        {"channels": 8, "scale": 1, "growth": 4, "layers": 2, "lift_channels": 4},
        {"channels": 8, "growth": 4, "layers": 2, "lift_channels": 4},
    ],
    "network_def#encoder_channels": [4, 8],
    "network_def#encoder_norm_groups": [2],
}
"""Overrides that make a step take milliseconds."""

TRAIN = "configs/train.yaml"


def train(dataset_dir: Path, output_dir: Path, **overrides: Any) -> Path:
    """Train the small network; returns the run's folder."""
    settings = {"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), "train#trainer#max_epochs": 2}
    run_bundle([bundle_file(TRAIN)], {**settings, **SMALL, **overrides})
    return output_dir


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients, CT only, on different voxels."""
    root = tmp_path_factory.mktemp("dataset")
    for i in range(6):
        affine = np.diag([-9.0 - 0.3 * i, -9, 10, 1])
        affine[:3, 3] = [150, 140 + 5 * i, -200]
        write_nifti(root / f"p{i}" / f"p{i}.nii.gz", chest((34, 30 + i, 26), seed=i), affine)
    return root


@pytest.fixture(scope="session")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of two epochs."""
    return train(dataset, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run ``drr2ct …`` in this process: its exit status and what it wrote to stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["drr2ct", *map(str, arguments)])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


def assert_one_sentence(result: tuple[int, str], says: str) -> None:
    status, message = result
    lines = [line for line in message.splitlines() if line.strip()]
    assert status == 2, message
    assert len(lines) == 1 and lines[0].startswith("drr2ct: "), message
    assert says in lines[0], message
