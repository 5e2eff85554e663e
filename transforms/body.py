"""Where in a volume the body is, roughly and on any device; for masks that figures rest on, see ``structures``."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

TISSUE_HU = -500.0
"""Above is tissue; lungs and the air around the patient are below."""


def within_tissue(tissue: Bool[Tensor, "*batch x y z"]) -> Bool[Tensor, "*batch x y z"]:
    """What has tissue on both sides along x, and along y, or is tissue itself: the body with its lungs.

    Not along z, since a scan may end within the lungs.
    """
    inside = tissue.new_ones(()).expand_as(tissue)
    for axis in (-3, -2):
        before = tissue.cumsum(axis, dtype=torch.int16)
        after = before.narrow(axis, before.shape[axis] - 1, 1) - before
        inside = inside & (before > 0) & ((after > 0) | tissue)
    return inside
