"""A varied scan on the network's grid: the label of a sample."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d
from monai.transforms import MapTransform, Transform
from torch import Tensor

from drr2ct.transforms.volume import AIR_HU, HU_WINDOW


class OntoGrid(Transform):
    """A varied scan on the grid that its metadata name, over the HU window: what ``ResampleToGrid`` would make of it.

    The same anti-aliasing, one axis after the other; where voxels are those of the grid, they are taken as they are.

    Args:
        size: voxels along each axis of the grid.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, scan: MetaTensor) -> MetaTensor:
        """(1, X, Y, Z) in HU → (1, size, size, size) in [0, 1]."""
        source, target = (np.asarray(a, dtype=np.float64) for a in (scan.affine, scan.meta["grid_affine"]))
        values = scan.as_tensor() - AIR_HU
        device = values.device
        covered, inside = [torch.ones((1, 1, 1), device=device)] * 2
        for axis in (2, 1, 0):
            spacing = source[axis, axis]
            step = target[axis, axis] / spacing
            positions = (target[axis, 3] - source[axis, 3]) / spacing + step * np.arange(self.size)
            values = along(values, 1 + axis, positions, abs(step))
            shape = [self.size if other == axis else 1 for other in range(3)]
            ones = torch.ones(scan.shape[1 + axis], device=device)
            covered = covered * along(ones, 0, positions, abs(step)).view(shape)
            low, high = ((scan.meta[key][axis] - source[axis, 3]) / spacing for key in ("scan_low", "scan_high"))
            within = np.clip(np.minimum(positions - low, high - positions) + 0.5, 0, 1)
            inside = inside * torch.from_numpy(within).to(device, torch.float32).view(shape)
        # the air that was cut off: within the scan, but not among the voxels
        values.add_((inside - covered).clamp_(min=0).mul_(scan.meta["air_hu"] - AIR_HU))
        scaled = values.div_(HU_WINDOW[1] - HU_WINDOW[0]).clamp_(0, 1)
        return MetaTensor(scaled, affine=torch.from_numpy(target), meta={"isocentre": scan.meta["isocentre"]})


class OntoGridd(MapTransform):
    """Dictionary version of :class:`OntoGrid`."""

    def __init__(self, keys: KeysCollection, size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._onto_grid = OntoGrid(size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put each key on the grid."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = self._onto_grid(sample[key])
        return sample


def along(values: Tensor, axis: int, positions: Float[np.ndarray, " n"], step: float) -> Tensor:
    """Values at positions (in voxels) along one axis; anti-aliased for steps above 1, zero outside."""
    count, size = values.shape[axis], len(positions)
    nearest = np.round(positions).astype(int)
    if step <= 1 and np.abs(positions - nearest).max() < 1e-3:
        low, high = int(nearest.min()), int(nearest.max())
        inside = values.narrow(axis, max(low, 0), max(min(high + 1, count) - max(low, 0), 0))
        taken = values.new_zeros([*values.shape[:axis], size, *values.shape[axis + 1 :]])
        taken.narrow(axis, max(-low, 0), inside.shape[axis]).copy_(inside)
        return taken if size == 1 or nearest[1] > nearest[0] else taken.flip(axis)
    weights = _axis_weights(torch.from_numpy(positions), count, max(0.0, (step - 1) / 2)).to(values)
    return torch.tensordot(values, weights, dims=([axis], [1])).movedim(-1, axis)


def _axis_weights(positions: Float[Tensor, " n"], count: int, sigma: float) -> Float[Tensor, "n count"]:
    """Gaussian low pass with replicated ends, as ``smooth_for_spacing``; then linear interpolation, zero outside."""
    indices = torch.arange(count)
    linear = (1 - (positions[:, None] - indices).abs()).clamp(min=0)
    if sigma == 0:
        return linear
    kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True).double()
    taps = torch.arange(len(kernel)) - len(kernel) // 2
    smooth = torch.zeros(count, count, dtype=torch.float64)
    columns = (indices[:, None] + taps).clamp(0, count - 1)
    smooth.index_put_((indices[:, None].expand_as(columns), columns), kernel.expand(columns.shape), accumulate=True)
    return linear @ smooth
