"""Volumes to files: NIfTI in HU with a true affine, and a picture of three planes."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

DISCLAIMER = "drr2ct: research use only, not for clinical use"


def write_volume(path: str | Path, volume: MetaTensor) -> Path:
    """Write a volume in HU as int16 NIfTI.

    Written to a temporary name first and renamed, so that there is never half a file.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        volume: (1, I, J, K) in HU with an RAS+ affine in mm.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = volume.as_tensor()[0].round().clamp(-32768, 32767).cpu().numpy().astype(np.int16)
    image = nib.Nifti1Image(values, np.asarray(volume.affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = DISCLAIMER.encode()
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        nib.save(image, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
