"""Numerical precision of training and inference, and gradient clipping that respects it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from drr2ct.networks.interval import OnPlanes
from drr2ct.transforms.validation import InputError

PRECISIONS: dict[str, torch.dtype | None] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def _cpu_has_bf16() -> bool:
    """AVX512-bf16 or AMX: elsewhere bf16 is emulated and slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_precision(device: torch.device, precision: str = "auto") -> str:
    """``bf16`` where the hardware computes in it, else ``fp16`` on CUDA, else ``fp32``.

    Args:
        device: where the network runs.
        precision: ``auto``, or one of :data:`PRECISIONS` to insist.

    Raises:
        InputError: for an unknown word, or fp16 on a CPU (there is no loss scaling there).
    """
    if precision == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; choose from auto, {', '.join(PRECISIONS)}.")
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"precision fp16 needs a CUDA device, not {device.type}; choose bf16 or fp32.")
    return precision


CHANNELS_LAST_SIZE = 128
"""Voxels along each axis from which on a CPU computes faster in float32 with channels last: docs/speed.md."""


def channels_last_pays(device: torch.device, precision: str, size: int) -> bool:
    """Whether a network computes faster with its channels last, as far as that has been measured.

    In float32 on a CPU it is so from 128³ on. In bfloat16 there it was slower; on a GPU nothing was measured, and the
    layout that PyTorch begins with is kept.

    Args:
        device: where the network runs.
        precision: one of :data:`PRECISIONS`.
        size: voxels along each axis of the network's volume.
    """
    return device.type == "cpu" and precision == "fp32" and size >= CHANNELS_LAST_SIZE


class AutocastInferer(Inferer):
    """Run the network under autocast, on any device, and give the result back in float32.

    MONAI's engines autocast on CUDA only; here the inferer does it, so that training, validation and inference
    compute alike.

    Args:
        device_type: ``cpu`` or ``cuda``.
        precision: one of :data:`PRECISIONS`.
    """

    def __init__(self, device_type: str, precision: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.dtype = PRECISIONS[precision]

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor | OnPlanes:
        """(B, V, H, W) → what the network gives, (B, 1 or 3, N, N, N) or, trained with bounds, those; float32."""
        with torch.autocast(self.device_type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            output = network(inputs, *args, **kwargs)
        return output if isinstance(output, OnPlanes) else output.float()


def clip_gradients(
    optimizer: torch.optim.Optimizer, max_norm: float, apart: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Clip the global gradient norm just before each step of the optimiser, and return the optimiser.

    As a hook of the optimiser it runs after the gradient scaler has unscaled, and once per step under accumulation.

    Args:
        optimizer: whose gradients are clipped.
        max_norm: what the norm is clipped to.
        apart: parameters whose norm is clipped on its own, such as those that make bounds: what they do is to change
            nothing of the others' training.

    Raises:
        InputError: for a norm of zero or less, by which the training would stand still or go backwards.
    """
    if not max_norm > 0:
        raise InputError(f"max_gradient_norm is {max_norm}; it must be above 0 (1.0e+30 clips nothing).")
    on_their_own = {id(parameter) for parameter in apart}

    def parameters(wanted: bool) -> list[Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"] if (id(p) in on_their_own) == wanted]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters(False), max_norm)
        if on_their_own:
            nn.utils.clip_grad_norm_(parameters(True), max_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
