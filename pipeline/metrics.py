"""Metrics over a stated HU window, for MONAI's engines.

The network's scale [0, 1] spans 4095 HU; published figures depend on the window, so ours state it. Use MONAI's own
metrics on what :class:`InWindow` gives, with the window's width as their ``max_val`` or ``data_range``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.handlers import from_engine
from torch import Tensor

from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

DEFAULT_WINDOW = (-1024.0, 1476.0)
"""HU; a range of 2500."""


class InWindow:
    """Output transform for ``IgniteMetricHandler``: predictions and labels of an engine, in HU, clipped to a window.

    Args:
        window: (low, high) in HU.

    Raises:
        InputError: if the window is empty.
    """

    def __init__(self, window: Sequence[float] = DEFAULT_WINDOW) -> None:
        low, high = window
        if not low < high:
            raise InputError(f"HU window {tuple(window)} is empty; give (low, high).")
        self.window = (float(low), float(high))
        self._pick = from_engine(["pred", "label"])

    @property
    def width(self) -> float:
        """Range of values: what PSNR and SSIM need as their data range."""
        return self.window[1] - self.window[0]

    def __call__(self, output: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Decollated engine output → lists of (1, N, N, N)."""
        pred, label = self._pick(output)
        return [self.clip(p) for p in pred], [self.clip(t) for t in label]

    def clip(self, scaled: Tensor) -> Tensor:
        """[0, 1] → HU within the window. Any shape."""
        return to_hu(scaled.detach().float()).clamp(*self.window)
