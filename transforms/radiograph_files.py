"""Files that hold a radiograph, decoded: numbers, their range, and what the file says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from drr2ct.transforms.validation import InputError

_CODECS = "install pylibjpeg with pylibjpeg-libjpeg and pylibjpeg-openjpeg, or python-gdcm"
_VIEW_CODES = {  # DICOM PS3.16 CID 4010: SNOMED CT, and the SNOMED-RT codes of older files
    "272479007": "PA",
    "R-40888": "PA",
    "R-10214": "PA",
    "399348003": "AP",
    "R-10206": "AP",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
}


@dataclass(frozen=True)
class Pixels:
    """Decoded numbers, their range if they are integers, and what the file says about itself.

    Args:
        values: (rows, columns), or (views, rows, columns) of a NIfTI stack.
        low: lowest number that the type can hold.
        high: highest.
        bits: per sample; None for floating-point or calibrated numbers.
        metadata: ``format``, and where the file has them ``pixel_spacing_mm`` (rows, columns),
            ``pixel_spacing_plane`` (``detector``, ``patient``, or ``unstated``), ``source_to_detector_mm``,
            ``source_to_isocentre_mm``, ``view_position``, ``laterality``, ``intensity_relationship``,
            ``patient_orientation``, ``collimation`` (first row, last row + 1, first column, last column + 1),
            ``photometric_interpretation``, and ``notes``, sentences about what was decided.
        dark_is_high: high numbers are shown dark: MONOCHROME1, MINISWHITE.
        counts_fall: higher numbers mean less X-ray intensity; None if the file does not say.
    """

    values: np.ndarray
    low: float
    high: float
    bits: int | None
    metadata: dict[str, Any]
    dark_is_high: bool = False
    counts_fall: bool | None = None


def decode(path: Path, display: bool = False) -> Pixels:
    """Read a greyscale PNG, TIFF, JPEG, DICOM or NIfTI file, found by its content (NIfTI by its name).

    Args:
        path: of the file.
        display: the numbers are wanted as they are displayed: DICOM's VOI LUT or window is applied. It is not
            otherwise, because it clips and bends what a measurement needs.

    Raises:
        InputError: if the file is damaged, no greyscale picture, or has several frames.
    """
    if path.is_dir():
        raise InputError(f"radiograph {path} is a folder; give one image file.")
    with path.open("rb") as stream:
        head = stream.read(132)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _decode_nifti(path)
    if head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        return _decode_dicom(path, display)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _decode_tiff(path)
    return _decode_picture(path)


def _plain(values: np.ndarray, path: Path, metadata: dict[str, Any], dark_is_high: bool = False) -> Pixels:
    """Numbers as a file's type gives them: integers up to 16 bits, or floating-point with a full scale of 1."""
    if values.dtype.kind == "f":
        return Pixels(values, 0.0, 1.0, None, metadata, dark_is_high)
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        raise InputError(f"radiograph {path} has pixels of type {values.dtype}; export 8 or 16 bits or float.")
    bits = 8 * values.dtype.itemsize - (values.dtype.kind == "i")
    if values.dtype.kind == "i" and values.min() < 0:
        raise InputError(f"radiograph {path} has negative integers; export it as float line integrals.")
    return Pixels(values, 0.0, float(2**bits - 1), bits, metadata, dark_is_high)


def _decode_picture(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            mode, frames, kind = image.mode, getattr(image, "n_frames", 1), image.format
            if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
                raise InputError(f"radiograph {path} has an alpha channel; export it as plain greyscale.")
            if not (mode in ("L", "I", "F") or mode.startswith("I;16")):
                raise InputError(f"radiograph {path} is a {mode} colour picture; export it as 8- or 16-bit greyscale.")
            if frames != 1:
                raise InputError(f"radiograph {path} has {frames} frames; export a single image.")
            values = np.asarray(image)
    except Image.UnidentifiedImageError as error:
        raise InputError(f"radiograph {path} is not a PNG, TIFF, DICOM or NIfTI image; export it as one.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"radiograph {path} is damaged or incomplete ({error}); export it again.") from error
    if mode == "I":  # how Pillow holds some 16-bit PNGs
        values = values.astype(np.uint16) if values.min() >= 0 and values.max() < 2**16 else values
    return _plain(values, path, {"format": kind})


def _decode_tiff(path: Path) -> Pixels:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.pages) != 1:
                raise InputError(f"radiograph {path} has {len(tiff.pages)} pages; export a single image.")
            page = tiff.pages.first
            if page.samplesperpixel != 1:
                what = "an alpha channel" if page.extrasamples else "colour"
                raise InputError(f"radiograph {path} has {what}; export it as plain greyscale.")
            dark_is_high = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                raise InputError(f"radiograph {path} has a colour palette; export it as plain greyscale.")
            values = page.asarray()
    except InputError:
        raise
    except Exception as error:  # tifffile passes on whatever its codecs raise
        help_ = "install imagecodecs" if "imagecodecs" in str(error) else "export it again"
        raise InputError(f"radiograph {path} cannot be decoded ({error}); {help_}.") from error
    return _plain(values, path, {"format": "TIFF"}, dark_is_high)


def _decode_nifti(path: Path) -> Pixels:
    try:
        image: Any = nib.load(path)  # nibabel types it as a base class without these attributes
        stored, spacing = np.asanyarray(image.dataobj), image.header.get_zooms()
    except Exception as error:  # nibabel and gzip raise a dozen kinds for damaged files
        raise InputError(f"radiograph {path} is not a readable NIfTI image ({error}); export it again.") from error
    while stored.ndim > 2 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim not in (2, 3):
        raise InputError(f"radiograph {path} is a NIfTI image of shape {image.shape}; one 2-D slice is needed.")
    metadata: dict[str, Any] = {"format": "NIfTI", "pixel_spacing_mm": (float(spacing[1]), float(spacing[0]))}
    # 1 mm is what writers fill in that know no spacing
    metadata["pixel_spacing_plane"] = "unstated" if metadata["pixel_spacing_mm"] == (1.0, 1.0) else "detector"
    return _plain(stored.transpose(), path, metadata)


def _decode_dicom(path: Path, display: bool) -> Pixels:
    import pydicom
    from pydicom.pixels import apply_modality_lut

    try:
        # a wrong suffix is enough to get here, so read nothing that is not DICOM
        dataset = pydicom.dcmread(path)
        frames = int(dataset.get("NumberOfFrames") or 1)
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise InputError(f"radiograph {path} is not a readable DICOM file ({error}); export it again.") from error
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise InputError(f"DICOM file {path} has no pixel data; give the image itself.")
    if frames != 1:
        raise InputError(f"DICOM file {path} has {frames} frames; give a single radiograph (CR or DX).")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"DICOM file {path} is {photometric or 'of unknown colour'}, not greyscale.")
    try:
        stored = dataset.pixel_array
        values = apply_modality_lut(stored, dataset)
    except Exception as error:  # depends on the transfer syntax and the decoders that are installed
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
        if syntax is not None and syntax.is_compressed:
            raise InputError(
                f"DICOM file {path} is compressed ({syntax.name}) and cannot be decoded; {_CODECS}."
            ) from error
        raise InputError(f"DICOM file {path} is damaged or incomplete ({error}); export it again.") from error
    dark_is_high = photometric == "MONOCHROME1"
    metadata: dict[str, Any] = {
        "format": "DICOM",
        "photometric_interpretation": photometric,
        **_dicom_acquisition(dataset, values.shape),
    }
    sign = dataset.get("PixelIntensityRelationshipSign")
    counts_fall = None if sign is None else int(sign) < 0
    if display and counts_fall is not None and counts_fall == dark_is_high:
        metadata["notes"] = [
            f"{path.name} says {photometric} and Pixel Intensity Relationship Sign {int(sign)}, which contradict each "
            "other; the first was followed"
        ]
    if stored.dtype.kind == "f":
        return Pixels(values, 0.0, 1.0, None, metadata, dark_is_high, counts_fall)
    bits = int(dataset.BitsStored)
    first = -(2 ** (bits - 1)) if int(dataset.PixelRepresentation) else 0
    ends = np.array([first, first + 2**bits - 1], dtype=stored.dtype)
    calibrated = values is not stored and not np.array_equal(values, stored)
    low, high = sorted(float(x) for x in apply_modality_lut(ends, dataset))
    if dataset.get("ModalityLUTSequence"):
        entries = apply_modality_lut(np.arange(first, first + 2**bits, dtype=np.int64), dataset)
        low, high = float(entries.min()), float(entries.max())
    if display:
        try:
            shown, limits, note = _apply_voi(values, dataset)
        except Exception as error:  # whatever a malformed table or window leads to
            raise InputError(f"DICOM file {path} has an unusable VOI LUT or window ({error}); export it again.") from (
                error
            )
        if limits is not None:
            values, calibrated, (low, high) = shown, True, limits
            metadata.setdefault("notes", []).append(f"{path.name} was read through {note}")
    return Pixels(values, low, high, None if calibrated else bits, metadata, dark_is_high, counts_fall)


def _apply_voi(values: np.ndarray, dataset: Any) -> tuple[np.ndarray, tuple[float, float] | None, str]:
    """Numbers as they are displayed (PS3.3 C.11.2), the range they can take (None if nothing applies), and by what."""
    from pydicom.pixels import apply_windowing

    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        count, first = int(item.LUTDescriptor[0]) or 2**16, int(item.LUTDescriptor[1])
        data = item.LUTData
        # not pydicom's apply_voi: it keeps the index in the table's own type, which wraps in 8-bit tables
        table = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
        index = np.rint(values).astype(np.int64) - first
        shown = table[:count][index.clip(0, count - 1)].astype(np.float64)
        return shown, (float(table[:count].min()), float(table[:count].max())), "its first VOI LUT"
    if dataset.get("WindowWidth") is None or dataset.get("WindowCenter") is None:
        return values, None, ""
    shown = apply_windowing(values, dataset)
    ends = apply_windowing(np.array([-1e7, 1e7]), dataset)  # beyond any window; not so far that exp overflows
    centre, width = (np.atleast_1d(dataset[name].value)[0] for name in ("WindowCenter", "WindowWidth"))
    return shown, (float(ends.min()), float(ends.max())), f"its first window (centre {centre:g}, width {width:g})"


def _dicom_acquisition(dataset: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a header says of how the image was taken; entries that are empty or impossible are left out."""
    found: dict[str, Any] = {}
    imager, calibrated = (_positive(dataset.get(name), 2) for name in ("ImagerPixelSpacing", "PixelSpacing"))
    if imager:
        # PS3.3 10.7.1.3: at the detector; Pixel Spacing may be corrected for magnification
        found |= {"pixel_spacing_mm": (imager[0], imager[1]), "pixel_spacing_plane": "detector"}
    elif calibrated:
        corrected = bool(dataset.get("PixelSpacingCalibrationType"))
        found |= {
            "pixel_spacing_mm": (calibrated[0], calibrated[1]),
            "pixel_spacing_plane": "patient" if corrected else "unstated",
        }
    distances = {
        "source_to_detector_mm": _positive(dataset.get("DistanceSourceToDetector"), 1),
        "source_to_isocentre_mm": _positive(dataset.get("DistanceSourceToPatient"), 1),
    }
    found |= {name: value[0] for name, value in distances.items() if value}
    texts = {
        "view_position": dataset.get("ViewPosition") or _view_of_code(dataset),
        "intensity_relationship": dataset.get("PixelIntensityRelationship"),
        "laterality": dataset.get("ImageLaterality") or dataset.get("Laterality"),
    }
    found |= {name: str(text) for name, text in texts.items() if text}
    orientation = dataset.get("PatientOrientation")
    if orientation and len(orientation) == 2 and all(orientation):
        found["patient_orientation"] = tuple(str(letters) for letters in orientation)
    edges = [
        dataset.get(f"Collimator{name}Edge")
        for name in ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
    ]
    if "RECTANGULAR" in str(dataset.get("CollimatorShape", "")) and all(edge is not None for edge in edges):
        top, bottom, left, right = (int(edge) for edge in edges)  # pixels, counted from 1
        rows, columns = shape[-2:]
        top, left = max(top - 1, 0), max(left - 1, 0)
        bottom, right = min(bottom, rows), min(right, columns)
        if top < bottom and left < right:
            found["collimation"] = (top, bottom, left, right)
    return found


def _positive(value: Any, count: int) -> list[float] | None:
    """``count`` positive finite numbers, or None."""
    try:
        numbers = [float(x) for x in (np.atleast_1d(value) if value is not None else [])]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(np.isfinite(x) and x > 0 for x in numbers) else None


def _view_of_code(dataset: Any) -> str | None:
    """View Position by the View Code Sequence (context group 4010), which DX files may have in its place."""
    codes = dataset.get("ViewCodeSequence")
    return _VIEW_CODES.get(str(codes[0].get("CodeValue", ""))) if codes else None
