"""Volumes to files: NIfTI in HU with a true affine, and a picture of three planes."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from drr2ct.transforms.files import replacing

DISCLAIMER = "drr2ct: research use only, not for clinical use"


def write_volume(path: str | Path, volume: MetaTensor) -> Path:
    """Write a volume in HU as int16 NIfTI.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        volume: (1, I, J, K) in HU with an RAS+ affine in mm.

    Returns:
        The path.
    """
    path = Path(path)
    values = volume.as_tensor()[0].round().clamp(-32768, 32767).cpu().numpy().astype(np.int16)
    image = nib.Nifti1Image(values, np.asarray(volume.affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = DISCLAIMER.encode()
    with replacing(path) as temporary:
        nib.save(image, temporary)
    return path
