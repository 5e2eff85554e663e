"""Radiographs of crude chests that differ as patients do."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid

GRID = VolumeGrid(40, 400.0)
GEOMETRY = BiplanarGeometry.from_angles(GRID, detector_size=64)


def phantom(seed: int) -> Tensor:
    """HU (1, 40, 40, 40): trunk with shoulders, two lungs, spine behind, heart to the left, abdomen below."""
    rng = np.random.default_rng(seed)
    vary = lambda: rng.uniform(0.9, 1.1)  # noqa: E731
    x, y, z = (GRID.centres() + torch.from_numpy(rng.uniform(-10, 10, 3)).float()).unbind(-1)
    size = vary()
    x, y, z = x / (size * vary()), y / (size * vary()), z / (size * vary())
    hu = torch.full(x.shape, -1000.0)
    hu[(x / (150 + 25 * (z > 110))) ** 2 + (y / 105) ** 2 < 1] = 30
    hu[(z > 150) & ((x / 60) ** 2 + (y / 60) ** 2 > 1)] = -1000
    for side in (-1, 1):
        lung = ((x - 72 * side) / 55) ** 2 + ((y + 5) / 80) ** 2 + ((z - 20) / 120) ** 2 < 1
        hu[lung & (z > -80 + 0.3 * (y + 80))] = -800 * vary()
    hu[((x + 30) / 55) ** 2 + ((y - 40) / 45) ** 2 + ((z + 20) / 60) ** 2 < 1] = 40
    hu[(x.abs() < 18) & ((y + 75).abs() < 18)] = 450 * vary()
    hu[z.abs() > 175] = -1000
    return hu[None]


@functools.cache
def phantom_radiographs(count: int, first: int = 0) -> Tensor:
    """Scaled line integrals (count, 2, 64, 64) of patients ``first`` and on."""
    images = [render_drr(phantom(seed), GEOMETRY, GRID.affine()) for seed in range(first, first + count)]
    return torch.stack(images) / LINE_INTEGRAL_SCALE
