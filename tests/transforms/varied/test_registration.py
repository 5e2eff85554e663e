"""Maps between patients: one that is known is found again, and it leads to where it should, without folding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.graft import Graft
from drr2ct.transforms.varied.kept import KeepCT, Scan
from drr2ct.transforms.varied.registration import (
    RegisteredPatients,
    RegistrationSettings,
    SmoothMap,
    register,
    to_compare,
)
from drr2ct.transforms.varied.scan import Varier, to_indices
from drr2ct.transforms.varied.variation import TOWARDS, Draw
from drr2ct.transforms.varied.warping import grid_points, resample, smallest_jacobian

SETTINGS = RegistrationSettings(spacing_mm=8.0, iterations=(60, 40), smoothing_mm=9.0, field_mm=12.0)


def patient(scale: tuple[float, float, float], heart_mm: float, place: float = 0.0) -> MetaTensor:
    """A chest of 300 mm on 6 mm voxels: body, lungs, spine, and a heart of some radius; z up."""
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = [-147 + place, -147, -147 + 2 * place]
    lines = [np.arange(50) * 6 - 147.0] * 3
    x, y, z = (c / s for c, s in zip(np.meshgrid(*lines, indexing="ij"), scale, strict=True))
    hu = np.where((x / 120) ** 2 + (y / 85) ** 2 < 1, 30.0, -1000.0)
    for side in (-1, 1):
        hu[((x - 60 * side) / 42) ** 2 + (y / 62) ** 2 + ((z - 10) / 95) ** 2 < 1] = -850
    hu[((x + 25) ** 2 + (y - 30) ** 2 + (z + 20) ** 2) < heart_mm**2] = 50
    hu[(x**2 + (y + 65) ** 2) < 14**2] = 400
    return KeepCT(6.0)(MetaTensor(torch.from_numpy(hu.astype(np.float32))[None], affine=affine))


@pytest.fixture(scope="module")
def pair() -> tuple[MetaTensor, MetaTensor, RegisteredPatients]:
    a, b = patient((1, 1, 1), 40), patient((0.85, 1.1, 0.9), 55, place=200.0)
    images = {name: to_compare(ct, SETTINGS.spacing_mm) for name, ct in (("a", a), ("b", b))}
    reference = register(images["a"], images["a"], SETTINGS)
    return a, b, RegisteredPatients({"a": reference, "b": register(images["a"], images["b"], SETTINGS)})


def test_a_patient_led_all_the_way_looks_like_the_other(pair) -> None:
    a, b, patients = pair
    points = grid_points((-110, -90, -110), (110, 90, 110), (40, 32, 40))

    def seen(ct: MetaTensor, positions: torch.Tensor) -> torch.Tensor:
        return resample(ct, to_indices(positions, ct, Scan.of(ct)), points.shape[1:])

    wanted = seen(b, points)
    own, halfway, led = (seen(a, patients.way("a", "b", part)(points)) for part in (0.0, 0.5, 1.0))
    before, middle, after = (float((x - wanted).abs().mean()) for x in (own, halfway, led))
    assert after < 0.35 * before and after < middle < before
    back = seen(b, patients.way("b", "a", 1.0)(points))
    assert float((back - own).abs().mean()) < 0.35 * before, "and the way back"
    step = [float(points[axis].amax() - points[axis].amin()) / (points.shape[1 + axis] - 1) for axis in range(3)]
    for names in (("a", "b"), ("b", "a")):
        assert smallest_jacobian(patients.way(*names, 1.0)(points), step) > 0.15


def test_a_part_beyond_a_plane_is_anothers_where_it_belongs(pair) -> None:
    a, b, registered = pair
    geometry = BiplanarGeometry.from_angles(VolumeGrid(48, fov_mm=288.0), detector_size=32)
    vary = Varier(geometry, anatomies=replace(registered, cts={"a": a, "b": b}.__getitem__))

    def grafted(height: float) -> MetaTensor:
        """Above a height, in parts of the scan's."""
        upper = Graft(0.0, (0.0, 0.0, 1.0), (0.5, 0.5, height), 24.0)
        return vary(a, replace(Draw.nothing(), graft=upper), "a")

    own, other, mixed = vary(a, Draw.nothing(), "a"), grafted(-5.0), grafted(0.5)
    z = torch.arange(own.shape[3]) * own.affine[2, 2] + own.affine[2, 3]
    assert torch.equal(mixed[..., z < -13], own[..., z < -13])
    assert torch.allclose(mixed[..., z > 13], other[..., z > 13], atol=1e-3)
    within = (z > -90) & (z < 90)  # its scan ends elsewhere
    assert 5 < float((other - own)[..., within].abs().mean()) < 60, "another's, registered"
    unregistered = replace(registered, patients=dict.fromkeys("ab", registered.patients["a"]))
    apart = Varier(geometry, anatomies=replace(unregistered, cts={"a": a, "b": b}.__getitem__))
    beside = apart(a, replace(Draw.nothing(), graft=Graft(0.0, (0.0, 0.0, 1.0), (0.5, 0.5, -5.0), 24.0)), "a")
    assert (beside - own)[..., within].abs().mean() > 2 * (other - own)[..., within].abs().mean()
    with pytest.raises(InputError, match="give cts"):
        Varier(geometry, anatomies=registered)(
            a, replace(Draw.nothing(), graft=Graft.of(np.random.RandomState(0))), "a"
        )


def test_a_graft_leaves_other_draws_as_they_were() -> None:
    plain, often = (Draw.of(replace(TOWARDS, graft=g), np.random.RandomState(3)) for g in (0.0, 1.0))
    assert plain.graft is None and often.graft is not None
    for name in ("matrix", "displacement", "shift_mm", "tissue_hu", "cut", "other", "towards"):
        assert np.array_equal(getattr(plain, name), getattr(often, name))
    drawn = [Draw.of(replace(TOWARDS, graft=0.3), np.random.RandomState(seed)).graft for seed in range(300)]
    grafts = [graft for graft in drawn if graft is not None]
    assert 60 < len(grafts) < 120
    assert all(np.linalg.norm(graft.normal) == pytest.approx(1) and 20 <= graft.blend_mm <= 80 for graft in grafts)
    assert np.abs(np.mean([graft.normal for graft in grafts], axis=0)).max() < 0.25, "any direction"


def test_the_inverse_leads_back(pair) -> None:
    entry = pair[2].patients["b"]
    points = grid_points((-90, -70, -80), (90, 70, 80), (9, 9, 9))
    away = (entry.to_patient(entry.to_reference(points)) - points).norm(dim=0)
    assert float(away.max()) < 2.5
    assert float((entry.to_reference(points) - points).norm(dim=0).mean()) > 5, "it does lead somewhere"


def test_an_affine_map_is_kept_as_one_and_goes_on_outside() -> None:
    points = grid_points((-50, -40, -30), (50, 40, 30), (4, 5, 6))
    matrix, offset = torch.tensor([[1.1, 0.1, 0], [0, 0.9, 0], [0.05, 0, 1.2]]), torch.tensor([5.0, -3, 2])
    values = torch.einsum("ab,bxyz->axyz", matrix, points) + offset[:, None, None, None]
    found = SmoothMap.through(values, torch.tensor([-50.0, -40, -30]), torch.tensor([50.0, 40, 30]))
    assert float(found.added.abs().max()) < 1e-3
    far = grid_points((-200, 100, 0), (200, 300, 100), (3, 3, 3))
    wanted = torch.einsum("ab,bxyz->axyz", matrix, far) + offset[:, None, None, None]
    assert torch.allclose(found(far), wanted, atol=0.01)
    back = found.inverse(torch.tensor([-90.0, -90, -90]), torch.tensor([90.0, 90, 90]), (5, 5, 5))
    assert torch.allclose(back(found(far)), far, atol=0.05)


def test_the_cut_off_air_is_compared_too() -> None:
    ct = patient((1, 1, 1), 40)
    image = to_compare(ct, 10.0)
    extent = np.array(image.GetSpacing()) * image.GetSize()
    np.testing.assert_allclose(extent, [300, 300, 300], atol=12)
    middle = np.array(image.GetOrigin()) + (extent - np.array(image.GetSpacing())) / 2
    np.testing.assert_allclose(middle, 0, atol=6)


def test_the_same_gives_the_same() -> None:
    images = [to_compare(patient(scale, 45), 12.0) for scale in ((1, 1, 1), (0.9, 1, 1))]
    few = RegistrationSettings(12.0, (5, 3), 20.0, 30.0)
    first, second = (register(*images, few) for _ in range(2))
    assert torch.equal(first.to_patient.added, second.to_patient.added)
    assert torch.equal(first.to_reference.matrix, second.to_reference.matrix)


def test_nobody_to_go_to() -> None:
    assert RegisteredPatients().others("a") == []
    with pytest.raises(KeyError):
        RegisteredPatients().way("a", "b", 0.5)
