"""What a user may overrule: reading options of ``inference.yaml``, checked before they are passed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from drr2ct.transforms.validation import InputError

FILM_CHOICES: dict[str, tuple[Any, ...]] = {
    "intensity": ("auto", "line_integral", "transmission", "display"),
    "orientation": ("auto", "as-is", "mirrored", "upside-down", "half-turn", "clockwise", "anticlockwise"),
    "inverted": (None, True, False),
}
"""Of each film: name → what it may be; the first is what holds without a word."""

PAIR_CHOICES: dict[str, tuple[Any, ...]] = {
    "colour": ("refuse", "ignore"),
    "crop_collimation": (False, True),
    "opposite_side": (False, True),
    "check_header": (True, False),
    "check_order": (True, False),
    "feet_first": (False, True),
}
"""Likewise, of both films together."""

FILM_MILLIMETRES = ("pixel_spacing_mm", "source_to_detector_mm", "source_to_isocentre_mm")
"""Of each film, positive numbers; the file's by default."""

_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "": None}
_NAME = re.compile(r"[\w][\w .\-]{0,63}")


def checked_options(given: Mapping[str, Any], views: int) -> dict[str, Any]:
    """The options that differ from their defaults, as keys of ``inference.yaml``.

    Args:
        given: name → value, of JSON, or strings of a form.
        views: of the network.

    Raises:
        InputError: for a name that is none, or a value that it cannot have.
    """
    found: dict[str, Any] = {}
    kept: Any
    default: Any
    for name, value in given.items():
        if name in PAIR_CHOICES:
            kept, default = _choice(name, value, PAIR_CHOICES[name]), PAIR_CHOICES[name][0]
        elif name in FILM_CHOICES:
            default = [FILM_CHOICES[name][0]] * views
            kept = [_choice(name, part, FILM_CHOICES[name]) for part in _for_views(name, value, views)]
        elif name in FILM_MILLIMETRES:
            default = [None] * views
            kept = [_millimetres(name, part) for part in _for_views(name, value, views)]
        elif name == "window":
            default = ["auto"] * views
            parts = value if isinstance(value, list) else [value]  # a window of one film may hold a comma
            kept = [str(part or "auto")[:64] for part in _for_views(name, parts, views)]
        else:
            known = ", ".join((*FILM_CHOICES, *PAIR_CHOICES, *FILM_MILLIMETRES, "window"))
            raise InputError(f"{name[:40]!r} is no option of reading; choose from {known}.")
        if kept != default:
            found[name] = kept
    return found


def _for_views(name: str, value: Any, views: int) -> list[Any]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    parts = parts * views if len(parts) == 1 else parts
    if len(parts) != views:
        raise InputError(f"{name} has {len(parts)} values for {views} views; give one, or one for each view.")
    return parts


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """One of the choices, also as a word of a form; the first for nothing."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value.strip())
    if value is None or (value == "auto" and choices[0] is None):
        return choices[0]
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
        words = ", ".join("auto" if choice is None else str(choice).lower() for choice in choices)
        raise InputError(f"{name} is {str(value)[:40]!r}; choose from {words}.")
    return value


def _millimetres(name: str, value: Any) -> float | None:
    if value in (None, "", "null", "auto"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {str(value)[:40]!r}; give a number of millimetres.") from None
    if not (math.isfinite(number) and 0 < number < 1e5):
        raise InputError(f"{name} is {number:g}; give a positive number of millimetres.")
    return number


def checked_patient(name: Any) -> str:
    """A name for the output's header and files.

    Raises:
        InputError: for one that is too long or has other characters than letters, digits, space and ``. _ -``.
    """
    text = str(name or "").strip() or "patient"
    if not _NAME.fullmatch(text) or ".." in text:
        raise InputError("a name has at most 64 letters, digits, spaces, dots, underscores and hyphens.")
    return text


def file_stem(patient: str) -> str:
    """The same as the beginning of a file's name, in ASCII."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", patient).strip("._") or "patient"
