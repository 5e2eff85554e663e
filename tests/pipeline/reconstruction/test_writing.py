"""What is written for one patient, from values alone: no engine, no network, no checkpoint of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from rich.console import Console
from torch import Tensor

from drr2ct.pipeline.reconstruction.job import ReconstructionJob
from drr2ct.pipeline.reconstruction.result import Result, make_result
from drr2ct.pipeline.reconstruction.writing import write_result
from drr2ct.pipeline.volumes.placing import place_on_grid
from drr2ct.transforms import BiplanarGeometry, VolumeGrid, render_drr
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.validation import InputError

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16, 320.0), detector_size=24)
DESCRIPTION = {"name": "cascade64", "mode": "cube", "epoch": 3}


def job_of(folder: Path, description: dict[str, Any] | None = None, **more: Any) -> ReconstructionJob:
    """One patient whose radiographs and weights are any files: they are hashed, not read."""
    files = [folder / name for name in ("pa.png", "lat.png", "weights.pt")]
    for path in files:
        path.write_bytes(path.name.encode())
    items = [{"patient": "jane", "image": files[:2]}]
    quiet = Console(quiet=True)
    return ReconstructionJob(items, GEOMETRY, files[2], description or DESCRIPTION, console=quiet, **more)


def prediction() -> Tensor:
    """A bright corner in a block of tissue: right (R), front (A) and, as index 0 is the head, at the top."""
    values = torch.zeros(1, 16, 16, 16)
    values[:, 3:13, 3:13, 3:13] = 0.25
    values[:, 12, 12, 3] = 0.9
    return values


def result_of(job: ReconstructionJob, below: float | None = None, above: float = 0.2) -> Result:
    """With bounds if it is said how far they are."""
    given = render_drr(place_on_grid(prediction(), GEOMETRY), GEOMETRY)
    output = prediction()
    if below is not None:
        output = torch.cat([output, output - below, output + above])
    everywhere = torch.ones_like(given, dtype=torch.bool)
    return make_result(job, "jane", output, given / LINE_INTEGRAL_SCALE, everywhere, ["The X-rays were read aloud."])


def test_only_what_the_radiographs_cover_is_judged(tmp_path: Path) -> None:
    job = job_of(tmp_path, output=tmp_path / "ct.nii.gz")
    whole = result_of(job)
    covered = torch.ones_like(whole.given, dtype=torch.bool)
    covered[:, :5] = covered[:, :, -4:] = False
    extended = torch.where(covered, whole.given, 9.0) / LINE_INTEGRAL_SCALE
    result = make_result(job, "jane", prediction(), extended, covered)
    assert all(abs(error) < 1e-5 for error in result.reprojection.values())
    assert result.radiographs_mean == pytest.approx(float(whole.given[covered].mean()))


@pytest.mark.parametrize(("brighter", "steps"), [(0.95, 1), (0.5, 0)])
def test_a_volume_is_fitted_where_the_radiographs_agree(tmp_path: Path, brighter: float, steps: int) -> None:
    job = job_of(tmp_path, output=tmp_path / "ct.nii.gz", consistency_steps=1)
    given = render_drr(place_on_grid(prediction(), GEOMETRY), GEOMETRY) / LINE_INTEGRAL_SCALE
    output = torch.cat([prediction() * brighter, prediction() * brighter - 0.1, prediction() * brighter + 0.1])
    result = make_result(job, "jane", output, given, torch.ones_like(given, dtype=torch.bool))
    plain = make_result(job_of(tmp_path), "jane", output, given, torch.ones_like(given, dtype=torch.bool))
    assert result.fit is not None and result.fit.steps == steps and plain.fit is None
    assert torch.equal(result.on_grid, plain.on_grid) == (steps == 0)
    assert result.reprojection == plain.reprojection, "of what the network gave"
    assert result.fit.sentence() in result.assumptions
    assert ("before it was fitted" in result.reprojection_sentence) == (steps > 0)
    assert [item["patient"] for item in job.pending] == ["jane"]
    write_result(job, result, "fp32")
    record = json.loads((tmp_path / "ct.json").read_text())
    expected = {"steps": steps, "difference": result.fit.difference, "tone_matched": False, "beyond": 0.0}
    assert record["consistency"] == expected


def test_a_volume_and_the_record_that_finishes_it(tmp_path: Path) -> None:
    job = job_of(tmp_path, output=tmp_path / "ct.nii.gz", settings={"intensity": "line_integral"})
    assert [item["patient"] for item in job.pending] == ["jane"]
    result = result_of(job)
    assert write_result(job, result, "fp32") == tmp_path / "ct.nii.gz"
    image = nib.load(tmp_path / "ct.nii.gz")
    record = json.loads((tmp_path / "ct.json").read_text())
    brightest = np.unravel_index(np.asarray(image.dataobj).argmax(), image.shape)
    assert np.allclose((image.affine @ [*brightest, 1])[:3], (GEOMETRY.grid.affine() @ [12, 12, 3, 1])[:3])
    assert record["reprojection_mae"] < 0.02, "the radiographs were the volume's own"
    assert record["assumptions"][0] == "The X-rays were read aloud." and record["precision"] == "fp32"
    assert record["radiographs"] == [str(tmp_path / name) for name in ("pa.png", "lat.png")]
    assert record["key"]["settings"]["intensity"] == "line_integral" and len(record["affine"]) == 4
    assert sorted(path.name for path in tmp_path.glob("ct*")) == ["ct.json", "ct.nii.gz"]
    assert job_of(tmp_path, output=tmp_path / "ct.nii.gz", settings={"intensity": "line_integral"}).pending == []
    with pytest.raises(InputError, match="made with other settings"):
        _ = job_of(tmp_path, output=tmp_path / "ct.nii.gz", settings={"intensity": "display"}).pending


@pytest.mark.parametrize(("format", "name"), [("nii.gz", "jane_ct.nii.gz"), ("nrrd", "jane_ct.nrrd")])
def test_a_folder_for_the_patient_has_a_picture_and_no_page(tmp_path: Path, format: str, name: str) -> None:
    job = job_of(tmp_path, output_dir=tmp_path / "out", format=format)
    assert job.pending
    write_result(job, result_of(job), "fp32")
    assert sorted(path.name for path in (tmp_path / "out" / "jane").iterdir()) == ["jane_ct.json", name, "jane_ct.png"]


def test_the_page_is_written_by_what_the_job_was_given(tmp_path: Path) -> None:
    pages = []

    def write_page(path: Path, volume: MetaTensor, given: Tensor, geometry: BiplanarGeometry, record: Any) -> None:
        pages.append((volume, given, geometry, record["patient"]))
        path.write_text("a page")

    job = job_of(tmp_path, output=tmp_path / "ct.nrrd", preview=True, write_page=write_page, size=24)
    assert job.pending
    result = result_of(job)
    write_result(job, result, "fp32")
    assert (tmp_path / "ct.html").read_text() == "a page" and (tmp_path / "ct.png").stat().st_size > 1000
    ((volume, given, geometry, patient),) = pages
    assert volume.shape == (1, 16, 16, 16), "the page shows the network's own grid, whatever size is written"
    assert torch.equal(given, result.given) and geometry == GEOMETRY and patient == "jane"
    assert json.loads((tmp_path / "ct.json").read_text())["shape"] == [24, 24, 24]


def test_a_preview_without_a_page_writer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing that writes the page; give it write_page"):
        job_of(tmp_path, output=tmp_path / "ct.nii.gz", preview=True)


def test_an_interrupted_patient_is_unfinished(tmp_path: Path) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    job = job_of(tmp_path, output_dir=tmp_path / "out", preview=True, write_page=full)
    assert job.pending
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        write_result(job, result_of(job), "fp32")
    assert not list((tmp_path / "out").rglob("*.json")), "the record comes last"
    again = job_of(tmp_path, output_dir=tmp_path / "out")
    assert again.pending, "so it is done again"


def test_what_a_network_for_stretched_cts_cannot_know_is_said(tmp_path: Path) -> None:
    job = job_of(tmp_path, {**DESCRIPTION, "mode": "resize"}, output=tmp_path / "ct.nii.gz")
    assert any("is nominal" in text for text in result_of(job).assumptions)
    assert not any("is nominal" in text for text in result_of(job_of(tmp_path)).assumptions)


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.mha", "ct_dicom"])
def test_bounds_and_doubt_lie_beside_any_format(tmp_path: Path, name: str) -> None:
    job = job_of(tmp_path, output=tmp_path / name)
    assert job.pending
    result = result_of(job, below=0.1)
    assert any("not calibrated" in text for text in result.warnings)
    write_result(job, result, "fp32")
    stem = name.split(".")[0]
    bounds, doubt = (nib.load(tmp_path / f"{stem}_{what}.nii.gz") for what in ("interval", "doubt"))
    assert bounds.shape == (16, 16, 16, 2) and doubt.shape == (16, 16, 16)
    assert np.allclose(bounds.affine, GEOMETRY.grid.affine()) and np.allclose(doubt.affine, bounds.affine)
    low, high = np.moveaxis(np.asarray(bounds.dataobj).astype(int), -1, 0)
    hu = result.volume.numpy()[0]
    assert (low <= hu + 1).all() and (hu <= high + 1).all()
    inside = (5, 6, 7)
    assert high[inside] - hu[inside] == pytest.approx(0.2 * 4095, abs=1) and hu[inside] - low[inside] > 400
    assert np.asarray(doubt.dataobj)[inside] == pytest.approx(0.15 * 4095, abs=1)
    record = json.loads((tmp_path / f"{stem}.json").read_text())
    assert record["interval"] == {
        "bounds": f"{stem}_interval.nii.gz", "doubt": f"{stem}_doubt.nii.gz", "level": 0.9, "calibrated_on": 0,
    }  # fmt: skip


def test_how_many_patients_bounds_rest_on_is_said(tmp_path: Path) -> None:
    calibrated = {**DESCRIPTION, "interval": {"level": 0.9, "patients": ["a", "b"]}}
    pages: list[MetaTensor] = []

    def write_page(path: Path, *args: Any, doubt: MetaTensor) -> None:
        pages.append(doubt)
        path.write_text("a page")

    job = job_of(tmp_path, calibrated, output=tmp_path / "ct.nii.gz", preview=True, write_page=write_page, size=24)
    assert job.pending
    result = result_of(job, below=0.1)
    assert any("for 90% of the body's voxels" in text and "the 2 on which" in text for text in result.assumptions)
    write_result(job, result, "fp32")
    assert json.loads((tmp_path / "ct.json").read_text())["interval"]["calibrated_on"] == 2
    assert pages[0].shape == (1, 16, 16, 16), "on the network's own grid, whatever size is written"
    assert nib.load(tmp_path / "ct_interval.nii.gz").shape == (24, 24, 24, 2)
