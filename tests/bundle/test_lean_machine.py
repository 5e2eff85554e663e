"""A machine that only trains: what reads DICOM and draws figures is not installed there, nor is RTK."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.data.datalist import dataset_geometry
from drr2ct.transforms import LoadCT, render_drr, write_radiograph
from tests.bundle.conftest import SMALL

MISSING = ("itk", "SimpleITK", "pydicom", "matplotlib")
ON_A_LEAN_MACHINE = """
import json, sys

sys.modules.update(dict.fromkeys({missing!r}))  # importing one of them says that there is no such module
"""
TRAINING = """
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle

run_bundle([bundle_file("configs/train.yaml")], json.loads(sys.argv[1]))
"""
RENDERING = """
import torch
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid

geometry = BiplanarGeometry.from_angles(VolumeGrid(8), detector_size=12)
radiographs = render_drr(torch.zeros(1, 8, 8, 8), geometry, geometry.grid.affine(), engine="auto")
assert radiographs.shape == (2, 12, 12) and radiographs.max() > 1
assert "torchio" not in sys.modules
"""


def run_there(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ON_A_LEAN_MACHINE.format(missing=MISSING) + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_trains_on_stored_radiographs(dataset: Path, tmp_path: Path) -> None:
    geometry = dataset_geometry(size=16, detector_size=24)
    for source in sorted(dataset.glob("p*/*.nii.gz")):
        folder = tmp_path / "data" / source.parent.name
        folder.mkdir(parents=True)
        (folder / source.name).symlink_to(source)
        for view, image in zip(geometry.views, render_drr(LoadCT()(source), geometry), strict=True):
            write_radiograph(folder / f"{folder.name}_{view.name}_drr.nii.gz", image, pitch_mm=view.pixel_pitch_mm)
    run = tmp_path / "run"
    settings = {**SMALL, "dataset_dir": str(tmp_path / "data"), "output_dir": str(run), "train#trainer#max_epochs": 1}
    done = run_there(TRAINING, json.dumps(settings))
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_checkpoint(run / "checkpoints" / "last.pt")["description"]["epoch"] == 1
    assert (run / "epochs.csv").exists() and list((run / "tensorboard").iterdir())


@pytest.mark.slow
def test_renders_without_what_reads_files() -> None:
    done = run_there(RENDERING)
    assert done.returncode == 0, done.stderr[-3000:]
