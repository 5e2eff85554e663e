"""Radiographs to files, in the numbers that :mod:`~drr2ct.transforms.radiographs.scale` reads back."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from drr2ct.transforms.files import replacing
from drr2ct.transforms.nifti import save_nifti
from drr2ct.transforms.radiographs.files import NIFTI_MARK
from drr2ct.transforms.radiographs.picture import PNG_MARK
from drr2ct.transforms.radiographs.scale import DISPLAY_MAXIMUM, PNG_COUNTS
from drr2ct.transforms.validation import InputError


def write_radiograph(
    path: str | Path, line_integrals: Float[Tensor, "*views rows columns"], bits: int = 16, pitch_mm: float = 1.0
) -> None:
    """Write line integrals; the file appears under its name only when it is complete.

    The file is marked with what its numbers mean, which is what the intensity ``auto`` looks for.

    Args:
        path: ``.nii.gz`` or ``.nii`` (float32; one image or a stack of views) or ``.png`` (one image). 16-bit PNG is
            read back with intensity ``line_integral``, 8-bit PNG with ``display``.
        line_integrals: the image; negative numbers become 0 in PNG.
        bits: 8 or 16, for PNG.
        pitch_mm: edge length of a pixel on the detector, for NIfTI.

    Raises:
        InputError: for another suffix or bit depth, numbers that are not finite or too large for the format, or a
            stack in PNG.
    """
    path = Path(path)
    values = line_integrals.detach().cpu().float().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"radiograph for {path} holds NaN or infinite values; it was not written.")
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(values.transpose(), np.diag([-pitch_mm, -pitch_mm, 1.0, 1.0]))
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = NIFTI_MARK
        with replacing(path) as temporary:
            save_nifti(temporary, image)
    elif path.suffix.lower() == ".png":
        if values.ndim != 2:
            raise InputError(f"{path}: a PNG holds one radiograph, this is a stack of {values.shape[0]}; use .nii.gz.")
        if bits not in (8, 16):
            raise InputError(f"{path}: PNG has 8 or 16 bits per pixel, not {bits}.")
        scale = PNG_COUNTS if bits == 16 else 255 / DISPLAY_MAXIMUM
        counts = np.rint(np.maximum(values, 0) * scale)
        if counts.max() >= 2**bits:
            raise InputError(
                f"{path}: a line integral of {values.max():.1f} does not fit {bits}-bit PNG, which ends at "
                f"{(2**bits - 1) / scale:.1f}; use .nii.gz."
            )
        mark = PngInfo()
        mark.add_text(PNG_MARK, "line_integral" if bits == 16 else "display")
        with replacing(path) as temporary:
            Image.fromarray(counts.astype(np.uint8 if bits == 8 else np.uint16)).save(temporary, pnginfo=mark)
    else:
        raise InputError(f"{path}: radiographs are written as .nii.gz or .png.")
