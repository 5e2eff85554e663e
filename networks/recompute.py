"""Keeping only a module's input for the backward pass, and computing the module again there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recording() -> bool:
    """Whether a backward pass may follow, and nothing is being exported."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing() and not torch.compiler.is_exporting()


def recomputed(module: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The module's output, without what it would keep."""
    return checkpoint(module, *inputs, use_reentrant=False)
