"""Known doubt: for every voxel a lower and an upper bound beside the estimate.

An output without bounds is (batch, 1, N, N, N), one with bounds (batch, 3, N, N, N): estimate, lower, upper, all in
[0, 1] over the HU window. Whatever wants the estimate alone asks :func:`estimate_of`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import SubpixelUpsample
from monai.networks.utils import icnr_init
from torch import Tensor, nn

from drr2ct.networks.blocks import Upsample, activation_layer
from drr2ct.networks.convolution import Conv3d
from drr2ct.networks.recompute import recomputed, recording

TAIL = 0.05
"""Share of voxels that are meant to lie below the lower bound, and above the upper one: 90 % lie between."""
WIDTH_UNIT = 0.05
"""What a width is measured in; an untrained head puts each bound 0.035, 142 HU, from the estimate."""
_HIDDEN = 16
KNOTS = 8
"""Predicted widths at which a calibration has its factors."""


def has_bounds(output: Tensor) -> bool:
    """Whether an output, with or without its batch dimension, holds more than the estimate."""
    return output.shape[-4] > 1


def estimate_of(output: Tensor) -> Tensor:
    """The estimate, (…, 1, N, N, N), of an output with or without bounds."""
    return output.narrow(-4, 0, 1)


class IntervalHead(nn.Module):
    """From the features that the estimate is made of to how far below and above it the truth may lie.

    It sees the features and the estimate detached: no gradient of it reaches what makes the estimate. As the estimate
    is, two widths are summed over the stages that give a volume, coarse to fine; of each, two convolutions of 1³, the
    second sub-voxel like the estimate's own head. A softplus makes them positive. They are computed again for the
    backward pass, which is cheaper than keeping what lies between.

    In evaluation the widths are multiplied by a calibration's factors, a broken line over the logarithm of the width;
    until :meth:`calibrate` they are 1. In training they are left out, as the loss is to form the widths themselves.

    Args:
        channels: of the features of each of these stages.
        upscale: voxels of a stage's volume along each edge of a voxel of its features.
        scales: from the size of each stage's volume to that of the next; of the last, 1.
        activation: between the two convolutions.
    """

    knots: Tensor
    factors: Tensor

    def __init__(
        self, channels: Sequence[int], upscale: int, scales: Sequence[int] = (1,), activation: str = "relu"
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for stage, width in enumerate(channels):
            last = Conv3d(_HIDDEN, 2 * upscale**3)
            icnr_init(last, upscale)
            assert last.bias is not None  # for the type checker
            with torch.no_grad():  # as flat in the beginning as the estimate; later stages add nothing yet
                last.weight.mul_(0.05 * (stage == 0) / (last.weight.square().mean() * _HIDDEN).sqrt())
                last.bias.zero_()
            shuffled = SubpixelUpsample(3, _HIDDEN, 2, upscale, conv_block=last, apply_pad_pool=False)
            self.heads.append(nn.Sequential(Conv3d(width, _HIDDEN), activation_layer(activation), shuffled))
        self.enlarge = nn.ModuleList(Upsample(scale) if scale > 1 else nn.Identity() for scale in scales)
        self.unit = WIDTH_UNIT
        self.register_buffer("knots", torch.empty(KNOTS))
        self.register_buffer("factors", torch.empty(2, KNOTS))
        self.reset_calibration()

    def forward(self, estimate: Tensor, features: list[Tensor]) -> Tensor:
        """(batch, 1, N, N, N), and of each stage (batch, channels, n, n, n) → (batch, 3, N, N, N), float32."""
        widths = self._widths([volume.detach() for volume in features]).float() * self.unit
        if not self.training:
            widths = widths * self.factor(widths)
        middle = estimate.detach().float()
        # times 1, so that the estimate's gradient is laid out as it is without bounds and gives the same sums
        return torch.cat([estimate.float() * 1.0, middle - widths[:, :1], middle + widths[:, 1:]], dim=1)

    def _widths(self, features: list[Tensor]) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript leaves out only a branch of its own)
            if recording():
                return recomputed(self._summed, features)
        return self._summed(features)

    def _summed(self, features: list[Tensor]) -> Tensor:
        total = features[0]
        for i, (head, enlarge) in enumerate(zip(self.heads, self.enlarge)):  # noqa: B905 (TorchScript)
            total = enlarge(head(features[i]) if i == 0 else total + head(features[i]))
        return F.softplus(total)

    def factor(self, widths: Tensor) -> Tensor:
        """What a calibration multiplies widths by: (batch, 2, N, N, N) → the same."""
        logarithm = widths.log()
        factors = self.factors.reshape(1, 2, -1, 1, 1, 1)
        result = factors[:, :, 0].expand_as(widths).clone()
        for k in range(self.knots.shape[0] - 1):  # in place: at 256³ each further copy is 128 MiB
            share = (logarithm - self.knots[k]).div_(self.knots[k + 1] - self.knots[k]).clamp_(0.0, 1.0)
            result.addcmul_(share, factors[:, :, k + 1] - factors[:, :, k])
        return result

    def reset_calibration(self) -> None:
        """All factors 1."""
        self.calibrate(range(-KNOTS, 0), [[1.0] * KNOTS] * 2)

    def calibrate(self, knots: Sequence[float], factors: Sequence[Sequence[float]]) -> None:
        """Set the factors of the lower and of the upper width at increasing logarithms of the width."""
        self.knots.copy_(torch.tensor(knots))
        self.factors.copy_(torch.tensor(factors))


def interval_heads(network: nn.Module) -> list[IntervalHead]:
    """Of a network, also within a wrapper: one or none."""
    return [module for module in network.modules() if isinstance(module, IntervalHead)]


def interval_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Weights that make bounds and nothing else; empty for a network without."""
    return [parameter for head in interval_heads(network) for parameter in head.parameters()]
