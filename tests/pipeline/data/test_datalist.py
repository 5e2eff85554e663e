"""Data lists: which patients, in which part."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drr2ct.pipeline.data.datalist import (
    PARTS,
    dataset_geometry,
    load_datalist,
    radiograph_items,
    split_patients,
    write_datalist,
)
from drr2ct.pipeline.data.patients import find_patients
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.files import chest, write_dicom_series, write_nifti


@given(st.integers(3, 200), st.integers(0, 5), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.2, 0.2, 0.6)]))
def test_a_split_is_a_partition_and_seeded(count: int, seed: int, fractions: tuple[float, float, float]) -> None:
    patients = [{"patient": f"p{i}"} for i in range(count)]
    parts = split_patients(patients, fractions, seed)
    assert tuple(parts) == PARTS
    names = [item["patient"] for items in parts.values() for item in items]
    assert sorted(names) == sorted(item["patient"] for item in patients)
    assert all(parts.values())
    assert parts == split_patients(patients, fractions, seed)
    if count > 30:
        assert len(parts["test"]) == pytest.approx(fractions[2] * count, abs=1)
        assert parts != split_patients(patients, fractions, seed + 1)


def test_patients_are_found_in_every_form(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a" / "a.nii.gz", chest())
    write_dicom_series(tmp_path / "b" / "series", chest().round(), write_affine())
    for view in ("pa", "lat"):
        (tmp_path / "a" / f"a_{view}_drr.png").touch()
    (tmp_path / "b" / "b_pa_drr.png").touch()  # one view is not enough
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").touch()
    found = find_patients(tmp_path)
    assert [item["patient"] for item in found] == ["a", "b"]
    assert [Path(path).name for path in found[0]["image"]] == ["a_pa_drr.png", "a_lat_drr.png"]
    assert "image" not in found[1] and Path(found[1]["label"]).name == "series"


def write_affine():
    import numpy as np

    return np.array([[-10.0, 0, 0, 160], [0, -11, 0, 170], [0, 0, 12, 40], [0, 0, 0, 1]])


def test_a_written_list_reads_back_and_moves_with_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a", "b", "c"):
        write_nifti(root / name / f"{name}.nii.gz", chest())
    parts = split_patients(find_patients(root))
    write_datalist(root, parts, "test")
    for part in PARTS:
        assert load_datalist(root, part) == parts[part]
    moved = root.rename(tmp_path / "moved")
    assert all(Path(item["label"]).is_relative_to(moved) for part in PARTS for item in load_datalist(moved, part))


def test_stored_geometry_decides_the_views_and_not_the_voxels(tmp_path: Path) -> None:
    BiplanarGeometry.from_angles(VolumeGrid(64, 300), (10, 80), detector_size=96).save(tmp_path / "geometry.json")
    geometry = dataset_geometry(tmp_path, size=32, fov_mm=360, detector_size=512)
    assert geometry.grid == VolumeGrid(32, 300) and geometry.detector_size == (96, 96)
    assert [view.gantry_angle_deg for view in geometry.views] == [10, 80]
    assert dataset_geometry(None, 32, 200, 64).grid == VolumeGrid(32, 200)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "either"),
        ({"radiographs": ["a.png", "b.png"], "patients_dir": "."}, "either"),
        ({"radiographs": ["a.png"]}, "2 radiographs are needed"),
        ({"patients_dir": "/nowhere"}, "does not exist"),
    ],
)
def test_what_cannot_be_reconstructed(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        radiograph_items(["pa", "lat"], **arguments)  # type: ignore[arg-type]
