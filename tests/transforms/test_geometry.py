"""Space: where voxels lie, where they project to, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
from drr2ct.transforms.validation import InputError

coordinates = st.floats(-150, 150)
angles = st.floats(-360, 360)
grids = st.builds(VolumeGrid, st.integers(1, 64), st.floats(50, 400), st.booleans())


@given(grids, st.tuples(coordinates, coordinates, coordinates))
def test_grid_is_centred_on_the_isocentre(grid: VolumeGrid, isocentre: tuple[float, float, float]) -> None:
    affine = grid.affine(isocentre)
    middle = [(grid.size - 1) / 2] * 3
    np.testing.assert_allclose((affine @ [*middle, 1])[:3], isocentre, atol=1e-9)
    np.testing.assert_allclose(np.abs(np.diag(affine)[:3]), grid.fov_mm / grid.size)
    # the first index of the last axis is the head where the grid is flipped
    assert (affine[2, 2] < 0) == grid.vertical_flip
    assert affine[0, 0] > 0 and affine[1, 1] > 0


@given(grids)
def test_centres_are_the_affine_of_the_indices(grid: VolumeGrid) -> None:
    last = grid.size - 1
    for index in ((0, 0, 0), (last, 0, 0), (0, last, 0), (0, 0, last)):
        np.testing.assert_allclose(grid.centres()[index], (grid.affine() @ [*index, 1])[:3], atol=1e-3)


@given(angles, coordinates, coordinates, coordinates)
def test_a_point_lies_on_the_ray_of_its_pixel(angle: float, x: float, y: float, z: float) -> None:
    view = View("v", angle, 1200, 1700, (300, 400), 1.3)
    point = np.array([x, y, z])
    column, row = view.project(point[None])[0]
    u, v = view.detector_axes
    forward = -view.source_position / view.source_to_isocentre_mm
    # the pixel's position in space, built from the definition and not from the matrix
    pixel = (
        view.source_position
        + forward * view.source_to_detector_mm
        + u * (column - (400 - 1) / 2) * view.pixel_pitch_mm
        + v * (row - (300 - 1) / 2) * view.pixel_pitch_mm
    )
    to_pixel, to_point = pixel - view.source_position, point - view.source_position
    np.testing.assert_allclose(np.cross(to_pixel, to_point) / np.linalg.norm(to_pixel), 0, atol=1e-6)
    depth = view.projection_matrix[2] @ [*point, 1]
    assert depth == pytest.approx(to_point @ forward)


def test_images_are_seen_from_the_detector_head_up() -> None:
    pa, lateral = BiplanarGeometry.from_angles().views
    middle = 255.5
    head, right, front = np.array([[0, 0, 100.0]]), np.array([[100.0, 0, 0]]), np.array([[0, 100.0, 0]])
    for view in (pa, lateral):
        assert view.project(head)[0, 1] < middle
    assert pa.project(right)[0, 0] < middle, "in the PA view the patient's right is on the image's left"
    assert lateral.project(front)[0, 0] < middle, "in the left lateral view the patient faces the image's left"
    # the source is behind the patient, and at the patient's right
    np.testing.assert_allclose(pa.source_position, [0, -1500, 0], atol=1e-9)
    np.testing.assert_allclose(lateral.source_position, [1500, 0, 0], atol=1e-9)
    # what is nearer to the source is magnified more
    near, far = pa.project(np.array([[-50.0, -100, 0], [-50.0, 100, 0]]))[:, 0]
    assert near > far > middle


@given(st.floats(0, 179), st.floats(-179, -1), st.integers(16, 600), st.floats(100, 500))
def test_the_default_detector_has_a_tenth_to_spare(first: float, second: float, size: int, fov: float) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(8, fov), (first, second), detector_size=size)
    reach = np.abs(np.stack([v.project(geometry.grid.corners()) for v in geometry.views]) - (size - 1) / 2).max()
    assert reach * 1.1 == pytest.approx(size / 2, rel=1e-6)


@given(st.floats(-179, 179), st.integers(1, 300), st.booleans())
def test_json_round_trip_is_exact(angle: float, size: int, flip: bool) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(size, 311.7, flip), [angle, angle + 61.3, angle - 77])
    assert BiplanarGeometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


def test_files_round_trip_and_leave_nothing_else(tmp_path) -> None:
    geometry = BiplanarGeometry.from_angles()
    geometry.save(tmp_path / "geometry.json")
    assert BiplanarGeometry.load(tmp_path / "geometry.json") == geometry
    assert [path.name for path in tmp_path.iterdir()] == ["geometry.json"]


@given(st.integers(1, 200), st.integers(1, 4))
def test_resizing_keeps_space(size: int, factor: int) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(64, 300), detector_size=100)
    resized = geometry.resized(size, (100 * factor, 100 * factor))
    assert resized.grid.fov_mm == 300 and resized.grid.size == size
    point = np.array([[10.0, 20, 30]])
    before, after = geometry.views[0].project(point), resized.views[0].project(point)
    np.testing.assert_allclose(after + 0.5, factor * (before + 0.5))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VolumeGrid(0), "size"),
        (lambda: VolumeGrid(64, -1), "field of view"),
        (lambda: VolumeGrid(64, math.nan), "field of view"),
        (lambda: View("a b", 0), "view name"),
        (lambda: View("pa", math.inf), "gantry angle"),
        (lambda: View("pa", 0, 1500, 1500), "behind"),
        (lambda: View("pa", 0, pixel_pitch_mm=0), "pixel_pitch_mm"),
        (lambda: BiplanarGeometry(), "at least one view"),
        (lambda: BiplanarGeometry.from_angles(angles_deg=(0, 360)), "another gantry angle"),
        (lambda: BiplanarGeometry.from_angles(angles_deg=(0, 90), names=("pa", "pa")), "repeat"),
        (lambda: BiplanarGeometry.from_angles(angles_deg=(0, 90), names=("pa",)), "names"),
        (lambda: BiplanarGeometry.from_angles(pixel_pitch_mm=0.5), "misses part of the grid"),
        (lambda: BiplanarGeometry.from_angles(source_to_isocentre_mm=150, source_to_detector_mm=600), "the source"),
        (lambda: BiplanarGeometry(VolumeGrid(), (View("pa", 0, 170, 1800, pixel_pitch_mm=900),)), "inside"),
        (
            lambda: BiplanarGeometry(
                VolumeGrid(),
                (View("pa", 0, pixel_pitch_mm=2), View("lat", 90, detector_size=(256, 256), pixel_pitch_mm=4)),
            ),
            "same detector size",
        ),
        (lambda: BiplanarGeometry.from_dict({"format": 99}), "format 99"),
        (lambda: BiplanarGeometry.from_dict({"format": 1, "grid": {"sizes": 3}, "views": []}), "not a geometry"),
        (lambda: View("pa", 0).resampled((100, 200)), "square"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        make()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}'])
def test_damaged_files_are_refused(tmp_path, content: str) -> None:
    path = tmp_path / "geometry.json"
    path.write_text(content)
    with pytest.raises(InputError):
        BiplanarGeometry.load(path)
    with pytest.raises(InputError, match="does not exist"):
        BiplanarGeometry.load(tmp_path / "none.json")
