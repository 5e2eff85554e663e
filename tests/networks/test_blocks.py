import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from drr2ct.networks.blocks import (
    OUTPUT_BIAS,
    GroupNorm,
    ResidualDenseBlock,
    UShape,
    VolumeTransformer,
    activation_layer,
    group_count,
    output_head,
)


@given(st.integers(1, 400), st.integers(1, 64))
def test_group_count_is_the_largest_divisor(channels: int, at_most: int) -> None:
    assert group_count(channels, 0) == 0
    groups = group_count(channels, at_most)
    assert channels % groups == 0
    assert groups <= at_most
    assert not any(channels % n == 0 for n in range(groups + 1, min(at_most, channels) + 1))


def test_residual_dense_block_has_the_layers_of_the_design() -> None:
    block = ResidualDenseBlock(channels=10, growth=4, layers=3, activation="gelu")
    for i, (conv, norm, activation) in enumerate(block.layers):
        assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (10 + 4 * i, 4, (3, 3, 3))
        assert conv.bias is not None
        assert (norm.num_groups, norm.num_channels) == (4, 4)
        assert isinstance(activation, nn.GELU)
    assert (block.fuse.in_channels, block.fuse.out_channels, block.fuse.kernel_size) == (22, 10, (1, 1, 1))
    assert ResidualDenseBlock(8, 24, 1).layers[0][1].num_groups == 8
    assert ResidualDenseBlock(8, 12, 1).layers[0][1].num_groups == 6


def test_u_shape_has_two_convolutions_of_each_size_and_sees_as_far_as_it_halves() -> None:
    torch.manual_seed(0)
    block = UShape(4, 2, "relu", norm_groups=0)
    widths = [
        module.weight.shape[:2] for module in block.modules() if getattr(module, "kernel_size", None) == (3, 3, 3)
    ]
    assert widths == [(4, 4), (8, 8), (12, 12), (12, 12), (12, 12), (8, 8), (4, 4)]
    x = torch.rand(2, 4, 32, 32, 32, requires_grad=True)
    assert block(x).shape == x.shape
    assert sum(isinstance(module, GroupNorm) for module in UShape(4, 1, "relu", norm_groups=2).modules()) == 5
    alone = UShape(4, 0, "relu", norm_groups=0)
    assert not any(isinstance(module, nn.AvgPool3d) for module in alone.modules())
    for shape, first, last in ((block, 0, 31), (alone, 13, 19)):
        x.grad = None
        shape(x)[0, :, 16, 16, 16].sum().backward()
        reached = x.grad.abs().sum(dim=(0, 1)).nonzero()
        assert (int(reached.min()), int(reached.max())) == (first, last)
        assert (x.grad[1] == 0).all()
    with pytest.raises(RuntimeError, match="size"):
        block(torch.rand(1, 4, 6, 6, 6))


def test_without_normalisation_magnitudes_are_kept() -> None:
    torch.manual_seed(0)
    block = ResidualDenseBlock(32, 16, 4, activation="relu", normalised=False)
    assert not any(isinstance(module, nn.GroupNorm) for module in block.modules())
    x = torch.randn(1, 32, 12, 12, 12)
    features = x
    for layer in block.layers:
        features = torch.cat([features, layer(features)], dim=1)
    power = features[..., 4:8, 4:8, 4:8].square().mean((0, 2, 3, 4))  # away from the padding
    assert 0.5 < power[32:].mean() < 2
    # what normalisation takes away: how large the input is
    for normalised in (False, True):
        layer = ResidualDenseBlock(32, 16, 1, activation="relu", normalised=normalised).layers[0]
        assert torch.allclose(layer(2 * x), 2 * layer(x), atol=1e-4) != normalised


def test_residual_dense_block_by_hand() -> None:
    torch.manual_seed(0)
    block, x = ResidualDenseBlock(6, 4, 2), torch.randn(2, 6, 5, 4, 3)
    first = block.layers[0](x)
    second = block.layers[1](torch.cat([x, first], 1))
    assert torch.allclose(block(x), x + block.fuse(torch.cat([x, first, second], 1)), atol=1e-6)
    nn.init.zeros_(block.fuse.weight)
    nn.init.zeros_(block.fuse.bias)
    assert torch.equal(block(x), x)


def test_group_norm_keeps_the_precision_under_autocast() -> None:
    torch.manual_seed(0)
    norm, x = GroupNorm(2, 8), 3 + torch.randn(2, 8, 6, 6, 6)
    nn.init.normal_(norm.weight)
    with torch.autocast("cpu", torch.bfloat16):
        half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), nn.GroupNorm.forward(norm, x), atol=0.1)
    assert torch.equal(norm(x), nn.GroupNorm.forward(norm, x))


@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_head_starts_near_the_mean_ct_without_a_checkerboard(upscale: int) -> None:
    torch.manual_seed(0)
    head, x = output_head(16, upscale), torch.randn(1, 16, 4, 4, 4)
    y = head(x)
    assert y.shape == (1, 1, 4 * upscale, 4 * upscale, 4 * upscale)
    assert (y - OUTPUT_BIAS).abs().max() < 0.3
    coarse = y[..., ::upscale, ::upscale, ::upscale]
    for axis in (2, 3, 4):
        coarse = coarse.repeat_interleave(upscale, axis)
    assert torch.allclose(y, coarse, atol=1e-6)


def test_sub_voxel_head_puts_channels_in_their_octant() -> None:
    head = output_head(8, 2)
    nn.init.zeros_(head.conv_block.weight)
    with torch.no_grad():
        head.conv_block.bias.copy_(torch.arange(8))
    y = head(torch.zeros(1, 8, 3, 3, 3))[0, 0]
    for i, j, k in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        assert (y[i::2, j::2, k::2] == 4 * i + 2 * j + k).all()


def test_transformer_carries_information_across_the_whole_cube() -> None:
    torch.manual_seed(0)
    block, x = VolumeTransformer(16, 4, layers=1, heads=4), torch.randn(1, 16, 4, 4, 4, requires_grad=True)
    y = block(x)
    assert y.shape == x.shape
    y[0, :, 0, 0, 0].square().sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 3, 3, 3].abs().max() > 0


def test_transformer_knows_where_a_token_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 4, 4, 4)
    block = VolumeTransformer(16, 4, layers=1, heads=4)
    assert not torch.allclose(block(x.flip(2)).flip(2), block(x), atol=1e-3)
    nn.init.zeros_(block.position)
    assert torch.allclose(block(x.flip(2)).flip(2), block(x), atol=1e-4)


def test_activation_names() -> None:
    assert isinstance(activation_layer("relu"), nn.ReLU)
    assert isinstance(activation_layer("leakyrelu"), nn.LeakyReLU)
