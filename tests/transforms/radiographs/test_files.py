"""What a file is, its content says, not its name."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image

from drr2ct.transforms.radiographs.scale import read_radiograph
from drr2ct.transforms.validation import InputError
from tests.transforms.radiographs.test_dicom import EXPECTED, RAMP, notes_of
from tests.transforms.radiographs.test_loading import save_dicom

GREY = (RAMP // 16).astype(np.uint8)
NAMES = ("a.dcm", "a.DICOM", "a.nii", "a.nii.gz", "a.tif", "a.png", "a")


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_one_by_any_name(tmp_path: Path, name: str) -> None:
    Image.fromarray(GREY).save(tmp_path / "sound.png")
    expected, _ = read_radiograph(tmp_path / "sound.png")
    Image.fromarray(GREY).save(tmp_path / name, format="PNG")
    torch.testing.assert_close(read_radiograph(tmp_path / name)[0], expected)
    tifffile.imwrite(tmp_path / name, GREY)
    torch.testing.assert_close(read_radiograph(tmp_path / name)[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_dicom_is_dicom_by_any_name(tmp_path: Path, name: str) -> None:
    torch.testing.assert_close(read_radiograph(save_dicom(tmp_path / name, RAMP, 12))[0], EXPECTED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_a_data_set_without_preamble_and_meta_header(tmp_path: Path, name: str, implicit: bool, little: bool) -> None:
    dataset = pydicom.dcmread(save_dicom(tmp_path / "whole.dcm", RAMP, 12))
    dataset.PixelData = RAMP.astype("<u2" if little else ">u2").tobytes()
    bare = pydicom.Dataset()
    bare.update(dataset)
    bare.save_as(tmp_path / name, implicit_vr=implicit, little_endian=little)
    assert (tmp_path / name).read_bytes()[128:132] != b"DICM"
    torch.testing.assert_close(read_radiograph(tmp_path / name)[0], EXPECTED)
    assert f"{name} has no DICOM meta header: its pixels are taken to be uncompressed" in notes_of(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
    with pytest.raises(InputError, match="damaged or incomplete"):
        read_radiograph(tmp_path / name)


@pytest.mark.parametrize("name", ["a.dcm", "a.png", "a"])
@pytest.mark.parametrize("text", [b"no picture", b"\x08\0 is not one either", b"\0" * 400, b"\x1f\x8b damaged"])
def test_what_is_none_of_them_is_one_sentence(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match="is not a PNG, JPEG, TIFF, DICOM or NIfTI image; export it as one"):
        read_radiograph(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img2", "a.png", "a"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_nifti_is_one_by_any_name_packed_or_not(tmp_path: Path, name: str, kind: type, pack: type) -> None:
    grey = GREY.T.astype(np.float32)
    (tmp_path / name).write_bytes(pack(kind(grey, np.eye(4)).to_bytes()))
    image, facts = read_radiograph(tmp_path / name, "display")
    assert facts["format"] == "NIfTI" and image.shape == GREY.shape
    assert np.corrcoef(image.numpy().ravel(), GREY.ravel())[0, 1] > 0.999
