"""What few training patients have: a mass in a lung, fluid at its base; drawn into a varied scan before it is rendered.

Shapes and densities are simple on purpose: they teach that a lung may hold something dense where the radiographs say
so, not what a disease looks like.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from drr2ct.transforms.body import TISSUE_HU, within_tissue
from drr2ct.transforms.validation import InputError

_MASS_HU = (0.0, 60.0)
_FLUID_HU = (0.0, 25.0)
_EDGE_MM = 2.0  # over which a mass or a level fades
_MENISCUS_MM = 15.0  # by which fluid stands higher where the lung ends
_LEAST_LUNG_MM3 = 200e3  # below, there is no lung to draw into


def lungs_of(hu: Float[Tensor, "x y z"]) -> Bool[Tensor, "x y z"]:
    """Air within the body: what is below −500 HU and has tissue on both sides along x, and along y."""
    return (hu < TISSUE_HU) & within_tissue(hu >= TISSUE_HU)


class RandPathologyd(Randomizable, MapTransform):
    """A mass or an effusion in some of the scans, in HU.

    A mass is an ellipsoid about a place in a lung, of soft tissue's density. Fluid fills one lung from below up to a
    level, as in a patient who stands, with a meniscus at the wall. Both take the place of lung only: ribs, heart and
    vessels stay. A scan without lungs stays as it is.

    Args:
        keys: of scans (1, X, Y, Z) in HU, with an affine that has the axes along x, y and z (RAS).
        mass_prob: of a mass.
        effusion_prob: of fluid, drawn independently.
        mass_mm: least and largest diameter of a mass.
        level_mm: least and largest height of the fluid above the lung's lowest place, where the meniscus is lowest.

    Raises:
        InputError: for sizes that are not positive and in order, or a probability that is none.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mass_prob: float = 0.1,
        effusion_prob: float = 0.1,
        mass_mm: tuple[float, float] = (10.0, 60.0),
        level_mm: tuple[float, float] = (20.0, 120.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        for name, (least, most) in (("mass_mm", mass_mm), ("level_mm", level_mm)):
            if not 0 < least <= most:
                raise InputError(f"{name} {least:g} to {most:g} must be above 0, the smaller first.")
        for name, prob in (("mass_prob", mass_prob), ("effusion_prob", effusion_prob)):
            if not 0 <= prob <= 1:
                raise InputError(f"{name} {prob:g} is not between 0 and 1.")
        self.probabilities = mass_prob, effusion_prob
        self.mass_mm, self.level_mm = mass_mm, level_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw anew, and change every key alike."""
        item = dict(data)
        has_mass, has_fluid = self.R.uniform(size=2) < self.probabilities
        seed = int(self.R.randint(2**31))
        if not (has_mass or has_fluid):
            return item
        for key in self.key_iterator(item):
            scan = item[key]
            random = np.random.RandomState(seed)
            spacing = np.abs(np.diag(np.asarray(scan.affine))[:3])
            hu = scan.as_tensor()[0].clone()
            lungs = lungs_of(hu)
            if float(lungs.sum()) * spacing.prod() < _LEAST_LUNG_MM3:
                continue
            if has_mass:
                hu = _filled(hu, lungs, self._mass(lungs, spacing, random), random.uniform(*_MASS_HU))
            if has_fluid:
                hu = _filled(hu, lungs, self._fluid(lungs, spacing, random), random.uniform(*_FLUID_HU))
            item[key] = MetaTensor(hu[None], meta=dict(scan.meta))
        return item

    def _mass(self, lungs: Tensor, spacing: np.ndarray, random: np.random.RandomState) -> Tensor:
        """How much of each voxel is mass, (x, y, z) in [0, 1]."""
        places = lungs.nonzero()
        centre = places[int(random.randint(len(places)))].double().cpu().numpy()
        radii = random.uniform(*self.mass_mm) / 2 * random.uniform(0.7, 1.0, 3)
        squared = sum(
            _along(((torch.arange(n, device=lungs.device) - c) * s / r) ** 2, axis)
            for axis, (n, c, s, r) in enumerate(zip(lungs.shape, centre, spacing, radii, strict=True))
        )
        beyond = (torch.as_tensor(squared).sqrt() - 1) * float(radii.mean())
        return torch.sigmoid(-2 * beyond / _EDGE_MM)

    def _fluid(self, lungs: Tensor, spacing: np.ndarray, random: np.random.RandomState) -> Tensor:
        """How much of each voxel is below the fluid's level, on one side of the body."""
        x = lungs.sum(dim=(1, 2)).double()
        middle = float((x * torch.arange(len(x), device=x.device)).sum() / x.sum())
        side = torch.arange(len(x), device=x.device) < middle
        if random.uniform() < 0.5:
            side = ~side
        level = random.uniform(*self.level_mm)
        there = lungs & _along(side, 0)
        if not there.any():
            return torch.zeros(lungs.shape, device=lungs.device)
        heights = torch.arange(lungs.shape[2], device=lungs.device) * float(spacing[2])
        bottom = heights[there.any(dim=0).any(dim=0)].min()
        # from the lung's middle to its wall the level rises
        columns = there.any(dim=2).nonzero().double()
        away = sum(
            _along(((torch.arange(n, device=lungs.device) - c) / max(float(d), 1.0)) ** 2, axis)
            for axis, (n, c, d) in enumerate(
                zip(lungs.shape[:2], columns.mean(dim=0), 2 * columns.std(dim=0, correction=0), strict=True)
            )
        )
        rise = _MENISCUS_MM * torch.as_tensor(away).clamp(max=1)
        below = bottom + level + rise - _along(heights, 2)
        return torch.sigmoid(2 * below / _EDGE_MM) * _along(side, 0)


def _along(values: Tensor, axis: int) -> Tensor:
    """A line of values as a volume of one voxel along the other axes."""
    return values.reshape([-1 if other == axis else 1 for other in range(3)])


def _filled(hu: Tensor, lungs: Tensor, share: Tensor, value: float) -> Tensor:
    """That share of each of the lungs' voxels becomes ``value``."""
    return torch.where(lungs, hu + (value - hu) * share.to(hu), hu)
