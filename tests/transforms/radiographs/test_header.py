"""What headers say in other units, spellings and words than DICOM has for it."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from drr2ct.transforms.radiographs.header import header_facts


def facts_of(**tags: Any) -> tuple[dict[str, Any], str]:
    """What a header says, and the sentences on it."""
    dataset = Dataset()
    dataset.Rows, dataset.Columns = 40, 50
    for keyword, value in tags.items():
        texts = isinstance(value, str) or (isinstance(value, list) and isinstance(value[0], str))
        if texts:  # of whatever kind, as files have it that no check has seen
            dataset.add_new(keyword, "LO", value)
        else:
            setattr(dataset, keyword, value)
    facts, notes = header_facts(dataset, "a.dcm")
    return facts, ". ".join(notes)


@pytest.mark.parametrize(
    ("detector", "patient", "expected", "note"),
    [
        (72, None, (1828.8, None), "72 mm from its source to the detector, which must be inches"),
        (72, 60, (1828.8, 1524.0), "72 mm from its source, which must be inches"),
        (40, None, (1016.0, None), "must be inches"),
        (None, 60, (None, 1524.0), "60 mm from its source to the patient, which must be inches"),
        (100, 75, (1000.0, 750.0), "must be centimetres"),
        (110, 90, (1100.0, 900.0), "must be centimetres"),
        (1800, 150, (1800.0, 1500.0), "150 mm from its source to the patient, which must be centimetres"),
        (180, 1500, (1800.0, 1500.0), "180 mm from its source to the detector, which must be centimetres"),
        (1800, 1.5, (1800.0, 1500.0), "1.5 mm from its source to the patient, which must be metres"),
        (72, 1500, (1828.8, 1500.0), "72 mm from its source to the detector, which must be inches"),
        (1800, 1500, (1800.0, 1500.0), ""),
        (1800, 30, (1800.0, None), "30 mm from its source to the patient, which cannot be and was ignored"),
        (7, 1500, (None, 1500.0), "7 mm from its source to the detector, which cannot be and was ignored"),
        (1500, 1800, (1500.0, 1800.0), ""),  # the wrong way round, which is said where it is known what the user states
        ("180 cm", 1500, (1800.0, 1500.0), "has the Distance Source to Detector 180 cm, which was read as 1800"),
        ("unknown", 1500, (None, 1500.0), "unknown, which is no number and was ignored"),
    ],
)
def test_distances_in_the_units_that_are_plausible_together(
    detector: Any, patient: Any, expected: tuple[float | None, float | None], note: str
) -> None:
    stated = {"DistanceSourceToDetector": detector, "DistanceSourceToPatient": patient}
    facts, notes = facts_of(**{keyword: value for keyword, value in stated.items() if value is not None})
    found = facts.get("source_to_detector_mm"), facts.get("source_to_isocentre_mm")
    assert found == tuple(value if value is None else pytest.approx(value) for value in expected)
    assert note in notes and bool(note) == bool(notes)


@pytest.mark.parametrize(
    ("spacing", "expected", "note"),
    [
        (["1,0547", "1,0547"], (1.0547, 1.0547), "Imager Pixel Spacing 1,0547/1,0547, which was read as 1.0547"),
        (["0,2", "0.1"], (0.2, 0.1), "which was read as 0.2 and 0.1"),
        (["a", "b"], None, "a/b, which is not 2 numbers and was ignored"),
        (["0.2"], None, "0.2, which is not 2 numbers and was ignored"),
        (["0.2", "0.2"], (0.2, 0.2), ""),
    ],
)
def test_a_pitch_that_is_written_otherwise(spacing: list[str], expected: tuple[float, float] | None, note: str) -> None:
    facts, notes = facts_of(ImagerPixelSpacing=spacing)
    assert facts.get("pixel_spacing_mm") == (expected if expected is None else pytest.approx(expected))
    assert note in notes and bool(note) == bool(notes)
