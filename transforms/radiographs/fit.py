"""Where a radiograph lies: its field, its turn as the file states it, and its place on the view's detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Real
from scipy import ndimage
from torch import Tensor

from drr2ct.transforms.detector import (
    covered_rectangle,
    pixel_size_on_detector,
    place_on_detector,
    resample_covered,
    states_pitch,
)
from drr2ct.transforms.radiographs.collimation import (
    find_collimation,
    find_round_field,
    find_slanted_borders,
    within_borders,
)
from drr2ct.transforms.radiographs.film import Film
from drr2ct.transforms.radiographs.identity import turn_upright
from drr2ct.transforms.radiographs.pixels import Pixels
from drr2ct.transforms.radiographs.size import cassette_pixel_mm
from drr2ct.transforms.validation import InputError

_FAINTEST = 2.0**-14
"""Part of a raw film's full scale below which nothing is told apart."""

_RIM = 0.02
"""Part of a picture that a circle's rim may have."""

_AIR = 0.25
"""Part of a raw film's range of line integrals that air, and what is as bright, stays below."""

COARSE = 2.0
"""How much larger than the detector's a film's pixels must be for a warning that it lacks detail."""


def leave_collimation_out(film: Film, bright: bool = True) -> Film:
    """Nothing is covered where the picture shows a collimator; one in the header was followed in decoding.

    Args:
        film: on its own pixels, as stored.
        bright: also borders that got more X-rays than the patient, as the frames of pictures look; in raw numbers
            that would be air, which says how large the unattenuated intensity is.
    """
    rows, columns = film.pixels.values.shape
    values = _dense_is_high(film.pixels)
    circle = find_round_field(values)
    if circle is not None and (bright or _is_dark(values[~circle], values[circle])):
        covered = film.covered & torch.from_numpy(circle)
        if (film.covered & ~covered).float().mean() < _RIM:  # the header's shutter is that circle
            return film
        said = f"{film.name} has a round field, {circle.mean():.0%} of the picture: what lies outside was left out."
        return film.saying(said, covered=covered, pixels=replace(film.pixels, covered=covered.numpy()))
    inside = find_collimation(values)
    top, bottom, left, right = inside if bright else _dark_borders(values, inside)
    picture = values[top:bottom, left:right]
    slanted = find_slanted_borders(picture)
    if not bright:
        alone = {side: within_borders(picture.shape, {side: ends}) for side, ends in slanted.items()}
        slanted = {side: slanted[side] for side, inside in alone.items() if _is_dark(picture[~inside], picture[inside])}
    field = torch.zeros_like(film.covered)
    field[top:bottom, left:right] = torch.from_numpy(within_borders((bottom - top, right - left), slanted))
    notes = []
    if (top, bottom, left, right) != (0, rows, 0, columns):
        notes.append(
            f"{film.name} is collimated: rows {top} to {bottom - 1} and columns {left} to {right - 1} of "
            f"{size_text((rows, columns))} were used."
        )
    if slanted:
        sides = " and ".join(slanted)
        notes.append(
            f"{film.name} has a slanted border on its {sides} side{'s' * (len(slanted) > 1)}, which was left out."
        )
    if not notes:
        return film
    covered = film.covered & field
    return film.saying(*notes, covered=covered, pixels=replace(film.pixels, covered=covered.numpy()))


def _dense_is_high(pixels: Pixels) -> Real[np.ndarray, "rows columns"]:
    """Numbers in which borders are looked for: of raw ones the logarithm, as the patient is all but black in them."""
    if pixels.intensity != "transmission":
        return -pixels.values.astype(np.float32) if pixels.dark_is_high else pixels.values
    full = pixels.high - pixels.low
    counts = pixels.high - pixels.values if pixels.counts_fall else pixels.values - pixels.low
    # a border that few quanta reach is only even once their noise is averaged
    counts = ndimage.uniform_filter(np.maximum(counts, full * _FAINTEST).astype(np.float32), _averaged(counts.shape))
    logarithm: np.ndarray = -np.log(counts)
    return logarithm  # (rows, columns)


def _averaged(shape: Sequence[int]) -> int:
    """Over how many pixels of a raw film the noise is averaged."""
    return max(3, 1 + max(shape) // 512)


def _dark_borders(
    values: Real[np.ndarray, "rows columns"], field: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """A field without those of its borders that may be air.

    Args:
        values: dense is high.
        field: of :func:`find_collimation`.
    """
    top, bottom, left, right = field
    picture = values[top:bottom, left:right]

    def dark(border: np.ndarray) -> bool:
        return border.size > 0 and _is_dark(border, picture)

    rows, columns = values.shape
    mixed = 1 + _averaged(values.shape) // 2  # what lies at the border's end is of both
    return (
        top + mixed if dark(values[:top]) else 0,
        bottom - mixed if dark(values[bottom:]) else rows,
        left + mixed if dark(values[:, :left]) else 0,
        right - mixed if dark(values[:, right:]) else columns,
    )


def _is_dark(border: Real[np.ndarray, "*beside"], picture: Real[np.ndarray, "*pixels"]) -> bool:
    """Whether what lies beside a raw film's picture is denser than air; dense is high."""
    low, high = np.percentile(picture, (1, 99))
    return bool(np.median(border) > low + _AIR * (high - low))


def turn_as_stated(film: Film, feet_first: bool, opposite_side: bool, strict: bool) -> Film:
    """Upright, by what the file's header says; else by what the user says.

    Args:
        film: on its own pixels, as stored.
        feet_first: row 0 of files that do not state their orientation is caudal.
        opposite_side: see :func:`~drr2ct.transforms.radiographs.identity.check_view_position`.
        strict: likewise.
    """

    def turned(image: Tensor) -> tuple[Tensor, list[str]]:
        return turn_upright(image, film.facts, film.view, opposite_side, strict)

    image, notes = turned(film.image)
    covered = turned(film.covered.float())[0] > 0.5
    pitch = film.pixel_pitch_mm
    if pitch and turned(torch.zeros(1, 2))[0].shape == (2, 1):  # the header's pitch is of the stored rows and columns
        pitch = pitch[::-1]
    oriented = "patient_orientation" in film.pixels.metadata
    if feet_first and not oriented:
        image, covered = image.flip(0), covered.flip(0)
    return film.saying(*notes, image=image, covered=covered, pixel_pitch_mm=pitch, oriented=oriented)


def with_square_pixels(film: Film) -> Film:
    """Pixels that are oblong, by their pitch or by the aspect that is stated without one, on the finer of both."""
    high, wide = film.pixel_pitch_mm or (film.pixels.metadata.get("pixel_aspect", 1.0), 1.0)
    if abs(high / wide - 1) < 0.01:
        return film
    rows, columns = film.image.shape
    edge = min(high, wide)
    size = (max(1, round(rows * high / edge)), max(1, round(columns * wide / edge)))

    def resampled(image: Tensor) -> Tensor:
        return F.interpolate(image[None, None], size=size, mode="bilinear", antialias=True)[0, 0]

    image, covered = resample_covered(resampled, film.image, film.covered)
    pitch = film.pixel_pitch_mm and (rows * high / size[0], columns * wide / size[1])
    return film.saying(
        f"{film.name} has pixels {high / wide:.3g} times as high as wide and was resampled to square ones.",
        image=image,
        covered=covered,
        pixel_pitch_mm=pitch,
    )


def place_by_pitch(film: Film) -> Film:
    """Scaled by pixel pitch and distances, middle on middle of the view's detector."""
    facts = {**film.facts, "pixel_spacing_mm": film.pixel_pitch_mm}
    image, covered = film.image, film.covered
    if not states_pitch(facts, film.stated):
        # where nothing says how large a pixel is, what is left after cropping is all there is
        inside = covered_rectangle(covered)
        image, covered = image[inside], covered[inside]
        if facts.get("pixel_spacing_plane") == "unstated":
            film = film.saying(
                f"{film.name} states a pitch of exactly 1 mm, which writers fill in that know none: it was not used; "
                "if it is right, state it (--pixel-spacing-mm 1)."
            )
    view, shape = film.view, (image.shape[0], image.shape[1])
    if states_pitch(facts, film.stated) or film.intensity == "line_integral":  # of this project: from edge to edge
        pixel_mm, notes = pixel_size_on_detector(facts, view, shape, film.stated)
    else:
        edge, note, whole = cassette_pixel_mm(shape, view, film.name)
        pixel_mm, notes = (edge, edge), [note] if whole else []
        film = film if whole else film.doubting(note)
    film = _coarse(film, max(pixel_mm))
    if image.shape == view.detector_size and all(abs(mm / view.pixel_pitch_mm - 1) < 1e-5 for mm in pixel_mm):
        return film.saying(*notes, image=image, covered=covered)  # it is that detector already
    image, covered = resample_covered(lambda x: place_on_detector(x, view, pixel_mm), image, covered)
    return film.saying(*notes, image=image, covered=covered)


def _coarse(film: Film, pixel_mm: float) -> Film:
    """With a warning, if a film's pixels are much larger than those of the detector they are put on."""
    view, usual = film.view, film.view.pixel_pitch_mm
    if pixel_mm <= COARSE * usual:
        return film
    warning = (
        f"{film.name} has pixels of {pixel_mm:.1f} mm on view {view.name}'s detector, {pixel_mm / usual:.1f} times as "
        f"large as in training ({usual:.1f} mm): detail that the network expects is not in it; give it in full size."
    )
    return film.doubting(warning)


def place_edge_to_edge(films: Sequence[Film]) -> list[Film]:
    """Films that cover the detector exactly, on its pixels.

    Raises:
        InputError: if they differ in size from each other, in aspect from the detector, or have oblong pixels.
    """
    first = films[0]
    for film in films:
        pitch = film.pixel_pitch_mm
        if pitch and abs(pitch[0] / pitch[1] - 1) > 0.01:
            raise InputError(
                f"radiograph {film.path} has pixels of {pitch[0]:g}×{pitch[1]:g} mm; resample it to square pixels."
            )
        if film.image.shape != first.image.shape:
            raise InputError(
                f"radiograph {film.path} has {size_text(film.image.shape)} pixels, {first.path} has "
                f"{size_text(first.image.shape)}; all views need the same size."
            )
    rows, columns = first.image.shape
    size = first.view.detector_size
    if (rows, columns) == size:
        return list(films)
    if rows * size[1] != columns * size[0]:
        raise InputError(
            f"radiograph {first.path} has {size_text((rows, columns))} pixels, the geometry's detector "
            f"{size_text(size)}; crop it to that aspect ratio, or scale it by its own pitch (fit=pitch)."
        )

    def resampled(image: Tensor) -> Tensor:
        return F.interpolate(image[None, None], size=size, mode="bilinear", antialias=True)[0, 0]

    placed = [resample_covered(resampled, film.image, film.covered) for film in films]
    return [film.saying(image=image, covered=covered) for film, (image, covered) in zip(films, placed, strict=True)]


def size_text(shape: Sequence[int]) -> str:
    """Rows × columns, for sentences."""
    return f"{shape[0]}×{shape[1]}"
