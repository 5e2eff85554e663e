"""Reading the slices of a chosen series into one volume in HU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from scipy import ndimage

from drr2ct.transforms.hounsfield import AIR_HU
from drr2ct.transforms.validation import InputError

if TYPE_CHECKING:
    import pydicom

_AIR_LIKE_HU = -1000.0
_CODECS = "copy the series again, or decompress its files"


def same_pixels(first: str, second: str) -> bool:
    """Whether two DICOM files show the same."""
    try:
        return np.array_equal(read_dicom(first).pixel_array, read_dicom(second).pixel_array)
    except Exception:  # what cannot be decoded cannot be shown to be a copy
        return False


def read_slices(files: Sequence[str], take: Callable[[bytes], object] | None = None) -> MetaTensor:
    """Slices of one CT series as a volume.

    Rescale slope and intercept are applied to each by its own header. Pixel Padding Value becomes air; where tissue
    can have that value too, only what is connected with a corner of the slice.

    Args:
        files: DICOM files in the order of the stack; one orientation, matrix and pixel spacing.
        take: is given the bytes of each file, in order.

    Returns:
        (1, I, J, K) in HU, float32, with the RAS+ affine.

    Raises:
        InputError: if a slice cannot be decoded.
    """
    first, last = (
        read_dicom(files[0], stop_before_pixels=True),
        read_dicom(files[-1], stop_before_pixels=True),
    )
    rows, columns = int(first.Rows), int(first.Columns)
    stack = np.empty((len(files), rows, columns), dtype=np.float32)
    for target, path in zip(stack, files, strict=True):
        target[:] = _slice_in_hu(path, take)
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


def _slice_in_hu(path: str, take: Callable[[bytes], object] | None) -> Float[np.ndarray, "rows columns"]:
    from pydicom.pixels import get_decoder  # not at the top: who trains on NIfTI files needs no pydicom

    name, codec = Path(path).name, ""
    try:
        content = Path(path).read_bytes()
        if take is not None:
            take(content)
        data = read_dicom(BytesIO(content))
        syntax = data.file_meta.TransferSyntaxUID
        codec = syntax.name if syntax.is_compressed else ""
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            import SimpleITK as sitk  # only for these

            # ITK's own decoders know the lossless JPEGs of hospital archives, and rescale as they read
            return sitk.GetArrayFromImage(sitk.ReadImage(path, sitk.sitkFloat32))[0]
        stored = data.pixel_array.astype(np.float32)
        slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
        scale, shift = np.float32(1 if slope is None else slope), np.float32(0 if intercept is None else intercept)
        values = stored * scale + shift
        padding = data.get("PixelPaddingValue")
        if padding is not None:
            # a value of 16 bits without sign in a header of pixels with sign, as some write it
            number = float(np.array(padding).astype(data.pixel_array.dtype))
            values[_filled_in(stored == number, float(number * scale + shift))] = AIR_HU
        return values
    except Exception as error:  # depends on the transfer syntax and the decoders that are installed
        if codec:
            raise InputError(f"slice {name} is compressed ({codec}) and cannot be decoded; {_CODECS}.") from error
        raise InputError(f"slice {name} is damaged ({error}); copy the series again.") from error


def _filled_in(padding: Bool[np.ndarray, "rows columns"], hu: float) -> Bool[np.ndarray, "rows columns"]:
    """Which of the pixels that have the padding's value are outside the scan."""
    if hu <= _AIR_LIKE_HU or not padding.any():
        return padding
    pieces = ndimage.label(padding)[0]
    return np.isin(pieces, list({int(pieces[i, j]) for i in (0, -1) for j in (0, -1)} - {0}))


def tolerate_odd_values() -> None:
    """Values that break a rule of the standard and can be read are no news, for every slice of an archive."""
    import pydicom.config  # as in _slice_in_hu

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def read_dicom(path: str | BytesIO, **arguments: Any) -> pydicom.FileDataset:
    """A DICOM file, also without preamble, meta header or transfer syntax, as old archives write it.

    Args:
        path: the file, or its content.
        **arguments: of ``pydicom.dcmread``.
    """
    import pydicom  # as in _slice_in_hu
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    tolerate_odd_values()
    data = pydicom.dcmread(path, force=True, **arguments)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = plain
    return data
