r"""Whether two radiographs are of one patient at one height: what both views share.

Every view of a body sees all of a slice, so the sum of line integrals along a row of the detector is the slice's
total attenuation, from whichever side it is taken (exactly so for parallel rays; Helgason and Ludwig's condition of
order zero: F. Natterer, *The Mathematics of Computerized Tomography*, II.4). With a source at 1.5 m, and with arms cut
off by the detector, the sums of one patient still agree within a few per cent (``benchmarks/film_looks.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from drr2ct.transforms.geometry import View

CALIBRATED_LIMIT = 0.08
"""Difference of row sums from which on two calibrated radiographs are taken to be of two patients."""

PICTURE_LIMIT = 0.11
"""Likewise for pictures, whose tone and exposure are free: beyond what matching leaves of one patient's, the tones are
not read as they should be, or it is another patient (``benchmarks/film_looks.py``)."""

PICTURE_ALIGNED = 0.05
"""The height found for a picture counts if the rows then agree so well; less well, what differs is not the height."""

SEARCH_MM = 60.0
"""How far apart the two heights are looked for, in the isocentre's plane."""

SCALES = tuple(np.round(np.arange(0.90, 1.101, 0.01), 2).tolist())
"""Relative sizes that are tried where no pitch is known."""

_STEP_MM = 1.5
_LEAST_OVERLAP = 0.6
_GAIN = 0.3  # an alignment must take away this part of the difference,
_LEAST_GAIN = 0.008  # and this much of it
_SCALE_GAIN = 0.4  # another scale must take away this part of what is left
_LEAST_SHIFT_MM = 3.0


@dataclass(frozen=True)
class Agreement:
    """How the second view's rows are placed so that they agree best with the first view's.

    Args:
        shift_mm: by how much the second view's content was moved down, in the isocentre's plane.
        scale: by how much it was enlarged.
        gain: by what its line integrals have to be multiplied to agree; 1 where exposures are known.
        stored: relative difference of the row sums as the views are.
        difference: the difference with shift, scale and gain.
        overlap: part of the smaller field's rows that both show.
    """

    shift_mm: float
    scale: float
    gain: float
    stored: float
    difference: float
    overlap: float

    @property
    def moved(self) -> bool:
        """The second view is better placed otherwise than it is."""
        return self.shift_mm != 0 or self.scale != 1


def row_sums(
    image: Float[Tensor, "rows columns"], covered: Bool[Tensor, "rows columns"] | None, view: View
) -> tuple[Float[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Sum of line integrals of each row, times the pixel's width at the isocentre (mm), and whether the row is seen.

    Args:
        image: line integrals on the view's detector.
        covered: what the radiograph shows; None is all of it.
        view: whose detector it is.
    """
    width = view.pixel_pitch_mm * view.source_to_isocentre_mm / view.source_to_detector_mm
    sums = image.double().sum(dim=1).cpu().numpy() * width
    if covered is None:
        return sums, np.ones(len(sums), dtype=bool)
    return sums, covered.any(dim=1).cpu().numpy()


def compare_views(
    images: Float[Tensor, "2 rows columns"],
    covered: Bool[Tensor, "2 rows columns"] | None,
    views: Sequence[View],
    exposures_known: bool,
    movable: bool = True,
    scalable: bool = False,
) -> Agreement | None:
    r"""Place the second view's rows on the first's.

    The difference of sums :math:`a, b` is :math:`\sum |a - g b| / \sum a` over the rows that both show. Where it does
    not become clearly smaller by it, the second view stays where it is.

    Args:
        images: line integrals of two views on their detectors.
        covered: what they show.
        views: the two.
        exposures_known: the line integrals are calibrated: no gain is allowed for.
        movable: a height may be looked for.
        scalable: a size may be looked for.

    Returns:
        The placement, or None if the views share too few rows, or show nothing.
    """
    profiles = [row_sums(images[i], None if covered is None else covered[i], views[i]) for i in (0, 1)]
    heights = [
        (np.arange(len(sums)) - (len(sums) - 1) / 2)
        * view.pixel_pitch_mm
        * view.source_to_isocentre_mm
        / view.source_to_detector_mm
        for (sums, _), view in zip(profiles, views, strict=True)
    ]

    def at(shift: float, scale: float) -> tuple[float, float, float] | None:
        return _difference(profiles, heights, shift, scale, exposures_known)

    stored = at(0.0, 1.0)
    shifts = np.arange(-SEARCH_MM, SEARCH_MM + 1e-6, _STEP_MM) if movable else np.zeros(1)
    best = _best(at, shifts, (1.0,))
    if best is None:
        return None
    if scalable and movable:
        scaled = _best(at, shifts, SCALES)
        if scaled is not None and scaled[0] < (1 - _SCALE_GAIN) * best[0]:
            best = scaled
    difference, gain, overlap, shift, scale = best
    at_bound = movable and abs(shift) > SEARCH_MM - _STEP_MM / 2
    worth = stored is None or stored[0] - difference > max(_GAIN * stored[0], _LEAST_GAIN)
    worth &= exposures_known or difference < PICTURE_ALIGNED
    if stored is not None and (at_bound or not worth or (abs(shift) < _LEAST_SHIFT_MM and scale == 1)):
        return Agreement(0.0, 1.0, stored[1], stored[0], stored[0], stored[2])
    return Agreement(float(shift), float(scale), gain, math.nan if stored is None else stored[0], difference, overlap)


def missing_exposure(
    known: Float[Tensor, "rows columns"],
    unknown: Float[Tensor, "rows columns"],
    body: Bool[Tensor, "rows columns"],
    views: Sequence[View],
) -> float:
    """What to add to a view's line integrals in the body so that its row sums become those of a view that is right.

    Args:
        known: line integrals of a view with a known unattenuated intensity.
        unknown: of one without, on its own detector.
        body: where the patient is in the latter.
        views: of the known and of the unknown one.
    """
    sums, _ = row_sums(known, None, views[0])
    others, _ = row_sums(unknown, None, views[1])
    widths, seen = row_sums(body.float(), body, views[1])
    seen &= widths > 0.25 * widths.max(initial=0.0)
    return float(np.median((sums - others)[seen] / widths[seen])) if seen.any() else 0.0


def moved_view(image: Float[Tensor, "rows columns"], view: View, agreement: Agreement) -> Float[Tensor, "rows columns"]:
    """The second view's image (or its coverage, as numbers) at the height and size that were found; 0 beyond it.

    Args:
        image: on the view's detector.
        view: whose it is.
        agreement: of :func:`compare_views`.
    """
    rows = image.shape[0]
    at_isocentre = view.pixel_pitch_mm * view.source_to_isocentre_mm / view.source_to_detector_mm
    # output → input in the normalised coordinates of grid_sample, in which the detector reaches from −1 to 1
    offset = -2 * agreement.shift_mm / at_isocentre / rows / agreement.scale
    matrix = torch.tensor([[1 / agreement.scale, 0, 0], [0, 1 / agreement.scale, offset]], dtype=image.dtype)
    grid = F.affine_grid(matrix[None], [1, 1, *image.shape], align_corners=False)
    return F.grid_sample(image[None, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0, 0]


def agreement_note(agreement: Agreement | None, name: str) -> str:
    """What is said of it: how well the row sums agree, and what was done to the second view."""
    if agreement is None:
        return "The two views share too few rows to compare them."
    done = []
    if agreement.shift_mm:
        done.append(f"aligned by {agreement.shift_mm:+.0f} mm".replace("-", "−"))
    if agreement.scale != 1:
        done.append(f"×{agreement.scale:.2f}")
    text = f"The sums of line integrals along rows of the two views differ by {agreement.difference:.1%}"
    if not done:
        return text + "."
    before = "" if math.isnan(agreement.stored) else f" (before, {agreement.stored:.1%})"
    return f"{text} once {name} is {', '.join(done)}{before}."


def agreement_warning(agreement: Agreement | None, exposures_known: bool) -> str | None:
    """One sentence if two radiographs do not seem to be of one patient at all."""
    limit = CALIBRATED_LIMIT if exposures_known else PICTURE_LIMIT
    if agreement is None or agreement.difference <= limit:
        return None
    told = (
        f"The sums of line integrals along rows of the two views differ by {agreement.difference:.0%}, of one patient "
        f"by at most {limit:.0%}"
    )
    check = "both are of the same patient and taken in the same position"
    if exposures_known:
        return f"{told}: check that {check}."
    return (
        f"{told} where tones are read as they should be: check that {check}; if they are, do not trust HU and sizes of "
        "the volume, as the pictures' tones are unlike those of the training."
    )


def _best(
    at: Callable[[float, float], tuple[float, float, float] | None], shifts: Iterable[float], scales: Iterable[float]
) -> tuple[float, float, float, float, float] | None:
    """Difference, gain, overlap, shift and scale where the difference is least."""
    found = [
        (*result, float(shift), float(scale))
        for scale in scales
        for shift in shifts
        if (result := at(float(shift), float(scale))) is not None
    ]
    return min(found) if found else None


def _difference(
    profiles: Sequence[tuple[np.ndarray, np.ndarray]],
    heights: Sequence[np.ndarray],
    shift: float,
    scale: float,
    exposures_known: bool,
) -> tuple[float, float, float] | None:
    """Relative difference, gain, and overlap, with the second profile moved down by ``shift`` and enlarged."""
    (first, seen), (second, also_seen) = profiles
    source = (heights[0] - shift) / scale
    inside = (source >= heights[1][0]) & (source <= heights[1][-1])
    moved = np.interp(source, heights[1], second) * scale  # rows become longer too
    both = seen & inside & (np.interp(source, heights[1], also_seen.astype(float)) > 0.99)
    # rows without a body say nothing, and would only make an overlap look large
    smaller = min(seen.sum(), also_seen.sum())
    if both.sum() < max(_LEAST_OVERLAP * smaller, 4) or first[both].sum() <= 0 or moved[both].sum() <= 0:
        return None
    a, b = first[both], moved[both]
    gain = 1.0 if exposures_known else float(np.median(a[b > 0] / b[b > 0]))
    return float(np.abs(a - gain * b).sum() / a.sum()), gain, float(both.sum() / smaller)
