"""How large a picture is: the cassette it most likely is, where its file does not say; and whether that can be."""

from __future__ import annotations

import math

from drr2ct.transforms.geometry import View
from drr2ct.transforms.radiographs.film import Film
from drr2ct.transforms.radiographs.likeness import likeness, pixel_edge_mm, seen_part
from drr2ct.transforms.radiographs.orientation import LIKENESS
from drr2ct.transforms.validation import InputError

CASSETTES_CM = ((35, 43), (43, 43))
"""Short and long side of the image receptors that adults' chests are taken with (ISO 4090; DX detectors alike)."""

PART = 1.45
"""Sides that differ by more than this factor are of no whole cassette: its size is doubtful."""

SQUEEZED = 1024
"""Pixels that a picture's sides have at most if it was made square for a network; detectors have more."""

STRIP = 2.5
"""Sides that differ by more than this factor show no chest."""

SMALLEST = 0.41
"""Part of a view's detector that a film's longer side has at least: in less there is no room for a chest."""

USUAL = (0.6, 0.95)
"""Parts that nearly all films' longer sides have; what lies beyond is believed if it looks like it."""

OTHER_SIZE = 0.1
"""How much more a film must look like its view at another size than it states to be doubted: one of the right size
looks at most 0.06 more so, one whose pitch is that of another picture 0.1 to 0.5."""


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
    if shape[0] == shape[1] <= SQUEEZED:
        note += "; if it was squeezed into a square, as pictures for networks are, give it in its own shape"
    if not whole:
        note += f"; with {shape[0]}×{shape[1]} pixels it cannot be all of one, so state pixel_spacing_mm"
    return edge, note + ".", whole


def with_plausible_field(film: Film, refuse: bool = True) -> Film:
    """With a warning, if what a film shows by its pitch is unlike films of chests in size.

    A picture that was made smaller or larger keeps the pitch in its header, and is then a chest of a child, or of none.

    Args:
        film: on its own pixels.
        refuse: what looks like a chest at another size alone; otherwise that is a warning, too.

    Raises:
        InputError: if it is far too small, or for ``refuse``.
    """
    pixel_mm = pixel_edge_mm(film, edge_to_edge=False)
    if pixel_mm is None or film.pixels.metadata.get("marked", False):
        return film
    view, shape = film.view, film.image.shape
    part = max(shape) * pixel_mm / (max(view.detector_size) * view.pixel_pitch_mm)
    if USUAL[0] <= part <= USUAL[1]:
        return film
    small = part < SMALLEST
    own = other = 0.0
    if film.usual is not None:
        own, other = (likeness(seen_part(film), view, film.usual, edge) for edge in (pixel_mm, None))
    if not small and other <= own + OTHER_SIZE:
        return film
    stated = film.stated.pixel_spacing_mm
    pitch = stated or max(film.pixel_pitch_mm or (0.0,))
    field = "×".join(f"{count * pitch:.0f}" for count in shape)
    what = f"shows {field} mm by {'the stated' if stated else 'its'} pitch of {pitch:.3g} mm"
    why = "too small for a chest" if small else f"and looks more like view {view.name} at another size"
    resized = (
        "if it was made smaller or larger than the picture that its header speaks of, state the pitch that it has now"
    )
    if small or (refuse and own < LIKENESS <= other):
        advice = "correct it" if stated else resized
        raise InputError(f"radiograph {film.path} {what}, {why}; {advice} (--pixel-spacing-mm).")
    return film.doubting(f"{film.name} {what}, {why}: {'check it' if stated else resized}.")
