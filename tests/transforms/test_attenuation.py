import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drr2ct.transforms.attenuation import MU_BONE, MU_WATER, hu_to_attenuation, transmission_to_line_integral


@pytest.mark.parametrize(
    ("hu", "mu"), [(-5000, 0), (-1024, 0), (-1000, 0), (-500, MU_WATER / 2), (0, MU_WATER), (1000, MU_BONE)]
)
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.float64])
def test_known_materials(hu, mu, dtype):
    assert hu_to_attenuation(torch.tensor([hu], dtype=dtype)).item() == pytest.approx(mu, abs=1e-8)


def test_agrees_with_nanodrr():
    from nanodrr.data.preprocess import hu_to_mu

    hu = torch.linspace(-1200, 3500, 4001)
    torch.testing.assert_close(hu_to_attenuation(hu), hu_to_mu(hu), rtol=1e-5, atol=1e-7)


@given(st.integers(-999, 3070))
def test_grows_with_hu(hu):
    low, high = hu_to_attenuation(torch.tensor([hu, hu + 1]))
    assert high > low


def test_leaves_the_input_alone_and_keeps_its_memory_order():
    hu = torch.arange(-2000.0, 400).reshape(20, 10, 12).permute(2, 1, 0)
    before = hu.clone()
    assert hu_to_attenuation(hu).stride() == hu.stride()
    assert torch.equal(hu, before)


def test_gradient():
    hu = torch.tensor([-1100.0, -300.0, 250.0], requires_grad=True)
    hu_to_attenuation(hu).sum().backward()
    np.testing.assert_allclose(hu.grad, [0, MU_WATER / 1000, (MU_BONE - MU_WATER) / 1000], rtol=1e-5)


@given(st.floats(0, 15))
def test_beer_lambert_round_trip(p):
    counts = 5000.0 * torch.exp(-torch.tensor([p], dtype=torch.float64))
    assert transmission_to_line_integral(counts, 5000.0, 1e-9).item() == pytest.approx(p, abs=1e-6)


def test_starved_and_overexposed_pixels():
    result = transmission_to_line_integral(torch.tensor([0.0, 70000.0]), 65535.0, 0.5)
    assert result.tolist() == pytest.approx([math.log(65535 / 0.5), 0.0])
