"""Random variation of radiographs alone; the truth stays as it is.

MONAI's ``RandShiftIntensityd`` and ``RandScaleIntensityd`` vary exposure and beam quality, :class:`RandQuantumNoised`
adds counting noise. What varies the patient is in :mod:`~drr2ct.transforms.variation`.

There is no mirroring. A mirrored radiograph beside an unmirrored CT denies the geometry that the network reconstructs
by.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE, transmission_to_line_integral
from drr2ct.transforms.validation import InputError


class RandQuantumNoised(RandomizableTransform, MapTransform):
    """Counting noise of the detector: Poisson counts of the photons that come through, and back to line integrals.

    Args:
        keys: of radiographs, in scaled line integrals.
        photons: smallest and largest number of photons per pixel without a patient, drawn evenly in its logarithm.
        prob: of noise on a sample.

    Raises:
        InputError: for numbers of photons that are no range above 1.
    """

    def __init__(
        self, keys: KeysCollection = "image", photons: tuple[float, float] = (1e4, 1e6), prob: float = 1.0
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
            line_integrals = sample[key] * LINE_INTEGRAL_SCALE
            generator = torch.Generator(line_integrals.device).manual_seed(self._seed)
            counts = torch.poisson(self._photons * torch.exp(-line_integrals), generator)
            noisy = transmission_to_line_integral(counts, self._photons, 0.5)
            sample[key] = noisy / LINE_INTEGRAL_SCALE
        return sample
