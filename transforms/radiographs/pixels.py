"""What any file of a radiograph decodes to, and how it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from drr2ct.transforms.validation import InputError

INTENSITIES = ("auto", "line_integral", "transmission", "display")

COLOURS = ("refuse", "ignore")

LARGEST_LINE_INTEGRAL = 16.0
"""More than any patient; where 16-bit files of line integrals end."""

LEAST_LINE_INTEGRAL = 2.0
"""What the densest part of a chest has at least: 10 cm of water; less is another unit (cm⁻¹), or a picture."""

AIR_NOISE = 0.05
"""How far below zero noise in air may take line integrals, and pictures that begin at zero, in parts of their greatest
number: normalised pictures begin far lower."""

MAX_PIXELS = 2**27
"""Of one picture: four times the finest mammograms. More is a mistake, or a file made to fill the memory."""

_FULL_SCALES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)


@dataclass(frozen=True)
class Reading:
    """What the user says about a file before it is decoded.

    Args:
        intensity: what the numbers mean, or ``auto``; see :mod:`~drr2ct.transforms.radiographs.scale`.
        window: DICOM's window for ``display``: ``auto`` for the first that shows something, a number counted from 1,
            ``none``, or ``centre,width``.
        colour: ``refuse`` pictures with colours, or ``ignore`` them and take the luminance.

    Raises:
        InputError: for a word that is not among those.
    """

    intensity: str = "auto"
    window: str = "auto"
    colour: str = "refuse"

    def __post_init__(self) -> None:
        if self.intensity not in INTENSITIES:
            raise InputError(f"unknown radiograph intensity {self.intensity!r}; choose {', '.join(INTENSITIES)}.")
        if self.colour not in COLOURS:
            raise InputError(f"colour of radiographs is {' or '.join(COLOURS)}, not {self.colour!r}.")
        if self.window not in ("auto", "none") and self.window_number is None and self.stated_window is None:
            raise InputError(
                f"window {self.window!r} is neither auto, none, a number from 1, nor centre,width of a positive width."
            )

    @property
    def window_number(self) -> int | None:
        """Which of the file's windows, counted from 1."""
        return int(self.window) if self.window.isdecimal() and int(self.window) > 0 else None

    @property
    def stated_window(self) -> tuple[float, float] | None:
        """Centre and width, where the user gives them."""
        try:
            centre, width = (float(x) for x in self.window.split(","))
        except ValueError:
            return None
        return (centre, width) if np.isfinite([centre, width]).all() and width > 0 else None


@dataclass(frozen=True)
class Pixels:
    """Decoded numbers, their range if they are integers, and what the file says about itself.

    Args:
        values: (rows, columns), or (views, rows, columns) of a NIfTI stack.
        low: lowest number that the type can hold.
        high: highest.
        bits: per sample; None for floating-point or calibrated numbers.
        intensity: what the numbers mean: as asked for, or as decided.
        metadata: ``format``, and what :func:`~drr2ct.transforms.radiographs.header.header_facts` finds.
        dark_is_high: high numbers are shown dark: MONOCHROME1, MINISWHITE.
        counts_fall: higher numbers mean less X-ray intensity; None if the file does not say.
        covered: where the file has a picture at all (not transparent, padded or shuttered); None for everywhere.
        notes: sentences about what was decided.
        guessed: floating-point numbers of which nobody says what they mean, so that their range decided it.
    """

    values: np.ndarray
    low: float
    high: float
    bits: int | None
    intensity: str
    metadata: dict[str, Any]
    dark_is_high: bool = False
    counts_fall: bool | None = None
    covered: Bool[np.ndarray, "rows columns"] | None = None
    notes: tuple[str, ...] = field(default=())
    guessed: bool = False

    def as_picture(self, name: str, why: str) -> Pixels:
        """What was guessed to be line integrals as a picture from the least to the greatest of its numbers.

        Args:
            name: of the file.
            why: it is none of those.
        """
        seen = self.values[np.isfinite(self.values)]
        low, high = float(seen.min()), float(seen.max())
        note = f"{name} was read as a picture from {low:.3g} to {high:.3g} and not as line integrals: {why}."
        notes = (*(said for said in self.notes if not said.startswith(_read_as(name, self.intensity))), note)
        return replace(self, intensity="display", low=low, high=high, notes=notes)


def plain_range(values: np.ndarray, path: Path) -> tuple[float, float, int | None]:
    """Range and bits of numbers as a file's type gives them; floating-point has a full scale of 1.

    Raises:
        InputError: for integers that need more than 16 bits, or below zero.
    """
    if values.dtype.kind == "f":
        return 0.0, 1.0, None
    if values.dtype.kind not in "iu" or values.dtype.itemsize > 2:
        raise InputError(f"radiograph {path} has pixels of type {values.dtype}; export 8 or 16 bits or float.")
    bits = 8 * values.dtype.itemsize - (values.dtype.kind == "i")
    if values.dtype.kind == "i" and values.min() < 0:
        raise InputError(f"radiograph {path} has negative integers, as a CT has; give a radiograph, or float numbers.")
    return 0.0, float(2**bits - 1), bits


def display_range(values: np.ndarray, path: Path) -> tuple[float, float]:
    """The range that floating-point numbers of a picture were scaled to, by their extremes.

    Beside the full scales of integers, −1…1 and −1024…1024 (torchxrayvision's) are known; of other numbers, from
    the least to the greatest.

    Raises:
        InputError: for numbers that line integrals may have, or that are too large for those and too small for a
            picture.
    """
    low, high = float(values.min()), float(values.max())
    if low >= 0 and 1 < high <= LARGEST_LINE_INTEGRAL:
        raise InputError(f"radiograph {path} is not a picture from 0 to 1; declare line_integral or transmission.")
    if low >= 0 and LARGEST_LINE_INTEGRAL < high < 100:
        raise InputError(
            f"radiograph {path} holds floating-point numbers up to {high:.3g}, too large for line integrals (at most "
            f"{LARGEST_LINE_INTEGRAL:g}) and too small for a picture from 0 to 255; export it in one of these units."
        )
    for bound in (1.0, 1024.0):
        scaled = bound == 1.0 or max(-low, high) > LARGEST_LINE_INTEGRAL  # what is far smaller was not scaled to that
        if -bound <= low < 0 and high <= bound and scaled:
            return -bound, bound
    if low < 0:
        return low, high
    return 0.0, next((full for full in _FULL_SCALES if high <= full), high)


def _read_as(name: str, intensity: str) -> str:
    return f"{name} was read as {intensity}"


def _begins_at_zero(values: Float[np.ndarray, " pixels"]) -> bool:
    """Whether nothing lies below zero but what noise in air makes of it, and single pixels."""
    return bool(values.max() > 0 and np.percentile(values, 0.1) >= -AIR_NOISE * values.max())


def with_units(
    values: np.ndarray,
    path: Path,
    reading: Reading,
    own: str | None,
    metadata: dict[str, Any],
    dark_is_high: bool = False,
    covered: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Pixels:
    """Numbers of a file that is not DICOM, with what they mean decided.

    Args:
        values: (rows, columns), or (views, rows, columns).
        path: of the file.
        reading: what the user says.
        own: the intensity that this project's mark in the file states; None without a mark.
        metadata: of the result.
        dark_is_high: of the result.
        covered: of the result.
        notes: of the result.

    Raises:
        InputError: as :func:`plain_range`, and for more pixels than any film has.
    """
    if own is not None:
        metadata = {**metadata, "marked": True}
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2 and values.min() >= 0 and values.max() < 2**16:
        values = values.astype(np.uint16)  # writers that know no shorter integers
    low, high, bits = plain_range(values, path)
    finite = values[np.isfinite(values)] if bits is None else values
    intensity = reading.intensity
    guessed = bits is None and own is None and intensity == "auto"
    unknown = bits is None and own is None and intensity in ("auto", "display")
    if unknown and finite.size and finite.min() < 0 and _begins_at_zero(finite):
        below = float((finite < 0).mean())
        notes = (*notes, f"{path.name}: {below:.2%} of its pixels lie below 0, as noise in air does: taken as 0.")
        values, finite = np.maximum(values, 0), np.maximum(finite, 0)
    if intensity == "auto":
        intensity, why = _decide(finite, path, own, bits, metadata["format"])
        notes = (*notes, f"{_read_as(path.name, intensity)}: {why}.")
    if intensity == "display" and bits is None and finite.size:
        low, high = display_range(finite, path)
        if (low, high) != (0.0, 1.0):
            notes = (*notes, f"{path.name} holds floating-point numbers, taken as a picture from {low:g} to {high:g}.")
    return Pixels(values, low, high, bits, intensity, metadata, dark_is_high, None, covered, notes, guessed)


def _decide(values: np.ndarray, path: Path, own: str | None, bits: int | None, kind: str) -> tuple[str, str]:
    """What numbers mean, and why."""
    if own is not None and own in INTENSITIES:
        return own, "its mark says so"
    if bits is None and values.size and values.min() >= 0 and 1 < values.max() <= LARGEST_LINE_INTEGRAL:
        if values.max() < LEAST_LINE_INTEGRAL:
            raise InputError(
                f"radiograph {path} holds floating-point numbers up to {values.max():.3g}, too small for line "
                f"integrals of a chest (at least {LEAST_LINE_INTEGRAL:g}) and too large for a picture "
                "from 0 to 1; export it in one of these units, or declare the intensity."
            )
        return (
            "line_integral",
            f"it has no mark, but floating-point numbers from {values.min():.3g} to {values.max():.3g}, as line "
            "integrals have",
        )
    if bits == 16 and path.name.endswith("_drr.png"):
        return "line_integral", "it has no mark, but the name and the 16 bits of this project's DRRs"
    return "display", f"a {kind} file without units is a picture"


def check_size(path: Path, rows: int, columns: int) -> None:
    """Refuse, before it is decoded, a picture that is none.

    Raises:
        InputError: for more than :data:`MAX_PIXELS`.
    """
    if rows * columns > MAX_PIXELS:
        raise InputError(f"radiograph {path} has {rows}×{columns} pixels, more than any film; export it smaller.")
