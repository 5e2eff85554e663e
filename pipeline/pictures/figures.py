"""What every figure needs: a PNG file, and axes without ticks and frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drr2ct.transforms.files import replacing
from drr2ct.transforms.validation import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG.

    Raises:
        InputError: if the name does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise InputError(f"picture {path} must end in .png.")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, facecolor="white")
    return path


def bare(grid: np.ndarray, titles: Sequence[str]) -> None:
    """Take ticks and frames off a grid of axes (rows × columns), and put a title above each column."""
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=11)
