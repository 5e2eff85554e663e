r"""Space: the cube that is reconstructed, the views that see it, and how one projects onto the other.

Everything is in *isocentric coordinates*: RAS+ millimetres (x to the patient's right, y to anterior, z to superior)
with the isocentre at the origin. A patient's own coordinates are these plus the patient's isocentre.

A view is a point source and a flat detector that turn together about the z axis. At gantry angle :math:`\theta`

.. math::
    s = \mathrm{SID}\,(\sin\theta, -\cos\theta, 0), \qquad
    u = (-\cos\theta, -\sin\theta, 0), \qquad v = (0, 0, -1)

are the source position, the direction of increasing columns and that of increasing rows. At 0° the source is behind
the patient (PA) and the patient's right is on the image's left; at 90° the source is at the patient's right (left
lateral) and the patient faces the image's left. In short: images are seen from the detector's side, head up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from drr2ct.transforms.files import write_json
from drr2ct.transforms.validation import InputError

DETECTOR_MARGIN = 0.10
"""Fraction by which a default detector is larger than the grid's projection."""

GEOMETRY_FORMAT = 1


@dataclass(frozen=True)
class VolumeGrid:
    """A cube of ``size``³ isotropic voxels centred on the isocentre.

    Args:
        size: voxels along each axis.
        fov_mm: edge length of the cube (field of view), from voxel edge to voxel edge.
        vertical_flip: index 0 of the last axis is the head (as row 0 of a radiograph is), not the feet.

    Raises:
        InputError: if the size or the field of view is not positive.
    """

    size: int = 256
    fov_mm: float = 360.0
    vertical_flip: bool = True

    def __post_init__(self) -> None:
        if int(self.size) != self.size or self.size < 1:
            raise InputError(f"grid size {self.size} is not a positive whole number of voxels.")
        if not (math.isfinite(self.fov_mm) and self.fov_mm > 0):
            raise InputError(f"field of view {self.fov_mm} mm is not positive.")

    @property
    def spacing_mm(self) -> float:
        """Edge length of one voxel."""
        return self.fov_mm / self.size

    def resized(self, size: int) -> VolumeGrid:
        """The same cube cut into ``size``³ voxels."""
        return replace(self, size=size)

    def affine(self, isocentre: Sequence[float] = (0.0, 0.0, 0.0)) -> Float[np.ndarray, "4 4"]:
        """Voxel index (i, j, k) → RAS+ mm, with the isocentre at ``isocentre`` (patient coordinates, mm)."""
        spacing = self.spacing_mm
        direction = np.array([1.0, 1.0, -1.0 if self.vertical_flip else 1.0])
        affine = np.diag([*(spacing * direction), 1.0])
        affine[:3, 3] = np.asarray(isocentre, dtype=np.float64) - spacing * direction * (self.size - 1) / 2
        return affine

    def centres(self) -> Float[Tensor, "size size size 3"]:
        """Isocentric coordinates (mm, float32) of every voxel centre."""
        affine = torch.from_numpy(self.affine())
        axes = [affine[a, 3] + affine[a, a] * torch.arange(self.size, dtype=torch.float64) for a in range(3)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).float()

    def corners(self) -> Float[np.ndarray, "8 3"]:
        """Isocentric coordinates (mm) of the cube's corners."""
        half = self.fov_mm / 2
        return np.array([[x, y, z] for x in (-half, half) for y in (-half, half) for z in (-half, half)])


@dataclass(frozen=True)
class View:
    """One radiograph's acquisition: a point source and a flat detector, perpendicular to the central ray.

    Args:
        name: short name, used for files and messages (``pa``, ``lat``).
        gantry_angle_deg: rotation about the superior axis; 0 is PA, 90 is left lateral.
        source_to_isocentre_mm: distance from the source to the isocentre.
        source_to_detector_mm: distance from the source to the detector, along the central ray.
        detector_size: (rows, columns) in pixels.
        pixel_pitch_mm: edge length of a pixel on the detector; both directions.

    Raises:
        InputError: if a value is not finite or positive, or the detector is not behind the isocentre.
    """

    name: str
    gantry_angle_deg: float
    source_to_isocentre_mm: float = 1500.0
    source_to_detector_mm: float = 1800.0
    detector_size: tuple[int, int] = (512, 512)
    pixel_pitch_mm: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "detector_size", tuple(int(n) for n in self.detector_size))
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise InputError(f"view name {self.name!r} is not usable in a file name; use letters, digits, - and _.")
        if not math.isfinite(self.gantry_angle_deg):
            raise InputError(f"view {self.name}: gantry angle {self.gantry_angle_deg} is not a number of degrees.")
        for what in ("source_to_isocentre_mm", "source_to_detector_mm", "pixel_pitch_mm"):
            value = getattr(self, what)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"view {self.name}: {what} is {value}; it must be positive.")
        if len(self.detector_size) != 2 or min(self.detector_size) < 1:
            raise InputError(f"view {self.name}: detector size {self.detector_size} is not (rows, columns).")
        if self.source_to_detector_mm <= self.source_to_isocentre_mm:
            raise InputError(
                f"view {self.name}: the detector ({self.source_to_detector_mm} mm from the source) must lie behind "
                f"the isocentre ({self.source_to_isocentre_mm} mm)."
            )

    @property
    def source_position(self) -> Float[np.ndarray, 3]:
        """Isocentric coordinates of the source, mm."""
        angle = math.radians(self.gantry_angle_deg)
        return self.source_to_isocentre_mm * np.array([math.sin(angle), -math.cos(angle), 0.0])

    @property
    def detector_axes(self) -> tuple[Float[np.ndarray, 3], Float[np.ndarray, 3]]:
        """Unit vectors of increasing columns and increasing rows."""
        angle = math.radians(self.gantry_angle_deg)
        return np.array([-math.cos(angle), -math.sin(angle), 0.0]), np.array([0.0, 0.0, -1.0])

    @property
    def projection_matrix(self) -> Float[np.ndarray, "3 4"]:
        r"""Homogeneous isocentric point (mm) → homogeneous (column, row) pixel; its third entry is the depth in mm.

        Pinhole model (Hartley & Zisserman, *Multiple View Geometry*, ch. 6), pixel centres at whole numbers:
        :math:`P = K [R | -R s]` with rows :math:`u, v, n` of :math:`R` and focal length SDD / pitch.
        """
        u, v = self.detector_axes
        source = self.source_position
        rotation = np.stack([u, v, -source / self.source_to_isocentre_mm])
        rows, columns = self.detector_size
        focal = self.source_to_detector_mm / self.pixel_pitch_mm
        intrinsic = np.array([[focal, 0, (columns - 1) / 2], [0, focal, (rows - 1) / 2], [0, 0, 1]])
        return intrinsic @ np.concatenate([rotation, -(rotation @ source)[:, None]], axis=1)

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
        """(column, row) in pixels of isocentric points (mm); fractional, and outside the detector if it misses them."""
        homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ self.projection_matrix.T
        return homogeneous[:, :2] / homogeneous[:, 2:]

    def resampled(self, detector_size: tuple[int, int]) -> View:
        """The same detector read out with another number of pixels (same width in mm).

        Raises:
            InputError: if the new size has another aspect ratio.
        """
        rows, columns = detector_size
        if rows * self.detector_size[1] != columns * self.detector_size[0]:
            raise InputError(f"view {self.name}: {detector_size} pixels would not be square on this detector.")
        pitch = self.pixel_pitch_mm * self.detector_size[1] / columns
        return replace(self, detector_size=detector_size, pixel_pitch_mm=pitch)


@dataclass(frozen=True)
class BiplanarGeometry:
    """A grid and the views that see it: what a network is built for, and what is stored beside the data.

    Two views are the usual case; one, or more than two, are allowed.

    Args:
        grid: the cube that is reconstructed.
        views: the acquisitions, in the order of the radiograph channel.

    Raises:
        InputError: for no views, two views with the same name or direction, a source inside the grid, a detector
            that misses part of the grid, or views whose detectors differ in size (radiographs are stacked).
    """

    grid: VolumeGrid = field(default_factory=VolumeGrid)
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if not self.views:
            raise InputError("a geometry needs at least one view.")
        if len({view.detector_size for view in self.views}) > 1:
            sizes = ", ".join(f"{v.name} {v.detector_size[0]}×{v.detector_size[1]}" for v in self.views)
            raise InputError(f"all views need the same detector size, got {sizes}.")
        if len({view.name for view in self.views}) < len(self.views):
            raise InputError(f"view names repeat: {', '.join(v.name for v in self.views)}.")
        for i, first in enumerate(self.views):
            for second in self.views[i + 1 :]:
                if abs(math.remainder(first.gantry_angle_deg - second.gantry_angle_deg, 360)) < 1e-3:
                    raise InputError(
                        f"views {first.name} and {second.name} both look from {first.gantry_angle_deg:g}°; "
                        "a second view needs another gantry angle."
                    )
        for view in self.views:
            self._check_view(view)

    def _check_view(self, view: View) -> None:
        half = self.grid.fov_mm / 2
        if np.all(np.abs(view.source_position) <= half):
            raise InputError(
                f"view {view.name}: the source, {view.source_to_isocentre_mm:g} mm from the isocentre, lies inside "
                f"the {self.grid.fov_mm:g} mm grid; move it away or reduce fov_mm."
            )
        pixels = view.project(self.grid.corners())
        rows, columns = view.detector_size
        # a pixel of tolerance: a detector cut exactly to the projection is fine
        if pixels.min() < -1.5 or pixels[:, 0].max() > columns + 0.5 or pixels[:, 1].max() > rows + 0.5:
            need = 2 * np.abs(pixels - np.array([(columns - 1) / 2, (rows - 1) / 2])).max() * view.pixel_pitch_mm
            raise InputError(
                f"view {view.name}: the detector of {columns * view.pixel_pitch_mm:.0f}×"
                f"{rows * view.pixel_pitch_mm:.0f} mm misses part of the grid, whose projection needs {need:.0f} mm; "
                "enlarge pixel_pitch_mm or reduce fov_mm."
            )

    @classmethod
    def from_angles(
        cls,
        grid: VolumeGrid | None = None,
        angles_deg: Sequence[float] = (0.0, 90.0),
        names: Sequence[str] | None = None,
        detector_size: int | tuple[int, int] = 512,
        source_to_isocentre_mm: float = 1500.0,
        source_to_detector_mm: float = 1800.0,
        pixel_pitch_mm: float | None = None,
    ) -> BiplanarGeometry:
        """Views on one circle. Without a pitch, the detector is the grid's largest projection plus a 10 % margin.

        Names default to ``pa``, ``lat`` for the two standard views and to ``view0``, ``view1``, … otherwise.
        """
        grid = grid or VolumeGrid()
        if isinstance(detector_size, int):
            detector_size = (detector_size, detector_size)
        if names is None:
            standard = tuple(angles_deg) == (0.0, 90.0)
            names = ("pa", "lat") if standard else tuple(f"view{i}" for i in range(len(angles_deg)))
        if len(names) != len(angles_deg):
            raise InputError(f"{len(angles_deg)} gantry angles but {len(names)} view names.")

        def views(pitch: float) -> tuple[View, ...]:
            return tuple(
                View(name, float(angle), source_to_isocentre_mm, source_to_detector_mm, detector_size, pitch)
                for name, angle in zip(names, angles_deg, strict=True)
            )

        if pixel_pitch_mm is None:
            if source_to_isocentre_mm <= grid.fov_mm / math.sqrt(2):
                raise InputError(
                    f"the source, {source_to_isocentre_mm:g} mm from the isocentre, can touch the corners of the "
                    f"{grid.fov_mm:g} mm grid; move it away or reduce fov_mm."
                )
            rows, columns = detector_size
            centre = np.array([(columns - 1) / 2, (rows - 1) / 2])
            reach = [np.abs(view.project(grid.corners()) - centre).max(axis=0) for view in views(1.0)]
            across, along = (2 * (1 + DETECTOR_MARGIN) * np.stack(reach)).max(axis=0)
            pixel_pitch_mm = float(max(across / columns, along / rows))
        return cls(grid, views(pixel_pitch_mm))

    @property
    def detector_size(self) -> tuple[int, int]:
        """(rows, columns) of every view."""
        return self.views[0].detector_size

    def projection_matrices(self) -> Float[Tensor, "views 3 4"]:
        """All views' projection matrices, float64."""
        return torch.from_numpy(np.stack([view.projection_matrix for view in self.views]))

    def resized(self, size: int | None = None, detector_size: tuple[int, int] | None = None) -> BiplanarGeometry:
        """The same cube and detectors with another number of voxels or pixels."""
        grid = self.grid if size is None else self.grid.resized(size)
        views = self.views if detector_size is None else tuple(v.resampled(detector_size) for v in self.views)
        return BiplanarGeometry(grid, views)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what JSON files, checkpoints and metadata hold."""
        return {
            "format": GEOMETRY_FORMAT,
            "grid": asdict(self.grid),
            "views": [{**asdict(v), "detector_size": list(v.detector_size)} for v in self.views],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BiplanarGeometry:
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError: for missing or unknown entries.
        """
        try:
            if data["format"] != GEOMETRY_FORMAT:
                raise InputError(f"geometry format {data['format']} is unknown; this version reads {GEOMETRY_FORMAT}.")
            views = [{**view, "detector_size": tuple(view["detector_size"])} for view in data["views"]]
            return cls(VolumeGrid(**data["grid"]), tuple(View(**view) for view in views))
        except (KeyError, TypeError) as error:
            raise InputError(f"not a geometry: {error}; see BiplanarGeometry.to_dict for the entries.") from error

    def save(self, path: str | Path) -> None:
        """Write ``geometry.json``."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> BiplanarGeometry:
        """Read ``geometry.json``.

        Raises:
            InputError: if the file is missing or is not a geometry.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise InputError(f"geometry file {path} does not exist.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"geometry file {path} is not JSON ({error}); give a geometry.json.") from error
        if not isinstance(data, dict):
            raise InputError(f"geometry file {path} does not hold a JSON object.")
        return cls.from_dict(data)
