"""From 2-D feature maps to volumes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drr2ct.transforms.geometry import BiplanarGeometry


class BroadcastLift(nn.Module):
    """Repeats a map, resized to size², along the first spatial axis, whatever the views' directions.

    Args:
        size: edge of the volume.
        depth_weight: amplitude a of the weight 1 + a·sin(π d), d from 0 to 1 along the first axis; 0 for none.
    """

    depth: Tensor | None

    def __init__(self, size: int, depth_weight: float = 0.0) -> None:
        super().__init__()
        self.size = size
        depth = 1 + depth_weight * torch.sin(3.14159 * torch.linspace(0, 1, size)) if depth_weight else None
        self.register_buffer("depth", None if depth is None else depth[:, None, None], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, views, channels, h, w) → (batch, views·channels, size, size, size)."""
        n = self.size
        flat = maps.flatten(1, 2)
        if flat.shape[2] > n or flat.shape[3] > n:
            # anti-aliased where the map is the finer one
            flat = F.adaptive_avg_pool2d(flat, (min(flat.shape[2], n), min(flat.shape[3], n)))
        flat = F.interpolate(flat, size=[n, n], mode="bilinear", align_corners=False)
        volume = flat.unsqueeze(2).expand(-1, -1, n, -1, -1)
        depth = self.depth
        return volume if depth is None else volume * depth.to(volume.dtype)


class ConfidenceLift(nn.Module):
    """Weighs the views voxel by voxel: each view's last lifted channel is its confidence there.

    The weights are a softmax over the views, times their number: equal confidence leaves the features as they are.

    Args:
        lift: lifts every view on its own.
        views: their number.
    """

    def __init__(self, lift: nn.Module, views: int) -> None:
        super().__init__()
        self.lift = lift
        self.views = views

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, views, channels + 1, h, w) → (batch, views·channels, size, size, size)."""
        volume = torch.unflatten(self.lift(maps), 1, [self.views, -1])
        confidence = volume[:, :, -1:].float().softmax(dim=1).to(volume.dtype) * self.views
        return (volume[:, :, :-1] * confidence).flatten(1, 2)


class BackprojectionLift(nn.Module):
    """Samples each view's map where each voxel centre projects to: a feature is spread along its own X-ray.

    The sampling positions are computed on the fly from three axes: at 128³ a stored grid would take 34 MB, and the
    computation is a fraction of the sampling itself.

    Args:
        geometry: views, and the cube that they see.
        size: edge of the volume, a ``size``³ cut of the geometry's grid.
        level: how often the maps were halved; their pixels are 2^level detector pixels wide, edges aligned.
    """

    matrices: Tensor
    axis_x: Tensor
    axis_y: Tensor
    axis_z: Tensor

    def __init__(self, geometry: BiplanarGeometry, size: int, level: int) -> None:
        super().__init__()
        self.size = size
        self.scale = float(2**level)
        # torch.tensor, since from_numpy would ignore the device that a network is being built on
        matrices = torch.tensor([view.projection_matrix.tolist() for view in geometry.views], dtype=torch.float32)
        self.register_buffer("matrices", matrices, persistent=False)
        affine = geometry.grid.resized(size).affine()
        # the voxel centres' coordinates are separable: one line per axis, shaped for broadcasting
        for axis, name in enumerate(("axis_x", "axis_y", "axis_z")):
            line = [affine[axis, 3] + affine[axis, axis] * i for i in range(size)]
            shape = [size if a == axis else 1 for a in range(3)]
            self.register_buffer(name, torch.tensor(line, dtype=torch.float32).reshape(shape), persistent=False)

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Column and row, in pixels of the detector, of every voxel centre: twice (views, size, size, size)."""
        # sums of products, not matmul, which autocast would turn to bfloat16
        m = self.matrices[:, :, :, None, None, None]
        column, row, depth = [
            m[:, i, 0] * self.axis_x + m[:, i, 1] * self.axis_y + m[:, i, 2] * self.axis_z + m[:, i, 3]
            for i in range(3)
        ]
        return column / depth, row / depth

    def forward(self, maps: Tensor) -> Tensor:
        """(batch, views, channels, h, w) → (batch, views·channels, size, size, size)."""
        batch, views, channels, height, width = maps.shape
        n = self.size
        column, row = self.pixels()
        # grid_sample counts −1 … 1 from edge to edge; the centre of detector pixel 0 is half a pixel from the edge
        grid = torch.stack(
            [
                (column + 0.5) * (2 / (self.scale * width)) - 1,
                (row + 0.5) * (2 / (self.scale * height)) - 1,
            ],
            dim=-1,
        )
        grid = grid.reshape(1, views, n, n * n, 2).expand(batch, -1, -1, -1, -1).flatten(0, 1)
        # interpolated in float32 (autocast would as well), then back to what the maps came in
        volume = F.grid_sample(
            maps.flatten(0, 1).float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        return volume.to(maps.dtype).reshape(batch, views * channels, n, n, n)
