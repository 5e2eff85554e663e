"""The DICOM series as pydicom, ITK and our own reader see it, and what the standard asks of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from drr2ct.pipeline.data.headers import Header, read_header
from drr2ct.pipeline.data.series import dicom_candidates
from drr2ct.pipeline.volumes.dicom_output import NOT_FOR_CLINICAL_USE, write_dicom_series
from drr2ct.transforms import LoadCT, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.pipeline.volumes.test_files import SIZE, eight_marks, lps_of

# PS3.3 A.3, CT Image IOD: mandatory modules, attributes of type 1 (a value) and 2 (present, may be empty); of the
# conditional ones those whose condition holds here.
TYPE_1 = (
    "SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet",  # SOP Common
    "StudyInstanceUID",  # General Study
    "Modality", "SeriesInstanceUID",  # General Series
    "FrameOfReferenceUID",  # Frame of Reference
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient",  # Image Plane
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelData",  # Image Pixel
    "ImageType", "RescaleIntercept", "RescaleSlope",  # CT Image
    "WindowCenter", "WindowWidth",  # VOI LUT
)  # fmt: skip
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",  # Patient
    "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",  # General Study
    "SeriesNumber", "PatientPosition",  # General Series
    "PositionReferenceIndicator",  # Frame of Reference
    "Manufacturer",  # General Equipment
    "InstanceNumber",  # General Image
    "SliceThickness",  # Image Plane
    "KVP", "AcquisitionNumber",  # CT Image
)  # fmt: skip


def write(folder: Path, affine: np.ndarray, patient: str = "Ada Lovelace") -> dict[tuple[int, int, int], int]:
    volume, marks = eight_marks(affine)
    write_dicom_series(folder, volume, patient, description="drr2ct test")
    return marks


def read_with_itk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    (series,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
    return reader.Execute()


@pytest.mark.parametrize("flip", [True, False])
def test_every_reader_finds_each_voxel_at_its_place(tmp_path: Path, flip: bool) -> None:
    affine = VolumeGrid(SIZE, 126.0, flip).affine((3.0, -8.0, 40.0))
    marks = write(tmp_path / "ct", affine)
    image = read_with_itk(tmp_path / "ct")
    assert image.GetSize() == (SIZE,) * 3 and np.allclose(image.GetDirection(), np.eye(3).ravel())
    slices = sorted(map(pydicom.dcmread, (tmp_path / "ct").iterdir()), key=lambda s: float(s.ImagePositionPatient[2]))
    ours = LoadCT()(tmp_path / "ct")
    for index, hu in marks.items():
        point = lps_of(affine, index)
        assert image[image.TransformPhysicalPointToIndex(point)] == hu
        # by the standard's own equation, C.7.6.2.1.1
        k = int(np.argmin([abs(float(s.ImagePositionPatient[2]) - point[2]) for s in slices]))
        s = slices[k]
        offset = np.array(point) - np.array(s.ImagePositionPatient, dtype=float)
        iop = np.array(s.ImageOrientationPatient, dtype=float)
        column, row = offset @ iop[:3] / float(s.PixelSpacing[1]), offset @ iop[3:] / float(s.PixelSpacing[0])
        stored = s.pixel_array[round(row), round(column)]
        assert stored * float(s.RescaleSlope) + float(s.RescaleIntercept) == hu
        there = np.rint(np.linalg.solve(np.asarray(ours.affine), affine @ [*index, 1]))[:3].astype(int)
        assert ours[0][tuple(there)] == hu


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(-0.6, 0.6), min_size=3, max_size=3),
    st.lists(st.floats(0.4, 5.0), min_size=3, max_size=3),
    st.permutations([0, 1, 2]),
)
def test_oblique_and_permuted_axes(tmp_path_factory, turns, spacing, order) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (Rotation.from_rotvec(turns).as_matrix() * spacing)[:, order]
    affine[:3, 3] = [10.123456789012, -20, 30]
    folder = tmp_path_factory.mktemp("d") / "ct"
    marks = write(folder, affine)
    image = read_with_itk(folder)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert np.linalg.det(direction) == pytest.approx(1, abs=1e-5), "right-handed, as DICOM stacks are"
    for index, hu in marks.items():
        assert image[image.TransformPhysicalPointToIndex(lps_of(affine, index))] == hu


def test_the_standards_required_attributes(tmp_path: Path) -> None:
    write(tmp_path / "ct", VolumeGrid(SIZE).affine())
    for path in (tmp_path / "ct").iterdir():
        image = pydicom.dcmread(path)
        assert image.file_meta.MediaStorageSOPClassUID == image.SOPClassUID == pydicom.uid.CTImageStorage
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        for name in TYPE_1:
            assert name in image and not image[name].is_empty, name
        for name in TYPE_2:
            assert name in image, name
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert image.BitsStored == image.HighBit + 1 == 16 and image.PixelRepresentation == 1
        for element in image:  # values that fit their representation, as pydicom checks them when it writes
            if element.VR == "DS":
                assert all(len(str(v)) <= 16 for v in np.atleast_1d(element.value)), element
            if element.VR == "LO":
                assert len(str(element.value)) <= 64, element


def test_the_series_belongs_together_and_is_new(tmp_path: Path) -> None:
    affine = VolumeGrid(SIZE).affine()
    for name in ("a", "b"):
        write(tmp_path / name, affine)
    a, b = (sorted(map(pydicom.dcmread, (tmp_path / n).iterdir()), key=lambda s: s.InstanceNumber) for n in "ab")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert len({s[name].value for s in a}) == 1
        assert a[0][name].value != b[0][name].value
    assert len({s.SOPInstanceUID for s in a + b}) == 2 * SIZE
    positions = [float(s.ImagePositionPatient[2]) for s in a]
    assert np.allclose(np.diff(positions), float(a[0].SpacingBetweenSlices)) and float(a[0].SliceThickness) > 0


def test_it_says_that_it_is_no_scan(tmp_path: Path) -> None:
    write(tmp_path / "ct", VolumeGrid(SIZE).affine(), patient="Jörg")
    image = pydicom.dcmread(next((tmp_path / "ct").iterdir()))
    assert NOT_FOR_CLINICAL_USE in image.SeriesDescription and "not a CT" in image.SeriesDescription
    assert len(image.SeriesDescription) <= 64, "as long as DICOM allows"
    assert "not for clinical use" in image.ImageComments
    assert "not a scan" in image.DerivationDescription and "drr2ct test" in image.DerivationDescription
    assert str(image.PatientName) == "Jörg" and image.PatientID == "Jörg"


def test_our_own_search_finds_one_axial_ct(tmp_path: Path) -> None:
    write(tmp_path / "ct", VolumeGrid(SIZE).affine())
    headers = [read_header(str(path)) for path in (tmp_path / "ct").iterdir()]
    (series,) = dicom_candidates([h for h in headers if isinstance(h, Header)], lambda path: "")
    assert (series.reason, series.slices, series.derived) == ("", SIZE, True)


def test_a_series_takes_the_place_of_another_only_when_complete(tmp_path: Path, monkeypatch) -> None:
    volume, _ = eight_marks(VolumeGrid(SIZE).affine())
    folder = tmp_path / "ct"
    write_dicom_series(folder, volume, "a")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    write, calls = pydicom.Dataset.save_as, []

    def full(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        write(self, *args, **kwargs)

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(OSError, match="No space"):
        write_dicom_series(folder, volume, "a")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["ct"]


def test_what_dicom_cannot_hold(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(InputError, match="not perpendicular"):
        write(tmp_path / "ct", sheared)
    with pytest.raises(InputError, match="64 characters"):
        write_dicom_series(tmp_path / "ct", MetaTensor(torch.zeros(1, 4, 4, 4)), "x" * 65)
    assert not list(tmp_path.iterdir())
