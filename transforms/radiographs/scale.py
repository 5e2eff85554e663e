"""What the numbers of a radiograph's file mean, and how they become line integrals.

- ``auto``: what the file says of itself. This project's own are marked; DICOM has Pixel Intensity Relationship and
  Presentation Intent Type; other pictures are ``display``. What was decided is among the assumptions.
- ``line_integral``: they are line integrals; floating-point as they are, 16-bit integers × ``1 / PNG_COUNTS``.
- ``transmission``: they are proportional to the X-ray intensity I at the detector; −ln(I / I₀).
- ``display``: a picture in which dense is bright. With the training set's statistics its histogram is matched with
  theirs; without, 0…full scale is mapped linearly onto 0…``DISPLAY_MAXIMUM``. The latter is what 8-bit exports of
  earlier systems are, and an approximation.

DICOM's modality LUT applies to all three; its VOI LUT or window only to ``display``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from drr2ct.transforms.attenuation import (
    LINE_INTEGRAL_SCALE,
    transmission_to_line_integral,
    unattenuated_intensity,
)
from drr2ct.transforms.radiographs.files import decode
from drr2ct.transforms.radiographs.film import Film
from drr2ct.transforms.radiographs.intensity import (
    match_quantiles,
    median_difference,
    quantiles_for_field,
)
from drr2ct.transforms.radiographs.pixels import LARGEST_LINE_INTEGRAL, Pixels, Reading
from drr2ct.transforms.validation import InputError, existing_file

PNG_COUNTS = 4096.0
"""Integer counts per unit of line integral in 16-bit files: they reach 16, more than any patient."""

DISPLAY_MAXIMUM = 8.0
"""Line integral at full scale of a ``display`` image: about that of a thick lateral chest."""


def read_radiograph(
    path: str | Path,
    intensity: str = "auto",
    unattenuated: float | str | None = None,
    window: str = "auto",
    colour: str = "refuse",
) -> tuple[Float[Tensor, "rows columns"], dict[str, Any]]:
    """Read one radiograph as line integrals (dimensionless, float32).

    MONOCHROME1 (and TIFF's MINISWHITE) pictures, in which high is dark, are inverted for ``display`` and
    ``line_integral`` (DICOM PS3.3 C.7.6.3.1.2). For ``transmission`` the detector's sign counts instead
    (Pixel Intensity Relationship Sign, C.8.11.3.1.2); where it is absent, higher numbers mean more X-rays.

    Args:
        path: a grey picture (PNG, TIFF, JPEG, BMP, JPEG 2000, WebP; 8, 16 bit, floating-point), DICOM (CR, DX) or
            NIfTI with one slice.
        intensity: what the numbers mean; see the module.
        unattenuated: I₀ for ``transmission``, in the file's numbers, or ``estimate`` for what
            :func:`~drr2ct.transforms.attenuation.unattenuated_intensity` finds in the image; by default the full
            scale of the type (1 for floating-point files). Zeros count as half a count.
        window: see :class:`~drr2ct.transforms.radiographs.pixels.Reading`.
        colour: likewise.

    Returns:
        The image, and metadata: ``filename_or_obj``, ``intensity``, what
        :class:`~drr2ct.transforms.radiographs.files.Pixels` lists, and ``assumptions``, a list of sentences.

    Raises:
        InputError: if the file is missing, empty, damaged, no grey picture, has several frames, is constant, holds
            NaN or infinity or what no patient has, or its type does not fit the declared intensity.
    """
    pixels = read_pixels(path, Reading(intensity, window, colour))
    return line_integrals(pixels, path, unattenuated, pixels.covered)


def read_pixels(path: str | Path, reading: Reading) -> Pixels:
    """One decoded image; raises InputError as :func:`read_radiograph`."""
    pixels = decode(existing_file(path, "radiograph"), reading)
    if pixels.values.ndim != 2:
        shape = "×".join(map(str, pixels.values.shape))
        raise InputError(f"radiograph {path} has {shape} samples instead of rows × columns; export one 2-D image.")
    return pixels


def line_integrals(
    pixels: Pixels,
    path: str | Path,
    unattenuated: float | str | None,
    covered: Bool[np.ndarray, "rows columns"] | None = None,
) -> tuple[Float[Tensor, "rows columns"], dict[str, Any]]:
    """Decoded numbers as line integrals, and their metadata; see :func:`read_radiograph`.

    Args:
        pixels: (rows, columns).
        path: of their file.
        unattenuated: I₀.
        covered: where the numbers are looked at, to judge and to estimate; everywhere by default.
    """
    intensity, assumptions = pixels.intensity, list(pixels.notes)
    metadata = {"filename_or_obj": str(path), "intensity": intensity, **pixels.metadata, "assumptions": assumptions}
    values = pixels.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"radiograph {path} holds NaN or infinite values; export it again.")
    seen = values if covered is None else values[covered]
    if not seen.size:
        raise InputError(f"radiograph {path} has no part that is not padded, shuttered or collimated; export it whole.")
    if seen.max() == seen.min():
        raise InputError(f"radiograph {path} has the same value {seen.max():g} everywhere; it shows nothing.")
    inverted = pixels.counts_fall is True if intensity == "transmission" else pixels.dark_is_high
    if inverted:
        values = pixels.low + pixels.high - values
        seen = pixels.low + pixels.high - seen
    if intensity == "line_integral":
        if pixels.bits is not None and pixels.bits <= 8:
            raise InputError(f"radiograph {path} has {pixels.bits} bits, too few for line integrals; declare display.")
        if pixels.bits is not None:
            values = values / PNG_COUNTS
    elif intensity == "display":
        values = (values - pixels.low) / (pixels.high - pixels.low) * DISPLAY_MAXIMUM
    else:
        full, note, air_seen = _unattenuated(pixels, seen, path, unattenuated)
        assumptions.append(note)
        metadata["air_seen"] = air_seen
        smallest = 0.5 if pixels.bits is not None else full * 2.0**-17  # half a count; of 16 bits if there are none
        counted = seen[seen > 0]
        _check_plausible(-np.log(counted / full) if counted.size else seen, path)
        values = transmission_to_line_integral(torch.from_numpy(values), full, smallest).numpy()
    if intensity == "line_integral":
        _check_plausible(values if covered is None else values[covered], path)
    return torch.from_numpy(values).float(), metadata


def _check_plausible(values: Float[np.ndarray, "*pixels"], path: str | Path) -> None:
    """Refuse what cannot be the line integrals of a patient, but for a few pixels."""
    low, high = np.percentile(values, (0.1, 99.5))
    if high > LARGEST_LINE_INTEGRAL or low < -5:
        raise InputError(
            f"radiograph {path} would have line integrals from {low:.3g} to {high:.3g}, and a patient has 0 to "
            f"{LARGEST_LINE_INTEGRAL:g} at most; its numbers are in another unit: declare another intensity or export "
            "it again."
        )


def scale(film: Film, unattenuated: float | str | None) -> Film:
    """A decoded film's numbers to line integrals, or to a picture that :func:`match_with_usual` makes some of."""
    image, metadata = line_integrals(film.pixels, film.path, unattenuated, film.covered.numpy())
    return film.saying(*metadata["assumptions"], image=image * film.covered, air_seen=metadata.get("air_seen", True))


def match_with_usual(film: Film) -> Film:
    """What the numbers do not say about exposure and tone, by comparison with the training set's radiographs.

    Args:
        film: on its view's detector; dense is high.
    """
    if film.intensity == "display":
        return _picture_to_line_integrals(film)
    if film.usual is None or film.air_seen:
        return film
    quantiles = quantiles_for_field(film.usual, float(film.covered.float().mean()))
    missing = median_difference(quantiles, film.image / LINE_INTEGRAL_SCALE, film.covered) * LINE_INTEGRAL_SCALE
    if missing <= 0:  # the brightest part of a patient cannot be brighter than air
        return film
    return film.saying(
        f"{film.name}: {missing:.2f} was added to its line integrals, so that their median is that of the training "
        "radiographs.",
        image=film.image + missing * film.covered,
    )


def _picture_to_line_integrals(film: Film) -> Film:
    """A picture in which dense is bright."""
    if film.usual is None:
        return film.saying(
            f"{film.name} is a picture: without the training set's distribution its range was mapped linearly onto "
            f"line integrals from 0 to {DISPLAY_MAXIMUM:g}."
        )
    quantiles = quantiles_for_field(film.usual, float(film.covered.float().mean()))
    matched = match_quantiles(film.image / DISPLAY_MAXIMUM, quantiles, film.covered, film.body)
    return film.saying(
        f"{film.name} is a picture: its histogram was matched with that of the training radiographs.",
        image=matched * LINE_INTEGRAL_SCALE,
    )


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
