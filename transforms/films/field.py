"""The field: cassette and collimator end before the detector of DRRs does, and what lies outside is not known.

One convention, for films that are drawn here and for those that are read: what a film does not cover is filled with its
nearest covered pixel (``extend_from_edge``). Filled with 0, the picture would say that there is air, with an edge
where the cassette ends; nothing in a patient has such an edge, and a back-projected edge is a wall through the volume.
Extended, air stays air and a body that goes on goes on; that rows or columns repeat exactly tells a network that
nothing was seen there. No mask is passed beside the radiographs: networks take them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from monai.config import KeysCollection
from torch import Tensor

from drr2ct.transforms.detector import extend_from_edge
from drr2ct.transforms.films.shared import RandFilmEffectd, checked_range
from drr2ct.transforms.geometry import BiplanarGeometry, View

CASSETTES_MM = ((430.0, 350.0), (350.0, 430.0), (430.0, 430.0))
"""Height and width of what chest films are taken on: 35×43 cm upright or across, and 43×43 cm detectors."""


@dataclass(frozen=True)
class Field:
    """A rectangle on a detector.

    Args:
        size_mm: height and width.
        centre_mm: its centre, from the detector's: downwards and to the right.
        turned_deg: about its centre.
    """

    size_mm: tuple[float, float]
    centre_mm: tuple[float, float] = (0.0, 0.0)
    turned_deg: float = 0.0

    def covered(self, view: View) -> Bool[Tensor, "rows columns"]:
        """The pixels of a view's detector whose centre lies within."""
        rows, columns = (
            (torch.arange(count) - (count - 1) / 2) * view.pixel_pitch_mm - middle
            for count, middle in zip(view.detector_size, self.centre_mm, strict=True)
        )
        angle = math.radians(self.turned_deg)
        down = rows[:, None] * math.cos(angle) - columns * math.sin(angle)
        across = rows[:, None] * math.sin(angle) + columns * math.cos(angle)
        return (down.abs() <= self.size_mm[0] / 2) & (across.abs() <= self.size_mm[1] / 2)


class RandFilmFieldd(RandFilmEffectd):
    """Cassette and collimation, each view its own; see :class:`Field` and ``extend_from_edge``.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        centre_mm: by how much the field's centre is off along either axis, at most.
        collimation_mm: most that the collimator takes off each side of the cassette; mostly less.
        magnification: smallest and largest of films. Where that is known, a film is scaled so that the isocentre's
            plane keeps its size, and covers more of the geometry's detector than its own size says.
        turned_deg: by how much it is turned, at most.
        prob: of a field on a sample.

    Raises:
        InputError: for what is no range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        centre_mm: float = 20.0,
        collimation_mm: float = 40.0,
        magnification: Sequence[float] = (1.08, 1.2),
        turned_deg: float = 2.0,
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.centre_mm = centre_mm
        self.collimation_mm = collimation_mm
        self.magnification = checked_range("magnification", magnification, 1.0)
        self.turned_deg = turned_deg

    def draw(self, view: View) -> Field:
        """Cassette, collimation, and where they are."""
        scale = view.source_to_detector_mm / view.source_to_isocentre_mm / self.R.uniform(*self.magnification)
        cassette = scale * np.array(CASSETTES_MM[self.R.randint(len(CASSETTES_MM))])
        borders = self.collimation_mm * self.R.uniform(0, 1, (2, 2)) ** 2
        centre = self.R.uniform(-self.centre_mm, self.centre_mm, 2) + (borders[:, 0] - borders[:, 1]) / 2
        height, width = cassette - borders.sum(axis=1)
        turned = float(self.R.uniform(-self.turned_deg, self.turned_deg)) * (self.R.uniform() < 0.5)
        return Field((float(height), float(width)), (float(centre[0]), float(centre[1])), turned)

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: Field
    ) -> Float[Tensor, "rows columns"]:
        """Within the field, and extended from its edge."""
        return extend_from_edge(line_integrals, drawn.covered(view))
