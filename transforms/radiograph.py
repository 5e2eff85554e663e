"""Stored radiographs: PNG, TIFF, DICOM and NIfTI files to line integrals, and back to files.

What a file's numbers mean is declared, not guessed:

- ``line_integral``: they are line integrals; floating-point as they are, 16-bit integers × ``1 / PNG_COUNTS``.
- ``transmission``: they are proportional to the X-ray intensity I at the detector; −ln(I / I₀).
- ``display``: a picture in which dense is bright. With the training set's statistics its histogram is matched with
  theirs; without, 0…full scale is mapped linearly onto 0…``DISPLAY_MAXIMUM``. The latter is what 8-bit exports of
  earlier systems are, and an approximation.

DICOM's modality LUT applies to all three; its VOI LUT or window only to ``display``.

Arrays are (rows, columns) with row 0 cranial. NIfTI files hold (columns, rows[, views]) with index 0 of the second
axis cranial, whatever their affine: it is the order in which ITK and 3D Slicer store an image.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from PIL import Image
from torch import Tensor

from drr2ct.transforms.attenuation import (
    LINE_INTEGRAL_SCALE,
    transmission_to_line_integral,
    unattenuated_intensity,
)
from drr2ct.transforms.detector import (
    Acquisition,
    find_collimation,
    pixel_size_on_detector,
    place_on_detector,
    states_pitch,
)
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.radiograph_files import Pixels, decode
from drr2ct.transforms.radiograph_intensity import (
    correlation,
    match_quantiles,
    median_difference,
    quantiles_for_field,
    thumbnail,
)
from drr2ct.transforms.radiograph_views import check_upright, check_view_order, turn_upright
from drr2ct.transforms.validation import InputError, existing_file

INTENSITIES = ("line_integral", "transmission", "display")

FITS = ("detector", "pitch")

PNG_COUNTS = 4096.0
"""Integer counts per unit of line integral in 16-bit files: they reach 16, more than any patient."""

DISPLAY_MAXIMUM = 8.0
"""Line integral at full scale of a ``display`` image: about that of a thick lateral chest."""

POLARITY_MARGIN = 0.2
"""How much better an inverted picture must correlate with the training set's mean image to be taken as inverted."""


def read_radiograph(
    path: str | Path, intensity: str, unattenuated: float | str | None = None
) -> tuple[Float[Tensor, "rows columns"], dict[str, Any]]:
    """Read one radiograph as line integrals (dimensionless, float32).

    MONOCHROME1 (and TIFF's MINISWHITE) pictures, in which high is dark, are inverted for ``display`` and
    ``line_integral`` (DICOM PS3.3 C.7.6.3.1.2). For ``transmission`` the detector's sign counts instead
    (Pixel Intensity Relationship Sign, C.8.11.3.1.2); where it is absent, higher numbers mean more X-rays.

    Args:
        path: greyscale PNG, TIFF (8, 16 bit, floating-point), JPEG, DICOM (CR, DX) or NIfTI with one slice.
        intensity: what the numbers mean; see the module.
        unattenuated: I₀ for ``transmission``, in the file's numbers, or ``estimate`` for what
            :func:`~drr2ct.transforms.attenuation.unattenuated_intensity` finds in the image; by default the full
            scale of the type (1 for floating-point files). Zeros count as half a count.

    Returns:
        The image, and metadata: ``filename_or_obj``, ``intensity``, what
        :class:`~drr2ct.transforms.radiograph_files.Pixels` lists, and ``assumptions``, a list of sentences.

    Raises:
        InputError: if the file is missing, empty, damaged, no greyscale picture, has several frames, is constant,
            holds NaN or infinity, or its type does not fit the declared intensity.
    """
    return _line_integrals(_read(path, intensity), path, intensity, unattenuated)


def _read(path: str | Path, intensity: str) -> Pixels:
    """One decoded image."""
    _check_intensity(intensity)
    pixels = decode(existing_file(path, "radiograph"), intensity == "display")
    if pixels.values.ndim != 2:
        shape = "×".join(map(str, pixels.values.shape))
        raise InputError(f"radiograph {path} has {shape} samples instead of rows × columns; export one 2-D image.")
    return pixels


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


class LoadRadiographsd(MapTransform):
    """Load the radiographs of a patient as line integrals (views, rows, columns), on the geometry's detector.

    The value under a key is a list of files in the order of ``geometry.views``, or one file: of a single view, or a
    NIfTI stack of all views (columns, rows, views). What was assumed about them is put into the sample under
    ``assumptions`` (one string, a sentence a line, so that it collates) and into the images' metadata (a list).

    ``fit="detector"`` is for images made for the geometry, such as stored DRRs: they are taken to cover the detector
    from edge to edge, and resampled (anti-aliased) if they have another size of the same aspect ratio.
    ``fit="pitch"`` is for acquired radiographs, each of its own size: they are scaled by their pixel pitch and
    distances so that the isocentre's plane keeps its size
    (:func:`~drr2ct.transforms.detector.pixel_size_on_detector`), and centred on the detector; what they do not cover
    is taken as unattenuated. Without a pitch their height spans the detector.

    Args:
        keys: keys of the file names.
        geometry: the views.
        intensity: what the files' numbers mean; see :func:`read_radiograph`.
        unattenuated: I₀ for ``transmission``, a number or ``estimate``; see :func:`read_radiograph`.
        vertical_flip: the stored images come feet first; those that state their orientation are not turned by this.
        check_order: refuse a PA and a lateral view that look exchanged (:func:`check_view_order`) and, with
            statistics, images that look turned.
        allow_missing_keys: leave a sample without the key as it is.
        fit: ``detector`` or ``pitch``.
        pixel_spacing_mm: edge length of the files' pixels at the detector, for ``pitch``: one number, or one for each
            view. Like the distances, it takes precedence over the files' headers.
        source_to_detector_mm: distance from the source to the detector the files were taken with, likewise.
        source_to_isocentre_mm: distance from the source to the middle of the patient, likewise.
        crop_collimation: take collimated borders (:func:`~drr2ct.transforms.detector.find_collimation`, or the
            DICOM header's rectangle) as unattenuated.
        opposite_side: accept AP for PA and a right for a left lateral.
        inverted: for ``display``: dense is dark (True) or bright (False) in the picture as the file shows it. By
            default it is bright, unless the inverted picture looks more like the training set's.
        statistics: of the training set's radiographs
            (:func:`~drr2ct.transforms.radiograph_intensity.radiograph_statistics`): for ``display``, for
            ``transmission`` without air to estimate I₀ from, and to find turned images.

    Raises:
        InputError: as :func:`read_radiograph`, and for a wrong number of files, a size with another aspect ratio,
            pixels that are not square, or a DICOM View Position or Patient Orientation that contradicts the view.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        intensity: str,
        unattenuated: float | str | None = None,
        vertical_flip: bool = False,
        check_order: bool = True,
        allow_missing_keys: bool = False,
        fit: str = "detector",
        pixel_spacing_mm: float | Sequence[float | None] | None = None,
        source_to_detector_mm: float | Sequence[float | None] | None = None,
        source_to_isocentre_mm: float | Sequence[float | None] | None = None,
        crop_collimation: bool = False,
        opposite_side: bool = False,
        inverted: bool | None = None,
        statistics: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _check_intensity(intensity)
        if fit not in FITS:
            raise InputError(f"radiographs are fitted by {' or '.join(FITS)}, not by {fit!r}.")
        if statistics is not None and len(statistics["views"]) != len(geometry.views):
            raise InputError(
                f"the training set's statistics are of {len(statistics['views'])} views, the geometry has "
                f"{len(geometry.views)}; take both from the same checkpoint."
            )
        count = len(geometry.views)
        self.stated = [
            Acquisition(*values)
            for values in zip(
                _for_views(pixel_spacing_mm, count, "pixel_spacing_mm"),
                _for_views(source_to_detector_mm, count, "source_to_detector_mm"),
                _for_views(source_to_isocentre_mm, count, "source_to_isocentre_mm"),
                strict=True,
            )
        ]
        self.geometry = geometry
        self.intensity = intensity
        self.unattenuated = unattenuated
        self.vertical_flip = vertical_flip
        self.check_order = check_order
        self.fit = fit
        self.crop_collimation = crop_collimation
        self.opposite_side = opposite_side
        self.inverted = inverted
        self.statistics = statistics

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its radiographs."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = self._load(sample[key])
            sample["assumptions"] = "\n".join(sample[key].meta["assumptions"])
        return sample

    def _load(self, files: str | Path | Sequence[str | Path]) -> MetaTensor:
        paths = [files] if isinstance(files, (str, Path)) else list(files)
        views = self.geometry.views
        if len(paths) == 1 and len(views) > 1:
            read = self._read_stack(paths[0])
            paths = paths * len(views)
        elif len(paths) == len(views):
            read = [_read(path, self.intensity) for path in paths]
        else:
            wanted = ", ".join(view.name for view in views)
            raise InputError(f"{len(paths)} radiographs ({_names(paths)}) for the {len(views)} views {wanted}.")
        notes: list[str] = []
        images = []
        for index, (pixels, path) in enumerate(zip(read, paths, strict=True)):
            image, found = self._view(index, pixels, path)
            images.append(image)
            notes += found
        if self.fit == "pitch":
            stack = torch.stack(images)
            notes.append("The central ray is taken to meet the middle of each radiograph.")
        else:
            for image, path in zip(images, paths, strict=True):
                if image.shape != images[0].shape:
                    raise InputError(
                        f"radiograph {path} has {_size(image.shape)} pixels, {paths[0]} has {_size(images[0].shape)}; "
                        "all views need the same size."
                    )
            stack = self._on_detector(torch.stack(images), paths)
        if self.vertical_flip:
            stated = ["patient_orientation" in pixels.metadata for pixels in read]
            stack = torch.stack([image if s else image.flip(0) for image, s in zip(stack, stated, strict=True)])
        if self.check_order:
            check_view_order(stack, self.geometry, _names(list(dict.fromkeys(paths))))
            if self.statistics is not None:
                templates = [np.asarray(view["thumbnail"], dtype=np.float32) for view in self.statistics["views"]]
                check_upright(stack, templates, self.geometry, [str(path) for path in paths])
        meta = {"filename_or_obj": [str(path) for path in paths], "assumptions": list(dict.fromkeys(notes))}
        return MetaTensor(stack, meta=meta)

    def _read_stack(self, path: str | Path) -> list[Pixels]:
        pixels = decode(existing_file(path, "radiographs"), self.intensity == "display")
        views = len(self.geometry.views)
        if pixels.values.ndim != 3 or pixels.values.shape[0] != views:
            raise InputError(f"{path} is one file but not a NIfTI stack of {views} views; give one file for each view.")
        return [replace(pixels, values=values) for values in pixels.values]

    def _view(self, index: int, pixels: Pixels, path: str | Path) -> tuple[Float[Tensor, "rows columns"], list[str]]:
        """One view upright, on its detector if that is how it is fitted, and what was assumed."""
        view, stated, name = self.geometry.views[index], self.stated[index], Path(path).name
        notes: list[str] = []
        rows, columns = pixels.values.shape
        margins = (0, 0, 0, 0)
        if self.crop_collimation:
            top, bottom, left, right = pixels.metadata.get("collimation") or find_collimation(pixels.values)
            if (top, bottom, left, right) != (0, rows, 0, columns):
                pixels = replace(pixels, values=pixels.values[top:bottom, left:right])
                margins = (left, columns - right, top, rows - bottom)
                notes.append(
                    f"{name} is collimated: rows {top} to {bottom - 1} and columns {left} to {right - 1} of "
                    f"{_size((rows, columns))} were used."
                )
        image, metadata = _line_integrals(pixels, path, self.intensity, self.unattenuated)
        notes += metadata["assumptions"]
        spacing = metadata.get("pixel_spacing_mm")
        if self.fit == "detector" and spacing and abs(spacing[0] / spacing[1] - 1) > 0.01:
            raise InputError(
                f"radiograph {path} has pixels of {spacing[0]:g}×{spacing[1]:g} mm; resample it to square pixels."
            )

        def place(image: Float[Tensor, "rows columns"]) -> tuple[Float[Tensor, "r c"], list[str]]:
            # where nothing says how large a pixel is, what is left after cropping is all there is
            if any(margins) and (self.fit == "detector" or states_pitch(metadata, stated)):
                image = F.pad(image, margins)
            upright, found = turn_upright(image, metadata, view, self.opposite_side)
            if self.fit == "detector":
                return upright, found
            # the header's pitch goes with the stored rows and columns
            transposed = turn_upright(torch.zeros(1, 2), metadata, view, self.opposite_side)[0].shape == (2, 1)
            pitched = {**metadata, "pixel_spacing_mm": spacing[::-1]} if spacing and transposed else metadata
            size, assumed = pixel_size_on_detector(pitched, view, (upright.shape[0], upright.shape[1]), stated)
            return _resampled(upright, view, size), [*found, *assumed]

        placed, found = place(image)
        airless = self.intensity == "transmission" and metadata.get("air_seen") is False
        if self.statistics is not None and airless:
            covered = place(torch.ones_like(image))[0] > 0.5
            usual = quantiles_for_field(self.statistics["views"][index], float(covered.float().mean()))
            missing = median_difference(usual, placed / LINE_INTEGRAL_SCALE, covered) * LINE_INTEGRAL_SCALE
            if missing > 0:  # the brightest part of a patient cannot be brighter than air
                placed = placed + missing * covered
                notes.append(
                    f"{name}: {missing:.2f} was added to its line integrals, so that their median is that of the "
                    "training radiographs."
                )
        if self.intensity == "display":
            covered = place(torch.ones_like(image))[0] > 0.5
            picture = placed / DISPLAY_MAXIMUM
            feet_first = self.vertical_flip and "patient_orientation" not in metadata
            placed, found = self._picture_to_line_integrals(index, picture, covered, found, name, feet_first)
        return placed, notes + found

    def _picture_to_line_integrals(
        self,
        index: int,
        picture: Float[Tensor, "rows columns"],
        covered: Bool[Tensor, "rows columns"],
        notes: list[str],
        name: str,
        feet_first: bool,
    ) -> tuple[Float[Tensor, "rows columns"], list[str]]:
        """A picture from 0 to 1 in which dense is bright, or, if it is found to be so, dark."""
        candidates = {False: picture, True: (1 - picture) * covered}
        if self.statistics is None:
            inverted = bool(self.inverted)
            result = candidates[inverted] * DISPLAY_MAXIMUM
            how = (
                "without the training set's distribution its range was mapped linearly onto line integrals from 0 to "
                f"{DISPLAY_MAXIMUM:g}"
            )
        else:
            stored = self.statistics["views"][index]
            quantiles = quantiles_for_field(stored, float(covered.float().mean()))
            matched = {
                turned: match_quantiles(candidate, quantiles, covered) for turned, candidate in candidates.items()
            }
            if self.inverted is None:
                template = np.asarray(stored["thumbnail"], dtype=np.float32)
                as_it_is, turned = (
                    correlation(thumbnail(m.flip(0) if feet_first else m), template) for m in matched.values()
                )
                inverted = turned > as_it_is + POLARITY_MARGIN
            else:
                inverted = self.inverted
            result = matched[inverted] * LINE_INTEGRAL_SCALE
            how = "its histogram was matched with that of the training radiographs"
        notes = [*notes, f"{name} is a picture: {how}."]
        if inverted:
            reason = "as stated" if self.inverted else "because it looks more like the training radiographs so"
            notes.append(f"{name} was inverted, {reason}.")
        return result, notes

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
                "crop it to that aspect ratio, or scale it by its own pitch (fit=pitch)."
            )
        return F.interpolate(images[:, None], size=size, mode="bilinear", antialias=True)[:, 0]


def _for_views(value: float | Sequence[float | None] | None, count: int, name: str) -> list[float | None]:
    """One value for each view."""
    values = [value] * count if value is None or isinstance(value, (int, float)) else list(value)
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} values for {count} views; give one, or one for each view.")
    return values


def _resampled(image: Float[Tensor, "rows columns"], view: View, pixel_mm: tuple[float, float]) -> Tensor:
    """On the view's detector; untouched if it is that detector already."""
    same = image.shape == view.detector_size and all(abs(mm / view.pixel_pitch_mm - 1) < 1e-5 for mm in pixel_mm)
    return image if same else place_on_detector(image, view, pixel_mm)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _names(paths: Sequence[str | Path]) -> str:
    return ", ".join(str(path) for path in paths) or "none"


def _check_intensity(intensity: str) -> None:
    if intensity not in INTENSITIES:
        raise InputError(f"unknown radiograph intensity {intensity!r}; choose {', '.join(INTENSITIES)}.")


def _line_integrals(
    pixels: Pixels, path: str | Path, intensity: str, unattenuated: float | str | None
) -> tuple[Float[Tensor, "rows columns"], dict[str, Any]]:
    """The image, and its metadata with what was assumed."""
    facts = {name: value for name, value in pixels.metadata.items() if name != "notes"}
    assumptions = [f"{note}." for note in pixels.metadata.get("notes", ())]
    metadata = {"filename_or_obj": str(path), "intensity": intensity, **facts, "assumptions": assumptions}
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
        full, note, air_seen = _unattenuated(pixels, values, path, unattenuated)
        assumptions.append(note)
        metadata["air_seen"] = air_seen
        smallest = 0.5 if pixels.bits is not None else full * 2.0**-17  # half a count; of 16 bits if there are none
        return transmission_to_line_integral(torch.from_numpy(values), full, smallest).float(), metadata
    return torch.from_numpy(values).float(), metadata


def _unattenuated(
    pixels: Pixels, values: np.ndarray, path: str | Path, wanted: float | str | None
) -> tuple[float, str, bool]:
    """I₀, how it was come by, and whether it can be relied on."""
    name = Path(path).name
    relationship = pixels.metadata.get("intensity_relationship")
    if relationship in ("LOG", "DISP"):
        raise InputError(
            f"radiograph {path} has the Pixel Intensity Relationship {relationship}, so its numbers are not "
            "proportional to the X-ray intensity; declare display."
        )
    if isinstance(wanted, str) and wanted != "estimate":
        raise InputError(f"the unattenuated intensity of a radiograph is a number or 'estimate', not {wanted!r}.")
    air_seen = True
    if wanted == "estimate":
        full, part, air_seen = unattenuated_intensity(torch.from_numpy(values))
        note = (
            f"{name}: the unattenuated intensity was estimated as {full:g} from the brightest {part:.1%} of the image"
        )
        if not air_seen:
            note += ", which is not even: if the patient covers the whole detector, line integrals are too low"
        note += "."
    elif wanted is None:
        full = pixels.high
        note = f"{name}: the unattenuated intensity is taken to be the full scale of {full:g}."
    else:
        full, note = float(wanted), f"{name}: the unattenuated intensity is {float(wanted):g}, as stated."
    if not (math.isfinite(full) and full > 0):
        raise InputError(f"the unattenuated intensity {full:g} for radiograph {path} must be positive.")
    if wanted is None and values.max() > full:
        raise InputError(
            f"radiograph {path} reaches {values.max():g}, more than its full scale of {full:g}; give the "
            "unattenuated intensity."
        )
    return full, note, air_seen
