r"""X-ray attenuation: from Hounsfield units to line integrals, and the one scale that networks see them in.

A radiograph's *line integral* is :math:`p = \int \mu\,\mathrm{d}l`, the attenuation along a ray (dimensionless). By
the law of Beer and Lambert the detector counts :math:`I = I_0\,e^{-p}`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

MU_WATER = 0.0192
"""Linear attenuation of water near 70 keV, 1/mm (NIST XCOM, mass attenuation × 1.0 g/cm³)."""

MU_BONE = 0.0573
"""Linear attenuation at ``HU_BONE``, 1/mm: cortical bone of 1.92 g/cm³ near 70 keV, nanodrr's value."""

HU_BONE = 1000.0
"""Hounsfield value taken to be cortical bone."""

LINE_INTEGRAL_SCALE = 6.0
"""Radiographs are divided by this for the network: then a thick lateral chest is about 1.

MONAI's own transform does it: ``ScaleIntensityd("image", minv=None, maxv=None, factor=1 / LINE_INTEGRAL_SCALE - 1)``.
"""


def hu_to_attenuation(hu: Real[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Linear attenuation coefficient (1/mm, float32) of Hounsfield units.

    .. math::
        \mu = \mu_w \left(1 + \frac{h}{1000}\right) \;(h \le 0), \qquad
        \mu = \mu_w + (\mu_b - \mu_w) \frac{h}{h_b} \;(h > 0)

    with :math:`h` not below −1000 HU, so that air, and what scanners write outside their circle, is 0 while aerated
    lung (−1000…−800 HU) keeps its contrast. It is the model and the coefficients of ``nanodrr.data.hu_to_mu``
    (NIST XCOM: Berger et al., NIST Standard Reference Database 8). Differentiable; any real type, any shape.
    """
    bone_slope = (MU_BONE - MU_WATER) / HU_BONE
    # the two lines meet at water, so this is a leaky ReLU; clamp makes the copy that mul_ may write to
    scaled = hu.clamp(min=-1000).float().mul_(bone_slope)
    return F.leaky_relu(scaled, MU_WATER / 1000 / bone_slope).add_(MU_WATER).clamp_(min=0)


def transmission_to_line_integral(
    counts: Float[Tensor, "*shape"], unattenuated: float, smallest: float
) -> Float[Tensor, "*shape"]:
    """Line integrals −ln(I / I₀) of detector counts I; never negative (counts above I₀ are noise).

    Args:
        counts: detector signal, in any unit that is proportional to the X-ray intensity.
        unattenuated: I₀, the signal without a patient, in the same unit.
        smallest: counts below this are raised to it, so that a dead or starved pixel stays finite.
    """
    return -torch.log(counts.clamp(min=smallest, max=unattenuated) / unattenuated)


def unattenuated_intensity(counts: Float[Tensor, "*pixels"]) -> tuple[float, float, bool]:
    """Estimate I₀ from a radiograph's own brightest part: the median of what exceeds 90 % of the 99.5th percentile.

    Right where part of the detector was not covered by the patient; otherwise too low, and line integrals with it.

    Args:
        counts: detector signal, proportional to the X-ray intensity.

    Returns:
        I₀, the fraction of the image that it was estimated from, and whether that part is even, as air is: 60 % of
        it within 2 % of the median (where a lung is brightest, 40 % are).
    """
    step = math.ceil(counts.numel() / 2**20) | 1  # odd, so that it does not stay in some columns
    values = counts.double().flatten()[::step]
    bright = values > 0.9 * values.quantile(0.995)
    full = values[bright].median()
    even = ((values[bright] / full - 1).abs() < 0.02).double().mean() > 0.6
    return float(full), float(bright.double().mean()), bool(even)
