"""Who is the patient in public data sets, as their documentation lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drr2ct.pipeline.data.candidates import find_candidates
from drr2ct.pipeline.data.patients import read_folder
from tests.files import chest, write_nifti, write_with_itk
from tests.pipeline.data.dicom_files import SHAPE, write_series

AFFINE = np.diag([10.0, 10, 10, 1])

# layout: files of CTs and of other things, and the patients with the CT that is used
LAYOUTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "TotalSegmentator": (
        [f"s000{i}/{name}.nii.gz" for i in range(3) for name in ("ct", "segmentations/liver", "segmentations/heart")],
        {f"s000{i}": f"s000{i}/ct.nii.gz" for i in range(3)},
    ),
    "KiTS": (
        [f"case_0000{i}/{name}.nii.gz" for i in range(3) for name in ("imaging", "segmentation")],
        {f"case_0000{i}": f"case_0000{i}/imaging.nii.gz" for i in range(3)},
    ),
    "LiTS": (
        [f"batch/{name}-{i}.nii" for i in range(3) for name in ("volume", "segmentation")],
        {f"volume-{i}": f"batch/volume-{i}.nii" for i in range(3)},
    ),
    "autoPET": (
        [
            f"PETCT_{i}a/03-23-2003-NA-PET-CT/{name}.nii.gz"
            for i in range(3)
            for name in ("CT", "CTres", "SUV", "PET", "SEG")
        ],
        {f"PETCT_{i}a": f"PETCT_{i}a/03-23-2003-NA-PET-CT/CT.nii.gz" for i in range(3)},
    ),
    "autoPET for nnU-Net": (
        [f"imagesTr/fdg_{i}a_03-23-2003_{channel}.nii.gz" for i in range(3) for channel in ("0000", "0001")]
        + [f"labelsTr/fdg_{i}a_03-23-2003.nii.gz" for i in range(3)],
        {f"fdg_{i}a_03-23-2003": f"imagesTr/fdg_{i}a_03-23-2003_0000.nii.gz" for i in range(3)},
    ),
    "patients counted from zero": (
        [f"imagesTr/site2_000{i}.nii.gz" for i in range(4)],
        {f"site2_000{i}": f"imagesTr/site2_000{i}.nii.gz" for i in range(4)},
    ),
    "COVID-19-CT-Seg": (
        [f"COVID-19-CT-Seg_20cases/coronacases_00{i}.nii.gz" for i in range(3)]
        + [f"{folder}/coronacases_00{i}.nii.gz" for i in range(3) for folder in ("Lung_Mask", "Infection_Mask")],
        {f"coronacases_00{i}": f"COVID-19-CT-Seg_20cases/coronacases_00{i}.nii.gz" for i in range(3)},
    ),
    "SynthRAD": (
        [f"pelvis/1PA00{i}/{name}.nii.gz" for i in range(3) for name in ("ct", "mr", "cbct", "mask")],
        {f"1PA00{i}": f"pelvis/1PA00{i}/ct.nii.gz" for i in range(3)},
    ),
    "AMOS": (
        [f"{folder}/amos_000{i}.nii.gz" for i in range(3) for folder in ("imagesTr", "labelsTr")],
        {f"amos_000{i}": f"imagesTr/amos_000{i}.nii.gz" for i in range(3)},
    ),
    "VerSe": (
        [f"rawdata/sub-verse00{i}/sub-verse00{i}_ct.nii.gz" for i in range(3)]
        + [f"derivatives/sub-verse00{i}/sub-verse00{i}_seg-vert_msk.nii.gz" for i in range(3)],
        {f"sub-verse00{i}": f"rawdata/sub-verse00{i}/sub-verse00{i}_ct.nii.gz" for i in range(3)},
    ),
    "Decathlon": (
        [f"{folder}/lung_00{i}.nii.gz" for i in range(3) for folder in ("imagesTr", "labelsTr")],
        {f"lung_00{i}": f"imagesTr/lung_00{i}.nii.gz" for i in range(3)},
    ),
    "CT-RATE": (
        [f"train/train_{i}/train_{i}_{scan}/train_{i}_{scan}_1.nii.gz" for i in range(2) for scan in "ab"],
        {f"train_{i}": f"train/train_{i}/train_{i}_a/train_{i}_a_1.nii.gz" for i in range(2)},
    ),
    "BTCV": (
        [f"{folder}/{folder}000{i}.nii.gz" for i in range(3) for folder in ("img", "label")],
        {f"img000{i}": f"img/img000{i}.nii.gz" for i in range(3)},
    ),
    "SynthRAD, CBCT beside CT": (
        [f"1THA{i}/{name}.nii.gz" for i in range(3) for name in ("ct", "cbct", "mask")],
        {f"1THA{i}": f"1THA{i}/ct.nii.gz" for i in range(3)},
    ),
    "COVID-19 CT segmentation": (
        [f"coronacases_00{i}.nii.gz" for i in range(3)],
        {f"coronacases_00{i}": f"coronacases_00{i}.nii.gz" for i in range(3)},
    ),
    "two folders of equal files": (
        ["scan/p7.nii.gz", "scan/p8.nii.gz", "masks/p7.nii.gz"],
        {"p7": "scan/p7.nii.gz", "p8": "scan/p8.nii.gz"},
    ),
    "a collection called after PET": (
        [f"fdg-pet-04{i}/fdg-pet-04{i}.nii.gz" for i in range(2)],
        {f"fdg-pet-04{i}": f"fdg-pet-04{i}/fdg-pet-04{i}.nii.gz" for i in range(2)},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_public_layouts(tmp_path: Path, layout: str) -> None:
    files, expected = LAYOUTS[layout]
    for name in files:
        write_nifti(tmp_path / name, chest((12, 12, 12)))
    used: dict[str, str] = {}
    for candidate in find_candidates(tmp_path):
        if not candidate.reason:
            used.setdefault(candidate.patient, str(Path(candidate.files[0]).relative_to(tmp_path)))
    assert used == expected
    # the reader of train sees the same patients
    items, left_out = read_folder(tmp_path, ["pa", "lat"])
    found = {item["patient"]: str(Path(item["label"]).relative_to(tmp_path)) for item in items}
    assert found == expected and left_out == []


def test_luna16(tmp_path: Path) -> None:
    for i in range(3):
        for folder in ("subset0", "seg-lungs-LUNA16"):
            write_with_itk(tmp_path / folder / f"1.3.6.1.4.{i}.mhd", chest((12, 12, 12)), AFFINE)
    usable = {c.patient for c in find_candidates(tmp_path) if not c.reason}
    assert usable == {f"1.3.6.1.4.{i}" for i in range(3)}


def test_lidc_as_tcia_gives_it(tmp_path: Path) -> None:
    for i in range(2):
        folder = tmp_path / "LIDC-IDRI" / f"LIDC-IDRI-000{i}" / "01-01-2000-NA-NA-30178" / "3000566.000000-NA-03192"
        write_series(folder, patient=f"LIDC-IDRI-000{i}")
    expected = {f"LIDC-IDRI-000{i}" for i in range(2)}
    assert {c.patient for c in find_candidates(tmp_path)} == expected
    assert {item["patient"] for item in read_folder(tmp_path, ["pa", "lat"])[0]} == expected


def test_one_anonymised_id_is_taken_apart_by_a_pattern(tmp_path: Path) -> None:
    for i in range(3):
        write_series(tmp_path / f"subject-{i}" / "CT", patient="ANONYMOUS", study=str(i + 1))
    assert {c.patient for c in find_candidates(tmp_path)} == {"ANONYMOUS"}
    assert {c.patient for c in find_candidates(tmp_path, r"subject-\d+")} == {f"subject-{i}" for i in range(3)}


def test_people_with_one_series_uid_are_taken_apart_by_a_pattern_or_their_folders(tmp_path: Path) -> None:
    for i in range(3):
        write_series(tmp_path / f"subject-{i}" / "CT", chest(SHAPE, seed=i), patient="ANONYMOUS")
    joined = find_candidates(tmp_path)
    assert len(joined) == 1 and "--patient-pattern" in joined[0].reason
    found = find_candidates(tmp_path, r"subject-\d+")
    assert [(c.patient, c.slices, c.reason) for c in found] == [(f"subject-{i}", SHAPE[2], "") for i in range(3)]
    items, left_out = read_folder(tmp_path, ["pa", "lat"])
    assert [item["patient"] for item in items] == [f"subject-{i}" for i in range(3)] and left_out == []


def test_one_stack_in_two_folders_is_one(tmp_path: Path) -> None:
    """As archives do that put so many files into a folder, whatever is in them."""
    for k, path in enumerate(sorted(write_series(tmp_path / "x", patient="P1").iterdir())):
        (tmp_path / f"DIR{k % 2}").mkdir(exist_ok=True)
        path.rename(tmp_path / f"DIR{k % 2}" / path.name)
    (tmp_path / "x").rmdir()
    items, left_out = read_folder(tmp_path, ["pa", "lat"])
    assert [len(item["slices"]) for item in items] == [SHAPE[2]] and left_out == []


def test_slices_of_nobody_side_by_side_are_their_examinations(tmp_path: Path) -> None:
    """Two series of one examination are one person's."""
    for study in ("1", "2"):
        for series in ("1", "2"):
            for path in write_series(tmp_path / "x", patient="", study=study, series=series).iterdir():
                path.rename(tmp_path / f"{study}-{series}-{path.name}")
    (tmp_path / "x").rmdir()
    found = [(c.patient, c.study[1]) for c in find_candidates(tmp_path)]
    assert len(found) == 4 and len(set(found)) == 2 and all(patient == study for patient, study in found)


def test_what_is_no_patients_does_not_stop_a_training(tmp_path: Path) -> None:
    write_nifti(tmp_path / "p" / "p.nii.gz", chest((12, 12, 12)))
    for name in ("__MACOSX/p/._a.dcm", "__MACOSX/p/._p.nii.gz", "p/features.npy", "notes/ct.mgz", "p.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(200))
    items, left_out = read_folder(tmp_path, ["pa", "lat"])
    assert [item["patient"] for item in items] == ["p"] and left_out == []
