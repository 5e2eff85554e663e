"""Burned-in markers and labels: letters of lead or of a printer, boxes over names; found, and filled.

What was burned into a picture has one value throughout, that of its surroundings it jumps at the edge, and it is
small. Bone and calcium have none of the first two; wires and pacemakers of metal may be taken for a marker, and lose
little that a network would know what to do with.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

_WORKING = 1024  # pixels along the longer side at which markers are looked for
_EVEN = 0.03  # spread within a marker,
_STEP = 0.15  # and its step to the surroundings, as fractions of the image's range
_SHARE = (2e-5, 0.01)  # of the image's area: one marker
_BOX_SHARE = 0.06  # a box over a name may be larger
_BOX_FILL = 0.97  # of its bounding rectangle
_EDGE = 0.75  # part of the outline that must jump
_BRIGHT = 0.8  # markers are as bright as the image's brightest, nearly
_SIGMA = 0.02  # of the longer side: what counts as the surroundings


def find_markers(image: Float[Tensor, "rows columns"]) -> Bool[Tensor, "rows columns"]:
    """Where something was burned into a picture: bright letters and signs, and constant boxes of any brightness.

    Args:
        image: any unit; what is burned in is usually at or near its highest value, boxes at the lowest too.
    """
    rows, columns = image.shape
    scale = min(1.0, _WORKING / max(rows, columns))
    shape = (max(16, round(rows * scale)), max(16, round(columns * scale)))
    small = F.interpolate(image[None, None].float(), size=shape, mode="area")[0, 0].numpy()
    low, high = np.percentile(small, (0.01, 99.99))
    if high <= low:
        return torch.zeros_like(image, dtype=torch.bool)
    scaled = ((small - low) / (high - low)).clip(0, 1)
    found = _letters(scaled) | _boxes(scaled)
    if not found.any():
        return torch.zeros_like(image, dtype=torch.bool)
    # the edge of a letter is blurred, and printers draw a shadow around it
    found = ndimage.binary_dilation(found, iterations=3)
    return F.interpolate(torch.from_numpy(found)[None, None].float(), size=image.shape, mode="nearest")[0, 0] > 0.5


def fill(image: Float[Tensor, "rows columns"], mask: Bool[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The picture with what lies under the mask interpolated from its surroundings.

    Within a hole, a mean of ever wider surroundings: each level of a pyramid fills what the finer one does not reach.

    Args:
        image: any unit.
        mask: what is filled.
    """
    if not mask.any() or mask.all():
        return image
    weight = (~mask).float()[None, None]
    value = image[None, None].float() * weight
    levels = [(value, weight)]
    while min(weight.shape[-2:]) > 1 and not (weight > 0).all():
        value, weight = (F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (value, weight))
        levels.append((value, weight))
    filled = levels[-1][0] / levels[-1][1].clamp(min=1e-9)
    for value, weight in reversed(levels[:-1]):
        coarse = F.interpolate(filled, size=value.shape[-2:], mode="bilinear", align_corners=False)
        # a pixel that holds little of the picture is mostly what is coarser
        filled = value + (1 - weight) * coarse
    return torch.where(mask, filled[0, 0].to(image.dtype), image)


def marker_note(mask: Bool[Tensor, "rows columns"], name: str) -> str | None:
    """What is said of what was found, or None."""
    if not mask.any():
        return None
    count = ndimage.label(mask[:: max(1, mask.shape[0] // 512), :: max(1, mask.shape[1] // 512)].numpy())[1]
    what = "marker or label is" if count == 1 else "markers or labels are"
    return (
        f"{name}: {count} {what} burned in ({float(mask.float().mean()):.1%} of the picture); they were filled from "
        "their surroundings."
    )


def _letters(scaled: Float[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """Bright, even, sharply bounded, small."""
    surroundings = ndimage.gaussian_filter(scaled, _SIGMA * max(scaled.shape))
    bright = scaled > _BRIGHT * scaled.max()
    found = _sharp(scaled, bright & (scaled - surroundings > _STEP), _SHARE, boxes=False)
    # the rim of something larger, such as a white frame, stands out from its surroundings too
    labels, _ = ndimage.label(bright)
    small = np.bincount(labels.ravel()) <= 2 * _SHARE[1] * scaled.size
    return found & small[labels]


def _boxes(scaled: Float[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """Rectangles of the lowest or the highest value within the picture."""
    found = np.zeros(scaled.shape, dtype=bool)
    for level in (scaled <= 1e-3, scaled >= 1 - 1e-3):
        found |= _sharp(scaled, level, (10 * _SHARE[0], _BOX_SHARE), boxes=True)
    return found


def _sharp(
    scaled: Float[np.ndarray, "rows columns"],
    candidates: Bool[np.ndarray, "rows columns"],
    shares: tuple[float, float],
    boxes: bool,
) -> Bool[np.ndarray, "rows columns"]:
    """Those connected parts that are even inside and jump at their outline."""
    labels, count = ndimage.label(candidates)
    found = np.zeros(scaled.shape, dtype=bool)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        if not shares[0] <= sizes[label] / scaled.size <= shares[1]:
            continue
        around = tuple(slice(max(0, s.start - 5), s.stop + 5) for s in where)
        part = labels[around] == label
        touches = any(s.start == 0 or s.stop == n for s, n in zip(where, scaled.shape, strict=True))
        if boxes and (touches or part.sum() < _BOX_FILL * np.prod([s.stop - s.start for s in where])):
            continue
        values = scaled[around]
        core = values[ndimage.binary_erosion(part)]
        inside = core if core.size >= 6 else np.sort(values[part])[part.sum() // 2 :]
        ring = ndimage.binary_dilation(part, iterations=4) & ~ndimage.binary_dilation(part, iterations=2)
        if np.quantile(inside, 0.9) - np.quantile(inside, 0.1) > _EVEN or not ring.any():
            continue
        if (np.abs(values[ring] - np.median(inside)) > _STEP).mean() >= _EDGE:
            found[around] |= part
    return found
