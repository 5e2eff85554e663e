"""Radiographs that were given beside those that a volume would give."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.pipeline.pictures.figures import compared
from drr2ct.pipeline.pictures.scales import show_error
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry

_ENOUGH_PIXELS = 256
"""Of a detector, along its shorter side: a picture is not as wide, and rays take time."""


def with_reprojection(
    given: Float[Tensor, "views rows columns"], volume: MetaTensor, geometry: BiplanarGeometry
) -> tuple[Float[Tensor, "views fewer_rows fewer_columns"], Float[Tensor, "views fewer_rows fewer_columns"]]:
    """Radiographs that were given and those of a volume, as :func:`radiographs_figure` wants them.

    On a detector of no more pixels than a picture shows, for which those of the given ones are averaged.

    Args:
        given: line integrals, in the order of the geometry's views.
        volume: (1, N, N, N) in HU on the geometry's grid.
        geometry: whose views they are.
    """
    rows, columns = geometry.detector_size
    factor = max(
        n for n in range(1, 1 + max(1, min(rows, columns) // _ENOUGH_PIXELS)) if math.gcd(rows, columns) % n == 0
    )
    coarse = geometry.resized(detector_size=(rows // factor, columns // factor))
    return F.avg_pool2d(given[None], factor)[0], render_drr(volume, coarse)


def radiographs_figure(
    given: Float[Tensor, "views rows columns"],
    reprojected: Float[Tensor, "views rows columns"],
    geometry: BiplanarGeometry,
    top: float,
) -> Figure:
    """What the network was given, what its volume would look like on X-rays, and the difference; one row per view.

    Args:
        given: line integrals, in the order of the geometry's views.
        reprojected: line integrals of the prediction.
        geometry: whose views they are.
        top: line integral shown in white, alike for all patients; a quarter of it is the end of the difference's scale.
    """
    figure, grid, scale = compared(len(geometry.views), ("given X-ray", "reprojection", "difference"))
    for row, view, seen, made in zip(grid, geometry.views, given.cpu().numpy(), reprojected.cpu().numpy(), strict=True):
        row[0].imshow(seen, cmap="gray", vmin=0, vmax=top)
        row[1].imshow(made, cmap="gray", vmin=0, vmax=top)
        shown = show_error(row[2], made - seen, top / 4)
        row[0].set_ylabel(f"{view.name} ({view.gantry_angle_deg:g}°)", fontsize=10)
    figure.colorbar(shown, cax=scale, label="difference of line integrals", orientation="horizontal")
    return figure
