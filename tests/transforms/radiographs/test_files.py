"""What a file is, its content says, not its name."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
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
    with pytest.raises(InputError, match="is no PNG, JPEG, TIFF, DICOM, NIfTI, NRRD or MetaImage file; export it as"):
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


@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize("slices", [False, True])
def test_nrrd_and_metaimage_are_read_as_the_nifti_that_itk_makes_of_them(
    tmp_path: Path, suffix: str, slices: bool
) -> None:
    image = sitk.GetImageFromArray(GREY[None] if slices else GREY)
    image.SetSpacing((0.2, 0.3, 1.0)[: image.GetDimension()])
    for name in (f"a.{suffix}", "b.nii"):
        sitk.WriteImage(image, str(tmp_path / name))
    (read, facts), (expected, wanted) = (read_radiograph(tmp_path / name) for name in (f"a.{suffix}", "b.nii"))
    torch.testing.assert_close(read, expected)
    assert facts["pixel_spacing_mm"] == pytest.approx(wanted["pixel_spacing_mm"]) == (0.3, 0.2)
    assert facts["pixel_spacing_plane"] == "detector" and facts["nifti_axes"] == wanted["nifti_axes"] == "LP"


def test_an_nrrd_that_is_cut_or_a_volume_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(path))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"is not a readable NRRD image \(.*\); export it again\.$"):
        read_radiograph(path)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((20, 30, 40), np.int16)), str(path))
    with pytest.raises(InputError, match="is a volume of 40×30×20 voxels"):
        read_radiograph(path)
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(path))
    content = path.read_bytes()
    assert content.count(b"space dimension: 2\n") == 1
    path.write_bytes(content.replace(b"space dimension: 2\n", b'space dimension: 2\nspace units: "cm" "cm"\n'))
    with pytest.raises(InputError, match=r"a\.nrrd has lengths in cm; write it again in millimetres\.$"):
        read_radiograph(path)
    assert capfd.readouterr() == ("", "")
