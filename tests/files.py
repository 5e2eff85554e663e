"""Small files for tests: CTs with a known content, written in the formats users have; tables; small disks."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def chest(shape: tuple[int, int, int] = (36, 32, 28), seed: int = 0) -> np.ndarray:
    """A crude chest in HU (x to the right, y to the front, z up): body, two lungs, a spine, a heart on the left."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = (x / 0.9) ** 2 + (y / 0.7) ** 2 < 1
    volume = np.where(body, 30.0, -1000.0)
    for side in (-0.45, 0.45):
        volume[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 0.8) ** 2 < 1] = -850
    volume[((x + 0.2) / 0.28) ** 2 + ((y - 0.2) / 0.3) ** 2 + ((z + 0.2) / 0.4) ** 2 < 1] = 60
    volume[(x / 0.12) ** 2 + ((y + 0.5) / 0.12) ** 2 < 1] = 500
    return (volume + rng.normal(0, 5, shape) * body).astype(np.float32)


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write with nibabel; 10 mm voxels unless an affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([10.0, 10, 10, 1]) if affine is None else affine), path)
    return path


def write_with_itk(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """Write any ITK format (NRRD, MHA) from an RAS+ affine."""
    to_lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(to_lps[:3, 3].tolist())
    image.SetDirection((to_lps[:3, :3] / spacing).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_dicom_series(folder: Path, values: np.ndarray, affine: np.ndarray, series: str = "1") -> Path:
    """Write an axial CT series, stored as unsigned with intercept −1024; axes of ``values`` must be R, A, S or L, P."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    to_lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    direction = to_lps[:3, :3] / spacing
    series_uid, study_uid = generate_uid(entropy_srcs=[series]), generate_uid(entropy_srcs=["study"])
    for k in range(values.shape[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "secret", "Secret^Name"
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series_uid, study_uid
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [float(v) for v in (to_lps @ [0, 0, k, 1])[:3]]
        dataset.ImageOrientationPatient = [*direction[:, 0].tolist(), *direction[:, 1].tolist()]
        dataset.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        dataset.SliceThickness = float(spacing[2])
        dataset.Rows, dataset.Columns = values.shape[1], values.shape[0]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = (values[:, :, k].T.round() + 1024).clip(0, 4095).astype(np.uint16).tobytes()
        dataset.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return folder


@contextmanager
def file_system(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system so small that it fills up; the test is skipped where none can be mounted."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
