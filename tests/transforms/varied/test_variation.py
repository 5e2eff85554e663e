"""A varied sample is one patient: its label and all its radiographs show the same, and nothing is mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import project_volume, render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept, files_to_samples, kept_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.kept import KeepCT, kept_spacing_mm
from drr2ct.transforms.varied.onto_grid import OntoGrid
from drr2ct.transforms.varied.scan import RandVaryd, Varier, bent
from drr2ct.transforms.varied.variation import WIDE, Draw, Variation
from drr2ct.transforms.varied.warping import PointMap, grid_points, smallest_jacobian
from drr2ct.transforms.volume import HU_WINDOW, ResampleToGrid, to_hu
from tests.files import chest, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=64)
AFFINE = np.array([[10.0, 0, 0, -170], [0, 10, 0, -150], [0, 0, 10, -130], [0, 0, 0, 1]])
STILL = Variation(rotation_deg=0, scale=0, shift_mm=0, deformation=0, tissue=0)


def kept(volume: np.ndarray | None = None, affine: np.ndarray = AFFINE, geometry: BiplanarGeometry = GEOMETRY) -> dict:
    values = chest() if volume is None else volume
    ct = KeepCT(kept_spacing_mm(geometry))(MetaTensor(torch.from_numpy(values)[None], affine=affine))
    return {"patient": "p", "label": ct}


def varied(item: dict, seed: int, variation: Variation = WIDE, **settings: object) -> dict:
    settings = {"geometry": GEOMETRY, **settings}
    chain = kept_to_samples(variation=variation, **settings)  # type: ignore[arg-type]
    chain.set_random_state(seed)
    return chain(dict(item))


@pytest.mark.parametrize("mode", ["cube", "resize"])
@pytest.mark.parametrize("flip", [True, False])
def test_unvaried_it_is_the_sample_of_the_preprocessing(tmp_path: Path, mode: str, flip: bool) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32, vertical_flip=flip), detector_size=64)
    affine = np.array([[-9.0, 0, 0, 130], [0, 8, 0, -90], [0, 0, 10, -500], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "p" / "p.nii.gz", chest(), affine)
    item = {"patient": "p", "label": str(path)}
    wanted = files_to_samples(geometry, mode)(item)
    found = kept_to_samples(geometry, mode=mode, prob=0.0)(files_to_kept(geometry)(item))
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(found["label"].affine, wanted["label"].affine, atol=1e-3)
    # edges are a little softer; voxels of one size lie differently in "resize"
    assert float((found["label"] - wanted["label"]).abs().mean()) < {"cube": 15, "resize": 32}[mode] / 4095
    assert float((found["image"] - wanted["image"]).abs().mean()) < 0.03 * float(wanted["image"].mean())
    corner = (found["label"] - wanted["label"])[0, :8, :8, :8].abs().mean()
    assert float(corner) < 15 / 4095, "and the air is the air"


@pytest.mark.parametrize("mode", ["cube", "resize"])
@pytest.mark.parametrize("seed", range(3))
def test_label_and_radiographs_are_of_one_patient(seed: int, mode: str) -> None:
    sample = varied(kept(), seed, replace(WIDE, coverage=0.05), mode=mode)
    label = sample["label"]
    assert label.shape == (1, 32, 32, 32) and sample["image"].shape == (2, 64, 64)
    hu = MetaTensor(to_hu(label.as_tensor()), affine=label.affine)
    # what the coarse label would cast: blurred, and without what the cube cuts off
    cast = render_drr(hu, GEOMETRY, isocentre=label.meta["isocentre"], engine="nanodrr") / LINE_INTEGRAL_SCALE
    image = sample["image"]
    assert float((image - cast).abs().mean()) < 0.06 * float(image.mean())
    flat = [torch.nn.functional.avg_pool2d(x[None], 8).flatten() for x in (image, cast)]
    assert float(torch.corrcoef(torch.stack(flat))[0, 1]) > 0.99
    other = varied(kept(), seed + 10, replace(WIDE, coverage=0.05), mode=mode)["image"]
    assert float((image - other).abs().mean()) > 2 * float((image - cast).abs().mean())
    if mode == "cube":
        projected = project_volume(to_hu(label.as_tensor())[None], GEOMETRY)[0] / LINE_INTEGRAL_SCALE
        assert float((projected - cast).abs().mean()) < 0.01 * float(cast.mean()), "its affine is the network's grid"


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("angles", [(0.0, 90.0), (-30.0, 75.0)])
def test_a_ball_moves_together_in_label_and_radiographs(flip: bool, angles: tuple[float, float]) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32, 320, flip), angles, detector_size=96)
    affine = np.array([[8.0, 0, 0, -120], [0, 8, 0, 30], [0, 0, 8, -300], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij"), -1)
    gentle = Variation(rotation_deg=5, scale=0.05, shift_mm=8, deformation=0.01, coverage=0.02)
    for octant in np.ndindex(2, 2, 2):
        volume = np.full((32, 32, 32), -1000.0, dtype=np.float32)
        volume[((index - 15.5) ** 2).sum(-1) < 13**2] = -700  # something around it, or the ball alone would be kept
        volume[((index - [8 if low == 0 else 23 for low in octant]) ** 2).sum(-1) < 5] = 3000
        for seed in range(2):
            sample = varied(kept(volume, affine, geometry), seed, gentle, geometry=geometry)
            label = sample["label"][0]
            where = np.array(np.unravel_index(int(label.argmax()), label.shape))
            # the grid's axes lead right, front, and up or (flipped) down
            up = where[2] < 15.5 if flip else where[2] > 15.5
            assert tuple(int(side) for side in (where[0] > 15.5, where[1] > 15.5, up)) == octant
            place = (geometry.grid.affine() @ [*where, 1.0])[:3]
            for view, image in zip(geometry.views, sample["image"], strict=True):
                row, column = np.unravel_index(int(image.argmax()), image.shape)
                expected = view.project(place[None])[0]
                assert np.abs(expected - [column, row]).max() < 4, (octant, view.name)


def test_the_seed_decides_and_the_ct_stays() -> None:
    item = kept()
    before = item["label"].clone()
    first, second, other = (varied(item, seed) for seed in (1, 1, 2))
    assert torch.equal(item["label"], before)
    for key in ("image", "label"):
        assert torch.equal(first[key], second[key]) and not torch.equal(first[key], other[key])


def test_a_shift_moves_the_isocentre_and_nothing_else() -> None:
    item, varier = kept(), Varier(GEOMETRY)
    still = Draw.nothing()
    spacing = GEOMETRY.grid.spacing_mm
    shift = np.array([2, -3, 4]) * spacing
    plain = OntoGrid(32)(varier(item["label"], still))
    moved = OntoGrid(32)(varier(item["label"], replace(still, shift_mm=shift)))
    inner = slice(6, 26)
    back = moved[:, 4:24, 9:29, 10:30]  # index 0 of the last axis is the head
    difference = (back - plain[:, inner, inner, inner]).abs()
    # the scan's voxels lie elsewhere between the grid's
    assert float(difference.max()) < 0.05 and float(difference.mean()) < 0.003


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_cut_off_ends_leave_the_rest_where_it_was(seed: int) -> None:
    centre, extent = np.array([5.0, 5, 5]), np.array([360.0, 320, 280])  # of the chest's box

    def ramp(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        return (index @ affine[:3, :3].T + affine[:3, 3]) @ [2.0, 1.0, -0.5]

    values = ramp(AFFINE, (36, 32, 28)).astype(np.float32)
    draw = Draw.of(replace(STILL, coverage=0.3), np.random.RandomState(seed))
    assert np.abs(draw.cut).max() <= 0.3
    part = Varier(GEOMETRY)(kept(values)["label"], draw)
    low, high = centre - extent / 2 + draw.cut[0] * extent, centre + extent / 2 - draw.cut[1] * extent
    np.testing.assert_allclose(part.meta["isocentre"], (low + high) / 2, atol=0.01)
    affine = np.asarray(part.affine)
    first, last = affine[:3, 3], affine[:3, 3] + np.diag(affine)[:3] * (np.array(part.shape[1:]) - 1)
    assert (first >= low - 0.01).all() and (last <= high + 0.01).all()
    assert ((first - low) < np.diag(affine)[:3]).all() and ((high - last) < np.diag(affine)[:3]).all()
    inner = (slice(2, -2),) * 3  # the border goes on as it is
    np.testing.assert_allclose(part[0].numpy()[inner], ramp(affine, part.shape[1:])[inner], atol=2)


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=15, deadline=None)
def test_the_widest_variation_does_not_fold(seed: int) -> None:
    far = replace(WIDE, deformation=0.3)
    item = kept()
    varier = Varier(GEOMETRY)
    seen: list[float] = []
    draw = Draw.of(far, np.random.RandomState(seed))
    positions = varier._positions

    def watched(points: torch.Tensor, draw: Draw, **more: object) -> torch.Tensor:
        found = positions(points, draw=draw, **more)
        step = [float((points[a].amax() - points[a].amin()) / (points.shape[1 + a] - 1)) for a in range(3)]
        seen.append(smallest_jacobian(found, step))
        return found

    varier._positions = watched  # type: ignore[method-assign]
    varier(item["label"], draw)
    assert seen[-1] > 0.1


def test_anatomy_stays_plausible() -> None:
    heart_left = 0
    for seed in range(8):
        label = to_hu(varied(kept(), seed)["label"][0])
        aerated = ((label < -600) & (label > -950)).float().mean()
        plain = to_hu(varied(kept(), 0, STILL)["label"][0])
        assert 0.4 < aerated / ((plain < -600) & (plain > -950)).float().mean() < 2.2
        soft = torch.nonzero((label > 20) & (label < 110)).float()
        heart_left += float(soft[:, 0].mean()) < 15.5
    assert heart_left >= 6, "the heart stays on the left"


def test_tissue_varies_by_what_it_is() -> None:
    item = kept()
    differences = []
    for seed in range(5):
        draw = Draw.of(replace(STILL, tissue=1.0), np.random.RandomState(seed))
        changed = Varier(GEOMETRY)(item["label"], draw) - Varier(GEOMETRY)(item["label"], Draw.nothing())
        assert float(changed.abs().max()) <= 80.01
        differences.append(float(changed.abs().mean()))
    assert min(differences) > 0.5


def test_the_label_is_what_resampling_would_make_of_the_scan() -> None:
    for size, fov in ((20, 360.0), (72, 216.0)):  # coarser than the scan, and the same voxels
        geometry = BiplanarGeometry.from_angles(VolumeGrid(size, fov), detector_size=64)
        scan = Varier(geometry)(kept(geometry=geometry)["label"], Draw.of(WIDE, np.random.RandomState(3)))
        scan.meta["air_hu"] = -1024.0  # so that there is nothing but its voxels
        plain = MetaTensor(scan.as_tensor(), affine=scan.affine, meta={"isocentre": scan.meta["isocentre"]})
        wanted = ResampleToGrid(geometry.grid)(plain).flip(3)
        found = to_hu(OntoGrid(size)(scan))
        assert float((found - wanted.clamp(*HU_WINDOW)).abs().max()) < 0.5


class Shrunk:
    """Another patient, half as large."""

    def others(self, patient: str) -> Sequence[str]:
        return ["small"] if patient == "p" else []

    def way(self, patient: str, other: str, part: float) -> PointMap:
        assert (patient, other) == ("p", "small")
        return lambda points: points * (1 + part)

    def ct(self, patient: str) -> MetaTensor:
        raise AssertionError(f"nothing is to be taken from {patient}")


def test_towards_another_patient() -> None:
    item = kept()
    plain = Varier(GEOMETRY)(item["label"], Draw.nothing())
    small = Varier(GEOMETRY, anatomies=Shrunk())(item["label"], replace(Draw.nothing(), towards=1.0), "p")
    extent = np.array(plain.shape[1:]) * np.diag(np.asarray(plain.affine))[:3]
    shrunk = np.array(small.shape[1:]) * np.diag(np.asarray(small.affine))[:3]
    np.testing.assert_allclose(shrunk, extent / 2, atol=kept_spacing_mm(GEOMETRY) * 1.5)
    alone = Varier(GEOMETRY, anatomies=Shrunk())(item["label"], replace(Draw.nothing(), towards=1.0), "someone else")
    assert torch.equal(alone, plain)


def test_the_random_bend_is_in_fractions_of_the_scan() -> None:
    displacement = np.zeros((3, 5, 5, 5))
    displacement[0, 2, 2, 2] = 0.1
    points = grid_points((-100, -100, -100), (100, 100, 100), (9, 9, 9))
    change = bent(points, np.eye(3), displacement, (300.0, 200.0, 200.0)) - points
    assert float(change[0, 4, 4, 4]) == pytest.approx(30, abs=1e-3)
    assert float(change[1:].abs().max()) < 1e-4


def test_mistakes_are_refused() -> None:
    with pytest.raises(InputError, match="varies one CT"):
        RandVaryd(["label", "other"], GEOMETRY)
    with pytest.raises(InputError, match="registration"):
        RandVaryd("label", GEOMETRY, replace(WIDE, towards=0.5))
    with pytest.raises(InputError, match="grid mode"):
        Varier(GEOMETRY, "ball")
    for foreign in (torch.zeros(1, 8, 8, 8), MetaTensor(torch.zeros(1, 8, 8, 8))):
        with pytest.raises(InputError, match="KeepCT"):
            RandVaryd("label", GEOMETRY)({"label": foreign, "patient": "p"})
    for wrong in (-0.1, 0.5, float("nan")):
        with pytest.raises(InputError, match="coverage is"):
            Variation(coverage=wrong)
    with pytest.raises(InputError, match=r"scale is 0\.9"):
        Variation(scale=0.9)
    with pytest.raises(InputError, match="towards is"):
        Variation(towards=1.5)
