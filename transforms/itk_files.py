"""NRRD and MetaImage files as ITK reads them: their affine, and what of an NRRD's space it does not look at."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import SimpleITK as sitk

_MAGIC = b"NRRD000"
_MOST_HEADER = 2**20
_SIDES = re.compile(r"(?:left|right)-(?:anterior|posterior)-superior|[LR][AP]S", re.IGNORECASE)
"""The spaces with a left and a right, which ITK turns into its own; times (``…-time``) are no volumes."""
_MILLIMETRES = ("mm", "millimeter", "millimetre", "millimeters", "millimetres")


def nrrd_problem(path: Path) -> str:
    """Why the space of an NRRD file cannot be used; empty if it can, and for files of other formats.

    A header without any space is not refused here: it has voxel sizes alone, see
    :func:`drr2ct.transforms.nifti.doubtful_space`. Nor is a space of two dimensions, that of a picture.

    Args:
        path: of the file, or of the header that stands apart (.nhdr).

    Returns:
        What it has and what to do, as the end of a sentence that begins with the file's name.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return ""
        header = re.split(rb"\r?\n\r?\n", file.read(_MOST_HEADER), maxsplit=1)[0].decode("utf-8", errors="replace")
    lines = re.findall(r"^([a-z ]+): *(.*?)\s*$", header, re.MULTILINE | re.IGNORECASE)
    fields = {name.lower(): value for name, value in lines}
    space = fields.get("space", "")
    if (space or fields.get("space dimension", "2") != "2") and not _SIDES.fullmatch(space):
        named = f"the space {space}" if space else "a space without a name"
        return f"{named}, which does not say where left and right are; convert it from DICOM again"
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))} - {""}
    if units.difference(_MILLIMETRES):
        return f"lengths in {', '.join(sorted(units))}; write it again in millimetres"
    return ""


def itk_affine(image: sitk.Image | sitk.ImageFileReader) -> Float[np.ndarray, "4 4"]:
    """Voxel indices → patient coordinates in ITK's space (LPS+), mm.

    Args:
        image: of two or three dimensions; the third of two stays as it is. Of others: the identity.
    """
    dimensions, affine = image.GetDimension(), np.eye(4)
    if dimensions <= 3:
        axes = np.reshape(image.GetDirection(), (dimensions, dimensions)) * image.GetSpacing()
        affine[:dimensions, :dimensions], affine[:dimensions, 3] = axes, image.GetOrigin()
    return affine
