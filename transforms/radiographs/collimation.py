"""Where a picture shows a collimator or a frame: borders that no header names, found by what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Real
from PIL import Image
from scipy import ndimage

_TONE = 0.06
"""Spread within a collimated line, and difference between such lines, as a fraction of the image's range."""

_EDGE = 0.08
"""Least step from a collimated border to the image, likewise."""

_LENGTH = 0.7
"""Over how much of its length there must be a step: the outline of a back is straight over half the image at most."""

_BLACK = 0.2
"""A border that may be air, likewise."""

_BLURRED = 3  # pixels

_EXACT = 0.012
"""Difference that what is stored as one value may have: three steps of 8 bits, as JPEG makes them."""

_FRAME = 3  # pixels that a frame has at least

_TEXT = 0.08
"""Part of a frame's line that may be text."""

_AT_ONCE = 0.6
"""Over how much of its length a frame must end within two pixels: outlines of bodies begin at a tenth."""

_SHORT = 35 / 43
"""A film's short side, in terms of its long one, is at least that."""

_TOO_LONG = 1.3
"""A picture whose sides differ by more than this factor holds more than a film."""

_STRIP = 0.1
"""Part of an image that an unexposed strip at an edge may take, where what shines through is not the same all along."""

_ALL_ALONG = 0.9
"""Over how much of its length such a strip is brighter than what is beside it: no anatomy is, in a straight line."""

_ROUND = 1.4
"""Four times as deep below its outline a body is so much denser, at least: a round one twice, and consoles compress
that. Beside a collimator a picture is at once as dense as further within."""

_CORNERS, _CORNER_POINTS = 0.04, 40
"""Part of an image outside a round field, and places at its edge, at least."""

_ROUND_SHARE, _OFF_ROUND = 0.9, 0.01
"""So many of those places must be so near to the circle, in terms of its radius."""

_LINES, _SAMPLES = 512, 128
"""On which slanted borders are looked for: fine across them, coarse along."""

_RISES = tuple(rise for rise in range(-44, 45, 2) if rise)
"""How far such a border may rise over its length, in lines: 5° of a square picture."""

_SHADES = (0.1, 0.9)
"""Such a border is at most so dark, or at least so bright."""

_DEEPEST = 0.2
"""Part of an image's lines that a slanted border may take."""

_LONG, _SLANTED_LENGTH = 0.6, 0.85
"""Part of the image's width in which a slanted border must end, and over how much of that there must be a step: more
than of an upright one, as outlines of a body are seldom upright."""


def find_collimation(values: Real[np.ndarray, "rows columns"]) -> tuple[int, int, int, int]:
    """The part of an image that is not collimation: (first row, last row + 1, first column, last column + 1).

    A border is a straight run of rows or columns from an edge of the image, near-constant along and across, that ends
    with a step over most of its length, brighter or darker than the image; lines of one single value, as a frame or the
    bars of a screenshot have, whatever they end at; or a strip that is denser than what is beside it over nearly all of
    its length, whatever shines through it. Text or a marker on it does no harm. A slanted one is found by
    :func:`find_slanted_borders`, a round field by :func:`find_round_field`. Not found is a border of several values
    that looks like much of what it touches, as a black one beside air does. Air beside a straight outline of a body is
    none: a body gets denser below its outline, a picture beside a border does not.

    Args:
        values: a radiograph in any unit; dense is high, as far as that is known.
    """
    scaled = _scaled(values)
    if scaled is None:
        return 0, values.shape[0], 0, values.shape[1]
    top, bottom, left, right = _within_frame(scaled)
    # the tones of what is left are measured without the frame's
    first, picture = (top, left), _scaled(values[top:bottom, left:right])
    if picture is None:
        return top, bottom, left, right
    # a border of columns is only constant within the rows that are left, and the other way round
    for _ in range(3):
        before = (top, bottom, left, right)
        inside = _part(picture, first, before)
        top, bottom = top + _border(inside), bottom - _border(inside[::-1])
        inside = _part(picture, first, (top, bottom, left, right)).T
        left, right = left + _border(inside), right - _border(inside[::-1])
        if (top, bottom, left, right) == before:
            break
    if scaled[0, 0] > 1 - _TONE and (top > 0 or bottom < scaled.shape[0]) and (left > 0 or right < scaled.shape[1]):
        # a white frame goes all round, also where it ends at something that is as white as it is
        white: Any = scaled > 1 - _TONE
        rows, columns = (~white[:, left:right].all(axis=1), ~white[top:bottom].all(axis=0))
        top, left = max(top, int(rows.argmax())), max(left, int(columns.argmax()))
        bottom = min(bottom, len(rows) - int(rows[::-1].argmax()))
        right = min(right, len(columns) - int(columns[::-1].argmax()))
    return top, bottom, left, right


def _scaled(values: Real[np.ndarray, "rows columns"]) -> np.ndarray | None:
    """Values from 0 to 1, but for the outermost; None where all are alike."""
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:
        return None
    scaled: np.ndarray = ((np.asarray(values, dtype=np.float32) - low) / (high - low)).clip(0, 1)
    return scaled  # (rows, columns), float32


def _within_frame(scaled: Float[np.ndarray, "rows columns"]) -> tuple[int, int, int, int]:
    """What a frame leaves of an image, as of :func:`find_collimation`: lines at its edges that are of one value.

    Where a side's lines end at once, all along, they are a frame, unless the sides beside it are of one value too:
    then that may be air, and the end that of a CT which the picture was rendered from. A frame that has one width on
    three sides, and ends at once on two of them that meet, has it on the fourth, however much air of its own value is
    there; and in a picture with bars on two sides that is too long for a film, both are as wide as the narrower.
    """
    rows, columns = scaled.shape
    sides = [_one_value(lines) for lines in (scaled, scaled[::-1], scaled.T, scaled.T[::-1])]
    runs, air = [run for run, _ in sides], [run > 0 and not ends for run, ends in sides]
    beside = [air[2] or air[3]] * 2 + [air[0] or air[1]] * 2  # what lies at the ends of a side may be air
    widths = [run if ends and not known else 0 for (run, ends), known in zip(sides, beside, strict=True)]
    same = sorted(runs)[:3]
    if same[0] and same[2] <= same[0] + 1:
        # the ends of a scan come at once on two opposite sides, the outline of what lies between them does not
        abrupt = [ends and run <= same[0] + 1 for run, ends in sides]
        if (abrupt[0] or abrupt[1]) and (abrupt[2] or abrupt[3]):
            widths = [same[0]] * 4
    for (i, j), along, across in (((0, 1), columns, rows), ((2, 3), rows, columns)):
        least = min(runs[i], runs[j])
        if least and not (widths[i] and widths[j]) and across > _TOO_LONG * along:
            spare = int((across - along * _SHORT) / 2)  # leaves a film's shape
            widths[i], widths[j] = (width or min(least, spare) for width in (widths[i], widths[j]))
    top, bottom, left, right = widths
    return top, rows - bottom, left, columns - right


def _one_value(lines: Float[np.ndarray, "lines samples"]) -> tuple[int, bool]:
    """How many of the first lines are of one value, but for text on them; and whether they end at once, all along."""
    samples = lines[:, :: max(1, lines.shape[1] // 256)]
    differs = np.abs(samples - np.median(samples[0])) > _EXACT
    plain = differs.mean(axis=1) < _TEXT
    run = int(np.argmin(plain))
    if run < _FRAME or run > 0.45 * len(lines) or plain.all():
        return 0, False
    alive = differs[run:].any(axis=0)  # the rest belongs to other sides of the frame
    return run, bool(differs[min(run + 2, len(lines) - 1), alive].mean() > _AT_ONCE)


def _part(
    picture: Float[np.ndarray, "r c"], first: tuple[int, int], field: tuple[int, int, int, int]
) -> Float[np.ndarray, "rows columns"]:
    """A field of an image, from a picture whose first pixel is the image's pixel ``first``."""
    top, bottom, left, right = field
    return picture[top - first[0] : bottom - first[0], left - first[1] : right - first[1]]


def _border(scaled: Float[np.ndarray, "lines samples"]) -> int:
    """How many of the first lines are collimation; at most 45 %, so that two borders leave an image."""
    samples = scaled[:, :: max(1, scaled.shape[1] // 256)]
    return _plain_border(samples) or _strip(samples)


def _strip(samples: Float[np.ndarray, "lines samples"]) -> int:
    """How many of the first lines are denser than the image, all along, and end in a step: hardly exposed.

    Scatter, a soft penumbra or a collimator that is not quite tight let it vary along its length.
    """
    width = max(2, len(samples) // 50)  # of a step
    most = int(_STRIP * len(samples))
    if most < 1 or most + width >= len(samples):
        return 0
    steps = samples[:most] - samples[width : most + width]
    least = np.quantile(steps, 1 - _ALL_ALONG, axis=1)
    steepest = int(least.argmax())
    inside = samples[steepest + width]
    if np.quantile(samples[: steepest + 1] - inside, 1 - _ALL_ALONG, axis=1).min() <= _EDGE:
        return 0
    faint = np.median(np.abs(samples[steepest : steepest + width] - inside), axis=1) <= _TONE
    return steepest + (int(faint.argmax()) if faint.any() else width)


def _plain_border(samples: Float[np.ndarray, "lines samples"]) -> int:
    """How many of the first lines are near-constant along and across, and end in a step over most of their length."""
    below, level, above = np.percentile(samples[: int(0.45 * len(samples)) + 1], (8, 50, 92), axis=1)
    plain = (above - below < _TONE) & (np.abs(level - level[0]) < _TONE)
    count = 0 if plain.all() else int(np.argmin(plain))
    if count == 0:
        return 0
    # a step is complete within 1 % of the image: the penumbra, which is cut off too
    beyond = min(count + max(2, len(samples) // 100), len(samples) - 1)
    step = np.abs(samples[beyond] - level[0]) > _EDGE
    # samples that never differ from the border belong to a border of another side, or are air all along
    alive = np.abs(samples[count:] - level[0]).max(axis=0) > _EDGE
    if step.sum() < max(_LENGTH * alive.sum(), 1):
        return 0
    if _gets_denser(samples[:, step], float(level[0]), count, beyond):
        return 0
    while count < beyond and np.median(np.abs(samples[count] - samples[beyond])[step]) > _TONE:
        count += 1
    return count


def _gets_denser(samples: Float[np.ndarray, "lines samples"], level: float, end: int, beyond: int) -> bool:
    """Whether lines that end may be air, and what follows a body, which gets denser below its outline."""
    near = max(_BLURRED, (beyond - end) // 4)
    lines = [min(end + depth, len(samples) - 1) for depth in (near, 4 * near)]
    outer, inner = (np.median(np.abs(samples[line] - level)) for line in lines)
    return bool(level < _BLACK and inner > _ROUND * outer)


def find_slanted_borders(values: Real[np.ndarray, "rows columns"]) -> dict[str, tuple[float, float]]:
    """Black or white borders along an image's sides that end in a slanted line, as of a cassette that lay askew.

    Args:
        values: a radiograph in any unit, without the upright borders of :func:`find_collimation`.

    Returns:
        For each side that has one (upper, lower, left, right) how deep it reaches, as a part of the image, at the first
        and at the last end of that side; below 0 where its line leaves the image.
    """
    scaled = _scaled(values)
    if scaled is None or min(values.shape) < 2 * _BLURRED:
        return {}
    picture = Image.fromarray(scaled)
    flat, tall = (
        np.asarray(picture.resize(size, Image.Resampling.BOX)) for size in ((_SAMPLES, _LINES), (_LINES, _SAMPLES))
    )
    sides = {"upper": flat, "lower": flat[::-1], "left": tall.T, "right": tall.T[::-1]}
    found = {side: _slanted_border(lines) for side, lines in sides.items()}
    return {side: ends for side, ends in found.items() if ends is not None}


def find_round_field(values: Real[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"] | None:
    """What lies within a circle, if all four corners of an image are of one value and end there.

    Args:
        values: a radiograph in any unit.

    Returns:
        The field, without its rim, in which JPEG mixes both; None without one.
    """
    scaled = _scaled(values)
    if scaled is None:
        return None
    corners = scaled[[0, 0, -1, -1], [0, -1, 0, -1]]
    if np.ptp(corners) > _EXACT:
        return None
    labels, _ = ndimage.label(np.abs(scaled - np.median(corners)) <= _EXACT)
    ends = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
    outside = np.isin(labels, ends)
    if not ends.all() or outside.mean() < _CORNERS:
        return None
    rim = outside & ndimage.binary_dilation(~outside)
    points = np.argwhere(rim).astype(float)  # (points, 2): row and column
    if len(points) < _CORNER_POINTS:
        return None
    # r² + c² = 2 a r + 2 b c + d, least squares (Kåsa's)
    solved, *_ = np.linalg.lstsq(np.c_[2 * points, np.ones(len(points))], (points**2).sum(axis=1), rcond=None)
    radius = float(np.sqrt(max(solved[2] + solved[0] ** 2 + solved[1] ** 2, 0.0)))
    off = np.abs(np.hypot(*(points - solved[:2]).T) - radius)
    if np.quantile(off, _ROUND_SHARE) > max(1.5, _OFF_ROUND * radius):
        return None
    row, column = np.ogrid[: values.shape[0], : values.shape[1]]
    inside: np.ndarray = np.hypot(row - solved[0], column - solved[1]) <= radius - max(1.5, _OFF_ROUND * radius)
    return inside  # (rows, columns), bool


def within_borders(shape: tuple[int, int], borders: dict[str, tuple[float, float]]) -> Bool[np.ndarray, "rows columns"]:
    """What slanted borders leave of an image.

    Args:
        shape: rows and columns.
        borders: of :func:`find_slanted_borders`.
    """
    down, across = ((np.arange(count) + 0.5) / count for count in shape)
    down, across = down[:, None], across[None]
    depth = {"upper": (down, across), "lower": (1 - down, across), "left": (across, down), "right": (1 - across, down)}
    inside = np.ones(shape, dtype=bool)
    for side, (first, last) in borders.items():
        deep, along = depth[side]
        inside &= deep > first + (last - first) * along
    return inside


def _slanted_border(samples: Float[np.ndarray, "lines samples"]) -> tuple[float, float] | None:
    """How deep the first lines are a slanted border, at the first and the last sample; None without one."""
    lines, count = samples.shape
    along = np.arange(count)
    best: tuple[float, float] = (0.0, 0.0)
    ends = None
    for rise in _RISES:
        offsets = np.round(rise * (along / (count - 1) - 0.5)).astype(int)
        offsets -= offsets.max()  # the first slanted line touches a corner of the image alone
        rows = np.arange(lines // 2)[:, None] + offsets
        slanted = np.where(rows >= 0, samples[rows.clip(0), along], np.nan)
        start = int(np.argmax((rows >= 0).mean(axis=1) >= 0.1))
        below, level, above = _levels(slanted[start : int(_DEEPEST * lines) - offsets.min()])
        plain = (above - below < _TONE) & (np.abs(level - level[0]) < _TONE)
        if plain.all() or not plain[:2].all() or _SHADES[0] < level[0] < _SHADES[1]:
            continue
        end = start + int(np.argmin(plain))
        beyond = end + max(2, lines // 100)
        there = np.flatnonzero(~np.isnan(slanted[end - 1]))
        differs = np.abs(slanted[beyond, there] - level[0])
        step = differs > _EDGE
        if (
            len(there) < _LONG * count
            or step.mean() < _SLANTED_LENGTH
            or _gets_denser(slanted[:, there[step]], float(level[0]), end, beyond)
        ):
            continue
        # turned away from the border's own line less of it is near-constant
        score = (float(end + offsets.mean()), float(np.median(differs)))
        if score > best:
            best, ends = score, (float(beyond + offsets[0]) / lines, float(beyond + offsets[-1]) / lines)
    return ends


def _levels(lines: Float[np.ndarray, "lines samples"]) -> list[Float[np.ndarray, " lines"]]:
    """Percentiles 8, 50 and 92 of each line, without its NaNs."""
    ordered, known = np.sort(lines, axis=1), (~np.isnan(lines)).sum(axis=1)
    places = (np.clip(np.rint(share * (known - 1)), 0, None).astype(int) for share in (0.08, 0.5, 0.92))
    return [np.take_along_axis(ordered, place[:, None], axis=1)[:, 0] for place in places]
