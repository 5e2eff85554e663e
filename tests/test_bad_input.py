"""Every row of docs/bad-input.md: what is given, what is said, and that nothing is lost.

The page is made of the cases below: ``python -m tests.test_bad_input`` writes it, a test compares it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGLSLossless,
    generate_uid,
)

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import read_checkpoint, write_checkpoint
from drr2ct.pipeline.data.survey import report_on
from drr2ct.transforms import LoadCT, render_drr, write_radiograph
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from tests.bundle.conftest import SMALL, command  # noqa: F401  # a fixture
from tests.files import chest, file_system, read_rows, write_nifti, write_with_itk
from tests.pipeline.data.dicom_files import SHAPE, write_series
from tests.transforms.drawn_films import FIELD, line_integrals, statistics, toned

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"
REFUSED, LEFT_OUT, USED = "refused", "left out", "used"

Command = Callable[..., tuple[int, str]]


@dataclass(frozen=True)
class Case:
    """One row of the page.

    Args:
        given: what the user has.
        make: writes it; each section says where.
        says: the whole message, … for what varies; empty if nothing is said.
        happens: refused, left out (the others are made), or used.
        also: looks at the result of what is used.
    """

    given: str
    make: Callable[..., Any]
    says: str
    happens: str = REFUSED
    also: Callable[[Path], None] | None = None


def parametrize(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.given) for case in cases])


def matches(message: str, says: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, says.split("…"))), message.strip()) is not None


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and link below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def assert_refused(result: tuple[int, str], says: str) -> None:
    status, message = result
    assert status == 2, message
    lines = [line for line in message.splitlines() if line.strip()]
    assert len(lines) == 1 and matches(lines[0], f"drr2ct: {says}"), message


def assert_nothing_half_written(folder: Path) -> None:
    left = [str(p) for p in folder.rglob(".*") if p.name != ".failed"] if folder.exists() else []
    assert left == []


# --------------------------------------------------------------------------- prepare: what lies in SOURCE

VOLUME = (20, 18, 16)


def voxels(*size: float) -> np.ndarray:
    """An affine with an origin as scans have it."""
    affine = np.diag([*size, 1.0])
    affine[:3, 3] = -95, -85, -75
    return affine


TEN = voxels(10, 10, 10)


def put(**values: object) -> Callable[[pydicom.Dataset, int], None]:
    def change(data: pydicom.Dataset, k: int) -> None:
        for name, value in values.items():
            setattr(data, name, value)

    return change


def volume(values: Any, affine: np.ndarray | None = None, name: str = "bad.nii.gz") -> Callable[[Path], Path]:
    return lambda source: write_nifti(source / name, values, TEN if affine is None else affine)


def series(**arguments: Any) -> Callable[[Path], Path]:
    return lambda source: write_series(source / "bad", **{"patient": "bad", **arguments})


def content(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda source: (source / name).write_bytes(data)


def with_value(value: float, dtype: Any = np.float32) -> np.ndarray:
    values = chest(VOLUME)
    values[8:10, 8, 8] = value
    return values.astype(dtype)


def cut(source: Path) -> None:
    path = write_nifti(source / "bad.nii.gz", chest(VOLUME))
    path.write_bytes(path.read_bytes()[:-2000])


def cut_header(source: Path) -> None:
    path = next(write_series(source / "bad", patient="bad").glob("*-7.dcm"))
    path.write_bytes(path.read_bytes()[:700])


def zero_spacing(source: Path) -> None:
    image = nib.Nifti1Image(chest(VOLUME), None)
    image.header.set_sform(np.diag([0.0, 1, 1, 1]), code=1)  # nibabel itself refuses to make an image of it
    image.to_filename(source / "bad.nii.gz")


def compress(data: pydicom.Dataset, k: int) -> None:
    data.file_meta.TransferSyntaxUID = HTJ2KLossless
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" * 40])
    data["PixelData"].VR = "OB"


def no_pixels(data: pydicom.Dataset, k: int) -> None:
    del data.PixelData


def short_pixels(data: pydicom.Dataset, k: int) -> None:
    if k == 4:
        data.PixelData = data.PixelData[:-100]


def uneven(data: pydicom.Dataset, k: int) -> None:
    data.ImagePositionPatient = [-180, -160, 50 + 10 * k + (3 if k == 7 else 0)]


def two_phases(data: pydicom.Dataset, k: int) -> None:
    data.ImagePositionPatient = [-180, -160, 50 + 10 * (k // 2)]


def duplicates(source: Path) -> None:
    folder = write_series(source / "bad", patient="bad")
    for path in sorted(folder.iterdir())[:3]:
        shutil.copy(path, folder / f"copy-{path.name}")


def mixed(source: Path) -> None:
    """Two series of a patient in one folder, with clashing file names of the PACS."""
    write_series(source / "1", patient="bad", series="1")
    write_series(source / "2", chest(SHAPE)[::-1, ::-1, :9], patient="bad", series="2")
    (source / "bad").mkdir()
    for number, path in enumerate(sorted([*(source / "1").iterdir(), *(source / "2").iterdir()])):
        path.rename(source / "bad" / f"I{number:03d}")
    (source / "1").rmdir()
    (source / "2").rmdir()


def detached(source: Path) -> None:
    write_with_itk(source / "bad.mhd", chest(VOLUME), TEN)
    (source / "bad.raw").unlink()


def padded(values: np.ndarray) -> np.ndarray:
    """−2000 outside the circle of reconstruction."""
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in values.shape[:2]), indexing="ij")
    values = values.copy()
    values[x**2 + y**2 > 1] = -2000
    return values


def filled(values: np.ndarray, value: float) -> np.ndarray:
    """The value outside the circle of reconstruction."""
    outside = padded(values) == -2000
    return np.where(outside, value, values).astype(values.dtype)


def zero_outside(source: Path) -> None:
    """0 HU outside the circle, as Pixel Padding Value says."""
    values = filled(chest(SHAPE)[::-1, ::-1].round(), 0)
    write_series(source / "bad", values, patient="bad", change=put(PixelPaddingValue=512))


def air_outside(dest: Path) -> None:
    inside = padded(chest(SHAPE)) > -2000
    found = nib.as_closest_canonical(made()(dest)).get_fdata()
    assert (found[~inside] == -1024).all()
    np.testing.assert_allclose(found[inside], chest(SHAPE)[inside], atol=2)


def stored_hu(data: pydicom.Dataset, k: int) -> None:
    del data.RescaleIntercept
    stored = np.frombuffer(data.PixelData, np.uint16).astype(np.int32) * 2 - 1024
    data.PixelRepresentation, data.RescaleSlope = 1, 1
    data.PixelData = stored.astype(np.int16).tobytes()


def two_acquisitions(source: Path) -> None:
    """The second half a step further."""

    def second(data: pydicom.Dataset, k: int) -> None:
        data.AcquisitionNumber, data.SOPInstanceUID = 2, generate_uid()
        data.ImagePositionPatient = [-180.0, -160.0, 55.0 + 10 * k]

    write_series(source / "bad" / "a", patient="bad", change=put(AcquisitionNumber=1))
    write_series(source / "bad" / "b", patient="bad", change=second)


def same_identifiers(source: Path) -> None:
    """Two people in two folders whom an anonymiser gave one Patient ID and the same UIDs."""
    write_series(source / "bad" / "a", patient="bad")
    write_series(source / "bad" / "b", chest(SHAPE, seed=1), patient="bad")


def intercept_of_one_missing(data: pydicom.Dataset, k: int) -> None:
    if k == 4:
        del data.RescaleIntercept


def nrrd_with(line: str) -> Callable[[Path], None]:
    """An NRRD whose line that says what its space is, is another."""

    def write(source: Path) -> None:
        path = write_with_itk(source / "bad.nrrd", chest(VOLUME), TEN)
        path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", line.encode()))

    return write


def with_noise_in_air() -> np.ndarray:
    return chest(VOLUME) + np.random.default_rng(1).normal(0, 15, VOLUME).astype(np.float32)


def with_slices(value: float | None) -> np.ndarray:
    """Three slices within the scan have one value, or are the one before."""
    values = chest(VOLUME)
    values[:, :, 6:9] = values[:, :, 5:6] if value is None else value
    return values


def counted_twice(source: Path) -> None:
    """Nothing but the count says that the second half is another pass."""

    def counted(start: int, shift: float) -> Callable[[pydicom.Dataset, int], None]:
        def change(data: pydicom.Dataset, k: int) -> None:
            data.InstanceNumber, data.SOPInstanceUID = start + k, generate_uid()
            data.ImagePositionPatient = [-180.0, -160.0, 50.0 + shift + 10 * k]

        return change

    write_series(source / "bad" / "a", patient="bad", change=counted(1, 0))
    write_series(source / "bad" / "b", patient="bad", change=counted(101, 5))


def waits_for_contrast(source: Path) -> None:
    """A few slices at one place before the scan begins."""

    def waiting(data: pydicom.Dataset, k: int) -> None:
        data.AcquisitionNumber, data.SOPInstanceUID = 1, generate_uid()
        data.ImagePositionPatient = [-180.0, -160.0, 90.0]

    write_series(source / "bad" / "a", patient="bad", change=waiting, skip=range(4, 16))
    write_series(source / "bad" / "b", patient="bad", change=put(AcquisitionNumber=2))


def coloured_slice(data: pydicom.Dataset, k: int) -> None:
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelData = bytes(3 * data.Rows * data.Columns)


def vendors_own(source: Path) -> None:
    folder = write_series(source / "bad", patient="bad")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0"))


def bare(source: Path) -> None:
    folder = write_series(source / "bad", patient="bad")
    for number, path in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(path)
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, True
        plain = pydicom.Dataset(data)
        write_dataset(buffer, plain)
        path.unlink()
        (folder / f"IM{number:03d}").write_bytes(buffer.getvalue())


def deflate(data: pydicom.Dataset, k: int) -> None:
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def wobble(data: pydicom.Dataset, k: int) -> None:
    tilt = (-1) ** k * 4e-4
    data.ImageOrientationPatient = [1, tilt, 0, -tilt, 1, 0]


def in_unit(unit: str, factor: float) -> Callable[[Path], None]:
    def write(source: Path) -> None:
        affine = TEN.copy()
        affine[:3] *= factor
        image = nib.Nifti1Image(chest(VOLUME), affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, source / "bad.nii.gz")

    return write


def formless(source: Path) -> None:
    path = write_nifti(source / "bad.nii", chest(VOLUME))
    raw = bytearray(path.read_bytes())
    raw[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(raw)


def two_forms(sform: np.ndarray) -> Callable[[Path], None]:
    def write(source: Path) -> None:
        image = nib.Nifti1Image(chest(VOLUME), TEN)
        image.set_qform(TEN, 1)
        image.set_sform(sform, 1)
        nib.save(image, source / "bad.nii.gz")

    return write


def colours(source: Path) -> None:
    values = np.zeros(VOLUME, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(values, TEN), source / "bad.nii.gz")


def side_file(source: Path) -> None:
    (source / "bad").mkdir()
    (source / "bad" / "._1.dcm").write_bytes(b"\0\5\x16\7" * 40)


def misnamed(source: Path) -> None:
    write_nifti(source / "bad.nii", chest(VOLUME), TEN).rename(source / "bad.nii.gz")


def packed(source: Path) -> None:
    path = write_nifti(source / "bad.nii", chest(VOLUME), TEN)
    path.write_bytes(gzip.compress(path.read_bytes()))


def packed_pair(source: Path) -> None:
    pair(source)
    for path in (source / "bad.hdr", source / "bad.img"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def headless(name: str) -> Callable[[Path], None]:
    return lambda source: sitk.WriteImage(sitk.GetImageFromArray(chest(VOLUME).transpose(2, 1, 0)), str(source / name))


def two_files(compressed: bool = False, keep: bool = True) -> Callable[[Path], None]:
    """An NRRD header and its data beside it."""

    def write(source: Path) -> None:
        write_with_itk(source / "bad.nhdr", chest(VOLUME), TEN)
        (data,) = (path for path in source.glob("bad.*") if path.suffix != ".nhdr")
        if compressed:
            data.with_name("bad.raw.gz").write_bytes(gzip.compress(data.read_bytes()))
            header = (source / "bad.nhdr").read_text()
            header = header.replace(data.name, "bad.raw.gz").replace("encoding: raw", "encoding: gzip")
            (source / "bad.nhdr").write_text(header)
        if compressed or not keep:
            data.unlink()

    return write


def whole_body() -> np.ndarray:
    """A chest with 160 mm of lungs on top of 700 mm without, gas in the bowel, and arms at the sides."""
    body = chest((40, 30, 86))
    body[(body < -500) & (body > -900)] = 30
    body[:, :, 70:] = chest((40, 30, 16))
    body[18:24, 16:20, 20:60] = -1000
    return body


def pair(source: Path) -> None:
    nib.save(nib.Nifti1Pair(chest(VOLUME), TEN), source / "bad.hdr")


def archive(source: Path) -> None:
    with zipfile.ZipFile(source / "bad.zip", "w") as file:
        file.writestr("../../evil.nii.gz", b"x")


def loop(source: Path) -> None:
    write_nifti(source / "bad" / "bad.nii.gz", chest(VOLUME), TEN)
    (source / "bad" / "round").symlink_to(source)


def dangling(source: Path) -> None:
    (source / "bad.nii.gz").symlink_to(source / "gone.nii.gz")


def made(name: str = "bad") -> Callable[[Path], nib.Nifti1Image]:
    return lambda dest: nib.load(dest / name / f"{name}.nii.gz")


def same_affine(affine: np.ndarray) -> Callable[[Path], None]:
    def check(dest: Path) -> None:
        image = made()(dest)
        np.testing.assert_allclose(image.affine, affine, atol=1e-5)
        np.testing.assert_allclose(image.get_fdata(), chest(VOLUME).round(), atol=1)

    return check


def clipped(dest: Path) -> None:
    assert made()(dest).get_fdata().max() == 3071


def sixteen_slices(dest: Path) -> None:
    assert made()(dest).shape == SHAPE


ANISOTROPIC = voxels(0.5, 0.5, 10)
LEFT_HANDED = voxels(-10, 10, 10)
OBLIQUE = np.array([[8.0, -6, 0, 0], [6, 8, 0, 0], [0, 0, 10, 0], [0, 0, 0, 1]])
_NO_SPACE = "an identity affine, so sides and voxel sizes are unknown; convert it from DICOM again"
_UNREADABLE = "a header that cannot be read, truncated or of another type; copy it again"

SOURCES = [
    Case("an empty DICOM file", content("bad.dcm", b""), "an empty file; copy it again", LEFT_OUT),
    Case("an empty NIfTI file", content("bad.nii.gz", b""), "an empty file; copy it again", LEFT_OUT),
    Case(
        "a file called .dcm that is something else (wrong magic)",
        content("bad.dcm", b"not dicom at all" * 20),
        "not DICOM (no DICM mark); copy it again",
        LEFT_OUT,
    ),
    Case("a NIfTI file with the wrong magic", content("bad.nii.gz", b"wrong magic" * 50), _UNREADABLE, LEFT_OUT),
    Case("an NRRD file with the wrong magic", content("bad.nrrd", b"wrong magic" * 50), _UNREADABLE, LEFT_OUT),
    Case(
        "a slice cut within its header",
        cut_header,
        "1 slice is missing, the first after z = … mm; download the series again",
        LEFT_OUT,
    ),
    Case(
        "a truncated gzip file",
        cut,
        "the CT cannot be read (…); it may be truncated or of another type; copy or export it again",
        LEFT_OUT,
    ),
    Case(
        "voxels (.raw) without their header",
        content("bad.raw", bytes(64)),
        "voxels without the header that says how many and where; copy it again, with it",
        LEFT_OUT,
    ),
    Case(
        "an NRRD in a space without left and right",
        nrrd_with("space: scanner-xyz"),
        "the space scanner-xyz, which does not say where left and right are; convert it from DICOM again",
        LEFT_OUT,
    ),
    Case(
        "an NRRD in a space without a name",
        nrrd_with("space dimension: 3"),
        "a space without a name, which does not say where left and right are; convert it from DICOM again",
        LEFT_OUT,
    ),
    Case(
        "an NRRD in centimetres",
        nrrd_with('space: left-posterior-superior\nspace units: "cm" "cm" "cm"'),
        "lengths in cm; write it again in millimetres",
        LEFT_OUT,
    ),
    Case(
        "an MHD header without its raw file",
        detached,
        "the CT cannot be read (…); it may be truncated or of another type; copy or export it again",
        LEFT_OUT,
    ),
    Case("DICOM without pixels", series(change=no_pixels), "DICOM without pixels; download the series again", LEFT_OUT),
    Case(
        "DICOM with truncated pixels",
        series(change=short_pixels),
        "truncated pixel data in …-4.dcm; copy it again",
        LEFT_OUT,
    ),
    Case(
        "compressed DICOM that is damaged",
        series(change=compress),
        "slice … is compressed (High-Throughput JPEG 2000 …) and cannot be decoded; copy the series again, or "
        "decompress its files",
        LEFT_OUT,
    ),
    Case(
        "a radiograph among the CTs", series(change=put(Modality="DX")), "modality DX, not CT; nothing to do", LEFT_OUT
    ),
    Case(
        "a localiser",
        series(change=put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        "a localiser; nothing to do",
        LEFT_OUT,
    ),
    Case(
        "a coronal reformat",
        series(change=put(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
        "coronal, not axial; use the series it was made from",
        LEFT_OUT,
    ),
    Case(
        "an enhanced multi-frame file",
        series(change=put(NumberOfFrames=2)),
        "an enhanced multi-frame file; convert it to single slices or NIfTI (dcm2niix does)",
        LEFT_OUT,
    ),
    Case(
        "a gantry tilt",
        series(lean=2.0),
        "gantry tilt of 11.3°, so the slices are sheared; resample them to an upright stack first",
        LEFT_OUT,
    ),
    Case(
        "a gantry tilt in the header only",
        series(change=put(GantryDetectorTilt=15)),
        "gantry tilt of 15° in a header whose slices are upright; correct whichever is wrong",
        LEFT_OUT,
    ),
    Case(
        "missing slices",
        series(skip=(5, 6)),
        "2 slices are missing, the first after z = 90 mm; download the series again",
        LEFT_OUT,
    ),
    Case(
        "uneven slices",
        series(change=uneven),
        "uneven slice spacing, 7 to 13 mm; resample the series evenly first",
        LEFT_OUT,
    ),
    Case(
        "two phases in one series",
        series(change=two_phases),
        "two different slices at one position, so phases or reconstructions share the series; "
        "give each its own Series Instance UID",
        LEFT_OUT,
    ),
    Case(
        "two people in two folders, with the same identifiers",
        same_identifiers,
        "two different slices at one position, so phases or reconstructions share the series; give each its own Series "
        "Instance UID, or, if its 2 folders are of different people with the same identifiers, name them by a part of "
        "the path (--patient-pattern)",
        LEFT_OUT,
    ),
    Case("exact copies of slices", duplicates, "3 duplicate slices dropped; …", USED, sixteen_slices),
    Case(
        "several series mixed in one folder, files without suffix",
        mixed,
        "another series of the patient is preferred (more slices, softer kernel, or original)",
        USED,
        sixteen_slices,
    ),
    Case(
        "zero spacing, DICOM",
        series(change=put(PixelSpacing=[0, 0])),
        "pixel spacing 0×0 mm is not usable; repair the header",
        LEFT_OUT,
    ),
    Case("zero spacing, NIfTI", zero_spacing, "voxel spacing 0×1×1 mm is not usable; repair the header", LEFT_OUT),
    Case("a CT of 1 slice", volume(chest(VOLUME)[:, :, :1]), "only 1 slice; give a CT of 8 or more", LEFT_OUT),
    Case("4-D", volume(np.zeros((9, 9, 9, 3), np.float32)), "4 dimensions (9×9×9×3); extract one volume", LEFT_OUT),
    Case(
        "a label map",
        volume(np.zeros(VOLUME, np.uint8)),
        "8-bit numbers, a label map or a picture; give the CT in HU",
        LEFT_OUT,
    ),
    Case(
        "NaN",
        volume(with_value(np.nan)),
        "the CT contains NaN or infinite values; clean it or leave the patient out",
        LEFT_OUT,
    ),
    Case(
        "infinite HU",
        volume(with_value(np.inf)),
        "the CT contains NaN or infinite values; clean it or leave the patient out",
        LEFT_OUT,
    ),
    Case(
        "a constant volume",
        volume(np.full(VOLUME, -1000, np.int16)),
        "the CT has the same value -1000 everywhere; leave the patient out or export it again",
        LEFT_OUT,
    ),
    Case(
        "numbers that are not HU",
        volume(chest(VOLUME) + 1024),
        "the CT ranges from … to …, so it holds no air in Hounsfield units (−1000); "
        "apply rescale slope and intercept first",
        LEFT_OUT,
    ),
    Case(
        "a CT upside down in its numbers (air 0, tissue −1000)",
        volume(-1000 - chest(VOLUME)),
        "the CT holds values far below air (down to …) that were not filled in, so it is inverted or wrongly scaled; "
        "export it in Hounsfield units",
        LEFT_OUT,
    ),
    Case(
        "stored values (HU + 1024) with a padding of −2000 outside the circle",
        volume(padded(chest(VOLUME) + 1024)),
        "the CT holds stored values, not Hounsfield units (median …, and no air at −1000 within the scan); "
        "apply rescale slope and intercept first",
        LEFT_OUT,
    ),
    Case(
        "stored values (HU + 8192) with a padding of 0 outside the circle",
        volume(filled(chest(VOLUME) + 8192, 0)),
        "the CT holds neither air at −1000 nor tissue about 0 within the scan (median …), so its numbers are no "
        "Hounsfield units; apply rescale slope and intercept first",
        LEFT_OUT,
    ),
    Case(
        "stored values of a slope of 2, half of HU",
        volume(chest(VOLUME) / 2),
        "the CT holds no air at −1000, but much at …, so it is wrongly scaled; apply rescale slope and intercept first",
        LEFT_OUT,
    ),
    Case(
        "HU that lie 200 too high",
        volume(chest(VOLUME) + 200),
        "the CT has its air at -800, not at −1000, so it is shifted, wrongly scaled or clipped; export it in "
        "Hounsfield units",
        LEFT_OUT,
    ),
    Case(
        "three quarters of HU",
        volume(chest(VOLUME) * 0.75),
        "the CT has its air at -750, not at −1000, so it is shifted, wrongly scaled or clipped; export it in "
        "Hounsfield units",
        LEFT_OUT,
    ),
    Case(
        "HU that lie 200 too low",
        volume(with_noise_in_air() - 200),
        "the CT has its air at …, not at −1000, so it is shifted; export it in Hounsfield units",
        LEFT_OUT,
    ),
    Case(
        "a CT that was clipped to a window of the lungs",
        volume(chest(VOLUME).clip(-1350, 150)),
        "the CT ends at 150, where … % of the voxels are, so it was clipped and has no bone; export it in Hounsfield "
        "units, without a window",
        LEFT_OUT,
    ),
    Case(
        "a CT that was clipped at 400 HU, as some public data sets are",
        volume(chest(VOLUME).clip(-1000, 400)),
        "slices 10 mm apart; clipped at 400 HU, where … % of the voxels are",
        USED,
    ),
    Case(
        "zeros instead of slices within the scan",
        volume(with_slices(0)),
        "the CT has the value 0 all over 3 slices, the first of them slice 7, between others that show something; "
        "download or convert it again",
        LEFT_OUT,
    ),
    Case(
        "slices that repeat the one before",
        volume(with_slices(None)),
        "slices 10 mm apart; 3 slices repeat the one before, the first of them slice 7: filled in for missing ones?",
        USED,
    ),
    Case(
        "0 HU filled in outside the circle",
        volume(filled(chest(VOLUME), 0)),
        "the CT has 0 HU in the corners of its slices, which was filled in outside the scan and would count as tissue; "
        "fill in −1024 instead",
        LEFT_OUT,
    ),
    Case(
        "0 HU outside the circle, DICOM whose Pixel Padding Value says so",
        zero_outside,
        "slices 10 mm apart",
        USED,
        air_outside,
    ),
    Case(
        "a padding of −2000 outside the circle, HU within",
        volume(padded(chest(VOLUME))),
        "… voxels below -1024 HU clipped",
        USED,
    ),
    Case(
        "DICOM in HU without Rescale Intercept",
        series(change=stored_hu),
        "no Rescale Intercept, so stored values are taken for HU; slices 10 mm apart",
        USED,
    ),
    Case(
        "DICOM in which one slice has no Rescale Intercept",
        series(change=intercept_of_one_missing),
        "1 of 16 slices have no Rescale Intercept, such as …-4.dcm; export the series again",
        LEFT_OUT,
    ),
    Case(
        "a material density map",
        series(change=put(RescaleType="MGML")),
        "Rescale Type MGML, not Hounsfield units; use the series in HU",
        LEFT_OUT,
    ),
    Case(
        "an iodine map",
        series(change=put(ImageType=["DERIVED", "SECONDARY", "AXIAL"], SeriesDescription="Iodine (Water)")),
        "derived images described as Iodine, not Hounsfield units; use the series in HU",
        LEFT_OUT,
    ),
    Case(
        "an iodine map that is called original",
        series(change=put(SeriesDescription="Iodine Density[mg/ml*]")),
        "described as Iodine Density[mg/ml*], not Hounsfield units; use the series in HU",
        LEFT_OUT,
    ),
    Case(
        "a projection of slabs by its description alone",
        series(change=put(SeriesDescription="AX_MinIPs_THORAX")),
        "MinIPs, a projection of slabs; use the slices they were made from",
        LEFT_OUT,
    ),
    Case(
        "slices of 25 mm every 10 mm",
        series(change=put(SliceThickness=25)),
        "slices of 25 mm every 10 mm overlap; slices 10 mm apart",
        USED,
    ),
    Case(
        "a maximum intensity projection",
        series(change=put(ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"])),
        "MIP, a projection of slabs; use the slices they were made from",
        LEFT_OUT,
    ),
    Case(
        "slabs far thicker than their distance",
        series(change=put(SliceThickness=40)),
        "slabs of 40 mm every 10 mm; use the slices they were made from",
        LEFT_OUT,
    ),
    Case(
        "two acquisitions of one region in one series",
        two_acquisitions,
        "Acquisition Number 1: one of 2 passes that share a series; slices 10 mm apart",
        USED,
        sixteen_slices,
    ),
    Case(
        "two passes in one series that only the count of slices tells apart",
        counted_twice,
        "Instance Number from 1: one of 2 passes that share a series; slices 10 mm apart",
        USED,
        sixteen_slices,
    ),
    Case(
        "a scan and a few slices of another acquisition in one series",
        waits_for_contrast,
        "Acquisition Number 2: one of 2 passes that share a series; slices 10 mm apart",
        USED,
        sixteen_slices,
    ),
    Case(
        "colours, DICOM",
        series(change=coloured_slice),
        "colours, not CT numbers; give the CT itself",
        LEFT_OUT,
    ),
    Case(
        "a vendor's own transfer syntax",
        vendors_own,
        "the transfer syntax 1.2.840.113619.5.2, a vendor's own; export it again in one of the standard",
        LEFT_OUT,
    ),
    Case("DICOM without preamble and meta header, no suffix", bare, "slices 10 mm apart", USED, sixteen_slices),
    Case("deflated DICOM", series(change=deflate), "slices 10 mm apart", USED, sixteen_slices),
    Case(
        "an orientation that differs in the last digits from slice to slice",
        series(change=wobble),
        "slices 10 mm apart",
        USED,
        sixteen_slices,
    ),
    Case(
        "a side file of macOS",
        side_file,
        "a side file of macOS; nothing to do",
        LEFT_OUT,
    ),
    Case(
        "a NIfTI in metres", in_unit("meter", 1e-3), "converted from meters to millimetres; …", USED, same_affine(TEN)
    ),
    Case(
        "a NIfTI in microns", in_unit("micron", 1e3), "converted from microns to millimetres; …", USED, same_affine(TEN)
    ),
    Case(
        "a NIfTI without qform and sform",
        formless,
        "no qform and no sform, so left and right are unknown; convert it from DICOM again (dcm2niix writes both)",
        LEFT_OUT,
    ),
    Case(
        "qform and sform that contradict each other",
        two_forms(np.diag([-10.0, 10, 10, 1])),
        "qform and sform disagree about left and right; convert it from DICOM again",
        LEFT_OUT,
    ),
    Case(
        "qform and sform of other voxels",
        two_forms(voxels(10, 10, 12)),
        "qform and sform differ (voxels of 10×10×10 and 10×10×12 mm); the sform is used; slices 12 mm apart",
        USED,
    ),
    Case(
        "qform and sform turned by 180°",
        two_forms(np.diag([-10.0, -10, 10, 1])),
        "qform and sform point the voxels' axes elsewhere; convert it from DICOM again",
        LEFT_OUT,
    ),
    Case("an identity affine", volume(chest(VOLUME), np.eye(4)), _NO_SPACE, LEFT_OUT),
    Case(
        "an identity affine, to the left and back", volume(chest(VOLUME), np.diag([-1, -1, 1, 1])), _NO_SPACE, LEFT_OUT
    ),
    Case("an MHA of an array without its header", headless("bad.mha"), _NO_SPACE, LEFT_OUT),
    Case("an NRRD of an array without its header", headless("bad.nrrd"), _NO_SPACE, LEFT_OUT),
    Case(
        "an array with its voxel sizes alone",
        volume(chest(VOLUME), np.diag([10.0, 10, 10, 1])),
        "the first voxel at the origin, as of an array and its voxel sizes alone: check that left is left; "
        "slices 10 mm apart",
        USED,
    ),
    Case(
        "complex numbers",
        volume(chest(VOLUME).astype(np.complex64)),
        "complex numbers, not CT numbers; give the CT itself",
        LEFT_OUT,
    ),
    Case(
        "an array of NumPy, FreeSurfer's .mgz and the like",
        content("bad.npy", b"\x93NUMPY"),
        "a format that is not read; convert it to NIfTI from DICOM",
        LEFT_OUT,
    ),
    Case("a colour NIfTI", colours, "colours, not CT numbers; give the CT itself", LEFT_OUT),
    Case("a NIfTI called .nii.gz that is not compressed", misnamed, "slices 10 mm apart", USED, same_affine(TEN)),
    Case("a NIfTI called .nii that is compressed", packed, "slices 10 mm apart", USED, same_affine(TEN)),
    Case("a NIfTI called .NII.GZ", volume(chest(VOLUME), name="bad.NII.GZ"), "slices 10 mm apart", USED),
    Case("a pair .nhdr and .raw", two_files(), "slices 10 mm apart", USED, same_affine(TEN)),
    Case("a pair .nhdr and .raw.gz", two_files(compressed=True), "slices 10 mm apart", USED, same_affine(TEN)),
    Case(
        "an .nhdr without its data",
        two_files(keep=False),
        _UNREADABLE,
        LEFT_OUT,
    ),
    Case("a compressed pair .hdr.gz and .img.gz", packed_pair, "slices 10 mm apart", USED, same_affine(TEN)),
    Case("a NIfTI of 20×18×16×1", volume(chest(VOLUME)[..., None]), "slices 10 mm apart", USED, same_affine(TEN)),
    Case("a pair .hdr and .img", pair, "slices 10 mm apart", USED, same_affine(TEN)),
    Case(
        "an .img without its .hdr",
        content("bad.img", b"x" * 100),
        "an .img file without its .hdr; copy it again",
        LEFT_OUT,
    ),
    Case(
        "a mask beside its CT",
        lambda source: write_nifti(source / "bad_seg.nii.gz", chest(VOLUME)),
        "a mask, by its name; nothing to do",
        LEFT_OUT,
    ),
    Case(
        "an MR image beside its CT",
        lambda source: write_nifti(source / "bad_mr.nii.gz", chest(VOLUME)),
        "an MR image, by its name; nothing to do",
        LEFT_OUT,
    ),
    Case("metal above 3071 HU", volume(with_value(20000)), "…; 2 voxels above 3071 HU clipped", USED, clipped),
    Case(
        "3000 slices",
        volume(np.repeat(chest((12, 12, 30)), 100, axis=2) + 0.01 * np.arange(3000), voxels(20, 20, 0.1)),
        "",
        USED,
        lambda dest: made()(dest).shape == (12, 12, 3000) or pytest.fail("slices were lost"),
    ),
    Case(
        "0.5×0.5×10 mm",
        volume(chest(VOLUME), ANISOTROPIC),
        "slices 10 mm apart; no lungs were found, so it may be no chest",
        USED,
        same_affine(ANISOTROPIC),
    ),
    Case("an oblique affine", volume(chest(VOLUME), OBLIQUE), "slices 10 mm apart", USED, same_affine(OBLIQUE)),
    Case(
        "a left-handed affine", volume(chest(VOLUME), LEFT_HANDED), "slices 10 mm apart", USED, same_affine(LEFT_HANDED)
    ),
    Case(
        "a scan of the whole body",
        volume(whole_body()),
        "slices 10 mm apart; the lungs' centre is … mm from the isocentre, and the cube of 360 mm holds 0 % of them "
        "(prepare with --centre lungs aims at it: … %)",
        USED,
    ),
    Case(
        "a scan of 24 mm",
        volume(chest(VOLUME)[:, :, 4:12], voxels(14, 14, 3)),
        "the scan is 24 mm high, the cube 360 mm",
        USED,
    ),
    Case(
        "a scan of the legs",
        volume(whole_body()[:, :, :30]),
        "slices 10 mm apart; no lungs were found, so it may be no chest",
        USED,
    ),
    Case(
        "names with spaces and Unicode",
        lambda source: write_nifti(source / "bad" / "Müller 患者 7" / "ct.nii.gz", chest(VOLUME), TEN),
        "slices 10 mm apart",
        USED,
        lambda dest: made("Müller 患者 7")(dest).get_fdata(),
    ),
    Case(
        "a Patient ID that is a path (../../evil)",
        series(patient="../../evil"),
        "slices 10 mm apart",
        USED,
        lambda dest: made(next(dest.glob("*evil-*")).name)(dest).get_fdata(),
    ),
    Case("an archive", archive, "an archive; unpack it first", LEFT_OUT),
    Case("a link to a folder above it", loop, "slices 10 mm apart", USED),
    Case(
        "a link to itself",
        lambda source: (source / "bad.nii.gz").symlink_to(source / "bad.nii.gz"),
        "too many levels of symbolic links; repair the link or its permissions",
        LEFT_OUT,
    ),
    Case("a link to nowhere", dangling, "no such file or directory; repair the link or its permissions", LEFT_OUT),
]


def table(dest: Path) -> list[dict[str, str]]:
    return read_rows(dest / "series.csv")


PREPARE = ("--detector", 16, "--fov-mm", 360, "--workers", 1)


@parametrize(SOURCES)
def test_sources(command: Command, tmp_path: Path, case: Case) -> None:  # noqa: F811
    source, dest = tmp_path / "source", tmp_path / "a" / "b" / "set"
    write_nifti(source / "sound.nii.gz", chest(VOLUME), np.diag([9.0, 9, 4, 1]))
    case.make(source)
    before = snapshot(source)
    status, message = command("prepare", source, dest, *PREPARE)
    assert status == 0 and "Traceback" not in message, message
    assert snapshot(source) == before
    rows = [row for row in table(dest) if row["source"].startswith("bad")]
    used = {True: "yes", False: "no"}[case.happens == USED]
    assert any(row["used"] == used for row in rows)
    # what is noted of the used one, or why another was not
    assert any(matches(row["reason"], case.says) for row in rows), [row["reason"] for row in rows]
    assert str(tmp_path) not in " ".join(row["reason"] for row in rows)
    patients = {path.name for path in dest.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert len(patients) == (2 if case.happens == USED else 1) and "sound" in patients
    for name in patients:
        suffixes = (
            ".json",
            ".nii.gz",
            *(f"_{view}_drr.{kind}" for view in ("pa", "lat") for kind in ("nii.gz", "png")),
        )
        assert {path.name for path in (dest / name).iterdir()} == {f"{name}{suffix}" for suffix in suffixes}
    assert_nothing_half_written(dest)
    assert not (tmp_path / "evil.nii.gz").exists() and not (tmp_path.parent / "evil.nii.gz").exists()
    if case.also is not None:
        case.also(dest)


# --------------------------------------------------------------------------- prepare: the command


def sound_source(root: Path) -> Path:
    return write_nifti(root / "source" / "p.nii.gz", chest(VOLUME)).parent


def occupied(root: Path) -> list[object]:
    (root / "set").mkdir()
    (root / "set" / "thesis.txt").write_text("precious")
    return [sound_source(root), root / "set"]


def a_file(root: Path) -> list[object]:
    (root / "set").write_text("precious")
    return [sound_source(root), root / "set"]


def only(name: str, data: bytes) -> Callable[[Path], list[object]]:
    def make(root: Path) -> list[object]:
        (root / "source").mkdir()
        (root / "source" / name).write_bytes(data)
        return [root / "source", root / "set"]

    return make


def option(*options: object, **files: bytes) -> Callable[[Path], list[object]]:
    def make(root: Path) -> list[object]:
        for name, data in files.items():
            (root / name).write_bytes(data)
        return [sound_source(root), root / "set", *(root / o if o in files else o for o in options)]

    return make


REQUESTS = [
    Case(
        "SOURCE that does not exist",
        lambda root: [root / "source", root / "set"],
        "source … is not a folder; give the folder that holds the studies.",
    ),
    Case(
        "SOURCE without a CT file",
        only("notes.txt", b"notes"),
        "source … holds no DICOM, NIfTI, NRRD or MHA files; check the path.",
    ),
    Case(
        "SOURCE with unusable files only",
        only("a.dcm", b""),
        "source … holds no usable CT; the first of 1 left out, a.dcm, is: an empty file; copy it again.",
    ),
    Case(
        "DEST is a folder that holds something else",
        occupied,
        "… is not empty and holds no data set made by this command; choose another folder.",
    ),
    Case("DEST is a file", a_file, "… is a file; give a folder for the data set."),
    Case(
        "DEST inside SOURCE",
        lambda root: [sound_source(root), root / "source" / "set"],
        "the data set … would lie inside its source …; choose another folder.",
    ),
    Case(
        "a key that is too short",
        option("--key-file", "key", key=b"secret"),
        "the key for patients' names is shorter than 16 bytes and can be guessed; make a longer one.",
    ),
    Case(
        "a centre that there is not",
        option("--centre", "hips"),
        "centre 'hips' is unknown; choose from box, lungs.",
    ),
    Case(
        "fractions that do not sum to 1",
        option("--split", 0.5, 0.5, 0.5),
        "split fractions (0.5, 0.5, 0.5) do not fit; give three numbers, zero or more, that sum to 1.",
    ),
    Case(
        "a pattern that is no regular expression",
        option("--patient-pattern", "(p"),
        "patient pattern '(p' is no regular expression (…); repair or quote it.",
    ),
    Case(
        "a geometry that is not JSON",
        option("--geometry", "views", views=b"{"),
        "geometry file … is not JSON (…); give a geometry.json.",
    ),
]


@parametrize(REQUESTS)
def test_requests(command: Command, tmp_path: Path, case: Case) -> None:  # noqa: F811
    arguments = case.make(tmp_path)
    before = snapshot(tmp_path)
    assert_refused(command("prepare", *arguments), case.says)
    assert snapshot(tmp_path) == before


def no_chest(root: Path) -> list[object]:
    write_nifti(root / "source" / "legs.nii.gz", whole_body()[:, :, :30])
    return [root / "source", root / "set", "--centre", "lungs", *PREPARE]


NOTHING_MADE = Case(
    "--centre lungs for scans without lungs only", no_chest, "no patient of … could be made; see …/series.csv."
)


def test_nothing_made(command: Command, tmp_path: Path) -> None:  # noqa: F811
    arguments = NOTHING_MADE.make(tmp_path)
    before = snapshot(tmp_path / "source")
    assert_refused(command("prepare", *arguments), NOTHING_MADE.says)
    assert snapshot(tmp_path / "source") == before
    (row,) = table(tmp_path / "set")
    assert row["reason"] == "the CT shows no lungs to aim at; leave it out, or aim at the centre of its box"


def test_a_named_pipe_in_the_tree_is_not_opened(command: Command, tmp_path: Path) -> None:  # noqa: F811
    source = sound_source(tmp_path)
    os.mkfifo(source / "pipe.dcm")
    assert command("prepare", source, tmp_path / "set", *PREPARE)[0] == 0


def as_typed(*arguments: object, under: Sequence[object] = ()) -> tuple[int, str]:
    """In a process of its own, as the console script."""
    words = [*under, Path(sys.executable).with_name("drr2ct"), *arguments]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


NO_PERMISSION = Case(
    "a folder and a file without permission",
    lambda source: (source / "bad").chmod(0),
    "permission denied; repair the link or its permissions",
    LEFT_OUT,
)


@pytest.mark.slow
def test_no_permission(tmp_path: Path) -> None:
    source, dest = tmp_path / "source", tmp_path / "set"
    write_nifti(source / "sound.nii.gz", chest(VOLUME))
    write_series(source / "bad", patient="bad")
    write_nifti(source / "bad too.nii.gz", chest(VOLUME)).chmod(0)
    NO_PERMISSION.make(source)
    bounded: list[object] = []
    if os.geteuid() == 0:  # root may read everything, unless that is taken away
        bounded = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        if shutil.which("setpriv") is None:
            pytest.skip("root may read everything, and there is no setpriv to take that away")
    status, message = as_typed("prepare", source, dest, *PREPARE, under=bounded)
    (source / "bad").chmod(0o755)
    assert status == 0, message
    reasons = {row["source"]: row["reason"] for row in table(dest)}
    assert reasons["bad"] == NO_PERMISSION.says
    assert reasons["bad too.nii.gz"] == "no permission to read the file; change its mode"
    assert (dest / "sound" / "sound.nii.gz").exists()


# --------------------------------------------------------------------------- prepare --check


GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=128)


def asymmetric(seed: int) -> np.ndarray:
    """With a liver and a breastbone: the crude chest is too much alike from all sides."""
    values = chest(seed=seed)
    values[18:30, 8:20, 2:10] = 60
    values[17:20, 25:28, 8:22] = 700
    return values


def stored(change: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        root.mkdir()
        GEOMETRY.save(root / "geometry.json")
        path = write_nifti(root / "p" / "p.nii.gz", asymmetric(0))
        images = change(list(render_drr(LoadCT()(path), GEOMETRY)))
        for view, image in zip(GEOMETRY.views, images, strict=True):
            write_radiograph(path.with_name(f"p_{view.name}_drr.nii.gz"), image)

    return make


def one_ct_in_two_parts(root: Path) -> None:
    twins(root)
    listed = {part: [{"label": f"{name}/{name}.nii.gz"}] for part, name in (("training", "p"), ("test", "q"))}
    (root / "dataset.json").write_text(json.dumps(listed))


def twins(root: Path) -> None:
    """A CT, and the same with every two slices in one."""
    values = asymmetric(0)
    write_nifti(root / "p" / "p.nii.gz", values)
    thick = np.diag([10.0, 10, 20, 1])
    thick[2, 3] = 5
    write_nifti(root / "q" / "q.nii.gz", values.reshape(*values.shape[:2], -1, 2).mean(axis=3).round(), thick)


_TURNED = "1 of 1 patients have radiographs that are stored"
SETS = [
    Case(
        "PA and lateral exchanged",
        stored(lambda views: views[::-1]),
        "1 of 1 patients have two radiographs that are exchanged: rename their files.",
    ),
    Case(
        "a mirrored lateral",
        stored(lambda views: [views[0], views[1].flip(1)]),
        f"{_TURNED} mirrored: turn them before training.",
    ),
    Case(
        "radiographs turned by 180°",
        stored(lambda views: [view.flip(0, 1) for view in views]),
        f"{_TURNED} turned by 180°: turn them before training.",
    ),
    Case(
        "radiographs stored feet first",
        stored(lambda views: [view.flip(0) for view in views]),
        f"{_TURNED} feet first: if all have, set feet_first to true.",
    ),
    Case(
        "radiographs in other units",
        stored(lambda views: [view * 3 for view in views]),
        "1 of 1 patients have other problems; see check.csv.",
    ),
    Case(
        "a CT of stored values (HU + 1024) in a data set",
        lambda root: write_nifti(root / "p" / "p.nii.gz", padded(chest(VOLUME) + 1024)),
        "1 of 1 patients have other problems; see check.csv.",
    ),
    Case(
        "one CT in training and test, with slices twice as thick",
        one_ct_in_two_parts,
        "1 of 2 patients have other problems; see check.csv.",
    ),
]


@parametrize(SETS)
def test_sets(command: Command, tmp_path: Path, case: Case) -> None:  # noqa: F811
    root = tmp_path / "set"
    case.make(root)
    before = snapshot(root)
    assert_refused(command("prepare", root, "--check"), case.says)
    after = snapshot(root)
    assert after.keys() - before.keys() == {str(root / "check.csv"), str(root / "contact-sheet.png")}
    assert before.items() <= after.items()


# --------------------------------------------------------------------------- train, evaluate


def make_patients(root: Path, count: int = 3) -> Path:
    for i in range(count):
        write_nifti(root / f"p{i}" / f"p{i}.nii.gz", chest(VOLUME, seed=i))
    return root


def listing(text: str) -> Callable[[Path], object]:
    return lambda root: (make_patients(root) / "dataset.json").write_text(text)


def every_ct(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for i in range(3):
            path = make_patients(root) / f"p{i}" / f"p{i}.nii.gz"
            path.unlink()
            make(path)

    return spoil


def gap(root: Path) -> None:
    for i in range(3):
        (root / f"p{i}").mkdir()
        write_series(root / f"p{i}" / "series", patient=f"p{i}", skip=(7,))


DATA_SETS = [
    Case(
        "a data set that does not exist",
        lambda root: root.rmdir(),
        "data set folder … does not exist; set dataset_dir to a folder of patient folders.",
    ),
    Case(
        "a data set without patients",
        lambda root: None,
        "data set folder … holds no patient; expected <patient>/<patient>.nii.gz (or .nii, .nrrd, .nhdr, .mha, "
        ".mhd, .hdr, .hdr.gz, or a DICOM folder) inside.",
    ),
    Case(
        "fewer than 3 patients",
        lambda root: make_patients(root, 2),
        "2 patients are too few to split into training, validation and test; 3 or more are needed.",
    ),
    Case(
        "a data list that is not JSON",
        listing("{"),
        "data list … is not a MONAI data list in JSON (…); write it again.",
    ),
    Case("a data list without patients", listing("{}"), "data list … has no patients under 'training'; add some."),
    Case(
        "a data list that names a missing file",
        listing('{"training": [{"label": "a/a.nii.gz"}]}'),
        "data list …: … does not exist; restore it or take it off the list.",
    ),
    Case(
        "a data list that leads outside (../)",
        listing('{"training": [{"label": "p0/../../secret.nii.gz", "patient": "a"}]}'),
        "data list …: … lies outside the data set's folder; give paths inside it.",
    ),
    Case(
        "a data list that leads outside (/etc)",
        listing('{"training": [{"label": "/etc/passwd"}]}'),
        "data list …: /etc/passwd lies outside the data set's folder; give paths inside it.",
    ),
    Case(
        "a patient's name that is a path (../a)",
        listing('{"training": [{"label": "p0/p0.nii.gz", "patient": "../a"}]}'),
        "data list …: patient name '../a' cannot be a file name; rename it.",
    ),
    Case(
        "a patient in two parts",
        listing('{"training": [{"label": "p0/p0.nii.gz"}], "test": [{"label": "p0/p0.nii.gz"}]}'),
        "data list …: patient p0 is in 'training' and in 'test'; keep one.",
    ),
    Case(
        "a truncated CT in training",
        every_ct(lambda path: write_nifti(path, chest(VOLUME)) and path.write_bytes(path.read_bytes()[:3000])),
        "patient … cannot be read (CT … cannot be read (…); it may be truncated or of another type; copy or export it "
        "again); repair or remove it, or set on_bad_sample to skip.",
    ),
    Case(
        "a DICOM folder with a missing slice in training",
        gap,
        "data set …: patient … has no CT that can be used (series: 1 slice is missing, the first after z = … mm; "
        "download the series again); repair or remove it, or set on_bad_sample to skip.",
    ),
    Case(
        "voxels of 900 mm (wrong units) in training",
        every_ct(lambda path: write_nifti(path, chest(VOLUME), np.diag([900.0, 900, 900, 1]))),
        "patient … cannot be read (CT … has voxels of 900×900×900 mm; no CT has that; check the units of its "
        "header); repair or remove it, or set on_bad_sample to skip.",
    ),
]

TINY = [
    part
    for override in ("size=16", "detector_size=24", "num_workers=0", "precision=fp32", "train#trainer#max_epochs=1")
    for part in ("--set", override)
]


@parametrize(DATA_SETS)
def test_data_sets(command: Command, tmp_path: Path, case: Case) -> None:  # noqa: F811
    root, out = tmp_path / "set", tmp_path / "out"
    root.mkdir()
    case.make(root)
    before = snapshot(tmp_path)
    result = command("train", root, "--output", out, "--network", "cascade64", *TINY)
    assert_refused(result, case.says)
    assert {path for path in snapshot(tmp_path) if not path.startswith(str(out))} == set(before)
    assert not list(out.rglob("*.pt"))
    assert_nothing_half_written(out)


STARTS = [
    Case(
        "one CT in training and validation, with slices twice as thick",
        twins,
        "q (validation) shows the CT of p (training), so what is measured there is not of a new patient: keep one",
        USED,
    ),
    Case(
        "the same, in a split that nobody chose (a folder without dataset.json)",
        lambda root: (twins(root), write_nifti(root / "r" / "r.nii.gz", chest(VOLUME, 5))),
        "p shows the CT of q (validation) and is left out of the training…",
        USED,
    ),
    Case(
        "a whole body and a chest",
        lambda root: (
            write_nifti(root / "p" / "p.nii.gz", whole_body()),
            write_nifti(root / "q" / "q.nii.gz", asymmetric(0)),
        ),
        "patient p: the lungs' centre is … mm from the isocentre, and the cube of 360 mm holds 0 % of them (prepare "
        "with --centre lungs aims at it: … %)",
        USED,
    ),
    Case(
        "scans of 24 mm",
        lambda root: [
            write_nifti(root / name / f"{name}.nii.gz", chest(VOLUME, k)[:, :, 4:12], np.diag([14.0, 14 - k, 3, 1]))
            for k, name in enumerate("pq")
        ],
        "…patient p: the scan is 24 mm high, the cube 360 mm…",
        USED,
    ),
]


@parametrize(STARTS)
def test_starts(tmp_path: Path, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.make(tmp_path)
    parts = {part: [{"patient": name, "label": str(tmp_path / name / f"{name}.nii.gz")}] for part, name in _PQ}
    left_out: list[str] = []
    if (tmp_path / "r").is_dir():
        parts["training"].append({"patient": "r", "label": str(tmp_path / "r" / "r.nii.gz")})
    before = snapshot(tmp_path)
    report_on(
        parts,
        VolumeGrid(16),
        tmp_path / "out" / "cache",
        leave_out=left_out.extend if (tmp_path / "r").is_dir() else None,
    )
    assert matches(" ".join(caplog.messages), case.says), caplog.messages
    assert left_out == (["p"] if (tmp_path / "r").is_dir() else [])
    assert before.items() <= snapshot(tmp_path).items()
    assert_nothing_half_written(tmp_path)


_PQ = (("training", "p"), ("validation", "q"))


def varied(count: int, *arguments: str) -> Callable[[Path], list[str]]:
    """So many patients, and the arguments."""

    def make(root: Path) -> list[str]:
        for i in range(count):
            write_nifti(root / f"p{i}" / f"p{i}.nii.gz", chest(VOLUME, seed=i))
        return list(arguments)

    return make


def taken_registration(root: Path) -> list[str]:
    taken = root / "p0" / "notes.txt"
    arguments = varied(6, "--vary", "between-patients", "--set", f"registration_dir={taken}/here")(root)
    taken.write_text("a file")
    return arguments


VARIED = [
    Case(
        "a way to vary that there is not",
        varied(3, "--vary", "around"),
        "vary is 'around'; choose off (no vary.yaml), within-patients or between-patients.",
    ),
    Case(
        "a misspelt variation",
        varied(3, "--vary", "within-patients", "--set", "variation={scael: 0.1}"),
        "variation has no scael; choose from …",
    ),
    Case(
        "more than half of each end cut off",
        varied(3, "--vary", "within-patients", "--set", "variation={coverage: 0.6}"),
        "coverage is 0.6; at either end less than 0.5 of a scan can be cut off.",
    ),
    Case(
        "one training patient, between patients",
        varied(3, "--vary", "between-patients"),
        "between patients there have to be two or more, the training set has 1; set vary to within-patients.",
    ),
    Case(
        "registrations where nothing can be written",
        taken_registration,
        "registration folder … cannot be written (…); set registration_dir to another.",
    ),
    Case(
        "no variations in an epoch",
        varied(3, "--vary", "within-patients", "--set", "variations=0"),
        "variations is 0; an epoch needs at least 1 of each patient.",
    ),
]


@parametrize(VARIED)
def test_varied_training(command: Command, tmp_path: Path, case: Case) -> None:  # noqa: F811
    root, out = tmp_path / "set", tmp_path / "out"
    arguments = case.make(root)
    before = snapshot(tmp_path)
    result = command("train", root, "--output", out, "--network", "cascade64", *TINY, *arguments)
    assert_refused(result, case.says)
    assert {path for path in snapshot(tmp_path) if not path.startswith(str(out))} == set(before)
    assert not list(out.rglob("last.pt"))
    assert_nothing_half_written(out)


def test_patients_folders_may_be_links(tmp_path: Path) -> None:
    from drr2ct.pipeline.data.datalist import load_datalist, write_datalist
    from drr2ct.pipeline.data.patients import find_patients
    from drr2ct.pipeline.data.splitting import split_patients

    make_patients(tmp_path / "disk")
    root = tmp_path / "set"
    root.mkdir()
    for folder in (tmp_path / "disk").iterdir():
        (root / folder.name).symlink_to(folder)
    write_datalist(root, split_patients(find_patients(root)), "links")
    assert load_datalist(root, "training")[0]["label"].startswith(str(root))


# --------------------------------------------------------------------------- reconstruct, evaluate


@dataclass(frozen=True)
class Sound:
    """What works: a checkpoint with random weights, two radiographs, and an empty folder."""

    checkpoint: Path
    pa: Path
    lateral: Path
    folder: Path


NETWORK_GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=64)


def write_network(path: Path, geometry: BiplanarGeometry = NETWORK_GEOMETRY) -> Path:
    torch.manual_seed(0)
    small = {key.split("#")[1]: value for key, value in SMALL.items() if key.startswith("network_def#")}
    network = create_network("cascade64", geometry=geometry, **small)
    about = describe(network, "cascade64", "cube", {"training": [{"patient": "trained"}]})
    return write_checkpoint(path, {"network": network.state_dict(), "description": about})


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    folder = tmp_path_factory.mktemp("sound")
    path = write_nifti(folder / "ct" / "ct.nii.gz", asymmetric(3))
    views = [folder / "pa.png", folder / "lat.png"]
    for file, image in zip(views, render_drr(LoadCT()(path), NETWORK_GEOMETRY), strict=True):
        write_radiograph(file, image)
    return Sound(write_network(folder / "network.pt"), *views, folder)


@pytest.fixture
def sound(sound_files: Sound, tmp_path: Path) -> Iterator[Sound]:
    before = snapshot(sound_files.folder)
    yield Sound(sound_files.checkpoint, sound_files.pa, sound_files.lateral, tmp_path)
    assert snapshot(sound_files.folder) == before


def counts(sound: Sound) -> np.ndarray:
    return np.asarray(Image.open(sound.pa)).astype(np.uint16)


def picture(sound: Sound) -> np.ndarray:
    values = counts(sound)
    return (values / values.max() * 255).astype(np.uint8)


def as_pa(write: Callable[[Path, Sound], object], name: str, *more: object) -> Callable[[Sound], list[object]]:
    """A PA radiograph of another kind beside the sound lateral."""

    def make(sound: Sound) -> list[object]:
        path = sound.folder / name
        write(path, sound)
        return ["--pa", path, "--lateral", sound.lateral, *more]

    return make


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (90, 80)).astype(np.uint8)


def lateral_film() -> np.ndarray:
    return (255 * toned(line_integrals()[1][FIELD])).round().byte().numpy()


def both_films() -> np.ndarray:
    halves = [toned(image[FIELD[0], 32:96]) for image in line_integrals()]
    return (255 * torch.hstack(halves)).round().byte().numpy()


def film_as_pa(made: Callable[[], np.ndarray], *more: object) -> Callable[[Sound], list[object]]:
    """A picture for PA, and a checkpoint that holds the statistics of a training set's radiographs."""

    def make(sound: Sound) -> list[object]:
        path, weights = sound.folder / "film.png", sound.folder / "knows.pt"
        Image.fromarray(made()).save(path)
        content = read_checkpoint(sound.checkpoint)
        write_checkpoint(weights, {**content, "description": {**content["description"], "radiographs": statistics()}})
        return ["--pa", path, "--lateral", sound.lateral, "--checkpoint", weights, *more]

    return make


def dicom(path: Path, pixels: np.ndarray | None, **tags: Any) -> Path:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = tags.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "DX", "MONOCHROME2", 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape
        compressed = data.file_meta.TransferSyntaxUID.is_compressed
        raw = pixels.astype("<u2").tobytes()
        data.PixelData = pydicom.encaps.encapsulate([raw]) if compressed else raw
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def bombs_target(sound: Sound) -> Path:
    return sound.folder / "executed"


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return (os.mkdir, (str(self.target), 0o755))


def checkpoint(make: Callable[[Path, Sound], object]) -> Callable[[Sound], list[object]]:
    def write(sound: Sound) -> list[object]:
        path = sound.folder / "c.pt"
        make(path, sound)
        return ["--pa", sound.pa, "--lateral", sound.lateral, "--checkpoint", path]

    return write


def plain_bomb(path: Path, sound: Sound) -> None:
    import pickle

    path.write_bytes(pickle.dumps(Bomb(bombs_target(sound))))


def torch_bomb(path: Path, sound: Sound) -> None:
    torch.save({**read_checkpoint(sound.checkpoint), "extra": Bomb(bombs_target(sound))}, path)


def other_network(path: Path, sound: Sound) -> None:
    data = read_checkpoint(sound.checkpoint)
    data["description"]["config"]["volume_channels"] += 1
    torch.save(data, path)


def nan_nifti(path: Path, sound: Sound) -> None:
    values = counts(sound).astype(np.float32) / 4096
    values[3, 3] = np.nan
    nib.save(nib.Nifti1Image(values.T, np.eye(4)), path)


def scaled_nifti(path: Path, sound: Sound, top: float) -> None:
    values = counts(sound) / counts(sound).max() * top
    path.write_bytes(nib.Nifti1Image(values.astype(np.float32).T, np.eye(4)).to_bytes())


def in_mode(mode: str) -> Callable[[Path, Sound], None]:
    return lambda path, sound: Image.fromarray(picture(sound)).convert(mode).save(path)


def marked(path: Path, sound: Sound) -> None:
    values = np.stack([picture(sound)] * 3, axis=-1)
    values[2:6, 2:6] = (220, 0, 0)
    Image.fromarray(values).save(path)


def red_capture(path: Path, sound: Sound) -> None:
    values = np.stack([picture(sound), picture(sound) // 3, picture(sound) // 3], axis=-1)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    tags |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    dicom(path, picture(sound), PixelData=values.tobytes(), **tags)


def two_patients(sound: Sound, keyword: str = "PatientID") -> list[object]:
    values = np.asarray(Image.open(sound.lateral)).astype(np.uint16)
    pa = dicom(sound.folder / "a.dcm", counts(sound), **{keyword: "A"})
    return ["--pa", pa, "--lateral", dicom(sound.folder / "b.dcm", values, **{keyword: "B"})]


def grey_capture(path: Path, sound: Sound, **tags: Any) -> None:
    values = np.stack([picture(sound)] * 3, axis=-1)
    tags |= {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    tags |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    dicom(path, picture(sound), PixelData=values.tobytes(), **tags)


def bare_data_set(path: Path, sound: Sound) -> None:
    bare = pydicom.Dataset()
    bare.update(pydicom.dcmread(dicom(path, counts(sound))))
    bare.save_as(path, implicit_vr=True, little_endian=True)


def cut_tiff(path: Path, sound: Sound) -> None:
    Image.fromarray(picture(sound)).save(path, compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:-200])


def of_knee() -> list[pydicom.Dataset]:
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "72696002", "SCT", "Knee"
    return [code]


def film(path: Path, sound: Sound) -> None:
    """Grey in the middle of a yellowish light box, as a telephone sees it."""
    values = np.zeros((90, 90, 3), np.uint8)
    values[:] = (240, 235, 210)
    values[12:76, 14:78] = picture(sound)[..., None]
    Image.fromarray(values).save(path)


def spaced(sound: Sound) -> list[object]:
    folder = sound.folder / "Müller 患者" / "x ray"
    folder.mkdir(parents=True)
    pa, lateral = (Path(shutil.copy(path, folder)) for path in (sound.pa, sound.lateral))
    return ["--pa", pa, "--lateral", lateral, "--patient", "Müller 患者 7"]


def exists(out: Path) -> None:
    assert nib.load(out / "ct.nii.gz").shape == (16, 16, 16)


_BOMB = "checkpoint … holds more than tensors and plain values; it was not loaded."

RADIOGRAPHS = [
    Case(
        "a radiograph that does not exist",
        as_pa(lambda path, sound: None, "none.png"),
        "radiograph … does not exist; check the path.",
    ),
    Case(
        "an empty radiograph",
        as_pa(lambda path, sound: path.touch(), "a.png"),
        "radiograph … is an empty file; export it again.",
    ),
    Case(
        "a text file called .png",
        as_pa(lambda path, sound: path.write_text("not a picture"), "a.png"),
        "radiograph … is no PNG, JPEG, TIFF, DICOM, NIfTI, NRRD or MetaImage file; export it as one.",
    ),
    Case(
        "a truncated PNG",
        as_pa(lambda path, sound: path.write_bytes(sound.pa.read_bytes()[:300]), "a.png"),
        "radiograph … is damaged or incomplete (…); export it again.",
    ),
    Case(
        "a truncated NIfTI radiograph",
        as_pa(lambda path, sound: (nan_nifti(path, sound), path.write_bytes(path.read_bytes()[:200])), "a.nii.gz"),
        "radiograph … is not a readable NIfTI image (…); export it again.",
    ),
    Case(
        "a NIfTI radiograph under another name",
        as_pa(lambda path, sound: scaled_nifti(path, sound, 8.0), "a.image"),
        "",
        USED,
        exists,
    ),
    Case("a truncated TIFF", as_pa(cut_tiff, "a.tif"), "radiograph … is damaged or incomplete (…); export it again."),
    Case(
        "a picture called .dcm",
        as_pa(lambda path, sound: Image.fromarray(picture(sound)).save(path, format="PNG"), "a.dcm"),
        "",
        USED,
        exists,
    ),
    Case(
        "a grey picture kept as RGB",
        as_pa(lambda path, sound: Image.fromarray(np.stack([picture(sound)] * 3, -1)).save(path), "a.png"),
        "",
        USED,
        exists,
    ),
    Case(
        "a grey picture with an alpha channel",
        as_pa(lambda path, sound: Image.fromarray(picture(sound)).convert("LA").save(path), "a.png"),
        "",
        USED,
        exists,
    ),
    Case("a grey picture with a palette", as_pa(in_mode("P"), "a.png"), "", USED, exists),
    Case("a grey picture as BMP", as_pa(in_mode("L"), "a.bmp"), "", USED, exists),
    Case(
        "a picture with a coloured marker",
        as_pa(marked, "a.png"),
        "radiograph … has colours in … of its pixels, so it is no plain radiograph; export it as greyscale, or use its "
        "luminance (--set colour=ignore).",
    ),
    Case("the same, with --set colour=ignore", as_pa(marked, "a.png", "--set", "colour=ignore"), "", USED, exists),
    Case(
        "a photo of a film",
        as_pa(film, "film.jpg", "--intensity", "display"),
        "radiograph … has colours in … of its pixels, so it is no plain radiograph; export it as greyscale, or use its "
        "luminance (--set colour=ignore).",
    ),
    Case(
        "a picture of two pages",
        as_pa(lambda path, sound: tifffile.imwrite(path, np.stack([picture(sound)] * 2)), "a.tif"),
        "radiograph … has 2 pages; export a single image.",
    ),
    Case(
        "a picture of 400 megapixels",
        as_pa(lambda path, sound: Image.new("1", (20000, 20000)).save(path), "a.png"),
        "radiograph … has more pixels than any film; export it smaller.",
    ),
    Case(
        "numbers up to 40, too large for line integrals",
        as_pa(lambda path, sound: scaled_nifti(path, sound, 40), "a.nii.gz"),
        "radiograph … holds floating-point numbers up to 40, too large for line integrals (at most 16) and too small "
        "for a picture from 0 to 255; export it in one of these units.",
    ),
    Case(
        "numbers up to 1.04, line integrals in another unit",
        as_pa(lambda path, sound: scaled_nifti(path, sound, 1.04), "a.nii.gz"),
        "radiograph … holds floating-point numbers up to 1.04, too small for line integrals of a chest (at least 2) "
        "and too large for a picture from 0 to 1; export it in one of these units, or declare the intensity.",
    ),
    Case(
        "a CT as radiograph",
        as_pa(lambda path, sound: write_nifti(path, asymmetric(3)), "a.nii.gz"),
        "radiograph … is a volume of … voxels, such as a CT; give a radiograph.",
    ),
    Case(
        "8 bits declared as line integrals",
        as_pa(lambda path, sound: Image.fromarray(picture(sound)).save(path), "a.png", "--intensity", "line_integral"),
        "radiograph … has 8 bits, too few for line integrals; declare display.",
    ),
    Case(
        "a DICOM radiograph without pixels",
        as_pa(lambda path, sound: dicom(path, None), "a.dcm"),
        "DICOM file … has no pixel data; give the image itself.",
    ),
    Case(
        "a DICOM radiograph with damaged JPEG-LS",
        as_pa(lambda path, sound: dicom(path, counts(sound), syntax=JPEGLSLossless), "a.dcm"),
        "DICOM file … is compressed (JPEG-LS …) and cannot be decoded: it is damaged or incomplete; export it again.",
    ),
    Case(
        "a DICOM radiograph in a video codec, for which there is no decoder",
        as_pa(lambda path, sound: dicom(path, counts(sound), syntax=MPEG2MPML), "a.dcm"),
        "DICOM file … is compressed (MPEG2 …) and cannot be decoded, as there is no decoder for it; decompress the "
        "file first.",
    ),
    Case(
        "counts of a DICOM file declared as line integrals",
        as_pa(lambda path, sound: dicom(path, counts(sound)), "a.dcm", "--intensity", "line_integral"),
        "radiograph … holds the counts of a detector or a picture, not line integrals; declare display, transmission, "
        "or leave the intensity to the file (auto).",
    ),
    Case(
        "DICOM windows that show nothing",
        as_pa(lambda path, sound: dicom(path, counts(sound), WindowCenter=[-9999, 5], WindowWidth=[10, 0]), "a.dcm"),
        "",
        USED,
        exists,
    ),
    Case(
        "a window of an unknown VOI LUT Function",
        as_pa(
            lambda path, sound: dicom(path, counts(sound), WindowCenter=9, WindowWidth=9, VOILUTFunction="X"), "a.dcm"
        ),
        "",
        USED,
        exists,
    ),
    Case(
        "a grey DICOM capture kept as RGB, with a window",
        as_pa(lambda path, sound: grey_capture(path, sound, WindowCenter=9, WindowWidth=9), "a.dcm"),
        "",
        USED,
        exists,
    ),
    Case("a DICOM radiograph without preamble and meta header", as_pa(bare_data_set, "a"), "", USED, exists),
    Case(
        "a window that the DICOM file has not",
        as_pa(lambda path, sound: dicom(path, counts(sound), WindowCenter=9, WindowWidth=9), "a.dcm", "--window", "2"),
        "radiograph … has 1 windows and no window 2; give one of them, none, or centre,width.",
    ),
    Case(
        "a picture made smaller, with the pitch of the larger one in its header",
        as_pa(lambda path, sound: dicom(path, counts(sound), ImagerPixelSpacing=[2.5, 2.5]), "a.dcm"),
        "radiograph … shows 160×160 mm by its pitch of 2.5 mm, too small for a chest; if it was made smaller or larger "
        "than the picture that its header speaks of, state the pitch that it has now (--pixel-spacing-mm).",
    ),
    Case(
        "an oblique given as PA",
        as_pa(lambda path, sound: dicom(path, counts(sound), ViewPosition="RAO"), "a.dcm"),
        "radiograph … is marked RAO, an oblique view and not pa; give the right file, or use it all the same by --set "
        "check_header=false.",
    ),
    Case(
        "a lateral decubitus",
        as_pa(lambda path, sound: dicom(path, counts(sound), ViewPosition="LLD"), "a.dcm"),
        "radiograph … is marked LLD, a decubitus view and not pa; give the right file, or use it all the same by --set "
        "check_header=false.",
    ),
    Case(
        "a beam from 30° by its header",
        as_pa(lambda path, sound: dicom(path, counts(sound), PositionerPrimaryAngle=30), "a.dcm"),
        "radiograph … has the Positioner Primary Angle 30°, an oblique view and not pa; give the right file, or use it "
        "all the same by --set check_header=false.",
    ),
    Case(
        "a knee",
        as_pa(lambda path, sound: dicom(path, counts(sound), BodyPartExamined="KNEE"), "a.dcm"),
        "radiograph … has the Body Part Examined KNEE, not a chest; give the right file, or use it all the same by "
        "--set check_header=false.",
    ),
    Case(
        "a knee, by its Anatomic Region",
        as_pa(lambda path, sound: dicom(path, counts(sound), AnatomicRegionSequence=of_knee()), "a.dcm"),
        "radiograph … has the Anatomic Region Knee, not a chest; give the right file, or use it all the same by --set "
        "check_header=false.",
    ),
    Case(
        "a slice of a CT as radiograph",
        as_pa(lambda path, sound: dicom(path, counts(sound), Modality="CT"), "a.dcm"),
        "radiograph … has the Modality CT, which is no radiograph's; give the right file, or use it all the same by "
        "--set check_header=false.",
    ),
    Case(
        "a slice of a CT whose Modality was taken out",
        as_pa(lambda path, sound: dicom(path, counts(sound), Modality="", SOPClassUID=CTImageStorage), "a.dcm"),
        "radiograph … has the Modality CT, which is no radiograph's; give the right file, or use it all the same by "
        "--set check_header=false.",
    ),
    Case(
        "a coloured DICOM capture",
        as_pa(red_capture, "a.dcm"),
        "radiograph … has colours in … of its pixels, so it is no plain radiograph; export it as greyscale, or use its "
        "luminance (--set colour=ignore).",
    ),
    Case(
        "the same, with --set colour=ignore, DICOM",
        as_pa(red_capture, "a.dcm", "--set", "colour=ignore"),
        "",
        USED,
        exists,
    ),
    Case(
        "another patient's lateral, by Patient ID",
        two_patients,
        "a.dcm and b.dcm are of two patients: their headers have different Patient IDs; give the right file, or use it "
        "all the same by --set check_header=false.",
    ),
    Case(
        "the same, with --set check_header=false",
        lambda sound: [*two_patients(sound), "--set", "check_header=false"],
        "",
        USED,
        exists,
    ),
    Case(
        "another patient's lateral, by name where an ID is missing",
        lambda sound: two_patients(sound, "PatientName"),
        "a.dcm and b.dcm are of two patients: their headers have different names; give the right file, or use it all "
        "the same by --set check_header=false.",
    ),
    Case(
        "a DICOM film of many frames",
        as_pa(lambda path, sound: dicom(path, counts(sound), NumberOfFrames=3), "a.dcm"),
        "DICOM file … has 3 frames; give a single radiograph (CR or DX).",
    ),
    Case(
        "a lateral DICOM given as PA",
        as_pa(lambda path, sound: dicom(path, counts(sound), ViewPosition="LL"), "a.dcm", "--intensity", "display"),
        "radiograph … is marked LL, but view pa looks from 0° (…; check the order of the files.",
    ),
    Case(
        "NaN in a radiograph",
        as_pa(nan_nifti, "a.nii.gz"),
        "radiograph … holds NaN or infinite values; export it again.",
    ),
    Case(
        "a black radiograph",
        as_pa(lambda path, sound: Image.fromarray(np.zeros((64, 64), np.uint16)).save(path), "a.png"),
        "radiograph … has the same value 0 everywhere; it shows nothing.",
    ),
    Case(
        "PA and lateral exchanged at the command",
        lambda sound: ["--pa", sound.lateral, "--lateral", sound.pa],
        "radiographs …, … look exchanged: the one for view lat is the more frontal; …",
    ),
    Case(
        "a picture that is no chest, to a checkpoint that knows what chests look like",
        film_as_pa(noise),
        "radiograph … looks like no radiograph of view pa, whichever way it is turned (…; 0.4 is needed); check that "
        "it is that view of a chest, or say that it is right as it is (--orientation as-is).",
    ),
    Case(
        "the same, with --orientation as-is",
        film_as_pa(noise, "--orientation", "as-is", "--set", "check_order=false"),
        "",
        USED,
        exists,
    ),
    Case(
        "a lateral film given as PA, likewise",
        film_as_pa(lateral_film),
        "radiograph … was given for view pa and looks like view lat (…); check the order of the files, or say that it "
        "is right as it is (--orientation as-is).",
    ),
    Case(
        "both films in one picture",
        film_as_pa(both_films),
        "radiograph … holds two: its left half looks like view pa (…), its right half like view lat (…), and the whole "
        "like neither (…); cut it in two and give one file for each view, or say that it is right as it is "
        "(--orientation as-is).",
    ),
    Case(
        "one picture for both views",
        lambda sound: ["--pa", sound.pa, "--lateral", sound.pa],
        "radiographs … and … are the same picture; give one file per view, or switch this check off (--set "
        "check_order=false).",
    ),
    Case(
        "an icon of a film",
        as_pa(lambda path, sound: Image.fromarray(noise()[:20, :20]).save(path), "a.png"),
        "radiograph … has 20×20 pixels, too few for a chest (at least 32 each way); export it in full size.",
    ),
    Case(
        "a strip of a film",
        as_pa(lambda path, sound: Image.fromarray(np.repeat(noise(), 2, axis=0)[:, :40]).save(path), "a.png"),
        "radiograph … shows 180×40 pixels, a strip and no whole film; give the film, or say how large its pixels are "
        "(--pixel-spacing-mm).",
    ),
    Case(
        "an orientation that is none",
        lambda sound: ["--pa", sound.pa, "--lateral", sound.lateral, "--orientation", "sideways"],
        "radiographs cannot have the orientation 'sideways'; give auto, as-is, mirrored, upside-down, half-turn, "
        "clockwise, anticlockwise.",
    ),
    Case(
        "a patient's name that is a path",
        lambda sound: ["--pa", sound.pa, "--lateral", sound.lateral, "--patient", "../evil"],
        "radiographs: patient name '../evil' cannot be a file name; rename it.",
    ),
    Case(
        "a folder as radiograph",
        lambda sound: ["--pa", sound.folder, "--lateral", sound.lateral],
        "radiograph … is a folder; give one image file.",
    ),
    Case(
        "a checkpoint that does not exist",
        checkpoint(lambda path, sound: None),
        "checkpoint … does not exist; check the path.",
    ),
    Case(
        "an empty checkpoint",
        checkpoint(lambda path, sound: path.touch()),
        "checkpoint … is an empty file; export it again.",
    ),
    Case(
        "a truncated checkpoint",
        checkpoint(lambda path, sound: path.write_bytes(sound.checkpoint.read_bytes()[:20000])),
        "checkpoint … cannot be read and was not loaded; it is truncated, damaged, or no archive as torch writes them: "
        "copy it again.",
    ),
    Case(
        "a checkpoint that is a pickle bomb",
        checkpoint(plain_bomb),
        "checkpoint … cannot be read and was not loaded; it is truncated, damaged, or no archive as torch writes them: "
        "copy it again.",
    ),
    Case("a pickle bomb inside a checkpoint of ours", checkpoint(torch_bomb), _BOMB),
    Case(
        "weights of another project",
        checkpoint(lambda path, sound: torch.save({"state_dict": {}}, path)),
        "checkpoint … was not written by drr2ct; give a file such as checkpoints/best_psnr.pt.",
    ),
    Case(
        "a checkpoint whose weights are of another network",
        checkpoint(other_network),
        "checkpoint … is of another network (cascade64); use the network and overrides it was trained with.",
    ),
    Case(
        "a checkpoint and a shipped network",
        lambda sound: [
            "--pa",
            sound.pa,
            "--lateral",
            sound.lateral,
            "--checkpoint",
            sound.checkpoint,
            "--model",
            "cascade64",
        ],
        "checkpoint … and the shipped network cascade64 cannot both be used; give one of them.",
    ),
    Case(
        "a network that is not shipped",
        lambda sound: ["--pa", sound.pa, "--lateral", sound.lateral, "--model", "cascade65"],
        "network cascade65 is not shipped here (shipped: …); choose one that is, or give a checkpoint.",
    ),
    Case("names with spaces and Unicode, radiographs", spaced, "", USED, exists),
]


@parametrize(RADIOGRAPHS)
def test_radiographs(command: Command, sound: Sound, case: Case) -> None:  # noqa: F811
    arguments = case.make(sound)
    before = snapshot(sound.folder)
    out = sound.folder / "out"
    given = [*arguments, "--output", out / "ct.nii.gz"]
    if not {"--checkpoint", "--model"} & set(map(str, arguments)):
        given += ["--checkpoint", sound.checkpoint]
    status, message = command("reconstruct", *given)
    assert not bombs_target(sound).exists(), "a checkpoint must never run code"
    if case.happens == USED:
        assert status == 0, message
    else:
        assert_refused((status, message), case.says)
        assert not list(out.rglob("*ct*"))
    assert before.items() <= snapshot(sound.folder).items()
    assert_nothing_half_written(out)
    if case.also is not None:
        case.also(out)


OUTPUTS = [
    Case(
        "an output that is one of the radiographs, also with --overwrite",
        lambda sound: ["--pa", own(sound, "pa.nii.gz"), "--output", sound.folder / "pa.nii.gz", "--overwrite"],
        "… would take the place of …, which it is made of; give another output.",
    ),
    Case(
        "an output whose name is too long",
        lambda sound: ["--pa", sound.pa, "--output", sound.folder / ("n" * 250 + ".nii.gz")],
        "the name of … is too long to be written, by … bytes; give a shorter one.",
    ),
]


def own(sound: Sound, name: str) -> Path:
    """A copy of the PA radiograph under another name."""
    return Path(shutil.copy(sound.pa, sound.folder / name))


@parametrize(OUTPUTS)
def test_outputs(command: Command, sound: Sound, case: Case) -> None:  # noqa: F811
    arguments = case.make(sound)
    before = snapshot(sound.folder)
    given = [*arguments, "--lateral", sound.lateral, "--checkpoint", sound.checkpoint]
    assert_refused(command("reconstruct", *given), case.says)
    assert snapshot(sound.folder) == before


INVERTED = Case(
    "an inverted DICOM picture (MONOCHROME1)",
    lambda sound: (
        dicom(sound.folder / "plain.dcm", counts(sound)),
        dicom(sound.folder / "inverted.dcm", 65535 - counts(sound), PhotometricInterpretation="MONOCHROME1"),
    ),
    "",
    USED,
)


def test_inverted(command: Command, sound: Sound) -> None:  # noqa: F811
    volumes = []
    for path in INVERTED.make(sound):
        out = sound.folder / f"{path.stem}.nii.gz"
        options = ("--lateral", path, "--intensity", "display", "--set", "check_order=false")
        result = command("reconstruct", "--pa", path, *options, "--checkpoint", sound.checkpoint, "--output", out)
        assert result[0] == 0, result
        volumes.append(nib.load(out).get_fdata())
    np.testing.assert_array_equal(*volumes)
    assert volumes[0].std() > 0


def other_geometry(sound: Sound) -> Path:
    root = make_patients(sound.folder / "set")
    geometry = BiplanarGeometry.from_angles(
        VolumeGrid(16), detector_size=64, source_to_isocentre_mm=1200, source_to_detector_mm=1500
    )
    geometry.save(root / "geometry.json")
    for i in range(3):
        images = render_drr(LoadCT()(root / f"p{i}" / f"p{i}.nii.gz"), geometry)
        for view, image in zip(geometry.views, images, strict=True):
            write_radiograph(root / f"p{i}" / f"p{i}_{view.name}_drr.nii.gz", image)
    return root


OTHER_GEOMETRY = Case(
    "a checkpoint of another geometry",
    other_geometry,
    "the radiographs of … were made with a source-to-isocentre distance of 1200 mm (view pa), but 1500 mm is needed; "
    "use a checkpoint of that geometry, or prepare the set with this one (--geometry).",
)


def test_other_geometry(command: Command, sound: Sound) -> None:  # noqa: F811
    root, out = OTHER_GEOMETRY.make(sound), sound.folder / "out"
    before = snapshot(root)
    assert_refused(command("evaluate", root, "--checkpoint", sound.checkpoint, "--output", out), OTHER_GEOMETRY.says)
    assert snapshot(root) == before
    assert not list(out.rglob("*.csv"))


def some_cut_off(which: Sequence[str]) -> Callable[[Sound], Path]:
    def make(sound: Sound) -> Path:
        root = make_patients(sound.folder / "set", 2)
        for name in which:
            path = root / name / f"{name}.nii.gz"
            path.write_bytes(path.read_bytes()[:3000])
        listed = [{"patient": name, "label": f"{name}/{name}.nii.gz"} for name in ("p0", "p1")]
        (root / "dataset.json").write_text(json.dumps({"test": listed}))
        return root

    return make


JUDGED = [
    Case(
        "a truncated CT among those to judge on",
        some_cut_off(["p1"]),
        "CT … cannot be read (…); it may be truncated or of another type; copy or export it again",
        USED,
    ),
    Case(
        "truncated CTs only to judge on",
        some_cut_off(["p0", "p1"]),
        "none of 2 patients can be read; the first, p0: CT … cannot be read (…); it may be truncated or of another "
        "type; copy or export it again.",
    ),
]


@parametrize(JUDGED)
def test_judged(command: Command, sound: Sound, case: Case) -> None:  # noqa: F811
    root, out = case.make(sound), sound.folder / "out"
    before = snapshot(root)
    fast = ("--set", "num_workers=0", "--set", "precision=fp32", "--set", "export_grid=none")
    status, message = command("evaluate", root, "--checkpoint", sound.checkpoint, "--output", out, *fast)
    assert snapshot(root) == before
    if case.happens == REFUSED:
        assert_refused((status, message), case.says)
        assert not list(out.rglob("*.csv"))
        return
    assert status == 0, message
    (row,) = read_rows(out / "left_out.csv")
    assert row["patient"] == "p1" and matches(row["reason"], case.says)
    assert [row["patient"] for row in read_rows(out / "patients.csv")] == ["p0", "mean"]


# --------------------------------------------------------------------------- files that are there


EXISTING = [
    Case(
        "a file that is there, inspect --export",
        lambda sound: ["inspect", sound.checkpoint, "--export", mine(sound, "model.safetensors")],
        "… exists; choose another name, or overwrite it (--overwrite).",
    ),
    Case(
        "a file that is there, export",
        lambda sound: ["export", "--checkpoint", sound.checkpoint, "--output", mine(sound, "network.pt2")],
        "… exists; choose another name, or overwrite it (--overwrite).",
    ),
]


def mine(sound: Sound, name: str) -> Path:
    path = sound.folder / name
    path.write_bytes(b"mine")
    return path


@parametrize(EXISTING)
def test_existing_files(command: Command, sound: Sound, case: Case) -> None:  # noqa: F811
    arguments = case.make(sound)
    before = snapshot(sound.folder)
    assert_refused(command(*arguments), case.says)
    assert snapshot(sound.folder) == before
    status, message = command(*arguments, "--overwrite")
    assert status == 0, message
    replaced = Path(str(arguments[-1]))
    assert replaced.stat().st_size > 1000
    assert_nothing_half_written(sound.folder)


# --------------------------------------------------------------------------- what is asked for in vain


_NO_PLACE = "… cannot be written (…); choose another place."
_NO_FILE = "… is a folder; give the name of a file."
IN_VAIN = [
    Case("a file where a folder is to be, robustness", lambda taken: ["robustness", ".", "--output", taken], _NO_PLACE),
    Case("a file where a folder is to be, demo", lambda taken: ["demo", "--output", taken], _NO_PLACE),
    Case("a folder that cannot be made, export", lambda taken: ["export", "--output", "/proc/x/network.ts"], _NO_PLACE),
    Case(
        "a folder that cannot be written, segmentations",
        lambda taken: ["segmentations", ".", ".", "--output", "/proc/dice.csv"],
        _NO_PLACE,
    ),
    Case(
        "a folder that cannot be written, prepare --report",
        lambda taken: ["prepare", ".", taken, "--report", "/proc/series.csv"],
        _NO_PLACE,
    ),
    Case("a folder where a file is to be, plan", lambda taken: ["plan", "--json", taken.parent], _NO_FILE),
    Case(
        "a folder where a file is to be, calibrate --overwrite",
        lambda taken: ["calibrate", ".", "--checkpoint", taken, "--output", folder_of(taken, "c.pt"), "--overwrite"],
        _NO_FILE,
    ),
    Case(
        "a device where a file is to be",
        lambda taken: ["plan", "--markdown", "/dev/null"],
        "/dev/null is a device; give the name of a file.",
    ),
    Case(
        "a check with options of how a data set is made",
        lambda taken: ["prepare", taken.parent, "--check", "--report", "x.csv", "--fov-mm", 300],
        "--fov-mm and --report have no effect without DEST, a data set to make; leave them out.",
    ),
    Case(
        "a data set to make with options of its check",
        lambda taken: ["prepare", taken.parent, "x", "--feet-first"],
        "--feet-first has no effect without --check; leave it out.",
    ),
    Case(
        "a geometry and a detector beside it",
        lambda taken: ["prepare", taken.parent, "x", "--geometry", taken, "--detector", 64],
        "--detector has no effect with --geometry; leave it out.",
    ),
    Case(
        "a plan of no samples at a speed",
        lambda taken: ["plan", "--samples", 0, "--throughput", "5 TFLOP/s"],
        "--throughput has no effect with --samples 0; leave it out.",
    ),
    Case(
        "a plan of one network with the metrics of a checkpoint",
        lambda taken: ["plan", "--checkpoint", taken],
        "--checkpoint has no effect without --compare; leave it out.",
    ),
    Case(
        "an inspection that writes nothing, with --overwrite",
        lambda taken: ["inspect", "--overwrite"],
        "--overwrite has no effect without --export; leave it out.",
    ),
    Case(
        "a demonstration without a training, with its seed",
        lambda taken: ["demo", "--reconstruct-only", "--seed", 1],
        "--seed has no effect with --reconstruct-only; leave it out.",
    ),
    Case(
        "a folder of patients, and one name for them",
        lambda taken: ["reconstruct", taken.parent, "--output", "x", "--patient", "jane"],
        "--patient has no effect on a folder of patients, who are named as their folders; leave it out.",
    ),
    Case(
        "a Patient ID for a volume that is not DICOM",
        lambda taken: ["reconstruct", "--pa", taken, "--lateral", taken, "--output", "x.nii", "--patient-id", "7"],
        "--patient-id has no effect on a volume that is not DICOM; leave it out.",
    ),
]


def folder_of(beside: Path, name: str) -> Path:
    beside.with_name(name).mkdir()
    return beside.with_name(name)


@parametrize(IN_VAIN)
def test_in_vain(command: Command, tmp_path: Path, case: Case) -> None:  # noqa: F811
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert_refused(command(*case.make(taken)), case.says)
    assert snapshot(tmp_path).keys() == {str(taken)} and taken.read_text() == "a file"


# --------------------------------------------------------------------------- full disks


FULL = [
    Case(
        "a disk that fills up, prepare",
        lambda root, disk: [
            "prepare",
            noisy(root),
            disk / "set",
            "--detector",
            16,
            "--workers",
            1,
        ],
        "the disk of … is full; finished patients are kept: free space and give the same command again.",
    ),
    Case(
        "a disk that fills up, train",
        lambda root, disk: [
            "train",
            make_patients(root / "set"),
            "--output",
            disk / "out",
            "--network",
            "cascade64",
            *TINY,
        ],
        "…the disk is full; …: free space, or set output_dir and cache_dir elsewhere, and give the same command again.",
    ),
]


def noisy(root: Path) -> Path:
    noise = np.random.default_rng(0).integers(-1000, 3000, (64, 64, 64), dtype=np.int16)
    for i in range(4):
        write_nifti(root / "source" / f"p{i}.nii.gz", noise)
    return root / "source"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with file_system(tmp_path / "disk", mebibytes=1) as folder:
        yield folder


@parametrize(FULL)
def test_full_disks(
    command: Command,  # noqa: F811
    tmp_path: Path,
    small_disk: Path,
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import drr2ct.pipeline.data.prepare as module

    monkeypatch.setattr(module, "_check_space", lambda *args: None)  # it would have refused to begin
    arguments = case.make(tmp_path, small_disk)
    before = {path: value for path, value in snapshot(tmp_path).items() if not path.startswith(str(small_disk))}
    assert_refused(command(*arguments), case.says)
    after = snapshot(tmp_path)
    assert before.items() <= after.items()
    assert [path for path in after if re.search(r"/\.[0-9a-f]{32}\.", path)] == []
    for path in small_disk.glob("set/p?/*.nii.gz"):
        assert nib.load(path).get_fdata().size


# --------------------------------------------------------------------------- the page


# --------------------------------------------------------------------------- serve

SERVING = [
    Case(
        "another address than this computer's own, without a token",
        lambda root: ["--host", "0.0.0.0"],
        "--host 0.0.0.0 lets others in; give a --token that they need (16 characters or more).",
    ),
    Case(
        "a token that can be guessed",
        lambda root: ["--token", "secret"],
        "the token is shorter than 16 characters, or not plain ASCII; make a longer one.",
    ),
    Case(
        "a network that does not exist, to serve",
        lambda root: ["--checkpoint", root / "network.pt"],
        "checkpoint … does not exist; check the path.",
    ),
    Case(
        "an address that is not this computer's",
        lambda root: ["--host", "192.0.2.1", "--token", "0123456789abcdef"],
        "192.0.2.1:0 cannot be used (…); choose another --host or --port.",
    ),
    Case(
        "a folder to keep results that is a file",
        lambda root: ["--keep", root / "weights.pt"],
        "… cannot be written (…); choose another folder to keep.",
    ),
]


@parametrize(SERVING)
def test_serving(command: Command, tmp_path: Path, case: Case) -> None:  # noqa: F811
    (tmp_path / "weights.pt").write_bytes(b"weights")
    before = snapshot(tmp_path)
    options = [*case.make(tmp_path), "--port", 0]
    if "--checkpoint" not in options:
        options += ["--checkpoint", tmp_path / "weights.pt"]
    assert_refused(command("serve", *options), case.says)
    assert snapshot(tmp_path) == before


# --------------------------------------------------------------------------- the page

SECTIONS = {
    "`drr2ct prepare SOURCE DEST`: what lies in SOURCE": [*SOURCES, NO_PERMISSION],
    "`drr2ct prepare SOURCE DEST`: what is asked for": [*REQUESTS, NOTHING_MADE],
    "`drr2ct prepare DATASET --check`": SETS,
    "`drr2ct train DATASET`": DATA_SETS,
    "`drr2ct train DATASET`: what is said at the start": STARTS,
    "`drr2ct train DATASET --vary …`": VARIED,
    "`drr2ct reconstruct` and `drr2ct evaluate`": [*RADIOGRAPHS, *OUTPUTS, INVERTED, OTHER_GEOMETRY, *JUDGED],
    "`drr2ct serve`": SERVING,
    "Any command": [*EXISTING, *IN_VAIN, *FULL],
}

INTRODUCTION = """# Bad input

What you get for input that cannot be used, or that looks as if it could not. Each row is a test; this page is made of
them (`python -m tests.test_bad_input`). "…" stands for what varies: paths, names, what a library said.

- **refused**: the command ends with status 2 and this one sentence; what the output held is as it was.
- **left out**: this reason stands in `series.csv`; the other patients are made.
- **used**: it works; what is said stands in `series.csv`, `left_out.csv`, or on the screen.

Nothing is lost: input files are never changed, and no half-written file is left behind.
"""


def page() -> str:
    lines = [INTRODUCTION]
    for title, cases in SECTIONS.items():
        lines += [f"## {title}", "", "| given | | what is said | what to do |", "|---|---|---|---|"]
        for case in cases:
            said, do = (case.says, "") if case.happens == USED else split_advice(case.says)
            cells = [case.given, case.happens, said, do]
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def split_advice(says: str) -> tuple[str, str]:
    """What is said, and what to do about it: the part after the last semicolon or colon."""
    parts = re.split(r"(?:; |: )(?=[^;:]*$)", says.rstrip("."), maxsplit=1)
    return (parts[0], parts[1]) if len(parts) == 2 else (parts[0], "")


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.test_bad_input"


def test_the_page_has_what_it_promises() -> None:
    cases = [case for cases in SECTIONS.values() for case in cases]
    assert len(cases) >= 40 and len({case.given for case in cases}) == len(cases)
    silent = [case.given for case in cases if case.happens != USED and not split_advice(case.says)[1]]
    assert silent == [], "each says what to do"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
