"""DICOM's values of interest: which table or window a picture is seen through (PS3.3 C.11.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from drr2ct.transforms.radiographs.pixels import Reading
from drr2ct.transforms.validation import InputError

_KEPT = (
    "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence",
)  # fmt: skip
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")  # C.11.2.1.3
_GREY = ("MONOCHROME1", "MONOCHROME2")


def see(
    values: Num[np.ndarray, "*pixels"], dataset: Dataset, path: Path, reading: Reading
) -> tuple[Num[np.ndarray, "*pixels"], tuple[float, float] | None, list[str]]:
    """Numbers as they are displayed.

    Of the header's tables and windows, in this order, the first is used through which something is seen: through
    windows beside the numbers, or of no width, the picture is black, white or nearly so. A picture kept in colour is as
    it is displayed (C.11.2.1.2.1); a window that the user gives applies to its grey.

    Args:
        values: after the modality LUT; where the file has a picture only.
        dataset: the file's header.
        path: of the file, for sentences.
        reading: what the user says; its ``window`` wins.

    Returns:
        The numbers, the range they can take (None if nothing was applied), and what was decided.

    Raises:
        InputError: for a window that the file has not, or that is of no use.
    """
    name = path.name
    windows = _windows(dataset)
    if reading.window == "none":
        return values, None, [f"{name} was read without its windows and tables, as stated"]
    if reading.stated_window is not None:
        shown, limits = _through_window(values, dataset, *reading.stated_window)
        centre, width = reading.stated_window
        return shown, limits, [f"{name} was read through the stated window (centre {centre:g}, width {width:g})"]
    if reading.window_number is not None:
        if reading.window_number > len(windows):
            raise InputError(
                f"radiograph {path} has {len(windows)} windows and no window {reading.window_number}; give one of "
                "them, none, or centre,width."
            )
        centre, width = windows[reading.window_number - 1]
        if width <= 0:
            raise InputError(f"window {reading.window_number} of radiograph {path} has no width; give another.")
        if _function(dataset) not in _FUNCTIONS:
            raise InputError(
                f"window {reading.window_number} of radiograph {path} has the VOI LUT Function {_function(dataset)}, "
                "which is not known; give none, or centre,width."
            )
        shown, limits = _through_window(values, dataset, centre, width)
        what = f"its window {reading.window_number}, as stated (centre {centre:g}, width {width:g})"
        return shown, limits, [f"{name} was read through {what}"]
    if str(dataset.get("PhotometricInterpretation")) not in _GREY:
        stated = any(dataset.get(keyword) for keyword in ("VOILUTSequence", "WindowCenter", "WindowWidth"))
        note = f"{name} is kept in colour, for which its windows and tables have no meaning: they were not used"
        return values, None, [note] if stated else []
    return _first_that_shows(values, dataset, name, windows)


def _first_that_shows(
    values: np.ndarray, dataset: Dataset, name: str, windows: list[tuple[float, float]]
) -> tuple[np.ndarray, tuple[float, float] | None, list[str]]:
    notes: list[str] = []
    for number, item in enumerate(dataset.get("VOILUTSequence") or (), 1):
        what = f"its VOI LUT {number}" if number > 1 else "its first VOI LUT"
        try:
            shown, limits = _through_table(values, item)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:  # a malformed table
            notes.append(f"{name}: {what} was not used, because it is malformed ({error})")
            continue
        if _shows(shown, limits):
            return shown, limits, [*notes, f"{name} was read through {what}"]
        notes.append(f"{name}: {what} was not used, because nothing is seen through it")
    if not windows and any(dataset.get(keyword) is not None for keyword in ("WindowCenter", "WindowWidth")):
        notes.append(f"{name}: its window was not used, because it has no numbers for centre and width")
    function = _function(dataset)
    for number, (centre, width) in enumerate(windows, 1):
        which = "first window" if number == 1 else f"window {number}"
        what = f"its {which} (centre {centre:g}, width {width:g})"
        if function not in _FUNCTIONS:
            notes.append(f"{name}: {what} was not used, because its VOI LUT Function {function} is not known")
            continue
        if width <= 0:
            notes.append(f"{name}: {what} was not used, because it has no width")
            continue
        shown, limits = _through_window(values, dataset, centre, width)
        if _shows(shown, limits):
            return shown, limits, [*notes, f"{name} was read through {what}"]
        notes.append(f"{name}: {what} was not used, because nothing is seen through it")
    return values, None, notes


def _shows(shown: np.ndarray, limits: tuple[float, float]) -> bool:
    """Whether a picture has tones: its middle values are apart, and few of them lie at the ends of the range."""
    spread = np.subtract(*np.percentile(shown, (95, 5)))
    width = limits[1] - limits[0]
    clipped = float(((shown <= limits[0]) | (shown >= limits[1])).mean())
    return bool(spread > 0.05 * width and clipped < 0.9)


def _windows(dataset: Dataset) -> list[tuple[float, float]]:
    """Centres and widths; a width below 1 counts as none (C.11.2.1.2.1)."""
    try:
        centres, widths = (np.atleast_1d(dataset[name].value).astype(float) for name in ("WindowCenter", "WindowWidth"))
    except (KeyError, TypeError, ValueError):
        return []
    exact = _function(dataset) in ("LINEAR_EXACT", "SIGMOID")
    return [(float(c), float(w) if w >= 1 or exact else 0.0) for c, w in zip(centres, widths, strict=False)]


def _function(dataset: Dataset) -> str:
    return str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()


def _through_window(
    values: np.ndarray, dataset: Dataset, centre: float, width: float
) -> tuple[np.ndarray, tuple[float, float]]:
    one = Dataset()
    for name in _KEPT:
        if name in dataset:
            setattr(one, name, dataset[name].value)
    if one.get("PhotometricInterpretation") not in _GREY:  # its grey is of another depth than what is stored
        one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 0
        one.BitsStored = 8 * values.dtype.itemsize if values.dtype.kind == "u" else one.get("BitsStored", 8)
    if "BitsStored" not in one:  # floating-point numbers have none; the range that they are shown in is free
        one.BitsStored, one.PixelRepresentation = 16, 0
    if _function(dataset) in _FUNCTIONS:  # a window that the user gives beside another is linear
        one.VOILUTFunction = _function(dataset)
    one.WindowCenter, one.WindowWidth = f"{centre:.10g}", f"{max(width, 1e-3):.10g}"
    shown = apply_windowing(values, one)
    ends = apply_windowing(np.array([-1e7, 1e7]), one)  # beyond any window; not so far that exp overflows
    return shown, (float(ends.min()), float(ends.max()))


def _through_table(values: np.ndarray, item: Any) -> tuple[np.ndarray, tuple[float, float]]:
    # not pydicom's apply_voi: it keeps the index in the table's own type, which wraps in 8-bit tables
    count, first = int(item.LUTDescriptor[0]) or 2**16, int(item.LUTDescriptor[1])
    if first >= 2**15 and values.min() < 0:  # a signed number read as an unsigned one
        first -= 2**16
    data = item.LUTData
    raw = data if isinstance(data, bytes) else np.asarray(data).astype("<u2").tobytes()
    packed = len(raw) in (count, count + count % 2)  # 8-bit entries, two to a word
    table = np.frombuffer(raw, "u1" if packed else "<u2")[:count].astype(np.float64)
    if len(table) < count:
        raise ValueError(f"{len(table)} of {count} entries")
    index = np.rint(values).astype(np.int64) - first
    return table[index.clip(0, count - 1)], (float(table.min()), float(table.max()))
