r"""How two films were really taken: angles, tilt, distances, height, and a patient who moved, turned and breathed.

**Whose position is the truth?** A volume can only be where the films show it, so the truth is placed by what each film
sees best, and everything else is an error that a network has to bear:

- the *first view* (PA) stands for the patient: its direction, its height, its left and right, its breath. Angles, tilt,
  turning and breathing are differences from it, so it has none of its own: if both films are turned alike, that is
  another pose of the patient in space, which the CT's own random shape varies;
- along its own beam the first view sees next to nothing (20 mm change its magnification by 1.3 %); there the *second*
  view stands for the patient. So when the patient has moved between the films by :math:`d`, the part of :math:`d` along
  the first beam is given to the first view, the opposite way, and the rest to the second.

With the label as it is, what is left of a motion is then exactly what no pair of films can tell: it is in none of the
directions in which the volume could follow it.

Distances and the size of a pixel belong to each film, the first one too: nothing in a film tells its scale.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from scipy.spatial.transform import Rotation
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.films.breathing import breathe
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class FilmPose:
    """How one film was taken, where the geometry has it otherwise.

    Args:
        view: the view as it really was: its angle, its distances, its pixels' size.
        motion: rigid motion (isocentric mm) that brings the patient to where it stood.
        breath_mm: by how much the diaphragm stood higher.
    """

    view: View
    motion: Float[np.ndarray, "4 4"] = field(default_factory=lambda: np.eye(4))
    breath_mm: float = 0.0


@dataclass(frozen=True)
class PoseVariation:
    """How far films are from what is said of them; each drawn evenly up to the largest.

    Args:
        prob: of any of it; else both films are exactly as the geometry says.
        angle_deg: gantry angle of all views but the first.
        tilt_deg: of all views but the first: beam up or down, and film turned in its plane.
        distance: relative error of source to isocentre and of isocentre to detector, of each view. 0.1 each changes
            the magnification by up to 3.5 %.
        pixel: relative error of a pixel's size, of each view: a cassette's size is guessed where no pitch is stated.
        height_mm: of all views but the first: film higher or lower than the first one's.
        moved_mm: between the first view and another, in any direction.
        turned_deg: of the patient about the long axis, likewise.
        breath_mm: difference of the diaphragm's height, up or down.

    Raises:
        InputError: for a negative number, a probability above 1, or a distance or pixel that may be 0.
    """

    prob: float = 1.0
    angle_deg: float = 5.0
    tilt_deg: float = 3.0
    distance: float = 0.1
    pixel: float = 0.03
    height_mm: float = 30.0
    moved_mm: float = 20.0
    turned_deg: float = 5.0
    breath_mm: float = 20.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = 1.0 if name == "prob" else 0.5 if name in ("distance", "pixel") else np.inf
            if not 0 <= value <= most:
                raise InputError(f"{name} of a film's pose is {value}; it must be from 0 to {most:g}.")


def is_nominal(pose: FilmPose, view: View) -> bool:
    """Whether a film was taken exactly as the view says."""
    return pose.view == view and pose.breath_mm == 0 and np.array_equal(pose.motion, np.eye(4))


def nominal_poses(geometry: BiplanarGeometry) -> tuple[FilmPose, ...]:
    """Films exactly as the geometry says."""
    return tuple(FilmPose(view) for view in geometry.views)


def rigid(rotation: Rotation | None = None, shift_mm: Float[np.ndarray, 3] | None = None) -> Float[np.ndarray, "4 4"]:
    """A rotation about the isocentre, and then a shift (mm)."""
    motion = np.eye(4)
    if rotation is not None:
        motion[:3, :3] = rotation.as_matrix()
    if shift_mm is not None:
        motion[:3, 3] = shift_mm
    return motion


def tilted(view: View, up_deg: float, in_plane_deg: float) -> Float[np.ndarray, "4 4"]:
    """The motion of the patient that looks as a beam tilted upwards and a film turned clockwise do."""
    across, down = view.detector_axes
    beam = np.cross(across, down)
    return rigid(Rotation.from_rotvec(np.radians(up_deg) * across - np.radians(in_plane_deg) * beam))


def moved(
    geometry: BiplanarGeometry,
    shifts_mm: Float[np.ndarray, "others 3"],
    turned_deg: Float[np.ndarray, " others"] | None = None,
) -> list[Float[np.ndarray, "4 4"]]:
    """Each view's motion when the patient has moved since the first, by what the truth is placed by (see the module).

    Args:
        geometry: the views.
        shifts_mm: of every view but the first: by how much the patient is moved, isocentric.
        turned_deg: of every view but the first: by how much it is turned about the long axis, counter-clockwise seen
            from above.
    """
    turned_deg = np.zeros(len(shifts_mm)) if turned_deg is None else turned_deg
    first, *others = [view.source_position / view.source_to_isocentre_mm for view in geometry.views]
    unseen = np.zeros(3)
    if others:
        across = int(np.argmin([abs(first @ other) for other in others]))
        unseen = (shifts_mm[across] @ first) * first
    motions = [rigid(shift_mm=-unseen)]
    for shift, angle in zip(shifts_mm, turned_deg, strict=True):
        motions.append(rigid(Rotation.from_rotvec(np.radians(angle) * _UP), shift - unseen))
    return motions


def draw_poses(
    state: np.random.RandomState, geometry: BiplanarGeometry, variation: PoseVariation
) -> tuple[FilmPose, ...]:
    """Poses of all views, from a generator of MONAI's kind (``self.R``); as many numbers are drawn every time.

    Args:
        state: the generator.
        geometry: as it is said to be.
        variation: how far it may be otherwise.
    """
    views, others = geometry.views, len(geometry.views) - 1
    happens = state.uniform() < variation.prob
    factors = 1 + state.uniform(-1, 1, (len(views), 3)) * [variation.distance, variation.distance, variation.pixel]
    angles = state.uniform(-variation.angle_deg, variation.angle_deg, others)
    tilts = state.uniform(-variation.tilt_deg, variation.tilt_deg, (others, 2))
    heights = state.uniform(-variation.height_mm, variation.height_mm, others)
    directions = state.normal(size=(others, 3))
    lengths = state.uniform(0, variation.moved_mm, others)
    turns = state.uniform(-variation.turned_deg, variation.turned_deg, others)
    breaths = state.uniform(-variation.breath_mm, variation.breath_mm, others)
    if not happens:
        return nominal_poses(geometry)
    shifts = directions / np.linalg.norm(directions, axis=1, keepdims=True) * lengths[:, None]
    motions = moved(geometry, shifts, turns)
    poses = []
    for index, (view, motion, (near, far, pixel)) in enumerate(zip(views, motions, factors, strict=True)):
        taken = at_distances(view, near, far, pixel)
        if index == 0:
            poses.append(FilmPose(taken, motion))
            continue
        k = index - 1
        taken = replace(taken, gantry_angle_deg=view.gantry_angle_deg + float(angles[k]))
        raised = rigid(shift_mm=heights[k] * _UP)
        poses.append(FilmPose(taken, raised @ tilted(taken, *tilts[k]) @ motion, float(breaths[k])))
    return tuple(poses)


def at_distances(view: View, to_isocentre: float, to_detector: float, pixel: float = 1.0) -> View:
    """A view with source and detector so many times as far from the isocentre, and pixels so many times as large."""
    behind = view.source_to_detector_mm - view.source_to_isocentre_mm
    near = view.source_to_isocentre_mm * to_isocentre
    return replace(
        view,
        source_to_isocentre_mm=near,
        source_to_detector_mm=near + behind * to_detector,
        pixel_pitch_mm=view.pixel_pitch_mm * pixel,
    )


def render_films(
    volume: Real[Tensor, "1 i j k"],
    poses: Sequence[FilmPose],
    affine: Float[np.ndarray, "4 4"],
    isocentre: Sequence[float] | None = None,
    **options: Any,
) -> Float[Tensor, "views rows columns"]:
    """Line integrals of a CT as films taken so see it; takes as long as ``render_drr``, but for the breathing.

    Args:
        volume: Hounsfield units.
        poses: of all views.
        affine: voxel index → RAS+ mm.
        isocentre: patient coordinates (mm); see ``render_drr``.
        **options: further ones of ``render_drr``.

    Raises:
        InputError: as ``render_drr``.
    """
    films: dict[int, Tensor] = {}
    for breath in dict.fromkeys(pose.breath_mm for pose in poses):
        breathed = breathe(volume, np.asarray(affine), breath) if breath else volume
        chosen = [index for index, pose in enumerate(poses) if pose.breath_mm == breath]
        views, motions = [poses[i].view for i in chosen], [poses[i].motion for i in chosen]
        rendered = render_drr(breathed, views, affine, isocentre, motions=motions, **options)
        films |= dict(zip(chosen, rendered, strict=True))
    return torch.stack([films[index] for index in range(len(poses))])


class RandRenderFilmsd(RandomizableTransform, MapTransform):
    """Radiographs rendered as films that were not taken quite as the geometry says; the CT stays as it is.

    There are two places for it: where samples are made of scans while training, as ``render`` of
    :func:`~drr2ct.transforms.preprocessing.kept_to_samples`, which costs no rendering more; and, ``windowed``, after
    the cache, where samples are on the grid already. What the grid cuts off is not in the radiographs then.

    Args:
        keys: the key of the CT, a ``MetaTensor``; one.
        geometry: the views as they are said to be.
        variation: how far they may be otherwise.
        windowed: the CT is in [0, 1] over the HU window and radiographs are scaled; else HU and line integrals.
        prob: of rendering a sample. The others, and those whose films are as the geometry says, keep the radiographs
            that they have.
        output_key: of the radiographs, (V, H, W).
        **options: of ``render_drr``: ``engine``, ``thick_planes``.

    Raises:
        InputError: for more than one key or, when called, a CT without its affine.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        variation: PoseVariation | None = None,
        windowed: bool = False,
        prob: float = 1.0,
        output_key: str = "image",
        **options: Any,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if len(self.keys) != 1:
            raise InputError(f"RandRenderFilmsd renders one CT, not {', '.join(map(str, self.keys))}.")
        self.geometry = geometry
        self.variation = variation or PoseVariation()
        self.windowed = windowed
        self.output_key = output_key
        self.options = options

    def randomize(self, data: Any = None) -> None:
        """Draw whether to render, and how the films were taken."""
        super().randomize(None)
        poses = draw_poses(self.R, self.geometry, self.variation)
        self._poses = poses if self._do_transform else nominal_poses(self.geometry)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its radiographs."""
        sample = dict(data)
        self.randomize()
        if self.output_key in sample and all(map(is_nominal, self._poses, self.geometry.views)):
            return sample
        ct = sample[self.keys[0]]
        if not isinstance(ct, MetaTensor):
            raise InputError(f"{self.keys[0]} has no affine to render by; keep its metadata in the preprocessing.")
        hu = to_hu(ct.as_tensor()) if self.windowed else ct.as_tensor()
        films = render_films(hu, self._poses, np.asarray(ct.affine), ct.meta.get("isocentre"), **self.options)
        sample[self.output_key] = films / LINE_INTEGRAL_SCALE if self.windowed else films
        return sample
