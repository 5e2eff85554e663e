"""What the random changes of a film share: line integrals in, line integrals out, view by view.

A *film* is a radiograph as it comes out of a department, a DRR what is rendered from a CT. Each effect between the two
has a file of its own in this package: a plain function that applies it at a given strength, which training and the
robustness table share, and a random transform that draws the strength.

In the order in which they happen: where tube, detector and patient were (``pose``, ``breathing``), the patient's
motion during the exposure (``blur``), ``scatter``, counting ``noise``, the detector's blur (``blur``),
the console's processing, as far as reading does not undo it (``tone``, ``console``), the field (``field``), and what is
burned in (``marker``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.validation import InputError


class RandFilmEffectd(RandomizableTransform, MapTransform):
    """One effect on the radiographs of a sample, drawn for each view on its own.

    Args:
        keys: of radiographs (V, H, W) in scaled line integrals.
        geometry: the views, for the size of their pixels.
        prob: of the effect on a sample.
    """

    def __init__(self, keys: KeysCollection, geometry: BiplanarGeometry, prob: float) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.geometry = geometry

    @abstractmethod
    def draw(self, view: View) -> Any:
        """The effect's parameters for a view, from ``self.R``."""

    @abstractmethod
    def apply(self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: Any) -> Float[Tensor, "r c"]:
        """The effect with these parameters."""

    def randomize(self, data: Any = None) -> None:
        """Draw whether to change a sample, and how each view."""
        super().randomize(None)
        self._drawn = [self.draw(view) for view in self.geometry.views] if self._do_transform else []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with changed radiographs, or as it was."""
        sample = dict(data)
        self.randomize()
        if not self._do_transform:
            return sample
        for key in self.key_iterator(sample):
            changed = [
                self.apply(image * LINE_INTEGRAL_SCALE, view, drawn)
                for image, view, drawn in zip(sample[key], self.geometry.views, self._drawn, strict=True)
            ]
            sample[key] = torch.stack(changed) / LINE_INTEGRAL_SCALE
        return sample


def checked_range(name: str, bounds: Sequence[float], least: float = 0.0) -> tuple[float, float]:
    """The range a strength is drawn from.

    Raises:
        InputError: if it is not two finite numbers, the smaller first and not below ``least``.
    """
    low, high = (float(bound) for bound in bounds)
    if not (np.isfinite([low, high]).all() and least <= low <= high):
        raise InputError(f"{name} {tuple(bounds)} is no range from {least:g} upwards; give the smaller number first.")
    return low, high


def gaussian_weights(count: int, sigma: float, device: torch.device | None = None) -> Float[Tensor, "count count"]:
    """A Gaussian low pass along an axis as a matrix: its integral over each pixel, normalised over those that exist.

    A product of matrices, not a convolution: oneDNN would keep a compiled primitive for every width that is drawn.

    Args:
        count: pixels along the axis.
        sigma: in pixels; 0 changes nothing.
        device: of the result.
    """
    if sigma <= 0:
        return torch.eye(count, device=device)
    place = torch.arange(count, dtype=torch.float32, device=device)
    edges = torch.erf((place[:, None] - torch.arange(count + 1, device=device) + 0.5) / (2**0.5 * sigma))
    weights = edges[:, :-1] - edges[:, 1:]
    return weights / weights.sum(dim=1, keepdim=True)


def smoothed(
    images: Float[Tensor, "*images rows columns"], sigma_mm: float, pitch_mm: float
) -> Float[Tensor, "*images rows columns"]:
    """Images under a Gaussian of this width."""
    rows, columns = images.shape[-2:]
    down = gaussian_weights(rows, sigma_mm / pitch_mm, images.device)
    across = down if rows == columns else gaussian_weights(columns, sigma_mm / pitch_mm, images.device)
    return down @ images @ across.T
