"""Trilinear resampling of volumes, a few planes at a time.

What ``SpatialResample`` of MONAI gives, in half its time: that multiplies every voxel of the result with a matrix, to
learn where it lies, and holds several times the volume in positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_PLANES = 8
"""Sampling positions are made for so many planes at once."""


def resampled(
    volume: Float[Tensor, "channels i j k"],
    affine: Float[np.ndarray, "4 4"],
    target: Float[np.ndarray, "4 4"],
    shape: Sequence[int],
    outside: float = 0.0,
) -> Float[Tensor, "channels x y z"]:
    """A volume on other voxels, trilinear.

    Args:
        volume: (channels, I, J, K) in float32.
        affine: of its voxels.
        target: affine of the others, in the same space.
        shape: (X, Y, Z), how many there are along each axis.
        outside: the value where the volume does not reach.

    Returns:
        (channels, X, Y, Z), without metadata.
    """
    # index there → index here → −1 … 1 between the outermost voxels' centres, last axis first, as grid_sample has it
    size = np.maximum(np.array(volume.shape[1:]) - 1, 1)
    step = np.linalg.solve(affine, target)[:3] * (2 / size)[:, None]
    step[:, 3] -= 1
    x, y, z, first_voxel = torch.from_numpy(step[::-1].T.copy()).to(volume)
    counts = [torch.arange(n, device=volume.device, dtype=volume.dtype) for n in shape]
    plane = counts[1][:, None, None] * y + (counts[2][:, None] * z + first_voxel)
    values = volume - outside  # grid_sample has zero outside
    result = volume.new_empty((volume.shape[0], *shape))
    for planes, part in zip(counts[0].split(_PLANES), result.split(_PLANES, dim=1), strict=True):
        where = planes[:, None, None, None] * x + plane
        part.copy_(F.grid_sample(values[None], where[None], "bilinear", "zeros", align_corners=True)[0])
    return result.add_(outside)
