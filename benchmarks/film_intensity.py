"""What intensity matching leaves over of a radiograph that a console has made a picture of: two tables.

python benchmarks/film_intensity.py [--cts DIR] [--consoles 8] [--seed 0]

Renders every CT of DIR and the sample (two 128² views), makes pictures of them as consoles do (random exposure,
compression of slow variations, window, S-shaped curve, histogram equalisation in places, 8 bits), reads each picture
back with the histogram of all the *other* patients, and compares with the line integrals that were rendered. The
difference within the body is split into the best monotone curve for each picture, what is left of it on a scale of
more than 20 mm, and the rest. The ranges of RandToneCurved and RandCompressiond come from here.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float
from rich.console import Console as Screen
from rich.progress import track
from rich.table import Table
from torch import Tensor

from drr2ct.pipeline.data.sample.cts import real_cts, sample_ct
from drr2ct.pipeline.demo import DETECTOR_SIZE, GRID_SIZE
from drr2ct.pipeline.running.console import wide_console
from drr2ct.transforms import BiplanarGeometry, LoadCT, RenderDRR, VolumeGrid
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.films.console import Console, console_picture, read_back
from drr2ct.transforms.films.scatter import BODY_LINE_INTEGRAL
from drr2ct.transforms.films.shared import smoothed
from drr2ct.transforms.films.tone import tone_basis
from drr2ct.transforms.radiographs.intensity import radiograph_quantiles

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(GRID_SIZE), detector_size=DETECTOR_SIZE)
LEVELS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
SLOW_MM = 20.0
BINS = 32
KINDS = ("a curve alone", "with compression", "with equalisation")


def drawn_console(state: np.random.RandomState, kind: str) -> Console:
    """Any of the consoles there are."""
    return Console(
        exposure=float(np.exp(state.uniform(-0.7, 0.7))),
        compression=float(state.uniform(0.2, 0.5)) if kind == KINDS[1] else 0.0,
        width_mm=float(state.uniform(20, 50)),
        window=(float(state.uniform(0, 0.03)), float(state.uniform(0.97, 1))),
        steepness=float(state.uniform(0, 6)),
    )


def equalised(picture: Float[Tensor, "rows columns"], share: float) -> Float[Tensor, "rows columns"]:
    """Histogram equalisation within neighbourhoods of a quarter of the picture, in part (Stark's, by ITK)."""
    image = sitk.GetImageFromArray(picture.numpy())
    radius = [n // 8 for n in picture.shape]
    made = sitk.AdaptiveHistogramEqualization(image, radius, alpha=1 - share, beta=1 - share)
    values = torch.from_numpy(sitk.GetArrayFromImage(made))
    return ((values - values.min()) / (values.max() - values.min()) * 255).round() / 255


def remainder(
    truth: Float[Tensor, "rows columns"], read: Float[Tensor, "rows columns"], pitch_mm: float
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """How a reading differs from the truth within the body.

    Returns:
        The curve's difference at :data:`LEVELS` (NaN outside the body's range), the three numbers of the tone curve
        that fits it best, and the standard deviations of what is left, slow and fast.
    """
    body = truth > BODY_LINE_INTEGRAL
    p, q = truth[body].double().numpy(), read[body].double().numpy()
    edges = np.quantile(p, np.linspace(0, 1, BINS + 1))
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    level, made = (np.bincount(place, values, BINS) / count for values in (p, q))
    median = float(np.median(p))
    fit, *_ = np.linalg.lstsq(tone_basis(level / median), (made - level) / median, rcond=None)
    left = torch.zeros_like(truth)
    left[body] = torch.from_numpy(q - np.interp(p, level, made)).float()
    inside = smoothed(body.float(), SLOW_MM, pitch_mm).clamp(min=1e-6)
    slow = smoothed(left, SLOW_MM, pitch_mm) / inside
    curve = np.interp(LEVELS, level, made - level, left=np.nan, right=np.nan)
    return curve, fit, float(slow[body].std()), float((left - slow)[body].std())


def show(screen: Screen, view: str, found: dict[str, list[tuple[np.ndarray, np.ndarray, float, float]]]) -> None:
    """One view's two tables."""
    curves = Table(title=f"{view}: read minus true line integral at these, mean ± standard deviation over pictures")
    for column in ("console", *(f"{level:g}" for level in LEVELS)):
        curves.add_column(column, justify="left" if column == "console" else "right")
    fits = Table(title=f"{view}: the tone curve's numbers, and what no curve explains (line integrals)")
    for column in ("console", "pictures", "offset", "contrast", "bend", "slow", "fast"):
        fits.add_column(column, justify="left" if column == "console" else "right")
    for kind, rows in {**found, "all": list(chain.from_iterable(found.values()))}.items():
        at = np.stack([row[0] for row in rows])
        cells = [at[:, i][np.isfinite(at[:, i])] for i in range(len(LEVELS))]
        enough = [f"{c.mean():+.2f} ± {c.std():.2f}" if c.size > len(rows) // 4 else "" for c in cells]
        curves.add_row(kind, *enough)
        fit = np.stack([row[1] for row in rows])
        numbers = [f"{m:+.3f} ± {s:.3f}" for m, s in zip(fit.mean(axis=0), fit.std(axis=0), strict=True)]
        rest = [f"{np.mean([row[i] for row in rows]):.3f}" for i in (2, 3)]
        fits.add_row(kind, str(len(rows)), *numbers, *rest)
    screen.print(curves, fits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cts", type=Path, help="folder of patient folders, which the sample joins")
    parser.add_argument("--consoles", type=int, default=8, help="pictures of each view and kind of console")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cts = real_cts(arguments.cts) if arguments.cts else {"sample": sample_ct()}
    if len(cts) < 2:
        parser.error("one patient cannot be read with the histogram of others; give --cts a folder of several")
    load, render = LoadCT(), RenderDRR(GEOMETRY)
    radiographs = torch.stack([render(load(path)).as_tensor() for path in track(cts.values(), "rendering")])
    screen = wide_console()
    for index, view in enumerate(GEOMETRY.views):
        state = np.random.RandomState(arguments.seed)
        images = radiographs[:, index]
        own = np.array([radiograph_quantiles([image / LINE_INTEGRAL_SCALE]) for image in images])
        found: dict[str, list[tuple[np.ndarray, np.ndarray, float, float]]] = {kind: [] for kind in KINDS}
        for patient, image in enumerate(images):
            others = np.delete(own, patient, axis=0).mean(axis=0).tolist()
            for kind in KINDS:
                for _ in range(arguments.consoles):
                    picture = console_picture(image, drawn_console(state, kind), view.pixel_pitch_mm)
                    if kind == KINDS[2]:
                        picture = equalised(picture, float(state.uniform(0.2, 0.6)))
                    found[kind].append(remainder(image, read_back(picture, others), view.pixel_pitch_mm))
        show(screen, view.name, found)


if __name__ == "__main__":
    main()
