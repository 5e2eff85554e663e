r"""What a console makes of a radiograph before anybody sees it: a picture, in which numbers mean nothing by themselves.

The logarithm of the detector's signal is compressed where it varies slowly, so that lungs and mediastinum show
together (the coarse scales made weaker, as multi-scale processing does: Vuylsteke & Schoeters, Proc. SPIE 2167:551,
1994), windowed by its own histogram, bent by an S-shaped curve like that of film, and stored in 8 bits.

Reading such a picture, its histogram is matched with that of training radiographs
(:mod:`~drr2ct.transforms.radiographs.intensity`). That undoes exposure, window and curve, all that is monotone; the
compression stays, and so does the difference between this patient's histogram and that of the others.
``benchmarks/film_intensity.py`` measures how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from monai.config import KeysCollection
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.films.scatter import BODY_LINE_INTEGRAL
from drr2ct.transforms.films.shared import RandFilmEffectd, checked_range, smoothed
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.radiographs.intensity import QUANTILES, match_quantiles

_SAMPLED = 4096  # pixels that a histogram is taken of


@dataclass(frozen=True)
class Console:
    """How a picture is made.

    Args:
        exposure: times as much radiation as was meant.
        compression: what is taken off slow variations, from 0 to 1.
        width_mm: standard deviation of the Gaussian that tells what is slow.
        window: quantiles of the body's signal that become black and white.
        steepness: of the S-shaped curve; its slope in the middle is about a quarter of this, 0 is straight.
        bits: that are kept.
    """

    exposure: float = 1.0
    compression: float = 0.3
    width_mm: float = 30.0
    window: tuple[float, float] = (0.01, 0.99)
    steepness: float = 4.0
    bits: int = 8


def compressed(
    line_integrals: Float[Tensor, "rows columns"], compression: float, width_mm: float, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """Slow variations within the body made smaller; what lies outside stays, and so does the body's mean.

    Args:
        line_integrals: of a view.
        compression: see :class:`Console`; negative makes them larger.
        width_mm: likewise.
        pitch_mm: edge length of a pixel.
    """
    body = (line_integrals > BODY_LINE_INTEGRAL).to(line_integrals)
    if compression == 0 or not body.any():
        return line_integrals
    within, total = smoothed(torch.stack([body, line_integrals * body]), width_mm, pitch_mm)
    slow = total / within.clamp(min=1e-6)
    mean = (line_integrals * body).sum() / body.sum()
    # faded in over thin tissue: a body's outline would be lifted off the air otherwise
    share = (line_integrals / slow.clamp(min=1e-6)).clamp(0, 1)
    return line_integrals - compression * share * body * (slow - mean)


def console_picture(
    line_integrals: Float[Tensor, "rows columns"], console: Console, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """A picture from 0 (black) to 1, dense is bright, as ``intensity: display`` is read.

    Args:
        line_integrals: of a view.
        console: how it is made.
        pitch_mm: edge length of a pixel.
    """
    signal = compressed(line_integrals, console.compression, console.width_mm, pitch_mm) - float(
        np.log(console.exposure)
    )
    body = signal[line_integrals > BODY_LINE_INTEGRAL]
    low, high = torch.quantile(body if body.numel() else signal.flatten(), torch.tensor(console.window).to(signal))
    grey = ((signal - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    if console.steepness > 0:
        half = console.steepness / 2
        ends = torch.sigmoid(torch.tensor([-half, half])).to(grey)
        grey = (torch.sigmoid(console.steepness * (grey - 0.5)) - ends[0]) / (ends[1] - ends[0])
    levels = 2**console.bits - 1
    return (grey * levels).round() / levels


def read_back(
    picture: Float[Tensor, "rows columns"], quantiles: list[float], covered: Bool[Tensor, "rows columns"] | None = None
) -> Float[Tensor, "rows columns"]:
    """Line integrals of a picture whose histogram is matched with that of training radiographs, as it is when read.

    Args:
        picture: dense is bright.
        quantiles: of the training's radiographs in this view; see
            :func:`~drr2ct.transforms.radiographs.intensity.quantiles_for_field`.
        covered: what the film shows; all of it by default.
    """
    return match_quantiles(picture, quantiles, covered) * LINE_INTEGRAL_SCALE


def apply_compression(
    line_integrals: Float[Tensor, "rows columns"], compression: float, width_mm: float, pitch_mm: float
) -> Float[Tensor, "rows columns"]:
    """What :func:`compressed` leaves of line integrals when their histogram has been put right again.

    Args:
        line_integrals: of a view.
        compression: see :class:`Console`.
        width_mm: likewise.
        pitch_mm: edge length of a pixel.
    """
    body = line_integrals > BODY_LINE_INTEGRAL
    changed = compressed(line_integrals, compression, width_mm, pitch_mm)
    if changed is line_integrals:
        return line_integrals
    step = max(1, int(body.sum()) // _SAMPLED)
    levels = np.linspace(0, 1, QUANTILES)
    now, before = (np.quantile(image[body][::step].cpu().numpy(), levels) for image in (changed, line_integrals))
    restored = np.interp(changed.cpu().numpy(), np.concatenate([[0.0], now]), np.concatenate([[0.0], before]))
    return torch.from_numpy(restored).to(line_integrals)


class RandCompressiond(RandFilmEffectd):
    """A console's compression of slow variations, each view its own; see :func:`apply_compression`.

    Args:
        keys: of radiographs, in scaled line integrals.
        geometry: the views.
        compression: least and most of it. Between 0.2 and 0.5 it leaves 0.11 (PA) and 0.15 (lateral) of line integral
            on a scale of more than 20 mm, and as much again on finer ones, that no curve explains
            (``benchmarks/film_intensity.py --consoles 3``).
        width_mm: smallest and largest standard deviation of what is slow.
        prob: of compression of a sample.

    Raises:
        InputError: for what is no range.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        compression: Sequence[float] = (0.0, 0.5),
        width_mm: Sequence[float] = (20.0, 50.0),
        prob: float = 1.0,
    ) -> None:
        super().__init__(keys, geometry, prob)
        self.compression = checked_range("compression", compression)
        self.width_mm = checked_range("width_mm", width_mm)

    def draw(self, view: View) -> tuple[float, float]:
        """Compression and width."""
        return float(self.R.uniform(*self.compression)), float(self.R.uniform(*self.width_mm))

    def apply(
        self, line_integrals: Float[Tensor, "rows columns"], view: View, drawn: tuple[float, float]
    ) -> Float[Tensor, "rows columns"]:
        """Compressed."""
        return apply_compression(line_integrals, *drawn, view.pixel_pitch_mm)
