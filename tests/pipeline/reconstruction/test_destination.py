"""Where reconstructions are put on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from drr2ct.pipeline.reconstruction.destination import Destination, file_destination, patient_destination
from drr2ct.transforms.validation import InputError


@pytest.mark.parametrize(
    ("output", "format", "expected"),
    [
        ("a/ct.nii.gz", None, "nii.gz"),
        ("ct.nii", "nii", "nii"),
        ("CT.NRRD", None, "nrrd"),
        ("ct.v2.mha", None, "mha"),
        ("ct_dicom/", None, "dicom"),
        ("ct", "dicom", "dicom"),
        ("patients", None, None),
        ("patients.v2/", None, None),
        ("patients", "nrrd", None),
    ],
)
def test_the_name_decides_the_format(output: str, format: str | None, expected: str | None) -> None:
    found = file_destination(output, format)
    assert (found and found.format) == expected


@pytest.mark.parametrize(
    ("output", "format", "says"),
    [
        ("ct.nii.gz", "nrrd", "ends in .nii.gz, but the format is nrrd"),
        ("ct.nii.gz", "dicom", "but the format is dicom"),
        ("ct.dcm", None, "ends in .dcm, which is no volume format"),
        ("ct.niigz", None, "no volume format"),
        ("ct", "minc", "format 'minc' is unknown"),
    ],
)
def test_names_that_contradict_themselves(output: str, format: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        file_destination(output, format)


def test_what_lies_beside_a_volume() -> None:
    assert Destination(Path("a/ct.nii.gz"), "nii.gz").beside(".json") == Path("a/ct.json")
    assert Destination(Path("a/ct.v2.nrrd"), "nrrd").beside(".png") == Path("a/ct.v2.png")
    assert Destination(Path("a/ct_dicom"), "dicom").beside(".html") == Path("a/ct_dicom.html")
    assert patient_destination("out", "jane").volume == Path("out/jane/jane_ct.nii.gz")
    assert patient_destination("out", "jane", "dicom").volume == Path("out/jane/jane_ct_dicom")
