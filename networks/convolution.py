"""Convolutions in 3-D that a CPU computes fast, whatever the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 20480
"""Of one float32 sample, PyTorch 2.13 leaves a convolution with less than 4³ neighbours to oneDNN above this product of
all sizes but the last (``use_mkldnn`` in its Convolution.cpp); below, it unfolds the sample, which takes 5 to 12 times
as long."""


class Conv3d(nn.Conv3d):
    """:class:`torch.nn.Conv3d` that takes a single small volume apart, so that oneDNN computes it as a batch of two.

    The two halves overlap by the kernel's reach; results and gradients are those of the whole, up to rounding. On other
    devices, in half precision and for what is exported it is its parent.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, x, y, z) → the same, with the output channels."""
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if self._is_unfolded(input):
                return self._in_halves(input)
        return F.conv3d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.jit.unused
    def _is_unfolded(self, input: Tensor) -> bool:
        """Whether PyTorch would compute this without oneDNN, for no better reason than its size."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        batch, channels, rows, columns = input.shape[:4]
        reach = int(self.padding[0])
        return (
            input.device.type == "cpu"
            and input.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()
            and batch == 1
            and channels * rows * columns <= _SMALL
            and reach > 0
            and rows >= 4 * reach
            and (self.stride, self.dilation, self.groups) == ((1, 1, 1), (1, 1, 1), 1)
            and self.kernel_size == (2 * reach + 1,) * 3
        )

    @torch.jit.unused
    def _in_halves(self, input: Tensor) -> Tensor:
        rows, reach = input.shape[2], int(self.padding[0])
        half = (rows + 1) // 2  # of an odd number of rows, the middle one is in both
        padded = F.pad(input, (0, 0, 0, 0, reach, reach))
        halves = torch.cat([padded[:, :, : half + 2 * reach], padded[:, :, rows - half :]])
        result = F.conv3d(halves, self.weight, self.bias, padding=(0, reach, reach))
        return torch.cat([result[:1], result[1:, :, 2 * half - rows :]], dim=2)
