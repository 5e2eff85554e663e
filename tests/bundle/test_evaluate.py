"""Evaluation and inference through the bundle: tables, and volumes that other libraries read at the same place."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, run_bundle
from drr2ct.pipeline.volumes import files
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.pipeline.volumes.placing import place_on_grid
from drr2ct.transforms import files_to_samples, render_drr, write_radiograph
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.volume import LoadCT
from tests.bundle.conftest import train

RAS_TO_LPS = np.diag([-1.0, -1, 1])


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.pt"


def evaluate(dataset: Path, checkpoint: Path, output: Path, **overrides: object) -> Path:
    settings = {"dataset_dir": str(dataset), "checkpoint": str(checkpoint), "output_dir": str(output)}
    run_bundle([bundle_file("configs/evaluate.yaml")], {**settings, "precision": "fp32", "num_workers": 0, **overrides})
    return output


def test_predictions_lie_on_the_cts_own_voxels(dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = evaluate(dataset, checkpoint, tmp_path)
    items = load_datalist(dataset, "test")
    for item in items:
        made = nib.load(output / "predictions" / item["patient"] / f"{item['patient']}_ct.nii.gz")
        ct = nib.load(item["label"])
        assert made.shape == ct.shape
        np.testing.assert_allclose(made.affine, ct.affine, atol=1e-4)
        values = np.asarray(made.dataobj)
        assert values.min() >= -1024 and values.max() <= 3071


def test_patients_of_the_training_are_refused(dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as refused:
        evaluate(dataset, checkpoint, tmp_path, part="training")
    assert "was trained on 4 of the 4 patients" in str(find_input_error(refused.value))
    assert not (tmp_path / "patients.csv").exists()


def test_the_table_holds_each_patient_and_the_mean(dataset: Path, tmp_path: Path) -> None:
    split = {"split_fractions": [0.34, 0.33, 0.33]}
    checkpoint = (
        train(dataset, tmp_path / "run", **split, **{"train#trainer#max_epochs": 1}) / "checkpoints" / "last.pt"
    )
    output = evaluate(dataset, checkpoint, tmp_path, export_grid="none", **split)
    with (output / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    items = load_datalist(dataset, "test", fractions=split["split_fractions"])
    names = [item["patient"] for item in items]
    assert len(names) == 2
    assert [row["patient"] for row in rows] == [*names, "mean"]
    assert not (output / "predictions").exists()
    # by hand, for the first patient
    network = load_network(checkpoint)
    sample = files_to_samples(network.config.geometry)(items[0])
    with torch.no_grad():
        pred = network(sample["image"][None])[0]
    hu = [(volume.clamp(0, 1) * 4095 - 1024) for volume in (pred, sample["label"].as_tensor())]
    clipped = [volume.clamp(-1024, 1476) for volume in hu]
    mse = float(((clipped[0] - clipped[1]) ** 2).mean())
    assert float(rows[0]["psnr"]) == pytest.approx(10 * np.log10(2500**2 / mse), abs=1e-3)
    assert float(rows[0]["mae_hu"]) == pytest.approx(float((hu[0] - hu[1]).abs().mean()), rel=1e-4)
    for name in ("psnr", "ssim", "mae_hu"):
        assert float(rows[-1][name]) == pytest.approx(np.mean([float(row[name]) for row in rows[:-1]]), rel=1e-4)


@pytest.mark.parametrize("suffix", ["nii.gz", "png"])
def test_two_files_become_a_volume_in_patient_space(
    dataset: Path, checkpoint: Path, tmp_path: Path, suffix: str
) -> None:
    geometry = load_network(checkpoint).config.geometry
    item = load_datalist(dataset, "test")[0]
    radiographs = []
    for view, image in zip(geometry.views, render_drr(LoadCT()(item["label"]), geometry), strict=True):
        radiographs.append(str(tmp_path / f"{view.name}.{suffix}"))
        write_radiograph(radiographs[-1], image)
    run_bundle(
        [bundle_file("configs/inference.yaml")],
        {
            "checkpoint": str(checkpoint),
            "radiographs": radiographs,
            "output_dir": str(tmp_path / "out"),
            "patient": "jane",
        },
    )
    made = nib.load(tmp_path / "out" / "jane" / "jane_ct.nii.gz")
    np.testing.assert_allclose(made.affine, geometry.grid.affine(), atol=1e-4)
    assert nib.aff2axcodes(made.affine) == ("R", "A", "I")
    assert made.header.get_xyzt_units()[0] == "mm"
    record = json.loads((tmp_path / "out" / "jane" / "jane_ct.json").read_text())
    assert "not for clinical use" in record["note"]
    assert BiplanarGeometry.from_dict(record["geometry"]) == geometry
    assert (tmp_path / "out" / "jane" / "jane_ct.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "config.yaml").exists()


def test_a_folder_of_patients_is_reconstructed_in_one_go(dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    geometry = load_network(checkpoint).config.geometry
    for item in load_datalist(dataset, "training")[:2]:
        folder = tmp_path / "in" / item["patient"]
        folder.mkdir(parents=True)
        for view, image in zip(geometry.views, render_drr(LoadCT()(item["label"]), geometry), strict=True):
            write_radiograph(folder / f"{item['patient']}_{view.name}_drr.png", image)
    overrides = {
        "checkpoint": str(checkpoint),
        "dataset_dir": str(tmp_path / "in"),
        "output_dir": str(tmp_path / "out"),
    }
    run_bundle([bundle_file("configs/inference.yaml")], overrides)
    assert len(list((tmp_path / "out").glob("*/*_ct.nii.gz"))) == 2


@pytest.mark.parametrize("flip", [True, False])
def test_one_bright_voxel_per_octant_is_found_there_by_other_libraries(tmp_path: Path, flip: bool) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(8, 80, flip), detector_size=16)
    for octant in np.ndindex(2, 2, 2):
        index = tuple(2 if low == 0 else 6 for low in octant)
        prediction = torch.zeros(1, 8, 8, 8)
        prediction[(0, *index)] = 1.0
        point = (geometry.grid.affine() @ [*index, 1])[:3]
        path = write_volume(tmp_path / "v.nii.gz", place_on_grid(prediction, geometry))

        by_nibabel = nib.load(path)
        values = np.asarray(by_nibabel.dataobj)
        assert values.max() == 3071 and values.min() == -1024
        found = np.unravel_index(values.argmax(), values.shape)
        np.testing.assert_allclose((by_nibabel.affine @ [*found, 1])[:3], point, atol=1e-3)

        by_sitk = sitk.ReadImage(str(path))
        k, j, i = np.unravel_index(sitk.GetArrayFromImage(by_sitk).argmax(), (8, 8, 8))
        lps = by_sitk.TransformIndexToPhysicalPoint((int(i), int(j), int(k)))
        np.testing.assert_allclose(RAS_TO_LPS @ lps, point, atol=1e-3)

        by_itk = itk.imread(str(path))
        k, j, i = np.unravel_index(np.asarray(by_itk).argmax(), (8, 8, 8))
        lps = by_itk.TransformIndexToPhysicalPoint([int(i), int(j), int(k)])
        np.testing.assert_allclose(RAS_TO_LPS @ np.array(list(lps)), point, atol=1e-3)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, image: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "save_nifti", fail)
    with pytest.raises(OSError, match="No space"):
        write_volume(tmp_path / "v.nii.gz", MetaTensor(torch.zeros(1, 4, 4, 4)))
    assert not list(tmp_path.iterdir())
