"""Another patient out of a kept CT: one warp, other tissue, another end of the scan.

Radiographs are rendered from the varied scan, not from the grid, and the label is taken from it
(:mod:`~drr2ct.transforms.varied.onto_grid`). :func:`~drr2ct.transforms.preprocessing.kept_to_samples` is all of it in a
row.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.graft import scanned
from drr2ct.transforms.varied.kept import Scan, kept_spacing_mm
from drr2ct.transforms.varied.variation import WIDE, Draw, Variation, with_other_tissue
from drr2ct.transforms.varied.warping import PointMap, cubic_weights, grid_points, resample, smallest_jacobian
from drr2ct.transforms.volume import GRID_MODES

_SMALLEST_JACOBIAN = 0.15
_POINTS_MM = 12.0  # between the points at which the warp is evaluated: a seventh of what its control points are apart
_NEWTON_STEPS = 8
_SEEN_MARGIN = 1.15  # of the scan's length that the detectors see, for views that are not quite where they should be


@runtime_checkable
class Anatomies(Protocol):
    """Ways from patients to each other, for example ``RegisteredPatients``."""

    def others(self, patient: str) -> Sequence[str]:
        """Patients whom this one can be led towards, in a fixed order."""

    def way(self, patient: str, other: str, part: float) -> PointMap:
        """Where to take from in ``patient`` what comes to stand a ``part`` of the way towards ``other``.

        Both in mm from the centre of the scan.
        """

    def ct(self, patient: str) -> MetaTensor:
        """A patient's CT, kept as the others are."""


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
            ct: (1, I, J, K) in HU, from :class:`~drr2ct.transforms.varied.kept.KeepCT`.
            draw: which.
            patient: whose CT it is; needed to lead it towards another.

        Returns:
            (1, X, Y, Z) in HU, with affine and isocentre; and, in its metadata, what
            :class:`~drr2ct.transforms.varied.onto_grid.OntoGrid` needs. Voxels are along x, y and z, and where both
            have the same size they are those of the grid.
        """
        scan = Scan.of(ct)
        while True:
            to_scan = partial(self._positions, draw=draw, scan=scan, patient=patient)
            aim = np.array(scan.isocentre) - np.array(scan.centre)
            low, high, matrix = moved_box(to_scan, np.array(scan.extent))
            low, high = low + draw.cut[0] * (high - low), high - draw.cut[1] * (high - low)
            # the middle of a scan goes with its ends; what was aimed at otherwise goes with the patient
            isocentre = (_origin_of(aim, to_scan, matrix) if aim.any() else (low + high) / 2) + draw.shift_mm
            spacing, first, grid_affine = self._voxels(low, high, isocentre)
            near, far = self._needed(ct, scan, to_scan, low, high, isocentre)
            start = np.ceil((near - first) / spacing - 1e-6)
            size = [int(n) for n in np.maximum(np.floor((far - first) / spacing + 1e-6) - start + 1, 1)]
            first = first + start * spacing
            last = first + (np.array(size) - 1) * spacing
            counts = [max(2, round(float(d) / _POINTS_MM) + 1) for d in last - first]
            points = grid_points(first, last, counts, ct.device)
            positions = to_scan(points)
            step = [float(d) / (n - 1) for d, n in zip(last - first, counts, strict=True)]
            if draw.towards == 0 and not draw.displacement.any():
                break
            if min(step) <= 0 or smallest_jacobian(positions, step) > _SMALLEST_JACOBIAN:
                break
            draw = draw.gentler()
        varied = resample(with_other_tissue(ct, draw.tissue_hu), to_indices(positions, ct, scan), size)
        if (graft := draw.graft) is not None:
            share = graft.share(points, low, high)
            varied = self._grafted(varied, graft.other, draw.tissue_hu, share, positions, patient)
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
            found = self.anatomies.way(patient, _chosen(others, draw.other), draw.towards)(found)
        return found

    def _grafted(
        self,
        varied: Float[Tensor, "1 x y z"],
        number: float,
        tissue_hu: Float[np.ndarray, " knots"],
        share: Float[Tensor, "a b c"],
        positions: Float[Tensor, "3 a b c"],
        patient: str,
    ) -> Float[Tensor, "1 x y z"]:
        """A varied scan with a share of another patient, whose anatomy is led to where the scan's own is."""
        if self.anatomies is None or not (others := self.anatomies.others(patient)):
            return varied
        other = _chosen(others, number)
        ct = self.anatomies.ct(other)
        scan = Scan.of(ct)
        there = self.anatomies.way(other, patient, 1.0)(positions)
        share, size = share * scanned(there, scan), varied.shape[1:]
        seen = resample(with_other_tissue(ct, tissue_hu), to_indices(there, ct, scan), size)
        weights = F.interpolate(share[None, None], size=size, mode="trilinear", align_corners=True)[0]
        return varied.lerp_(seen, weights)

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


def _chosen(others: Sequence[str], number: float) -> str:
    """One of them, by a number from 0 to 1."""
    return others[min(int(number * len(others)), len(others) - 1)]


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
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"], Float[np.ndarray, "3 3"]]:
    """Where the box of a scan comes to lie: through the affine map that is nearest; its sides stay along the axes.

    So a scan ends where it ended in the patient, and next to nothing outside of it is needed.

    Returns:
        Its lower and its upper corner, and the map's linear part.
    """
    points = grid_points(-extent_mm / 2, extent_mm / 2, (7, 7, 7))
    values = to_scan(points)
    # the points are symmetric about 0, so that the least squares fall apart
    matrix = torch.einsum("axyz,bxyz->ab", values, points) / points.square().sum(dim=(1, 2, 3))
    linear, mean = matrix.double().numpy(), values.mean(dim=(1, 2, 3)).double().numpy()
    centre = -np.linalg.solve(linear, mean)
    half = extent_mm / 2 / matrix.diagonal().double().clamp(min=0.3).numpy()
    return centre - half, centre + half, linear


def _origin_of(
    point: Float[np.ndarray, " 3"], to_scan: PointMap, matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, " 3"]:
    """Where a point of the scan comes to stand: simplified Newton steps, with the linear part of the map nearby."""
    found = np.zeros(3)
    for _ in range(_NEWTON_STEPS):
        reached = to_scan(torch.from_numpy(found).float().reshape(3, 1, 1, 1)).flatten().double().numpy()
        found = found - np.linalg.solve(matrix, reached - point)
    return found


def to_indices(positions: Float[Tensor, "3 a b c"], ct: MetaTensor, scan: Scan) -> Float[Tensor, "3 a b c"]:
    """Positions in mm from the scan's centre → voxel indices of the CT."""
    inverse = np.linalg.inv(np.asarray(ct.affine, dtype=np.float64))
    matrix = torch.as_tensor(inverse[:3, :3], dtype=torch.float32, device=positions.device)
    offset = torch.as_tensor(inverse[:3, :3] @ scan.centre + inverse[:3, 3], dtype=torch.float32)
    return torch.einsum("ab,bxyz->axyz", matrix, positions) + offset.to(positions.device)[:, None, None, None]


class RandVaryd(RandomizableTransform, MapTransform):
    """Another patient each time, see :class:`Varier`; give it :class:`~drr2ct.transforms.varied.kept.KeepCTd`'s CT.

    What follows renders radiographs from the result, and puts it on the grid
    (:class:`~drr2ct.transforms.varied.onto_grid.OntoGridd`).

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
        if (variation.towards > 0 or variation.graft > 0) and anatomies is None:
            raise InputError("a variation by other patients needs their registration; give anatomies.")
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
