"""Volumes that the tests of evaluation compare."""

import torch
from scipy import ndimage

from tests.files import chest


def volume(n: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(chest((n, n, n), seed))[None]


def blurred(hu: torch.Tensor, sigma: float = 1.5) -> torch.Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(hu.numpy(), (0, sigma, sigma, sigma)))
