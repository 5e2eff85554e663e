"""Radiographs in DICOM: pixels of any transfer syntax, what they mean, and where the file has a picture."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Num
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.uid import (
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from drr2ct.transforms.quiet import quiet_libraries
from drr2ct.transforms.radiographs.header import bring_up_frame_groups, header_facts
from drr2ct.transforms.radiographs.jpeg import jpeg_damage
from drr2ct.transforms.radiographs.picture import one_channel
from drr2ct.transforms.radiographs.pixels import Pixels, Reading, check_size
from drr2ct.transforms.radiographs.shutter import not_padded, within_shutters
from drr2ct.transforms.radiographs.voi import see
from drr2ct.transforms.validation import InputError

_END_OF_IMAGE = b"\xff\xd9"  # of JPEG and JPEG-LS
_CHANNELS = {"RGB": 3, "PALETTE COLOR": 1, **dict.fromkeys(("YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"), 3)}
_PIXEL_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "PixelData",
)  # fmt: skip


def decode_dicom(path: Path, reading: Reading) -> Pixels:
    """Read a DICOM radiograph (CR, DX, or one saved as secondary capture).

    The modality LUT is applied, and for ``display`` the VOI LUT or window too; it is not otherwise, because it clips
    and bends what a measurement needs.

    Raises:
        InputError: if the file is damaged, no greyscale picture, has several frames, or contradicts the stated
            intensity.
    """
    try:
        with quiet_libraries():
            dataset = pydicom.dcmread(path, force=True)  # a data set alone is one, too
            notes = _encoding(dataset, path)
            frames = int(dataset.get("NumberOfFrames") or 1)
            photometric = str(dataset.get("PhotometricInterpretation", ""))
            rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise InputError(f"radiograph {path} is not a readable DICOM file ({error}); export it again.") from error
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise InputError(f"DICOM file {path} has no pixel data; give the image itself.")
    if frames != 1:
        raise InputError(f"DICOM file {path} has {frames} frames; give a single radiograph (CR or DX).")
    grey = photometric in ("MONOCHROME1", "MONOCHROME2")
    if not grey and _CHANNELS.get(photometric) != dataset.get("SamplesPerPixel"):
        raise InputError(f"DICOM file {path} is {photometric or 'of unknown colour'}, not greyscale.")
    check_size(path, rows, columns)
    bring_up_frame_groups(dataset)
    stored, bits, found = _stored(dataset, path) if grey else _grey(dataset, path, reading)
    notes += found
    try:
        with quiet_libraries():
            values = apply_modality_lut(stored, dataset)
            ends = _modality_range(dataset, bits)
    except Exception as error:  # whatever a malformed table leads to
        raise InputError(f"DICOM file {path} has an unusable modality LUT ({error}); export it again.") from error
    intensity = reading.intensity
    calibrated = values is not stored and not np.array_equal(values, stored)
    if intensity == "auto":
        intensity, why = _decide(dataset)
        notes.append(f"{path.name} was read as {intensity}: {why}")
    elif intensity == "line_integral" and stored.dtype.kind != "f" and not calibrated:
        raise InputError(
            f"radiograph {path} holds the counts of a detector or a picture, not line integrals; declare display, "
            "transmission, or leave the intensity to the file (auto)."
        )
    sign = _sign(dataset)
    dark_is_high = photometric == "MONOCHROME1"
    # the sign is that of the stored numbers (C.8.11.3.1.2): a falling rescale turns it
    counts_fall = None if sign is None else (sign < 0) != (float(dataset.get("RescaleSlope") or 1) < 0)
    display = intensity == "display"
    if display and counts_fall is not None and counts_fall == dark_is_high:
        raw = _presentation(dataset) == "FOR PROCESSING"
        dark_is_high = not counts_fall if raw else dark_is_high
        notes.append(
            f"{path.name} says {photometric} and Pixel Intensity Relationship Sign {sign:+d}, which contradict each "
            f"other; the {'second' if raw else 'first'} was followed"
        )
    covered, found = not_padded(stored, dataset, path.name)
    notes += found
    shuttered, found = within_shutters(values, dataset, path.name)
    notes += found
    covered &= shuttered
    low, high, depth = (*ends, None if calibrated else bits) if stored.dtype.kind != "f" else (0.0, 1.0, None)
    if display:
        seen = values[covered]
        try:
            with quiet_libraries():
                shown, limits, found = see(seen if seen.size else values.ravel(), dataset, path, reading)
        except InputError:
            raise
        except Exception as error:  # whatever a malformed window leads to
            raise InputError(
                f"DICOM file {path} has an unusable window ({error}); give another (--window none)."
            ) from (error)
        notes += found
        if limits is not None:
            low, high = limits
            values = np.full(values.shape, low if not dark_is_high else high, np.float64)
            values[covered] = shown
            depth = None
    with quiet_libraries():
        facts, found = header_facts(dataset, path.name)
    notes += found
    return Pixels(
        values,
        low,
        high,
        depth,
        intensity,
        facts,
        dark_is_high,
        counts_fall,
        None if covered.all() else covered,
        tuple(f"{note}." for note in notes),
    )


def _encoding(dataset: Dataset, path: Path) -> list[str]:
    """Fill in the transfer syntax of a data set without a meta header, as it was found, and say so."""
    if _syntax(dataset) is not None:
        return []
    implicit, little = dataset.original_encoding
    uncompressed = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = uncompressed if little else ExplicitVRBigEndian
    return [f"{path.name} has no DICOM meta header: its pixels are taken to be uncompressed"]


def _grey(dataset: Dataset, path: Path, reading: Reading) -> tuple[Num[np.ndarray, "rows columns"], int, list[str]]:
    """Grey kept as colour, as secondary captures are, on one channel; of what depth, and what was found."""
    samples = _pixel_array(dataset, path)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        samples = apply_color_lut(samples, dataset)
    full = float(np.iinfo(samples.dtype).max)
    stored, note = one_channel(samples, full, path, reading)
    return stored, 8 * samples.dtype.itemsize, [f"{path.name} was read as grey: {note}"]


def _stored(dataset: Dataset, path: Path) -> tuple[Num[np.ndarray, "rows columns"], int, list[str]]:
    """Numbers as stored, how many bits they have, and what was corrected."""
    native = not dataset.file_meta.TransferSyntaxUID.is_compressed if _syntax(dataset) else True
    bits = int(dataset.get("BitsStored") or dataset.get("BitsAllocated") or 16)
    allocated = int(dataset.get("BitsAllocated") or 16)
    unsigned = "PixelData" in dataset and not int(dataset.get("PixelRepresentation") or 0)
    high_bit = int(dataset.get("HighBit") or bits - 1)
    overlaid = any(element.tag.group in range(0x6000, 0x6100) and element.tag.element == 0x0102 and element.value
                   for element in dataset)  # fmt: skip
    whole = native and unsigned and not overlaid and bits < allocated <= 16
    if whole:
        dataset.BitsStored, dataset.HighBit = allocated, allocated - 1  # pydicom would cut off what is above them
    try:
        stored = _pixel_array(dataset, path)
    finally:
        if whole:
            dataset.BitsStored = bits
    notes: list[str] = []
    if whole:
        shift = high_bit + 1 - bits
        beyond = int(stored.max()) >= 2**bits
        if shift > 0 and beyond and not (stored & (2**shift - 1)).any():
            stored = stored >> shift
            notes.append(f"{path.name} has High Bit {high_bit} for {bits} bits: shifted down by {shift}")
        elif beyond:
            used = int(stored.max()).bit_length()
            notes.append(f"{path.name} states {bits} bits, but its numbers need {used}")
            bits = used
    return stored, bits, notes


def _pixel_array(dataset: Dataset, path: Path) -> Num[np.ndarray, "rows columns *channels"]:
    """By pydicom; compressed data that it has no codec for, by SimpleITK, whose GDCM knows all of JPEG and JPEG-LS."""
    try:
        with quiet_libraries(also_native=True):
            pixels: np.ndarray = dataset.pixel_array
    except Exception as error:  # depends on the transfer syntax and the decoders that are installed
        syntax = _syntax(dataset)
        if syntax is None or not syntax.is_compressed:
            raise InputError(
                f"DICOM file {path} is damaged or incomplete ({_first_line(error)}); export it again."
            ) from error
        stored = _by_simpleitk(dataset)
        if stored is not None:
            return stored
        what = f"DICOM file {path} is compressed ({syntax.name}) and cannot be decoded"
        if not ("JPEG" in syntax.name or "RLE" in syntax.name) or "XL" in syntax.name:
            raise InputError(f"{what}, as there is no decoder for it; decompress the file first.") from error
        raise InputError(f"{what}: it is damaged or incomplete; export it again.") from error
    if damage := _damage(dataset):
        raise InputError(f"DICOM file {path} is damaged or incomplete ({damage}); export it again.")
    return pixels  # (rows, columns) or (rows, columns, channels)


def _damage(dataset: Dataset) -> str:
    """What is wrong within a JPEG picture of 8 bits, which decoders pass over; empty for a sound one."""
    if _syntax(dataset) != JPEGBaseline8Bit:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.jpg"
        file.write_bytes(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        return jpeg_damage(file)


def _by_simpleitk(dataset: Dataset) -> np.ndarray | None:
    """The stored numbers, or None; the file is written anew, so that no rescale is applied to them."""
    import SimpleITK as sitk  # slow to import, rarely needed

    try:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    except (ValueError, StopIteration):
        return None
    if not frame.rstrip(b"\0\xff").endswith(_END_OF_IMAGE):  # GDCM makes half a picture of half a file
        return None
    bare = Dataset()
    for name in _PIXEL_TAGS:
        if name in dataset:
            bare[name] = dataset[name]
    bare.file_meta = dataset.file_meta
    with tempfile.TemporaryDirectory() as folder, quiet_libraries(also_native=True):
        file = Path(folder) / "image.dcm"
        try:
            bare.save_as(file, enforce_file_format=True)
            stored = sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="GDCMImageIO")).squeeze()
        except (RuntimeError, ValueError, TypeError, AttributeError):
            return None
    return stored if stored.shape == (dataset.Rows, dataset.Columns) else None


def _syntax(dataset: Dataset) -> Any:
    return getattr(dataset.file_meta, "TransferSyntaxUID", None)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _modality_range(dataset: Dataset, bits: int) -> tuple[float, float]:
    """What the modality LUT makes of the lowest and the highest number."""
    first = -(2 ** (bits - 1)) if int(dataset.get("PixelRepresentation") or 0) else 0
    if dataset.get("ModalityLUTSequence"):
        entries = apply_modality_lut(np.arange(first, first + 2**bits, dtype=np.int64), dataset)
        return float(entries.min()), float(entries.max())
    low, high = sorted(float(x) for x in apply_modality_lut(np.array([first, first + 2**bits - 1]), dataset))
    return low, high


def _sign(dataset: Dataset) -> int | None:
    """Pixel Intensity Relationship Sign, or None."""
    try:
        sign = int(dataset.get("PixelIntensityRelationshipSign"))
    except (TypeError, ValueError):
        return None
    return sign if sign in (-1, 1) else None


def _presentation(dataset: Dataset) -> str:
    """Presentation Intent Type, of the header or of the SOP class; empty if neither says."""
    stated = str(dataset.get("PresentationIntentType") or "").upper()
    if stated:
        return stated
    return "FOR PROCESSING" if dataset.get("SOPClassUID") == DigitalXRayImageStorageForProcessing else ""


def _decide(dataset: Dataset) -> tuple[str, str]:
    """What the numbers mean, and which entries of the header say so.

    Only numbers that are stated to be linear in the X-ray intensity are a measurement. All others are a picture,
    whose tones are matched with those of the training set.
    """
    relationship = str(dataset.get("PixelIntensityRelationship") or "").upper()
    presentation = _presentation(dataset)
    if relationship == "LIN" and presentation != "FOR PRESENTATION":
        return "transmission", "its Pixel Intensity Relationship is LIN"
    reasons = []
    if presentation:
        reasons.append(f"it is {presentation}")
    if relationship:
        reasons.append(f"its Pixel Intensity Relationship is {relationship}")
    if dataset.get("VOILUTSequence") or dataset.get("WindowWidth") is not None:
        reasons.append("it has a VOI LUT or window")
    return "display", " and ".join(reasons) or "nothing in it says that its numbers are linear in the X-ray intensity"
