"""Files that hold a radiograph, decoded by what they are."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from drr2ct.transforms.quiet import quiet_libraries
from drr2ct.transforms.radiographs.picture import decode_picture, decode_tiff, is_picture
from drr2ct.transforms.radiographs.pixels import Pixels, Reading, check_size, with_units
from drr2ct.transforms.validation import InputError

MOST_VIEWS = 8
"""Slices of a NIfTI file from which on it is a volume and no stack of radiographs."""

_HEAD = 348
_LONGEST_FIRST = 1024
"""Bytes that the first element of a DICOM data set can have: a length, a character set, an image type or a UID."""

NIFTI_MARK = b"drr2ct line integrals"
"""In ``descrip`` of NIfTI files of this project."""


def decode(path: Path, reading: Reading) -> Pixels:
    """Read a picture, DICOM or NIfTI file, found by its content, whatever its name.

    Args:
        path: of the file.
        reading: what the user says about it.

    Raises:
        InputError: if the file is damaged, no greyscale picture, or has several frames.
    """
    if path.is_dir():
        raise InputError(f"radiograph {path} is a folder; give one image file.")
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head[128:132] == b"DICM" or _begins_a_data_set(head):
        from drr2ct.transforms.radiographs.dicom import decode_dicom  # not at the top: others need no pydicom

        return decode_dicom(path, reading)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return decode_tiff(path, reading)
    nifti = _begins_nifti(path, head)
    if path.name.lower().endswith((".nii", ".nii.gz")) and (nifti or not is_picture(path)):
        return _decode_nifti(path, reading)
    if nifti:
        raise InputError(f"radiograph {path} is a NIfTI file by its content; call it .nii, or .nii.gz if compressed.")
    return decode_picture(path, reading)


def _begins_a_data_set(head: bytes) -> bool:
    """Whether a file begins with an element of group 2 or 8, as DICOM without a preamble does (PS3.5 7.1)."""
    if head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08") or len(head) < 8:
        return False
    if head[4:6].isalpha() and head[4:6].isupper():  # explicit VR
        return True
    return head[1] == 0 and 0 < int.from_bytes(head[4:8], "little") <= _LONGEST_FIRST


def _begins_nifti(path: Path, head: bytes) -> bool:
    """Whether a file, unpacked if it is compressed, begins with a NIfTI header."""
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as stream:
                head = stream.read(_HEAD)
        except (OSError, EOFError, zlib.error):
            return False
    return head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")


def _decode_nifti(path: Path, reading: Reading) -> Pixels:
    try:
        with quiet_libraries():
            image: Any = nib.load(path)  # nibabel types it as a base class without these attributes
            if any(count > MOST_VIEWS for count in image.shape[2:]):
                raise InputError(
                    f"radiograph {path} is a volume of {'×'.join(map(str, image.shape))} voxels, such as a CT; give "
                    "a radiograph."
                )
            for count in image.shape[2:]:
                check_size(path, image.shape[0], image.shape[1] * count)
            stored, spacing = np.asanyarray(image.dataobj), image.header.get_zooms()
    except InputError:
        raise
    except Exception as error:  # nibabel and gzip raise a dozen kinds for damaged files
        raise InputError(f"radiograph {path} is not a readable NIfTI image ({error}); export it again.") from error
    while stored.ndim > 2 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim not in (2, 3):
        raise InputError(f"radiograph {path} is a NIfTI image of shape {image.shape}; one 2-D slice is needed.")
    metadata: dict[str, Any] = {"format": "NIfTI", "pixel_spacing_mm": (float(spacing[1]), float(spacing[0]))}
    # 1 mm is what writers fill in that know no spacing
    metadata["pixel_spacing_plane"] = "unstated" if metadata["pixel_spacing_mm"] == (1.0, 1.0) else "detector"
    own = "line_integral" if bytes(image.header["descrip"].tobytes()).startswith(NIFTI_MARK) else None
    return with_units(stored.transpose(), path, reading, own, metadata)
