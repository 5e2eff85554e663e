"""What real radiographs bring that those of the training did not: conditions of fixed strength, for measuring.

They are those that ``configs/recipes/films.yaml`` draws at random while training, by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.pipeline.evaluation.similarity import SMALLEST_GRID
from drr2ct.transforms.detector import extend_from_edge
from drr2ct.transforms.films.blur import apply_detector_blur, apply_motion_blur
from drr2ct.transforms.films.console import Console, apply_compression, console_picture, read_back
from drr2ct.transforms.films.field import Field
from drr2ct.transforms.films.marker import Marker, apply_marker
from drr2ct.transforms.films.noise import apply_quantum_noise
from drr2ct.transforms.films.pose import FilmPose, at_distances, is_nominal, moved, render_films, rigid, tilted
from drr2ct.transforms.films.scatter import apply_scatter
from drr2ct.transforms.films.tone import apply_exposure, apply_tone_curve
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.radiographs.intensity import quantiles_for_field

Radiographs = Float[Tensor, "views h w"]

SCATTER_WIDTH_MM = 40.0
COMPRESSION_WIDTH_MM = 30.0
CASSETTE_MM = (430.0, 350.0)
MARKER_CENTRE_MM = (-130.0, -110.0)

_DIAGONAL = np.ones(3) / np.sqrt(3)


@dataclass(frozen=True)
class Condition:
    """One thing changed: its name, by how much, and in what unit."""

    name: str
    value: float | None = None
    unit: str = ""


def conditions(grid_size: int, pictures: bool = True) -> tuple[Condition, ...]:
    """Every condition of the table, ``clean`` first.

    Args:
        grid_size: voxels along an axis; a grid of half as many is among them if SSIM's window fits it.
        pictures: whether there are statistics of the training's radiographs to read pictures by.
    """
    half = grid_size // 2
    return (
        Condition("clean"),
        *(Condition("view_angle", angle, "deg") for angle in (-5.0, -2.0, -1.0, 1.0, 2.0, 5.0)),
        *(Condition("tilt", angle, "deg") for angle in (-3.0, 3.0)),
        Condition("film_turned", 3.0, "deg"),
        *(Condition("distances", factor, "times") for factor in (0.9, 1.1)),
        *(Condition("pixel_size", factor, "times") for factor in (0.95, 1.05)),
        *(Condition("height", up, "mm") for up in (-30.0, 30.0)),
        Condition("moved", 20.0, "mm"),
        Condition("turned", 5.0, "deg"),
        *(Condition("breathing", up, "mm") for up in (-20.0, 20.0)),
        Condition("isocentre", 30.0, "mm"),
        *(Condition("scatter", ratio, "of primary") for ratio in (0.1, 0.3)),
        *(Condition("photons", count, "per pixel") for count in (1e5, 1e4, 1e3)),
        *(Condition("blur", sigma, "mm") for sigma in (1.0, 2.0, 4.0)),
        Condition("motion_blur", 5.0, "mm"),
        *(Condition("exposure", factor, "times") for factor in (0.5, 0.8, 1.25, 2.0)),
        *(Condition("tone_offset", part, "of median") for part in (-0.2, 0.2)),
        *(Condition("tone_contrast", part, "of slope") for part in (-0.3, 0.3)),
        Condition("compression", 0.4, "of slow"),
        *(Condition("picture", part, "of slow") for part in ((0.0, 0.4) if pictures else ())),
        Condition("field", CASSETTE_MM[1], "mm wide"),
        Condition("collimation", 300.0, "mm"),
        Condition("marker", 25.0, "mm"),
        *((Condition("grid", half, "voxels"),) if half >= SMALLEST_GRID else ()),
    )


def _others(change: Callable[[View, float], FilmPose]) -> Callable[[BiplanarGeometry, float], tuple[FilmPose, ...]]:
    """The first view as it is, the others changed."""
    return lambda geometry, value: (FilmPose(geometry.views[0]), *(change(view, value) for view in geometry.views[1:]))


def _motion(
    geometry: BiplanarGeometry, shift_mm: Float[np.ndarray, 3], turned_deg: float = 0.0
) -> tuple[FilmPose, ...]:
    others = len(geometry.views) - 1
    motions = moved(geometry, np.tile(shift_mm, (others, 1)), np.full(others, turned_deg))
    return tuple(map(FilmPose, geometry.views, motions))


def _at(near: Callable[[float], float], far: Callable[[float], float], pixel: Callable[[float], float]) -> Any:
    return lambda geometry, value: tuple(
        FilmPose(at_distances(view, near(value), far(value), pixel(value))) for view in geometry.views
    )


_POSES: dict[str, Callable[[BiplanarGeometry, float], tuple[FilmPose, ...]]] = {
    "view_angle": _others(lambda view, deg: FilmPose(replace(view, gantry_angle_deg=view.gantry_angle_deg + deg))),
    "tilt": _others(lambda view, deg: FilmPose(view, tilted(view, deg, 0.0))),
    "film_turned": _others(lambda view, deg: FilmPose(view, tilted(view, 0.0, deg))),
    "distances": _at(lambda f: f, lambda f: 2 - f, lambda f: 1.0),
    "pixel_size": _at(lambda f: 1.0, lambda f: 1.0, lambda f: f),
    "height": _others(lambda view, mm: FilmPose(view, rigid(shift_mm=np.array([0.0, 0.0, mm])))),
    "moved": lambda geometry, mm: _motion(geometry, mm * _DIAGONAL),
    "turned": lambda geometry, deg: _motion(geometry, np.zeros(3), deg),
    "breathing": _others(lambda view, mm: FilmPose(view, breath_mm=mm)),
}

_CHANGES: dict[str, Callable[[Tensor, View, float], Tensor]] = {
    "scatter": lambda image, view, ratio: apply_scatter(image, ratio, SCATTER_WIDTH_MM, view.pixel_pitch_mm),
    "blur": lambda image, view, sigma: apply_detector_blur(image, sigma, view.pixel_pitch_mm),
    "motion_blur": lambda image, view, length: apply_motion_blur(image, length, 45.0, view.pixel_pitch_mm),
    "exposure": lambda image, view, factor: apply_exposure(image, factor),
    "tone_offset": lambda image, view, part: apply_tone_curve(image, part, 0.0, 0.0),
    "tone_contrast": lambda image, view, part: apply_tone_curve(image, 0.0, part, 0.0),
    "compression": lambda image, view, part: apply_compression(image, part, COMPRESSION_WIDTH_MM, view.pixel_pitch_mm),
    "field": lambda image, view, width: extend_from_edge(image, Field((CASSETTE_MM[0], width)).covered(view)),
    "collimation": lambda image, view, edge: extend_from_edge(image, Field((edge, edge)).covered(view)),
    "marker": lambda image, view, height: apply_marker(
        image, Marker("L", MARKER_CENTRE_MM, height), view.pixel_pitch_mm
    ),
}


def is_of_pose(condition: Condition) -> bool:
    """Whether the radiographs have to be rendered anew."""
    return condition.name in _POSES


def rendered(ct: MetaTensor, clean: Radiographs, condition: Condition, geometry: BiplanarGeometry) -> Radiographs:
    """Radiographs as films taken otherwise than the geometry says.

    Args:
        ct: (1, I, J, K) in HU.
        clean: line integrals as rendered; views that the condition leaves alone are taken from here.
        condition: one of pose, see :func:`is_of_pose`.
        geometry: as the network has it.
    """
    films = clean.clone()
    poses = _POSES[condition.name](geometry, condition.value or 0.0)
    for index, (pose, view) in enumerate(zip(poses, geometry.views, strict=True)):
        if not is_nominal(pose, view):
            films[index] = render_films(ct, [pose], np.asarray(ct.affine), ct.meta.get("isocentre"))[0]
    return films


def degrade(
    line_integrals: Radiographs,
    condition: Condition,
    views: Sequence[View],
    seed: int = 0,
    statistics: Mapping[str, Any] | None = None,
) -> Radiographs:
    """Radiographs whose pixels a condition changes; as they are under any other condition.

    Args:
        line_integrals: of the views.
        condition: which change.
        views: with the size of their pixels.
        seed: of the noise.
        statistics: of the training's radiographs, for ``picture``.
    """
    value = condition.value or 0.0
    if condition.name == "photons":
        return apply_quantum_noise(line_integrals, value, seed)
    if condition.name == "picture":
        assert statistics is not None, "conditions(pictures=False) leaves it out"
        console = Console(compression=value)
        read = [
            read_back(console_picture(image, console, view.pixel_pitch_mm), quantiles_for_field(stored, 1.0))
            for image, view, stored in zip(line_integrals, views, statistics["views"], strict=True)
        ]
        return torch.stack(read)
    if condition.name in _CHANGES:
        change = _CHANGES[condition.name]
        return torch.stack([change(image, view, value) for image, view in zip(line_integrals, views, strict=True)])
    return line_integrals


def taken_under(
    condition: Condition,
    ct: MetaTensor,
    clean: Radiographs,
    geometry: BiplanarGeometry,
    seed: int = 0,
    statistics: Mapping[str, Any] | None = None,
) -> Radiographs:
    """Radiographs under a condition, whichever it changes: :func:`rendered`, then :func:`degrade`."""
    films = rendered(ct, clean, condition, geometry) if is_of_pose(condition) else clean
    return degrade(films, condition, geometry.views, seed, statistics)


def with_isocentre_off(ct: MetaTensor, distance_mm: float) -> MetaTensor:
    """The CT with its isocentre so far away, along the diagonal to the right, front and top."""
    isocentre = np.asarray(ct.meta["isocentre"], dtype=float) + distance_mm * _DIAGONAL
    return MetaTensor(ct.as_tensor(), meta={**ct.meta, "isocentre": isocentre.tolist()})
