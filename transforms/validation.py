"""What bad input raises, and the checks and words that several modules share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that says what is wrong, where, and what to do. Command lines print it without a
    traceback and exit with status 2.
    """


def listed(words: Sequence[str], last: str = "and") -> str:
    """One, two and three; ``last`` stands before the last of them."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final


def whole_number(what: str, value: object, least: int) -> int:
    """Return ``value``.

    Raises:
        InputError: if it is not a whole number of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{what} is {value!r}; it must be a whole number, {least} or more.")
    return value


def existing_file(path: str | Path, what: str) -> Path:
    """Return ``path`` as a ``Path``.

    Raises:
        InputError: if it is not a readable, non-empty file or a folder (a DICOM series).
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{what} {path} does not exist; check the path.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{what} {path} is an empty file; export it again.")
    return path
