"""Where the lungs are in a CT, from the CT alone: air inside the body, two large pieces of it.

Not a segmentation: only where to aim. The exterior is air that reaches the edge of its slice, so neither the windpipe
nor the face connects it with the lungs; hollow couches lack the body around them; bowel gas is purer air than lung
tissue, which is a fifth blood, and arms enclose nothing but room air.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from monai.data import MetaTensor
from scipy import ndimage

from drr2ct.transforms.memory_order import upright_block_means

AIRY_HU = -400.0
"""Below this lies air, above tissue; lung tissue is between."""
LUNG_MEDIAN_HU = (-965.0, -450.0)
"""The middle value of a lung, also an emphysematous or a dense one; of bowel gas and room air it is lower."""
LEAST_LITRES = 0.1
"""Below this nothing is taken for lungs, not even a newborn's."""

_VOXEL_MM = 4.0
_WALL_MM = 8.0
"""So much tissue is in front of, behind, and at either side of what lies in a body."""
_LEAST_SHARE = 0.1
"""A second lung is at least so large, compared with the first."""


@dataclass(frozen=True)
class Lungs:
    """Both lungs' box and volume.

    Args:
        low: lower x, y, z of the box that 98 % of them fill along each axis, patient coordinates, mm.
        high: upper ones.
        litres: their volume within the scan.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    litres: float

    @property
    def centre(self) -> tuple[float, float, float]:
        """Of the box, patient coordinates, mm."""
        x, y, z = (0.5 * (a + b) for a, b in zip(self.low, self.high, strict=True))
        return x, y, z


def find_lungs(ct: MetaTensor) -> Lungs | None:
    """The lungs of a CT, or None if it shows none.

    Args:
        ct: (1, I, J, K) in HU, with an affine; any orientation whose slices are about axial.
    """
    spacing = np.linalg.norm(np.asarray(ct.affine, dtype=np.float64)[:3, :3], axis=0).tolist()
    edges = [max(1, min(round(_VOXEL_MM / s), n)) for s, n in zip(spacing, ct.shape[1:], strict=True)]
    coarse = upright_block_means(ct, edges)
    hu, affine = coarse.as_tensor()[0].numpy(), np.asarray(coarse.affine, dtype=np.float64)
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    inside = _inside_body(hu, voxel)
    pieces, count = ndimage.label(inside)
    if not count:
        return None
    numbers = np.arange(1, count + 1)
    litres = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * voxel.prod() / 1e6
    large = numbers[litres >= _LEAST_SHARE * LEAST_LITRES]
    low, high = LUNG_MEDIAN_HU
    middle = dict(zip(large.tolist(), ndimage.median(hu, pieces, large), strict=True)) if large.size else {}
    airy = [n for n in sorted(middle, key=lambda n: -litres[n - 1]) if low < middle[n] < high]
    if not airy:
        return None
    boxes = ndimage.find_objects(pieces)
    first = boxes[airy[0] - 1][2]
    chosen = [n for n in airy if litres[n - 1] >= _LEAST_SHARE * litres[airy[0] - 1] and _level(boxes[n - 1][2], first)]
    total = float(sum(litres[n - 1] for n in chosen))
    if total < LEAST_LITRES:
        return None
    indices = np.stack(np.nonzero(np.isin(pieces, chosen)))
    corners = np.percentile(indices, (1, 99), axis=1)
    (a, b, c), (d, e, f) = (np.sort(corners @ affine[:3, :3].T + affine[:3, 3], axis=0)).tolist()
    return Lungs((a, b, c), (d, e, f), total)


def _inside_body(hu: Float[np.ndarray, "x y z"], voxel_mm: Float[np.ndarray, " 3"]) -> Bool[np.ndarray, "x y z"]:
    """Air that does not reach the edge of its slice, with the body on all four sides of it."""
    air = hu < AIRY_HU
    in_slices = np.zeros((3, 3, 3), dtype=bool)
    in_slices[:, 1, 1] = in_slices[1, :, 1] = True
    pieces, _ = ndimage.label(air, in_slices)
    edges = np.concatenate([pieces[[0, -1]].ravel(), pieces[:, [0, -1]].ravel()])
    inside = air & ~np.isin(pieces, np.unique(edges))
    for axis in (0, 1):
        before = np.cumsum(~air, axis=axis, dtype=np.int32)
        behind = before.take([-1], axis=axis) - before
        wall = max(1, round(_WALL_MM / float(voxel_mm[axis])))
        inside &= (before >= wall) & (behind >= wall)
    return inside


def _level(piece: slice, first: slice) -> bool:
    """At the height of the first: at least half of it is."""
    overlap = min(piece.stop, first.stop) - max(piece.start, first.start)
    return overlap >= 0.5 * min(piece.stop - piece.start, first.stop - first.start)
