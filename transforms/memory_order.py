"""Passes over large volumes along their memory: readers differ in the order that they leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch import Tensor


def slowest_first(values: Tensor) -> list[int]:
    """The axes, that of the longest steps in memory first."""
    return sorted(range(values.ndim), key=values.stride, reverse=True)


def in_memory_order(values: Tensor) -> Tensor:
    """A view with its slowest axis first."""
    return values.permute(slowest_first(values))


def value_range(values: Tensor) -> tuple[float, float]:
    """The least and the greatest value, any shape; NaN for both if there is one."""
    low, high = torch.aminmax(in_memory_order(values))
    return float(low), float(high)


def block_means(volume: Float[Tensor, "1 i j k"], edges: Sequence[int]) -> Float[Tensor, "1 a b c"]:
    """Means over blocks of voxels; what is left over at the end of an axis is left out.

    Args:
        volume: of any layout in memory.
        edges: of a block, in voxels, along the three axes; none longer than the volume's.
    """
    mean = volume[0]
    # whole planes are added, which is many times as fast as pooling block by block
    for axis in slowest_first(volume[0]):
        edge = edges[axis]
        if edge > 1:
            moved = mean.movedim(axis, 0)[: mean.shape[axis] // edge * edge]
            total = moved[::edge].clone()
            for i in range(1, edge):
                total += moved[i::edge]
            mean = total.div_(edge).movedim(0, axis)
    return mean[None]


def upright_block_means(ct: MetaTensor, edges: Sequence[int]) -> MetaTensor:
    """Means over blocks of a volume's voxels with the blocks' affine, its axes along the patient's (RAS).

    The means are turned, not the volume.

    Args:
        ct: (1, I, J, K) with an affine, of any orientation and layout in memory.
        edges: of a block, as of :func:`block_means`.
    """
    affine = np.asarray(ct.affine, dtype=np.float64)
    blocks = affine @ np.diag([*edges, 1.0])
    blocks[:3, 3] = (affine @ np.array([*((edge - 1) / 2 for edge in edges), 1.0]))[:3]
    means = MetaTensor(block_means(ct.as_tensor(), edges), affine=torch.from_numpy(blocks))
    upright: MetaTensor = Orientation("RAS", labels=None)(means)  # type: ignore[assignment]
    return upright
