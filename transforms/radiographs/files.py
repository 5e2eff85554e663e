"""Files that hold a radiograph, decoded by what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data.utils import orientation_ras_lps

from drr2ct.transforms.itk_files import itk_affine, nrrd_problem
from drr2ct.transforms.nifti import begins_nifti, is_nifti, open_nifti, to_millimetres
from drr2ct.transforms.quiet import quiet_libraries
from drr2ct.transforms.radiographs.picture import decode_picture, decode_tiff, is_picture, one_channel
from drr2ct.transforms.radiographs.pixels import Pixels, Reading, check_size, with_units
from drr2ct.transforms.validation import InputError

MOST_VIEWS = 8
"""Slices of a NIfTI file from which on it is a volume and no stack of radiographs."""

_LONGEST_FIRST = 1024
"""Bytes that the first element of a DICOM data set can have: a length, a character set, an image type or a UID."""

_ITK_BEGINNINGS = (b"NRRD000", b"ObjectType", b"NDims")

NIFTI_MARK = b"drr2ct line integrals"
"""In ``descrip`` of NIfTI files of this project."""


def decode(path: Path, reading: Reading) -> Pixels:
    """Read a picture, DICOM, NIfTI, NRRD or MetaImage file, found by its content, whatever its name.

    Args:
        path: of the file.
        reading: what the user says about it.

    Raises:
        InputError: if the file is damaged, no greyscale picture, or has several frames.
    """
    if path.is_dir():
        raise InputError(f"radiograph {path} is a folder; give one image file.")
    with path.open("rb") as stream:
        head = stream.read(132)
    if head[128:132] == b"DICM" or _begins_a_data_set(head):
        from drr2ct.transforms.radiographs.dicom import decode_dicom  # not at the top: others need no pydicom

        return decode_dicom(path, reading)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return decode_tiff(path, reading)
    if head.lstrip().startswith(_ITK_BEGINNINGS):
        return _decode_volume_file(path, reading, "NRRD" if head.startswith(b"NRRD") else "MetaImage")
    if begins_nifti(path) or (is_nifti(path) and not is_picture(path)):
        return _decode_volume_file(path, reading, "NIfTI")
    return decode_picture(path, reading)


def _begins_a_data_set(head: bytes) -> bool:
    """Whether a file begins with an element of group 2 or 8, as DICOM without a preamble does (PS3.5 7.1)."""
    if head[:2] not in (b"\x02\0", b"\x08\0", b"\0\x02", b"\0\x08") or len(head) < 8:
        return False
    if head[4:6].isalpha() and head[4:6].isupper():  # explicit VR
        return True
    return head[1] == 0 and 0 < int.from_bytes(head[4:8], "little") <= _LONGEST_FIRST


def _by_itk(path: Path, kind: str) -> Any:
    """What ITK would write of an NRRD or MetaImage file as NIfTI: a nibabel image, (columns, rows[, slices])."""
    import SimpleITK as sitk  # slow to import

    if problem := nrrd_problem(path):
        raise InputError(f"radiograph {path} has {problem}.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO({"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}[kind])
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() > 1:
        raise InputError(
            f"radiograph {path} has {reader.GetNumberOfComponents()} channels; export it as plain greyscale."
        )
    affine = orientation_ras_lps(itk_affine(reader))
    return nib.Nifti1Image(sitk.GetArrayFromImage(reader.Execute()).transpose(), affine)


def _decode_volume_file(path: Path, reading: Reading, kind: str) -> Pixels:
    try:
        with quiet_libraries():
            image: Any = open_nifti(path) if kind == "NIfTI" else _by_itk(path, kind)
            axes = [axis for axis, count in enumerate(image.shape) if count != 1]
            shape = tuple(image.shape[axis] for axis in axes)
            if any(count > MOST_VIEWS for count in shape[2:]):
                raise InputError(
                    f"radiograph {path} is a volume of {'×'.join(map(str, image.shape))} voxels, such as a CT; give "
                    "a radiograph."
                )
            if len(shape) not in (2, 3):
                raise InputError(f"radiograph {path} is an image of shape {image.shape}; one 2-D slice is needed.")
            check_size(path, shape[0], shape[1] * (shape[2] if len(shape) > 2 else 1))
            values = np.asanyarray(image.dataobj).reshape(shape).transpose()
            metadata, notes = _nifti_facts(image, (axes[0], axes[1]), path.name)
    except InputError:
        raise
    except Exception as error:  # nibabel, gzip and ITK raise a dozen kinds for damaged files
        why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise InputError(f"radiograph {path} is not a readable {kind} image ({why}); export it again.") from error
    metadata["format"] = kind
    if values.dtype.names:
        alpha = "; its alpha channel was ignored" if "A" in values.dtype.names else ""
        values, found = one_channel(np.stack([values[colour] for colour in "RGB"], axis=-1), 255.0, path, reading)
        notes.append(f"{path.name} was read as grey: {found}{alpha}.")
    own = "line_integral" if bytes(image.header["descrip"].tobytes()).startswith(NIFTI_MARK) else None
    return with_units(values, path, reading, own, metadata, notes=tuple(notes))


def _nifti_facts(image: Any, axes: tuple[int, int], name: str) -> tuple[dict[str, Any], list[str]]:
    """Pitch, and where columns and rows run, as a NIfTI's header states them; sentences on what was decided.

    Args:
        image: of nibabel.
        axes: that hold the columns and the rows.
        name: of the file, for sentences.
    """
    zooms = [float(image.header.get_zooms()[axis]) for axis in reversed(axes)]
    factor, converted = to_millimetres(image.header, max(zooms))
    notes = [f"{name}: pixel pitch {converted}."] if converted else []
    metadata: dict[str, Any] = {
        "format": "NIfTI",
        "pixel_spacing_mm": (zooms[0] * factor, zooms[1] * factor),
        # 1 mm is what writers fill in that know no spacing
        "pixel_spacing_plane": "unstated" if zooms == [1.0, 1.0] else "detector",
    }
    stated = _directions(image.header, axes)
    if len(stated) > 1:
        notes.append(f"{name} has a qform and an sform that name other directions, so neither is used for its turn.")
    letters = stated.pop() if len(stated) == 1 else ""
    if "H" in letters or "F" in letters:
        metadata["patient_orientation"] = tuple(letters)
    else:
        metadata["nifti_axes"] = letters
    return metadata, notes


def _directions(header: nib.Nifti1Header, axes: tuple[int, int]) -> set[str]:
    """Where columns and rows run, by the sform and the qform, each in DICOM's letters; without those that are unset."""
    found = set()
    for form in (header.get_sform, header.get_qform):
        try:
            affine, code = form(coded=True)
            letters = [nib.aff2axcodes(affine, labels=(("L", "R"), ("P", "A"), ("F", "H")))[axis] for axis in axes]
        except (ValueError, TypeError, IndexError, np.linalg.LinAlgError):  # unset, or no rotation; or a later axis
            continue
        if code and all(letters):
            found.add("".join(letters))
    return found
