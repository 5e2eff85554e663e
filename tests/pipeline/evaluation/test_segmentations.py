"""Masks from files, compared structure by structure."""

import gzip

import numpy as np
import pytest

from drr2ct.pipeline.evaluation.segmentations import compare_segmentations
from drr2ct.transforms.validation import InputError
from tests.files import write_nifti


def test_segmentations_of_files(tmp_path, caplog):
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    for name in ("heart", "liver"):
        write_nifti(tmp_path / "true/p" / f"{name}.nii.gz", mask)
    for name in ("heart", "spleen"):
        write_nifti(tmp_path / f"made/p/{name}.nii.gz", np.roll(mask, 1, axis=0))
    heart, liver = compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    assert heart["dice"] == pytest.approx(7 / 8) and heart["hd95"] == pytest.approx(10.0)
    assert liver["dice"] == 0.0 and (tmp_path / "out.csv").read_text().splitlines()[2] == "p,liver,0,0,"
    assert "counted as empty: p/liver.nii.gz" in caplog.text and "left out: p/spleen.nii.gz" in caplog.text


def test_a_true_mask_on_other_voxels_is_put_on_those_of_the_prediction(tmp_path):
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[4:12, 4:10, 6:12] = 1
    affine = np.diag([10.0, 10, 10, 1])
    # the same voxels, counted from the other end of x, and cropped in y
    flipped = affine @ np.array([[-1, 0, 0, 15], [0, 1, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "true/p/heart.nii.gz", mask[::-1, 2:].copy(), flipped)
    write_nifti(tmp_path / "made/p/heart.nii.gz", np.roll(mask, 1, axis=2), affine)
    (row,) = compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    assert row["dice"] == pytest.approx(5 / 6) and row["hd95"] == pytest.approx(10.0)
    # twice as fine a truth: each of its voxel centres lies within one of the prediction
    half = np.diag([5.0, 5, 5, 1])
    half[:3, 3] = -2.5
    fine = mask.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    write_nifti(tmp_path / "true/p/heart.nii.gz", fine, half)
    write_nifti(tmp_path / "made/p/heart.nii.gz", mask, affine)
    (row,) = compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    assert row["dice"] == row["nsd"] == 1.0 and row["hd95"] == 0.0


def test_masks_that_cannot_be_compared_are_refused(tmp_path):
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:6, 2:6, 2:6] = 1
    far = np.diag([10.0, 10, 10, 1])
    far[:3, 3] = 500
    write_nifti(tmp_path / "true/p/heart.nii.gz", mask)
    write_nifti(tmp_path / "made/p/heart.nii.gz", mask, far)
    with pytest.raises(InputError, match="do not overlap in patient space"):
        compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    write_nifti(tmp_path / "made/p/heart.nii.gz", mask + 2 * np.roll(mask, 2, axis=0))
    with pytest.raises(InputError, match="values from 0 to 3; 0 and one other are needed"):
        compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    with pytest.raises(InputError, match="holds none of the masks of"):
        compare_segmentations(tmp_path / "elsewhere", tmp_path / "true", tmp_path / "out.csv")
    made = tmp_path / "made/p/heart.nii.gz"
    whole = gzip.decompress((tmp_path / "true/p/heart.nii.gz").read_bytes())
    of_no_type = bytearray(whole)
    of_no_type[70:72] = b"\x0f\x27"
    for content in (b"no mask", b"", gzip.compress(whole)[:-20], gzip.compress(whole[:500]), gzip.compress(of_no_type)):
        made.write_bytes(content)
        with pytest.raises(InputError, match=rf"^mask {made} cannot be read \([^\n]+\); export it again\.$"):
            compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    write_nifti(made, np.zeros((8, 8, 8), [(colour, np.uint8) for colour in "RGB"]))
    with pytest.raises(InputError, match="holds colours or pairs of numbers"):
        compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    made.write_bytes(whole)  # unpacked, under a name that says otherwise
    assert compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")[0]["dice"] == 1
    with pytest.raises(InputError, match="holds no <patient>"):
        compare_segmentations(tmp_path / "made", tmp_path / "nowhere", tmp_path / "out.csv")
