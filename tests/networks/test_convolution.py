"""A convolution of one small volume gives what PyTorch's gives, by another way."""

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from drr2ct.networks import create_network
from drr2ct.networks.convolution import Conv3d

SHAPES = [
    (1, 3, 8, 7, 6),
    (1, 3, 9, 4, 5),  # an odd number of rows: the halves share one
    (1, 3, 4, 3, 3),  # the fewest rows that are taken apart
    (1, 3, 3, 8, 8),  # too few
    (2, 3, 8, 7, 6),
    (1, 3, 32, 213, 2),  # one neighbour's product below the limit, and one above
    (1, 3, 32, 214, 2),
]


def pair(kernel: int = 3) -> tuple[Conv3d, torch.nn.Conv3d]:
    own = Conv3d(3, 5, kernel, padding=kernel // 2)
    other = torch.nn.Conv3d(3, 5, kernel, padding=kernel // 2)
    other.load_state_dict(own.state_dict())
    return own, other


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_are_those_of_the_whole(
    shape: tuple[int, ...], kernel: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    own, other = pair(kernel)
    inputs = [torch.randn(shape).to(memory_format=layout) for _ in range(1)] * 2
    weights = torch.randn(shape[0], 5, *shape[2:])
    results, gradients = [], []
    for module, volume in zip((own, other), inputs, strict=True):
        volume = volume.clone().requires_grad_()
        result = module(volume)
        (result * weights).sum().backward()
        results.append(result.detach())
        gradients.append([volume.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def unfolding(network: torch.nn.Module, x: Tensor) -> list[str]:
    """Shapes of the inputs of 3³ convolutions that PyTorch computed without oneDNN."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        network(x).sum().backward()
    wide = [e for e in record.events() if e.name.startswith("aten::slow_conv3d") and e.input_shapes[1][-1:] == [3]]
    return [str(e.input_shapes) for e in wide]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_no_convolution_of_a_single_sample_misses_onednn() -> None:
    x = torch.rand(1, 3, 16, 16, 16)
    assert unfolding(pair()[1], x)  # what this is for; once it fails, PyTorch does so by itself
    network = create_network("cascade64", size=32, detector_size=64)
    assert unfolding(network, torch.rand(1, 2, 64, 64)) == []


def test_other_devices_precisions_and_exports_see_the_plain_convolution() -> None:
    own, other = pair()
    x = torch.rand(1, 3, 8, 8, 8)
    assert own.to("meta")(x.to("meta")).shape == (1, 5, 8, 8, 8)
    own = pair()[0]
    other.load_state_dict(own.state_dict())
    torch.testing.assert_close(own.double()(x.double()), other.double()(x.double()))
    own.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own(x).dtype == torch.bfloat16
    traced = torch.jit.trace(own, x)
    assert "cat" not in str(traced.graph)
    torch.testing.assert_close(traced(x), own(x), rtol=1e-4, atol=1e-4)
    assert not any("cat" in str(node.target) for node in torch.export.export(own, (x,)).graph.nodes)
