"""NIfTI files as people have them: other units, contradicting forms, suffixes that say something else."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

DAMAGED = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)
"""What nibabel and gzip raise for files that are damaged or no NIfTI, when these are opened or their voxels read."""

_PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")
NIFTI_SUFFIXES = (".nii", ".nii.gz", *_PAIR)

_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}
_PLAUSIBLE_MM = (0.05, 20.0)
"""Between these every CT's voxels are, and every radiograph's pixels."""
_SAME_DIRECTION = 0.5
"""Cosine between the axes of two forms: below, they name other sides."""
_LEVEL = 2
_GZIP = b"\x1f\x8b"
_HEADER = 348  # bytes of the first version's


@dataclass(frozen=True)
class NiftiGeometry:
    """Where a NIfTI's voxels lie.

    Args:
        affine: RAS+, mm.
        shape: without trailing axes of length 1.
        notes: what was decided.
        problem: why it cannot be used, and what to do; empty if it can.
    """

    affine: Float[np.ndarray, "4 4"]
    shape: tuple[int, ...]
    notes: tuple[str, ...]
    problem: str


def is_nifti(path: Path) -> bool:
    """By the file's name."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def save_nifti(path: Path, image: Any) -> None:
    """Write a nibabel image, compressed if the name ends in ``.gz``.

    Intel's ISA-L compresses as well as zlib's first level, which nibabel uses, in a quarter of the time.
    """
    from isal import igzip  # not at the top: who trains on a GPU elsewhere writes no volumes

    # as it comes: a large volume's bytes, packed and unpacked, would be another two of it in memory
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with igzip.IGzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def compressed(content: bytes) -> bytes:
    """In gzip's format, the same bytes for the same content."""
    from isal import igzip

    return igzip.compress(content, _LEVEL, mtime=0)


def begins_nifti(path: Path) -> bool:
    """Whether a file, unpacked if it is compressed, begins with a NIfTI header, whatever its name."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
        with (gzip.open if packed else open)(path, "rb") as stream:
            head = stream.read(_HEADER)
    except (OSError, EOFError, zlib.error):
        return False
    return head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")


def open_nifti(path: Path) -> Any:
    """The nibabel image of a file of any name, whether it is compressed or not, whatever its suffix says of that.

    Raises:
        DAMAGED: for what is damaged or no NIfTI.
    """
    name = path.name.lower()
    if name.endswith(_PAIR):
        return nib.load(path)
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    if name.endswith(".nii.gz" if packed else ".nii"):
        return nib.load(path)
    content = path.read_bytes()
    content = gzip.decompress(content) if packed else content
    if content[344:347] == b"n+1":
        return nib.Nifti1Image.from_bytes(content)
    if content[4:7] == b"n+2":
        return nib.Nifti2Image.from_bytes(content)
    raise ImageFileError("not a NIfTI file")


def to_millimetres(header: nib.Nifti1Header, size: float) -> tuple[float, str]:
    """Factor from a header's unit of length, and what was decided; 1 and nothing for millimetres, or if none is known.

    Args:
        header: of the file.
        size: the largest edge of a voxel in the file's numbers, which tells whether they are in that unit at all.
    """
    unit = header.get_xyzt_units()[0]
    factor = _MILLIMETRES.get(unit, 1.0)
    if factor == 1.0:
        return 1.0, ""
    low, high = _PLAUSIBLE_MM
    if low <= size <= high and not low <= size * factor <= high:
        return 1.0, f"units of {unit}s in the header, but the numbers are millimetres"
    return factor, f"converted from {unit}s to millimetres"


def _turned(first: Float[np.ndarray, "4 4"], second: Float[np.ndarray, "4 4"]) -> bool:
    """Whether an axis of the voxels points elsewhere by one affine than by another."""
    axes = [form[:3, :3] / np.maximum(np.linalg.norm(form[:3, :3], axis=0), 1e-12) for form in (first, second)]
    return bool(((axes[0] * axes[1]).sum(axis=0) < _SAME_DIRECTION).any())


def unknown_space(affine: Float[np.ndarray, "4 4"]) -> str:
    """What is wrong with the affine that files get from nobody: voxels of 1 mm along the axes, the first at the origin.

    nibabel writes it for an array alone, ITK the same along its own axes.

    Returns:
        What it has and what to do; empty if it can be used.
    """
    if np.array_equal(np.abs(affine), np.eye(4)):
        return "an identity affine, so sides and voxel sizes are unknown; convert it from DICOM again"
    return ""


def doubtful_space(affine: Float[np.ndarray, "4 4"]) -> tuple[str, ...]:
    """What to say of an affine that knows the voxels' size and may have made up the rest; mostly nothing.

    No scanner's coordinates begin at the first voxel; those of an array that was given voxel sizes only do.
    """
    axes = affine[:3, :3]
    if np.any(affine[:3, 3]) or np.any(axes[~np.eye(3, dtype=bool)]):
        return ()
    return ("the first voxel at the origin, as of an array and its voxel sizes alone: check that left is left",)


def nifti_geometry(image: Any) -> NiftiGeometry:
    """What an image's header says about its space: the sform, else the qform, in mm.

    Metres and microns are converted, unless only the bare numbers can be millimetres.

    Args:
        image: of :func:`open_nifti`.
    """
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    affine, header = np.array(image.affine, dtype=np.float64), image.header
    if header.get_data_dtype().kind == "c":
        return NiftiGeometry(affine, shape, (), "complex numbers, not CT numbers; give the CT itself")
    if header.get_data_dtype().fields is not None:
        return NiftiGeometry(affine, shape, (), "colours, not CT numbers; give the CT itself")
    if not isinstance(header, nib.Nifti1Header):
        return NiftiGeometry(affine, shape, (), "Analyze, which has no orientation; convert the CT to NIfTI from DICOM")
    notes = []
    factor, converted = to_millimetres(header, float(np.linalg.norm(affine[:3, :3], axis=0).max()))
    if converted:
        notes.append(converted)
    q_code, s_code = int(header["qform_code"]), int(header["sform_code"])
    problem = ""
    if q_code == 0 and s_code == 0:
        problem = (
            "no qform and no sform, so left and right are unknown; convert it from DICOM again (dcm2niix writes both)"
        )
    elif q_code > 0 and s_code > 0:
        try:
            qform, sform = np.array(header.get_qform()), np.array(header.get_sform())
        except ValueError:  # a quaternion that is none; the sform counts
            qform = sform = np.array(header.get_sform())
        voxels = [np.linalg.norm(form[:3, :3], axis=0) * factor for form in (qform, sform)]
        if np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) < 0:
            problem = "qform and sform disagree about left and right; convert it from DICOM again"
        elif _turned(qform, sform):
            problem = "qform and sform point the voxels' axes elsewhere; convert it from DICOM again"
        elif not np.allclose(qform, sform, rtol=1e-2, atol=0.02 * float(voxels[1].max()) / factor):
            sizes = ["×".join(f"{v:.3g}" for v in size) for size in voxels]
            notes.append(f"qform and sform differ (voxels of {sizes[0]} and {sizes[1]} mm); the sform is used")
    affine[:3] *= factor
    problem = problem or unknown_space(affine)
    return NiftiGeometry(affine, shape, (*notes, *doubtful_space(affine)), problem)
