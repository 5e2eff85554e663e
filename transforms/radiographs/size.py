"""How large a picture is whose file does not say: the cassette it most likely is."""

from __future__ import annotations

import math

from drr2ct.transforms.geometry import View
from drr2ct.transforms.validation import InputError

CASSETTES_CM = ((35, 43), (43, 43))
"""Short and long side of the image receptors that adults' chests are taken with (ISO 4090; DX detectors alike)."""

PART = 1.45
"""Sides that differ by more than this factor are of no whole cassette: its size is doubtful."""

STRIP = 2.5
"""Sides that differ by more than this factor show no chest."""


def cassette(shape: tuple[int, int]) -> tuple[int, int]:
    """The short and the long side (cm) of the cassette whose aspect is the nearest to a picture's, in ratio.

    Args:
        shape: rows and columns.
    """
    aspect = math.log(max(shape) / min(shape))
    return min(CASSETTES_CM, key=lambda sides: abs(math.log(sides[1] / sides[0]) - aspect))


def cassette_pixel_mm(shape: tuple[int, int], view: View, name: str) -> tuple[float, str, bool]:
    """Edge length of a picture's pixels if it is a whole cassette, the sentence that says so, and whether it can be.

    The picture's long side is the cassette's: 43 cm of all that are usual. A cassette stands as far behind the
    patient as the view's detector, so nothing is rescaled.

    Args:
        shape: rows and columns of what is left once borders are cut off.
        view: that the picture is given for.
        name: of the file.

    Raises:
        InputError: for a strip.
    """
    if max(shape) > STRIP * min(shape):
        raise InputError(
            f"radiograph {name} shows {shape[0]}×{shape[1]} pixels, a strip and no whole film; give the film, or say "
            "how large its pixels are (--pixel-spacing-mm)."
        )
    short, long = cassette(shape)
    edge = 10.0 * long / max(shape)
    note = (
        f"{name} does not state its pixel pitch: taken to be a cassette of {short}×{long} cm, {edge:.3f} mm a pixel, "
        f"at view {view.name}'s detector"
    )
    whole = max(shape) <= PART * min(shape)
    if not whole:
        note += f"; with {shape[0]}×{shape[1]} pixels it cannot be all of one, so state pixel_spacing_mm"
    return edge, note + ".", whole
