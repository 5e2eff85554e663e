"""NIfTI files of radiographs as other tools write them: where the patient lies, units, planes and colours."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.radiographs.orientation import Orientation, turn_of_axes
from drr2ct.transforms.radiographs.scale import read_radiograph
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.validation import InputError
from tests.transforms.drawn_films import FIELD, GEOMETRY, PITCH, line_integrals, statistics

SIDE = "the patient's right is taken to be on the image's left"
PAIR = [np.asarray(image[FIELD]).T for image in line_integrals()]
"""(columns, rows), as NIfTI has them."""


def load(folder, arrays, affines, unit="mm", fit="pitch"):
    files = []
    for index, (array, affine) in enumerate(zip(arrays, affines, strict=True)):
        image = nib.Nifti1Image(np.ascontiguousarray(array, dtype=np.float32), affine)
        image.header.set_xyzt_units(unit)
        if affine is None:  # nothing is stated but the pitch
            image.header["pixdim"][1:3] = PITCH
        files.append(folder / f"{index}.nii.gz")
        nib.save(image, files[-1])
    return LoadRadiographsd("image", GEOMETRY, statistics=statistics(), fit=fit)({"image": files})


def plane(x, y, z=1.0):
    return np.diag([x * PITCH, y * PITCH, z * PITCH, 1.0])


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    return load(tmp_path_factory.mktemp("right"), PAIR, [plane(-1, -1)] * 2)["image"]


def row_major(x, y):
    return plane(x, y)[:, [1, 0, 2, 3]]


@pytest.mark.parametrize(
    ("stored", "affine", "said"),
    [
        (lambda a: a[::-1], plane(1, -1), "0.nii.gz was mirrored, because its affine's axes are RP"),
        (lambda a: a.T, row_major(-1, -1), "0.nii.gz was turned by 90° and mirrored, because its affine's axes are PL"),
        (lambda a: a[::-1, ::-1], plane(1, 1), SIDE),  # as nibabel's as_closest_canonical stores it
        (lambda a: a, plane(1, 1), "its affine's axes are RA, which says nothing"),  # an array and its pitch
        (lambda a: a.T, plane(1, 1), "rows and columns were exchanged rather than rotated"),
        (lambda a: a[:, ::-1], plane(-1, 1), "rows were reversed rather than rotated"),
        (lambda a: a[:, ::-1], None, "rows were reversed rather than rotated"),  # as dcm2niix stores a DX
        (lambda a: a, None, SIDE),
    ],
)
def test_no_patient_is_mirrored_whatever_tool_wrote_the_file(tmp_path, right, stored, affine, said):
    found = load(tmp_path, [stored(array) for array in PAIR], [affine] * 2)
    torch.testing.assert_close(found["image"].as_tensor(), right.as_tensor(), atol=1e-3, rtol=0)
    assert said in found["assumptions"]
    by_affine = "because its affine" in found["assumptions"]
    assert (SIDE in found["assumptions"]) != by_affine


def test_slices_in_their_own_planes_are_read_as_their_affines_say(tmp_path, right):
    frontal, lateral = (array[:, ::-1] for array in PAIR)  # columns to the left and to the back, rows to the head
    found = load(tmp_path, [frontal[::-1, None], lateral[None]], [plane(1, 1), np.diag([9.0, -PITCH, PITCH, 1.0])])
    torch.testing.assert_close(found["image"].as_tensor(), right.as_tensor(), atol=1e-4, rtol=0)
    assert (
        "0.nii.gz was mirrored and turned upside down, because its NIfTI orientation is R\\H." in found["assumptions"]
    )
    assert SIDE not in found["assumptions"]
    with pytest.raises(InputError, match=r"has NIfTI orientation P\\H, which view pa .* cannot have"):
        load(tmp_path, [lateral[None], frontal[:, None]], [plane(-1, -1)] * 2)


def test_forms_that_contradict_each_other_are_not_followed(tmp_path, right):
    for index, array in enumerate(PAIR):
        image = nib.Nifti1Image(np.asarray(array), plane(-1, -1))
        image.set_qform(plane(1, -1, -1), code=1)
        nib.save(image, tmp_path / f"{index}.nii")
    files = [tmp_path / "0.nii", tmp_path / "1.nii"]
    found = LoadRadiographsd("image", GEOMETRY, statistics=statistics(), fit="pitch")({"image": files})
    torch.testing.assert_close(found["image"].as_tensor(), right.as_tensor())
    assert "0.nii has a qform and an sform that name other directions" in found["assumptions"]


def test_files_of_ours_are_read_as_ever_and_those_that_were_reoriented_as_they_were(tmp_path):
    files = [tmp_path / "0.nii", tmp_path / "1.nii"]
    for file, array in zip(files, PAIR, strict=True):
        write_radiograph(file, torch.from_numpy(array.T), pitch_mm=PITCH)
    read = LoadRadiographsd("image", GEOMETRY, fit="pitch")
    ours = read({"image": files})
    assert SIDE not in ours["assumptions"]
    for file in files:
        image = nib.load(file)
        with_slice = nib.Nifti1Image(np.array(image.dataobj)[..., None], image.affine, image.header)
        nib.save(nib.as_closest_canonical(with_slice), file)
    again = read({"image": files})  # without statistics there are no looks
    torch.testing.assert_close(again["image"].as_tensor(), ours["image"].as_tensor())
    assert "0.nii was turned by 180°, because its affine's axes are RA" in again["assumptions"]


def test_turns_of_axes_are_those_that_bring_them_back():
    assert turn_of_axes("", False) == turn_of_axes("LP", False) == turn_of_axes("RA", False) == Orientation()
    for axes in ("LP", "RP", "LA", "RA", "PL", "PR", "AL", "AR"):
        places = np.stack(np.meshgrid(range(3), range(3), indexing="ij"))  # to the left and back
        affine = np.zeros((2, 2))
        for index, letter in enumerate(axes):
            affine[int(letter in "AP"), index] = -1 if letter in "RA" else 1
        stored = np.einsum("wi,icr->wcr", affine, places)
        turned = np.stack([turn_of_axes(axes, True).turn(torch.from_numpy(place).T).T.numpy() for place in stored])
        assert (np.diff(turned[0], axis=0) == 1).all() and (np.diff(turned[1], axis=1) == 1).all(), axes


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3)])
def test_metres_and_microns_are_millimetres(tmp_path, right, unit, factor):
    found = load(tmp_path, PAIR, [np.diag([-PITCH * factor, -PITCH * factor, 1, 1])] * 2, unit)
    torch.testing.assert_close(found["image"].as_tensor(), right.as_tensor(), atol=1e-3, rtol=0)
    assert f"0.nii.gz: pixel pitch converted from {unit}s to millimetres." in found["assumptions"]


def test_a_pitch_of_1_mm_counts_as_none_and_that_is_said(tmp_path):
    found = load(tmp_path, PAIR, [np.diag([-1.0, -1, 1, 1])] * 2)
    said = "0.nii.gz states a pitch of exactly 1 mm, which writers fill in that know none: it was not used"
    assert said in found["assumptions"]
    assert said not in load(tmp_path, PAIR, [plane(-1, -1)] * 2)["assumptions"]


def coloured(path: Path, channels, names="RGB"):
    pixels = np.zeros(channels[0].shape, dtype=[(name, "u1") for name in names])
    for name, channel in zip(names, channels, strict=True):
        pixels[name] = channel
    nib.save(nib.Nifti1Image(pixels, plane(-1, -1)), path)
    return path


def test_grey_kept_as_colour_is_grey(tmp_path):
    grey = (np.arange(48).reshape(8, 6) * 5).astype(np.uint8)
    image, facts = read_radiograph(coloured(tmp_path / "a.nii", [grey] * 3))
    torch.testing.assert_close(image, torch.from_numpy(grey.T / 255 * 8.0).float())
    assert "a.nii was read as grey: its colour channels are equal." in facts["assumptions"]
    four = read_radiograph(coloured(tmp_path / "b.nii", [grey] * 3 + [grey], "RGBA"))
    torch.testing.assert_close(four[0], image)
    assert "its alpha channel was ignored" in four[1]["assumptions"][0]
    with pytest.raises(InputError, match="has colours in"):
        read_radiograph(coloured(tmp_path / "c.nii", [grey, grey // 2, grey]))


def test_a_plane_of_a_film_that_looks_wrong_is_doubted_by_its_own_name(tmp_path):
    coronal = np.array([[-PITCH, 0, 0, 0], [0, 0, 1, 0], [0, -PITCH, 0, 0], [0, 0, 0, 1]])
    for array, doubted in ((PAIR[0], False), (PAIR[0][:, ::-1], True)):
        found = load(tmp_path, [array[:, :, None], PAIR[1]], [coronal, plane(-1, -1)])["warnings"]
        assert ("0.nii.gz lies as its NIfTI orientation says, but looks more like" in found) == doubted
        assert "Patient Orientation" not in found
