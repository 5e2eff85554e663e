"""Pictures as films are: rendered from the sample CT, and then toned, cropped, turned and written on."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

import drr2ct.pipeline.data.sample as sample
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from drr2ct.transforms.volume import LoadCT

GEOMETRY = BiplanarGeometry.from_angles(detector_size=128)
PITCH = GEOMETRY.views[0].pixel_pitch_mm
FIELD = (slice(36, 92), slice(24, 104))
"""Rows within the scan: what a film of the sample CT can show, a field of 236 × 337 mm."""


@cache
def line_integrals(raised_mm: float = 0.0) -> Tensor:
    """PA and lateral of the sample CT, (2, 128, 128), with the isocentre moved up."""
    ct = LoadCT()(next(Path(sample.__path__[0]).glob("*/*.nii.gz")))
    affine = np.asarray(ct.affine, dtype=float)
    centre = affine[:3, :3] @ ((np.array(ct.shape[1:]) - 1) / 2) + affine[:3, 3]
    return render_drr(ct, GEOMETRY, isocentre=(centre + np.array([0, 0, raised_mm])).tolist())


@cache
def statistics() -> dict[str, Any]:
    """Of a training set of patients like the sample's, larger, smaller, higher, lower, leaning."""
    variations = []
    for zoom, shift, tilt in ((1.0, 0, 0), (0.94, 3, 3), (1.05, -3, -4), (0.97, -2, -2), (1.02, 2, 5)):
        turned = ndimage.rotate(line_integrals().numpy(), tilt, axes=(1, 2), reshape=False, order=1)
        matrix = np.diag([1, 1 / zoom, 1 / zoom])
        offset = np.array([0, 63.5 * (1 - 1 / zoom) - shift, 63.5 * (1 - 1 / zoom)])
        variations.append({"image": torch.from_numpy(ndimage.affine_transform(turned, matrix, offset, order=1)) / 6})
    return radiograph_statistics(variations)


def toned(image: Tensor, gamma: float = 0.7, top: float = 0.98) -> Tensor:
    """Dense is bright, 0 to 1, 8 bits, with a console's curve and a clipped top."""
    scaled = (image / image.flatten().quantile(top)).clamp(0, 1) ** gamma
    return (255 * scaled).round() / 255
