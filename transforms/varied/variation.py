"""How a patient that is made of a CT may differ from it, and one such difference, drawn.

Real anatomy, varied: rotation and scale of each axis, a smooth random displacement, a part of the way towards another
patient, the attenuation of lung, fat, muscle and bone, and where the scan ends. It does not replace patients.

There is no mirroring. A mirrored patient has the heart on the right and the liver on the left; one in ten thousand
people is so, and a network that has seen half of them so can no longer tell the sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from torch import Tensor

from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.graft import Graft
from drr2ct.transforms.volume import HU_WINDOW

_TISSUE_KNOTS_HU = np.array([-1024.0, -980.0, -850.0, -100.0, 50.0, 400.0, 3071.0])
_TISSUE_SPREAD_HU = np.array([0.0, 0.0, 40.0, 20.0, 15.0, 80.0, 0.0])


@dataclass(frozen=True)
class Variation:
    """How far what is made of a CT differs from it.

    Args:
        rotation_deg: largest rotation about each axis.
        scale: largest relative change of size, drawn for each axis.
        shift_mm: largest distance of the isocentre from the middle of the scan, along each axis.
        deformation: largest local displacement, as a fraction of the scan's extent.
        control_points: of the displacement field, along each axis.
        tissue: multiplies the HU variation of lung (±40), fat (±20), muscle (±15) and bone (±80).
        coverage: largest part of the scan's extent that is cut off, at either end of each axis: scans end elsewhere.
        towards: largest part of the way that is gone towards another patient.
        graft: how often, from 0 to 1, a part of another patient takes the place of the patient's own.

    Raises:
        InputError: if the scale or the coverage would leave nothing, or the way or the chance is no part of one.
    """

    rotation_deg: float = 6.0
    scale: float = 0.12
    shift_mm: float = 12.0
    deformation: float = 0.05
    control_points: int = 5
    tissue: float = 1.0
    coverage: float = 0.0
    towards: float = 0.0
    graft: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 0.4:
            raise InputError(f"scale is {self.scale:g}; nobody differs by more than 0.4, and less than 0 is nothing.")
        if not 0 <= self.coverage < 0.5:
            raise InputError(f"coverage is {self.coverage:g}; at either end less than 0.5 of a scan can be cut off.")
        if not 0 <= self.towards <= 1:
            raise InputError(f"towards is {self.towards:g}; give a part of the way to another patient, from 0 to 1.")
        if not 0 <= self.graft <= 1:
            raise InputError(f"graft is {self.graft:g}; give how often a part is another patient's, from 0 to 1.")


WIDE = Variation(
    rotation_deg=8.0, scale=0.2, shift_mm=20.0, deformation=0.08, control_points=6, tissue=1.5, coverage=0.12
)
"""Wide enough to learn other patients from: a scan that is left out differs in build, and in where it ends."""

TOWARDS = replace(WIDE, scale=0.1, deformation=0.04, towards=1.0)
"""Between patients: what people differ by comes from other patients, so that there is less bending at random."""


@dataclass(frozen=True)
class Draw:
    """One variation, drawn.

    Args:
        matrix: of the affine part.
        displacement: (3, c, c, c) at control points, as a fraction of the scan's extent.
        shift_mm: of the isocentre.
        tissue_hu: added at the knots of the tissue curve.
        cut: (2, 3) parts of the scan that are cut off, at the lower and upper end of x, y, z.
        other: a number from 0 to 1 that chooses the other patient.
        towards: the part of the way towards it.
        graft: what is taken from another patient, if anything.
    """

    matrix: Float[np.ndarray, "3 3"]
    displacement: Float[np.ndarray, "3 c c c"]
    shift_mm: Float[np.ndarray, " 3"]
    tissue_hu: Float[np.ndarray, " knots"]
    cut: Float[np.ndarray, "2 3"]
    other: float = 0.0
    towards: float = 0.0
    graft: Graft | None = None

    @classmethod
    def nothing(cls) -> Draw:
        """The CT as it is."""
        return cls(np.eye(3), np.zeros((3, 2, 2, 2)), np.zeros(3), np.zeros(len(_TISSUE_KNOTS_HU)), np.zeros((2, 3)))

    @classmethod
    def of(cls, variation: Variation, random: np.random.RandomState) -> Draw:
        """Draw evenly within a variation's limits."""
        angles = random.uniform(-1, 1, 3) * variation.rotation_deg
        scale = 1 + random.uniform(-1, 1, 3) * variation.scale
        size = (3, *(variation.control_points,) * 3)
        return cls(
            matrix=Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(scale),
            displacement=random.uniform(-1, 1, size) * variation.deformation,
            shift_mm=random.uniform(-1, 1, 3) * variation.shift_mm,
            tissue_hu=random.uniform(-1, 1, len(_TISSUE_KNOTS_HU)) * _TISSUE_SPREAD_HU * variation.tissue,
            cut=random.uniform(0, 1, (2, 3)) * variation.coverage,
            other=float(random.uniform()),
            towards=float(random.uniform()) * variation.towards,
            graft=Graft.of(random) if variation.graft and random.uniform() < variation.graft else None,
        )

    def gentler(self) -> Draw:
        """Half the displacement, half the way."""
        return replace(self, displacement=self.displacement / 2, towards=self.towards / 2)


def with_other_tissue(ct: MetaTensor, tissue_hu: Float[np.ndarray, " knots"]) -> Float[Tensor, "1 i j k"]:
    """HU (whole numbers within the window), and what becomes of each by a piecewise linear curve; float32."""
    levels = np.arange(HU_WINDOW[0], HU_WINDOW[1] + 1)
    curve = np.interp(levels, _TISSUE_KNOTS_HU, _TISSUE_KNOTS_HU + tissue_hu).clip(*HU_WINDOW).astype(np.float32)
    values = ct.as_tensor()
    if values.device.type == "cpu":  # NumPy takes half of torch's time
        return torch.from_numpy(np.take(curve, values.numpy() - int(HU_WINDOW[0]), mode="clip"))
    return torch.from_numpy(curve).to(values.device)[values.long() - int(HU_WINDOW[0])]
