"""What could become a patient's CT, and which of several is used.

A *candidate* is one DICOM series (or the part of it that shares orientation, matrix and pixel spacing, where a series
mixes several), or one NIfTI, NRRD, MHA or MHD file. Headers alone decide which are usable and in which order they are
tried; only the chosen one is read. The rules, in order:

1. it must be a CT in HU, in axial slices, on a straight and evenly spaced stack, without gantry tilt, of 8 slices or
   more, and no projection of slabs;
2. original before derived images;
3. most slices;
4. a soft-tissue kernel before an unknown one before a sharp one, where the header names it;
5. the smallest pixels; then the path, so that the choice never varies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monai.data import MetaTensor

from drr2ct.transforms.dicom_slices import read_slices
from drr2ct.transforms.volume import LoadCT, bounding_box_centre, check_ct

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".hdr.gz")
MIN_SLICES = 8
THICK_SLICES_MM = 5.0
"""Slices further apart are used, and noted."""

# what to do, as reasons end
AGAIN = "copy it again"
REPAIR = "repair the header"
NO_VOLUME = f"give a CT of {MIN_SLICES} or more"


@dataclass(frozen=True)
class Candidate:
    """What could become a patient's CT.

    Args:
        patient: as the DICOM header or the file's place names it.
        study: groups what belongs to one examination; sorts by date where that is known.
        files: the slices in the order of the stack, or the one file.
        dicom: a DICOM series, not a volume file.
        slices: how many.
        voxel_mm: (column, row, slice) spacing; empty if unknown.
        kernel: reconstruction kernel, if named.
        derived: the header says that the images are not original.
        reason: why it cannot be used; empty if it can.
        by_name: its name alone says that it is something else, such as a mask or a radiograph: it is no patient's CT
            that went wrong.
        notes: what was noticed and does not hinder.
    """

    patient: str
    study: tuple[str, str]
    files: tuple[str, ...]
    dicom: bool
    slices: int = 0
    voxel_mm: tuple[float, ...] = ()
    kernel: str = ""
    derived: bool = False
    reason: str = ""
    by_name: bool = False
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        """The file, or the folder of the first slice."""
        return Path(self.files[0]).parent if self.dicom and len(self.files) > 1 else Path(self.files[0])


def pass_note(candidate: Candidate) -> str:
    """Which of the passes that share its series it is; empty if it has the series to itself."""
    return "; ".join(note for note in candidate.notes if note.endswith("passes that share a series"))


def slice_word(count: int) -> str:
    """For sentences that count slices."""
    return "slice" if count == 1 else "slices"


def kernel_rank(kernel: str) -> int:
    """0 for a soft-tissue kernel, 1 for an unknown one, 2 for a sharp (lung, bone) one.

    By the vendors' names: GE words, Philips letters, Siemens numbers (B/Br/I… below 50 are soft), Canon FC numbers
    (FC01…FC29 are soft).
    """
    name = kernel.strip().upper()
    if any(word in name for word in ("SOFT", "STANDARD", "STND", "MEDIAST")) or name in ("A", "B", "C"):
        return 0
    if any(word in name for word in ("LUNG", "BONE", "EDGE", "DETAIL", "SHARP")) or re.match(r"(D|E|L|Y[A-D])$", name):
        return 2
    if match := re.match(r"FC(\d+)", name):
        return 0 if int(match[1]) < 30 else 2
    if match := re.match(r"(?:B|I|J|BR|BF|BV|BL|HR|QR|BI)(\d\d)", name):
        return 0 if int(match[1]) < 50 else 2
    return 1


def preference(candidate: Candidate) -> tuple[object, ...]:
    """Sort key: the candidate to use comes first."""
    return (
        bool(candidate.reason),
        candidate.derived,
        -candidate.slices,
        kernel_rank(candidate.kernel),
        candidate.voxel_mm,
        candidate.files,
    )


def read_candidate(candidate: Candidate, take: Callable[[bytes], object] | None = None) -> MetaTensor:
    """The volume of a usable candidate, in HU.

    Args:
        candidate: of which the files are read, once.
        take: is given the bytes of all files, in order, such as the update of a hash.

    Returns:
        (1, I, J, K) float32 with the RAS+ affine and the isocentre in ``meta["isocentre"]``.

    Raises:
        InputError: if the pixels cannot be read or are no CT in HU; see :func:`drr2ct.transforms.volume.check_ct`.
    """
    if not candidate.dicom:
        if take is not None:
            for path in candidate.files:
                with Path(path).open("rb") as stream:
                    while block := stream.read(2**20):
                        take(block)
        return LoadCT()(candidate.files[0])
    image = read_slices(candidate.files, take)
    check_ct(image, "the series")
    image.meta["isocentre"] = [float(v) for v in bounding_box_centre(image)]
    return image
