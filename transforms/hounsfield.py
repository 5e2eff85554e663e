"""Whether numbers are Hounsfield units, judged by where air and tissue lie."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

HU_WINDOW = (-1024.0, 3071.0)
"""HU mapped to 0 and 1 for the network."""
AIR_HU = -1024.0
"""What lies outside the scan."""

_PADDING_BELOW = -1100.0
"""No scanner measures less; what is lower was filled in."""
_AIR = (-1100.0, -600.0)
"""Air around and in the patient, and lung."""
_SHIFTED_TISSUE = (850.0, 1250.0)
"""Where fat, water and muscle lie if 1000 or 1024 was not subtracted; in HU only some of the bone does."""
_TISSUE = (-200.0, 200.0)
_MIN_TISSUE = 0.05
_BELOW_FAT = -250.0
"""Between air and fat there is nothing but the edges of bodies."""
_MIN_AIR = 0.01
_MIN_SHIFTED = 0.1
_NO_AIR_BETWEEN = 0.05
_SAME_CORNERS = 0.95
_FAR_BELOW_AIR = -1300.0
_MAX_FAR_BELOW = 0.002
_MOST_FILLINGS = 20
_TOO_FEW = 20
_SAMPLES = 2_000_000
_AIR_REACHES = -880.0
"""Of a scan with air in it, one voxel in a thousand is as low: around the patient, in airways or bowels."""
_FEW = 1e-3
_AIR_MEASURED = -900.0
_MEASURED_VALUES = 500
"""So many different values are measured ones; drawn volumes and masks have fewer."""
_CLIPPED = 2e-4
"""No more than this part of a scan has its greatest value, unless it was clipped there."""
_LOST_BONE = 200.0
"""What is clipped below this has no bone, and contrast agent in vessels is lost too."""
_SCANNERS_CLIP = 2000.0
"""From here on scanners do it themselves, where there is metal."""


def wrong_numbers(values: Tensor) -> str:
    """Why the numbers of a CT are no Hounsfield units; empty if they may be.

    What was filled in around the scan's circle does not count as air: a constant below every measured value, apart
    from the next one.

    Args:
        values: of the whole volume, finite; any shape.

    Returns:
        What is wrong and what to do, as the end of a sentence that begins with the volume's name.
    """
    sample = _sample(values)
    far = sample[sample < _FAR_BELOW_AIR]
    # what is filled in has one value or two, and streaks of metal are few
    if far.numel() > _MAX_FAR_BELOW * sample.numel() and far.unique().numel() > _MOST_FILLINGS:
        return (
            f"holds values far below air (down to {float(far.min()):g}) that were not filled in, so it is inverted or "
            "wrongly scaled; export it in Hounsfield units"
        )
    below = sample[(sample > _FAR_BELOW_AIR) & (sample < _AIR_MEASURED)]
    below = below[below != below.mode().values] if below.numel() else below  # what was filled in
    if below.numel() > _MIN_AIR * sample.numel() and below.unique().numel() > _MOST_FILLINGS:
        middle = float(below.median())
        if middle < _PADDING_BELOW:
            return f"has its air at {middle:.0f}, not at −1000, so it is shifted; export it in Hounsfield units"
    measured = _measured(sample)
    if measured.numel() == 0 or (float(measured.min()) > -500 and measured.numel() == sample.numel()):
        low, high = float(values.min()), float(values.max())
        return (
            f"ranges from {low:g} to {high:g}, so it holds no air in Hounsfield units (−1000); "
            "apply rescale slope and intercept first"
        )
    air = _share(measured, _AIR)
    if air < _MIN_AIR and _share(measured, _SHIFTED_TISSUE) > _MIN_SHIFTED:
        return (
            f"holds stored values, not Hounsfield units (median {float(measured.median()):.0f}, and no air at −1000 "
            "within the scan); apply rescale slope and intercept first"
        )
    if air < _MIN_AIR and _share(measured, _TISSUE) < _MIN_TISSUE:
        return (
            f"holds neither air at −1000 nor tissue about 0 within the scan (median {float(measured.median()):.0f}), "
            "so its numbers are no Hounsfield units; apply rescale slope and intercept first"
        )
    if air < _MIN_AIR and float((measured < _BELOW_FAT).float().mean()) > _NO_AIR_BETWEEN:
        return (
            f"holds no air at −1000, but much at {float(measured.min()):.0f} and above, so it is wrongly scaled; apply "
            "rescale slope and intercept first"
        )
    least = float(measured.kthvalue(1 + int(_FEW * measured.numel())).values)
    if air >= _MIN_AIR and least > _AIR_REACHES:
        return (
            f"has its air at {least:.0f}, not at −1000, so it is shifted, wrongly scaled or clipped; export it in "
            "Hounsfield units"
        )
    highest, share = _top(sample)
    if share > _CLIPPED and highest < _LOST_BONE and measured.unique().numel() > _MEASURED_VALUES:
        return (
            f"ends at {highest:g}, where {100 * share:.2g} % of the voxels are, so it was clipped and has no bone; "
            "export it in Hounsfield units, without a window"
        )
    return ""


def clipped_above(values: Tensor) -> str:
    """What to say of a CT in HU whose high values were cut off by somebody; mostly nothing.

    Args:
        values: of the whole volume, any shape.
    """
    sample = _sample(values)
    highest, share = _top(sample)
    if share <= _CLIPPED or highest >= _SCANNERS_CLIP or sample.unique().numel() <= _MEASURED_VALUES:
        return ""
    return f"clipped at {highest:g} HU, where {100 * share:.2g} % of the voxels are"


def _measured(sample: Tensor) -> Tensor:
    """Without what was filled in: values below all that scanners give, and a lowest value apart from the next ones."""
    measured = sample[sample >= _PADDING_BELOW]
    if measured.numel() == 0:
        return measured
    lowest = measured.min()
    above = measured[measured > lowest]
    apart = above.numel() and (above - lowest < 200).float().mean() < 1e-3
    return above if apart and above.numel() < measured.numel() - 1 else measured


def _sample(values: Tensor) -> Tensor:
    flat = values.flatten()
    return flat[:: max(1, flat.numel() // _SAMPLES)]


def _top(values: Tensor) -> tuple[float, float]:
    """The greatest value, and the share of the voxels that have it; 0 if they are too few to tell."""
    highest = values.max()
    count = int((values == highest).sum())
    return float(highest), count / values.numel() if count > _TOO_FEW else 0.0


def filled_corners(values: Float[Tensor, "i j slices"]) -> str:
    """Why what was filled in around the scan would count as tissue; empty if it would not, or nothing was.

    The corners of a CT's slices lie outside the circle of reconstruction, or show air or the body. Where all of them
    have one value above that of air, somebody filled it in.

    Args:
        values: of the whole volume, slices along the last axis.

    Returns:
        What is wrong and what to do, as the end of a sentence that begins with the volume's name.
    """
    corners = values[[0, 0, -1, -1], [0, -1, 0, -1]]
    value = float(corners.median())
    if value > _AIR[1] and float((corners == value).float().mean()) >= _SAME_CORNERS:
        return (
            f"has {value:g} HU in the corners of its slices, which was filled in outside the scan and would count as "
            "tissue; fill in −1024 instead"
        )
    return ""


def _share(values: Tensor, limits: tuple[float, float]) -> float:
    low, high = limits
    return float(torch.logical_and(values >= low, values <= high).float().mean())
