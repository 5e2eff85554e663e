"""What is black, white and coloured in every picture: the HU window, and the colours of an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DISPLAY_WINDOW = (-1024.0, 600.0)
"""HU shown as black and white."""
ERROR_RANGE = 600.0
"""HU of error shown in full blue or red."""
ERROR_COLOURS = "RdBu_r"
"""Matplotlib's map from too little (blue) over none (white) to too much (red), of every difference."""
DOUBT_RANGE = 400.0
"""± HU of doubt shown in full."""
DOUBT_COLOURS = ("#000004", "#57106e", "#bc3754", "#f98e09", "#fcffa4")
"""From no doubt to :data:`DOUBT_RANGE` and more, even steps (of Matplotlib's inferno); in pictures and in viewers."""


def grey(values: Float[np.ndarray, "rows columns"], low: float, high: float) -> UInt8[np.ndarray, "rows columns"]:
    """Values to 8-bit grey, black at ``low`` and white at ``high``."""
    return (np.clip((values - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)


def show_hu(axes: Axes, plane: Float[np.ndarray, "rows columns"]) -> AxesImage:
    """Draw HU in grey."""
    return axes.imshow(plane, cmap="gray", vmin=DISPLAY_WINDOW[0], vmax=DISPLAY_WINDOW[1])


def show_doubt(axes: Axes, plane: Float[np.ndarray, "rows columns"]) -> AxesImage:
    """Draw half of what lies between bounds, ± HU, in colour."""
    from matplotlib.colors import LinearSegmentedColormap  # as whoever has axes has it already

    colours = LinearSegmentedColormap.from_list("doubt", DOUBT_COLOURS)
    return axes.imshow(plane, cmap=colours, vmin=0, vmax=DOUBT_RANGE)


def show_error(axes: Axes, error: Float[np.ndarray, "rows columns"], limit: float = ERROR_RANGE) -> AxesImage:
    """Draw an error in colour, in full from ``limit`` on."""
    return axes.imshow(error, cmap=ERROR_COLOURS, vmin=-limit, vmax=limit)
