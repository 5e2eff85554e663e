"""Choosing a patient's CT: what is usable, why the rest is not, which comes first, and what is read."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import HTJ2KLossless

from drr2ct.pipeline.data.candidate import Candidate, kernel_rank, preference, read_candidate
from drr2ct.pipeline.data.candidates import find_candidates
from drr2ct.pipeline.data.headers import walk_files
from drr2ct.transforms.validation import InputError
from tests.files import chest, write_nifti
from tests.pipeline.data.dicom_files import SHAPE, write_series


def put(**values: object) -> Callable[[pydicom.Dataset, int], None]:
    def change(data: pydicom.Dataset, k: int) -> None:
        for name, value in values.items():
            setattr(data, name, value)

    return change


def without(*names: str) -> Callable[[pydicom.Dataset, int], None]:
    def change(data: pydicom.Dataset, k: int) -> None:
        for name in names:
            delattr(data, name)

    return change


def uneven(data: pydicom.Dataset, k: int) -> None:
    data.ImagePositionPatient = [-180, -160, 50 + 10 * k + (3 if k == 7 else 0)]


def two_phases(data: pydicom.Dataset, k: int) -> None:
    data.ImagePositionPatient = [-180, -160, 50 + 10 * (k // 2)]


def short_pixels(data: pydicom.Dataset, k: int) -> None:
    if k == 4:
        data.PixelData = data.PixelData[:-100]


REFUSED = {
    "radiograph": ({"change": put(Modality="DX")}, "modality DX"),
    "localiser": ({"change": put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])}, "localiser"),
    "coronal": ({"change": put(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])}, "coronal, not axial"),
    "tilt": ({"lean": 2.0}, "gantry tilt of 11.3°"),
    "tilt in the header only": ({"change": put(GantryDetectorTilt=15)}, "gantry tilt of 15°"),
    "missing slices": ({"skip": (5, 6)}, "2 slices are missing, the first after z = 90 mm"),
    "uneven": ({"change": uneven}, "uneven slice spacing, 7 to 13 mm"),
    "two phases": ({"change": two_phases}, "two different slices at one position"),
    "one slice": ({"values": chest(SHAPE)[:, :, :1]}, "only 1 slice"),
    "no pixels": ({"change": without("PixelData")}, "DICOM without pixels"),
    "no position": ({"change": without("ImagePositionPatient")}, "no Image Position"),
    "zero spacing": ({"change": put(PixelSpacing=[0, 0])}, "pixel spacing 0×0 mm"),
    "no spacing": ({"change": without("PixelSpacing")}, "pixel spacing missing"),
    "truncated pixels": ({"change": short_pixels}, "truncated pixel data"),
    "multi-frame": ({"change": put(NumberOfFrames=2)}, "multi-frame"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    arguments, reason = REFUSED[name]
    write_series(tmp_path / "a", **arguments)
    (candidate,) = find_candidates(tmp_path)
    assert reason in candidate.reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.dcm", b"", "empty file"),
        ("a.dcm", b"not dicom at all" * 20, "no DICM mark"),
        ("a.nii.gz", b"", "empty file"),
        ("a.nii.gz", b"wrong magic" * 50, "header that cannot be read"),
        ("a.nrrd", b"wrong magic" * 50, "header that cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    (candidate,) = find_candidates(tmp_path)
    assert reason in candidate.reason


@pytest.mark.parametrize(
    ("values", "affine", "reason"),
    [
        (np.zeros((8, 8, 8, 3), np.float32), None, "4 dimensions"),
        (np.zeros((20, 20, 20), np.uint8), None, "label map"),
        (np.zeros((20, 20, 1), np.float32), None, "only 1 slice"),
    ],
)
def test_volume_files_are_judged_by_their_header(
    tmp_path: Path, values: np.ndarray, affine: np.ndarray | None, reason: str
) -> None:
    write_nifti(tmp_path / "a.nii.gz", values, affine)
    (candidate,) = find_candidates(tmp_path)
    assert reason in candidate.reason


@settings(max_examples=10, deadline=None)
@given(st.tuples(st.floats(0.5, 2), st.floats(0.5, 2), st.floats(0.5, 10)))
def test_a_series_is_read_in_hu_with_its_affine(tmp_path_factory: pytest.TempPathFactory, spacing: tuple) -> None:
    root = tmp_path_factory.mktemp("series")
    values = chest(SHAPE)
    write_series(root / "a", values, spacing=[round(v, 4) for v in spacing])
    (candidate,) = find_candidates(root)
    assert not candidate.reason
    digest = hashlib.sha256()
    ct = read_candidate(candidate, digest.update)
    assert digest.hexdigest() == hashlib.sha256(b"".join(Path(f).read_bytes() for f in candidate.files)).hexdigest()
    # stored in steps of 2 HU
    np.testing.assert_allclose(ct[0].numpy(), values.clip(-1024), atol=2)
    right, down, up = (round(v, 4) for v in spacing)
    expected = np.array([[-right, 0, 0, 180], [0, -down, 0, 160], [0, 0, up, 50], [0, 0, 0, 1]])
    np.testing.assert_allclose(ct.affine, expected, atol=1e-3)


def test_copies_of_slices_are_dropped_and_noted(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a")
    for path in sorted(folder.iterdir())[:3]:
        shutil.copy(path, folder / f"copy-{path.name}")
    (candidate,) = find_candidates(tmp_path)
    assert (candidate.reason, candidate.slices, candidate.notes[0]) == ("", SHAPE[2], "3 duplicate slices dropped")


def test_a_series_that_mixes_orientations_is_taken_apart(tmp_path: Path) -> None:
    def mix(data: pydicom.Dataset, k: int) -> None:
        if k < 3:
            data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    write_series(tmp_path / "a", change=mix)
    usable, other = find_candidates(tmp_path)
    assert (usable.reason, usable.slices) == ("", SHAPE[2] - 3)
    assert other.reason.startswith("coronal, not axial")


def test_compressed_pixels_that_cannot_be_decoded_say_what_to_do(tmp_path: Path) -> None:
    def compress(data: pydicom.Dataset, k: int) -> None:
        data.file_meta.TransferSyntaxUID = HTJ2KLossless
        data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" * 40])
        data["PixelData"].VR = "OB"

    write_series(tmp_path / "a", change=compress)
    (candidate,) = find_candidates(tmp_path)
    with pytest.raises(InputError, match=r"compressed \(High-Throughput.*copy the series again"):
        read_candidate(candidate)


def test_symlink_loops_end_and_files_are_seen_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a" / "x")
    (tmp_path / "c").symlink_to(tmp_path / "c")
    errors: list[OSError] = []
    assert len(list(walk_files(tmp_path, errors.append))) == 1
    assert len(errors) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_are_named(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "a")
    next(folder.iterdir()).chmod(0)
    assert "no permission" in " ".join(c.reason for c in find_candidates(tmp_path))


def test_the_order_of_preference() -> None:
    def candidate(**values: object) -> Candidate:
        base = {"patient": "p", "study": ("", ""), "files": ("f",), "dicom": True, "slices": 100}
        return Candidate(**{**base, **values})  # type: ignore[arg-type]

    ordered = [
        candidate(slices=120, kernel="LUNG"),
        candidate(kernel="B30f"),
        candidate(kernel=""),
        candidate(kernel="B60f"),
        candidate(slices=800, kernel="B30f", derived=True),
        candidate(slices=900, reason="gantry tilt"),
    ]
    assert sorted(random.Random(0).sample(ordered, len(ordered)), key=preference) == ordered


@pytest.mark.parametrize(
    ("kernel", "rank"),
    [("STANDARD", 0), ("B31f", 0), ("Br40d", 0), ("FC08", 0), ("B", 0), ("", 1), ("LUNG", 2), ("B70f", 2), ("FC51", 2)],
)
def test_kernels_are_known_by_their_vendors_names(kernel: str, rank: int) -> None:
    assert kernel_rank(kernel) == rank


def test_a_volume_file_with_zero_spacing_is_named(tmp_path: Path) -> None:
    image = nib.Nifti1Image(chest((20, 18, 16)), None)
    image.header.set_sform(np.diag([0.0, 1, 1, 1]), code=1)  # nibabel itself refuses to make an image of it
    image.to_filename(tmp_path / "a.nii.gz")
    (candidate,) = find_candidates(tmp_path)
    assert "voxel spacing 0×1×1 mm is not usable" in candidate.reason
