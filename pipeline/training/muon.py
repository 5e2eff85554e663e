"""Muon: kernels of convolutions are moved by orthogonal matrices instead of by Adam's quotients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adamw import adamw

from drr2ct.transforms.validation import InputError

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Of a quintic that draws all singular values near 1 in five iterations, fast rather than exactly."""


def orthogonalised(matrix: Float[Tensor, "rows columns"], iterations: int = 5) -> Float[Tensor, "rows columns"]:
    """A matrix with its singular vectors, and singular values between about 0.7 and 1.2: Newton-Schulz iterations.

    Zero stays zero. Source: Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024.
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def is_kernel(parameter: Tensor) -> bool:
    """Whether a parameter is the kernel of a convolution, (out, in, …): the learned volume has a 1 in front."""
    return parameter.ndim >= 4 and parameter.shape[0] > 1


class Muon(torch.optim.Optimizer):
    r"""Muon for kernels of convolutions, AdamW for all else.

    A kernel (out, in, …) is taken as a matrix of ``out`` rows. With the gradient :math:`g` and the momentum
    :math:`m \leftarrow 0.95\, m + g` it moves by :math:`-0.2\,\eta\sqrt{\max(rows, columns)}` times the
    orthogonalised :math:`g + 0.95\, m`: a step as large as AdamW's with the same rate :math:`\eta` (Liu et al., *Muon
    is scalable for LLM training*, 2025), so that the rate that suits one suits the other.

    ``torch.optim.Muon`` takes matrices only.

    Args:
        params: of a network; which of them are kernels is seen from their shapes.
        lr: of both.
        momentum: of kernels, in [0, 1).
        betas: AdamW's, of all else.
        eps: likewise.
        weight_decay: of all, decoupled.

    Raises:
        InputError: for a rate, decay or eps below 0, or momenta outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
    ) -> None:
        if min(lr, weight_decay, eps) < 0:
            raise InputError(
                f"Muon's learning rate {lr}, weight decay {weight_decay} and eps {eps} must not be below 0."
            )
        if not all(0 <= share < 1 for share in (momentum, *betas)):
            raise InputError(f"Muon's momentum {momentum} and betas {tuple(betas)} must be at least 0 and below 1.")
        settings = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; of a closure, what it returns."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            for kernel in filter(is_kernel, moved):
                self._move_kernel(kernel, group)
            self._move_others([parameter for parameter in moved if not is_kernel(parameter)], group)
        return value

    def _move_kernel(self, kernel: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].mul_(group["momentum"]).add_(kernel.grad)
        direction = kernel.grad + group["momentum"] * state["momentum"]
        matrix = direction.reshape(len(kernel), -1)
        size = 0.2 * max(matrix.shape) ** 0.5
        kernel.mul_(1 - group["lr"] * group["weight_decay"])
        kernel.add_(orthogonalised(matrix).reshape(kernel.shape), alpha=-group["lr"] * size)

    def _move_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.tensor(0.0),  # which torch follows without memory too, where a step is planned
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        averages, squares, steps = (
            [self.state[parameter][name] for parameter in parameters] for name in ("exp_avg", "exp_avg_sq", "step")
        )
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            averages,
            squares,
            [],
            steps,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
