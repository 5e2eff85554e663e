from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.augmentation import RandQuantumNoised, RandWarpAndRenderd, warp
from drr2ct.transforms.drr import project_volume, render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu
from tests.files import chest, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=64)
NOTHING = {"rotation_deg": 0.0, "scale": 0.0, "shift_mm": 0.0, "deformation_mm": 0.0}


@pytest.fixture(scope="module", params=["cube", "resize"])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    affine = np.diag([9.0, 8.0, 10.0, 1.0])
    affine[:3, 3] = [-40, 100, 7]
    path = write_nifti(tmp_path_factory.mktemp("ct") / "ct.nii.gz", chest(), affine)
    return files_to_samples(GEOMETRY, mode=request.param)({"patient": "p", "label": str(path)})


def drawn(sample: dict, seed: int, **settings: float) -> dict:
    transform = RandWarpAndRenderd("label", GEOMETRY, **settings)
    transform.set_random_state(seed)
    return transform(sample)


@pytest.mark.parametrize("seed", range(3))
def test_the_radiographs_are_those_of_the_warped_ct(sample: dict, seed: int) -> None:
    varied = drawn(sample, seed)
    ct = varied["label"]
    moved = float((ct - sample["label"]).abs().mean()) / float(sample["label"].abs().mean())
    assert moved > 0.02, "it is another CT"
    # by the other engine, from the CT as it would be written to a file
    hu = MetaTensor(to_hu(ct.as_tensor()), affine=ct.affine)
    wanted = render_drr(hu, GEOMETRY, isocentre=ct.meta["isocentre"], engine="nanodrr") / LINE_INTEGRAL_SCALE
    assert float((varied["image"] - wanted).abs().mean()) < 0.005 * float(wanted.mean())
    apart = float((varied["image"] - sample["image"]).abs().mean())
    assert apart > 0.02 * float(wanted.mean()), "and they are not the ones from before"
    assert torch.equal(ct.affine, sample["label"].affine)
    if np.allclose(np.asarray(ct.affine)[:3, :3], GEOMETRY.grid.affine()[:3, :3]):  # cube: the network's own projection
        projected = project_volume(to_hu(ct.as_tensor())[None], GEOMETRY)[0] / LINE_INTEGRAL_SCALE
        assert float((varied["image"] - projected).abs().mean()) < 0.005 * float(wanted.mean())


def test_no_warp_keeps_the_ct(sample: dict) -> None:
    same = drawn(sample, 0, **NOTHING)
    assert float((same["label"] - sample["label"]).abs().max()) < 1e-5


def test_the_input_is_not_changed_and_the_seed_decides(sample: dict) -> None:
    before = sample["label"].clone()
    first, second, other = (drawn(sample, seed)["label"] for seed in (1, 1, 2))
    assert torch.equal(sample["label"], before)
    assert torch.equal(first, second) and not torch.equal(first, other)
    untouched = drawn(sample, 1, prob=0.0)
    assert untouched["label"] is sample["label"] and untouched["image"] is sample["image"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=3, max_size=3), st.booleans())
def test_a_shift_in_mm_moves_the_patient_by_it(voxels: list[int], flipped: bool) -> None:
    grid = VolumeGrid(16, 160.0, vertical_flip=flipped)
    volume = torch.zeros(1, 16, 16, 16)
    volume[0, 8, 7, 6] = 1
    shift = 10.0 * np.array(voxels)
    moved = warp(volume, grid.affine(), np.eye(3), shift, np.zeros((3, 2, 2, 2)))
    index = np.array(np.unravel_index(int(moved.argmax()), (16,) * 3))
    direction = np.array([1, 1, -1 if flipped else 1])
    # what stood at x + t now stands at x
    assert np.array_equal(index, np.array([8, 7, 6]) - direction * np.array(voxels))
    assert float(moved.max()) == pytest.approx(1, abs=1e-3)


def test_a_rotation_is_rigid_on_unequal_voxels() -> None:
    affine = np.diag([2.0, 5.0, 3.0, 1.0])
    axes = [torch.arange(n) * s - (n - 1) * s / 2 for n, s in ((60, 2.0), (24, 5.0), (40, 3.0))]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    along_x = torch.exp(-((x / 30) ** 2 + (y / 12) ** 2 + (z / 12) ** 2))[None]
    along_y = torch.exp(-((x / 12) ** 2 + (y / 30) ** 2 + (z / 12) ** 2))[None]
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turned = warp(along_x, affine, quarter, np.zeros(3), np.zeros((3, 2, 2, 2)))
    assert float((turned - along_y).abs().max()) < 0.06
    assert float((turned - along_x).abs().max()) > 0.3


def test_a_displacement_is_in_mm_and_local() -> None:
    grid = VolumeGrid(32, 320.0, vertical_flip=False)
    volume = torch.linspace(0, 31, 32)[None, :, None, None].expand(1, 32, 32, 32).contiguous() * 10  # x in mm
    displacement = np.zeros((3, 5, 5, 5))
    displacement[0, 2, 2, 2] = 20.0
    change = warp(volume, grid.affine(), np.eye(3), np.zeros(3), displacement) - volume
    assert float(change[0, 15:17, 15:17, 15:17].mean()) == pytest.approx(20, rel=0.2)
    assert float(change.max()) <= 20.001
    assert float(change[0, :8].abs().max()) < 1e-3


def test_counting_noise_is_that_of_the_photons() -> None:
    level = 2.0 / LINE_INTEGRAL_SCALE
    flat = torch.full((2, 200, 200), level)
    noise = RandQuantumNoised("image", (1e4, 1e4))
    noise.set_random_state(0)
    noisy = noise({"image": flat})["image"]
    assert torch.equal(flat, torch.full((2, 200, 200), level))
    spread = float((noisy * LINE_INTEGRAL_SCALE).std())
    assert spread == pytest.approx(1 / np.sqrt(1e4 * np.exp(-2.0)), rel=0.03)
    assert float(noisy.mean()) == pytest.approx(level, rel=1e-3)
    noise.set_random_state(0)
    assert torch.equal(noise({"image": flat})["image"], noisy)
    assert not torch.equal(noise({"image": flat})["image"], noisy)


def test_mistakes_are_refused(sample: dict) -> None:
    with pytest.raises(InputError, match="warps one CT"):
        RandWarpAndRenderd(["label", "other"], GEOMETRY)
    with pytest.raises(InputError, match="no affine"):
        drawn({**sample, "label": sample["label"].as_tensor()}, 0)
    with pytest.raises(InputError, match="no range"):
        RandQuantumNoised("image", (1e6, 1e4))
