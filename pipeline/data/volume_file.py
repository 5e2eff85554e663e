"""Judging NIfTI, NRRD, MHA and MHD files by their headers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from drr2ct.pipeline.data.candidate import (
    AGAIN,
    MIN_SLICES,
    NO_VOLUME,
    REPAIR,
    THICK_SLICES_MM,
    VOLUME_SUFFIXES,
    Candidate,
    slice_word,
)

_ANONYMOUS_STEMS = ("ct", "image", "img", "scan", "volume")


def file_candidate(path: Path, root: Path, patient_pattern: str | None) -> Candidate:
    """Judge a volume file by its header.

    Args:
        path: NIfTI, NRRD, MHA or MHD.
        root: of the tree.
        patient_pattern: regular expression, see :func:`patient_of_file`.
    """
    candidate = Candidate(patient_of_file(path, root, patient_pattern), ("", str(path)), (str(path),), dicom=False)
    if re.search(r"_drr\.nii(\.gz)?$", path.name):
        return replace(candidate, reason="a radiograph, by its name; nothing to do")
    try:
        if path.stat().st_size == 0:
            return replace(candidate, reason=f"an empty file; {AGAIN}")
        with path.open("rb"):  # nibabel and ITK do not tell a lack of permission from damage
            pass
        if path.name.lower().endswith((".nii", ".nii.gz")):
            image: Any = nib.load(path)  # nibabel types it as a base class without these attributes
            shape, affine, kind = image.shape, np.asarray(image.affine), image.header.get_data_dtype()
            eight_bits = kind.itemsize == 1
        else:
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            shape = reader.GetSize()
            eight_bits = reader.GetPixelID() in (sitk.sitkUInt8, sitk.sitkInt8)
            affine = np.eye(4)
            if len(shape) == 3:
                affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    except PermissionError:
        return replace(candidate, reason="no permission to read the file; change its mode")
    except Exception:  # nibabel, gzip and ITK raise many kinds for damaged files
        return replace(candidate, reason=f"a header that cannot be read, truncated or of another type; {AGAIN}")
    if len(shape) != 3:
        sizes = "×".join(map(str, shape))
        return replace(candidate, reason=f"{len(shape)} dimensions ({sizes}); extract one volume")
    if eight_bits:
        return replace(candidate, reason="8-bit numbers, a label map or a picture; give the CT in HU")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    singular = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * spacing.prod()
    if singular:
        return replace(
            candidate, reason=f"voxel spacing {'×'.join(f'{v:g}' for v in spacing)} mm is not usable; {REPAIR}"
        )
    upright = int(np.abs(affine[2, :3] / spacing).argmax())
    order = [axis for axis in range(3) if axis != upright] + [upright]
    candidate = replace(
        candidate, slices=int(shape[upright]), voxel_mm=tuple(float(v) for v in spacing[order].round(6))
    )
    if candidate.slices < MIN_SLICES:
        return replace(candidate, reason=f"only {candidate.slices} {slice_word(candidate.slices)}; {NO_VOLUME}")
    notes = (f"slices {candidate.voxel_mm[2]:.3g} mm apart",) if candidate.voxel_mm[2] > THICK_SLICES_MM else ()
    return replace(candidate, notes=notes)


def patient_of_file(path: Path, root: Path, pattern: str | None) -> str:
    """The patient a volume file belongs to: its name without suffix, or its folder's if it is just ``ct`` or the like.

    Args:
        path: the file.
        root: of the tree.
        pattern: searched in the path relative to ``root``; its first group (or the whole match) is the patient.
    """
    if pattern is not None and (match := re.search(pattern, path.relative_to(root).as_posix())):
        return match.group(1) if match.groups() else match.group(0)
    stem = next(path.name[: -len(suffix)] for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix))
    return path.parent.name if stem.lower() in _ANONYMOUS_STEMS and path.parent != root else stem
