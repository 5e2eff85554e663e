import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from drr2ct.transforms.detector import Acquisition, pixel_size_on_detector, place_on_detector
from drr2ct.transforms.geometry import View
from drr2ct.transforms.validation import InputError

VIEW = View("pa", 0.0, 1500.0, 1800.0, (48, 48), 10.0)
DICOM = {"filename_or_obj": "a.dcm", "format": "DICOM"}
KNOWN = {**DICOM, "pixel_spacing_mm": (0.5, 0.5), "pixel_spacing_plane": "detector"}


@pytest.mark.parametrize("shape", [(96, 96), (150, 150), (48, 48), (31, 31), (200, 100)])
def test_an_image_that_covers_the_detector_is_interpolated_as_torch_does(shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    pixel = (480 / shape[0], 480 / shape[1])
    expected = F.interpolate(image[None, None], size=(48, 48), mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(place_on_detector(image, VIEW, pixel), expected, rtol=0, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(
    sid=st.floats(900, 2500),
    behind=st.floats(100, 500),
    pitch=st.floats(0.6, 1.5),
    point=st.tuples(st.floats(-45, 45), st.floats(-60, 60)),
)
def test_what_lies_at_the_isocentre_is_found_where_the_geometry_projects_it(sid, behind, pitch, point):
    """A blob in the isocentre's plane, seen by another X-ray unit, lands on the pixel of the training's geometry."""
    unit = View("pa", 0.0, sid, sid + behind, (512, 430), pitch)
    place = np.array([[point[0], 0.0, point[1]]])
    column, row = unit.project(place)[0]
    width = 12 / pitch
    assume(4 * width < column < 429 - 4 * width and 4 * width < row < 511 - 4 * width)
    rows, columns = torch.meshgrid(torch.arange(512.0), torch.arange(430.0), indexing="ij")
    image = torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    metadata = {
        **DICOM,
        "pixel_spacing_mm": (pitch, pitch),
        "pixel_spacing_plane": "detector",
        "source_to_detector_mm": sid + behind,
        "source_to_isocentre_mm": sid,
    }
    size, notes = pixel_size_on_detector(metadata, VIEW, (512, 430), Acquisition())
    assert notes == []
    placed = place_on_detector(image, VIEW, size)
    mass = placed / placed.sum()
    found = [
        float((mass.sum(dim=0) * torch.arange(48.0)).sum()),
        float((mass.sum(dim=1) * torch.arange(48.0)).sum()),
    ]
    np.testing.assert_allclose(found, VIEW.project(place)[0], atol=0.2)


def test_resampling_leaves_no_stripes_and_the_outside_is_air():
    image = torch.ones(480, 240) + torch.tensor([0.9, -0.9]).repeat(120)
    placed = place_on_detector(image, VIEW, (1.0, 1.0))
    torch.testing.assert_close(placed[:, 13:35], torch.ones(48, 22), rtol=0, atol=0.01)
    assert placed[:, :12].abs().max() == 0 and placed[:, 36:].abs().max() == 0


def test_without_a_pitch_the_height_spans_the_detector():
    metadata = {"filename_or_obj": "folder/a.png", "format": "PNG"}
    size, notes = pixel_size_on_detector(metadata, VIEW, (960, 700), Acquisition())
    assert size == (0.5, 0.5)
    assert len(notes) == 1 and "a.png does not state its pixel pitch" in notes[0] and "480 mm" in notes[0]
    nifti = {"filename_or_obj": "a.nii", "format": "NIfTI", "pixel_spacing_mm": (1.0, 1.0)}
    size, notes = pixel_size_on_detector({**nifti, "pixel_spacing_plane": "unstated"}, VIEW, (960, 700), Acquisition())
    assert size == (0.5, 0.5) and "does not state its pixel pitch" in notes[0]


@pytest.mark.parametrize(
    ("more", "stated", "scale", "says"),
    [
        # magnification of the geometry is 1.2
        ({"source_to_detector_mm": 1000.0, "source_to_isocentre_mm": 800.0}, {}, 0.8 * 1.2, []),
        ({"source_to_detector_mm": 1000.0}, {}, 0.7 * 1.2, ["300 mm before the detector (1000 mm"]),
        ({"source_to_isocentre_mm": 900.0}, {}, 0.75 * 1.2, ["taken to be 1200 mm, 300 mm behind"]),
        ({}, {}, 1.0, ["does not state its distances: taken to be those of view pa"]),
        ({}, {"source_to_detector_mm": 1000.0, "source_to_isocentre_mm": 800.0}, 0.8 * 1.2, []),
        ({"source_to_detector_mm": 1500.0}, {"source_to_detector_mm": 1000.0}, 0.7 * 1.2, ["1000 mm from"]),
        ({"source_to_detector_mm": 1000.0, "source_to_isocentre_mm": 1000.0}, {}, 0.7 * 1.2, ["cannot be", "300 mm"]),
        ({"pixel_spacing_plane": "patient"}, {}, 1.2, ["corrected to the patient"]),
        ({"pixel_spacing_plane": "unstated"}, {}, 1.0, ["not in which plane", "does not state its distances"]),
        ({}, {"pixel_spacing_mm": 1.5}, 3.0, ["does not state its distances"]),
    ],
)
def test_distances(more, stated, scale, says):
    size, notes = pixel_size_on_detector({**KNOWN, **more}, VIEW, (960, 960), Acquisition(**stated))
    assert size == pytest.approx((0.5 * scale, 0.5 * scale))
    assert len(notes) == len(says)
    for note, part in zip(notes, says, strict=True):
        assert part in note and note.endswith(".")


def test_what_cannot_be():
    with pytest.raises(InputError, match="10 mm on view pa"):
        pixel_size_on_detector({**KNOWN, "pixel_spacing_mm": (0.01, 0.01)}, VIEW, (960, 960), Acquisition())
    with pytest.raises(InputError, match="pixel_spacing_mm of a radiograph is 0"):
        Acquisition(0.0)
    with pytest.raises(InputError, match="must be the farther one"):
        pixel_size_on_detector(KNOWN, VIEW, (960, 960), Acquisition(None, 1000.0, 1200.0))
