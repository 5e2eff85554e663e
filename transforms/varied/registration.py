"""Ways from patients to each other: each CT is registered to one of them, the reference, and the maps are composed.

n registrations instead of n² pairs. What lies at a point of the reference lies at φ_A of it in patient A; so what lies
at x in B lies at φ_A(φ_B⁻¹(x)) in A. The registration is affine first (mean squares), then by symmetric forces demons
(Vercauteren et al., NeuroImage 45:S61, 2009), SimpleITK's, at 10 and at 5 mm.

All coordinates are mm from the centre of each one's scan, along the patient's axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.kept import Scan, resized
from drr2ct.transforms.varied.warping import PointMap, grid_points, smallest_jacobian

_TISSUE_HU = (-1000.0, 250.0)  # beyond which nothing is compared: contrast agent and metal are no anatomy


@dataclass(frozen=True)
class RegistrationSettings:
    """How CTs are registered.

    Args:
        spacing_mm: of the voxels that are compared.
        iterations: of the demons, at twice the spacing and at the spacing.
        smoothing_mm: standard deviation by which the field is smoothed after every iteration.
        field_mm: distance of the points at which a map is kept.
    """

    spacing_mm: float = 5.0
    iterations: tuple[int, int] = (60, 40)
    smoothing_mm: float = 10.0
    field_mm: float = 10.0


@dataclass(frozen=True)
class SmoothMap:
    """Points → points: an affine map, and on an even grid what is added to it; beyond the grid, what its border adds.

    Args:
        matrix: of the affine map.
        offset: of it, mm.
        added: mm, at the points of the grid.
        low: the grid's first point, mm.
        high: its last one.
    """

    matrix: Float[Tensor, "3 3"]
    offset: Float[Tensor, " 3"]
    added: Float[Tensor, "3 a b c"]
    low: Float[Tensor, " 3"]
    high: Float[Tensor, " 3"]

    @classmethod
    def through(
        cls, values: Float[Tensor, "3 a b c"], low: Float[Tensor, " 3"], high: Float[Tensor, " 3"]
    ) -> SmoothMap:
        """The map that leads from the points of a grid to these values; its affine part is the nearest one."""
        points = grid_points(low.tolist(), high.tolist(), values.shape[1:])
        design = torch.cat([points.reshape(3, -1).T, torch.ones(points[0].numel(), 1)], dim=1).double()
        solution = torch.linalg.lstsq(design, values.reshape(3, -1).T.double()).solution.float()
        plain = cls(solution[:3].T.contiguous(), solution[3].contiguous(), torch.zeros_like(values), low, high)
        return replace(plain, added=values - plain(points))

    def __call__(self, points: Float[Tensor, "3 x y z"]) -> Float[Tensor, "3 x y z"]:
        """Where points lead to, mm."""
        column = (slice(None), None, None, None)
        low, high = (end.to(points.device)[column] for end in (self.low, self.high))
        where = 2 * (points - low) / (high - low) - 1
        grid = where.flip(0).permute(1, 2, 3, 0)[None]
        added = self.added.to(points.device, torch.float32)[None]
        found = F.grid_sample(added, grid, "bilinear", "border", align_corners=True)[0]
        affine = torch.einsum("ab,bxyz->axyz", self.matrix.to(points.device), points)
        return affine + self.offset.to(points.device)[column] + found

    def inverse(self, low: Float[Tensor, " 3"], high: Float[Tensor, " 3"], counts: Sequence[int]) -> SmoothMap:
        """The map back, on an even grid of its own; by fixed-point iteration."""
        points = grid_points(low.tolist(), high.tolist(), counts)
        back = torch.linalg.inv(self.matrix)
        found = torch.einsum("ab,bxyz->axyz", back, points - self.offset[:, None, None, None])
        for _ in range(40):
            found = found + 0.7 * torch.einsum("ab,bxyz->axyz", back, points - self(found))
        return SmoothMap.through(found, low, high)

    def jacobian(self) -> float:
        """Smallest determinant of its Jacobian."""
        points = grid_points(self.low.tolist(), self.high.tolist(), self.added.shape[1:])
        step = (self.high - self.low) / (torch.tensor(self.added.shape[1:]) - 1)
        return smallest_jacobian(self(points), step.tolist())


@dataclass(frozen=True)
class Registered:
    """What leads from the reference to a patient, and back."""

    to_patient: SmoothMap
    to_reference: SmoothMap


@dataclass(frozen=True)
class RegisteredPatients:
    """Patients who can be led towards each other: the :class:`~drr2ct.transforms.varied.scan.Anatomies` of a data set.

    Args:
        patients: by name.
        cts: name → the kept CT; needed where parts of one become another's.
    """

    patients: Mapping[str, Registered] = field(default_factory=dict)
    cts: Callable[[str], MetaTensor] | None = None

    def others(self, patient: str) -> Sequence[str]:
        """All others, sorted; nobody for a patient who is not among them."""
        return sorted(self.patients.keys() - {patient}) if patient in self.patients else []

    def way(self, patient: str, other: str, part: float) -> PointMap:
        """Where to take from in ``patient`` what comes to stand a ``part`` of the way towards ``other``."""
        to_reference, to_patient = self.patients[other].to_reference, self.patients[patient].to_patient

        def lead(points: Float[Tensor, "3 a b c"]) -> Float[Tensor, "3 a b c"]:
            return points + part * (to_patient(to_reference(points)) - points)

        return lead

    def ct(self, patient: str) -> MetaTensor:
        """A patient's kept CT.

        Raises:
            InputError: where none were given.
        """
        if self.cts is None:
            raise InputError("a part of another patient needs the patients' CTs; give cts beside their registration.")
        return self.cts(patient)


def to_compare(ct: MetaTensor, spacing_mm: float) -> sitk.Image:
    """A CT as the registration compares it: coarse, in [0, 1] over soft tissue, placed about its scan's centre.

    Args:
        ct: (1, I, J, K) in HU, from :class:`~drr2ct.transforms.varied.kept.KeepCT`. If its voxels lie askew to the
        patient's
            axes, they are taken to be along them.
        spacing_mm: of the result.
    """
    scan = Scan.of(ct)
    affine = np.asarray(ct.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    extent = np.asarray(ct.shape[1:]) * spacing
    middle = affine[:3, :3] @ ((np.asarray(ct.shape[1:]) - 1) / 2) + affine[:3, 3] - scan.centre
    size = [min(n, max(8, round(float(e) / spacing_mm))) for n, e in zip(ct.shape[1:], extent, strict=True)]
    step = extent / size
    low, high = _TISSUE_HU
    values = (resized(ct.as_tensor()[0].float(), size).clamp(low, high) - low) / (high - low)
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.numpy().transpose(2, 1, 0)))
    image.SetSpacing(step.tolist())
    image.SetOrigin((middle + (step - extent) / 2).tolist())
    # the air that was cut off is part of the scan: the skin is an edge like others
    before = np.maximum((middle - extent / 2 + np.array(scan.extent) / 2) / step, 0).round().astype(int)
    after = np.maximum((np.array(scan.extent) / 2 - middle - extent / 2) / step, 0).round().astype(int)
    return sitk.ConstantPad(image, before.tolist(), after.tolist(), 0.0)


def register(reference: sitk.Image, patient: sitk.Image, settings: RegistrationSettings) -> Registered:
    """The smooth map from a reference to a patient, both from :func:`to_compare`; and its inverse.

    The same images and settings give the same map: it runs on one thread.
    """
    affine = _register_affine(reference, patient)
    moved = sitk.Resample(patient, reference, affine, sitk.sitkLinear, -1.0)
    # where the patient's scan has nothing, the reference itself: nothing to compare, no force
    outside = moved < 0
    moved = sitk.Mask(moved, sitk.Not(outside)) + sitk.Mask(reference, outside)
    found: sitk.Transform = sitk.Transform(3, sitk.sitkIdentity)
    for factor, iterations in zip((2, 1), settings.iterations, strict=True):
        fixed, moving = (_shrunk(image, factor) for image in (reference, moved))
        place = (fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection())
        start = sitk.TransformToDisplacementField(found, sitk.sitkVectorFloat64, *place)
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfThreads(1)
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(settings.smoothing_mm / float(np.mean(fixed.GetSpacing())))
        found = sitk.DisplacementFieldTransform(demons.Execute(fixed, moving, start))
    found = sitk.CompositeTransform([affine, found])  # the last is applied first
    box = _box(reference)
    counts = [max(4, round(float(d) / settings.field_mm) + 1) for d in box[1] - box[0]]
    to_patient = SmoothMap.through(_values(found, box, counts), *box)
    there = _box(patient)
    counts = [max(4, round(float(d) / settings.field_mm) + 1) for d in there[1] - there[0]]
    return Registered(to_patient, to_patient.inverse(*there, counts))


def _register_affine(reference: sitk.Image, patient: sitk.Image) -> sitk.Transform:
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMeanSquares()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 60, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    start = sitk.CenteredTransformInitializer(
        reference, patient, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method.SetInitialTransform(start, inPlace=False)
    fixed, moving = (_shrunk(image, 3) for image in (reference, patient))
    return method.Execute(fixed, moving)


def _shrunk(image: sitk.Image, factor: int) -> sitk.Image:
    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [min(factor, max(1, n // 8)) for n in image.GetSize()])


def _box(image: sitk.Image) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """Centres of the outermost voxels."""
    low = torch.tensor(image.GetOrigin())
    return low, low + torch.tensor(image.GetSpacing()) * (torch.tensor(image.GetSize()) - 1)


def _values(
    transform: sitk.Transform, box: tuple[Float[Tensor, " 3"], Float[Tensor, " 3"]], counts: Sequence[int]
) -> Float[Tensor, "3 a b c"]:
    """Where a transform leads from the points of an even grid of the box."""
    low, high = (end.tolist() for end in box)
    spacing = [(h - b) / (n - 1) for b, h, n in zip(low, high, counts, strict=True)]
    size = [int(n) for n in counts]
    displacement = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, size, low, spacing)
    values = torch.from_numpy(sitk.GetArrayFromImage(displacement).transpose(3, 2, 1, 0).copy()).float()
    return grid_points(low, high, counts) + values
