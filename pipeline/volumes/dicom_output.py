"""A volume as a DICOM CT series: derived, new UIDs, and marked as not for clinical use in every image.

Attributes follow the CT Image information object (PS3.3, A.3): the types 1 and 2 of its mandatory modules are there.
"""

from __future__ import annotations

import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from monai.transforms import Orientation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from drr2ct.pipeline.running.provenance import DISCLAIMER
from drr2ct.pipeline.volumes.files import has_square_corners, rounding_to_zero, stored_values
from drr2ct.transforms.files import replacing_folder
from drr2ct.transforms.validation import InputError

NOT_FOR_CLINICAL_USE = "NOT FOR CLINICAL USE"
SOFT_TISSUE_WINDOW = (40, 400)
"""Centre and width (HU) that a viewer starts with."""


def write_dicom_series(
    folder: str | Path, volume: MetaTensor, patient: str, patient_id: str | None = None, description: str = ""
) -> Path:
    """Write one axial CT series, ``IM0001.dcm`` and so on from feet to head.

    Nothing of any source file's header is in it; study, series, frame of reference and images get new UIDs.

    Args:
        folder: where to; an existing one is replaced when the series is complete.
        volume: (1, I, J, K) in HU with an RAS+ affine in mm.
        patient: Patient's Name.
        patient_id: Patient ID; the name by default.
        description: how it was derived, for Derivation Description.

    Returns:
        The folder.

    Raises:
        InputError: if the voxels' edges are not perpendicular, or a name is too long for DICOM (64 characters).
    """
    folder = Path(folder)
    patient_id = patient if patient_id is None else patient_id
    for name in (patient, patient_id):
        if len(name) > 64 or "\\" in name:
            raise InputError(f"patient {name!r} cannot stand in a DICOM header; give at most 64 characters without \\.")
    # columns to the patient's left, rows to posterior, slices to the head, as near as the volume's own axes allow
    turned: Any = Orientation("LPS", labels=None)(volume)
    affine = orientation_ras_lps(np.asarray(turned.affine, dtype=np.float64))
    if not has_square_corners(affine):
        raise InputError(f"DICOM series {folder} cannot hold voxels whose edges are not perpendicular; use .nii.gz.")
    values = stored_values(turned)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    common = _common(patient, patient_id, description, values.shape, spacing, direction)
    low, high = int(values.min()), int(values.max())
    with replacing_folder(folder) as temporary:
        for k in range(values.shape[2]):
            image = Dataset()
            image.update(common)
            image.SOPInstanceUID = generate_uid(prefix=None)
            image.InstanceNumber = k + 1
            position = (affine @ [0, 0, k, 1])[:3]
            image.ImagePositionPatient = _decimals(position)
            image.SliceLocation = _decimals([position @ direction[:, 2]])[0]
            image.SmallestImagePixelValue, image.LargestImagePixelValue = low, high
            image.PixelData = np.ascontiguousarray(values[:, :, k].T).astype("<i2").tobytes()
            meta = FileMetaDataset()
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.file_meta = meta
            image.save_as(temporary / f"IM{k + 1:04d}.dcm", enforce_file_format=True)
    return folder


def _decimals(values: np.ndarray | list[float]) -> list[DSfloat]:
    """DICOM's decimal strings have at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in rounding_to_zero(np.asarray(values))]


def _common(
    patient: str,
    patient_id: str,
    description: str,
    shape: tuple[int, ...],
    spacing: np.ndarray,
    direction: np.ndarray,
) -> Dataset:
    """What all images of the series share."""
    now = datetime.datetime.now()
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SOPClassUID = CTImageStorage
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    image.InstanceCreationDate = image.StudyDate = image.SeriesDate = image.ContentDate = now.strftime("%Y%m%d")
    image.InstanceCreationTime = image.StudyTime = image.SeriesTime = image.ContentTime = now.strftime("%H%M%S")
    image.Modality = "CT"
    image.StudyDescription = f"drr2ct, {NOT_FOR_CLINICAL_USE}"
    image.SeriesDescription = f"Estimated from X-rays, not a CT, {NOT_FOR_CLINICAL_USE}"
    image.DerivationDescription = f"Estimated from radiographs by a neural network; not a scan. {description}".strip()[
        :1024
    ]
    image.ImageComments = f"{DISCLAIMER}. What the radiographs do not show is inferred and may be wrong."
    image.PatientName, image.PatientID = patient, patient_id
    image.PatientBirthDate = image.PatientSex = ""
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = (
        generate_uid(prefix=None) for _ in range(3)
    )
    image.AccessionNumber = image.ReferringPhysicianName = image.StudyID = image.PositionReferenceIndicator = ""
    image.SeriesNumber, image.AcquisitionNumber = 1, None
    image.PatientPosition = "HFS"
    image.Manufacturer, image.ManufacturerModelName = "drr2ct", "drr2ct"
    image.SoftwareVersions = version("drr2ct")
    image.BurnedInAnnotation = "NO"
    image.LossyImageCompression = "00"
    image.KVP = None
    image.PixelSpacing = _decimals([spacing[1], spacing[0]])  # between rows, then between columns
    image.SliceThickness = image.SpacingBetweenSlices = _decimals([spacing[2]])[0]
    image.ImageOrientationPatient = _decimals([*direction[:, 0], *direction[:, 1]])
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = shape[1], shape[0]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "HU"
    image.WindowCenter, image.WindowWidth = SOFT_TISSUE_WINDOW
    return image
