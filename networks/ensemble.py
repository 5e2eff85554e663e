"""What the members of an ensemble say together: their volumes' mean, in which those that stand apart count less."""

from __future__ import annotations

import torch
from torch import Tensor

AGREED = 1e-3
"""Mean squared distance, of the HU window's width squared, below which members count alike: 129 HU RMS of 4095. On good
DRRs each of the shipped networks' members is 55 to 77 HU from what the others say; of a height that is 30 mm wrong, the
one that never saw films is 191 to 198 HU away, and counts 0.12 (``benchmarks/members.py``)."""


def distances_and_weights(volumes: Tensor, alike: float) -> tuple[Tensor, Tensor]:
    """How far each member is from what the others say, and what it counts.

    Args:
        volumes: (members, batch, 1, N, N, N).
        alike: see :data:`AGREED`.

    Returns:
        Mean squared distance from the others' mean, and weights that sum to 1; both (members, batch).
    """
    others = (volumes.sum(dim=0, keepdim=True) - volumes) / (volumes.shape[0] - 1)
    distances = (volumes - others).square().flatten(2).mean(dim=2)
    weights = (distances + alike).pow(-2)
    return distances, weights / weights.sum(dim=0, keepdim=True)


def agreed_and_spread(volumes: list[Tensor], alike: float = AGREED) -> tuple[Tensor, Tensor]:
    """Members' volumes in one, and how far they differ.

    Each member counts by (d² + ``alike``)⁻², where d² is the mean squared distance, over the volume, of what it
    says from the mean of what the others say: inverse-variance weighting, squared, of each sample by itself. So a
    member that is better on good DRRs and lost on others is taken where it is of use. Two are always as far from each
    other, and their mean is plain. Gradients do not pass through the weights.

    Args:
        volumes: of each member (batch, 1, N, N, N), in [0, 1] over the HU window.
        alike: see :data:`AGREED`; an argument, since TorchScript takes no module's constant.

    Returns:
        The weighted mean, in their type, and their standard deviation, unweighted, in float32 and detached; both
        (batch, 1, N, N, N).
    """
    stacked = torch.stack(volumes).float()  # they differ by less than bfloat16 tells apart
    said = stacked.detach()
    weights = distances_and_weights(said, alike)[1]
    agreed = (weights[:, :, None, None, None, None] * stacked).sum(dim=0)
    return agreed.to(volumes[0].dtype), said.std(dim=0, correction=0)
