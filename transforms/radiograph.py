"""Stored radiographs: PNG, TIFF, DICOM and NIfTI files to line integrals, and back to files.

What a file's numbers mean is declared, not guessed:

- ``line_integral``: they are line integrals; floating-point as they are, 16-bit integers × ``1 / PNG_COUNTS``.
- ``transmission``: they are proportional to the X-ray intensity I at the detector; −ln(I / I₀).
- ``display``: a picture in which dense is bright; 0…full scale is mapped linearly onto 0…``DISPLAY_MAXIMUM``. This is
  what 8-bit exports of earlier systems are, and an approximation.

Arrays are (rows, columns) with row 0 cranial. NIfTI files hold (columns, rows[, views]) with index 0 of the second
axis cranial, whatever their affine: it is the order in which ITK and 3D Slicer store an image.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from PIL import Image
from torch import Tensor

from drr2ct.transforms.attenuation import transmission_to_line_integral
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.validation import InputError, existing_file

INTENSITIES = ("line_integral", "transmission", "display")

PNG_COUNTS = 4096.0
"""Integer counts per unit of line integral in 16-bit files: they reach 16, more than any patient."""

DISPLAY_MAXIMUM = 8.0
"""Line integral at full scale of a ``display`` image: about that of a thick lateral chest."""

SWAP_MARGIN = 0.15
"""How far :func:`pa_score` must contradict the declared views before they are refused as swapped."""

_VIEW_POSITIONS = {"PA": (0.0,), "AP": (180.0,), "LL": (90.0,), "RL": (-90.0,), "LAT": (90.0, -90.0)}
_CODECS = "install pylibjpeg with pylibjpeg-libjpeg and pylibjpeg-openjpeg, or python-gdcm"


@dataclass(frozen=True)
class _Pixels:
    """Decoded numbers, their range if they are integers, and what the file says about itself."""

    values: np.ndarray
    low: float
    high: float
    bits: int | None  # per sample; None for floating-point or calibrated numbers
    metadata: dict[str, Any]
    dark_is_high: bool = False  # MONOCHROME1, MINISWHITE
    counts_fall: bool | None = None  # DICOM: do higher numbers mean less X-ray intensity?


def read_radiograph(
    path: str | Path, intensity: str, unattenuated: float | None = None
) -> tuple[Float[Tensor, "rows columns"], dict[str, Any]]:
    """Read one radiograph as line integrals (dimensionless, float32).

    MONOCHROME1 (and TIFF's MINISWHITE) pictures, in which high is dark, are inverted for ``display`` and
    ``line_integral`` (DICOM PS3.3 C.7.6.3.1.2). For ``transmission`` the detector's sign counts instead
    (Pixel Intensity Relationship Sign, C.8.11.3.1.2); where it is absent, higher numbers mean more X-rays.

    Args:
        path: greyscale PNG, TIFF (8, 16 bit, floating-point), JPEG, DICOM (CR, DX) or NIfTI with one slice.
        intensity: what the numbers mean; see the module.
        unattenuated: I₀ for ``transmission``, in the file's numbers; by default the full scale of the type (1 for
            floating-point files). Zeros count as half a count.

    Returns:
        The image, and metadata: ``filename_or_obj``, ``format``, ``intensity``, and where the file has them
        ``pixel_spacing_mm`` (rows, columns; at the detector), ``view_position``, ``photometric_interpretation``.

    Raises:
        InputError: if the file is missing, empty, damaged, no greyscale picture, has several frames, is constant,
            holds NaN or infinity, or its type does not fit the declared intensity.
    """
    pixels = _decode(existing_file(path, "radiograph"))
    if pixels.values.ndim != 2:
        shape = "×".join(map(str, pixels.values.shape))
        raise InputError(f"radiograph {path} has {shape} samples instead of rows × columns; export one 2-D image.")
    metadata = {"filename_or_obj": str(path), "intensity": intensity, **pixels.metadata}
    return _line_integrals(pixels, path, intensity, unattenuated), metadata


def write_radiograph(
    path: str | Path, line_integrals: Float[Tensor, "*views rows columns"], bits: int = 16, pitch_mm: float = 1.0
) -> None:
    """Write line integrals; the file appears under its name only when it is complete.

    Args:
        path: ``.nii.gz`` or ``.nii`` (float32; one image or a stack of views) or ``.png`` (one image). 16-bit PNG is
            read back with intensity ``line_integral``, 8-bit PNG with ``display``.
        line_integrals: the image; negative numbers become 0 in PNG.
        bits: 8 or 16, for PNG.
        pitch_mm: edge length of a pixel on the detector, for NIfTI.

    Raises:
        InputError: for another suffix or bit depth, numbers that are not finite or too large for the format, or a
            stack in PNG.
    """
    path = Path(path)
    values = line_integrals.detach().cpu().float().numpy()
    if not np.isfinite(values).all():
        raise InputError(f"radiograph for {path} holds NaN or infinite values; it was not written.")
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.Nifti1Image(values.transpose(), np.diag([-pitch_mm, -pitch_mm, 1.0, 1.0]))
        image.header.set_xyzt_units("mm")
        with replacing(path) as temporary:
            nib.save(image, temporary)
    elif path.suffix.lower() == ".png":
        if values.ndim != 2:
            raise InputError(f"{path}: a PNG holds one radiograph, this is a stack of {values.shape[0]}; use .nii.gz.")
        if bits not in (8, 16):
            raise InputError(f"{path}: PNG has 8 or 16 bits per pixel, not {bits}.")
        scale = PNG_COUNTS if bits == 16 else 255 / DISPLAY_MAXIMUM
        counts = np.rint(np.maximum(values, 0) * scale)
        if counts.max() >= 2**bits:
            raise InputError(
                f"{path}: a line integral of {values.max():.1f} does not fit {bits}-bit PNG, which ends at "
                f"{(2**bits - 1) / scale:.1f}; use .nii.gz."
            )
        with replacing(path) as temporary:
            Image.fromarray(counts.astype(np.uint8 if bits == 8 else np.uint16)).save(temporary)
    else:
        raise InputError(f"{path}: radiographs are written as .nii.gz or .png.")


def check_view_position(metadata: Mapping[str, Any], view: View) -> None:
    """Compare DICOM's View Position (PA, AP, LL, RL, LAT) with the view's gantry angle; unknown ones pass.

    Raises:
        InputError: if they contradict each other by more than 45°.
    """
    position = str(metadata.get("view_position") or "").upper()
    angles = _VIEW_POSITIONS.get(position)
    if angles and all(abs(math.remainder(view.gantry_angle_deg - a, 360)) > 45 for a in angles):
        raise InputError(
            f"radiograph {metadata['filename_or_obj']} is marked {position}, but view {view.name} looks from "
            f"{view.gantry_angle_deg:g}° (0 is PA, 90 left lateral); check the order of the files."
        )


def pa_score(image: Float[Tensor, "rows columns"]) -> float:
    """How much a chest image looks frontal: higher for PA than for lateral, by comparison only.

    The sum of two cues that are independent of exposure and patient size when two views of a patient are compared:
    the logarithm of the attenuation's spread across columns (a chest is wider than deep), and the correlation of the
    detail in each row with its mirror image about the best midline (a lateral chest is less symmetric).
    """
    small = F.interpolate(image[None, None], size=(128, 128), mode="area")[0, 0].double().clamp(min=0)
    columns = torch.arange(128, dtype=torch.float64)
    mass = small.sum(dim=0) / small.sum()
    spread = ((columns - (mass * columns).sum()).square() * mass).sum().sqrt() / 128
    local = F.avg_pool2d(small[None, None], (1, 33), stride=1, padding=(0, 16), count_include_pad=False)[0, 0]
    detail, body = small - local, small > 0.05 * small.max()
    symmetry = -1.0
    for midline in range(48, 81):
        half = min(midline, 128 - midline)
        left, right = (slice(midline - half, midline), slice(midline, midline + half))
        both = (body[:, left] & body[:, right].flip(1)).double()
        count = both.sum(dim=1, keepdim=True).clamp(min=1)
        a, b = (
            (half_image - (half_image * both).sum(dim=1, keepdim=True) / count) * both
            for half_image in (detail[:, left], detail[:, right].flip(1))
        )
        symmetry = max(symmetry, ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-9)).item())
    return symmetry + math.log(max(spread.item(), 1e-9))


def check_view_order(images: Float[Tensor, "views rows columns"], geometry: BiplanarGeometry, names: str) -> None:
    """Refuse a PA and a lateral chest image that were exchanged; other pairs of angles pass unchecked.

    Args:
        images: line integrals, in the order of ``geometry.views``.
        geometry: the declared views.
        names: the files, for the message.

    Raises:
        InputError: if the view declared lateral looks clearly more frontal than the one declared PA.
    """

    def near(view: View, *angles: float) -> bool:
        return any(abs(math.remainder(view.gantry_angle_deg - a, 360)) < 20 for a in angles)

    scores = {
        kind: [
            (pa_score(image) + math.log(view.pixel_pitch_mm / view.source_to_detector_mm), view.name)
            for image, view in zip(images, geometry.views, strict=True)
            if near(view, *angles)
        ]
        for kind, angles in (("frontal", (0.0, 180.0)), ("lateral", (90.0, -90.0)))
    }
    for frontal, frontal_name in scores["frontal"]:
        for lateral, lateral_name in scores["lateral"]:
            if lateral - frontal > SWAP_MARGIN:
                raise InputError(
                    f"radiographs {names} look exchanged: the one for view {lateral_name} is the more frontal; give "
                    f"{frontal_name} first where the geometry does, or switch this check off (check_order=False)."
                )


class LoadRadiographsd(MapTransform):
    """Load the radiographs of a patient as line integrals (views, rows, columns), on the geometry's detector.

    The value under a key is a list of files in the order of ``geometry.views``, or one file: of a single view, or a
    NIfTI stack of all views (columns, rows, views). Images of another size are resampled (anti-aliased) if they have
    the detector's aspect ratio; they are taken to cover the detector from edge to edge.

    Args:
        keys: keys of the file names.
        geometry: the views.
        intensity: what the files' numbers mean; see :func:`read_radiograph`.
        unattenuated: I₀ for ``transmission``.
        vertical_flip: the stored images come feet first.
        check_order: refuse a PA and a lateral view that look exchanged (:func:`check_view_order`).
        allow_missing_keys: leave a sample without the key as it is.

    Raises:
        InputError: as :func:`read_radiograph`, and for a wrong number of files, a size with another aspect ratio,
            pixels that are not square, or a DICOM View Position that contradicts the view.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        intensity: str,
        unattenuated: float | None = None,
        vertical_flip: bool = False,
        check_order: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _check_intensity(intensity)
        self.geometry = geometry
        self.intensity = intensity
        self.unattenuated = unattenuated
        self.vertical_flip = vertical_flip
        self.check_order = check_order

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its radiographs."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = self._load(sample[key])
        return sample

    def _load(self, files: str | Path | Sequence[str | Path]) -> MetaTensor:
        paths = [files] if isinstance(files, (str, Path)) else list(files)
        views = self.geometry.views
        if len(paths) == 1 and len(views) > 1:
            images = self._load_stack(paths[0])
        elif len(paths) == len(views):
            read = [read_radiograph(path, self.intensity, self.unattenuated) for path in paths]
            images = []
            for (image, metadata), view in zip(read, views, strict=True):
                check_view_position(metadata, view)
                spacing = metadata.get("pixel_spacing_mm")
                if spacing and abs(spacing[0] / spacing[1] - 1) > 0.01:
                    raise InputError(
                        f"radiograph {metadata['filename_or_obj']} has pixels of {spacing[0]:g}×{spacing[1]:g} mm; "
                        "resample it to square pixels."
                    )
                images.append(image)
        else:
            wanted = ", ".join(view.name for view in views)
            raise InputError(f"{len(paths)} radiographs ({_names(paths)}) for the {len(views)} views {wanted}.")
        for image, path in zip(images, paths * len(images), strict=False):
            if image.shape != images[0].shape:
                raise InputError(
                    f"radiograph {path} has {_size(image.shape)} pixels, {paths[0]} has {_size(images[0].shape)}; "
                    "all views need the same size."
                )
        stack = self._on_detector(torch.stack(images), paths)
        if self.vertical_flip:
            stack = stack.flip(1)
        if self.check_order:
            check_view_order(stack, self.geometry, _names(paths))
        names = [str(path) for path in (paths if len(paths) == len(views) else paths * len(views))]
        return MetaTensor(stack, meta={"filename_or_obj": names})

    def _load_stack(self, path: str | Path) -> list[Float[Tensor, "rows columns"]]:
        pixels = _decode(existing_file(path, "radiographs"))
        views = len(self.geometry.views)
        if pixels.values.ndim != 3 or pixels.values.shape[0] != views:
            raise InputError(f"{path} is one file but not a NIfTI stack of {views} views; give one file for each view.")
        return [
            _line_integrals(
                _Pixels(values, pixels.low, pixels.high, pixels.bits, pixels.metadata),
                path,
                self.intensity,
                self.unattenuated,
            )
            for values in pixels.values
        ]

    def _on_detector(
        self, images: Float[Tensor, "views rows columns"], paths: Sequence[str | Path]
    ) -> Float[Tensor, "views r c"]:
        size = self.geometry.detector_size
        rows, columns = images.shape[1:]
        if (rows, columns) == size:
            return images
        if rows * size[1] != columns * size[0]:
            raise InputError(
                f"radiograph {paths[0]} has {_size((rows, columns))} pixels, the geometry's detector {_size(size)}; "
                "crop it to that aspect ratio or give the geometry it was acquired with."
            )
        return F.interpolate(images[:, None], size=size, mode="bilinear", antialias=True)[:, 0]


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _names(paths: Sequence[str | Path]) -> str:
    return ", ".join(str(path) for path in paths) or "none"


def _check_intensity(intensity: str) -> None:
    if intensity not in INTENSITIES:
        raise InputError(f"unknown radiograph intensity {intensity!r}; choose {', '.join(INTENSITIES)}.")


def _line_integrals(
    pixels: _Pixels, path: str | Path, intensity: str, unattenuated: float | None
) -> Float[Tensor, "rows columns"]:
    _check_intensity(intensity)
    values = pixels.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"radiograph {path} holds NaN or infinite values; export it again.")
    if values.max() == values.min():
        raise InputError(f"radiograph {path} has the same value {values.max():g} everywhere; it shows nothing.")
    inverted = pixels.counts_fall is True if intensity == "transmission" else pixels.dark_is_high
    if inverted:
        values = pixels.low + pixels.high - values
    if intensity == "line_integral":
        if pixels.bits is not None and pixels.bits <= 8:
            raise InputError(f"radiograph {path} has {pixels.bits} bits, too few for line integrals; declare display.")
        if pixels.bits is not None:
            values = values / PNG_COUNTS
    elif intensity == "display":
        if pixels.bits is None and not (values.min() >= pixels.low and values.max() <= pixels.high):
            raise InputError(f"radiograph {path} is not a picture from 0 to 1; declare line_integral or transmission.")
        values = (values - pixels.low) / (pixels.high - pixels.low) * DISPLAY_MAXIMUM
    else:
        full = pixels.high if unattenuated is None else float(unattenuated)
        if not (math.isfinite(full) and full > 0):
            raise InputError(f"the unattenuated intensity {full:g} for radiograph {path} must be positive.")
        if unattenuated is None and values.max() > full:
            raise InputError(
                f"radiograph {path} reaches {values.max():g}, more than its full scale of {full:g}; give the "
                "unattenuated intensity."
            )
        smallest = 0.5 if pixels.bits is not None else full * 2.0**-17  # half a count; of 16 bits if there are none
        return transmission_to_line_integral(torch.from_numpy(values), full, smallest).float()
    return torch.from_numpy(values).float()


def _decode(path: Path) -> _Pixels:
    if path.is_dir():
        raise InputError(f"radiograph {path} is a folder; give one image file.")
    with path.open("rb") as stream:
        head = stream.read(132)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _decode_nifti(path)
    if head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        return _decode_dicom(path)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _decode_tiff(path)
    return _decode_picture(path)


def _plain(values: np.ndarray, path: Path, metadata: dict[str, Any], dark_is_high: bool = False) -> _Pixels:
    """Numbers as a file's type gives them: integers up to 16 bits, or floating-point with a full scale of 1."""
    if values.dtype.kind == "f":
        return _Pixels(values, 0.0, 1.0, None, metadata, dark_is_high)
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        raise InputError(f"radiograph {path} has pixels of type {values.dtype}; export 8 or 16 bits or float.")
    bits = 8 * values.dtype.itemsize - (values.dtype.kind == "i")
    if values.dtype.kind == "i" and values.min() < 0:
        raise InputError(f"radiograph {path} has negative integers; export it as float line integrals.")
    return _Pixels(values, 0.0, float(2**bits - 1), bits, metadata, dark_is_high)


def _decode_picture(path: Path) -> _Pixels:
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
        raise InputError(f"radiograph {path} is not a PNG, TIFF, DICOM or NIfTI image.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"radiograph {path} is damaged or incomplete ({error}); export it again.") from error
    if mode == "I":  # how Pillow holds some 16-bit PNGs
        values = values.astype(np.uint16) if values.min() >= 0 and values.max() < 2**16 else values
    return _plain(values, path, {"format": kind})


def _decode_tiff(path: Path) -> _Pixels:
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


def _decode_nifti(path: Path) -> _Pixels:
    try:
        image: Any = nib.load(path)  # nibabel types it as a base class without these attributes
        stored, spacing = np.asanyarray(image.dataobj), image.header.get_zooms()
    except Exception as error:  # nibabel and gzip raise a dozen kinds for damaged files
        raise InputError(f"radiograph {path} is not a readable NIfTI image ({error}); export it again.") from error
    while stored.ndim > 2 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim not in (2, 3):
        raise InputError(f"radiograph {path} is a NIfTI image of shape {image.shape}; one 2-D slice is needed.")
    metadata = {"format": "NIfTI", "pixel_spacing_mm": (float(spacing[1]), float(spacing[0]))}
    return _plain(stored.transpose(), path, metadata)


def _decode_dicom(path: Path) -> _Pixels:
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
            ) from (error)
        raise InputError(f"DICOM file {path} is damaged or incomplete ({error}); export it again.") from error
    metadata: dict[str, Any] = {"format": "DICOM", "photometric_interpretation": photometric}
    # at the detector if the file knows it; Pixel Spacing may have been corrected for magnification
    spacing = dataset.get("ImagerPixelSpacing") or dataset.get("PixelSpacing")
    if spacing:
        metadata["pixel_spacing_mm"] = (float(spacing[0]), float(spacing[1]))
    if dataset.get("ViewPosition"):
        metadata["view_position"] = str(dataset.ViewPosition)
    sign = dataset.get("PixelIntensityRelationshipSign")
    counts_fall = None if sign is None else int(sign) < 0
    if stored.dtype.kind == "f":
        return _Pixels(values, 0.0, 1.0, None, metadata, photometric == "MONOCHROME1", counts_fall)
    bits = int(dataset.BitsStored)
    first = -(2 ** (bits - 1)) if int(dataset.PixelRepresentation) else 0
    ends = np.array([first, first + 2**bits - 1], dtype=stored.dtype)
    calibrated = values is not stored and not np.array_equal(values, stored)
    low, high = sorted(float(x) for x in apply_modality_lut(ends, dataset))
    if dataset.get("ModalityLUTSequence"):
        entries = apply_modality_lut(np.arange(first, first + 2**bits, dtype=np.int64), dataset)
        low, high = float(entries.min()), float(entries.max())
    return _Pixels(values, low, high, None if calibrated else bits, metadata, photometric == "MONOCHROME1", counts_fall)
