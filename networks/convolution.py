"""Convolutions of volumes, kept off the kernels that are slow on a CPU.

PyTorch gives two kinds of them on a CPU to kernels that unfold the whole input (``slow_conv3d``) instead of to oneDNN:
those of 1³ on one thread, and those of any kernel of one small volume. Here the first are matrix products, which they
are, and the second are computed as a batch of two, in halves. So are somewhat larger ones in training, whose gradients
oneDNN finds faster for two. What is computed is the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 20480
"""Up to so many values in a plane of all channels PyTorch leaves one volume to its own kernel (``use_mkldnn`` in
aten/src/ATen/native/Convolution.cpp)."""

_SMALL_IN_TRAINING = 32768
"""Up to so many values there a gradient takes less time in halves: docs/speed.md."""


class Conv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` of stride 1 that keeps the volume's size, its parameters and their names.

    Exported, compiled, on a GPU and in half precision it is PyTorch's own convolution.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: edge of the kernel, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, x, y, z) → the same with the output's channels."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if _at_once_on_a_cpu(input):
                return self._forward_on_cpu(input)
        return self._conv_forward(input, self.weight, self.bias)

    @torch.jit.unused
    def _forward_on_cpu(self, input: Tensor) -> Tensor:
        batch, channels, depth, rows, _ = input.shape
        if self.kernel_size[0] == 1:
            return self._product(input)
        small = _SMALL_IN_TRAINING if torch.is_grad_enabled() else _SMALL
        if batch > 1 or channels * depth * rows > small or depth % 2:
            return self._conv_forward(input, self.weight, self.bias)
        edge, half = self.kernel_size[0] // 2, depth // 2
        padded = F.pad(input, (0, 0, 0, 0, edge, edge))
        halves = torch.cat([padded[:, :, : half + 2 * edge], padded[:, :, half:]])
        both = F.conv3d(halves, self.weight, self.bias, padding=(0, edge, edge))
        return both.transpose(0, 1).reshape(1, self.out_channels, *input.shape[2:])

    def _product(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.flatten(1), self.bias
        assert bias is not None  # for the type checker
        if not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last_3d):
            return F.linear(input.permute(0, 2, 3, 4, 1), weight, bias).permute(0, 4, 1, 2, 3)
        weights = weight.expand(len(input), -1, -1)
        return torch.baddbmm(bias[:, None], weights, input.flatten(2)).unflatten(2, input.shape[2:])


@torch.jit.unused
def _at_once_on_a_cpu(input: Tensor) -> bool:
    """Whether numbers are computed here and now, in float32: not traced, planned or under autocast."""
    return (
        type(input) is Tensor  # those of a plan are of a class of their own
        and input.device.type == "cpu"
        and input.dtype == torch.float32
        and not (torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch.compiler.is_compiling())
    )
