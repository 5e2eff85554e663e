"""From radiographs to the 2-D feature maps that the lifting turns into volumes."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drr2ct.networks.blocks import conv_norm_act, group_count
from drr2ct.transforms.geometry import BiplanarGeometry


def pyramid_level(geometry: BiplanarGeometry, size: int) -> int:
    """Times to halve the detector's resolution so that a pixel best fits a voxel of a ``size``³ cut of the grid.

    A voxel at the isocentre covers fov/size · SDD/SID on the detector (mean over the views, in octaves).
    """
    octaves = [
        math.log2(geometry.grid.fov_mm / size * v.source_to_detector_mm / v.source_to_isocentre_mm / v.pixel_pitch_mm)
        for v in geometry.views
    ]
    # a map of a single pixel would hold no direction any more
    most = int(math.log2(min(geometry.detector_size)))
    return min(max(round(sum(octaves) / len(octaves)), 0), max(most - 1, 0))


def halved(x: Tensor) -> Tensor:
    """2×2 averages; an odd last row or column is averaged over the pixels it has."""
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


class StackedEncoder(nn.Module):
    """X-ray encoder of the ``direct*`` cascades: the views are the channels of one image, halved by each layer.

    Args:
        views: number of radiographs.
        channels: of each layer's output; the first layer has a 7² kernel, the others 3².
        norm_groups: groups of each layer's normalisation.
        activation: after each layer.
        stages: how many stages the one map is given to.
    """

    def __init__(
        self, views: int, channels: tuple[int, ...], norm_groups: tuple[int, ...], activation: str, stages: int
    ) -> None:
        super().__init__()
        self.stages = stages
        inputs = (views, *channels[:-1])
        self.layers = nn.Sequential(
            *(
                conv_norm_act(2, inputs[i], channels[i], 7 if i == 0 else 3, norm_groups[i], activation, stride=2)
                for i in range(len(channels))
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, views, H, W) → per stage the same (batch, 1, channels, h, w)."""
        features = self.layers(x).unsqueeze(1)
        return [features for _ in range(self.stages)]


class PyramidEncoder(nn.Module):
    """Shared weights turn each view, on its own, into a feature pyramid (Lin et al., *FPN*, CVPR 2017).

    Going down, resolution is halved by 2×2 averages: anti-aliased, and the edges of the larger pixels stay on edges
    of detector pixels, which the back-projection relies on. Going up, coarse maps are added to finer ones, so that
    every level has seen the whole radiograph. Every level that is read is given the averaged radiograph itself too:
    the normalisation takes away how much a patient attenuates altogether.

    Args:
        channels: of each level, from the full resolution down; deeper levels take the last.
        levels: for every stage, the level that it reads (see :func:`pyramid_level`).
        outputs: for every stage, the number of channels that it is given.
        norm_groups: most groups of a normalisation.
        activation: after each layer.
        first: how often radiographs are halved before the first level.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        levels: tuple[int, ...],
        outputs: tuple[int, ...],
        norm_groups: int,
        activation: str,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.first = first
        self.levels = list(levels)
        self.finest = min(levels)
        widths = [channels[min(i, len(channels) - 1)] for i in range(max(levels) + 1)]
        shared = widths[-1]

        def layer(inputs: int, width: int, kernel: int) -> nn.Sequential:
            return conv_norm_act(2, inputs, width, kernel, group_count(width, norm_groups), activation)

        self.down = nn.ModuleList([nn.Sequential(layer(1, widths[0], 5))])
        for fine, coarse in itertools.pairwise(widths):
            self.down.append(nn.Sequential(layer(fine, coarse, 3), layer(coarse, coarse, 3)))
        # levels finer than any stage reads end on the way down; the coarsest needs nothing added
        self.lateral = nn.ModuleList(nn.Conv2d(width + 1, shared, 1) for width in widths[self.finest :])
        self.output = nn.ModuleList(nn.Conv2d(shared, width, 3, padding=1) for width in outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, views, H, W) → per stage (batch, views, channels, h, w) with h = ⌈H / 2^(first + level)⌉."""
        batch, views = x.shape[0], x.shape[1]
        radiograph = x.flatten(0, 1).unsqueeze(1)
        for _ in range(self.first):
            radiograph = halved(radiograph)
        features = radiograph
        maps: list[Tensor] = []
        for i, down in enumerate(self.down):
            if i > 0:
                features, radiograph = halved(features), halved(radiograph)
            features = down(features)
            if i >= self.finest:
                maps.append(torch.cat([features, radiograph.to(features.dtype)], dim=1))

        pyramid: list[Tensor] = []
        for i, lateral in enumerate(self.lateral):
            pyramid.append(lateral(maps[i]))
        for i in range(len(pyramid) - 2, -1, -1):
            height, width = pyramid[i].shape[2], pyramid[i].shape[3]
            coarse = F.interpolate(pyramid[i + 1], scale_factor=2.0, mode="bilinear", align_corners=False)
            pyramid[i] = pyramid[i] + coarse[:, :, :height, :width]

        result: list[Tensor] = []
        for i, output in enumerate(self.output):
            result.append(torch.unflatten(output(pyramid[self.levels[i] - self.finest]), 0, [batch, views]))
        return result
