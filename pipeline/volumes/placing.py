"""A network's output in HU and in patient space: on its own grid, on a CT's voxels, or on others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientation
from torch import Tensor

from drr2ct.pipeline.running.memory import available_bytes
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW, ResampleToGrid, onto_voxels, smooth_for_spacing, to_hu

_VOXEL_BYTES, _VOXEL_BYTES_WITH_BOUNDS = 13, 22
"""Most memory per voxel while a volume is placed and written, as measured of 448³ and of 1000³ voxels, and a little."""


def place_on_grid(prediction: Tensor, geometry: BiplanarGeometry, label: Tensor | None = None) -> MetaTensor:
    """A network's output in HU, in patient space.

    Args:
        prediction: (1, N, N, N) in [0, 1].
        geometry: whose grid it lies on, with the isocentre at the origin.
        label: the CT on the network's grid, if there is one: then its affine holds.

    Returns:
        (1, N, N, N) in HU with an affine.
    """
    affine = label.affine if isinstance(label, MetaTensor) else torch.from_numpy(geometry.grid.affine())
    return MetaTensor(to_hu(_plain(prediction)), affine=affine)


def _plain(prediction: Tensor) -> Tensor:
    """On the CPU in float32, without metadata."""
    return prediction.detach().cpu().float().as_subclass(Tensor)


def restore_to_ct(prediction: Tensor, label: MetaTensor, preprocessing: Compose) -> MetaTensor:
    """A network's output in HU on the voxels of the CT that ``label`` was made from.

    Args:
        prediction: (1, N, N, N) in [0, 1].
        label: the CT on the network's grid, with the record of what was done to it.
        preprocessing: the transform that did it.
    """
    invert = Invertd("pred", transform=preprocessing, orig_keys="label", nearest_interp=False)
    return invert({"pred": MetaTensor(_plain(prediction), affine=label.affine), "label": label.cpu()})["pred"]


def place_like(prediction: Tensor, geometry: BiplanarGeometry, ct: MetaTensor, mode: str = "cube") -> MetaTensor:
    """A network's output in HU on the voxels of a CT, whose bounding box is centred on the isocentre.

    Args:
        prediction: (1, N, N, N) in [0, 1].
        geometry: of the network.
        ct: (1, I, J, K) with an affine; its values are not used.
        mode: how the network's CTs were put on the grid (see ``ResampleToGrid``).

    Returns:
        (1, I, J, K) in HU with the CT's affine, −1024 HU outside the grid.
    """
    hu = to_hu(_plain(prediction))
    if geometry.grid.vertical_flip:
        hu = hu.flip(3)
    # the same affine as a training CT's, which runs from feet to head
    upright: Any = Orientation("RAS", labels=None)(ct)
    affine = ResampleToGrid(geometry.grid, mode).target_affine(upright)
    target = np.asarray(ct.affine, dtype=np.float64)
    return MetaTensor(onto_voxels(hu, affine, target, ct.shape[1:]), affine=torch.from_numpy(target))


def place_bounds(place: Callable[[Tensor], MetaTensor], output: Tensor) -> MetaTensor:
    """A network's bounds in HU, put where its estimate is put; outside its grid, where nothing is known, the window.

    Args:
        place: puts an estimate, (1, N, N, N) in [0, 1], into patient space in HU, with the window's lower end outside.
        output: (3, N, N, N) in [0, 1]: estimate, lower, upper.

    Returns:
        (2, I, J, K) in HU with an affine: lower, upper.
    """
    low = place(output[1:2])
    affine, both = low.affine, low.as_tensor().new_empty((2, *low.shape[1:]))
    both[0] = low.as_tensor()[0]
    del low  # each may take a good part of the memory
    # turned over, what is put outside the grid becomes the window's upper end
    torch.sub(sum(HU_WINDOW), place(1 - output[2:3]).as_tensor()[0], out=both[1])
    return MetaTensor(both, affine=affine)


def half_width(bounds: MetaTensor) -> MetaTensor:
    """The doubt about each voxel, ± HU: (2, I, J, K) → (1, I, J, K)."""
    low, high = bounds.as_tensor().split(1)
    return MetaTensor((high - low).div_(2), affine=bounds.affine)


def place_resized(prediction: Tensor, geometry: BiplanarGeometry, size: int) -> MetaTensor:
    """A network's output in HU, interpolated (trilinear, anti-aliased) to ``size``³ voxels of the same cube."""
    hu = to_hu(_plain(prediction))
    factor = geometry.grid.size / size
    hu = smooth_for_spacing(hu, (1.0, 1.0, 1.0), (factor,) * 3)
    resized = F.interpolate(hu[None], size=(size,) * 3, mode="trilinear", align_corners=False)[0]
    return MetaTensor(resized, affine=torch.from_numpy(geometry.grid.resized(size).affine()))


def refuse_too_large(size: int, with_bounds: bool) -> None:
    """Refuse a volume that memory does not hold, before anything is computed: the system would kill the process.

    Args:
        size: voxels along each axis.
        with_bounds: it is to have bounds.

    Raises:
        InputError: if placing and writing it takes more than is left.
    """
    each, left = _VOXEL_BYTES_WITH_BOUNDS if with_bounds else _VOXEL_BYTES, available_bytes()
    if left is not None and each * size**3 > left:
        raise InputError(
            f"a volume of {size}³ voxels takes {each * size**3 / 2**30:.1f} GiB of memory, and {left / 2**30:.1f} GiB "
            f"are left; give a size of {int((left / each) ** (1 / 3))} or less."
        )
