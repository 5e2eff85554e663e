import math
from pathlib import Path

import itk
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, LoadImage

from drr2ct.transforms import rtk
from drr2ct.transforms.attenuation import MU_WATER
from drr2ct.transforms.drr import RenderDRR, RenderDRRd, project_volume, render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.radiographs.views import check_view_order
from drr2ct.transforms.validation import InputError

SAMPLE = Path(__file__).parents[2] / "pipeline/data/sample/lidc-idri-0001/lidc-idri-0001.nii.gz"
ENGINES = ("rtk", "nanodrr")


def rotation(x, y, z):
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", [x, y, z], degrees=True).as_matrix()


DIRECTIONS = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "left-handed": np.diag([-1.0, 1.0, 1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "oblique": rotation(10, -20, 30),
    "oblique left-handed": rotation(40, 15, -160) @ np.diag([1.0, -1.0, 1.0]),
}


def make_affine(direction, spacing, origin=(11.0, -300.0, 777.0)):
    affine = np.eye(4)
    affine[:3, :3] = direction @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def patient(affine, index):
    return affine[:3, :3] @ np.asarray(index, dtype=float) + affine[:3, 3]


def bright_pixel(image):
    """Centre of mass (column, row)."""
    image = image.double()
    columns = (image.sum(0) * torch.arange(image.shape[1])).sum()
    rows = (image.sum(1) * torch.arange(image.shape[0])).sum()
    return np.array([columns, rows]) / image.sum().item()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_bright_voxel_per_octant_lands_where_the_geometry_says(engine, name):
    # pixels smaller than voxels: rays would pass between the corners of a single one otherwise
    grid = VolumeGrid(1, 160.0)
    geometry = BiplanarGeometry.from_angles(grid, angles_deg=(0.0, 90.0, 37.0, -120.0), detector_size=96)
    shape, affine = (28, 36, 22), make_affine(DIRECTIONS[name], (5, 4, 6))
    centre = patient(affine, (np.array(shape) - 1) / 2)
    for octant in np.ndindex(2, 2, 2):
        index = tuple(int(n * (0.8 if o else 0.2)) for n, o in zip(shape, octant, strict=True))
        hu = torch.full((1, *shape), -1000.0)
        hu[0][index] = 1000
        images = render_drr(hu, geometry, affine=affine, engine=engine)
        for view, image in zip(geometry.views, images, strict=True):
            expected = view.project((patient(affine, index) - centre)[None])[0]
            np.testing.assert_allclose(bright_pixel(image), expected, atol=0.5)
            row, column = np.unravel_index(image.argmax(), image.shape)
            assert np.abs([column, row] - expected).max() < 6 / view.pixel_pitch_mm  # within the voxel's shadow


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    angle=st.floats(-180, 180),
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(3, 8)] * 3),
    mirrored=st.booleans(),
    memory=st.permutations(range(3)),
    offset=st.tuples(*[st.floats(-20, 20)] * 3),
    engine=st.sampled_from(ENGINES),
)
def test_any_orientation_isocentre_and_memory_order(angle, turn, spacing, mirrored, memory, offset, engine):
    geometry = BiplanarGeometry.from_angles(VolumeGrid(1, 160.0), angles_deg=[angle], names=["v"], detector_size=112)
    direction = rotation(*turn) @ np.diag([1, 1, -1.0 if mirrored else 1.0])
    shape, index = (14, 17, 12), (3, 12, 4)
    affine = make_affine(direction, spacing)
    hu = torch.full((1, *shape), -1000, dtype=torch.int16)
    hu[0][index] = 2000
    back = [0, *(np.argsort(memory) + 1)]
    hu = hu.permute(0, *(a + 1 for a in memory)).contiguous().permute(back)
    isocentre = patient(affine, (np.array(shape) - 1) / 2) + offset
    image = render_drr(hu, geometry, affine, isocentre.tolist(), engine)[0]
    expected = geometry.views[0].project((patient(affine, index) - isocentre)[None])[0]
    np.testing.assert_allclose(bright_pixel(image), expected, atol=0.5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_strips_of_the_detector_are_parts_of_the_whole(order, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    volume = torch.randint(-1000, 1000, (20, 18, 16), generator=generator).float().permute(order).contiguous()
    back = volume.permute(order)[None]  # the axes are the same, memory is not
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=50)
    whole = render_drr(back, geometry, make_affine(DIRECTIONS["oblique"], (11.0, 12.0, 14.0)))
    monkeypatch.setattr(rtk, "_CACHED", 1)  # strips of 16, 16, 16 and 2 pixels
    assert torch.equal(render_drr(back, geometry, make_affine(DIRECTIONS["oblique"], (11.0, 12.0, 14.0))), whole)


def test_an_angle_that_is_zero_but_for_rounding_is_zero():
    ct, affine = torch.full((1, 12, 12, 12), 0.0), make_affine(np.eye(3), (8, 8, 8))
    images = [
        render_drr(ct, BiplanarGeometry.from_angles(angles_deg=[angle], names=["v"], detector_size=32), affine)
        for angle in (0.0, 2.2250738585e-313)
    ]
    assert torch.equal(*images) and images[0].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_water_box_is_its_chord(engine):
    geometry = BiplanarGeometry.from_angles(angles_deg=(0.0, 90.0), detector_size=65)
    hu = torch.zeros(1, 20, 30, 25)  # water up to the edges of the scan: 100 × 120 × 150 mm
    images = render_drr(hu, geometry, make_affine(np.eye(3), (5, 4, 6)), engine=engine)
    assert images[0, 32, 32] == pytest.approx(MU_WATER * 120, rel=0.01)
    assert images[1, 32, 32] == pytest.approx(MU_WATER * 100, rel=0.01)
    assert images[:, 0].abs().max() == 0  # air beside it


@pytest.mark.parametrize("engine", ENGINES)
def test_water_ball_is_its_chords(engine):
    geometry = BiplanarGeometry.from_angles(VolumeGrid(1, 200.0), angles_deg=(0.0, 37.0), detector_size=129)
    grid, radius = VolumeGrid(100, 200.0), 80.0
    distance = grid.centres().norm(dim=-1)
    partial = ((radius - distance) / grid.spacing_mm + 0.5).clamp(0, 1)  # partial volume at the surface
    images = render_drr((partial * 1000 - 1000)[None], geometry, grid.affine(), (0.0, 0.0, 0.0), engine)
    for view, image in zip(geometry.views, images, strict=True):
        # distance of each ray from the isocentre: sin(angle to the central ray) × SID
        offset = (torch.arange(129) - 64) * view.pixel_pitch_mm
        off_axis = (offset[:, None] ** 2 + offset**2).sqrt()
        miss = view.source_to_isocentre_mm * off_axis / (off_axis**2 + view.source_to_detector_mm**2).sqrt()
        chord = 2 * (radius**2 - miss**2).clamp(min=0).sqrt()
        inside = miss < 0.9 * radius
        torch.testing.assert_close(image[inside], MU_WATER * chord[inside], rtol=0.015, atol=0)
        assert image[miss > radius + 4.5].abs().max() < 1e-5


def test_sheared_voxels_go_to_nanodrr():
    affine = make_affine(np.eye(3), (4, 4, 4))
    affine[1, 2] = 1.5  # gantry tilt
    geometry = BiplanarGeometry.from_angles(detector_size=128)
    hu = torch.full((1, 20, 20, 20), -1000.0)
    hu[0, 4, 15, 3] = 1000
    images = render_drr(hu, geometry, affine)
    point = patient(affine, (4, 15, 3)) - patient(affine, (9.5, 9.5, 9.5))
    for view, image in zip(geometry.views, images, strict=True):
        np.testing.assert_allclose(bright_pixel(image), view.project(point[None])[0], atol=0.5)
    with pytest.raises(InputError, match="perpendicular"):
        render_drr(hu, geometry, affine, engine="rtk")


def test_pa_shows_the_patients_right_on_the_images_left_and_the_head_up():
    hu = MetaTensor(torch.full((1, 20, 20, 20), -1000.0), affine=np.diag([-5.0, -5, 5, 1]))  # LPS
    hu[0, :10, :, 10:] = 500  # LPS index 0 is the patient's right; the last axis runs to the head
    pa = render_drr(hu, BiplanarGeometry.from_angles(detector_size=64))[0]
    assert pa[:32, :32].mean() > 20 * pa[:32, 32:].mean()
    assert pa[:32, :32].mean() > 20 * pa[32:, :32].mean()


def smooth_volume(size, seed=0):
    coarse = torch.rand(1, 1, 5, 5, 5, generator=torch.Generator().manual_seed(seed)) * 1400 - 1000
    return torch.nn.functional.interpolate(coarse, size=(size,) * 3, mode="trilinear")


@pytest.mark.parametrize("vertical_flip", [True, False])
def test_project_volume_agrees_with_render_drr(vertical_flip):
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32, 320.0, vertical_flip), detector_size=64)
    volumes = torch.cat([smooth_volume(32), smooth_volume(32, 1)])
    projected = project_volume(volumes, geometry)
    assert projected.shape == (2, 2, 64, 64)
    for volume, images in zip(volumes, projected, strict=True):
        for engine in ENGINES:
            rendered = render_drr(volume, geometry, geometry.grid.affine(), engine=engine)
            assert (images - rendered).abs().mean() < 0.005 * rendered.mean()


def test_project_volume_gradient_and_chunks(monkeypatch):
    geometry = BiplanarGeometry.from_angles(VolumeGrid(12, 240.0), detector_size=24)
    volume = smooth_volume(12).requires_grad_()
    whole = project_volume(volume, geometry)
    whole.square().sum().backward()
    gradient = volume.grad.clone()
    step = torch.zeros_like(gradient)
    step[0, 0, 4, 7, 5], step[0, 0, 9, 2, 3] = 20.0, -20.0

    def loss(x):
        return project_volume(x.detach(), geometry).double().square().sum()

    numeric = (loss(volume + step) - loss(volume - step)) / 2
    assert (gradient * step).sum().item() == pytest.approx(numeric.item(), rel=0.02)
    assert abs(numeric) > 0.01

    monkeypatch.setattr("drr2ct.transforms.drr.SAMPLES_PER_CHUNK", 5000)
    volume.grad = None
    chunked = project_volume(volume, geometry)
    chunked.square().sum().backward()
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(volume.grad, gradient, rtol=1e-3, atol=1e-5)


def test_projection_ignores_autocast():
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16, 240.0), detector_size=32)
    volume = smooth_volume(16)
    expected = project_volume(volume, geometry)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(project_volume(volume, geometry), expected)


def test_project_volume_refuses_another_grid():
    with pytest.raises(InputError, match="resized"):
        project_volume(smooth_volume(16), BiplanarGeometry.from_angles())


GEOMETRY = BiplanarGeometry.from_angles(detector_size=48)


def ct(**meta):
    return MetaTensor(smooth_volume(16)[0], affine=np.diag([10.0, 10, 10, 1]), meta=meta)


def test_transform_uses_the_isocentre_of_the_metadata():
    plain, shifted = RenderDRR(GEOMETRY)(ct()), RenderDRR(GEOMETRY)(ct(isocentre=[75.0, 75.0, 125.0]))
    torch.testing.assert_close(RenderDRR(GEOMETRY)(ct(isocentre=[75.0] * 3)), plain)
    assert (plain - shifted).abs().mean() > 0.05 * plain.mean()


def test_dictionary_transform():
    sample = Compose([RenderDRRd("label", geometry=GEOMETRY)])({"label": ct()})
    assert sample["image"].shape == (2, 48, 48)
    assert sample["image"].dtype == torch.float32
    assert list_data_collate([sample, sample])["image"].shape == (2, 2, 48, 48)
    stored = torch.ones(2, 48, 48)
    assert RenderDRRd("label", geometry=GEOMETRY)({"label": ct(), "image": stored})["image"] is stored
    again = RenderDRRd("label", geometry=GEOMETRY, overwrite=True)({"label": ct(), "image": stored})
    assert torch.equal(again["image"], sample["image"])


def test_dictionary_transform_without_a_ct():
    assert RenderDRRd("label", geometry=GEOMETRY, allow_missing_keys=True)({"patient": "a"}) == {"patient": "a"}
    with pytest.raises(KeyError):
        RenderDRRd("label", geometry=GEOMETRY)({"patient": "a"})
    with pytest.raises(InputError, match="one CT"):
        RenderDRRd(["label", "pred"], geometry=GEOMETRY)


class _Cts(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return RenderDRRd("label", geometry=GEOMETRY)({"label": ct()})["image"].as_tensor()


def test_renders_in_data_loader_workers():
    expected = _Cts()[0]  # the parent has used ITK's threads before it forks
    for image in torch.utils.data.DataLoader(_Cts(), num_workers=2, batch_size=None, timeout=60):
        torch.testing.assert_close(image, expected)


def test_integer_and_float_hounsfield_units_are_the_same():
    hu = ct().as_tensor().round()
    affine = np.diag([10.0, 10, 10, 1])
    for engine in ENGINES:
        whole = render_drr(hu.short(), GEOMETRY, affine, engine=engine)
        torch.testing.assert_close(whole, render_drr(hu, GEOMETRY, torch.from_numpy(affine), engine=engine))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"affine": None}, "no affine"),
        ({"affine": np.diag([1.0, 1, 0, 1])}, "invertible"),
        ({"affine": np.diag([1.0, math.nan, 1, 1])}, "invertible"),
        ({"engine": "siddon"}, "siddon"),
        ({"isocentre": [0.0, 1.0]}, "three coordinates"),
        ({"isocentre": [0.0, 1.0, math.inf]}, "three coordinates"),
        ({"volume": torch.zeros(2, 8, 8, 8)}, "one channel"),
        ({"volume": torch.full((1, 8, 8, 8), math.nan)}, "NaN"),
        ({"volume": torch.full((1, 8, 8, 8), math.inf)}, "NaN or infinite"),
        ({"volume": torch.zeros(1, 8, 8, 8, requires_grad=True), "engine": "rtk"}, "without gradient"),
    ],
)
def test_wrong_input(change, message):
    arguments = {"volume": torch.zeros(1, 8, 8, 8), "affine": np.diag([9.0, 9, 9, 1]), "engine": "auto", **change}
    with pytest.raises(InputError, match=message):
        render_drr(geometry=GEOMETRY, **arguments)


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.exists(), reason="sample CT not in this checkout")
def test_engines_agree_on_the_sample_ct_and_its_views_are_told_apart():
    volume = LoadImage(ensure_channel_first=True)(SAMPLE)
    geometry = BiplanarGeometry.from_angles(detector_size=256)
    rtk, nanodrr = (render_drr(volume, geometry, engine=engine) for engine in ENGINES)
    assert rtk.mean() > 0.5
    assert (rtk - nanodrr).abs().mean() < 0.01 * rtk.mean()
    check_view_order(rtk, geometry, "sample")
    with pytest.raises(InputError, match="exchanged"):
        check_view_order(rtk.flip(0), geometry, "sample")


@pytest.mark.parametrize("angles", [(0.0, 90.0), (-12.0, 100.0), (45.0, 130.0)])
def test_thick_planes_cast_the_same_shadow(angles: tuple[float, float]) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), angles, detector_size=48)
    values = torch.nn.functional.avg_pool3d(
        torch.rand(1, 113, 101, 97, generator=torch.Generator().manual_seed(0)), 5, 1
    )
    volume = MetaTensor((values - 0.5) * 4000, affine=np.diag([3.0, 3.0, 3.0, 1.0]))
    for flipped in (volume, volume.flip(1)):
        thin, thick = (render_drr(flipped, geometry, engine="rtk", thick_planes=choice) for choice in (False, True))
        assert float((thick - thin).abs().mean() / thin.mean()) < 0.01, "blobs as small as two pixels"
        assert abs(float(thick.mean() / thin.mean()) - 1) < 0.002
        assert not torch.equal(thick, thin)


def test_however_much_itk_has_counted() -> None:
    """RTK's library counts modifications apart from ITK's: the output was asked for again after its input had gone."""
    ct = MetaTensor(torch.full((1, 8, 8, 8), -500.0), affine=torch.diag(torch.tensor([20.0, 20, 20, 1])).double())
    geometry = BiplanarGeometry.from_angles(VolumeGrid(8), detector_size=12)
    before = render_drr(ct, geometry)
    image = itk.image_view_from_array(np.zeros((2, 2, 2), dtype=np.float32))
    for _ in range(200_000):
        image.Modified()
    assert torch.equal(render_drr(ct, geometry), before)
