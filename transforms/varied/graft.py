"""A part of another patient in the place of a patient's own: what lies beyond a plane, registered to where it belongs.

So come together a heart and ribs, lungs and fat, a chest and arms or a couch that no CT has together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drr2ct.transforms.varied.kept import Scan

_MIDDLE = (0.25, 0.75)  # parts of the box between which a plane passes
_BLEND_MM = (20.0, 80.0)
_SCAN_END_MM = 20.0  # over which the other patient fades out where its scan ends


@dataclass(frozen=True)
class Graft:
    """What is taken from another patient, drawn.

    Args:
        other: a number from 0 to 1 that chooses the other patient.
        normal: of the plane, a unit vector towards what is taken.
        through: where the plane passes, in parts of the scan's box along x, y and z.
        blend_mm: distance over which one patient becomes the other.
    """

    other: float
    normal: tuple[float, float, float]
    through: tuple[float, float, float]
    blend_mm: float

    @classmethod
    def of(cls, random: np.random.RandomState) -> Graft:
        """Draw evenly: any direction, through the middle half of the box."""
        direction = random.standard_normal(3)
        x, y, z = (direction / np.linalg.norm(direction)).tolist()
        i, j, k = random.uniform(*_MIDDLE, 3).tolist()
        return cls(float(random.uniform()), (x, y, z), (i, j, k), float(random.uniform(*_BLEND_MM)))

    def share(
        self, points: Float[Tensor, "3 a b c"], low: Float[np.ndarray, " 3"], high: Float[np.ndarray, " 3"]
    ) -> Float[Tensor, "a b c"]:
        """How much of what stands at points (mm) is the other patient's: 0 before the plane, 1 beyond it.

        Args:
            points: in mm.
            low: corner of the scan's box.
            high: the corner across from it.
        """
        middle = torch.as_tensor(low + np.array(self.through) * (high - low), dtype=torch.float32, device=points.device)
        normal = torch.tensor(self.normal, device=points.device)
        distance = torch.einsum("a,axyz->xyz", normal, points - middle[:, None, None, None])
        return (distance / self.blend_mm + 0.5).clamp(0, 1)


def scanned(positions: Float[Tensor, "3 a b c"], scan: Scan) -> Float[Tensor, "a b c"]:
    """Whether a scan shows what is at positions (mm from its centre): 0 outside, 1 two centimetres within its ends."""
    half = torch.tensor(scan.extent, device=positions.device)[:, None, None, None] / 2
    return ((half - positions.abs()) / _SCAN_END_MM).amin(dim=0).clamp(0, 1)
