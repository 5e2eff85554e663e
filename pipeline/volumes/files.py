"""Volumes to files: NIfTI, NRRD or MHA in HU with a true affine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Int16, Real
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from torch import Tensor

from drr2ct.pipeline.running.provenance import DISCLAIMER
from drr2ct.transforms.files import replacing
from drr2ct.transforms.memory_order import slowest_first
from drr2ct.transforms.nifti import DAMAGED, open_nifti, save_nifti
from drr2ct.transforms.validation import InputError

_SLAB = 32
VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


def volume_ending(path: str | Path) -> str | None:
    """The one of :data:`VOLUME_ENDINGS` that a name ends in, if any."""
    name = Path(path).name.lower()
    return next((ending for ending in VOLUME_ENDINGS if name.endswith(ending)), None)


def write_volume(path: str | Path, volume: MetaTensor) -> Path:
    """Write a volume in HU as int16; its name's ending decides the format.

    The order of the voxels stays as it is and the affine says what it means. NRRD and MHA hold LPS coordinates, as
    ITK has them.

    Args:
        path: ends in ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``.
        volume: (1, I, J, K) in HU with an RAS+ affine in mm; in NIfTI also several, (C, I, J, K), as (I, J, K, C).

    Returns:
        The path.

    Raises:
        InputError: for another ending, or voxels whose edges are not perpendicular, or several volumes, in NRRD or MHA.
    """
    path = Path(path)
    ending = volume_ending(path)
    if ending is None:
        raise InputError(f"volume {path} must end in {', '.join(VOLUME_ENDINGS[:-1])} or {VOLUME_ENDINGS[-1]}.")
    values = stored_values(volume)
    affine = np.asarray(volume.affine, dtype=np.float64)
    if ending in (".nii", ".nii.gz"):
        image = nib.Nifti1Image(values, affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = DISCLAIMER.encode()
        with replacing(path) as temporary:
            save_nifti(temporary, image)
        return path
    if values.ndim > 3:
        raise InputError(f"volume {path} would hold {values.shape[3]} volumes; write them as .nii.gz.")
    if not has_square_corners(affine):
        raise InputError(f"volume {path} has voxels whose edges are not perpendicular; write it as .nii.gz.")
    to_lps = orientation_ras_lps(affine)
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    import SimpleITK as sitk  # slow to import, not needed for NIfTI

    itk_image = sitk.GetImageFromArray(values.transpose(2, 1, 0))
    itk_image.SetSpacing(spacing.tolist())
    itk_image.SetOrigin(to_lps[:3, 3].tolist())
    direction = to_lps[:3, :3] / spacing
    itk_image.SetDirection(rounding_to_zero(direction).ravel().tolist())
    itk_image.SetMetaData("Comment", DISCLAIMER)
    with replacing(path) as temporary:
        sitk.WriteImage(itk_image, str(temporary), useCompression=True)
    return path


def read_volume(path: str | Path) -> MetaTensor:
    """A NIfTI volume that :func:`write_volume` wrote, (1, I, J, K) in HU.

    ``LoadCT`` would refuse voxels as large as a coarse network's, and what no CT looks like.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        image = open_nifti(Path(path))
        values = np.asarray(image.dataobj, dtype=np.float32)
    except DAMAGED as error:
        raise InputError(f"volume {path} cannot be read ({error}); make it again.") from error
    return MetaTensor(torch.from_numpy(values)[None], affine=image.affine)


def stored_values(volume: MetaTensor) -> Int16[np.ndarray, "i j k *volumes"]:
    """HU as files hold them: whole numbers of 16 bits, (I, J, K), or (I, J, K, C) of several volumes."""
    stored = in_file_order(volume.as_tensor(), lambda hu: hu.round().clamp_(-32768, 32767).to(torch.int16))
    return stored[..., 0] if stored.shape[3] == 1 else stored


def in_file_order(
    values: Real[Tensor, "volumes i j k"], converted: Callable[[Tensor], Tensor]
) -> Real[np.ndarray, "i j k volumes"]:
    """Volumes whose first axis is the fastest in memory, as files have it.

    Args:
        values: of any layout in memory.
        converted: a part of the values → what is stored of it. Slab by slab along memory, turning takes half the time.
    """
    axis = 1 + slowest_first(values[0])[0]
    count, rows, columns, planes = values.shape
    kind = converted(values[:, :1, :1, :1]).cpu().numpy().dtype
    turned = np.empty((count, planes, columns, rows), dtype=kind)
    slabs = np.moveaxis(turned.transpose(0, 3, 2, 1), axis, 0)
    for start, slab in zip(range(0, len(slabs), _SLAB), values.split(_SLAB, dim=axis), strict=True):
        slabs[start : start + _SLAB] = np.moveaxis(converted(slab).cpu().numpy(), axis, 0)
    return turned.transpose(3, 2, 1, 0)


def rounding_to_zero(values: np.ndarray) -> np.ndarray:
    """What is 0 but for rounding as 0: down to 1e-300, ITK does not read it back from a header's text."""
    return np.where(np.abs(values) < 1e-12, 0.0, values)


def has_square_corners(affine: np.ndarray) -> bool:
    """Whether an affine's axes are perpendicular, as all formats but NIfTI need them."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4)
