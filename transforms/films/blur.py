"""Blur: the detector's and the focal spot's, the same in all directions, and the patient's motion, along one.

Detectors count intensities, so these are blurred, not line integrals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.config import KeysCollection
from torch import Tensor

from drr2ct.transforms.films.shared import RandFilmEffectd, checked_range, smoothed
from drr2ct.transforms.geometry import BiplanarGeometry, View

_SMALLEST_INTENSITY = 1e-30  # of the unattenuated beam: a line integral of 69


def apply_detector_blur(
    line_integrals: Float[Tensor, "rows columns"], sigma_mm: float, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """Line integrals of intensities under a Gaussian.

    Args:
        line_integrals: of a view.
        sigma_mm: standard deviation on the detector.
        pitch_mm: edge length of a pixel.
    """
    intensity = smoothed(torch.exp(-line_integrals), sigma_mm, pitch_mm)
    return -torch.log(intensity.clamp(min=_SMALLEST_INTENSITY))


def apply_motion_blur(
    line_integrals: Float[Tensor, "rows columns"], length_mm: float, direction_deg: float, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """Line integrals of intensities averaged along a straight path.

    Args:
        line_integrals: of a view.
        length_mm: of the path on the detector.
        direction_deg: of the path; 0 is along the rows, 90 along the columns.
        pitch_mm: edge length of a pixel.
    """
    kernel = _path(length_mm / pitch_mm, math.radians(direction_deg)).to(line_integrals)
    reach = kernel.shape[0] // 2
    intensity = F.pad(torch.exp(-line_integrals)[None, None], [reach] * 4, mode="replicate")
    return -torch.log(F.conv2d(intensity, kernel[None, None])[0, 0].clamp(min=_SMALLEST_INTENSITY))


def _path(length: float, direction: float) -> Float[Tensor, "n n"]:
    """Time spent in each pixel by a point that crosses the middle one at even speed; points between are shared."""
    reach = math.ceil(length / 2)
    count = max(1, math.ceil(4 * length))
    steps = ((torch.arange(count) + 0.5) / count - 0.5) * length
    rows, columns = steps * math.sin(direction), steps * math.cos(direction)
    pixels = torch.arange(-reach, reach + 1)
    shares = [(1 - (pixels - place[:, None]).abs()).clamp(min=0) for place in (rows, columns)]
    kernel = torch.einsum("si,sj->ij", *shares)
    return kernel / kernel.sum()


class RandDetectorBlurd(RandFilmEffectd):
    """Blur of detector, focal spot and resampling, each view its own; see :func:`apply_detector_blur`.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        sigma_mm: smallest and largest standard deviation. Detectors have some 0.1 mm, a focal spot of 1.2 mm adds
            0.1 mm at a magnification of 1.2, pictures made small for the web far more.
        prob: of blur on a sample.

    Raises:
        InputError: for what is no range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        sigma_mm: Sequence[float] = (0.1, 2.5),
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.sigma_mm = checked_range("sigma_mm", sigma_mm)

    def draw(self, view: View) -> float:
        """Standard deviation."""
        return float(self.R.uniform(*self.sigma_mm))

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: float
    ) -> Float[Tensor, "rows columns"]:
        """Blurred."""
        return apply_detector_blur(line_integrals, drawn, view.pixel_pitch_mm)


class RandMotionBlurd(RandFilmEffectd):
    """Motion of the patient during the exposure, each view its own; see :func:`apply_motion_blur`.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        length_mm: shortest and longest path. The heart's wall moves by up to 0.1 m/s, an exposure takes 5 to 50 ms.
        prob: of motion in a sample.

    Raises:
        InputError: for what is no range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        length_mm: Sequence[float] = (0.0, 5.0),
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.length_mm = checked_range("length_mm", length_mm)

    def draw(self, view: View) -> tuple[float, float]:
        """Length and direction."""
        return float(self.R.uniform(*self.length_mm)), float(self.R.uniform(0, 180))

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: tuple[float, float]
    ) -> Float[Tensor, "rows columns"]:
        """Blurred along a path."""
        return apply_motion_blur(line_integrals, *drawn, view.pixel_pitch_mm)
