"""Small DICOM series for tests: a crude chest in axial slices, and ways to spoil it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.files import chest

SPACING = (10.0, 10.0, 10.0)
SHAPE = (36, 32, 16)


def write_series(
    folder: Path,
    values: np.ndarray | None = None,
    patient: str = "P1",
    series: str = "1",
    study: str = "1",
    spacing: Sequence[float] = SPACING,
    lean: float = 0.0,
    change: Callable[[pydicom.Dataset, int], None] | None = None,
    skip: Sequence[int] = (),
) -> Path:
    """Write one axial series, feet to head, with scrambled file names.

    Args:
        folder: for the slices.
        values: HU with axes L, P, S; a chest if not given.
        patient: Patient ID.
        series: distinguishes the series of a study.
        study: distinguishes the studies of a patient.
        spacing: mm.
        lean: mm by which each slice is shifted to posterior, as under a tilted gantry.
        change: gets each data set and its index before it is written.
        skip: indices that are not written.
    """
    values = chest(SHAPE)[::-1, ::-1] if values is None else values
    folder.mkdir(parents=True, exist_ok=True)
    study_uid = generate_uid(entropy_srcs=[patient, study])
    for k in range(values.shape[2]):
        if k in skip:
            continue
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.SOPInstanceUID = generate_uid(entropy_srcs=[patient, study, series, str(k)])
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.Modality, data.PatientID, data.PatientName = "CT", patient, "Secret^Name"
        data.PatientBirthDate, data.InstitutionName = "19500101", "Secret Hospital"
        data.StudyInstanceUID, data.StudyDate = study_uid, f"200001{int(study):02d}"
        data.SeriesInstanceUID = generate_uid(entropy_srcs=[patient, study, series])
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.ImagePositionPatient = [-180.0, -160.0 + lean * k, 50.0 + spacing[2] * k]
        data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        data.PixelSpacing = [spacing[1], spacing[0]]
        data.Rows, data.Columns = values.shape[1], values.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = 2, -1024
        data.PixelData = ((values[:, :, k].T.round() + 1024) / 2).clip(0, 65535).astype(np.uint16).tobytes()
        if change is not None:
            change(data, k)
        data.save_as(folder / f"{(k * 7) % values.shape[2]:04d}-{k}.dcm", enforce_file_format=True)
    return folder
