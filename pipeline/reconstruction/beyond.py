"""What of a body lies beyond the field of view, as far as its radiographs tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry

_DEPTHS_MM = (0.0, 22.5, 67.5)
"""Of the layers before each face, from the face outwards."""

_LARGEST_GRID = 64
"""Voxels along an edge of a face: what lies beyond it is a guess, and is projected a dozen times."""

_AIR_HU = -900.0

_SWEEPS = 200


def projected_beyond(
    volume: Float[Tensor, "1 n n n"],
    missing: Float[Tensor, "views h w"],
    structures: Callable[[Tensor], Tensor],
    geometry: BiplanarGeometry,
) -> Float[Tensor, "views h w"]:
    """Line integrals of what continues a volume beyond its six faces, as much of it as radiographs show.

    X-rays see arms, shoulders and a belly that the field of view cuts off; in the volume's own radiographs they lack.
    So each face is continued outwards as it is, in two layers, and how much of each is there, nothing to all, is found
    by the least squares of structures with bounds.

    Args:
        volume: HU on the geometry's cube.
        missing: line integrals of the radiographs given, less the volume's own.
        structures: of radiographs, a linear function; what is compared.
        geometry: of both.
    """
    shown = [
        render_drr(layer, geometry, affine=affine, isocentre=(0.0, 0.0, 0.0))
        for layer, affine in _layers(volume, geometry)
    ]
    if not shown:
        return torch.zeros_like(missing)
    rows = torch.stack([structures(one).flatten() for one in shown]).double().cpu().numpy()
    wanted = structures(missing).flatten().double().cpu().numpy()
    there = _least_squares_of_shares(rows @ rows.T, rows @ wanted)
    return torch.tensordot(torch.from_numpy(there).to(missing), torch.stack(shown), dims=1)


def _least_squares_of_shares(normal: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Minimum of x·normal·x / 2 − target·x over 0 ≤ x ≤ 1, one unknown after the other (projected Gauss-Seidel).

    SciPy's ``lsq_linear`` gives the same for a quarter of a second of imports.
    """
    shares = np.zeros(len(target))
    for _ in range(_SWEEPS):
        for i, row in enumerate(normal):
            shares[i] = np.clip(shares[i] + (target[i] - row @ shares) / max(row[i], 1e-20), 0, 1)
    return shares


def _layers(volume: Tensor, geometry: BiplanarGeometry) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Layers before the faces that show more than air, (1, i, j, k) in HU, with their affines."""
    factor = max(geometry.grid.size // _LARGEST_GRID, 1)
    grid = geometry.grid.resized(geometry.grid.size // factor)
    coarse = F.avg_pool3d(volume, factor)
    ends = [round(depth / grid.spacing_mm) for depth in _DEPTHS_MM]
    for axis in range(3):
        for first in (True, False):
            face = coarse.narrow(axis + 1, 0 if first else grid.size - 1, 1)
            if not (face > _AIR_HU).any():
                continue
            for near, far in pairwise(ends):
                if near == far:
                    continue
                shape = list(face.shape)
                shape[axis + 1] = far - near
                affine = grid.affine()
                affine[:3, 3] += affine[:3, axis] * (-far if first else grid.size + near)
                yield face.expand(shape).contiguous(), affine
