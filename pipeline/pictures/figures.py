"""What every figure needs: a PNG file and a place for each of its parts.

Places are stated here. Matplotlib's layout engines find them by measuring every label and drawing twice, most of what a
figure takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drr2ct.transforms.files import replacing
from drr2ct.transforms.validation import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TILE, _GAP, _LEFT, _TOP, _BOTTOM = 1.7, 0.09, 0.28, 0.26, 0.74
"""Inches: of a square picture, between two, and for labels and the scale around them."""


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


def compared(rows: int, titles: Sequence[str]) -> tuple[Figure, np.ndarray, Axes]:
    """Square pictures side by side, bare, and a colour scale below.

    Args:
        rows: of pictures.
        titles: one above each column.

    Returns:
        The figure, its grid of axes (rows × columns), and the axes of the scale.
    """
    from matplotlib.figure import Figure  # not at the top: who only reads CTs needs none

    columns = len(titles)
    width = _LEFT + columns * (_TILE + _GAP)
    height = _TOP + rows * (_TILE + _GAP) + _BOTTOM
    figure = Figure(figsize=(width, height))
    between = {"wspace": _GAP / _TILE, "hspace": _GAP / _TILE}
    edges = {"left": _LEFT / width, "right": 1 - _GAP / width, "top": 1 - _TOP / height}
    grid = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={**between, **edges, "bottom": (_BOTTOM + _GAP) / height}
    )
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=11)
    return figure, grid, figure.add_axes((0.22, (_BOTTOM - 0.22) / height, 0.56, 0.11 / height))
