"""DICOM radiographs as consoles and archives write them: what they say, what they leave out, and what cannot be."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    HTJ2KLossless,
)

from drr2ct.transforms.detector import Acquisition, half_chest_mm, pixel_size_on_detector
from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
from drr2ct.transforms.radiographs.dicom import decode_dicom
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.radiographs.pixels import Reading
from drr2ct.transforms.radiographs.scale import DISPLAY_MAXIMUM, read_radiograph
from drr2ct.transforms.validation import InputError
from tests.transforms.radiographs.test_loading import save_dicom

pytestmark = pytest.mark.filterwarnings("ignore:.*for VR CS")  # headers as they come

RAMP = (np.arange(40)[:, None] * 90 + np.arange(50) * 10).astype(np.uint16)  # 0…4000, differs by row and column
EXPECTED = torch.from_numpy(RAMP.astype(np.float32)) / 4095 * DISPLAY_MAXIMUM


def notes_of(path: Path, **options: Any) -> str:
    return " ".join(read_radiograph(path, **options)[1]["assumptions"])


@pytest.mark.parametrize(
    ("tags", "intensity"),
    [
        ({"PixelIntensityRelationship": "LIN"}, "transmission"),
        ({"PixelIntensityRelationship": "LIN", "PresentationIntentType": "FOR PROCESSING"}, "transmission"),
        ({"PixelIntensityRelationship": "LIN", "PresentationIntentType": "FOR PRESENTATION"}, "display"),
        ({"PixelIntensityRelationship": "LOG", "PresentationIntentType": "FOR PROCESSING"}, "display"),
        ({"PixelIntensityRelationship": "DISP"}, "display"),
        ({"WindowCenter": 2000, "WindowWidth": 4000}, "display"),
        ({}, "display"),
    ],
)
def test_the_header_says_what_the_numbers_are(tmp_path: Path, tags: dict[str, Any], intensity: str) -> None:
    path = save_dicom(tmp_path / "a.dcm", RAMP + 20, 12, **tags)
    metadata = read_radiograph(path)[1]
    assert metadata["intensity"] == intensity
    assert metadata["assumptions"][0].startswith(f"a.dcm was read as {intensity}: ")


def test_raw_counts_for_processing_are_turned_by_their_sign(tmp_path: Path) -> None:
    """Photometric Interpretation says how to show what is for presentation; raw numbers go by their sign."""
    tags = {"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": 1}
    raw = save_dicom(tmp_path / "a.dcm", 4095 - RAMP, 12, SOPClassUID=DigitalXRayImageStorageForProcessing, **tags)
    torch.testing.assert_close(read_radiograph(raw)[0], EXPECTED)
    assert "the second was followed" in notes_of(raw)


def test_a_falling_rescale_turns_the_sign_once(tmp_path: Path) -> None:
    p = torch.from_numpy(RAMP.astype(np.float32)) / 1000
    counts = (4095 * torch.exp(-p)).round().numpy()
    tags = {"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": -1}
    path = save_dicom(tmp_path / "a.dcm", 4095 - counts, 12, RescaleSlope=-1, RescaleIntercept=4095, **tags)
    torch.testing.assert_close(read_radiograph(path)[0], p, rtol=0, atol=0.05)


def test_high_bit_and_bits_that_do_not_fit(tmp_path: Path) -> None:
    low = save_dicom(tmp_path / "low.dcm", RAMP, 12, HighBit=15)  # common: only the header is wrong
    left = save_dicom(tmp_path / "left.dcm", RAMP << 4, 12, HighBit=15)
    more = save_dicom(tmp_path / "more.dcm", RAMP, 10)
    for path in (low, left, more):
        torch.testing.assert_close(read_radiograph(path)[0], EXPECTED)
    assert "shifted down by 4" in notes_of(left)
    assert "states 10 bits, but its numbers need 12" in notes_of(more)


def test_packed_and_malformed_tables(tmp_path: Path) -> None:
    def table(raw: bytes, count: int = 4096) -> pydicom.Dataset:
        item = pydicom.Dataset()
        item.LUTDescriptor = [count, 0, 8]
        item.add_new("LUTData", "OW", raw)
        return item

    entries = np.linspace(0, 255, 4096).astype("u1")
    packed = save_dicom(tmp_path / "a.dcm", RAMP, 12, VOILUTSequence=[table(entries.tobytes())])
    torch.testing.assert_close(read_radiograph(packed)[0], EXPECTED, rtol=0, atol=8 / 255)
    flat, short = table(bytes(4096)), table(bytes(100))
    path = save_dicom(tmp_path / "b.dcm", RAMP, 12, VOILUTSequence=[short, flat, table(entries.tobytes())])
    torch.testing.assert_close(read_radiograph(path)[0], EXPECTED, rtol=0, atol=8 / 255)
    assert "its first VOI LUT was not used, because it is malformed" in notes_of(path)
    assert "its VOI LUT 2 was not used, because nothing is seen" in notes_of(path)


def test_padding_is_left_out_where_it_touches_the_border(tmp_path: Path) -> None:
    padded = RAMP.copy() + 20
    padded[:, :10] = 0
    padded[20, 30] = 0  # a dead pixel inside is no padding
    geometry = BiplanarGeometry(VolumeGrid(8, 20.0), (View("pa", 0.0, 1500, 1800, (40, 50), 1.0),))
    path = save_dicom(
        tmp_path / "a.dcm", padded, 12, PixelPaddingValue=0, ImagerPixelSpacing=[1.0, 1.0],
        PhotometricInterpretation="MONOCHROME1",
    )  # fmt: skip
    load = LoadRadiographsd("image", geometry, check_order=False, fit="pitch")
    loaded = load({"image": path})
    image, covered = loaded["image"], loaded["covered"]
    assert not covered[0, :, :10].any() and covered[0, :, 10:].all()
    assert image[0, :, :10].equal(image[0, :, 10:11].expand(-1, 10))  # though 0 is the densest of MONOCHROME1
    assert image[0, 20, 30] == DISPLAY_MAXIMUM
    assert any("padding (value 0) over 20.0%" in note for note in image.meta["assumptions"])


@pytest.mark.parametrize(("value", "limit"), [(40, 0), (0, 40)])
def test_padding_is_a_range_also_where_it_ends_at_zero(tmp_path: Path, value: int, limit: int) -> None:
    padded = RAMP.copy() + 100
    padded[:, :5], padded[:, 5:10] = 0, 40
    path = save_dicom(tmp_path / "a.dcm", padded, 13, PixelPaddingValue=value, PixelPaddingRangeLimit=limit)
    covered = decode_dicom(path, Reading()).covered
    assert covered is not None and not covered[:, :10].any() and covered[:, 10:].all()
    assert "padding (values 0 to 40) over 20.0%" in notes_of(path)


def shutter(kind: str, what: str) -> dict[str, Any]:
    if what == "RECTANGULAR":
        edges = {"UpperHorizontal": 5, "LowerHorizontal": 30, "LeftVertical": 11, "RightVertical": 40}
        return {f"{kind}Shape": what} | {f"{kind}{name}Edge": edge for name, edge in edges.items()}
    if what == "CIRCULAR":
        return {f"{kind}Shape": what, f"CenterOfCircular{kind}": [20, 25], f"RadiusOfCircular{kind}": 12}
    return {f"{kind}Shape": what, f"VerticesOfThePolygonal{kind}": [5, 11, 5, 40, 30, 40, 30, 11]}


@pytest.mark.parametrize("what", ["RECTANGULAR", "CIRCULAR", "POLYGONAL"])
@pytest.mark.parametrize("kind", ["Shutter", "Collimator"])
def test_shutters_and_collimators(tmp_path: Path, kind: str, what: str) -> None:
    rows, columns = np.ogrid[1:41, 1:51]
    inside = (rows >= 5) & (rows <= 30) & (columns >= 11) & (columns <= 40)
    if what == "CIRCULAR":
        inside = (rows - 20) ** 2 + (columns - 25) ** 2 <= 144
    path = save_dicom(tmp_path / "a.dcm", np.where(inside, RAMP, 60), 12, **shutter(kind, what))
    pixels = decode_dicom(path, Reading())
    assert pixels.covered is not None
    np.testing.assert_array_equal(pixels.covered, inside)
    assert any(f"used within its {kind.lower()}" in note for note in pixels.notes)


def test_implausible_collimators_are_not_followed(tmp_path: Path) -> None:
    goes_on = save_dicom(tmp_path / "a.dcm", RAMP, 12, **shutter("Collimator", "RECTANGULAR"))
    assert "outside which the image goes on" in notes_of(goes_on)
    tiny = {**shutter("Shutter", "RECTANGULAR"), "ShutterLowerHorizontalEdge": 6}
    assert "was not believed" in notes_of(save_dicom(tmp_path / "b.dcm", RAMP, 12, **tiny))
    broken = {"ShutterShape": "CIRCULAR", "RadiusOfCircularShutter": 9}
    assert "make no sense" in notes_of(save_dicom(tmp_path / "c.dcm", RAMP, 12, **broken))
    of_a_larger_matrix = {**shutter("Shutter", "RECTANGULAR"), "ShutterRightVerticalEdge": 140}
    assert "make no sense" in notes_of(save_dicom(tmp_path / "d.dcm", RAMP, 12, **of_a_larger_matrix))


VIEW = View("pa", 0.0, 1500, 1800, (40, 50), 10.0)


def size_of(path: Path) -> tuple[tuple[float, float], str]:
    metadata = read_radiograph(path)[1]
    size, notes = pixel_size_on_detector(metadata, VIEW, (40, 50), Acquisition())
    return size, " ".join([*metadata["assumptions"], *notes])


@pytest.mark.parametrize(
    ("tags", "magnification", "note"),
    [
        ({"DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500}, 1.2, ""),
        ({"DistanceSourceToDetector": 180, "DistanceSourceToPatient": 150}, 1.2, "must be centimetres"),
        ({"DistanceSourceToDetector": 1.8, "DistanceSourceToPatient": 1.5}, 1.2, "must be metres"),
        ({"DistanceSourceToDetector": 7}, 1.2, "cannot be and was ignored"),
        ({"EstimatedRadiographicMagnificationFactor": 1.1}, 1.1, "magnification of 1.1"),
        ({"DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1750}, 1800 / (1750 - 115), "115 mm before it"),
    ],
)
def test_distances(tmp_path: Path, tags: dict[str, Any], magnification: float, note: str) -> None:
    path = save_dicom(tmp_path / "a.dcm", RAMP, 12, ImagerPixelSpacing=[9.0, 9.0], **tags)
    size, notes = size_of(path)
    assert size == pytest.approx((9 / magnification * 1.2,) * 2)
    assert note in notes


@pytest.mark.parametrize("centimetres", [180, 1.8, 300])
def test_a_stated_distance_that_ends_before_the_patient(tmp_path: Path, centimetres: float) -> None:
    path = save_dicom(tmp_path / "a.dcm", RAMP, 12, ImagerPixelSpacing=[9.0, 9.0])
    metadata = read_radiograph(path)[1]
    with pytest.raises(InputError, match=r"no more than the 300 mm .* give source_to_detector_mm in mm"):
        pixel_size_on_detector(metadata, VIEW, (40, 50), Acquisition(source_to_detector_mm=centimetres))


def test_half_a_chest_is_deeper_from_the_side() -> None:
    assert half_chest_mm(0) == pytest.approx(115) and half_chest_mm(90) == pytest.approx(165)
    assert 115 < half_chest_mm(-45) < 165


def test_pitch_of_digitised_films_and_oblong_pixels(tmp_path: Path) -> None:
    scanned = save_dicom(tmp_path / "a.dcm", RAMP, 12, NominalScannedPixelSpacing=[9.0, 9.0])
    size, notes = size_of(scanned)
    assert size == pytest.approx((9.0, 9.0)) and "digitised film" in notes
    geometry = BiplanarGeometry(VolumeGrid(8, 20.0), (View("pa", 0.0, 1500, 1800, (80, 50), 1.0),))
    whole = np.repeat(RAMP, 2, axis=0)
    load = LoadRadiographsd("image", geometry, check_order=False, fit="pitch")
    right = load({"image": save_dicom(tmp_path / "b.dcm", whole, 12, ImagerPixelSpacing=[1.0, 1.0])})["image"]
    for tags in ({"ImagerPixelSpacing": [2.0, 1.0]}, {"PixelAspectRatio": [2, 1]}):
        image = load({"image": save_dicom(tmp_path / "c.dcm", RAMP, 12, **tags)})["image"]
        assert any("2 times as high as wide" in note for note in image.meta["assumptions"])
        if "ImagerPixelSpacing" in tags:
            assert float((image - right).abs()[:, 2:-2].max()) < 90 / 4095 * 8
        else:  # without a size, the shape is what counts
            assert (image[0].sum(0) > 0).float().mean() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("tags", "pitch"),
    [
        ({"CassetteSize": "40CMX50CM"}, 10.0),
        ({"CassetteSize": "20INX16IN"}, 25.4 * 20 / 50),
        ({"FieldOfViewDimensions": [200, 250]}, 5.0),
        ({"CassetteSize": "35CMX35CM"}, None),  # of which this picture is a part
        ({"CassetteSize": "large"}, None),
        ({"CassetteSize": "40CMX50CM", "ImagerPixelSpacing": [3.0, 3.0]}, 3.0),
    ],
)
def test_a_cassette_that_the_header_names_gives_the_pitch(
    tmp_path: Path, tags: dict[str, Any], pitch: float | None
) -> None:
    metadata = read_radiograph(save_dicom(tmp_path / "a.dcm", RAMP, 12, **tags))[1]
    assert metadata.get("pixel_spacing_mm") == (None if pitch is None else pytest.approx((pitch, pitch)))
    noted = pitch is not None and "ImagerPixelSpacing" not in tags
    assert ("all of its" in " ".join(metadata["assumptions"])) == noted


def test_an_enhanced_file_of_one_frame_is_read_by_its_functional_groups(tmp_path: Path) -> None:
    measures, window, groups, own = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [3.0, 3.0]
    window.WindowCenter, window.WindowWidth = 2000, 4000
    groups.PixelMeasuresSequence, own.FrameVOILUTSequence = [measures], [window]
    sequences = {"SharedFunctionalGroupsSequence": [groups], "PerFrameFunctionalGroupsSequence": [own]}
    metadata = read_radiograph(save_dicom(tmp_path / "a.dcm", RAMP, 12, NumberOfFrames=1, **sequences))[1]
    assert metadata["pixel_spacing_mm"] == (3.0, 3.0)
    assert "its first window (centre 2000, width 4000)" in " ".join(metadata["assumptions"])


def colour_capture(path: Path, channels: np.ndarray, photometric: str = "RGB", **more: Any) -> Path:
    """A secondary capture of three channels of 8 bits."""
    tags = {
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "PhotometricInterpretation": photometric,
    }
    return save_dicom(path, RAMP, 8, **tags, **more, PixelData=channels.astype(np.uint8).tobytes())


def test_grey_kept_as_colour_is_grey_in_dicom_too(tmp_path: Path) -> None:
    grey = RAMP // 16
    path = colour_capture(tmp_path / "a.dcm", np.stack([grey] * 3, axis=-1))
    image, metadata = read_radiograph(path)
    torch.testing.assert_close(image, torch.from_numpy(grey.astype(np.float32)) / 255 * DISPLAY_MAXIMUM)
    assert "a.dcm was read as grey: its colour channels are equal." in metadata["assumptions"]
    luminance = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], axis=-1)
    again, _ = read_radiograph(colour_capture(tmp_path / "b.dcm", luminance, "YBR_FULL"))
    torch.testing.assert_close(again, image, rtol=0, atol=0.04)
    red = colour_capture(tmp_path / "c.dcm", np.stack([grey, grey // 3, grey], axis=-1))
    with pytest.raises(InputError, match=r"has colours in \d+\.\d% of its pixels"):
        read_radiograph(red)
    assert "were ignored" in notes_of(red, colour="ignore")


PAIR = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=(40, 50))


def load_pair(folder: Path, pa: dict[str, Any], lateral: dict[str, Any], **options: Any) -> list[str]:
    files = [
        save_dicom(folder / "pa.dcm", RAMP, 12, **{"ViewPosition": "PA", **pa}),
        save_dicom(folder / "lat.dcm", RAMP, 12, **{"ViewPosition": "LL", **lateral}),
    ]
    return LoadRadiographsd("image", PAIR, check_order=False, **options)({"image": files})["image"].meta["assumptions"]


@pytest.mark.parametrize(
    ("pa", "lateral", "message"),
    [
        ({"ViewPosition": "RAO"}, {}, "marked RAO, an oblique view and not pa"),
        ({}, {"ViewPosition": "LLD"}, "marked LLD, a decubitus view and not lat"),
        ({}, {"ViewPosition": "LEFT LATERAL DECUBITUS"}, "a decubitus view"),
        ({}, {"ViewPosition": "RLO"}, "an oblique view and not lat"),
        ({"PositionerPrimaryAngle": 30}, {}, "Positioner Primary Angle 30°, an oblique view"),
        ({"BodyPartExamined": "KNEE"}, {}, "Body Part Examined KNEE, not a chest"),
        ({"Modality": "CT"}, {}, "Modality CT, which is no radiograph's"),
        ({"Modality": "", "SOPClassUID": CTImageStorage}, {}, "Modality CT, which is no radiograph's"),
        ({}, {"SOPClassUID": DigitalMammographyXRayImageStorageForPresentation}, "Modality MG, which is no"),
        ({"PatientID": "7"}, {"PatientID": "8"}, "are of two patients"),
        ({"PatientName": "A^B"}, {"PatientName": "C^D"}, "are of two patients"),
    ],
)
def test_headers_of_something_else_are_refused_unless_told(
    tmp_path: Path, pa: dict[str, Any], lateral: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_pair(tmp_path, pa, lateral)
    notes = load_pair(tmp_path, pa, lateral, check_header=False)
    assert any(re.search(message, note) and "used all the same" in note for note in notes)


@pytest.mark.parametrize("position", ["LEFT LATERAL", "LL", "Lateral", "LAT", "L LAT CHEST", "chest_lateral"])
def test_many_names_of_a_lateral(tmp_path: Path, position: str) -> None:
    load_pair(tmp_path, {}, {"ViewPosition": position})
    with pytest.raises(InputError, match=r"is marked .*, but view pa looks from 0°"):
        load_pair(tmp_path, {"ViewPosition": position}, {})


def test_what_is_only_said(tmp_path: Path) -> None:
    notes = " ".join(
        load_pair(
            tmp_path,
            {"PatientID": "7", "StudyDate": "20250101", "PositionerPrimaryAngle": 8, "BodyPartExamined": "CHEST"},
            {"PatientID": "7", "StudyDate": "20250203", "ViewPosition": "STANDING"},
        )
    )
    for said in ("taken 8° off", "on different days", "View Position STANDING, which is not known"):
        assert said in notes
    supine = " ".join(load_pair(tmp_path, {"ViewPosition": "AP SUPINE"}, {}, opposite_side=True))
    assert "was taken lying" in supine and "is an AP view" in supine


def test_patient_ids_do_not_travel(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", RAMP, 12, PatientID="HOSPITAL-4711")
    assert "4711" not in str(read_radiograph(path)[1])


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_compressed_pixels_are_those_that_were_stored(tmp_path: Path, compressor: str) -> None:
    """JPEG lossless is none of pydicom's; the rescale must not be applied twice."""
    plain = save_dicom(tmp_path / "plain.dcm", RAMP, 12, RescaleSlope=2, RescaleIntercept=-3)
    source = pydicom.dcmread(plain)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "c.dcm"))
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(RAMP))
    packed = pydicom.dcmread(tmp_path / "c.dcm")
    source.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    source.PixelData = packed.PixelData
    source["PixelData"].VR = "OB"
    source.BitsStored, source.HighBit = 16, 15
    source.save_as(tmp_path / "packed.dcm")
    direct = save_dicom(tmp_path / "plain16.dcm", RAMP, 16, RescaleSlope=2, RescaleIntercept=-3)
    torch.testing.assert_close(read_radiograph(tmp_path / "packed.dcm")[0], read_radiograph(direct)[0])


def test_high_throughput_jpeg_2000_is_read_exactly(tmp_path: Path) -> None:
    """A stream of OpenJPH, of the numbers below."""
    stream = base64.b64decode(
        "/0//UQApQAAAAAAUAAAAGAAAAAAAAAAAAAAAFAAAABgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
        "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAKQAAf+TwAAmP/oFB3QAwAATQAATAMz+Aod0APL8Aod0AMAAEsAAEwC9AMt0"
        "AGn6AAI0AMAAE8AAFUDd/QMjwnUAUKFC/cAxgf62AMAAFbAABWjsbDY7m/3YL9fhC3cApCQSifT0CEYhAey4AMAALTgABaooiqIoiqIoiqLv+np6"
        "enpwgnoASARBEARBEOT/UAI9hCB79hCB7L0A/9k="
    )
    stored = np.add.outer(np.arange(24) * 37, np.arange(20) * 53) % 4096
    dataset = pydicom.dcmread(save_dicom(tmp_path / "a.dcm", stored, 12))
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(decode_dicom(tmp_path / "b.dcm", Reading()).values, stored)


@pytest.mark.parametrize(
    "name", ["JPGExtended.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPEG2000.dcm"]
)
def test_every_codec_is_there(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """12-bit JPEG, JPEG-LS and JPEG 2000, of pydicom's own test files; and nothing of the libraries on the screen."""
    dataset = pydicom.dcmread(get_testdata_file(name))
    dataset.Modality = "DX"
    dataset.save_as(tmp_path / "a.dcm")
    image = read_radiograph(tmp_path / "a.dcm")[0]
    assert image.shape == (dataset.Rows, dataset.Columns) and float(image.std()) > 0
    assert capfd.readouterr() == ("", "")
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    dataset.save_as(tmp_path / "b.dcm")
    with pytest.raises(InputError, match="damaged or incomplete; export it again"):
        read_radiograph(tmp_path / "b.dcm")
    assert capfd.readouterr() == ("", "")
