r"""A breath between two films: the diaphragm stands higher in one of them, and the lungs' apices where they were.

What stood at height :math:`z - h\,g(x, y)\,f(z)` comes to stand at :math:`z`. Below the highest dome of the diaphragm
:math:`f = 1`, so diaphragm, liver and stomach move as a piston by :math:`h`; above, it falls evenly to 0 at the apices.
:math:`g` is 1 in the columns that hold lung, and what lies between them, and falls smoothly to 0 in the chest wall; the
spine stays. Heart and hili are pulled along by as much as the lungs beside them.

A lung that is pressed together gets denser: the attenuation of aerated tissue is multiplied by
:math:`\partial(z - h g f)/\partial z`, which keeps its mass (Sarrut et al., Med. Phys. 33:605, 2006).

In 172 standing people the domes moved by 11 mm (right) and 15 mm (left) in quiet breathing (Yamada et al., Acad.
Radiol. 24, 2017), in 174 by 49 and 52 mm in forced breathing (Hida et al., Eur. J. Radiol. 113:59, 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from drr2ct.transforms.films.shared import gaussian_weights

AERATED_HU = (-970.0, -500.0)
"""Lung in a smoothed CT."""

_TISSUE_HU = -300.0  # what encloses the lungs
_BONE_HU = 120.0  # in voxels of a centimetre
_COARSE_MM = 8.0
_TALL_MM = 40.0  # a column that holds less lung than this does not reach from diaphragm to apex
_WIDE_MM2 = 5000.0  # what is smaller across is gas in the bowel
_EDGE_MM = 12.0  # over which the motion falls to nothing in the chest wall
_AXIS_Z = 2


@dataclass(frozen=True)
class Lungs:
    """Where the lungs are, on columns along the patient's long axis.

    Args:
        moving: 0 to 1 for each column of the CT, what is called g.
        dome_mm: height of the diaphragm's highest dome over the lowest voxel's centre.
        apex_mm: height of the lungs' upper end, likewise.
    """

    moving: Float[Tensor, "i j"]
    dome_mm: float
    apex_mm: float


def breathe(
    hu: Float[Tensor, "1 i j k"], affine: Float[np.ndarray, "4 4"], height_mm: float
) -> Float[Tensor, "1 i j k"]:
    """The patient with the diaphragm ``height_mm`` higher: breathed out, or in if it is negative.

    A scan in which no lungs are found, or of nothing but lungs, stays as it is.

    Args:
        hu: of the CT, in any orientation along the patient's axes.
        affine: voxel index → RAS+ mm.
        height_mm: by which the diaphragm's domes rise.
    """
    upright, restore, spacing = _upright(hu[0], affine)
    lungs = find_lungs(upright, spacing)
    if lungs is None or height_mm == 0:
        return hu
    step = float(spacing[_AXIS_Z])
    z = torch.arange(upright.shape[2], device=hu.device) * step
    # 1 up to where the domes come to stand; there is always some lung left above
    top = min(lungs.dome_mm + max(height_mm, 0.0), lungs.apex_mm - 2 * abs(height_mm))
    profile = ((lungs.apex_mm - z) / (lungs.apex_mm - top)).clamp(0, 1)
    slope = torch.where((z > top) & (z < lungs.apex_mm), 1 / (lungs.apex_mm - top), 0.0)
    result = upright.float().clone()
    columns = lungs.moving > 0.01
    part = lungs.moving[columns][:, None] * height_mm
    source = (torch.arange(len(z), device=hu.device) - part * profile / step).clamp(0, len(z) - 1)
    below = source.floor().clamp(max=len(z) - 2)
    values = upright[columns].float()
    index = below.long()
    moved = torch.lerp(values.gather(1, index), values.gather(1, index + 1), source - below)
    lung = moved < _TISSUE_HU
    result[columns] = torch.where(lung, (moved + 1000) * (1 + part * slope) - 1000, moved)
    return restore(result)[None]


def find_lungs(hu: Float[Tensor, "i j k"], spacing_mm: Float[np.ndarray, 3]) -> Lungs | None:
    """The lungs of a CT whose last axis leads from feet to head: aerated voxels that tissue encloses on four sides.

    Args:
        hu: the CT.
        spacing_mm: of its voxels.

    Returns:
        None where there are none, or no room between diaphragm and apex.
    """
    factor = [max(1, round(_COARSE_MM / float(s))) for s in spacing_mm]
    coarse = F.avg_pool3d(hu[None, None].float(), factor, ceil_mode=True, count_include_pad=False)[0, 0]
    step = [f * float(s) for f, s in zip(factor, spacing_mm, strict=True)]
    enclosed = _between(coarse > _TISSUE_HU, 0) & _between(coarse > _TISSUE_HU, 1)
    lung = (coarse > AERATED_HU[0]) & (coarse < AERATED_HU[1]) & enclosed
    heights = lung.sum(dim=2) * step[2]
    tall = heights > _TALL_MM
    if tall.sum() * step[0] * step[1] < _WIDE_MM2:
        return None
    levels = torch.arange(coarse.shape[2], device=hu.device)
    upper = torch.where(lung, levels, -1).amax(dim=2)[tall].float()
    lowest = torch.where(lung, levels, coarse.shape[2]).amin(dim=2)[tall].float()
    dome, apex = float(lowest.quantile(0.9)) * step[2], (float(upper.quantile(0.98)) + 1) * step[2]
    if apex - dome < _TALL_MM:
        return None
    spine = (coarse > _BONE_HU).float().mean(dim=2) > 0.4
    moving = (_between(tall, 0) & ~spine).float()[None, None]
    moving = F.interpolate(moving, size=tuple(hu.shape[:2]), mode="bilinear")[0, 0]
    rows, columns = (gaussian_weights(hu.shape[axis], _EDGE_MM / float(spacing_mm[axis]), hu.device) for axis in (0, 1))
    return Lungs(rows @ moving @ columns.T, dome, apex)


def _between(mask: Tensor, axis: int) -> Tensor:
    """What has something of the mask on both sides along an axis, or is part of it."""
    up = mask.cummax(dim=axis).values
    down = mask.flip(axis).cummax(dim=axis).values.flip(axis)
    return up & down


def _upright(
    hu: Float[Tensor, "i j k"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Float[Tensor, "i j k"], Callable[[Tensor], Tensor], Float[np.ndarray, 3]]:
    """A view of the CT whose last axis leads from feet to head, the way back, and its spacings."""
    axis = int(np.abs(affine[_AXIS_Z, :3]).argmax())
    order = [a for a in range(3) if a != axis] + [axis]
    back = [order.index(a) for a in range(3)]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[order]
    if affine[_AXIS_Z, axis] > 0:
        return hu.permute(order), lambda volume: volume.permute(back), spacing
    return hu.permute(order).flip(2), lambda volume: volume.flip(2).permute(back), spacing
