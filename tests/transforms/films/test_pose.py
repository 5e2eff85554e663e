"""Where things go on films that were not taken as the geometry says: by points, and by rendering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.films.breathing import breathe
from drr2ct.transforms.films.pose import (
    FilmPose,
    PoseVariation,
    RandRenderFilmsd,
    at_distances,
    draw_poses,
    moved,
    nominal_poses,
    render_films,
    tilted,
)
from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept, kept_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.variation import WIDE
from tests.files import chest, write_nifti
from tests.transforms.phantoms import GRID, phantom

GEOMETRY = BiplanarGeometry.from_angles(GRID, detector_size=96)
PA, LATERAL = GEOMETRY.views
MAGNIFICATION = 1.2
AFFINE = GRID.affine()


def bead(position_mm: tuple[float, float, float]) -> Tensor:
    """HU of air with one dense voxel, on the grid."""
    hu = torch.full((1, 40, 40, 40), -1000.0)
    index = np.linalg.solve(AFFINE, [*position_mm, 1.0])[:3].round().astype(int)
    hu[0, index[0], index[1], index[2]] = 1000.0
    return hu


def centroid(image: Tensor, view: View) -> np.ndarray:
    """(right, down) from the middle of the detector, mm."""
    weights = image / image.sum()
    offsets = [(torch.arange(n) - (n - 1) / 2) * view.pixel_pitch_mm for n in image.shape]
    return np.array([float((weights.sum(0) * offsets[1]).sum()), float((weights.sum(1) * offsets[0]).sum())])


def places(poses: tuple[FilmPose, ...], hu: Tensor) -> list[np.ndarray]:
    films = render_films(hu, poses, AFFINE)
    return [centroid(film, pose.view) for film, pose in zip(films, poses, strict=True)]


def test_a_nominal_film_is_the_radiograph() -> None:
    hu = phantom(0)
    assert torch.equal(render_films(hu, nominal_poses(GEOMETRY), AFFINE), render_drr(hu, GEOMETRY, AFFINE))


@pytest.mark.parametrize("engine", ["rtk", "nanodrr"])
def test_five_degrees_off_is_a_view_at_95(engine: str) -> None:
    hu = phantom(1)
    off = (FilmPose(PA), FilmPose(replace(LATERAL, gantry_angle_deg=95.0)))
    there = BiplanarGeometry(GRID, (PA, replace(LATERAL, gantry_angle_deg=95.0)))
    films = render_films(hu, off, AFFINE, engine=engine)
    assert torch.equal(films, render_drr(hu, there, AFFINE, engine=engine))
    # and so is a patient who has turned the other way
    turned = [
        FilmPose(v, m) for v, m in zip(GEOMETRY.views, moved(GEOMETRY, np.zeros((1, 3)), np.array([-5.0])), strict=True)
    ]
    again = render_films(hu, turned, AFFINE, engine=engine)
    assert float((again - films).abs().mean()) < 0.01 * float(films.mean())


@pytest.mark.parametrize(
    ("shift", "pa", "lateral"),
    [
        ((20.0, 0.0, 0.0), (0, 0), (0, 0)),  # along the lateral's beam: the volume could follow, but no film shows it
        ((0.0, 20.0, 0.0), (0, 0), (0, 0)),  # only the lateral shows it, so that is where the volume is
        ((0.0, 0.0, 20.0), (0, 0), (0, -20)),  # the films contradict each other: higher in the lateral
    ],
)
def test_a_patient_who_moved_is_elsewhere_only_where_films_contradict(shift, pa, lateral) -> None:
    still = places(nominal_poses(GEOMETRY), bead((5.0, 5.0, 5.0)))
    motions = moved(GEOMETRY, np.array([shift]))
    poses = tuple(FilmPose(view, motion) for view, motion in zip(GEOMETRY.views, motions, strict=True))
    there = places(poses, bead((5.0, 5.0, 5.0)))
    for before, after, wanted in zip(still, there, (pa, lateral), strict=True):
        assert (after - before).tolist() == pytest.approx([MAGNIFICATION * w for w in wanted], abs=0.5)


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.floats(-20, 20)] * 3), st.floats(-5, 5))
def test_what_moves_between_films_is_what_was_asked_for(shift, turned: float) -> None:
    first, second = moved(GEOMETRY, np.array([shift]), np.array([turned]))
    between = second @ np.linalg.inv(first)
    angle = np.degrees(np.arctan2(between[1, 0], between[0, 0]))
    assert angle == pytest.approx(turned, abs=1e-6)
    # of a point where the patient's middle stood in the first film
    middle = first @ [0, 0, 0, 1]
    assert (second @ [0, 0, 0, 1] - middle)[:3].tolist() == pytest.approx(shift, abs=1e-9)
    # the first film shows it where it shows a patient who has not moved, but for its depth
    assert PA.project(middle[None, :3])[0].tolist() == pytest.approx(PA.project(np.zeros((1, 3)))[0].tolist(), abs=1e-6)


def test_tilting_is_seen_as_said() -> None:
    straight = nominal_poses(GEOMETRY)
    # a beam that goes upwards sees what lies far from the source lower on its detector
    far = bead((-95.0, 5.0, 5.0))  # at the patient's left: the lateral's detector side
    up = (FilmPose(PA), FilmPose(LATERAL, tilted(LATERAL, 3.0, 0.0)))
    lower = places(up, far)[1][1] - places(straight, far)[1][1]
    assert lower == pytest.approx(MAGNIFICATION * 95 * np.sin(np.radians(3)), rel=0.15)
    # a film turned clockwise shows the patient turned counter-clockwise: what is on the right goes up
    right = bead((5.0, -95.0, 5.0))  # the back is on the right of a left lateral
    turned = (FilmPose(PA), FilmPose(LATERAL, tilted(LATERAL, 0.0, 3.0)))
    before, after = places(straight, right)[1], places(turned, right)[1]
    assert before[0] > 100
    assert before[1] - after[1] == pytest.approx(MAGNIFICATION * 95 * np.sin(np.radians(3)), rel=0.15)


def test_distances_and_pixels_scale_the_picture() -> None:
    hu = bead((55.0, 5.0, 45.0))
    before = places(nominal_poses(GEOMETRY), hu)[0]
    nearer = at_distances(PA, 0.9, 1.1)
    assert (nearer.source_to_isocentre_mm, nearer.source_to_detector_mm) == pytest.approx((1350, 1680))
    after = places((FilmPose(nearer), FilmPose(LATERAL)), hu)[0]
    assert (after / before).tolist() == pytest.approx([(1680 / 1350) / 1.2] * 2, rel=0.02)
    # pixels that are larger than said: in pixels, and so on the nominal detector, the picture is smaller
    films = render_films(hu, (FilmPose(at_distances(PA, 1.0, 1.0, 1.05)), FilmPose(LATERAL)), AFFINE)
    assert (centroid(films[0], PA) / before).tolist() == pytest.approx([1 / 1.05] * 2, rel=0.02)


def test_breathing_lifts_the_diaphragm_and_leaves_the_apex() -> None:
    hu = phantom(2)
    out = breathe(hu, AFFINE, 20.0)
    deep = breathe(hu, AFFINE, -20.0)
    assert torch.equal(breathe(hu, AFFINE, 0.0), hu)

    def bottom(volume: Tensor, column: tuple[int, int]) -> float:
        """Lowest level of lung in a column: to a part of a voxel, where it crosses −400 HU."""
        line = volume[0, column[0], column[1]].flip(0)  # the grid begins at the head
        tissue = int(torch.nonzero(line > -400)[0])  # below the scan there is air
        first = tissue + int(torch.nonzero(line[tissue:] < -400)[0])
        above, below = float(line[first]), float(line[first - 1])
        return GRID.spacing_mm * (first - (-400 - above) / (below - above))

    for column in ((13, 20), (27, 20), (28, 18)):  # of both lungs
        resting = bottom(hu, column)
        assert bottom(out, column) - resting == pytest.approx(20, abs=3)
        assert bottom(deep, column) - resting == pytest.approx(-20, abs=3)
    upper = hu[0, :, :, :12]
    assert float((out[0, :, :, :6] - upper[:, :, :6]).abs().max()) < 1  # what is above the lungs
    # spine and chest wall stay
    assert float((out[0, 20, 12] - hu[0, 20, 12]).abs().mean()) < 40
    outside = hu[0, 2:5]
    assert float((out[0, 2:5] - outside).abs().max()) < 1
    # the lung keeps its mass as it gets smaller
    lung = lambda volume: float((volume[volume < -400] + 1000).sum())  # noqa: E731
    assert lung(out) == pytest.approx(lung(hu), rel=0.06)


def test_breathing_does_not_ask_how_the_voxels_lie() -> None:
    hu = phantom(3)
    wanted = breathe(hu, AFFINE, 15.0)
    upright = AFFINE.copy()
    upright[2] *= -1
    torch.testing.assert_close(breathe(hu.flip(3), upright, 15.0).flip(3), wanted, atol=1e-2, rtol=1e-4)
    order = AFFINE[:, [2, 0, 1, 3]]
    torch.testing.assert_close(breathe(hu.permute(0, 3, 1, 2), order, 15.0).permute(0, 2, 3, 1), wanted)


def test_who_has_no_lungs_does_not_breathe() -> None:
    water = torch.full((1, 20, 20, 20), 0.0)
    assert torch.equal(breathe(water, VolumeGrid(20, 400.0).affine(), 20.0), water)


def test_poses_are_drawn_within_their_ranges_and_by_the_seed() -> None:
    variation = PoseVariation()
    drawn = [draw_poses(np.random.RandomState(seed), GEOMETRY, variation) for seed in range(300)]
    again = draw_poses(np.random.RandomState(5), GEOMETRY, variation)
    assert again[1].view == drawn[5][1].view and np.array_equal(again[1].motion, drawn[5][1].motion)
    angles = [lateral.view.gantry_angle_deg - 90 for _, lateral in drawn]
    assert -5 <= min(angles) < -4.8 and 4.8 < max(angles) <= 5
    breaths = [lateral.breath_mm for _, lateral in drawn]
    assert -20 <= min(breaths) < -19 and 19 < max(breaths) <= 20
    for pa, lateral in drawn:
        # the first view stands for the patient: its direction, height, left and right, breath
        assert pa.breath_mm == 0 and pa.view.gantry_angle_deg == 0
        assert np.array_equal(pa.motion[:3, :3], np.eye(3))
        assert pa.motion[[0, 2], 3].tolist() == pytest.approx([0, 0])
        assert abs(pa.motion[1, 3]) <= 20
        # and the second one along the first one's beam: a point in the middle is there on both
        middle = lateral.motion @ np.linalg.inv(pa.motion) @ pa.motion[:, 3]
        assert abs(middle[2]) <= 50 + 1 and abs(middle[0]) <= 20.5
        assert abs(middle[1]) < 3
        for view, said in ((pa.view, PA), (lateral.view, LATERAL)):
            assert 0.9 <= view.source_to_isocentre_mm / said.source_to_isocentre_mm <= 1.1
    nothing = draw_poses(np.random.RandomState(0), GEOMETRY, PoseVariation(prob=0.0))
    assert [pose.view for pose in nothing] == list(GEOMETRY.views)


@pytest.mark.parametrize("windowed", [False, True])
def test_films_of_a_sample_keep_its_ct(windowed: bool) -> None:
    hu = phantom(4)
    values = (hu + 1024) / 4095 if windowed else hu
    ct = MetaTensor(values, affine=torch.from_numpy(AFFINE), meta={"isocentre": [0.0, 0.0, 0.0]})
    plain = render_drr(hu, GEOMETRY, AFFINE) / (LINE_INTEGRAL_SCALE if windowed else 1)
    sample = {"label": ct, "image": plain}
    films = RandRenderFilmsd("label", GEOMETRY, windowed=windowed)

    def made(seed: int) -> Tensor:
        films.set_random_state(seed)
        result = films(sample)
        assert result["label"] is ct
        return result["image"]

    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))
    assert 0.02 < float((made(1) - plain).abs().mean() / plain.mean()) < 0.6
    for films in (
        RandRenderFilmsd("label", GEOMETRY, PoseVariation(prob=0.0), windowed),
        RandRenderFilmsd("label", GEOMETRY, windowed=windowed, prob=0.0),
    ):
        assert films(sample)["image"] is plain
        torch.testing.assert_close(films({"label": ct})["image"], plain, atol=1e-4, rtol=1e-4)


def test_films_of_a_varied_scan_are_rendered_once(tmp_path) -> None:
    """In the place of the plain rendering: the same scan, the same label, other radiographs."""
    path = write_nifti(tmp_path / "ct.nii.gz", chest())
    kept = files_to_kept(GEOMETRY)({"patient": "p", "label": str(path)})

    def made(render: object) -> dict:
        steps = kept_to_samples(GEOMETRY, WIDE, render=render)
        steps.set_random_state(3)
        return steps(kept)

    plain = made(None)
    films = made(RandRenderFilmsd("label", GEOMETRY, thick_planes=True))
    exact = made(RandRenderFilmsd("label", GEOMETRY, PoseVariation(prob=0.0), thick_planes=True))
    torch.testing.assert_close(films["label"].as_tensor(), plain["label"].as_tensor())
    torch.testing.assert_close(torch.as_tensor(exact["image"]), torch.as_tensor(plain["image"]))
    apart = (torch.as_tensor(films["image"]) - torch.as_tensor(plain["image"])).abs().mean()
    assert 0.02 < float(apart / plain["image"].mean()) < 0.8


def test_mistakes_are_refused() -> None:
    with pytest.raises(InputError, match="one CT"):
        RandRenderFilmsd(["label", "other"], GEOMETRY)
    with pytest.raises(InputError, match="no affine"):
        RandRenderFilmsd("label", GEOMETRY)({"label": phantom(0)})
    with pytest.raises(InputError, match="distance"):
        PoseVariation(distance=1.0)
    with pytest.raises(InputError, match="prob"):
        PoseVariation(prob=2.0)
