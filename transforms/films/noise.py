r"""Counting noise: a pixel that :math:`N e^{-p}` photons reach counts a Poisson number of them.

Its line integral then varies by about :math:`1/\sqrt{N e^{-p}}`. A beam of the standard quality RQA5 brings some 30,000
photons per mm² for 1 µGy (IEC 62220-1), and a chest film needs a few µGy behind the patient; so a pixel of 1 mm² sees
10⁵ there, and e^p times that beside the patient.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE, transmission_to_line_integral
from drr2ct.transforms.validation import InputError


def apply_quantum_noise(line_integrals: Float[Tensor, "*shape"], photons: float, seed: int) -> Float[Tensor, "*shape"]:
    """Poisson counts of the photons that come through, and back to line integrals.

    Args:
        line_integrals: of any shape.
        photons: per pixel without a patient. A pixel that counts none is taken to have counted half of one.
        seed: of the counts.
    """
    generator = torch.Generator(line_integrals.device).manual_seed(seed)
    counts = torch.poisson(photons * torch.exp(-line_integrals), generator)
    return transmission_to_line_integral(counts, photons, 0.5)


class RandQuantumNoised(RandomizableTransform, MapTransform):
    """Counting noise of the detector, of as many photons in every view; see :func:`apply_quantum_noise`.

    Args:
        keys: of radiographs, in scaled line integrals.
        photons: smallest and largest number of photons per pixel without a patient, drawn evenly in its logarithm.
        prob: of noise on a sample.

    Raises:
        InputError: for numbers of photons that are no range above 1.
    """

    def __init__(
        self, keys: KeysCollection = "image", photons: Sequence[float] = (1e4, 1e6), prob: float = 1.0
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not 1 < photons[0] <= photons[1]:
            raise InputError(f"photons {photons} are no range of numbers above 1; give the smaller first.")
        self.photons = (float(photons[0]), float(photons[1]))

    def randomize(self, data: Any = None) -> None:
        """Draw whether to add noise, how much, and its seed."""
        super().randomize(None)
        self._photons = float(np.exp(self.R.uniform(*np.log(self.photons))))
        self._seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with noisier radiographs, or as it was."""
        sample = dict(data)
        self.randomize()
        if not self._do_transform:
            return sample
        for key in self.key_iterator(sample):
            noisy = apply_quantum_noise(sample[key] * LINE_INTEGRAL_SCALE, self._photons, self._seed)
            sample[key] = noisy / LINE_INTEGRAL_SCALE
        return sample
