"""Reading the slices of a chosen series into one volume in HU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from pydicom.pixels import get_decoder

from drr2ct.pipeline.data.candidate import Candidate
from drr2ct.pipeline.data.headers import Header, read_header
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT, bounding_box_centre, check_ct

_CODECS = "install pylibjpeg with pylibjpeg-libjpeg and pylibjpeg-openjpeg, or python-gdcm, or decompress the files"


def same_pixels(first: str, second: str) -> bool:
    """Whether two DICOM files show the same."""
    try:
        return np.array_equal(pydicom.dcmread(first).pixel_array, pydicom.dcmread(second).pixel_array)
    except Exception:  # what cannot be decoded cannot be shown to be a copy
        return False


def read_candidate(candidate: Candidate) -> MetaTensor:
    """The volume of a usable candidate, in HU.

    Returns:
        (1, I, J, K) float32 with the RAS+ affine and the isocentre in ``meta["isocentre"]``.

    Raises:
        InputError: if the pixels cannot be read or are no CT in HU; see :func:`drr2ct.transforms.volume.check_ct`.
    """
    if not candidate.dicom:
        return LoadCT()(candidate.files[0])
    image = _read_slices(candidate.files)
    check_ct(image, "the series")
    image.meta["isocentre"] = [float(v) for v in bounding_box_centre(image)]
    return image


def _read_slices(files: Sequence[str]) -> MetaTensor:
    """Slices in order to a volume: rescale slope and intercept applied to each by its own header."""
    first, last = (
        pydicom.dcmread(files[0], stop_before_pixels=True),
        pydicom.dcmread(files[-1], stop_before_pixels=True),
    )
    rows, columns = int(first.Rows), int(first.Columns)
    stack = np.empty((len(files), rows, columns), dtype=np.float32)
    for target, path in zip(stack, files, strict=True):
        target[:] = _slice_in_hu(path)
    orientation = np.array(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    down, right = (float(v) for v in first.PixelSpacing)
    origin, end = (np.array(data.ImagePositionPatient, dtype=np.float64) for data in (first, last))
    affine = np.eye(4)
    affine[:3, :3] = np.stack(
        [orientation[0] * right, orientation[1] * down, (end - origin) / (len(files) - 1)], axis=1
    )
    affine[:3, 3] = origin
    affine = orientation_ras_lps(affine)
    return MetaTensor(torch.from_numpy(stack.transpose(2, 1, 0))[None], affine=torch.from_numpy(affine))


def _slice_in_hu(path: str) -> Float[np.ndarray, "rows columns"]:
    name = Path(path).name
    try:
        data = pydicom.dcmread(path)
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            # ITK's own decoders know the lossless JPEGs of hospital archives, and rescale as they read
            return sitk.GetArrayFromImage(sitk.ReadImage(path, sitk.sitkFloat32))[0]
        stored = data.pixel_array.astype(np.float32)
        slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
        return stored * np.float32(1 if slope is None else slope) + np.float32(0 if intercept is None else intercept)
    except Exception as error:  # depends on the transfer syntax and the decoders that are installed
        header = read_header(path)
        if isinstance(header, Header) and header.codec:
            raise InputError(
                f"slice {name} is compressed ({header.codec}) and cannot be decoded; {_CODECS}."
            ) from error
        raise InputError(f"slice {name} is damaged ({error}); copy the series again.") from error
