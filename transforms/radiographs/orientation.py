"""Which way up a radiograph lies, and whether dense is bright in it, chosen by what it looks like.

A picture is compared with the mean training radiograph of its view in all eight turns and mirrors, as it is and
inverted: the best of the sixteen is taken if it is clearly the best. One test for upside down and another for mirrored
do not do: a lateral chest is slanted, and mirrored it looks much like upside down.

The comparison is a correlation over the part that the picture covers, the best over shifts, tilts and, where the
picture's size is not known, sizes; so neither a field that ends at the diaphragm nor a patient who leans forward
spoils it. It is the mean of two: of the picture as it is, weight 1, and of its local contrast (what differs from the
surroundings, divided by how much things differ there), weight 2, which tone curves and equalising hardly change.

Which side of a frontal picture is the patient's right cannot be seen reliably, and is not decided here: a frontal
picture is only ever turned, not mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from scipy import ndimage
from torch import Tensor

from drr2ct.transforms.geometry import View
from drr2ct.transforms.validation import InputError

CLEAR = 0.015
"""How much better than any other a state must score to be taken (``benchmarks/film_looks.py``)."""

LIKENESS = 0.4
"""What the best state must score for the picture to be taken for such a radiograph at all: noise has 0.2, real films
more than 0.5."""

SURE = 0.8
"""A film that looks so much like its own view is not compared with others."""

OTHER_VIEW = 0.05
"""How much more a film must look like another view to be taken for one of that."""

DOUBTED = 0.05
"""How much better a film must score otherwise than its header says that it lies for a warning."""

HEART_MARGIN = 0.03
"""How much better a frontal picture must score mirrored for a warning that its sides may be exchanged."""

_HEIGHTS_MM = tuple(range(300, 520, 25))  # of the longer side on the geometry's detector, where it is not known
_SIZES = (0.92, 1.0, 1.08)  # relative ones, where it is known: patients differ
_TILTS_DEG = (-8.0, 0.0, 8.0)
_SHIFT_MM = 60.0
_SURROUNDINGS_MM = 25.0  # standard deviation of the Gaussian that is subtracted
_SHARE_LOCAL = 2 / 3


@dataclass(frozen=True)
class Orientation:
    """How to turn a stored picture upright: transposed first, then its rows and columns reversed.

    Args:
        transposed: rows become columns.
        upside_down: the order of rows is reversed.
        mirrored: the order of columns is reversed.
        inverted: dense is dark.
    """

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False
    inverted: bool = False

    @property
    def as_stored(self) -> bool:
        """Nothing is turned; it may be inverted."""
        return not (self.transposed or self.upside_down or self.mirrored)

    @property
    def turn_alone(self) -> Orientation:
        """The same turn, whatever the polarity."""
        return replace(self, inverted=False)

    @property
    def turned_only(self) -> Orientation:
        """The proper rotation with the same transposition and order of rows, without mirror image or polarity."""
        return Orientation(self.transposed, self.upside_down, self.transposed != self.upside_down)

    def turn(self, image: Shaped[Tensor, "rows columns"]) -> Shaped[Tensor, "r c"]:
        """The picture (or a mask of it) upright; its numbers are not inverted."""
        image = image.T if self.transposed else image
        flips = [axis for axis, done in ((0, self.upside_down), (1, self.mirrored)) if done]
        return image.flip(flips) if flips else image

    def __str__(self) -> str:
        """What is done to the picture, in words."""
        words = {
            (False, False, False): "as stored",
            (False, False, True): "mirrored",
            (False, True, False): "turned upside down",
            (False, True, True): "turned by 180°",
            (True, False, False): "turned by 90° and mirrored",
            (True, False, True): "turned by 90° clockwise",
            (True, True, False): "turned by 90° anticlockwise",
            (True, True, True): "turned by 270° and mirrored",
        }[self.transposed, self.upside_down, self.mirrored]
        if not self.inverted:
            return words
        return "inverted" if self.as_stored else f"{words} and inverted"


STATES = tuple(Orientation(t, u, m) for t in (False, True) for u in (False, True) for m in (False, True))
"""The eight turns and mirrors, not inverted."""


def is_lateral(view: View) -> bool:
    """Whether a view looks from the side rather than from behind or in front."""
    return abs(math.sin(math.radians(view.gantry_angle_deg))) > 0.5


def orientation_scores(
    picture: Float[Tensor, "rows columns"],
    template: Float[np.ndarray, "n n"],
    detector_mm: float,
    pixel_mm: float | None = None,
) -> dict[Orientation, float]:
    """How much a picture looks like the mean training radiograph in each of the sixteen states, −1 to 1.

    Args:
        picture: dense is high in the state that is not inverted; any unit. What is no picture is cut off or filled.
        template: the mean :func:`~drr2ct.transforms.radiographs.intensity.thumbnail` of a view.
        detector_mm: edge length of what the template shows, on the geometry's detector.
        pixel_mm: edge length of the picture's pixels there; None if nobody knows.
    """
    step = detector_mm / template.shape[0]
    longer = max(picture.shape)
    heights = _HEIGHTS_MM if pixel_mm is None else tuple(longer * pixel_mm * size for size in _SIZES)
    templates = [feature(torch.from_numpy(np.asarray(template, dtype=np.float64)), step) for feature in _FEATURES]
    # whatever the picture's resolution, a tilt is only worth the template's
    fine = F.interpolate(picture[None, None].double(), size=_shape(picture.shape, 128 / longer), mode="area")[0, 0]
    best = np.full((2, 2, len(STATES)), -1.0)  # of which feature, inverted or not
    for tilt in _TILTS_DEG:
        tilted = fine
        if tilt:
            tilted = torch.from_numpy(ndimage.rotate(fine.numpy(), tilt, reshape=False, order=1, mode="nearest"))
        for height in heights:
            shape = _shape(picture.shape, min(height, 1.4 * detector_mm) / longer / step)
            small = F.interpolate(tilted[None, None], size=shape, mode="area")[0, 0]
            for index, (feature, wanted) in enumerate(zip(_FEATURES, templates, strict=True)):
                low, high = _extremes(feature(small, step), wanted, round(_SHIFT_MM / step))
                best[index, 0] = np.maximum(best[index, 0], high)
                best[index, 1] = np.maximum(best[index, 1], -low)
    total = (1 - _SHARE_LOCAL) * best[0] + _SHARE_LOCAL * best[1]
    return {
        Orientation(state.transposed, state.upside_down, state.mirrored, inverted): float(total[int(inverted), index])
        for inverted in (False, True)
        for index, state in enumerate(STATES)
    }


def choose_orientation(
    scores: dict[Orientation, float],
    view: View,
    path: str | Path,
    inverted: bool | None = None,
    axes: str | None = None,
) -> tuple[Orientation, list[str]]:
    """The state that looks most like the training radiographs, if it clearly does.

    Args:
        scores: of :func:`orientation_scores`.
        view: whose radiograph it is; frontal pictures are turned but not mirrored.
        path: of the file, for what is said.
        inverted: what is known of the polarity; None leaves it to looks.
        axes: of a NIfTI that does not state how the patient lies, see :func:`turn_of_axes`; None for other files.

    Returns:
        The state, and sentences on what was done, or on what could not be known.

    Raises:
        InputError: if no state scores :data:`LIKENESS`, or the best is not :data:`CLEAR` ahead of the next.
    """
    allowed = {s: score for s, score in scores.items() if inverted is None or s.inverted == inverted}
    lateral = is_lateral(view)
    groups: dict[Orientation, float] = {}
    for state, score in allowed.items():
        group = state if lateral else replace(state.turned_only, inverted=state.inverted)
        groups[group] = max(groups.get(group, -1.0), score)
    ranking = sorted(groups, key=groups.__getitem__, reverse=True)
    best, second = ranking[0], ranking[min(1, len(ranking) - 1)]
    listed = ", ".join(f"{state} {groups[state]:.2f}" for state in ranking[:4])
    if groups[best] < LIKENESS:
        raise InputError(
            f"radiograph {path} looks like no radiograph of view {view.name}, whichever way it is turned ({listed}; "
            f"{LIKENESS:g} is needed); check that it is that view of a chest, or say that it is right as it is "
            "(--orientation as-is)."
        )
    if best != second and groups[best] - groups[second] < CLEAR:
        raise InputError(
            f"it cannot be told how radiograph {path} has to be turned for view {view.name} ({listed}); turn it "
            "head up, a lateral with the patient facing left, and say so (--orientation as-is)."
        )
    score, why = groups[best], ""
    if not lateral and axes is not None:
        best, why = _as_arrays_are_saved(best, axes)
    notes = _notes(best, score, view, Path(path).name)
    if why:
        notes.append(f"{Path(path).name}: {why}.")
    if not lateral:
        apart = mirror_margin(allowed, best)
        if apart > HEART_MARGIN:
            notes.append(
                f"{Path(path).name} looks more like the training radiographs when it is mirrored (by {apart:.2f}): "
                "check the marker, its sides may be exchanged."
            )
    return best, notes


def mirror_margin(scores: Mapping[Orientation, float], state: Orientation) -> float:
    """How much more usual a picture looks as the mirror image of a state than in that state."""
    return scores.get(_flipped(state), -1.0) - scores[state]


def turn_of_axes(axes: str, marked: bool) -> Orientation:
    """The turn that a NIfTI's affine states in the axial plane, in which ITK and this project put 2-D images (``LP``).

    No radiograph lies in that plane, so the two axes can only say how the stored picture differs from one that viewers
    show as it is. Of files that are not of this project the mirror image alone is believed: ``RA`` is what an array
    with a made-up affine of positive pitches has, and ``LA`` what converters fill in; which of their sides is up, looks
    decide.

    Args:
        axes: where columns and rows run, two letters of RAS+; empty if the file does not say.
        marked: the file was written by this project, as ``LP``, and has been reoriented since.
    """
    if len(axes) != 2:
        return Orientation()
    transposed = axes[0] in "AP"
    turn = Orientation(transposed, upside_down="A" in axes, mirrored="R" in axes)
    return turn if marked or not turn.upside_down else Orientation(transposed)


def _as_arrays_are_saved(best: Orientation, axes: str) -> tuple[Orientation, str]:
    """The mirror image of a turn, where a NIfTI is more likely to hold that than a turned film, and why."""
    half, clockwise = Orientation(upside_down=True, mirrored=True), Orientation(transposed=True, mirrored=True)
    if best.turn_alone == half and axes in ("", "LA"):
        why = "its rows were reversed rather than rotated by 180°, as converters from DICOM store them"
        return replace(best, mirrored=False), why
    if best.turn_alone == clockwise and axes in ("", "LA", "RA"):
        why = "its rows and columns were exchanged rather than rotated by 90°, as of an array saved row by row"
        return replace(best, mirrored=False), why
    return best, ""


def side_note(name: str) -> str:
    """What is taken for granted of a frontal picture whose header does not say where the patient's right is."""
    return f"{name}: the marker is not read: the patient's right is taken to be on the image's left."


def _notes(best: Orientation, score: float, view: View, name: str) -> list[str]:
    """What was done, if anything was."""
    notes = []
    if not best.as_stored:
        turned = best.turn_alone
        faced = is_lateral(view) and turned == Orientation(mirrored=True)
        what = f"{name} faced right: mirrored" if faced else f"{name} was {turned}"
        notes.append(f"{what}, as it looks most like the training radiographs of view {view.name} so ({score:.2f}).")
    if best.inverted:
        notes.append(f"{name} was inverted, because it looks more like the training radiographs so.")
    return notes


def _flipped(state: Orientation) -> Orientation:
    return Orientation(state.transposed, state.upside_down, not state.mirrored, state.inverted)


def _shape(shape: Sequence[int], scale: float) -> tuple[int, int]:
    rows, columns = (max(6, round(count * scale)) for count in shape)
    return rows, columns


def _blurred(image: Float[Tensor, "rows columns"], sigma: float) -> Float[Tensor, "rows columns"]:
    """Gaussian mean over the pixels that exist."""
    options = {"sigma": sigma, "mode": "constant", "truncate": 3.0}
    total = ndimage.gaussian_filter(image.numpy(), **options)
    down, across = (ndimage.gaussian_filter1d(np.ones(count), **options) for count in image.shape)
    return torch.from_numpy(total / (down[:, None] * across))


def _local_contrast(image: Float[Tensor, "rows columns"], step: float) -> Float[Tensor, "rows columns"]:
    """What differs from the surroundings, in units of how much things differ there."""
    sigma = _SURROUNDINGS_MM / step
    detail = image - _blurred(image, sigma)
    deviation = _blurred(detail**2, 1.5 * sigma).sqrt()
    return detail / (deviation + 0.3 * detail.std()).clamp(min=1e-9)


def _whole(image: Float[Tensor, "rows columns"], step: float) -> Float[Tensor, "rows columns"]:
    return image


_FEATURES = (_whole, _local_contrast)


def _extremes(
    small: Float[Tensor, "rows columns"], template: Float[Tensor, "n n"], shift: int
) -> tuple[Float[np.ndarray, 8], Float[np.ndarray, 8]]:
    """Smallest and largest correlation over shifts, for each of :data:`STATES`."""
    pad = template.shape[0] // 4
    padded = F.pad(template, (pad,) * 4)
    low, high = np.full(len(STATES), 1.0), np.full(len(STATES), -1.0)
    for transposed in (False, True):
        chosen = [index for index, state in enumerate(STATES) if state.transposed == transposed]
        kernels = torch.stack([STATES[index].turn(small) for index in chosen])
        found = _correlations(kernels, padded, shift)
        if found is not None:
            low[chosen], high[chosen] = found.amin(dim=1).numpy(), found.amax(dim=1).numpy()
    return low, high


def _correlations(
    kernels: Float[Tensor, "states rows columns"], padded: Float[Tensor, "n n"], shift: int
) -> Float[Tensor, "states places"] | None:
    """Pearson's correlation of each kernel with the template below it, for every shift; None if it does not fit in."""
    size = kernels.shape[-2:]
    places = [
        range(max(0, (n - k) // 2 - shift), min(n - k, (n - k) // 2 + shift) + 1) for n, k in _pairs(padded, size)
    ]
    if not all(places):
        return None
    rows, columns = (slice(place[0], place[-1] + k) for place, k in zip(places, size, strict=True))
    below = padded[None, None, rows, columns]
    kernels = kernels - kernels.mean(dim=(1, 2), keepdim=True)
    kernels = kernels / kernels.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-9)
    products = F.conv2d(below, kernels[:, None])[0]
    mean, square = (F.avg_pool2d(x, size, 1)[0, 0] for x in (below, below**2))
    norm = ((square - mean**2).clamp(min=0) * math.prod(size)).sqrt()
    return (products / norm.clamp(min=1e-6)).flatten(1)


def _pairs(padded: Float[Tensor, "n n"], size: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(padded.shape, size, strict=True)
