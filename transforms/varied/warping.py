"""One smooth map of space, and a CT resampled by it.

A map leads from where something comes to stand (mm) to where it is taken from (mm). It is evaluated at points some
centimetres apart and interpolated between them; the CT itself is interpolated once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor

PointMap = Callable[[Float[Tensor, "3 a b c"]], Float[Tensor, "3 a b c"]]
"""Points (mm) → points (mm)."""

Coordinates = Sequence[float] | Float[np.ndarray, " 3"]

_SLAB = 2**20  # voxels resampled at a time: their coordinates stay small


def grid_points(
    first_mm: Coordinates, last_mm: Coordinates, counts: Sequence[int], device: torch.device | None = None
) -> Float[Tensor, "3 a b c"]:
    """Coordinates of evenly spaced points of a box, its corners included."""
    lines = [
        torch.linspace(float(low), float(high), count, dtype=torch.float64)
        for low, high, count in zip(first_mm, last_mm, counts, strict=True)
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij")).to(device, torch.float32)


def smallest_jacobian(positions: Float[Tensor, "3 a b c"], step_mm: Sequence[float]) -> float:
    """Smallest determinant of a map's Jacobian, from its values at points so far apart; below 0 it folds."""
    columns = []
    for axis in range(3):
        ahead = positions.narrow(1 + axis, 1, positions.shape[1 + axis] - 1)
        behind = positions.narrow(1 + axis, 0, positions.shape[1 + axis] - 1)
        column = (ahead - behind) / step_mm[axis]
        for other in {0, 1, 2} - {axis}:
            column = column.narrow(1 + other, 0, column.shape[1 + other] - 1)
        columns.append(column)
    return float(torch.linalg.det(torch.stack(columns, dim=1).permute(2, 3, 4, 0, 1)).min())


def cubic_weights(positions: Float[Tensor, " n"], points: int) -> Float[Tensor, "n points"]:
    """Keys' cubic interpolation (a = −1/2; IEEE Trans. ASSP 29:1153, 1981) from values at 0, 1, … to positions.

    It passes through the values, and its slope is continuous. Beyond the ends the last value goes on.
    """
    inside = positions.clamp(0, points - 1)
    away = (inside[:, None] - torch.arange(-1, points + 1, device=positions.device)).abs()
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weights = torch.where(away <= 1, near, torch.where(away < 2, far, torch.zeros(())))
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1]


def resample(
    volume: Real[Tensor, "1 i j k"], indices: Float[Tensor, "3 a b c"], size: Sequence[int]
) -> Float[Tensor, "1 x y z"]:
    """A volume seen through a map; trilinear, its border values going on outside.

    Args:
        volume: any real type.
        indices: where to take from, in voxel indices of the volume, at evenly spaced points from the centre of the
            result's first voxel to that of its last, along each axis; linear between them.
        size: of the result, in voxels.
    """
    # grid_sample counts from -1 to 1 between the outermost voxels' centres; an axis of one voxel has no choice
    half = torch.tensor([max(n - 1, 1) / 2 for n in volume.shape[1:]], device=volume.device)[:, None, None, None]
    where = indices / half - 1
    weights = [_linear_weights(where.shape[1 + axis], n).to(volume.device) for axis, n in enumerate(size)]
    where = torch.einsum("axyz,jy,kz->xjka", where.flip(0), weights[1], weights[2])  # grid_sample wants z, y, x
    where = where.reshape(len(where), -1)
    source = volume[None].float()
    result = torch.empty((1, *size), device=volume.device)
    thickness = max(1, _SLAB // (size[1] * size[2]))
    for start in range(0, size[0], thickness):
        part = slice(start, start + thickness)
        grid = (weights[0][part] @ where).view(1, -1, size[1], size[2], 3)
        result[:, part] = F.grid_sample(source, grid, "bilinear", "border", align_corners=True)[0]
    return result


def _linear_weights(points: int, size: int) -> Float[Tensor, "size points"]:
    """Linear interpolation from evenly spaced points to voxels, ends on ends."""
    if points == 1 or size == 1:
        return torch.full((size, points), 1 / points)
    positions = torch.linspace(0, points - 1, size, dtype=torch.float64)
    return (1 - (positions[:, None] - torch.arange(points)).abs()).clamp(min=0).float()
