"""What other projects' networks are given of the samples of ``cascades.py``, and how their volumes are put on its grid.

Every adapter is a module with ``forward(images)``, radiographs (b, 2, H, W) on this project's scale → volumes
(b, 1, N, N, N) in [0, 1] on its grid, axes (x, y, z), and ``loss(images, labels)``, its project's own reconstruction
loss. Adversarial and perceptual terms are left out.

Three of them know parallel rays only, one pixel for one voxel: ``CentralPlane`` gives them what a view shows of the
grid's plane through the isocentre, where pixels and voxels agree; towards and away from the source they do not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cascades import GEOMETRY, VARIANTS
from peer_standins import plane_axes
from torch import Tensor, nn

from drr2ct.networks.losses import DEFAULT_TERMS, WeightedLoss
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.transforms.hounsfield import HU_WINDOW

SIZE = GEOMETRY.grid.size
IN_FLOAT32 = partial(torch.autocast, "cpu", enabled=False)
"""Losses are, as in ``cascades.py``, whatever the network computes in."""
THEIR_WINDOW = (DEFAULT_WINDOW[1] - DEFAULT_WINDOW[0]) / (HU_WINDOW[1] - HU_WINDOW[0])
"""1 on X2CT's scale (0…2500 above −1024 HU), on this project's."""


class CentralPlane(nn.Module):
    """Both radiographs as size² pictures whose rows are z, and whose columns are x (PA) or y (lateral) of the grid.

    Args:
        size: pixels along each edge; each is the mean of 2 × 2 samples.
    """

    places: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        rows, columns = GEOMETRY.detector_size
        places = []
        for view in range(2):
            column, step_across, row, step_along = plane_axes(GEOMETRY, 2 * size, view)
            across = (column + step_across * torch.arange(2 * size) + 0.5) * (2 / columns) - 1
            along = (row + step_along * torch.arange(2 * size) + 0.5) * (2 / rows) - 1
            places.append(torch.stack(torch.meshgrid(along, across, indexing="ij")[::-1], dim=-1))
        self.register_buffer("places", torch.stack(places).float(), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 2, H, W) → PA and lateral, each (b, 1, size, size)."""
        first, second = (
            F.avg_pool2d(
                F.grid_sample(
                    images[:, v : v + 1], self.places[v].expand(len(images), -1, -1, -1), align_corners=False
                ),
                2,
            )
            for v in range(2)
        )
        return first, second


class VolumeGenerator(nn.Module):
    """X2CT's generator, or one with its interface: two pictures, divided by their maxima → volumes (z, y, x) in 0…1.

    Its loss is 10 × the error of the volume and 10 × the absolute error of its mean along each axis, on X2CT's window.

    Args:
        generator: whose last output is the fused volume.
        size: edge of its pictures and volumes; a finer volume than the grid's is averaged to it.
        error: of the volume.
    """

    def __init__(self, generator: nn.Module, size: int, error: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.generator = generator
        self.plane = CentralPlane(size)
        self.finer = size // SIZE
        self.error = error

    def train(self, mode: bool = True) -> VolumeGenerator:
        """As X2CT's own evaluation does, instance normalisation stays in training mode: statistics of the sample."""
        super().train(mode)
        for part in self.modules():
            if type(part).__name__.startswith("InstanceNorm"):
                part.train()
        return self

    def volumes(self, images: Tensor) -> Tensor:
        """On X2CT's window, on the grid, axes (x, y, z)."""
        pictures = [
            picture / picture.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6) for picture in self.plane(images)
        ]
        volume = self.generator(pictures)[-1]
        return F.avg_pool3d(volume, self.finer).permute(0, 1, 4, 3, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Volumes in [0, 1] of this project's window."""
        return self.volumes(images).clamp(0, 1) * THEIR_WINDOW

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a step goes down."""
        predicted, true = self.volumes(images).float(), (labels / THEIR_WINDOW).clamp(0, 1)
        with IN_FLOAT32():
            maps = sum(F.l1_loss(predicted.abs().mean(axis), true.mean(axis)) for axis in (2, 3, 4))
            return 10 * self.error(predicted, true) + 10 * maps / 3


class ShapeNetwork(nn.Module):
    """A network of xrayto3D-benchmark, oriented (y, z, x) as its volumes are; trained with this project's loss.

    Its own losses are of segmentations (Dice, cross-entropy), so its last layer, without activation, is trained on the
    CT as this project's network is. Pictures are scaled to 0…1 each, as its transforms do.

    Args:
        network: one volume of two channels → volume, or two pictures → volume.
        spread: it wants the pictures spread along their rays.
    """

    def __init__(self, network: nn.Module, spread: bool) -> None:
        super().__init__()
        self.network = network
        self.spread = spread
        self.plane = CentralPlane(SIZE)
        self.error = WeightedLoss(dict(DEFAULT_TERMS))

    def volumes(self, images: Tensor) -> Tensor:
        """On the grid, axes (x, y, z), not clipped."""
        pictures = []
        for picture in self.plane(images):
            low, high = picture.amin(dim=(1, 2, 3), keepdim=True), picture.amax(dim=(1, 2, 3), keepdim=True)
            pictures.append((picture - low) / (high - low).clamp(min=1e-6))
        frontal, lateral = pictures
        if self.spread:
            along_y = frontal[:, :, None].expand(-1, -1, SIZE, -1, -1)
            along_x = lateral.transpose(2, 3)[..., None].expand(-1, -1, -1, -1, SIZE)
            volume = self.network(torch.cat([along_y, along_x], dim=1))
        else:
            # it exchanges its lateral maps' channels (depth) and columns (y) itself
            volume = self.network(frontal, lateral)
        return volume.permute(0, 1, 4, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Volumes in [0, 1]."""
        return self.volumes(images).clamp(0, 1)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a step goes down."""
        predicted = self.volumes(images).float()
        with IN_FLOAT32():
            return self.error(predicted, labels)


class PointNetwork(nn.Module):
    """DIF-Net or DIF-Gaussian: the value of single points, from features where they project to, by our geometry.

    As theirs, a step learns the squared error of 10,000 points of one patient. In float32, for its matrix inverses.

    Args:
        network: a dictionary of radiographs and points → values.
        gaussians: points along each axis at which Gaussians are placed; 0 for DIF-Net, which has none.
        points: of a step.
    """

    coordinates: Tensor
    places: Tensor
    centres: Tensor
    centre_places: Tensor

    def __init__(self, network: nn.Module, gaussians: int = 0, points: int = 10_000) -> None:
        super().__init__()
        self.network = network
        self.points = points
        width = GEOMETRY.grid.fov_mm
        millimetres = GEOMETRY.grid.centres().reshape(-1, 3)
        line = torch.arange(gaussians) / max(gaussians, 1)
        gaussian = torch.cartesian_prod(line, line, line) if gaussians else torch.zeros(0, 3)
        self.register_buffer("coordinates", millimetres / width + 0.5, persistent=False)
        self.register_buffer("places", self.projected(millimetres), persistent=False)
        self.register_buffer("centres", gaussian, persistent=False)
        self.register_buffer("centre_places", self.projected((gaussian - 0.5) * width), persistent=False)

    @staticmethod
    def projected(millimetres: Tensor) -> Tensor:
        """Isocentric points (n, 3) → (views, n, 2): row and column, −1 and 1 at the first and last pixel's centre."""
        rows, columns = GEOMETRY.detector_size
        pixels = [torch.from_numpy(view.project(millimetres.double().numpy())) for view in GEOMETRY.views]
        scaled = [torch.stack([2 * p[:, 1] / (rows - 1) - 1, 2 * p[:, 0] / (columns - 1) - 1], dim=-1) for p in pixels]
        return torch.stack(scaled).float()

    def data(self, images: Tensor, chosen: Tensor | slice, values: Tensor | None = None) -> dict[str, Tensor]:
        """What both networks read, under the names of either."""

        def each(tensor: Tensor) -> Tensor:
            return tensor.expand(len(images), *tensor.shape)

        places = each(self.places[:, chosen])
        found = {
            "projs": images[:, :, None].float(),
            "points": each(self.coordinates[chosen]),
            "points_proj": places,
            "proj_points": places,
            "points_gs": each(self.centres),
            "points_gs_proj": each(self.centre_places),
        }
        return found if values is None else {**found, "p_gt": values}

    @staticmethod
    def values(output: Any) -> Tensor:
        """Of what either network gives."""
        if isinstance(output, dict):
            return output["points_pred"]
        return output[0] if isinstance(output, tuple) else output

    def forward(self, images: Tensor) -> Tensor:
        """Volumes in [0, 1]."""
        with IN_FLOAT32():
            found = self.values(self.network(self.data(images, slice(None)), is_eval=True))
        return found.reshape(len(images), 1, SIZE, SIZE, SIZE).clamp(0, 1)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a step goes down."""
        chosen = torch.randint(len(self.coordinates), (self.points,))
        true = labels.flatten(2)[..., chosen]
        with IN_FLOAT32():
            return F.mse_loss(self.values(self.network(self.data(images, chosen, true))), true)


class Ours(nn.Module):
    """``cascade64`` as ``cascades.py`` trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = VARIANTS["cascade64"].build()
        self.error = WeightedLoss(VARIANTS["cascade64"].terms())

    def forward(self, images: Tensor) -> Tensor:
        """Volumes in [0, 1]."""
        return self.network(images)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a step goes down."""
        predicted = self.network(images).float()
        with IN_FLOAT32():
            return self.error(predicted, labels)
