import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from drr2ct.networks.convolution import Conv3d
from tests.networks.test_cascade import radiographs, tiny


def pair(inputs: int, outputs: int, kernel: int, channels_last: bool) -> tuple[Conv3d, nn.Conv3d]:
    """Ours and PyTorch's, of the same weights."""
    torch.manual_seed(0)
    ours, plain = Conv3d(inputs, outputs, kernel), nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)
    ours.load_state_dict(plain.state_dict())
    if channels_last:
        for module in (ours, plain):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return ours, plain


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), *(p.grad for p in (x, *module.parameters()) if p.grad is not None)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    "shape", [(1, 3, 6, 5, 4), (1, 3, 5, 4, 6), (2, 3, 6, 5, 4), (1, 6, 60, 60, 2), (1, 3, 2, 2, 2)]
)
def test_it_is_pytorch_s_convolution(shape: tuple[int, ...], kernel: int, channels_last: bool) -> None:
    ours, plain = pair(shape[1], 4, kernel, channels_last)
    x = torch.randn(shape)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    found, wanted = results(ours, x), results(plain, x)
    assert len(found) == 4
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    if channels_last and kernel == 1:
        assert found[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_in_half_precision_it_is_pytorch_s_own() -> None:
    ours, plain = pair(3, 4, 1, False)
    x = torch.randn(1, 3, 6, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
        assert torch.equal(ours(x), plain(x))


@pytest.mark.parametrize("channels_last", [False, True])
def test_no_network_of_ours_reaches_the_slow_kernels(channels_last: bool) -> None:
    network = tiny(channels_last=channels_last, interval=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        output = network(radiographs(network)[:1])
        (output.estimate.sum() + output.bounds.sum()).backward()
    names = {event.key for event in profiled.key_averages()}
    assert any("mkldnn_convolution" in name for name in names)
    assert not any("slow_conv3d" in name for name in names)
