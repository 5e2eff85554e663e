"""Data lists: which patients, in which part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from drr2ct.pipeline.data.datalist import dataset_geometry, load_datalist, radiograph_items, write_datalist
from drr2ct.pipeline.data.patients import find_patients
from drr2ct.pipeline.data.splitting import PARTS, split_patients, split_together
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCTd
from tests.files import chest, write_dicom_series, write_nifti
from tests.pipeline.data.dicom_files import SHAPE, write_series


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


@pytest.mark.parametrize(
    ("fractions", "counts"), [((0, 0, 1), (0, 0, 1)), ((1, 0, 0), (1, 0, 0)), ((0.5, 0.5, 0), (2, 2, 0))]
)
def test_a_part_may_be_empty(fractions: tuple[float, ...], counts: tuple[int, ...]) -> None:
    patients = [{"patient": f"p{i}"} for i in range(sum(counts))]
    parts = split_patients(patients, fractions)
    assert tuple(len(parts[part]) for part in PARTS) == counts


def test_what_needs_an_empty_part_says_so(tmp_path: Path) -> None:
    for i in range(2):
        write_nifti(tmp_path / f"p{i}" / f"p{i}.nii.gz", chest(seed=i))
    assert len(load_datalist(tmp_path, "test", fractions=(0, 0, 1))) == 2
    with pytest.raises(InputError, match="leaves no patients for training"):
        load_datalist(tmp_path, "training", fractions=(0, 0, 1))


def test_all_patients_need_no_split(tmp_path: Path) -> None:
    paths = [write_nifti(tmp_path / name / f"{name}.nii.gz", chest(seed=i)) for i, name in enumerate("ab")]
    with pytest.raises(InputError, match=r"2 patients are too few .*; 3 or more are needed, or part all, which"):
        load_datalist(tmp_path, "test")
    found = load_datalist(tmp_path, "all")
    assert [(item["patient"], item["label"]) for item in found] == [("a", str(paths[0])), ("b", str(paths[1]))]
    listed = {"training": [{"label": "b/b.nii.gz"}], "test": [{"label": "a/a.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    assert [item["patient"] for item in load_datalist(tmp_path, "all")] == ["b", "a"]


def test_a_list_of_the_decathlon(tmp_path: Path) -> None:
    for folder, name in (("imagesTr", "lung_001"), ("labelsTr", "lung_001"), ("imagesTs", "lung_002")):
        write_nifti(tmp_path / folder / f"{name}.nii.gz", chest())
    training = [{"image": "./imagesTr/lung_001.nii.gz", "label": "./labelsTr/lung_001.nii.gz"}]
    listed = {"training": training, "test": ["./imagesTs/lung_002.nii.gz"]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    (item,) = load_datalist(tmp_path, "training")
    assert item["patient"] == "lung_001" and Path(item["label"]) == tmp_path / "imagesTr" / "lung_001.nii.gz"
    assert load_datalist(tmp_path, "test")[0]["patient"] == "lung_002"


def test_every_way_to_keep_a_series_is_read(tmp_path: Path) -> None:
    """Suffixes of scanners and CDs, none, slices in the patient's folder, two series, side files of macOS."""
    for name, ending in (("upper", ".DCM"), ("siemens", ".IMA"), ("none", "")):
        for path in write_series(tmp_path / name / "CT", patient=name).iterdir():
            path.rename(path.with_suffix(ending))
    write_series(tmp_path / "direct", patient="direct")
    write_series(tmp_path / "mac" / "CT", patient="mac")
    (tmp_path / "mac" / "__MACOSX").mkdir()
    (tmp_path / "mac" / "__MACOSX" / "._1.dcm").write_bytes(b"\0\5\x16\7" * 40)
    write_nifti(tmp_path / "misnamed" / "ct.nii.gz", chest())
    write_series(tmp_path / "two" / "CT1", patient="two", series="1")
    write_series(tmp_path / "two" / "CT2", chest(SHAPE)[:, :, :9], patient="two", series="2")
    items = find_patients(tmp_path)
    expected = {"direct", "mac", "misnamed", "none", "siemens", "two", "upper"}
    assert {item["patient"] for item in items} == expected
    load = LoadCTd("label")
    shapes = {item["patient"]: tuple(load(item)["label"].shape[1:]) for item in items}
    assert shapes.pop("misnamed") == chest().shape
    assert set(shapes.values()) == {SHAPE}


def test_a_folder_without_a_usable_ct_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_nifti(tmp_path / "a" / "a.nii.gz", chest())
    write_nifti(tmp_path / "b" / "b.nii.gz", chest()[:, :, :2])
    with pytest.raises(InputError, match=r"patient b has no CT that can be used \(b.nii.gz: only 2 slices"):
        find_patients(tmp_path)
    assert [item["patient"] for item in find_patients(tmp_path, on_bad_sample="skip")] == ["a"]
    assert "patient b left out" in caplog.text


def test_folders_of_one_patient_id_and_copies_stay_in_one_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """a and c have one ID, e is a copy of d; and an item may belong to both."""
    for seed, (folder, patient) in enumerate({"a": "1", "b": "2", "c": "1"}.items()):
        write_series(tmp_path / folder, chest(SHAPE, seed=seed)[::-1, ::-1], patient=patient, study=str(seed + 1))
    write_nifti(tmp_path / "d" / "d.nii.gz", chest(SHAPE, seed=5))
    (tmp_path / "e").mkdir()
    shutil.copy(tmp_path / "d" / "d.nii.gz", tmp_path / "e" / "e.nii.gz")
    patients = find_patients(tmp_path)
    assert {item["patient"]: item.get("group") for item in patients} == {
        **dict.fromkeys("ac", "1"),
        **dict.fromkeys("bde"),
    }
    for seed in range(4):
        parts = split_together(patients, (0.5, 0.25, 0.25), seed)
        home = {item["patient"]: part for part, items in parts.items() for item in items}
        assert len(home) == 5 and home["a"] == home["c"] and home["d"] == home["e"] and all(parts.values())
    assert "c has the Patient ID 1 too, as a; both stay in one part" in caplog.messages
    assert "e is the same CT as d; both stay in one part" in caplog.messages
    joined = [{**item, "group": "1"} if item["patient"] == "d" else item for item in patients]
    home = {i["patient"]: part for part, items in split_together(joined, (0.5, 0.5, 0), 0).items() for i in items}
    assert len({home[name] for name in "acde"}) == 1 and home["b"] != home["a"]
    # too few to keep them together: still a split
    assert all(split_together([p for p in patients if p["patient"] in "abc"], (0.5, 0.25, 0.25), 0).values())


def test_one_id_in_all_folders_is_an_anonymisers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(3):
        write_series(tmp_path / str(seed), chest(SHAPE, seed=seed)[::-1, ::-1], patient="ANON", study=str(seed + 1))
    assert not any("group" in item for item in find_patients(tmp_path))
    said = "all 3 folders of DICOM have the Patient ID ANON; each is taken for a patient of its own"
    assert said in caplog.messages


def test_of_several_passes_one_is_used_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):

        def change(data: pydicom.Dataset, k: int, number: int = number) -> None:
            data.AcquisitionNumber, data.SOPInstanceUID = number, generate_uid()
            data.ImagePositionPatient = [-180.0, -160.0, 5.0 * number + 10 * k]

        write_series(tmp_path / "p" / str(number), change=change)
    (patient,) = find_patients(tmp_path)
    assert len(patient["slices"]) == SHAPE[2] and Path(patient["label"]).name == "1"
    assert "patient p: Acquisition Number 1: one of 2 passes that share a series" in caplog.messages
    assert "patient p: not used is Acquisition Number 2: one of 2 passes that share a series" in caplog.messages


def test_capitals_do_not_matter_and_folders_without_radiographs_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a/PA.NII.GZ", "a/Lat.nii.gz", "b/b_PA_drr.nii.gz", "c/frontal.nii.gz", "d/notes.txt", ".hidden/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    items = radiograph_items(["pa", "lat"], patients_dir=tmp_path)
    a, b = tmp_path / "a", tmp_path / "b"
    assert items[0] == {"patient": "a", "image": [str(a / "PA.NII.GZ"), str(a / "Lat.nii.gz")]}
    assert items[1] == {"patient": "b", "image": [str(b / "b_PA_drr.nii.gz"), str(b / "lat.*")]}
    assert len(items) == 2 and "<patient>_pa_drr.*: c, d" in caplog.text
