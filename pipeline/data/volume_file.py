"""Judging NIfTI, NRRD, MHA and MHD files by their headers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from drr2ct.pipeline.data.candidate import (
    AGAIN,
    MIN_SLICES,
    NO_VOLUME,
    REPAIR,
    THICK_SLICES_MM,
    Candidate,
    slice_word,
)
from drr2ct.pipeline.data.headers import MAC_FILE
from drr2ct.pipeline.data.patient_names import is_resampled, other_role
from drr2ct.transforms.itk_files import itk_affine, nrrd_problem
from drr2ct.transforms.nifti import doubtful_space, is_nifti, nifti_geometry, open_nifti, unknown_space


def file_candidate(path: Path, root: Path) -> Candidate:
    """Judge a volume file by its name and header; which patient it belongs to depends on the files beside it.

    Args:
        path: NIfTI, NRRD, MHA or MHD.
        root: of the tree.
    """
    derived = is_resampled(path)
    candidate = Candidate("", ("", str(path)), (str(path),), dicom=False, derived=derived)
    if path.name.startswith("._"):
        return replace(candidate, reason=MAC_FILE, by_name=True)
    if re.search(r"_drr\.nii(\.gz)?$", path.name):
        return replace(candidate, reason="a radiograph, by its name; nothing to do", by_name=True)
    if role := other_role(path.relative_to(root)):
        return replace(candidate, reason=f"{role}, by its name; nothing to do", by_name=True)
    notes: tuple[str, ...] = ()
    try:
        if path.stat().st_size == 0:
            return replace(candidate, reason=f"an empty file; {AGAIN}")
        with path.open("rb"):  # nibabel and ITK do not tell a lack of permission from damage
            pass
        if is_nifti(path):
            image = open_nifti(path)
            geometry = nifti_geometry(image)
            shape, affine, notes = geometry.shape, geometry.affine, geometry.notes
            eight_bits = image.header.get_data_dtype().itemsize == 1
            if geometry.problem:
                return replace(candidate, reason=geometry.problem)
        else:
            import SimpleITK as sitk  # not at the top: who trains on NIfTI files needs none

            if problem := nrrd_problem(path):
                return replace(candidate, reason=problem)
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            shape = reader.GetSize()
            eight_bits = reader.GetPixelID() in (sitk.sitkUInt8, sitk.sitkInt8)
            if reader.GetNumberOfComponents() > 1:
                return replace(candidate, reason="colours, not CT numbers; give the CT itself")
            affine = itk_affine(reader)
            if len(shape) == 3:
                if problem := unknown_space(affine):
                    return replace(candidate, reason=problem)
                notes = doubtful_space(affine)
    except ModuleNotFoundError:  # no fault of the file
        raise
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
    if candidate.voxel_mm[2] > THICK_SLICES_MM:
        notes = (*notes, f"slices {candidate.voxel_mm[2]:.3g} mm apart")
    return replace(candidate, notes=notes)
