"""Trilinear resampling of volumes by MONAI, a few planes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from torch import Tensor

_PLANES = 16
"""Sampling positions are made for so many planes at once: those of all of them are several times the volume."""


def resampled(
    volume: Float[Tensor, "channels i j k"],
    affine: Float[np.ndarray, "4 4"],
    target: Float[np.ndarray, "4 4"],
    shape: Sequence[int],
) -> Float[Tensor, "channels x y z"]:
    """A volume on other voxels, trilinear, zero where it does not reach.

    Args:
        volume: (channels, I, J, K).
        affine: of its voxels.
        target: affine of the others, in the same space.
        shape: (X, Y, Z), how many there are along each axis.

    Returns:
        (channels, X, Y, Z) in float32, without metadata.
    """
    resample = SpatialResample(mode="bilinear", padding_mode="zeros", align_corners=True, dtype=np.float32)
    source = MetaTensor(volume, affine=torch.from_numpy(np.asarray(affine, dtype=np.float64)))
    result = volume.new_empty((volume.shape[0], *shape), dtype=torch.float32)
    first = 0
    # even parts: PyTorch and MONAI do not agree where a part of one plane lies
    for part in result.tensor_split(-(-shape[0] // _PLANES), dim=1):
        begin = np.eye(4)
        begin[0, 3] = first
        placed: Any = resample(source, dst_affine=torch.from_numpy(target @ begin), spatial_size=part.shape[1:])
        part.copy_(placed)
        first += part.shape[1]
    return result
