"""Whether two CTs show one body: a small picture of the anatomy that survives resampling and compression.

The CT is resampled to a coarse grid about the centre of the body, clipped to what tissue can have, and freed of its
slow trend, in which all chests are alike. Two scans of one person taken at different times are not meant to match;
one scan stored twice is.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.data import MetaTensor

from drr2ct.transforms.geometry import VolumeGrid
from drr2ct.transforms.memory_order import upright_block_means
from drr2ct.transforms.volume import ResampleToGrid

SAME_ANATOMY = 0.93
"""Correlation from which on two are one scan; benchmarks/twins.py measures how far others stay below."""

_GRID = VolumeGrid(24, 384.0, vertical_flip=False)
_CLIP_HU = (-1000.0, 300.0)
_BODY_HU = -400.0
_CHUNK = 512
_MEAN_MM = 3.0


def anatomy_of(ct: MetaTensor) -> Float[np.ndarray, " numbers"]:
    """The picture of a CT's anatomy, of mean 0 and length 1.

    Args:
        ct: (1, I, J, K) in HU, with an affine; any orientation.
    """
    # means of neighbours first: the low pass of the resampling would be 70 voxels long, at full resolution
    spacing = np.linalg.norm(np.asarray(ct.affine, dtype=np.float64)[:3, :3], axis=0).tolist()
    edges = [max(1, min(int(_MEAN_MM / edge), n)) for edge, n in zip(spacing, ct.shape[1:], strict=True)]
    coarse = upright_block_means(ct, edges)
    body = coarse.as_tensor()[0] > _BODY_HU
    place = torch.nonzero(body).double().mean(0).numpy() if body.any() else (np.array(body.shape) - 1) / 2
    centre = (np.asarray(coarse.affine, dtype=np.float64) @ np.array([*place, 1.0]))[:3]
    coarse.meta["isocentre"] = centre.tolist()
    small = ResampleToGrid(_GRID)(coarse).as_tensor().clamp(*_CLIP_HU)[None]
    detail = (small - F.avg_pool3d(small, 5, stride=1, padding=2, count_include_pad=False)).flatten().numpy()
    detail = detail - detail.mean()
    return detail / max(float(np.linalg.norm(detail)), 1e-9)


def encode_anatomy(anatomy: Float[np.ndarray, " numbers"]) -> str:
    """As text, in 8 bits a number."""
    largest = max(float(np.abs(anatomy).max()), 1e-9)
    return base64.b85encode((anatomy / largest * 127).round().astype(np.int8).tobytes()).decode()


def decode_anatomy(text: str) -> Float[np.ndarray, " numbers"]:
    """Inverse of :func:`encode_anatomy`, up to its rounding.

    Raises:
        ValueError: for other text.
    """
    numbers = np.frombuffer(base64.b85decode(text), dtype=np.int8).astype(np.float32)
    if numbers.size != _GRID.size**3:
        raise ValueError("another grid")
    return numbers / max(float(np.linalg.norm(numbers)), 1e-9)


def twins(anatomies: Mapping[str, Float[np.ndarray, " numbers"]]) -> dict[str, str]:
    """Names whose CT is that of an earlier name, with the first of them."""
    names = sorted(anatomies)
    if not names:
        return {}
    table = np.stack([anatomies[name] for name in names]).astype(np.float32)
    first: dict[str, str] = {}
    for start in range(0, len(names), _CHUNK):
        likeness = table[start : start + _CHUNK] @ table.T
        for row, column in zip(*np.nonzero(likeness > SAME_ANATOMY), strict=True):
            if column < start + row:
                first.setdefault(names[start + row], first.get(names[column], names[column]))
    return first
