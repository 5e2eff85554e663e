"""What inference.yaml and evaluate.yaml say once: how radiographs are read, and the checkpoint."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from drr2ct.pipeline.reconstruction import reconstruct
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.transforms import BiplanarGeometry, LoadCT, LoadRadiographsd, render_drr, write_radiograph


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that torch has loaded."""
    paths: list[Path] = []
    load = torch.load

    def noted(path: Any, *args: Any, **kwargs: Any) -> Any:
        paths.append(Path(path))
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", noted)
    return paths


@pytest.fixture
def pair(dataset: Path, run: Path, tmp_path: Path) -> list[Path]:
    """Radiographs of a patient for the small network."""
    description = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["description"]
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    images = render_drr(LoadCT()(dataset / "p0" / "p0.nii.gz"), geometry)
    paths = [tmp_path / f"{view.name}.nii.gz" for view in geometry.views]
    for path, view, image in zip(paths, geometry.views, images, strict=True):
        write_radiograph(path, image, pitch_mm=view.pixel_pitch_mm)
    return paths


def test_inference_reads_the_checkpoint_once(pair: list[Path], run: Path, tmp_path: Path, loaded: list[Path]) -> None:
    checkpoint = run / "checkpoints" / "last.pt"
    reconstruct(checkpoint, radiographs=pair, output=tmp_path / "ct.nii.gz", precision="fp32")
    assert loaded == [checkpoint]


def test_evaluation_reads_the_checkpoint_once(dataset: Path, run: Path, tmp_path: Path, loaded: list[Path]) -> None:
    checkpoint = run / "checkpoints" / "last.pt"
    settings = {"dataset_dir": str(dataset), "checkpoint": str(checkpoint), "output_dir": str(tmp_path)}
    run_bundle(
        [bundle_file("configs/evaluate.yaml")],
        {**settings, "precision": "fp32", "with_baselines": False, "export_grid": "none"},
    )
    assert loaded == [checkpoint]


def test_the_record_holds_every_option_of_reading(pair: list[Path], run: Path, tmp_path: Path) -> None:
    own = {"opposite_side": True, "pixel_spacing_mm": 19.5, "source_to_detector_mm": 1790.0}
    reconstruct(
        run / "checkpoints" / "last.pt",
        radiographs=pair,
        output=tmp_path / "ct.nii.gz",
        precision="fp32",
        check_order=False,
        **own,
    )
    settings = json.loads((tmp_path / "ct.json").read_text())["key"]["settings"]
    assert own.items() <= settings.items()
    reading = ConfigParser.load_config_file(str(bundle_file("configs/inference.yaml")))["reading"]
    assert reading.keys() <= settings.keys()
    assert all(value == f"@{name}" for name, value in reading.items()), "each stands above with its default"


def test_no_option_of_reading_is_forgotten() -> None:
    """Whatever an option of ``LoadRadiographsd`` is called in the configuration, the volume depends on it."""
    reading = ConfigParser.load_config_file(str(bundle_file("configs/inference.yaml")))["reading"]
    given = {"keys", "geometry", "statistics", "allow_missing_keys"}
    renamed = {"vertical_flip": "feet_first"}
    options = set(inspect.signature(LoadRadiographsd).parameters) - given
    assert {renamed.get(name, name) for name in options} == reading.keys()
