from __future__ import annotations

import numpy as np
import pytest
import torch

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.augmentation import RandQuantumNoised
from drr2ct.transforms.validation import InputError


def test_counting_noise_is_that_of_the_photons() -> None:
    level = 2.0 / LINE_INTEGRAL_SCALE
    flat = torch.full((2, 200, 200), level)
    noise = RandQuantumNoised("image", (1e4, 1e4))
    noise.set_random_state(0)
    noisy = noise({"image": flat})["image"]
    assert torch.equal(flat, torch.full((2, 200, 200), level))
    spread = float((noisy * LINE_INTEGRAL_SCALE).std())
    assert spread == pytest.approx(1 / np.sqrt(1e4 * np.exp(-2.0)), rel=0.03)
    assert float(noisy.mean()) == pytest.approx(level, rel=1e-3)
    noise.set_random_state(0)
    assert torch.equal(noise({"image": flat})["image"], noisy)
    assert not torch.equal(noise({"image": flat})["image"], noisy)


def test_mistakes_are_refused() -> None:
    with pytest.raises(InputError, match="no range"):
        RandQuantumNoised("image", (1e6, 1e4))
