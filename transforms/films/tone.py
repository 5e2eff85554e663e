r"""Exposure and tone: a wrong unattenuated intensity, and the curve that is left when histograms have been matched.

A film's exposure and tone curve are unknown. Where its numbers are intensities, a wrong unattenuated intensity
:math:`I_0` shifts all line integrals alike (:func:`apply_exposure`). Where it is a picture, its histogram is matched
with that of the training's radiographs, which undoes any monotone curve; but patients do not have the same histogram,
so a thick one is read too thin. What is left is a smooth curve

.. math:: p' = p + m\,\tau(x)\,(a + b\,(x - 1) + c\,(x - 1)^2)

with :math:`x = p / m`, the body's median line integral :math:`m`, and :math:`\tau = x / (x + 1/4)`, which keeps air
at 0.

Measured by ``python benchmarks/film_intensity.py --cts DIR`` on 23 CTs and the sample, each read with the histogram of
all the others: see :class:`RandToneCurved`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from monai.config import KeysCollection
from torch import Tensor

from drr2ct.transforms.attenuation import transmission_to_line_integral
from drr2ct.transforms.films.scatter import BODY_LINE_INTEGRAL
from drr2ct.transforms.films.shared import RandFilmEffectd, checked_range
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.validation import InputError

_TAPER = 0.25
_LEAST_SLOPE = 0.1  # of the curve, so that it stays monotone
_POINTS = 257


def apply_exposure(line_integrals: Float[Tensor, "*shape"], factor: float) -> Float[Tensor, "*shape"]:
    """Line integrals of ``factor`` times the intensity that is taken for unattenuated; never negative.

    Args:
        line_integrals: of any shape.
        factor: 2 for a film that got twice the radiation, by ln 2 less on every ray.
    """
    return transmission_to_line_integral(factor * torch.exp(-line_integrals), 1.0, 1e-12)


def tone_basis(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """What offset, contrast and bend add to line integrals, both in units of the body's median."""
    taper = x / (x + _TAPER)
    return np.stack([taper, taper * (x - 1), taper * (x - 1) ** 2], axis=-1)


def apply_tone_curve(
    line_integrals: Float[Tensor, "rows columns"], offset: float, contrast: float, bend: float
) -> Float[Tensor, "rows columns"]:
    """Line integrals under a smooth curve that rises everywhere and leaves 0 at 0; see the module.

    Args:
        line_integrals: of a view.
        offset: what is called a, relative to the body's median line integral: 0.1 reads the body a tenth too thick.
        contrast: b, relative change of the slope at the median.
        bend: c.
    """
    body = line_integrals[line_integrals > BODY_LINE_INTEGRAL]
    if not body.numel():
        return line_integrals
    median = float(body.median())
    top = max(float(line_integrals.max()) / median, 1.0)
    x = np.linspace(0, top, _POINTS)
    curve = x + tone_basis(x) @ np.array([offset, contrast, bend])
    rise = np.maximum(np.diff(curve), _LEAST_SLOPE * top / (_POINTS - 1))
    table = torch.from_numpy(median * np.concatenate([[0.0], np.cumsum(rise)])).to(line_integrals)
    place = (line_integrals / median * ((_POINTS - 1) / top)).clamp(0, _POINTS - 1)
    below = place.floor().clamp(max=_POINTS - 2)
    index = below.long()
    return torch.lerp(table[index], table[index + 1], place - below)


class RandExposured(RandFilmEffectd):
    """A wrong unattenuated intensity, each view its own; see :func:`apply_exposure`.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        factor: smallest and largest, drawn evenly in its logarithm.
        prob: of another exposure of a sample.

    Raises:
        InputError: for what is no range above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        factor: Sequence[float] = (0.5, 2.0),
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.factor = checked_range("factor", factor, 1e-3)

    def draw(self, view: View) -> float:
        """The factor."""
        low, high = self.factor
        return math.exp(self.R.uniform(math.log(low), math.log(high)))

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: float
    ) -> Float[Tensor, "rows columns"]:
        """With another exposure."""
        return apply_exposure(line_integrals, drawn)


class RandToneCurved(RandFilmEffectd):
    """The curve that matching histograms leaves, each view its own; see :func:`apply_tone_curve`.

    The three numbers are drawn normally, at most two standard deviations out. ``python benchmarks/film_intensity.py
    --cts DIR --consoles 3``, 23 CTs and the sample, each read with the histogram of the others, finds for consoles that
    bend and compress (mean ± standard deviation, PA and lateral): offset −0.05 ± 0.17, −0.03 ± 0.16 and −0.15 ± 0.18,
    −0.07 ± 0.16; contrast 0.28 ± 0.18, 0.21 ± 0.20 and 0.31 ± 0.23, 0.19 ± 0.28; bend −0.18 ± 0.26, −0.14 ± 0.28 and
    0.05 ± 0.25, 0.06 ± 0.24. The defaults are their root mean squares, rounded. Consoles that equalise locally leave
    more: offsets of 0.21 ± 0.26 and 0.37 ± 0.29, contrasts of −0.31 ± 0.19 and −0.53 ± 0.16.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        offset: standard deviation.
        contrast: standard deviation.
        bend: standard deviation.
        prob: of a curve on a sample.

    Raises:
        InputError: for a negative number.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        offset: float = 0.2,
        contrast: float = 0.3,
        bend: float = 0.3,
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.deviations = (float(offset), float(contrast), float(bend))
        if min(self.deviations) < 0:
            raise InputError(f"deviations of a tone curve {self.deviations} cannot be negative.")

    def draw(self, view: View) -> tuple[float, ...]:
        """Offset, contrast and bend."""
        normal = self.R.normal(size=3).clip(-2, 2)
        return tuple(float(d * n) for d, n in zip(self.deviations, normal, strict=True))

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: tuple[float, ...]
    ) -> Float[Tensor, "rows columns"]:
        """Under the curve."""
        return apply_tone_curve(line_integrals, *drawn)
