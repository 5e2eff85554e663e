"""A volume's radiographs within a network, against the ray caster that renders DRRs, and what they lack of others."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drr2ct.networks.encoder import halved, pyramid_level
from drr2ct.networks.projection import Projection, ReprojectionLift
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE, MU_WATER
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.volume import HU_WINDOW

LOW, HIGH = HU_WINDOW


def smooth(size: int, seed: int = 0) -> torch.Tensor:
    """A volume without symmetry, from air to bone, that a grid of this size holds."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 6, 6, 6, generator=generator) * 0.8
    return F.interpolate(coarse, size=[size] * 3, mode="trilinear", align_corners=False)


@pytest.mark.parametrize("angles_deg", [(0.0, 90.0), (180.0, -90.0), (20.0, 107.0)])
@pytest.mark.parametrize("detector", [(64, 64), (48, 90)])
@pytest.mark.parametrize("flip", [True, False])
def test_as_the_ray_caster_renders_it(angles_deg: tuple[float, float], detector: tuple[int, int], flip: bool) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32, 360.0, flip), angles_deg, detector_size=detector)
    volume = smooth(32)
    found = Projection(geometry, 32, 0)(volume)[0]
    rendered = render_drr(volume[0] * (HIGH - LOW) + LOW, geometry, affine=geometry.grid.affine(), engine="rtk")
    expected = rendered / LINE_INTEGRAL_SCALE
    assert found.shape == expected.shape == (2, *detector)
    # beside the cube rays see its last voxels end, where methods differ by part of a voxel
    assert (found - expected).abs().quantile(0.99) < 2e-3 * expected.max()
    assert (found - expected).square().mean().sqrt() < 2e-3 * expected.square().mean().sqrt()


def test_pixels_of_halved_radiographs_are_the_means_of_those_they_cover() -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=(96, 128))
    volume = smooth(32)
    fine, coarse = Projection(geometry, 32, 0)(volume), Projection(geometry, 32, 2)(volume)
    wanted = halved(halved(fine))
    assert coarse.shape == wanted.shape == (1, 2, 24, 32)
    # but at the cube's rim, where a mean is of inside and outside; an eighth of a pixel aside would be 1e-2 of it
    assert (coarse - wanted).abs().median() < 5e-3 * wanted.mean()


def test_water_attenuates_as_water() -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16, 160.0), detector_size=(17, 17))
    water = torch.full((2, 1, 16, 16, 16), -LOW / (HIGH - LOW))
    seen = Projection(geometry, 16, 0)(water)
    assert seen.shape == (2, 2, 17, 17)
    assert seen[:, :, 8, 8] * LINE_INTEGRAL_SCALE == pytest.approx(MU_WATER * 160.0, rel=1e-4)


@pytest.mark.parametrize(
    "octant", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
)
def test_what_is_lacking_is_spread_along_the_rays_through_it(octant: tuple[int, int, int]) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=64)
    lift = ReprojectionLift(geometry, size=16, parts=2, scale=2)
    volume = smooth(16)
    level = pyramid_level(geometry, 16)
    assert level > lift.level  # the finer volume's radiographs have finer pixels
    own = Projection(geometry, 16, level)(volume)
    own = F.interpolate(own, size=[64, 64], mode="bilinear", align_corners=False)
    cells = lift(volume, own)
    assert cells.shape == (1, lift.channels, 16, 16, 16) == (1, 24, 16, 16, 16)
    assert cells[:, 8:].abs().max() < 1e-4  # nothing is lacking
    # the volume so far, twice as fine, of which each voxel sees its eight
    finer = F.interpolate(volume, scale_factor=2.0, mode="trilinear", align_corners=False)
    for part, (i, j, k) in enumerate(np.ndindex(2, 2, 2)):
        assert torch.equal(cells[:, part], finer[:, 0, i::2, j::2, k::2])
    # something that only the radiographs know of: both views say so in its own voxel, and there alone
    voxel = [21 if side else 6 for side in octant]
    spot = torch.zeros(1, 1, 32, 32, 32)
    spot[0, 0, *(slice(v, v + 2) for v in voxel)] = 0.5
    air = torch.zeros(1, 1, 32, 32, 32)
    seen = Projection(geometry, 32, 0)
    cells = lift(volume, own + seen(spot + 0.3) - seen(air + 0.3))[:, 8:]
    both = cells.reshape(2, 8, 16, 16, 16).prod(dim=0).sum(dim=0)
    found = np.unravel_index(int(both.argmax()), both.shape)
    assert np.abs(np.array(found) - np.array(voxel) / 2).max() <= 1


def test_it_takes_radiographs_of_an_odd_size_and_leaves_gradients_to_the_volume_it_shows() -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16), (10.0, 95.0), detector_size=(27, 45))
    lift = ReprojectionLift(geometry, size=8, parts=2, scale=2)
    volume = smooth(8).requires_grad_()
    cells = lift(volume, torch.rand(1, 2, 27, 45))
    cells[:, 8:].sum().backward(retain_graph=True)
    assert volume.grad is None or volume.grad.abs().max() == 0
    cells[:, :8].sum().backward()
    assert volume.grad.abs().min() > 0
