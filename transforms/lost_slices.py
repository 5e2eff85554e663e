"""Slices of a stack that hold nothing, or the slice before once more: what programs put where slices were missing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_STEP = 16
"""Of so many rows and columns one is looked at first."""


def lost_slices(values: Float[Tensor, "i j slices"]) -> str:
    """Why slices within a stack are none; empty if there are no such.

    Slices of one value at the ends are a margin that somebody added; between others they were lost.

    Args:
        values: of the whole volume, slices along the last axis.

    Returns:
        What is wrong and what to do, as the end of a sentence that begins with the volume's name.
    """
    coarse = values[::_STEP, ::_STEP]
    even = [k for k in _all_same(coarse, coarse[:1, :1]) if bool((values[..., k] == values[0, 0, k]).all())]
    shown = sorted(set(range(values.shape[-1])).difference(even))
    lost = [k for k in even if shown and shown[0] < k < shown[-1]]
    if not lost:
        return ""
    which = f"slice {lost[0] + 1}" if len(lost) == 1 else f"{len(lost)} slices, the first of them slice {lost[0] + 1},"
    return (
        f"has the value {float(values[0, 0, lost[0]]):g} all over {which} between others that show something; download "
        "or convert it again"
    )


def repeated_slices(values: Float[Tensor, "i j slices"]) -> str:
    """What to say of slices that are the one before to the last digit, as no scanner measures; mostly nothing.

    Args:
        values: as for :func:`lost_slices`.
    """
    coarse = values[::_STEP, ::_STEP]
    alike = _all_same(coarse[..., 1:], coarse[..., :-1])
    again = [k + 1 for k in alike if torch.equal(values[..., k + 1], values[..., k]) and bool(values[..., k].std() > 0)]
    if not again:
        return ""
    named = "1 slice repeats" if len(again) == 1 else f"{len(again)} slices repeat"
    return f"{named} the one before, the first of them slice {again[0] + 1}: filled in for missing ones?"


def _all_same(values: Tensor, others: Tensor) -> list[int]:
    return (values == others).all(dim=0).all(dim=0).nonzero().flatten().tolist()
