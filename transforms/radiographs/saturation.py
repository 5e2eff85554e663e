"""What a radiograph does not tell: pixels at full scale, and pixels at black within the patient.

A detector that was over-exposed, a window that cuts, a picture whose contrast was equalised: there a pixel only says
"at least" or "at most". Such pixels are part of the body's distribution, at its ends, and not of the background; where
a histogram is matched, they stand for that end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from scipy import ndimage
from torch import Tensor

from drr2ct.transforms.radiographs.intensity import BODY_LEVEL, QUANTILES

NOTED = 0.01
"""Part of the body at an end of the scale from which on it is said."""

MUCH = 0.15
"""Part of the body from which on there is a warning."""

_LEVEL = 2.0**-9  # of the range: half a step of 8 bits
_BACKGROUND = 0.1  # part of a radiograph at its lowest value from which on that is air, free of scatter and noise,
_UNIFORM_LEVEL = 0.01  # and what attenuates more than this part of the range is the body, however dark its tones are
_NOISY = 5e-4  # of the highest number: quantum noise is several times that, what is rendered without has a fifth
_PEAK = 5.0  # how many times more pixels a saturated detector has at its highest number than in the 1 % below it
_ALTERNATE = -0.4  # correlation of neighbours' second differences; a detector's blur brings noise's -0.67 up
_FEWEST = 200  # pixels from which noise is measured
_WORKING = 512  # pixels along the longer side at which the body's outline is found


@dataclass(frozen=True)
class Clipping:
    """Where the numbers are an end of the scale, and the body with them.

    Args:
        thin: pixels of the body that attenuate at most what they say: at the lowest value, or over-exposed.
        dense: pixels of the body that attenuate at least what they say: at the highest value.
        body: the patient: what attenuates, and what it encloses.
    """

    thin: Bool[Tensor, "rows columns"]
    dense: Bool[Tensor, "rows columns"]
    body: Bool[Tensor, "rows columns"]

    @property
    def shares(self) -> tuple[float, float]:
        """Parts of the body that are thin and dense."""
        total = max(int(self.body.sum()), 1)
        return int(self.thin.sum()) / total, int(self.dense.sum()) / total

    @property
    def unknown(self) -> Bool[Tensor, "rows columns"]:
        """Either."""
        return self.thin | self.dense


def find_clipping(image: Float[Tensor, "rows columns"], covered: Bool[Tensor, "rows columns"]) -> Clipping:
    """Pixels of the body at the ends of a radiograph's scale.

    The lowest value beside the patient is air, and known; enclosed by the patient it is not.

    Args:
        image: dense is high; any unit.
        covered: what the radiograph shows.
    """
    none = torch.zeros_like(covered)
    if not covered.any():
        return Clipping(none, none, none)
    values = image[covered]
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-9)
    step = max(1, max(image.shape) // _WORKING)
    black = int((values <= low + _LEVEL * span).sum()) / len(values)
    level = BODY_LEVEL if black < _BACKGROUND else _UNIFORM_LEVEL
    attenuating = (image > low + level * span) & covered
    body = attenuating | (_enclosed(attenuating, covered, step) & covered)
    thin = body & (image <= low + _LEVEL * span)
    dense = body & (image >= high - _LEVEL * span)
    return Clipping(thin, dense, body)


def clipping_notes(clipping: Clipping, name: str) -> tuple[list[str], list[str]]:
    """What is said of a radiograph's unknown pixels: sentences, and warnings."""
    thin, dense = clipping.shares
    parts = [
        text
        for share, text in (
            (dense, f"{dense:.0%} of the body at full scale"),
            (thin, f"{thin:.0%} of it, enclosed by the body, at the least"),
        )
        if share >= NOTED
    ]
    if not parts:
        return [], []
    text = f"{name} is clipped, {' and '.join(parts)}: what lies there is not known and is taken from the training set"
    if max(thin, dense) < MUCH:
        return [f"{text}."], []
    return [], [f"{text}; do not trust the volume there."]


def saturated_share(
    counts: Real[np.ndarray, "rows columns"], covered: Bool[np.ndarray, "rows columns"] | None, full: float
) -> tuple[float, float]:
    """Part of a raw radiograph that is at full scale, and that full scale as a part of what its numbers can hold.

    A detector may saturate below the end of its numbers. In a noisy picture many pixels at exactly the highest number
    can be nothing else; without noise, air has one number too, and only the end of the numbers counts.

    Args:
        counts: rise with intensity, from 0.
        covered: what the radiograph shows; None for everything.
        full: highest number that can be held.
    """
    seen = np.ones(counts.shape, dtype=bool) if covered is None else covered
    if not seen.any():
        return 0.0, 1.0
    values = counts[seen]
    highest = float(values.max())
    share = float((values == highest).mean())
    if highest == full or share < NOTED:
        return (share, 1.0) if highest == full else (0.0, 1.0)
    below = float(((values < highest) & (values >= 0.99 * highest)).mean())
    if share < _PEAK * below or _noise(counts, seen, highest) < _NOISY * highest:
        return 0.0, 1.0
    return share, highest / full


def _noise(counts: Real[np.ndarray, "rows columns"], seen: Bool[np.ndarray, "rows columns"], highest: float) -> float:
    """Standard deviation of noise where much arrives; 0 where what is left after slopes is no noise."""
    second = np.array([1.0, -2.0, 1.0])
    residual = ndimage.convolve1d(ndimage.convolve1d(counts.astype(np.float64), second, axis=0), second, axis=1)
    bright = ndimage.binary_erosion(seen & (counts > 0.3 * highest) & (counts < 0.9 * highest))
    pairs = bright[:, 1:] & bright[:, :-1]
    if pairs.sum() < _FEWEST:
        return 0.0
    typical = float(np.median(np.abs(residual[bright]))) / 0.6745
    residual = residual.clip(-3 * typical, 3 * typical)
    # second differences of noise alternate from pixel to pixel (-2/3), those of shapes do not
    alternate = float((residual[:, 1:] * residual[:, :-1])[pairs].mean()) / max(
        float((residual[bright] ** 2).mean()), 1e-9
    )
    return typical / 6 if alternate < _ALTERNATE else 0.0


def censored_difference(
    quantiles: Sequence[float],
    image: Float[Tensor, "rows columns"],
    clipping: Clipping,
) -> float:
    """By how much ``quantiles`` exceed those of an image's body where it is not clipped.

    The clipped pixels count as the ends of the distribution, so that the rest is compared with its like: what an
    exposure beyond the detector's full scale takes away.

    Args:
        quantiles: of the body in a training radiograph; see
            :func:`~drr2ct.transforms.radiographs.intensity.radiograph_quantiles`.
        image: in their unit.
        clipping: of the image.
    """
    if not clipping.body.any():
        return 0.0
    places = np.linspace(0, 1, QUANTILES)
    own = np.quantile(image[clipping.body].double().cpu().numpy(), places)
    thin, dense = clipping.shares
    known = (places > max(thin + 0.1, 0.25)) & (places < min(1 - dense - 0.02, 0.95))
    return float(np.median(np.asarray(quantiles)[known] - own[known])) if known.any() else 0.0


def _enclosed(
    attenuating: Bool[Tensor, "rows columns"], covered: Bool[Tensor, "rows columns"], step: int
) -> Bool[Tensor, "rows columns"]:
    """What the body encloses, found on every ``step``-th pixel: what is connected to neither side of the field.

    The field's upper and lower edges cut through the patient: what touches only those is enclosed.
    """
    small = attenuating[::step, ::step].cpu().numpy()
    seen = covered[::step, ::step].cpu().numpy()
    closed = ndimage.binary_closing(small, iterations=2) | small
    labels, _ = ndimage.label(~closed & seen)
    beside = np.unique(labels[_sides(seen)])
    holes = (labels > 0) & ~np.isin(labels, beside) | (closed & ~small)
    whole = np.kron(holes, np.ones((step, step), dtype=bool))[: attenuating.shape[0], : attenuating.shape[1]]
    return torch.from_numpy(whole).to(attenuating.device) & ~attenuating


def _sides(seen: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """The first and the last pixel of each row that a field of any shape covers."""
    return seen & ((np.cumsum(seen, axis=1) == 1) | (np.cumsum(seen[:, ::-1], axis=1)[:, ::-1] == 1))
