r"""Random variation of samples that are on the grid already, in which CT and radiographs stay of one patient.

A CT that is warped needs new radiographs: :class:`RandWarpAndRenderd` renders them. What changes the radiographs alone
(exposure, beam quality, noise) leaves the truth as it is: MONAI's ``RandShiftIntensityd`` and
``RandScaleIntensityd`` do the first two, :class:`RandQuantumNoised` the third.

There is no mirroring, of either kind. A mirrored patient has the heart on the right and the liver on the left; one in
ten thousand people is so, and a network that has seen half of them so can no longer tell the sides. A mirrored
radiograph beside an unmirrored CT is worse: it denies the geometry that the network reconstructs by.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE, transmission_to_line_integral
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

_SLAB = 2**20  # voxels warped at a time: their coordinates stay small


class RandWarpAndRenderd(RandomizableTransform, MapTransform):
    """Another shape of the same patient: the CT warped, and its radiographs rendered again.

    The warp is affine (a rotation about each axis, one scale for each axis, a shift) with a smooth displacement on
    top. Radiographs come from the warped CT on the grid; what the grid cuts off is not in them, while stored ones, and
    those of the preprocessing, saw the whole scan. With ``prob`` below 1 the network sees both.

    Args:
        keys: the key of the CT, (1, N, N, N) in [0, 1] over the HU window, a ``MetaTensor``; one.
        geometry: the views.
        prob: of varying a sample.
        output_key: of the radiographs, (V, H, W) in scaled line integrals.
        rotation_deg: largest rotation about each axis.
        scale: largest relative change of size, drawn for each axis.
        shift_mm: largest displacement along each axis.
        deformation_mm: largest displacement of a control point along each axis.
        control_points: of the smooth displacement, along each axis.
        engine: that renders, see ``render_drr``.

    Raises:
        InputError: for more than one key or, when called, a CT without its affine.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        prob: float = 1.0,
        output_key: str = "image",
        rotation_deg: float = 6.0,
        scale: float = 0.12,
        shift_mm: float = 12.0,
        deformation_mm: float = 18.0,
        control_points: int = 5,
        engine: str = "auto",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if len(self.keys) != 1:
            raise InputError(f"RandWarpAndRenderd warps one CT, not {', '.join(map(str, self.keys))}.")
        self.geometry = geometry
        self.output_key = output_key
        self.rotation_deg = rotation_deg
        self.scale = scale
        self.shift_mm = shift_mm
        self.deformation_mm = deformation_mm
        self.control_points = control_points
        self.engine = engine

    def randomize(self, data: Any = None) -> None:
        """Draw whether to warp, and how."""
        super().randomize(None)
        angles = np.radians(self.R.uniform(-self.rotation_deg, self.rotation_deg, 3))
        self._matrix = _rotation(angles) @ np.diag(self.R.uniform(1 - self.scale, 1 + self.scale, 3))
        self._shift = self.R.uniform(-self.shift_mm, self.shift_mm, 3)
        size = (3, *(self.control_points,) * 3)
        self._displacement = self.R.uniform(-self.deformation_mm, self.deformation_mm, size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with another CT and its radiographs, or as it was."""
        sample = dict(data)
        self.randomize()
        if not self._do_transform:
            return sample
        (key,) = self.keys
        ct = sample[key]
        if not isinstance(ct, MetaTensor):
            raise InputError(f"{key} has no affine to render by; keep its metadata in the preprocessing.")
        warped = warp(ct.as_tensor(), np.asarray(ct.affine), self._matrix, self._shift, self._displacement)
        sample[key] = MetaTensor(warped, meta=ct.meta, applied_operations=ct.applied_operations)
        radiographs = render_drr(
            to_hu(warped), self.geometry, ct.affine.numpy(), ct.meta.get("isocentre"), engine=self.engine
        )
        sample[self.output_key] = radiographs / LINE_INTEGRAL_SCALE
        return sample


def warp(
    volume: Float[Tensor, "channels i j k"],
    affine: Float[np.ndarray, "4 4"],
    matrix: Float[np.ndarray, "3 3"],
    shift_mm: Float[np.ndarray, 3],
    displacement_mm: Float[np.ndarray, "3 c c c"],
) -> Float[Tensor, "channels i j k"]:
    """What stood at A x + t + d(x) comes to stand at x, in mm about the volume's centre; beyond the border it goes on.

    One trilinear interpolation for all three. In pieces, so that no coordinates of the whole volume are held: MONAI's
    ``RandAffine`` and ``RandSmoothDeform`` in a row interpolate twice, and took 7 times as long at 256³
    (``benchmarks/loading.py``).

    Args:
        volume: on any voxels.
        affine: voxel index → mm; only its directions and spacings count.
        matrix: A.
        shift_mm: t.
        displacement_mm: d at control points from the first voxel's centre to the last one's, along each voxel axis;
            trilinear between them.
    """
    size = volume.shape[1:]
    # mm per unit of the coordinates of grid_sample, which go from -1 to 1 between the outermost voxels' centres
    unit = affine[:3, :3] * ((np.array(size) - 1) / 2)
    to_unit = np.linalg.inv(unit)
    linear = torch.as_tensor(to_unit @ matrix @ unit, dtype=torch.float32, device=volume.device)
    shift = torch.as_tensor(to_unit @ shift_mm, dtype=torch.float32, device=volume.device)
    control = np.einsum("ab,bxyz->axyz", to_unit, displacement_mm)
    field = torch.as_tensor(control, dtype=torch.float32, device=volume.device)
    lines = [torch.linspace(-1, 1, n, device=volume.device) for n in size]
    weights = [_line_weights(field.shape[1], n).to(volume.device) for n in size]
    field = torch.einsum("axyz,jy,kz->axjk", field, weights[1], weights[2])
    plane = linear[:, 1, None, None] * lines[1][:, None] + linear[:, 2, None, None] * lines[2]
    plane = plane + shift[:, None, None]
    thickness = max(1, _SLAB // (size[1] * size[2]))
    result = torch.empty_like(volume)
    for start in range(0, size[0], thickness):
        part = slice(start, start + thickness)
        where = torch.einsum("axjk,ix->aijk", field, weights[0][part])
        where += linear[:, 0, None, None, None] * lines[0][part, None, None]
        where += plane[:, None]
        # grid_sample wants (z, y, x) last
        grid = where.flip(0).permute(1, 2, 3, 0)[None]
        result[:, part] = F.grid_sample(volume[None], grid, "bilinear", "border", align_corners=True)[0]
    return result


def _rotation(angles: Float[np.ndarray, 3]) -> Float[np.ndarray, "3 3"]:
    """About x, then y, then z; radians."""
    (a, b, c), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -sa], [0, sa, a]])
    about_y = np.array([[b, 0, sb], [0, 1, 0], [-sb, 0, b]])
    about_z = np.array([[c, -sc, 0], [sc, c, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _line_weights(points: int, size: int) -> Float[Tensor, "size points"]:
    """Linear interpolation from evenly spaced points to voxels, ends on ends."""
    return F.interpolate(torch.eye(points)[None], size=size, mode="linear", align_corners=True)[0].T


class RandQuantumNoised(RandomizableTransform, MapTransform):
    """Counting noise of the detector: Poisson counts of the photons that come through, and back to line integrals.

    Args:
        keys: of radiographs, in scaled line integrals.
        photons: smallest and largest number of photons per pixel without a patient, drawn evenly in its logarithm.
        prob: of noise on a sample.

    Raises:
        InputError: for numbers of photons that are no range above 1.
    """

    def __init__(
        self, keys: KeysCollection = "image", photons: tuple[float, float] = (1e4, 1e6), prob: float = 1.0
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not 1 < photons[0] <= photons[1]:
            raise InputError(f"photons {photons} are no range of numbers above 1; give the smaller first.")
        self.photons = (float(photons[0]), float(photons[1]))

    def randomize(self, data: Any = None) -> None:
        """Draw whether to add noise, how much, and its seed."""
        super().randomize(None)
        self._photons = float(np.exp(self.R.uniform(*np.log(self.photons))))
        self._seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with noisier radiographs, or as it was."""
        sample = dict(data)
        self.randomize()
        if not self._do_transform:
            return sample
        for key in self.key_iterator(sample):
            line_integrals = sample[key] * LINE_INTEGRAL_SCALE
            generator = torch.Generator(line_integrals.device).manual_seed(self._seed)
            counts = torch.poisson(self._photons * torch.exp(-line_integrals), generator)
            noisy = transmission_to_line_integral(counts, self._photons, 0.5)
            sample[key] = noisy / LINE_INTEGRAL_SCALE
        return sample
