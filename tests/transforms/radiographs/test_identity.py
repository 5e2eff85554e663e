"""Whether two headers speak of one patient, of a chest, and of the view that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from drr2ct.transforms.radiographs.identity import view_kind
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.radiographs.scale import read_radiograph
from drr2ct.transforms.validation import InputError
from tests.transforms.radiographs.test_dicom import PAIR, RAMP
from tests.transforms.radiographs.test_loading import save_dicom

pytestmark = pytest.mark.filterwarnings("ignore:.*for VR CS")


def loaded(folder: Path, pa: dict[str, Any], lateral: dict[str, Any], **options: Any) -> tuple[str, str]:
    """Assumptions and warnings on a pair of files with such headers."""
    files = [
        save_dicom(folder / "pa.dcm", RAMP, 12, **{"ViewPosition": "PA", **pa}),
        save_dicom(folder / "lat.dcm", RAMP, 12, **{"ViewPosition": "LL", **lateral}),
    ]
    meta = LoadRadiographsd("image", PAIR, check_order=False, **options)({"image": files})["image"].meta
    return " ".join(meta["assumptions"]), " ".join(meta["warnings"])


def code(meaning: str) -> list[Dataset]:
    one = Dataset()
    one.CodeValue, one.CodingSchemeDesignator, one.CodeMeaning = "1", "SCT", meaning
    return [one]


@pytest.mark.parametrize(
    ("pa", "lateral"),
    [
        ({"PatientID": "123", "PatientName": "DOE^JANE"}, {"PatientID": "", "PatientName": "DOE^JANE"}),
        ({"PatientName": "DOE^JANE"}, {"PatientName": "Doe^Jane"}),
        ({"PatientName": "DOE^JANE"}, {"PatientName": "Doe, Jane"}),
        ({"PatientName": "DOE^JANE"}, {"PatientName": "DOE^JANE^^DR^"}),
        ({"PatientID": "A-12"}, {"PatientID": "a-12 "}),
        ({"PatientID": "A 12"}, {"PatientID": "A12"}),
        ({"PatientID": "A12", "PatientSex": "F"}, {"PatientID": "A12", "PatientSex": "O"}),
        ({"PatientID": "A12"}, {}),
    ],
)
def test_one_patient_written_in_two_ways(tmp_path: Path, pa: dict[str, Any], lateral: dict[str, Any]) -> None:
    said, warned = loaded(tmp_path, pa, lateral)
    assert "patient" not in warned and "two patients" not in said


@pytest.mark.parametrize(
    ("pa", "lateral", "what"),
    [
        ({"PatientID": "1", "PatientName": "A^B"}, {"PatientID": "2", "PatientName": "A^B"}, "Patient IDs"),
        ({"PatientID": "1", "PatientName": "A^B"}, {"PatientName": "C^D"}, "names"),
    ],
)
def test_two_patients_are_refused_by_what_differs(
    tmp_path: Path, pa: dict[str, Any], lateral: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError, match=f"are of two patients: their headers have different {what};"):
        loaded(tmp_path, pa, lateral)


def test_what_else_differs_is_a_warning(tmp_path: Path) -> None:
    one = {"PatientID": "X", "PatientName": "A^B", "PatientBirthDate": "19500101", "PatientSex": "M"}
    other = {"PatientID": "X", "PatientName": "C^D", "PatientBirthDate": "20010101", "PatientSex": "F"}
    warned = loaded(tmp_path, one, other)[1]
    assert "have one Patient ID but different names, birth dates and sexes: check that they are of one" in warned
    assert "lat.dcm have different sexes: check" in loaded(tmp_path, {"PatientSex": "M"}, {"PatientSex": "F"})[1]


def test_nothing_of_a_patient_stands_in_what_was_read(tmp_path: Path) -> None:
    said = {"PatientID": "4711", "PatientName": "DOE^JANE", "PatientBirthDate": "19500101"}
    facts = str(read_radiograph(save_dicom(tmp_path / "a.dcm", RAMP, 12, **said))[1])
    assert not any(text in facts for text in ("4711", "DOE", "doe", "1950"))


@pytest.mark.parametrize(
    ("position", "laterality", "kind"),
    [
        ("RT LAT", "", "RL"),
        ("LT LAT", "", "LL"),
        ("RLAT", "", "RL"),
        ("LLAT", "", "LL"),
        ("RTLATERAL", "", "RL"),
        ("LAT-LT", "", "LL"),
        ("LATR", "", "RL"),
        ("Lat", "R", "RL"),
        ("LATERAL", "", "LAT"),
        ("LATERAL", "U", "LAT"),
        ("RT LAT DECUB", "", "decubitus"),
        ("PA RT", "", "PA"),
        ("FLAT", "", ""),
    ],
)
def test_sides_of_a_lateral(position: str, laterality: str, kind: str) -> None:
    assert view_kind({"view_position": position, "laterality": laterality}) == kind


@pytest.mark.parametrize("position", ["RT LAT", "RLAT", "R LAT"])
def test_a_right_lateral_is_no_left_one(tmp_path: Path, position: str) -> None:
    with pytest.raises(InputError, match="which is not a right lateral"):
        loaded(tmp_path, {}, {"ViewPosition": position})


@pytest.mark.parametrize("part", ["ABD", "KUB", "LSPINE", "UP_EXM", "Lumbar spine", "FEET", "MANDIBLE"])
def test_other_parts_are_refused_by_any_usual_name(tmp_path: Path, part: str) -> None:
    with pytest.raises(InputError, match=f"has the Body Part Examined {part}, not a chest"):
        loaded(tmp_path, {"BodyPartExamined": part}, {})
    with pytest.raises(InputError, match=f"has the Anatomic Region {part}, not a chest"):
        loaded(tmp_path, {"AnatomicRegionSequence": code(part)}, {})


@pytest.mark.parametrize("part", ["CHEST", "Thorax", "TORAX", "CHEST_ABD", "TSPINE", "Rib", "Lung"])
def test_a_chest_by_any_name_gets_no_word(tmp_path: Path, part: str) -> None:
    assert part not in loaded(tmp_path, {"BodyPartExamined": part, "AnatomicRegionSequence": code(part)}, {})[0]


def test_parts_that_are_not_known_or_contradict_each_other_are_said(tmp_path: Path) -> None:
    said, _ = loaded(tmp_path, {"BodyPartExamined": "XYZ"}, {})
    assert "pa.dcm has the Body Part Examined XYZ, which is not known: taken to be a chest." in said
    said, _ = loaded(tmp_path, {"BodyPartExamined": "CHEST", "AnatomicRegionSequence": code("Knee")}, {})
    assert "has the Anatomic Region Knee beside one that is a chest, which was followed" in said


@pytest.mark.parametrize(
    ("pa", "lateral", "said_of"),
    [
        ({"PositionerPrimaryAngle": 90}, {}, "pa.dcm has the Positioner Primary Angle 90°, which is not pa's"),
        ({"PositionerPrimaryAngle": -88}, {}, "Primary Angle -88°"),
        ({}, {"PositionerSecondaryAngle": 90}, "lat.dcm has the Positioner Secondary Angle 90°"),
        ({"PositionerPrimaryAngle": 180}, {"PositionerPrimaryAngle": 90}, ""),
        ({"PositionerPrimaryAngle": 0}, {"PositionerPrimaryAngle": 0}, ""),
    ],
)
def test_a_right_angle_that_is_not_the_views_is_said(
    tmp_path: Path, pa: dict[str, Any], lateral: dict[str, Any], said_of: str
) -> None:
    said, _ = loaded(tmp_path, pa, lateral)
    assert said_of in said and ("Positioner" in said) == bool(said_of)
