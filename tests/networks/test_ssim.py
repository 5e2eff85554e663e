import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import SSIMLoss
from monai.metrics import SSIMMetric
from skimage.metrics import structural_similarity

from drr2ct.networks.ssim import SeparableSSIMMetric, gaussian_window, mean_ssim
from drr2ct.transforms.validation import InputError


def pair(shape: tuple[int, ...], seed: int = 0, noise: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(shape, generator=generator)
    return first, first + noise * torch.randn(shape, generator=generator)


@settings(deadline=None, max_examples=12)
@given(
    st.integers(2, 3),
    st.lists(st.integers(11, 17), min_size=3, max_size=3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.sampled_from([0.01, 0.2, 1.0]),
    st.sampled_from([1.0, 2500.0]),
)
def test_value_and_gradient_are_monais(
    dims: int, sizes: list[int], batch: int, channels: int, noise: float, data_range: float
) -> None:
    first, second = (data_range * x for x in pair((batch, channels, *sizes[:dims]), noise=noise))
    first.requires_grad_()
    second.requires_grad_()
    theirs = SSIMLoss(dims, data_range=data_range)(first, second)
    ours = 1 - mean_ssim(first, second, [gaussian_window(11, 1.5)] * dims, data_range).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for mine, wanted in zip(
        torch.autograd.grad(ours, (first, second)), torch.autograd.grad(theirs, (first, second)), strict=True
    ):
        # float32 leaves E[x²] − E[x]² about four digits in a nearly constant window
        assert torch.allclose(
            mine * data_range, wanted * data_range, atol=1e-5 * (wanted * data_range).abs().max() + 1e-6
        )


def test_analytic_gradient() -> None:
    first, second = (x.double().requires_grad_() for x in pair((2, 1, 5, 4, 6)))
    windows = [gaussian_window(3, 0.8), gaussian_window(2, 0.8), gaussian_window(3, 1.2)]
    assert torch.autograd.gradcheck(lambda a, b: mean_ssim(a, b, windows), (first, second))


@pytest.mark.parametrize("shape", [(40, 32), (18, 20, 22)])
def test_value_is_skimages(shape: tuple[int, ...]) -> None:
    first, second = pair((1, 1, *shape))
    value = mean_ssim(first, second, [gaussian_window(11, 1.5)] * len(shape)).item()
    _, full = structural_similarity(
        first[0, 0].double().numpy(),
        second[0, 0].double().numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    valid = full[tuple(slice(5, n - 5) for n in shape)]
    assert value == pytest.approx(float(np.mean(valid)), abs=1e-5)


@pytest.mark.parametrize("kernel_type", ["gaussian", "uniform"])
def test_metric_accumulates_like_monais(kernel_type: str) -> None:
    options = {"data_range": 2.0, "kernel_type": kernel_type, "win_size": 7, "kernel_sigma": 1.0}
    ours, theirs = SeparableSSIMMetric(3, **options), SSIMMetric(3, **options)
    for seed in range(3):
        first, second = pair((2, 1, 9, 10, 11), seed)
        assert torch.allclose(ours(first, second), theirs(first, second), atol=1e-5)
        assert ours(first, second).shape == (2, 1)
        theirs(first, second)
    assert ours.aggregate().item() == pytest.approx(theirs.aggregate().item(), abs=1e-5)


def test_identical_images_are_similar() -> None:
    first, _ = pair((1, 1, 16, 16, 16))
    assert mean_ssim(first, first, [gaussian_window(11, 1.5)] * 3).item() == pytest.approx(1.0, abs=1e-5)


def test_refuses_what_does_not_fit() -> None:
    windows = [gaussian_window(11, 1.5)] * 3
    with pytest.raises(InputError, match="at least 11×11×11"):
        mean_ssim(torch.zeros(1, 1, 8, 16, 16), torch.zeros(1, 1, 8, 16, 16), windows)
    with pytest.raises(InputError, match="one shape"):
        mean_ssim(torch.zeros(1, 1, 16, 16, 16), torch.zeros(2, 1, 16, 16, 16), windows)
    with pytest.raises(InputError, match="3 spatial axes"):
        mean_ssim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), windows)


def test_is_many_times_faster_than_monai() -> None:
    first, second = pair((1, 1, 32, 32, 32))
    first.requires_grad_()

    def seconds(loss) -> float:
        start = time.perf_counter()
        loss().backward()
        return time.perf_counter() - start

    windows = [gaussian_window(11, 1.5)] * 3
    ours = min(seconds(lambda: mean_ssim(first, second, windows).mean()) for _ in range(3))
    theirs = min(seconds(lambda: SSIMLoss(3)(first, second)) for _ in range(2))
    assert ours < theirs / 5
