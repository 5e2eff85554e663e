"""From the detector a radiograph was taken with to the detector of the geometry: scale, and place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from drr2ct.transforms.geometry import View
from drr2ct.transforms.validation import InputError

SIZE_LIMITS = (0.2, 5.0)
"""An image must be at least and at most this many times as large as the geometry's detector, or its pitch is wrong."""


@dataclass(frozen=True)
class Acquisition:
    """How a radiograph was taken, as the user states it; None leaves it to the file, else to the geometry.

    Args:
        pixel_spacing_mm: edge length of a pixel, at the detector.
        source_to_detector_mm: distance from the source to the detector, along the central ray.
        source_to_isocentre_mm: distance from the source to the middle of the patient.

    Raises:
        InputError: if a value is not finite and positive.
    """

    pixel_spacing_mm: float | None = None
    source_to_detector_mm: float | None = None
    source_to_isocentre_mm: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise InputError(f"{name} of a radiograph is {value}; it must be positive.")


def states_pitch(metadata: Mapping[str, Any], stated: Acquisition) -> bool:
    """Whether the pixel pitch is known, from the user or from the file.

    Pictures carry the resolution of screens and printers, and NIfTI files 1 mm where nothing was known: neither counts.
    """
    header = metadata.get("pixel_spacing_mm") is not None
    placeholder = metadata.get("pixel_spacing_plane") == "unstated" and metadata.get("format") != "DICOM"
    return stated.pixel_spacing_mm is not None or (header and not placeholder)


def pixel_size_on_detector(
    metadata: Mapping[str, Any], view: View, shape: tuple[int, int], stated: Acquisition
) -> tuple[tuple[float, float], list[str]]:
    r"""How large a radiograph's pixels (rows, columns; mm) are once they are projected onto the view's detector.

    What is seen at the isocentre must stay the same size there: a pixel of pitch :math:`q` on a detector at SDD, of a
    patient at SID, is :math:`q\,\mathrm{SID}/\mathrm{SDD}` in the isocentre's plane, and that is magnified by the
    geometry's own SDD / SID.

    Args:
        metadata: of :func:`~drr2ct.transforms.radiographs.scale.read_radiograph`.
        view: whose detector is meant.
        shape: rows and columns of the image.
        stated: takes precedence over the file's header.

    Returns:
        The pixel's size, and sentences on what was assumed.

    Raises:
        InputError: if the pitch makes the image absurdly small or large, or the stated distances contradict
            each other.
    """
    name = Path(metadata["filename_or_obj"]).name
    plane = metadata.get("pixel_spacing_plane", "unstated")
    notes = []
    if not states_pitch(metadata, stated):
        height = view.detector_size[0] * view.pixel_pitch_mm
        edge = height / shape[0]
        ignored = stated.source_to_detector_mm is not None or stated.source_to_isocentre_mm is not None
        return (edge, edge), [
            f"{name} does not state its pixel pitch: its height of {shape[0]} pixels is taken to span the "
            f"{height:.0f} mm of view {view.name}'s detector"
            + (", and distances are not used without a pitch." if ignored else ".")
        ]
    if stated.pixel_spacing_mm is not None:
        pitch, plane = (stated.pixel_spacing_mm, stated.pixel_spacing_mm), "detector"
    else:
        pitch = metadata["pixel_spacing_mm"]
        if plane == "unstated":
            notes.append(f"{name} states a pitch of {pitch[0]:g} mm but not in which plane: taken to be the detector.")
    scale = view.source_to_detector_mm / view.source_to_isocentre_mm
    if plane == "patient":
        notes.append(f"{name} states its pitch of {pitch[0]:g} mm as corrected to the patient; taken at the isocentre.")
    else:
        to_detector, to_isocentre, assumed = _distances(metadata, view, stated, name)
        scale *= to_isocentre / to_detector
        notes += assumed
    size = (pitch[0] * scale, pitch[1] * scale)
    for count, pixels, mm, own in zip(shape, view.detector_size, size, pitch, strict=True):
        ratio = count * mm / (pixels * view.pixel_pitch_mm)
        if not SIZE_LIMITS[0] <= ratio <= SIZE_LIMITS[1]:
            raise InputError(
                f"radiograph {metadata['filename_or_obj']} would measure {count * mm:.0f} mm on view {view.name}'s "
                f"detector of {pixels * view.pixel_pitch_mm:.0f} mm with its pitch of {own:g} mm; correct it with "
                "pixel_spacing_mm."
            )
    return size, notes


def half_chest_mm(gantry_angle_deg: float) -> float:
    """Half a chest along the beam: of an ellipse 230 mm deep and 330 mm wide, an adult's with the arms up."""
    angle = math.radians(gantry_angle_deg)
    return math.hypot(115.0 * math.cos(angle), 165.0 * math.sin(angle))


def _distances(
    metadata: Mapping[str, Any], view: View, stated: Acquisition, name: str
) -> tuple[float, float, list[str]]:
    """Source to detector and to isocentre, and what was assumed."""
    to_detector, to_isocentre = stated.source_to_detector_mm, stated.source_to_isocentre_mm
    if to_detector is not None and to_isocentre is not None and to_isocentre >= to_detector:
        raise InputError(
            f"the source of radiograph {name} is stated to be {to_isocentre:g} mm from the isocentre and "
            f"{to_detector:g} mm from the detector; the detector must be the farther one."
        )
    behind = view.source_to_detector_mm - view.source_to_isocentre_mm
    if to_detector is not None and to_isocentre is None and to_detector <= behind:
        raise InputError(
            f"the source of radiograph {name} is stated to be {to_detector:g} mm from the detector, no more than the "
            f"{behind:g} mm from the patient to the detector of view {view.name}; give source_to_detector_mm in mm."
        )
    found_detector = to_detector or metadata.get("source_to_detector_mm")
    found_isocentre = to_isocentre or metadata.get("source_to_isocentre_mm")
    notes = []
    support, magnification = metadata.get("source_to_support_mm"), metadata.get("magnification")
    if not found_isocentre and found_detector and support:
        half = half_chest_mm(view.gantry_angle_deg)
        found_isocentre = support - half
        notes.append(
            f"{name} states {support:g} mm from the source to the support: the middle of the patient is taken to be "
            f"{half:.0f} mm before it, half a chest."
        )
    elif not found_isocentre and magnification:
        found_detector = found_detector or view.source_to_detector_mm
        found_isocentre = found_detector / magnification
        notes.append(f"{name} states a magnification of {magnification:g}, which was followed.")
    if found_detector and found_isocentre and found_isocentre >= found_detector:
        notes.append(
            f"{name} has distances that cannot be ({found_isocentre:g} mm to the patient, {found_detector:g} mm to the "
            "detector); the one that was not stated by the user was ignored."
        )
        # the distance to the detector is the one that consoles know
        found_detector, found_isocentre = (None, found_isocentre) if to_isocentre else (found_detector, None)
    if found_detector and found_isocentre:
        return found_detector, found_isocentre, notes
    if found_detector and found_detector > behind:
        notes.append(
            f"{name} does not state where the patient stood: the isocentre is taken to be {behind:g} mm before the "
            f"detector ({found_detector:g} mm from the source), as for view {view.name}."
        )
        return found_detector, found_detector - behind, notes
    if found_isocentre:
        notes.append(
            f"{name} does not state its distance from source to detector: taken to be {found_isocentre + behind:g} mm, "
            f"{behind:g} mm behind the isocentre, as for view {view.name}."
        )
        return found_isocentre + behind, found_isocentre, notes
    notes.append(
        f"{name} does not state its distances: taken to be those of view {view.name} "
        f"({view.source_to_isocentre_mm:g} mm from source to isocentre, "
        f"{view.source_to_detector_mm:g} mm to the detector)."
    )
    return view.source_to_detector_mm, view.source_to_isocentre_mm, notes


def place_on_detector(
    image: Float[Tensor, "rows columns"],
    view: View,
    pixel_mm: tuple[float, float],
) -> Float[Tensor, "r c"]:
    """Resample line integrals onto a view's detector, middle on middle, anti-aliased; 0 beyond the image.

    A separable triangle filter, as wide as the coarser of the two pitches, normalised over the pixels that exist:
    for an image that covers the detector exactly, what ``F.interpolate(mode="bilinear", antialias=True)`` gives.

    Args:
        image: line integrals.
        view: whose detector is filled.
        pixel_mm: size of the image's pixels (rows, columns) on that detector.
    """
    rows, columns = (
        _triangle_weights(count, pixels, view.pixel_pitch_mm / mm)
        for count, pixels, mm in zip(image.shape, view.detector_size, pixel_mm, strict=True)
    )
    return rows @ image @ columns.T


def resample_covered(
    resample: Callable[[Tensor], Tensor], image: Float[Tensor, "rows columns"], covered: Bool[Tensor, "rows columns"]
) -> tuple[Float[Tensor, "r c"], Bool[Tensor, "r c"]]:
    """Resample what a radiograph covers from covered pixels alone: at its edge, nothing of what lies outside mixes in.

    Args:
        resample: a linear resampling with weights that are not negative.
        image: any unit.
        covered: where it shows something.

    Returns:
        The image, 0 where it shows nothing, and where it shows something: where more than half a pixel is covered.
    """
    share = resample(covered.to(image))
    known = share > 0.5
    return torch.where(known, resample(image * covered) / share.clamp(min=0.5), 0.0), known


def _triangle_weights(count: int, pixels: int, step: float) -> Float[Tensor, "pixels count"]:
    """Weights of ``count`` samples in ``pixels`` outputs that are ``step`` samples apart, middle on middle."""
    position = (count - 1) / 2 + step * (torch.arange(pixels, dtype=torch.float64) - (pixels - 1) / 2)
    offset = torch.arange(count, dtype=torch.float64) - position[:, None]
    weights = (1 - offset.abs() / max(step, 1.0)).clamp(min=0)
    total = weights.sum(dim=1, keepdim=True)
    inside = (position >= -0.5 - 1e-6) & (position <= count - 0.5 + 1e-6)
    return (weights / total.clamp(min=1e-12) * inside[:, None]).float()


def covered_rectangle(covered: Bool[Tensor, "rows columns"]) -> tuple[slice, slice]:
    """The smallest rectangle of rows and columns that holds what a radiograph covers, which is something."""
    rows, columns = (covered.any(dim=1 - axis).nonzero() for axis in (0, 1))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def extend_from_edge(
    image: Float[Tensor, "rows columns"], covered: Bool[Tensor, "rows columns"]
) -> Float[Tensor, "rows columns"]:
    """What is not covered takes the value of the nearest pixel that is.

    Args:
        image: of any unit.
        covered: what the film shows.

    Raises:
        InputError: if nothing is covered.
    """
    if not covered.any():
        raise InputError("a field that covers no pixel of the detector shows nothing; enlarge or move it.")
    covered = covered.to(image.device)
    box = covered_rectangle(covered)
    if covered[box].all():  # an upright rectangle: the nearest pixel is found along each axis on its own
        along = [
            torch.arange(count, device=image.device).clamp(part.start, part.stop - 1)
            for count, part in zip(image.shape, box, strict=True)
        ]
        return image[along[0][:, None], along[1]]
    nearest = distance_transform_edt(~covered.cpu().numpy(), return_distances=False, return_indices=True)
    down, across = torch.from_numpy(nearest.astype(np.int64)).to(image.device)
    return image[down, across]
