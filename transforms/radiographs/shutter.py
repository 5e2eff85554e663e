"""Where a DICOM radiograph has a picture: padding, shutters and collimators, each followed if it is plausible."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Num
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from scipy import ndimage

BEYOND = 1.1
"""Edges that lie further out than so many times the image's size are those of another matrix."""

LEAST_FIELD = 0.1
"""Share of an image that must be left by a plausible padding, shutter or collimator."""

FLAT_OUTSIDE = 0.5
"""Outside a collimator the image varies less than so many times as much as inside (5th to 95th percentile)."""


def not_padded(
    stored: Num[np.ndarray, "rows columns"], dataset: Dataset, name: str
) -> tuple[Bool[np.ndarray, "rows columns"], list[str]]:
    """What is not padding: the header's value or range (C.7.5.1.1.2), as far as it touches the image's border.

    Args:
        stored: numbers as stored.
        dataset: the header.
        name: of the file, for sentences.

    Returns:
        The mask, and what was decided.
    """
    everything = np.ones(stored.shape, dtype=bool)
    stated = dataset.get("PixelPaddingValue")
    if stated is None:
        return everything, []
    try:
        value, end = int(stated), dataset.get("PixelPaddingRangeLimit")
        limit = value if end is None else int(end)
    except (TypeError, ValueError):
        return everything, [f"{name} has a padding whose numbers make no sense, which was not followed"]
    low, high = sorted((value, limit))
    padded = (stored >= low) & (stored <= high)
    if not padded.any():
        return everything, []
    labels, _ = ndimage.label(padded)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    padded = np.isin(labels, edge[edge > 0])
    share = float(padded.mean())
    what = f"value {value}" if low == high else f"values {low} to {high}"
    if 1 - share < LEAST_FIELD:
        return everything, [f"{name} would be padding over {share:.0%} ({what}), which was not believed"]
    return ~padded, [f"{name} has padding ({what}) over {share:.1%}, which was left out"] if share else []


def within_shutters(
    values: Num[np.ndarray, "rows columns"], dataset: Dataset, name: str
) -> tuple[Bool[np.ndarray, "rows columns"], list[str]]:
    """What lies inside the header's shutters and collimator (C.7.6.11, C.8.7.3), if they are plausible.

    Both must leave :data:`LEAST_FIELD` of the image. What is outside a shutter is to be hidden whatever it shows; what
    is outside a collimator saw no direct X-rays, so that it must be flat beside what is inside: in an image that was
    cropped, or whose numbers were of another matrix, it is not.

    Args:
        values: numbers after the modality LUT.
        dataset: the header.
        name: of the file, for sentences.

    Returns:
        The mask, and what was decided.
    """
    covered = np.ones(values.shape, dtype=bool)
    notes = []
    for kind, what in (("Shutter", "shutter"), ("Collimator", "collimator")):
        try:
            field = _field(dataset, kind, values.shape)
        except (TypeError, ValueError, AttributeError):
            notes.append(f"{name} has a {what} whose numbers make no sense, which was not followed")
            continue
        if field is None or field.all():
            continue
        share = float(field.mean())
        if share < LEAST_FIELD:
            notes.append(f"{name} has a {what} that would leave {share:.1%} of the image, which was not believed")
        elif kind == "Collimator" and _spread(values[~field]) > FLAT_OUTSIDE * _spread(values[field]):
            notes.append(f"{name} has a collimator outside which the image goes on, so it was not followed")
        else:
            covered &= field
            notes.append(f"{name} is used within its {what}, {share:.0%} of the image")
    return covered, notes


def _spread(values: np.ndarray) -> float:
    return float(np.subtract(*np.percentile(values, (95, 5))))


def _field(dataset: Dataset, kind: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Where all shapes of a shutter or collimator agree; None without one. Rows and columns count from 1.

    Raises:
        ValueError, TypeError: for numbers that are none, or lie far outside the image.
    """
    shapes: Any = dataset.get(f"{kind}Shape") or ()
    names = {str(part).upper() for part in ([shapes] if isinstance(shapes, str) else shapes)}
    rows, columns = np.ogrid[1 : shape[0] + 1, 1 : shape[1] + 1]
    fields = []

    def within(row: float, column: float) -> None:
        if row > BEYOND * shape[0] or column > BEYOND * shape[1]:
            raise ValueError("of another matrix")

    if "RECTANGULAR" in names:
        sides = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
        top, bottom, left, right = (int(dataset.get(f"{kind}{side}Edge")) for side in sides)
        within(bottom, right)
        fields.append((rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right))
    if "CIRCULAR" in names:
        row, column = (int(x) for x in dataset.get(f"CenterOfCircular{kind}"))
        within(row, column)
        radius = int(dataset.get(f"RadiusOfCircular{kind}"))
        fields.append((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)
    if "POLYGONAL" in names:
        corners = np.array(dataset.get(f"VerticesOfThePolygonal{kind}"), dtype=float).reshape(-1, 2)
        within(*corners.max(axis=0))
        picture = Image.new("1", (shape[1], shape[0]))
        ImageDraw.Draw(picture).polygon([(column - 1, row - 1) for row, column in corners], fill=1)
        fields.append(np.asarray(picture))
    return np.logical_and.reduce(fields) if fields else None
