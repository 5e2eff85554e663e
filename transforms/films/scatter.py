r"""Scattered radiation: a smooth veil over the film, thickest behind the mediastinum.

A detector counts primary photons :math:`T = e^{-p}` and scattered ones :math:`S`. What scatters once along a ray is, to
first order, proportional to :math:`p\,e^{-p}`, and reaches the detector spread over a wide area (Ohnesorge, Flohr &
Klingenbeck-Regn, Eur. Radiol. 9:563, 1999; a wide convolution of the primary: Love & Kruger, Med. Phys. 14:178, 1987):

.. math:: S = r\,\bar T\,\frac{G_w * (p\,e^{-p})}{\overline{p\,e^{-p}}}

with means over the body and the Gaussian :math:`G_w`. So :math:`r` is the mean ratio of scattered to primary radiation.

Behind the mediastinum, about 90 % of what arrives is scattered without a grid, and more than half even with one of 12:1
(Niklason, Sorenson & Nelson, Med. Phys. 8:677, 1981): ratios of 9 and 1 there, far less behind the lungs. In bedside
films the range is large everywhere (Floyd et al., Radiology 183:857, 1992).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.config import KeysCollection
from torch import Tensor

from drr2ct.transforms.attenuation import transmission_to_line_integral
from drr2ct.transforms.films.shared import RandFilmEffectd, checked_range, smoothed
from drr2ct.transforms.geometry import BiplanarGeometry, View

BODY_LINE_INTEGRAL = 0.3
"""Rays with more than this, 16 mm of water, meet the body."""


def scattered_radiation(
    line_integrals: Float[Tensor, "rows columns"], ratio: float, width_mm: float, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """Scattered radiation S of a view, in units of the unattenuated beam; zero where no ray meets a body.

    Args:
        line_integrals: of the primary radiation.
        ratio: mean of scattered over mean of primary radiation, within the body.
        width_mm: standard deviation of the spread, on the detector.
        pitch_mm: edge length of a pixel.
    """
    body = line_integrals > BODY_LINE_INTEGRAL
    if not body.any():
        return torch.zeros_like(line_integrals)
    primary = torch.exp(-line_integrals)
    spread = smoothed(line_integrals.clamp(min=0) * primary, width_mm, pitch_mm)
    return spread * (ratio * primary[body].mean() / spread[body].mean())


def apply_scatter(
    line_integrals: Float[Tensor, "rows columns"], ratio: float, width_mm: float, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """Line integrals as they are read from primary and scattered radiation together: lower, and most where thick.

    Args:
        line_integrals: of the primary radiation.
        ratio: see :func:`scattered_radiation`.
        width_mm: likewise.
        pitch_mm: edge length of a pixel.
    """
    total = torch.exp(-line_integrals) + scattered_radiation(line_integrals, ratio, width_mm, pitch_mm)
    return transmission_to_line_integral(total, 1.0, 1e-12)


class RandScatterd(RandFilmEffectd):
    """Scattered radiation of a random amount and spread, each view its own; see :func:`apply_scatter`.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        ratio: smallest and largest mean ratio of scattered to primary radiation. The default goes from a good grid
            to a weak one: ratios of 1 to 2 behind the mediastinum.
        width_mm: smallest and largest standard deviation of its spread.
        prob: of scatter on a sample.

    Raises:
        InputError: for what is no range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        ratio: Sequence[float] = (0.02, 0.3),
        width_mm: Sequence[float] = (20.0, 60.0),
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.ratio = checked_range("ratio", ratio)
        self.width_mm = checked_range("width_mm", width_mm)

    def draw(self, view: View) -> tuple[float, float]:
        """Ratio and width."""
        return float(self.R.uniform(*self.ratio)), float(self.R.uniform(*self.width_mm))

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: tuple[float, float]
    ) -> Float[Tensor, "rows columns"]:
        """With scatter."""
        return apply_scatter(line_integrals, *drawn, view.pixel_pitch_mm)
