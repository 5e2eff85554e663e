"""Another patient out of each CT, for every sample anew: one warp, other tissue, another end of the scan.

Real anatomy, varied: rotation and scale of each axis, a smooth random displacement, a part of the way towards another
patient, the attenuation of lung, fat, muscle and bone, and where the scan ends. Radiographs are rendered from the
varied scan, not from the grid, and the label is taken from it. It does not replace patients.

:func:`files_to_kept` is what is done once, :func:`kept_to_samples` what is done each time.

There is no mirroring. A mirrored patient has the heart on the right and the liver on the left; one in ten thousand
people is so, and a network that has seen half of them so can no longer tell the sides.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d
from monai.transforms import (
    Compose,
    MapTransform,
    Orientationd,
    RandomizableTransform,
    ScaleIntensityd,
    SelectItemsd,
    Transform,
)
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import RenderDRRd
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.kept import KeepCTd, Scan, kept_spacing_mm
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import AIR_HU, GRID_MODES, HU_WINDOW, LoadCTd
from drr2ct.transforms.warping import PointMap, cubic_weights, grid_points, resample, smallest_jacobian

_TISSUE_KNOTS_HU = np.array([-1024.0, -980.0, -850.0, -100.0, 50.0, 400.0, 3071.0])
_TISSUE_SPREAD_HU = np.array([0.0, 0.0, 40.0, 20.0, 15.0, 80.0, 0.0])
_SMALLEST_JACOBIAN = 0.15
_POINTS_MM = 12.0  # between the points at which the warp is evaluated: a seventh of what its control points are apart
_SEEN_MARGIN = 1.15  # of the scan's length that the detectors see, for views that are not quite where they should be


@dataclass(frozen=True)
class Variation:
    """How far what is made of a CT differs from it.

    Args:
        rotation_deg: largest rotation about each axis.
        scale: largest relative change of size, drawn for each axis.
        shift_mm: largest distance of the isocentre from the middle of the scan, along each axis.
        deformation: largest local displacement, as a fraction of the scan's extent.
        control_points: of the displacement field, along each axis.
        tissue: multiplies the HU variation of lung (±40), fat (±20), muscle (±15) and bone (±80).
        coverage: largest part of the scan's extent that is cut off, at either end of each axis: scans end elsewhere.
        towards: largest part of the way that is gone towards another patient.

    Raises:
        InputError: if the coverage would leave nothing, or the way is no part of one.
    """

    rotation_deg: float = 6.0
    scale: float = 0.12
    shift_mm: float = 12.0
    deformation: float = 0.05
    control_points: int = 5
    tissue: float = 1.0
    coverage: float = 0.0
    towards: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.coverage < 0.5:
            raise InputError(f"coverage is {self.coverage:g}; at either end less than 0.5 of a scan can be cut off.")
        if not 0 <= self.towards <= 1:
            raise InputError(f"towards is {self.towards:g}; give a part of the way to another patient, from 0 to 1.")


WIDE = Variation(
    rotation_deg=8.0, scale=0.2, shift_mm=20.0, deformation=0.08, control_points=6, tissue=1.5, coverage=0.12
)
"""Wide enough to learn other patients from: a scan that is left out differs in build, and in where it ends."""

TOWARDS = replace(WIDE, scale=0.1, deformation=0.04, towards=1.0)
"""Between patients: what people differ by comes from other patients, so that there is less bending at random."""


@runtime_checkable
class Anatomies(Protocol):
    """Ways from patients to each other, for example :class:`~drr2ct.transforms.registration.RegisteredPatients`."""

    def others(self, patient: str) -> Sequence[str]:
        """Patients whom this one can be led towards, in a fixed order."""

    def way(self, patient: str, other: str, part: float) -> PointMap:
        """Where to take from in ``patient`` what comes to stand a ``part`` of the way towards ``other``.

        Both in mm from the centre of the scan.
        """


@dataclass(frozen=True)
class Draw:
    """One variation, drawn.

    Args:
        matrix: of the affine part.
        displacement: (3, c, c, c) at control points, as a fraction of the scan's extent.
        shift_mm: of the isocentre.
        tissue_hu: added at the knots of the tissue curve.
        cut: (2, 3) parts of the scan that are cut off, at the lower and upper end of x, y, z.
        other: a number from 0 to 1 that chooses the other patient.
        towards: the part of the way towards it.
    """

    matrix: Float[np.ndarray, "3 3"]
    displacement: Float[np.ndarray, "3 c c c"]
    shift_mm: Float[np.ndarray, " 3"]
    tissue_hu: Float[np.ndarray, " knots"]
    cut: Float[np.ndarray, "2 3"]
    other: float = 0.0
    towards: float = 0.0

    @classmethod
    def nothing(cls) -> Draw:
        """The CT as it is."""
        return cls(np.eye(3), np.zeros((3, 2, 2, 2)), np.zeros(3), np.zeros(len(_TISSUE_KNOTS_HU)), np.zeros((2, 3)))

    @classmethod
    def of(cls, variation: Variation, random: np.random.RandomState) -> Draw:
        """Draw evenly within a variation's limits."""
        angles = np.radians(random.uniform(-1, 1, 3) * variation.rotation_deg)
        scale = 1 + random.uniform(-1, 1, 3) * variation.scale
        size = (3, *(variation.control_points,) * 3)
        return cls(
            matrix=_rotation(angles) @ np.diag(scale),
            displacement=random.uniform(-1, 1, size) * variation.deformation,
            shift_mm=random.uniform(-1, 1, 3) * variation.shift_mm,
            tissue_hu=random.uniform(-1, 1, len(_TISSUE_KNOTS_HU)) * _TISSUE_SPREAD_HU * variation.tissue,
            cut=random.uniform(0, 1, (2, 3)) * variation.coverage,
            other=float(random.uniform()),
            towards=float(random.uniform()) * variation.towards,
        )

    def gentler(self) -> Draw:
        """Half the displacement, half the way."""
        return replace(self, displacement=self.displacement / 2, towards=self.towards / 2)


def _rotation(angles: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """About x, then y, then z; radians."""
    (a, b, c), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -sa], [0, sa, a]])
    about_y = np.array([[b, 0, sb], [0, 1, 0], [-sb, 0, b]])
    about_z = np.array([[c, -sc, 0], [sc, c, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


class Varier:
    """Makes varied scans for one geometry.

    Args:
        geometry: its grid and detectors decide how fine a scan is made; its views, how much of it.
        mode: how the scan is put on the grid, see ``ResampleToGrid``.
        anatomies: ways towards other patients.

    Raises:
        InputError: for an unknown mode.
    """

    def __init__(self, geometry: BiplanarGeometry, mode: str = "cube", anatomies: Anatomies | None = None) -> None:
        if mode not in GRID_MODES:
            raise InputError(f"grid mode {mode!r} is unknown; choose from {', '.join(GRID_MODES)}.")
        self.geometry = geometry
        self.mode = mode
        self.anatomies = anatomies
        self.spacing_mm = kept_spacing_mm(geometry)

    def __call__(self, ct: MetaTensor, draw: Draw, patient: str = "") -> MetaTensor:
        """One variation.

        Args:
            ct: (1, I, J, K) in HU, from :class:`~drr2ct.transforms.kept.KeepCT`.
            draw: which.
            patient: whose CT it is; needed to lead it towards another.

        Returns:
            (1, X, Y, Z) in HU, with affine and isocentre; and, in its metadata, what :class:`OntoGrid` needs. Voxels
            are along x, y and z, and where both have the same size they are those of the grid.
        """
        scan = Scan.of(ct)
        while True:
            to_scan = partial(self._positions, draw=draw, scan=scan, patient=patient)
            low, high = moved_box(to_scan, np.array(scan.extent))
            low, high = low + draw.cut[0] * (high - low), high - draw.cut[1] * (high - low)
            isocentre = (low + high) / 2 + draw.shift_mm + np.array(scan.isocentre) - np.array(scan.centre)
            spacing, first, grid_affine = self._voxels(low, high, isocentre)
            near, far = self._needed(ct, scan, to_scan, low, high, isocentre)
            start = np.ceil((near - first) / spacing - 1e-6)
            size = [int(n) for n in np.maximum(np.floor((far - first) / spacing + 1e-6) - start + 1, 1)]
            first = first + start * spacing
            last = first + (np.array(size) - 1) * spacing
            counts = [max(2, round(float(d) / _POINTS_MM) + 1) for d in last - first]
            positions = to_scan(grid_points(first, last, counts, ct.device))
            step = [float(d) / (n - 1) for d, n in zip(last - first, counts, strict=True)]
            if draw.towards == 0 and not draw.displacement.any():
                break
            if min(step) <= 0 or smallest_jacobian(positions, step) > _SMALLEST_JACOBIAN:
                break
            draw = draw.gentler()
        varied = resample(with_other_tissue(ct, draw.tissue_hu), to_indices(positions, ct, scan), size)
        affine = np.diag([*spacing, 1.0])
        # an unvaried scan stays where it was
        affine[:3, 3] = first + scan.centre
        grid_affine[:3, 3] += scan.centre
        meta = {"isocentre": (isocentre + scan.centre).tolist(), "grid_affine": grid_affine, "air_hu": scan.air_hu}
        meta |= {"scan_low": low + scan.centre, "scan_high": high + scan.centre}
        return MetaTensor(varied, affine=torch.from_numpy(affine), meta=meta)

    def _positions(self, points: Float[Tensor, "3 a b c"], draw: Draw, scan: Scan, patient: str) -> Any:
        """Where in the scan (mm from its centre) what comes to stand at the points of an even grid is taken from."""
        found = bent(points, draw.matrix, draw.displacement, scan.extent)
        if draw.towards > 0 and self.anatomies is not None and (others := self.anatomies.others(patient)):
            other = others[min(int(draw.other * len(others)), len(others) - 1)]
            found = self.anatomies.way(patient, other, draw.towards)(found)
        return found

    def _voxels(
        self, low: Float[np.ndarray, " 3"], high: Float[np.ndarray, " 3"], isocentre: Float[np.ndarray, " 3"]
    ) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"], Float[np.ndarray, "4 4"]]:
        """Spacing and one voxel's centre of the scan to make, and the label's affine."""
        grid = self.geometry.grid
        if self.mode == "cube":
            affine = grid.affine(isocentre.tolist())
            return np.full(3, self.spacing_mm), isocentre - self.spacing_mm * (grid.size - 1) / 2, affine
        step = (high - low) / grid.size
        spacing = (high - low) / np.maximum(np.round((high - low) / np.minimum(step, self.spacing_mm)), 1)
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = low + step / 2
        if grid.vertical_flip:
            affine[2, 2], affine[2, 3] = -step[2], high[2] - step[2] / 2
        return spacing, low + spacing / 2, affine

    def _needed(
        self,
        ct: MetaTensor,
        scan: Scan,
        to_scan: PointMap,
        low: Float[np.ndarray, " 3"],
        high: Float[np.ndarray, " 3"],
        isocentre: Float[np.ndarray, " 3"],
    ) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        """The part of the box in which there is something, and which detectors or grid can see."""
        counts = [max(3, int(np.ceil(float(d) / _POINTS_MM)) + 1) for d in high - low]
        indices = to_indices(to_scan(grid_points(low, high, counts, ct.device)), ct, scan)
        size = torch.tensor(ct.shape[1:], device=ct.device)[:, None, None, None]
        inside = ((indices > -1) & (indices < size)).all(dim=0)
        near, far = low.copy(), high.copy()
        for axis, count in enumerate(counts):
            filled = torch.nonzero(inside.any(dim=2 if axis < 2 else 1).any(dim=1 if axis == 0 else 0))
            if len(filled):
                step = (high[axis] - low[axis]) / (count - 1)
                near[axis] = max(low[axis], low[axis] + (int(filled[0]) - 1) * step)
                far[axis] = min(high[axis], low[axis] + (int(filled[-1]) + 1) * step)
        reach = self.geometry.grid.fov_mm / 2
        depth = float(np.linalg.norm((high - low)[:2])) / 2
        for view in self.geometry.views:
            half = view.detector_size[0] * view.pixel_pitch_mm / 2
            seen = half * (view.source_to_isocentre_mm + depth) / view.source_to_detector_mm
            reach = max(reach, seen * _SEEN_MARGIN)
        if self.mode == "cube":  # the other shows the whole scan
            near[2], far[2] = max(near[2], isocentre[2] - reach), min(far[2], isocentre[2] + reach)
        return near, far


def bent(
    points: Float[Tensor, "3 a b c"],
    matrix: Float[np.ndarray, "3 3"],
    displacement: Float[np.ndarray, "3 p p p"],
    extent_mm: Sequence[float],
) -> Float[Tensor, "3 a b c"]:
    """A x + d(x) at the points of an even grid, in mm; d between its control points is cubic."""
    extent = torch.tensor(extent_mm, device=points.device)
    lines = (points[0, :, 0, 0], points[1, 0, :, 0], points[2, 0, 0, :])
    count = displacement.shape[1]
    weights = [cubic_weights((x / w + 0.5) * (count - 1), count) for x, w in zip(lines, extent, strict=True)]
    field = torch.as_tensor(displacement, dtype=torch.float32, device=points.device) * extent[:, None, None, None]
    linear = torch.as_tensor(matrix, dtype=torch.float32, device=points.device)
    affine = torch.einsum("ab,bxyz->axyz", linear, points)
    return affine + torch.einsum("apqr,xp,yq,zr->axyz", field, *weights)


def moved_box(
    to_scan: PointMap, extent_mm: Float[np.ndarray, " 3"]
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Where the box of a scan comes to lie: through the affine map that is nearest; its sides stay along the axes.

    So a scan ends where it ended in the patient, and next to nothing outside of it is needed.
    """
    points = grid_points(-extent_mm / 2, extent_mm / 2, (7, 7, 7))
    values = to_scan(points)
    # the points are symmetric about 0, so that the least squares fall apart
    matrix = torch.einsum("axyz,bxyz->ab", values, points) / points.square().sum(dim=(1, 2, 3))
    centre = -np.linalg.solve(matrix.double().numpy(), values.mean(dim=(1, 2, 3)).double().numpy())
    half = extent_mm / 2 / matrix.diagonal().double().clamp(min=0.3).numpy()
    return centre - half, centre + half


def to_indices(positions: Float[Tensor, "3 a b c"], ct: MetaTensor, scan: Scan) -> Float[Tensor, "3 a b c"]:
    """Positions in mm from the scan's centre → voxel indices of the CT."""
    inverse = np.linalg.inv(np.asarray(ct.affine, dtype=np.float64))
    matrix = torch.as_tensor(inverse[:3, :3], dtype=torch.float32, device=positions.device)
    offset = torch.as_tensor(inverse[:3, :3] @ scan.centre + inverse[:3, 3], dtype=torch.float32)
    return torch.einsum("ab,bxyz->axyz", matrix, positions) + offset.to(positions.device)[:, None, None, None]


def with_other_tissue(ct: MetaTensor, tissue_hu: Float[np.ndarray, " knots"]) -> Float[Tensor, "1 i j k"]:
    """HU (whole numbers within the window), and what becomes of each by a piecewise linear curve; float32."""
    levels = np.arange(HU_WINDOW[0], HU_WINDOW[1] + 1)
    curve = np.interp(levels, _TISSUE_KNOTS_HU, _TISSUE_KNOTS_HU + tissue_hu).clip(*HU_WINDOW).astype(np.float32)
    values = ct.as_tensor()
    if values.device.type == "cpu":  # NumPy takes half of torch's time
        return torch.from_numpy(np.take(curve, values.numpy() - int(HU_WINDOW[0]), mode="clip"))
    return torch.from_numpy(curve).to(values.device)[values.long() - int(HU_WINDOW[0])]


class RandVaryd(RandomizableTransform, MapTransform):
    """Another patient each time, see :class:`Varier`; give it :class:`~drr2ct.transforms.kept.KeepCTd`'s CT.

    What follows renders radiographs from the result, and puts it on the grid (:class:`OntoGridd`).

    Args:
        keys: of the CT; one.
        geometry: grid and views.
        variation: how far it may differ.
        mode: how it will be put on the grid.
        anatomies: ways towards other patients; needed if the variation goes there.
        prob: of varying a sample; others are passed through the same steps unvaried.
        patient_key: of the patient's name.

    Raises:
        InputError: for more than one key, or a way towards others without anatomies.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        variation: Variation = WIDE,
        mode: str = "cube",
        anatomies: Anatomies | None = None,
        prob: float = 1.0,
        patient_key: str = "patient",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if len(self.keys) != 1:
            raise InputError(f"RandVaryd varies one CT, not {', '.join(map(str, self.keys))}.")
        if variation.towards > 0 and anatomies is None:
            raise InputError("a variation towards other patients needs their registration; give anatomies.")
        self.variation = variation
        self.patient_key = patient_key
        self._vary = Varier(geometry, mode, anatomies)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to vary, and how."""
        super().randomize(None)
        self._draw = Draw.of(self.variation, self.R)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with another scan in the place of its CT."""
        sample = dict(data)
        self.randomize()
        (key,) = self.keys
        if not isinstance(sample[key], MetaTensor):
            raise InputError(f"{key} has no affine to vary it by; give KeepCTd's result.")
        draw = self._draw if self._do_transform else Draw.nothing()
        sample[key] = self._vary(sample[key], draw, str(sample.get(self.patient_key, "")))
        return sample


class OntoGrid(Transform):
    """A varied scan on the grid that its metadata name, over the HU window: what ``ResampleToGrid`` would make of it.

    The same anti-aliasing, one axis after the other; where voxels are those of the grid, they are taken as they are.

    Args:
        size: voxels along each axis of the grid.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, scan: MetaTensor) -> MetaTensor:
        """(1, X, Y, Z) in HU → (1, size, size, size) in [0, 1]."""
        source, target = (np.asarray(a, dtype=np.float64) for a in (scan.affine, scan.meta["grid_affine"]))
        values = scan.as_tensor() - AIR_HU
        device = values.device
        covered, inside = [torch.ones((1, 1, 1), device=device)] * 2
        for axis in (2, 1, 0):
            spacing = source[axis, axis]
            step = target[axis, axis] / spacing
            positions = (target[axis, 3] - source[axis, 3]) / spacing + step * np.arange(self.size)
            values = along(values, 1 + axis, positions, abs(step))
            shape = [self.size if other == axis else 1 for other in range(3)]
            ones = torch.ones(scan.shape[1 + axis], device=device)
            covered = covered * along(ones, 0, positions, abs(step)).view(shape)
            low, high = ((scan.meta[key][axis] - source[axis, 3]) / spacing for key in ("scan_low", "scan_high"))
            within = np.clip(np.minimum(positions - low, high - positions) + 0.5, 0, 1)
            inside = inside * torch.from_numpy(within).to(device, torch.float32).view(shape)
        # the air that was cut off: within the scan, but not among the voxels
        values.add_((inside - covered).clamp_(min=0).mul_(scan.meta["air_hu"] - AIR_HU))
        scaled = values.div_(HU_WINDOW[1] - HU_WINDOW[0]).clamp_(0, 1)
        return MetaTensor(scaled, affine=torch.from_numpy(target), meta={"isocentre": scan.meta["isocentre"]})


class OntoGridd(MapTransform):
    """Dictionary version of :class:`OntoGrid`."""

    def __init__(self, keys: KeysCollection, size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._onto_grid = OntoGrid(size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put each key on the grid."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key] = self._onto_grid(sample[key])
        return sample


def along(values: Tensor, axis: int, positions: Float[np.ndarray, " n"], step: float) -> Tensor:
    """Values at positions (in voxels) along one axis; anti-aliased for steps above 1, zero outside."""
    count, size = values.shape[axis], len(positions)
    nearest = np.round(positions).astype(int)
    if step <= 1 and np.abs(positions - nearest).max() < 1e-3:
        low, high = int(nearest.min()), int(nearest.max())
        inside = values.narrow(axis, max(low, 0), max(min(high + 1, count) - max(low, 0), 0))
        taken = values.new_zeros([*values.shape[:axis], size, *values.shape[axis + 1 :]])
        taken.narrow(axis, max(-low, 0), inside.shape[axis]).copy_(inside)
        return taken if size == 1 or nearest[1] > nearest[0] else taken.flip(axis)
    weights = _axis_weights(torch.from_numpy(positions), count, max(0.0, (step - 1) / 2)).to(values)
    return torch.tensordot(values, weights, dims=([axis], [1])).movedim(-1, axis)


def _axis_weights(positions: Float[Tensor, " n"], count: int, sigma: float) -> Float[Tensor, "n count"]:
    """Gaussian low pass with replicated ends, as ``smooth_for_spacing``; then linear interpolation, zero outside."""
    indices = torch.arange(count)
    linear = (1 - (positions[:, None] - indices).abs()).clamp(min=0)
    if sigma == 0:
        return linear
    kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0, normalize=True).double()
    taps = torch.arange(len(kernel)) - len(kernel) // 2
    smooth = torch.zeros(count, count, dtype=torch.float64)
    columns = (indices[:, None] + taps).clamp(0, count - 1)
    smooth.index_put_((indices[:, None].expand_as(columns), columns), kernel.expand(columns.shape), accumulate=True)
    return linear @ smooth


def files_to_kept(geometry: BiplanarGeometry) -> Compose:
    """What is done once for each patient: read the CT (``label``), and keep what variations are made of.

    Stored radiographs are not read: those of a varied patient are rendered.
    """
    return Compose(
        [
            LoadCTd("label"),
            Orientationd("label", axcodes="RAS", labels=None),
            KeepCTd("label", kept_spacing_mm(geometry)),
            SelectItemsd(["label", "patient"]),
        ]
    )


def kept_to_samples(
    geometry: BiplanarGeometry,
    variation: Variation = WIDE,
    mode: str = "cube",
    anatomies: Anatomies | None = None,
    prob: float = 1.0,
    render: Any | None = None,
) -> Compose:
    """What is done each time: vary, render, put on the grid. Samples are those of ``files_to_samples``.

    Args:
        geometry: grid and views.
        variation: how far patients may differ.
        mode: how the CT is put on the grid.
        anatomies: ways towards other patients.
        prob: of varying a sample.
        render: another dictionary transform from the scan under ``label`` (HU, with affine and isocentre) to line
            integrals (V, H, W) under ``image``, for example one in which the patient moves between the views.
    """
    return Compose(
        [
            RandVaryd("label", geometry, variation, mode, anatomies, prob),
            render or RenderDRRd("label", geometry, output_key="image", thick_planes=True, overwrite=True),
            ScaleIntensityd("image", minv=None, maxv=None, factor=1 / LINE_INTEGRAL_SCALE - 1),
            OntoGridd("label", geometry.grid.size),
            SelectItemsd(["image", "label", "patient"]),
        ]
    )
