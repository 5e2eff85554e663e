"""Volume files as other programs read them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from drr2ct.pipeline.running.provenance import DISCLAIMER
from drr2ct.pipeline.volumes.files import VOLUME_ENDINGS, write_volume
from drr2ct.transforms import LoadCT, VolumeGrid
from drr2ct.transforms.validation import InputError

SIZE = 12


def eight_marks(affine: np.ndarray) -> tuple[MetaTensor, dict[tuple[int, int, int], int]]:
    """A volume of air with one voxel of its own HU in each octant, off centre, each at another distance.

    An edge differs too, so that no slice has one value all over, as lost ones have.
    """
    volume = torch.full((1, SIZE, SIZE, SIZE), -1000.0)
    volume[0, 0, 0] = -990
    marks = {}
    for number, octant in enumerate(np.ndindex(2, 2, 2)):
        index = tuple(2 + 6 * o + (number + a) % 3 for a, o in enumerate(octant))
        marks[index] = 100 * number + 50
        volume[0][index] = marks[index]
    return MetaTensor(volume, affine=torch.from_numpy(affine)), marks


def lps_of(affine: np.ndarray, index: tuple[int, int, int]) -> list[float]:
    return (np.array([-1, -1, 1]) * (affine @ [*index, 1])[:3]).tolist()


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
@pytest.mark.parametrize("flip", [True, False])
def test_every_format_has_each_voxel_at_its_place(tmp_path: Path, ending: str, flip: bool) -> None:
    affine = VolumeGrid(SIZE, 120.0, flip).affine((5.0, -7.0, 31.0))
    volume, marks = eight_marks(affine)
    path = write_volume(tmp_path / f"ct{ending}", volume)
    image = sitk.ReadImage(str(path))
    assert image.GetPixelIDValue() == sitk.sitkInt16
    for index, hu in marks.items():
        assert image[image.TransformPhysicalPointToIndex(lps_of(affine, index))] == hu
    ours = LoadCT()(path)
    for index, hu in marks.items():
        there = np.rint(np.linalg.solve(np.asarray(ours.affine), affine @ [*index, 1]))[:3].astype(int)
        assert ours[0][tuple(there)] == hu
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"ct{ending}"], "no temporary file stays"


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(VOLUME_ENDINGS),
    st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3),
    st.lists(st.floats(0.4, 5.0), min_size=3, max_size=3),
)
@example(".nrrd", [0.0, 4.199224960924942e-296, 0.0], [1.0, 1.0, 0.40625])  # next to nothing
def test_oblique_voxels_of_any_size(tmp_path_factory, ending: str, turns: list[float], spacing: list[float]) -> None:
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(turns).as_matrix() * spacing
    affine[:3, 3] = [10, -20, 30]
    volume, marks = eight_marks(affine)
    path = write_volume(tmp_path_factory.mktemp("v") / f"ct{ending}", volume)
    image = sitk.ReadImage(str(path))
    for index, hu in marks.items():
        assert image[image.TransformPhysicalPointToIndex(lps_of(affine, index))] == hu


def test_values_are_rounded_and_kept_in_range(tmp_path: Path) -> None:
    volume = torch.tensor([-1024.4, -0.6, 0.4, 3071.0, 1e6]).reshape(1, 5, 1, 1)
    path = write_volume(tmp_path / "v.nii.gz", MetaTensor(volume, affine=torch.eye(4)))
    assert np.asarray(nib.load(path).dataobj).ravel().tolist() == [-1024, -1, 0, 3071, 32767]


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_every_file_says_what_it_is_not_for(tmp_path: Path, ending: str) -> None:
    volume, _ = eight_marks(np.eye(4))
    path = write_volume(tmp_path / f"ct{ending}", volume)
    if "nii" in ending:
        assert nib.load(path).header["descrip"].tobytes().rstrip(b"\0").decode() == DISCLAIMER
    else:
        assert DISCLAIMER.encode() in path.read_bytes()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    volume, _ = eight_marks(np.eye(4))
    with pytest.raises(InputError, match=r"must end in \.nii\.gz"):
        write_volume(tmp_path / "ct.img", volume)
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    with pytest.raises(InputError, match="not perpendicular"):
        write_volume(tmp_path / "ct.nrrd", eight_marks(sheared)[0])
    assert not list(tmp_path.iterdir())
