import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.radiographs.identity import check_view_position, turn_upright
from drr2ct.transforms.validation import InputError

LETTERS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
IMAGE = torch.arange(12.0).reshape(3, 4)


def view(angle):
    return BiplanarGeometry.from_angles(VolumeGrid(16), [angle], ["v"], detector_size=24).views[0]


@given(angle=st.sampled_from([0.0, 90.0, 180.0, -90.0, 20.0, -75.0]), first=st.sampled_from("RLAPHF"), data=st.data())
def test_an_image_is_turned_as_its_patient_orientation_says(angle, first, data):
    """After turning, the columns run along the detector's axis and the rows to the feet, whatever the header said."""
    second = data.draw(st.sampled_from([c for c in "RLAPHF" if abs(np.dot(LETTERS[c], LETTERS[first])) == 0]))
    metadata = {"filename_or_obj": "a.dcm", "patient_orientation": (first, second)}
    u, v = view(angle).detector_axes
    in_plane = {c: (np.dot(LETTERS[c], u), np.dot(LETTERS[c], v)) for c in (first, second)}
    fits = sorted(float(max(np.abs(x))) for x in in_plane.values())[0] > 0.5 and "HF".count(first) != "HF".count(second)
    if not fits:
        with pytest.raises(InputError, match="Patient Orientation"):
            turn_upright(IMAGE, metadata, view(angle))
        return
    # the patient direction of each pixel, along both axes, as the header states it
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    places = columns[..., None] * torch.tensor(LETTERS[first]) + rows[..., None] * torch.tensor(LETTERS[second])
    turned = torch.stack([turn_upright(places[..., axis], metadata, view(angle))[0] for axis in range(3)], dim=-1)
    along_columns = (turned[:, 1:] - turned[:, :-1]).mean(dim=(0, 1)).numpy()
    along_rows = (turned[1:] - turned[:-1]).mean(dim=(0, 1)).numpy()
    assert np.dot(along_columns, u) > 0.5
    assert np.dot(along_rows, v) > 0.5


def test_what_was_turned_is_said():
    metadata = {"filename_or_obj": "x/a.dcm", "patient_orientation": ("R", "H")}
    image, notes = turn_upright(IMAGE, metadata, view(0.0))
    torch.testing.assert_close(image, IMAGE.flip((0, 1)))
    assert notes == ["a.dcm was mirrored and turned upside down, because its Patient Orientation is R\\H."]
    assert turn_upright(IMAGE, {**metadata, "patient_orientation": ("L", "F")}, view(0.0))[1] == []
    assert turn_upright(IMAGE, {**metadata, "patient_orientation": ("LE", "?")}, view(0.0))[1] == []


@pytest.mark.parametrize(
    ("position", "laterality", "angle", "mirrored"),
    [
        ("AP", None, 0.0, False),
        ("RL", None, 90.0, True),
        ("LAT", "R", 90.0, True),
        ("LL", None, -90.0, True),
        ("PA", None, 180.0, True),
    ],
)
def test_the_opposite_side_is_refused_unless_asked_for(position, laterality, angle, mirrored):
    metadata = {"filename_or_obj": "a.dcm", "view_position": position, "laterality": laterality}
    with pytest.raises(InputError, match="--opposite-side"):
        turn_upright(IMAGE, metadata, view(angle))
    image, notes = turn_upright(IMAGE, metadata, view(angle), opposite_side=True)
    torch.testing.assert_close(image, IMAGE.flip(1) if mirrored else IMAGE)
    assert "opposite side" in notes[0] and len(notes) == 2
    # a stated orientation needs no guess
    facing = {0.0: "L", 180.0: "R", 90.0: "P", -90.0: "A"}[angle]
    image, notes = turn_upright(
        IMAGE, {**metadata, "patient_orientation": (facing, "F")}, view(angle), opposite_side=True
    )
    torch.testing.assert_close(image, IMAGE)
    assert len(notes) == 1


def test_another_view_is_refused_even_if_the_opposite_side_is_accepted():
    for position, angle in (("LL", 0.0), ("AP", 90.0)):
        with pytest.raises(InputError, match="order of the files"):
            check_view_position({"filename_or_obj": "a", "view_position": position}, view(angle), opposite_side=True)
