"""A volume's own radiographs, within a network, and what they lack of those that it was given."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drr2ct.networks.encoder import halved, pyramid_level
from drr2ct.networks.lifting import BackprojectionLift
from drr2ct.transforms.attenuation import HU_BONE, LINE_INTEGRAL_SCALE, MU_BONE, MU_WATER
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import HU_WINDOW

_GAIN = 10.0
"""On good DRRs radiographs differ by 0.04 RMS; times this they are as large as what else a stage sees."""


class Projection(nn.Module):
    """Line integrals of a volume, plane by plane across each view's main axis.

    A ray meets the planes of voxel centres across the axis that it runs along most; between the four voxels around
    each such point is interpolated, and every one counts for as much of the ray as lies between two planes (Joseph,
    *An improved algorithm for reprojecting rays through pixel images*, IEEE TMI 1982). Made of 2-D sampling alone, so
    that a network that holds it can be exported. No gradient passes.

    Args:
        geometry: views, and the cube that they see.
        size: edge of the volume, a ``size``³ cut of the geometry's grid.
        level: how often the radiographs were halved; their pixels are 2^level detector pixels wide, edges aligned.
    """

    lines: Tensor

    def __init__(self, geometry: BiplanarGeometry, size: int, level: int) -> None:
        super().__init__()
        affine = geometry.grid.resized(size).affine()
        self.size = size
        self.plane = geometry.grid.resized(size).spacing_mm / LINE_INTEGRAL_SCALE
        self.pixels = [-(-edge // 2**level) for edge in geometry.detector_size]
        # of each view: the source in voxel indices, main axis first, and the way to a pixel as a + row · b + column · c
        to_index = np.linalg.inv(affine)
        main_axes = []
        lines = []
        for view in geometry.views:
            matrix = view.projection_matrix
            back = np.linalg.inv(matrix[:, :3])
            scale, shift = 2.0**level, (2.0**level - 1) / 2
            corner = back @ [shift, shift, 1.0]
            directions = np.stack([corner, back @ [0, scale, 0], back @ [scale, 0, 0]])
            source = to_index @ [*view.source_position, 1.0]
            steps = directions @ to_index[:3, :3].T
            middle = steps[0] + steps[1] * (self.pixels[0] - 1) / 2 + steps[2] * (self.pixels[1] - 1) / 2
            axis = int(np.abs(middle).argmax())
            main_axes.append(axis)
            lines.append(np.concatenate([source[None, :3], steps])[:, [axis, *(i for i in range(3) if i != axis)]])
        self.main_axes = main_axes
        low, high = HU_WINDOW
        # hu_to_attenuation's two lines, over a volume's values, as (at 0, slope); TorchScript takes no other function
        slopes = (MU_WATER / 1000, (MU_BONE - MU_WATER) / HU_BONE)
        self.thin, self.dense = [(MU_WATER + slope * low, slope * (high - low)) for slope in slopes]
        # torch.tensor, since from_numpy would ignore the device that a network is being built on
        self.register_buffer("lines", torch.tensor(np.stack(lines).tolist(), dtype=torch.float32), persistent=False)

    def forward(self, volume: Tensor) -> Tensor:
        """(batch, 1, size, size, size) in [0, 1] over the HU window → (batch, views, h, w), scaled line integrals."""
        value = volume.detach().float()[:, 0]
        # convex, so the larger of its two lines
        attenuation = torch.maximum(self.thin[0] + self.thin[1] * value, self.dense[0] + self.dense[1] * value)
        attenuation = attenuation.clamp(min=0.0)
        seen: list[Tensor] = []
        for view, axis in enumerate(self.main_axes):
            seen.append(self._seen(attenuation, self.lines[view], axis))
        return torch.stack(seen, dim=1)

    def _seen(self, attenuation: Tensor, line: Tensor, axis: int) -> Tensor:
        """(batch, size, size, size) in 1/mm, through one view → (batch, h, w)."""
        n, (height, width) = self.size, (self.pixels[0], self.pixels[1])
        row = torch.arange(height, device=line.device, dtype=line.dtype)[:, None, None]
        column = torch.arange(width, device=line.device, dtype=line.dtype)[None, :, None]
        direction = line[1] + row * line[2] + column * line[3]
        plane = torch.arange(n, device=line.device, dtype=line.dtype)[:, None, None]
        steps = (plane - line[0, 0]) / direction[:, :, 0]
        # grid_sample counts −1 … 1 from edge to edge, the last axis first
        at = (line[0, 1:] + steps[:, :, :, None] * direction[:, :, 1:] + 0.5) * (2 / n) - 1
        batch = attenuation.shape[0]
        planes = attenuation.movedim(axis + 1, 1).flatten(0, 1)[:, None]
        sampled = F.grid_sample(
            planes, at.flip(-1).repeat(batch, 1, 1, 1), mode="bilinear", padding_mode="zeros", align_corners=False
        )
        lengths = direction.square().sum(dim=-1).sqrt() / direction[:, :, 0].abs() * self.plane
        return sampled.reshape(-1, n, height, width).sum(dim=1) * lengths


class ReprojectionLift(nn.Module):
    """For a stage: the volume so far, and what its own radiographs lack of those given, spread along each ray.

    The stage's voxels are ``parts`` times as wide as those of the volume that it adds to; of each it sees every part.

    Args:
        geometry: views, and the cube that they see.
        size: edge of the stage's features.
        parts: of an edge of one of its voxels.
        scale: how many times finer than the volume so far the one is that the stage adds to.
    """

    def __init__(self, geometry: BiplanarGeometry, size: int, parts: int, scale: int) -> None:
        super().__init__()
        fine = size * parts
        self.size = size
        self.parts = parts
        self.views = len(geometry.views)
        self.scale = float(scale)
        self.channels = (1 + len(geometry.views)) * parts**3
        self.level = pyramid_level(geometry, fine)
        level = pyramid_level(geometry, fine // scale)
        self.pixels = float(2 ** (level - self.level))
        self.gain = _GAIN  # TorchScript takes no module's constant
        self.project = Projection(geometry, fine // scale, level)
        self.lift = BackprojectionLift(geometry, fine, self.level)

    def forward(self, volume: Tensor, radiographs: Tensor) -> Tensor:
        """(batch, 1, m, m, m) and (batch, views, H, W) → (batch, (1 + views) · parts³, size, size, size), float32."""
        given = radiographs.float()
        for _ in range(self.level):
            given = halved(given)
        own = self.project(volume)
        if self.pixels > 1:
            own = F.interpolate(own, scale_factor=self.pixels, mode="bilinear", align_corners=False)
        lacking = (given - own[:, :, : given.shape[2], : given.shape[3]]) * self.gain
        volume = volume.float()
        if self.scale > 1:
            volume = F.interpolate(volume, scale_factor=self.scale, mode="trilinear", align_corners=False)
        fine = torch.cat([volume, self.lift(lacking[:, :, None])], dim=1)
        # MONAI's pixelunshuffle, which TorchScript does not take
        n, parts = self.size, self.parts
        cells = fine.reshape(-1, 1 + self.views, n, parts, n, parts, n, parts)
        return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
