"""A CT kept for variation: once, as small as the grid and the detector allow, and without the air around the patient.

A sample that is varied anew in every epoch starts from the CT, not from the grid: its radiographs see the whole scan.
But it needs no finer voxels than what is made of it, and no voxel that holds nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialCrop, Transform
from torch import Tensor

from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import AIR_HU, HU_WINDOW, bounding_box_centre

FINEST_NEEDED_MM = 3.0
"""Radiographs are rendered from no finer voxels than these unless the grid has them: most CTs have such slices."""

_BODY_HU = -900.0  # noise, and the foam of a couch, lie below at this resolution
_MARGIN = 2  # voxels of air that are kept around the patient


@dataclass(frozen=True)
class Scan:
    """Where a kept CT's scan lay, in patient coordinates (mm): its own voxels may be fewer, as air was cut off.

    Args:
        centre: of the scan's box.
        extent: of it along x, y, z.
        isocentre: which the views turn about.
        air_hu: mean of the air that was cut off.
    """

    centre: tuple[float, float, float]
    extent: tuple[float, float, float]
    isocentre: tuple[float, float, float]
    air_hu: float

    @classmethod
    def of(cls, ct: MetaTensor) -> Scan:
        """What :class:`KeepCT` has noted.

        Raises:
            InputError: if the CT was not kept by it.
        """
        try:
            (a, b, c), (x, y, z), (i, j, k) = (ct.meta[key] for key in ("scan_centre", "scan_extent", "isocentre"))
            return cls((a, b, c), (x, y, z), (i, j, k), ct.meta["scan_air_hu"])
        except (AttributeError, KeyError) as error:
            raise InputError("only a CT that KeepCT has prepared can be varied; put KeepCTd before.") from error


def kept_spacing_mm(geometry: BiplanarGeometry) -> float:
    """Voxel size that a grid and its radiographs need: the grid's own, or finer where pixels are.

    A pixel counts by its size at the isocentre, but not below :data:`FINEST_NEEDED_MM`.
    """
    pixel = min(v.pixel_pitch_mm * v.source_to_isocentre_mm / v.source_to_detector_mm for v in geometry.views)
    return min(geometry.grid.spacing_mm, max(pixel, FINEST_NEEDED_MM))


class KeepCT(Transform):
    """A CT on coarser voxels, anti-aliased, in 16 bits, cut to the patient (and couch).

    It is never made finer than it is: along an axis whose voxels are larger already, those stay.

    Args:
        spacing_mm: wanted size of a voxel, see :func:`kept_spacing_mm`.
    """

    def __init__(self, spacing_mm: float) -> None:
        self.spacing_mm = spacing_mm

    def __call__(self, ct: MetaTensor) -> MetaTensor:
        """(1, I, J, K) in HU, oriented RAS → the same in int16, with the scan's box noted for :class:`Scan`."""
        affine = np.asarray(ct.affine, dtype=np.float64)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        shape = np.asarray(ct.shape[1:])
        size = [
            min(n, max(2, round(n * s / self.spacing_mm))) for n, s in zip(ct.shape[1:], spacing.tolist(), strict=True)
        ]
        coarse = resized(ct.as_tensor()[0], size).clamp_(*HU_WINDOW).round_().to(torch.int16)[None]
        factor = shape / np.asarray(size)
        step = np.diag([*factor, 1.0])
        step[:3, 3] = (factor - 1) / 2  # voxel edges coincide, not centres
        start, end = _patient_box(coarse[0])
        kept: Any = SpatialCrop(roi_start=start, roi_end=end)(
            MetaTensor(coarse, affine=torch.from_numpy(affine @ step))
        )
        cut_off = coarse.numel() - kept.numel()
        centre = bounding_box_centre(ct).tolist()
        about = {
            "isocentre": [float(x) for x in ct.meta.get("isocentre") or centre],
            "scan_centre": centre,
            "scan_extent": (shape * spacing).tolist(),
            "scan_air_hu": (int(coarse.sum()) - int(kept.sum())) / cut_off if cut_off else AIR_HU,
        }
        # a copy: a view would hold the whole scan in memory
        return MetaTensor(kept.as_tensor().clone(), affine=kept.affine, meta=about)


class KeepCTd(MapTransform):
    """Dictionary version of :class:`KeepCT`."""

    def __init__(self, keys: KeysCollection, spacing_mm: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._keep = KeepCT(spacing_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Keep each key."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._keep(item[key])
        return item


def resized(volume: Float[Tensor, "i j k"], size: Sequence[int]) -> Float[Tensor, "a b c"]:
    """The same box in fewer voxels: PyTorch's anti-aliased bicubic interpolation, two axes and then the third.

    It keeps what the coarser voxels can show, where a Gaussian low pass would blur it: what is kept is interpolated
    twice more before it is seen.
    """
    planes = F.interpolate(volume[:, None], size=tuple(size[1:]), mode="bicubic", antialias=True)[:, 0]
    turned = planes.permute(2, 0, 1)[:, None]
    turned = F.interpolate(turned, size=(size[0], size[1]), mode="bicubic", antialias=True)[:, 0]
    return turned.permute(1, 2, 0).contiguous()


def _patient_box(hu: Tensor) -> tuple[list[int], list[int]]:
    """First and one past the last index of what is no air, with a margin; of everything if there is nothing else."""
    found = hu > _BODY_HU
    start, end = [], []
    for axis, n in enumerate(hu.shape):
        filled = torch.nonzero(found.any(dim=[other for other in range(3) if other != axis]))
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, n - 1)
        start.append(max(0, first - _MARGIN))
        end.append(min(n, last + 1 + _MARGIN))
    return start, end
