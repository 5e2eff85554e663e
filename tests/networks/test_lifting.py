"""Where a radiograph's feature ends up in the volume."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drr2ct.networks.encoder import PyramidEncoder, pyramid_level
from drr2ct.networks.lifting import BackprojectionLift, BroadcastLift, ConfidenceLift
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid

angles = st.tuples(st.floats(-180, 180), st.floats(40, 140)).map(lambda a: (a[0], a[0] + a[1]))
octants = st.tuples(*[st.integers(0, 1)] * 3)


def geometry_of(angles_deg: tuple[float, ...], flip: bool = True, size: int = 16, **options) -> BiplanarGeometry:
    return BiplanarGeometry.from_angles(VolumeGrid(size, 320.0, flip), angles_deg, **options)


def lit_maps(geometry: BiplanarGeometry, point: np.ndarray, level: int) -> torch.Tensor:
    """One channel per view, with the pixel that ``point`` projects to, shared bilinearly with its neighbours."""
    rows, columns = (n // 2**level for n in geometry.detector_size)
    maps = torch.zeros(1, len(geometry.views), 1, rows, columns)
    for i, view in enumerate(geometry.views):
        column, row = (view.project(point[None])[0] + 0.5) / 2**level - 0.5
        r, c = int(np.floor(row)), int(np.floor(column))
        for dr, wr in ((0, r + 1 - row), (1, row - r)):
            for dc, wc in ((0, c + 1 - column), (1, column - c)):
                maps[0, i, 0, r + dr, c + dc] = wr * wc
    return maps


@settings(deadline=None, max_examples=40)
@given(angles, octants, st.integers(0, 2**31), st.booleans(), st.integers(0, 2))
def test_two_views_agree_on_the_lit_voxel_and_its_octant(
    angles_deg: tuple[float, float], octant: tuple[int, int, int], seed: int, flip: bool, level: int
) -> None:
    geometry = geometry_of(angles_deg, flip, detector_size=(2 ** (6 + level), 2 ** (6 + level)))
    # off the axes, so that a mirrored volume is another octant
    inside = np.random.default_rng(seed).integers(2, 7, 3)
    voxel = np.where(np.array(octant) == 1, 8 + inside, 7 - inside)
    point = geometry.grid.centres()[tuple(voxel)].double().numpy()

    volume = BackprojectionLift(geometry, 16, level)(lit_maps(geometry, point, level))[0]
    found = np.unravel_index(int(volume.prod(dim=0).argmax()), (16, 16, 16))
    assert np.abs(np.array(found) - voxel).max() <= 1
    assert tuple(int(i >= 8) for i in found) == octant


@settings(deadline=None, max_examples=25)
@given(st.floats(-180, 180), octants, st.booleans())
def test_one_view_lights_the_ray_through_the_voxel(angle: float, octant: tuple[int, ...], flip: bool) -> None:
    geometry = geometry_of((angle,), flip, detector_size=64)
    voxel = np.where(np.array(octant) == 1, 11, 4)
    centres = geometry.grid.centres().double().numpy()
    source = geometry.views[0].source_position
    volume = BackprojectionLift(geometry, 16, 0)(lit_maps(geometry, centres[tuple(voxel)], 0))[0, 0].numpy()

    direction = centres[tuple(voxel)] - source
    direction /= np.linalg.norm(direction)
    offsets = centres - source
    distance = np.linalg.norm(offsets - (offsets @ direction)[..., None] * direction, axis=-1)
    pixel = geometry.views[0].pixel_pitch_mm  # the detector is further from the source than the voxels
    assert (volume[distance > 2 * np.sqrt(2) * pixel] == 0).all()
    assert volume[tuple(voxel)] > 0.2
    # along the ray, every voxel that it passes close to is lit, near and far from the source
    assert (volume[distance < 0.2 * pixel] > 0.1).all()


@settings(deadline=None, max_examples=25)
@given(angles, st.integers(0, 2), st.booleans(), st.tuples(st.integers(40, 70), st.integers(40, 70)))
def test_a_map_of_coordinates_lifts_to_each_voxels_projection(
    angles_deg: tuple[float, float], level: int, flip: bool, detector: tuple[int, int]
) -> None:
    """The map's pixels hold their own detector coordinate, so the lifted volume must hold ``view.project``."""
    geometry = geometry_of(angles_deg, flip, detector_size=detector)
    width = 2**level
    rows, columns = (-(-n // width) for n in detector)
    centre = [(torch.arange(n) + 0.5) * width - 0.5 for n in (rows, columns)]
    row, column = torch.meshgrid(*centre, indexing="ij")
    maps = torch.stack([column, row]).expand(1, len(angles_deg), 2, rows, columns)
    volume = BackprojectionLift(geometry, 16, level)(maps)[0].reshape(2, 2, 16, 16, 16)
    points = geometry.grid.centres().reshape(-1, 3).double().numpy()
    for i, view in enumerate(geometry.views):
        wanted = view.project(points).T.reshape(2, 16, 16, 16)
        assert np.abs(volume[i].numpy() - wanted).max() < 1e-3 * max(detector)


def test_coarse_stages_use_coarse_voxels() -> None:
    geometry = geometry_of((0.0, 90.0), size=64, detector_size=128)
    lift = BackprojectionLift(geometry, 8, 3)
    column, row = lift.pixels()
    points = geometry.grid.resized(8).centres().reshape(-1, 3).double().numpy()
    pixels = geometry.views[1].project(points).reshape(8, 8, 8, 2)
    assert torch.allclose(column[1].double(), torch.from_numpy(pixels[..., 0]), atol=1e-3)
    assert torch.allclose(row[1].double(), torch.from_numpy(pixels[..., 1]), atol=1e-3)


@pytest.mark.parametrize(
    ("pixels", "size", "level"), [(512, 128, 2), (512, 16, 5), (128, 64, 1), (128, 16, 3), (64, 64, 0)]
)
def test_pyramid_level_fits_the_voxel(pixels: int, size: int, level: int) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(256), detector_size=pixels)
    assert pyramid_level(geometry, size) == level
    view = geometry.views[0]
    voxel = 360 / size * 1800 / 1500 / view.pixel_pitch_mm
    assert level == 0 or 2**-0.5 <= voxel / 2**level <= 2**0.5


def test_pyramid_pixels_stay_on_detector_edges() -> None:
    """Down-sampled by averages, a symmetric image stays symmetric; strided 3² convolutions would shift it."""
    torch.manual_seed(0)
    encoder = PyramidEncoder((4, 8), (2,), (6,), 4, "relu")
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            with torch.no_grad():
                module.weight.add_(module.weight.flip(-1)).add_(module.weight.flip(-2))
    x = torch.rand(1, 1, 32, 32)
    x = x + x.flip(-1)
    (features,) = encoder(x)
    assert features.shape == (1, 1, 6, 8, 8)
    assert torch.allclose(features, features.flip(-1), atol=1e-5)


def test_pyramid_encodes_each_view_on_its_own() -> None:
    torch.manual_seed(0)
    encoder, x = PyramidEncoder((8, 16), (2, 1, 0), (4, 4, 4), 8, "relu"), torch.rand(2, 3, 20, 28)
    both, swapped = encoder(x), encoder(x.flip(1))
    for i, (height, width) in enumerate(((5, 7), (10, 14), (20, 28))):
        assert both[i].shape == (2, 3, 4, height, width)
        assert torch.allclose(both[i].flip(1), swapped[i], atol=1e-5)


def test_fine_pyramid_levels_see_the_whole_radiograph() -> None:
    torch.manual_seed(0)
    encoder, x = PyramidEncoder((8, 16), (4, 0), (4, 4), 8, "relu"), torch.rand(1, 1, 64, 64)
    shifted = x.clone()
    shifted[..., -4:, -4:] += 1
    # far beyond the reach of the few kernels at full resolution
    assert (encoder(x)[1] - encoder(shifted)[1])[..., :24, :24].abs().max() > 1e-6


def test_broadcast_repeats_along_the_first_axis() -> None:
    maps = torch.rand(2, 1, 3, 8, 8)
    volume = BroadcastLift(8)(maps)
    assert volume.shape == (2, 3, 8, 8, 8)
    assert all(torch.equal(volume[:, :, i], maps[:, 0]) for i in range(8))


def test_broadcast_weights_depth_with_a_sine() -> None:
    volume = BroadcastLift(5, depth_weight=0.3)(torch.ones(1, 1, 1, 5, 5))
    wanted = torch.tensor([1.0, 1.0 + 0.3 * 0.5**0.5, 1.3, 1.0 + 0.3 * 0.5**0.5, 1.0])
    assert torch.allclose(volume[0, 0, :, 2, 2], wanted, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 4), (4, 12)])
def test_broadcast_resizes_without_aliasing(height: int, width: int) -> None:
    stripes = torch.zeros(1, 1, 1, height, width)
    stripes[..., ::2, :] = 1
    volume = BroadcastLift(8)(stripes)
    assert volume.shape == (1, 1, 8, 8, 8)
    if height == 16:
        # stripes finer than a voxel become their mean, not one of them
        assert torch.allclose(volume, torch.full_like(volume, 0.5))


def test_equal_confidence_leaves_the_features_as_they_are() -> None:
    lift = BackprojectionLift(geometry_of((0.0, 90.0), size=8, detector_size=16), 8, 0)
    maps = torch.rand(2, 2, 3, 16, 16)
    alike = torch.cat([maps, torch.full((2, 2, 1, 16, 16), 0.7)], dim=2)
    assert torch.allclose(ConfidenceLift(lift, 2)(alike), lift(maps), atol=1e-6)


def test_a_confident_view_takes_over_and_the_other_falls_silent() -> None:
    lift = BackprojectionLift(geometry_of((0.0, 90.0), size=8, detector_size=16), 8, 0)
    maps = torch.rand(1, 2, 3, 16, 16)
    confidence = torch.zeros(1, 2, 1, 16, 16)
    confidence[:, 1] = 20.0
    volume = ConfidenceLift(lift, 2)(torch.cat([maps, confidence], dim=2))
    assert volume[:, :3].abs().max() < 1e-6
    assert torch.allclose(volume[:, 3:], 2 * lift(maps)[:, 3:], atol=1e-5)
