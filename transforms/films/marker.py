"""Markers: letters of lead beside the patient, or written into the picture afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from monai.config import KeysCollection
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from drr2ct.transforms.films.shared import RandFilmEffectd, checked_range
from drr2ct.transforms.geometry import BiplanarGeometry, View

TEXTS = ("L", "R", "S", "D", "PA", "LAT", "BEDSIDE", "L STANDING")
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Marker:
    """A text on a detector.

    Args:
        text: what is written.
        centre_mm: its centre, from the detector's: downwards and to the right.
        height_mm: of a capital letter.
        opacity: from 0, nothing, to 1, nothing is seen through it.
        framed: on a plate of its own, as letters of lead mostly are.
    """

    text: str
    centre_mm: tuple[float, float]
    height_mm: float = 20.0
    opacity: float = 1.0
    framed: bool = False


def apply_marker(
    line_integrals: Float[Tensor, "rows columns"], marker: Marker, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """The radiograph with a marker as bright (as dense) as its densest part; what lies outside is cut off.

    Args:
        line_integrals: of a view.
        marker: what and where.
        pitch_mm: edge length of a pixel.
    """
    shape = (int(line_integrals.shape[0]), int(line_integrals.shape[1]))
    mask = torch.from_numpy(_drawn(marker, shape, pitch_mm)).to(line_integrals)
    return torch.lerp(line_integrals, line_integrals.max(), mask * marker.opacity)


@lru_cache(maxsize=8)  # a series of conditions draws the same one for every patient
def _drawn(marker: Marker, shape: tuple[int, int], pitch_mm: float) -> Float[np.ndarray, "rows columns"]:
    """From 0 to 1."""
    scale = _OVERSAMPLING / pitch_mm
    font = ImageFont.load_default(size=max(marker.height_mm * scale / 0.72, 1.0))  # a capital's share of the font
    left, top, right, bottom = font.getbbox(marker.text)
    border = int(0.25 * marker.height_mm * scale) if marker.framed else 0
    width, height = int(right - left) + 2 * border, int(bottom - top) + 2 * border
    plate = Image.new("L", (max(width, 1), max(height, 1)), 110 if marker.framed else 0)
    ImageDraw.Draw(plate).text((border - left, border - top), marker.text, fill=255, font=font)
    canvas = Image.new("L", (shape[1] * _OVERSAMPLING, shape[0] * _OVERSAMPLING))
    corner = (
        canvas.width / 2 + marker.centre_mm[1] * scale - width / 2,
        canvas.height / 2 + marker.centre_mm[0] * scale - height / 2,
    )
    canvas.paste(plate, (round(corner[0]), round(corner[1])))
    small = canvas.resize((shape[1], shape[0]), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


class RandFilmMarkerd(RandFilmEffectd):
    """One marker in each view, near its edge; see :func:`apply_marker`.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        height_mm: smallest and largest height of a letter.
        within_mm: height and width of the part of the detector that the film shows, so that the marker lies in it.
        prob: of markers on a sample.

    Raises:
        InputError: for what is no range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        height_mm: Sequence[float] = (8.0, 25.0),
        within_mm: Sequence[float] = (340.0, 320.0),
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.height_mm = checked_range("height_mm", height_mm)
        self.within_mm = (float(within_mm[0]), float(within_mm[1]))

    def draw(self, view: View) -> Marker:
        """What, where and how bright: mostly above, rarely below, at one of the sides."""
        text = TEXTS[self.R.randint(len(TEXTS))]
        height = float(self.R.uniform(*self.height_mm)) / (1.0 if len(text) == 1 else 2.0)
        down = self.R.uniform(-0.48, -0.2) if self.R.uniform() < 0.8 else self.R.uniform(0.2, 0.48)
        across = self.R.uniform(0.25, 0.48) * self.R.choice([-1, 1])
        centre = (float(down * self.within_mm[0]), float(across * self.within_mm[1]))
        return Marker(text, centre, height, float(self.R.uniform(0.4, 1.0)), bool(self.R.uniform() < 0.3))

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: Marker
    ) -> Float[Tensor, "rows columns"]:
        """With the marker."""
        return apply_marker(line_integrals, drawn, view.pixel_pitch_mm)
