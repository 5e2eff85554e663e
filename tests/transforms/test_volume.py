"""The CT chain: every format lands at the same place, the affine stays true, and the inverse leads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, Orientationd

from drr2ct.transforms.geometry import VolumeGrid
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import (
    LoadCT,
    LoadCTd,
    ResampleToGrid,
    ResampleToGridd,
    WindowHUd,
    bounding_box_centre,
    check_ct,
    smooth_for_spacing,
    to_hu,
)
from tests.files import chest, write_dicom_series, write_nifti, write_with_itk

AFFINES = {
    "RAS": np.array([[10.0, 0, 0, -160], [0, 11, 0, -170], [0, 0, 12, 40], [0, 0, 0, 1]]),
    "LPS": np.array([[-10.0, 0, 0, 160], [0, -11, 0, 170], [0, 0, 12, 40], [0, 0, 0, 1]]),
    "left-handed": np.array([[-10.0, 0, 0, 160], [0, 11, 0, -170], [0, 0, 12, 40], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 10.0, -160], [11, 0, 0, -170], [0, -12, 0, 300], [0, 0, 0, 1]]),
}


def chain(grid: VolumeGrid, mode: str = "cube", load: bool = False) -> Compose:
    steps = [Orientationd("label", "RAS", labels=None), ResampleToGridd("label", grid, mode), WindowHUd("label")]
    if grid.vertical_flip:
        steps.append(Flipd("label", 2))
    return Compose([LoadCTd("label"), *steps] if load else steps)


def ramp(shape: tuple[int, int, int], affine: np.ndarray) -> MetaTensor:
    """HU that say where they are: 2x + 3y + 5z, in mm."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return MetaTensor(torch.from_numpy(points @ [2.0, 3, 5])[None].float(), affine=affine)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(sorted(AFFINES)),
    st.floats(0.4, 1.7),
    st.tuples(*[st.floats(-15, 15)] * 3),
    st.sampled_from(["cube", "resize"]),
    st.booleans(),
)
def test_every_voxel_holds_the_value_of_its_place(
    name: str, scale: float, shift: tuple[float, float, float], mode: str, flip: bool
) -> None:
    affine = AFFINES[name].copy()
    affine[:3, :3] *= scale
    ct = ramp((30, 28, 26), affine)
    ct.meta["isocentre"] = [c + s for c, s in zip(bounding_box_centre(ct), shift, strict=True)]
    grid = VolumeGrid(20, 150 * scale, flip)
    oriented = Orientationd("label", "RAS", labels=None)({"label": ct})["label"]
    result = ResampleToGrid(grid, mode)(oriented)
    if flip:
        result = Flipd("label", 2)({"label": result})["label"]
    if mode == "cube":
        np.testing.assert_allclose(result.affine, grid.affine(ct.meta["isocentre"]), atol=1e-9)
    expected = ramp((20, 20, 20), result.affine.numpy()).as_tensor()
    inner = (slice(None), *[slice(5, 15)] * 3)  # the scan's edge is smoothed
    # linear interpolation and a symmetric kernel keep a linear function
    np.testing.assert_allclose(result.as_tensor()[inner], expected[inner], atol=2.0)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("name", sorted(AFFINES))
def test_one_bright_voxel_per_octant_keeps_its_octant(name: str, flip: bool) -> None:
    affine = AFFINES[name]
    grid = VolumeGrid(32, 300, flip)
    for octant in np.ndindex(2, 2, 2):
        volume = torch.full((1, 30, 30, 30), -1000.0)
        index = [8 if low == 0 else 21 for low in octant]
        volume[(0, *index)] = 3000
        ct = MetaTensor(volume, affine=affine)
        centre = bounding_box_centre(ct)
        point = (affine @ [*index, 1])[:3]
        sample = chain(grid)({"label": ct})["label"]
        found = np.unravel_index(int(sample.argmax()), sample.shape)[1:]
        reached = (sample.affine.numpy() @ [*found, 1])[:3]
        assert np.all(np.abs(reached - point) < 10), (octant, reached, point)
        # and in the network's own axes: right is high x, front is high y, the head is low z where flipped
        sides = np.sign(point - centre)
        if flip:
            sides[2] *= -1
        np.testing.assert_array_equal(np.array(found) > 15.5, sides > 0)


@pytest.mark.parametrize("mode", ["cube", "resize"])
def test_the_inverse_leads_back_to_the_scan(mode: str) -> None:
    values = chest()
    # smooth enough to survive resampling to and fro
    smooth = smooth_for_spacing(torch.from_numpy(values)[None], (1, 1, 1), (5, 5, 5))
    ct = MetaTensor(smooth, affine=AFFINES["LPS"])
    transform = chain(VolumeGrid(72, 420), mode)
    back = transform.inverse({"label": transform({"label": ct})["label"]})["label"]
    assert back.shape == ct.shape
    np.testing.assert_allclose(back.affine, ct.affine)
    assert (back - smooth).abs().mean() < 8
    assert back.min() >= -1024


def test_outside_the_scan_is_air_and_not_water() -> None:
    ct = MetaTensor(torch.full((1, 20, 20, 20), 40.0), affine=np.diag([5.0, 5, 5, 1]))
    sample = ResampleToGrid(VolumeGrid(40, 300))(ct)
    assert sample[0, 0, 0, 0] == -1024
    assert sample[0, 20, 20, 20] == pytest.approx(40, abs=0.1)


def test_downsampling_is_anti_aliased() -> None:
    stripes = torch.full((1, 64, 64, 64), -1000.0)
    stripes[:, ::2] = 1000
    sample = ResampleToGrid(VolumeGrid(8, 64))(MetaTensor(stripes, affine=np.eye(4)))
    assert sample[0, 2:6, 2:6, 2:6].abs().max() < 30, "stripes finer than the grid must average out"


def test_window_is_clipped_and_invertible() -> None:
    ct = MetaTensor(torch.tensor([-3000.0, -1024, 0, 3071, 9000]).reshape(1, 5, 1, 1))
    transform = Compose([WindowHUd("label")])
    scaled = transform({"label": ct})["label"]
    assert scaled.min() == 0 and scaled.max() == 1
    hu = transform.inverse({"label": scaled})["label"]
    np.testing.assert_allclose(hu.flatten(), [-1024, -1024, 0, 3071, 3071], atol=1e-3)
    np.testing.assert_allclose(to_hu(scaled.as_tensor()).flatten(), hu.flatten(), atol=1e-3)


def test_every_format_lands_at_the_same_place(tmp_path: Path) -> None:
    values = chest().round()
    affine = AFFINES["LPS"]
    grid = VolumeGrid(24, 300)
    files = [
        write_nifti(tmp_path / "a.nii.gz", values, affine),
        write_nifti(tmp_path / "a.nii", values, affine),
        write_with_itk(tmp_path / "a.nrrd", values, affine),
        write_with_itk(tmp_path / "a.mha", values, affine),
        write_dicom_series(tmp_path / "series", values, affine),
    ]
    samples = [chain(grid, load=True)({"label": str(path)})["label"] for path in files]
    for path, sample in zip(files[1:], samples[1:], strict=True):
        np.testing.assert_allclose(sample, samples[0], atol=1e-5, err_msg=str(path))
        np.testing.assert_allclose(sample.affine, samples[0].affine, atol=1e-4, err_msg=str(path))


def test_only_geometry_is_kept_of_a_header(tmp_path: Path) -> None:
    ct = LoadCT()(write_dicom_series(tmp_path / "series", chest().round(), AFFINES["LPS"]))
    assert "secret" not in str(ct.meta).lower()
    assert ct.meta["isocentre"] == pytest.approx(bounding_box_centre(ct).tolist())


def test_a_given_isocentre_is_used(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "ct.nii.gz", chest(), AFFINES["RAS"])
    sample = chain(VolumeGrid(16, 200), load=True)({"label": str(path), "isocentre": [1.0, 2.0, 3.0]})["label"]
    np.testing.assert_allclose(sample.affine, VolumeGrid(16, 200).affine([1.0, 2.0, 3.0]))


def _truncated(path: Path) -> Path:
    whole = write_nifti(path, chest())
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return whole


def _two_series(folder: Path) -> Path:
    write_dicom_series(folder, chest().round(), AFFINES["LPS"], "1")
    write_dicom_series(folder / "b", chest().round(), AFFINES["LPS"], "2")
    for file in (folder / "b").iterdir():
        file.rename(folder / f"b{file.name}")
    (folder / "b").rmdir()
    return folder


def _text(path: Path) -> Path:
    path.write_text("not an image")
    return path


def _nan(path: Path) -> Path:
    values = chest()
    values[3, 4, 5] = np.nan
    return write_nifti(path, values)


def _empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "none.nii.gz", "does not exist"),
        (lambda p: _truncated(p / "t.nii.gz"), "cannot be read"),
        (lambda p: _text(p / "t.nii.gz"), "cannot be read"),
        (lambda p: _text(p / "t.nrrd"), "cannot be read"),
        (lambda p: (p / "e.nii.gz").touch() or p / "e.nii.gz", "empty file"),
        (lambda p: write_nifti(p / "f.nii.gz", np.zeros((9, 9, 9, 3), np.float32)), "4 dimensions"),
        (lambda p: write_nifti(p / "f.nii.gz", np.zeros((9, 9), np.float32)), "2 dimensions"),
        (lambda p: write_nifti(p / "f.nii.gz", chest()[:, :, :1]), "only 1 slice"),
        (lambda p: write_nifti(p / "f.nii.gz", (chest() + 1000) / 8), "rescale slope and intercept"),
        (lambda p: write_nifti(p / "f.nii.gz", np.full((9, 9, 9), -1000, np.float32)), "same value"),
        (lambda p: _nan(p / "f.nii.gz"), "NaN"),
        (lambda p: write_nifti(p / "f.nii.gz", chest(), np.diag([900.0, 900, 900, 1])), "units"),
        (lambda p: _empty_folder(p / "d"), "no DICOM series"),
        (lambda p: _two_series(p / "d"), "2 DICOM series"),
    ],
)
def test_what_is_no_ct_is_refused_in_one_sentence(tmp_path: Path, make, says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        LoadCT()(make(tmp_path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_corrupt_gzip_is_refused(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "c.nii.gz", chest())
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        LoadCT()(path)


@pytest.mark.parametrize("step", [0.0, np.nan, np.inf])
def test_an_affine_without_volume_is_refused(step: float) -> None:
    ct = MetaTensor(torch.from_numpy(chest())[None], affine=np.diag([10.0, 10, step, 1]))
    with pytest.raises(InputError, match="affine"):
        check_ct(ct, "CT")


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="cube, resize"):
        ResampleToGrid(VolumeGrid(8), "stretch")
