import re

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor, list_data_collate
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
from drr2ct.transforms.radiographs.identity import check_view_position
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.radiographs.scale import DISPLAY_MAXIMUM, read_radiograph
from drr2ct.transforms.radiographs.views import check_view_order, pa_score
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.validation import InputError

GEOMETRY = BiplanarGeometry.from_angles(detector_size=(24, 24))


def ramp(rows=24, columns=24):
    """Differs by row and column, so that a flip or a transposition shows."""
    return (torch.arange(rows)[:, None] * 0.2 + torch.arange(columns) * 0.03).float()


def save_dicom(path, pixels, bits=16, syntax=ExplicitVRLittleEndian, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "DX"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    if pixels is not None:
        dataset.Rows, dataset.Columns = pixels.shape[-2:]
        data = pixels.astype("<u2").tobytes()
        dataset.PixelData = pydicom.encaps.encapsulate([data]) if syntax.is_compressed else data
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9),
        elements=st.floats(0, 15.5, width=32),
    )
)
@pytest.mark.parametrize(
    ("name", "bits", "intensity", "tolerance"),
    [("a.nii.gz", 16, "line_integral", 0.0), ("a.png", 16, "line_integral", 1.3e-4), ("a.png", 8, "display", 0.016)],
)
def test_round_trip(tmp_path, values, name, bits, intensity, tolerance):
    values[0, 0], values[-1, -1] = 0, 7.5  # never constant
    image = torch.from_numpy(values).clamp(max=DISPLAY_MAXIMUM if bits == 8 else 16.0)
    write_radiograph(tmp_path / name, image, bits)
    back, metadata = read_radiograph(tmp_path / name, intensity)
    torch.testing.assert_close(back, image, rtol=0, atol=tolerance)
    assert metadata["filename_or_obj"] == str(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]  # no temporary file is left


def test_nifti_is_stored_as_itk_reads_it(tmp_path):
    import SimpleITK as sitk

    write_radiograph(tmp_path / "a.nii.gz", ramp(5, 9), pitch_mm=0.5)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), ramp(5, 9))
    assert image.GetSpacing() == (0.5, 0.5)
    assert read_radiograph(tmp_path / "a.nii.gz", "line_integral")[1]["pixel_spacing_mm"] == (0.5, 0.5)


def test_tiff(tmp_path):
    image = ramp(6, 8)
    tifffile.imwrite(tmp_path / "float.tif", image.numpy())
    torch.testing.assert_close(read_radiograph(tmp_path / "float.tif", "line_integral")[0], image)
    counts = (65535 * torch.exp(-image.double())).round().numpy().astype(np.uint16)
    tifffile.imwrite(tmp_path / "counts.tif", counts)
    torch.testing.assert_close(read_radiograph(tmp_path / "counts.tif", "transmission")[0], image, rtol=0, atol=1e-3)
    tifffile.imwrite(tmp_path / "white.tif", 255 - (image * 25).numpy().astype(np.uint8), photometric="miniswhite")
    picture = read_radiograph(tmp_path / "white.tif", "display")[0]
    torch.testing.assert_close(picture, (image * 25).floor() / 255 * DISPLAY_MAXIMUM)


def test_transmission(tmp_path):
    counts = np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)
    Image.fromarray(counts).save(tmp_path / "a.png")
    image, _ = read_radiograph(tmp_path / "a.png", "transmission", unattenuated=2000)
    np.testing.assert_allclose(image, [[np.log(4000), np.log(2)], [0, 0]], rtol=1e-6)
    image, _ = read_radiograph(tmp_path / "a.png", "transmission")
    assert image[0, 1] == pytest.approx(np.log(65.535), rel=1e-6)


def test_monochrome1_and_2_are_the_same_picture(tmp_path):
    dense = (ramp() / ramp().max() * 4000).round().numpy()
    two = save_dicom(tmp_path / "two.dcm", dense, bits=12)
    one = save_dicom(tmp_path / "one.dcm", 4095 - dense, bits=12, PhotometricInterpretation="MONOCHROME1")
    expected = torch.from_numpy(dense).float() / 4095 * DISPLAY_MAXIMUM
    for path in (one, two):
        torch.testing.assert_close(read_radiograph(path, "display")[0], expected)


def test_dicom_transmission_follows_the_detectors_sign(tmp_path):
    p = ramp() / 2
    counts = (4095 * torch.exp(-p)).round().numpy()
    raw = save_dicom(tmp_path / "raw", counts, 12, PhotometricInterpretation="MONOCHROME1")
    signed = save_dicom(
        tmp_path / "sign", counts, 12, PhotometricInterpretation="MONOCHROME1", PixelIntensityRelationshipSign=1
    )
    falling = save_dicom(tmp_path / "fall.dcm", 4095 - counts, 12, PixelIntensityRelationshipSign=-1)
    for path in (raw, signed, falling):
        torch.testing.assert_close(read_radiograph(path, "transmission")[0], p, rtol=0, atol=0.05)


def test_dicom_rescale_and_lookup_table(tmp_path):
    stored = (ramp() * 100).round().numpy()
    path = save_dicom(tmp_path / "a.dcm", stored, RescaleSlope=0.01, RescaleIntercept=0.5, RescaleType="US")
    torch.testing.assert_close(read_radiograph(path, "line_integral")[0], torch.from_numpy(stored * 0.01 + 0.5).float())
    item = pydicom.Dataset()
    item.LUTDescriptor = [1024, 0, 16]
    item.ModalityLUTType = "US"
    item.add_new("LUTData", "OW", np.arange(60000, 60000 - 50 * 1024, -50).astype("<u2").tobytes())
    path = save_dicom(tmp_path / "lut.dcm", stored, 10, ModalityLUTSequence=[item])
    low, high = 60000 - 50 * 1023, 60000
    expected = (60000 - 50 * stored - low) / (high - low) * DISPLAY_MAXIMUM
    torch.testing.assert_close(read_radiograph(path, "display")[0], torch.from_numpy(expected).float())


def test_dicom_metadata(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", ramp().numpy() * 99, ImagerPixelSpacing=[0.2, 0.3], ViewPosition="LL")
    metadata = read_radiograph(path, "display")[1]
    assert metadata["pixel_spacing_mm"] == (0.2, 0.3)
    assert metadata["view_position"] == "LL"
    assert metadata["photometric_interpretation"] == "MONOCHROME2"


PICTURE = (ramp() * 20).numpy().astype(np.uint8)


def make_bad(kind, folder):
    """A file that cannot be used, and the intensity to read it with."""
    path = folder / {"nifti": "a.nii.gz"}.get(kind.split()[0], "a.png")
    intensity = "display"
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("this is no image, whatever its name says")
    elif kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "RGB":
        Image.fromarray(np.stack([PICTURE, PICTURE // 2, PICTURE], axis=-1)).save(path)
    elif kind == "transparent":
        Image.fromarray(np.stack([PICTURE, PICTURE * 0], axis=-1), "LA").save(path)
    elif kind == "huge":
        with Image.new("1", (2**14, 2**14)) as image:
            image.save(path)
    elif kind == "constant":
        Image.fromarray(np.full((8, 8), 7, np.uint8)).save(path)
    elif kind == "8-bit line integrals":
        Image.fromarray(PICTURE).save(path)
        intensity = "line_integral"
    elif kind == "unknown intensity":
        Image.fromarray(PICTURE).save(path)
        intensity = "density"
    elif kind.startswith("nifti"):
        import nibabel as nib

        data = {
            "nifti 3-D": np.random.rand(5, 5, 3),
            "nifti 4-D": np.random.rand(5, 5, 2, 2),
            "nifti NaN": np.where(np.eye(5), np.nan, 1.0),
            "nifti inf": np.where(np.eye(5), np.inf, 1.0),
        }
        if kind in data:
            nib.save(nib.Nifti1Image(data[kind].astype(np.float32), np.eye(4)), path)
        else:
            path.write_bytes(b"\x1f\x8b not gzip")
        intensity = "line_integral"
    elif kind == "tiff pages":
        tifffile.imwrite(path, np.stack([PICTURE, PICTURE]))
    elif kind == "tiff colour":
        tifffile.imwrite(path, np.stack([PICTURE, PICTURE // 3, PICTURE], axis=-1), photometric="rgb")
    elif kind == "tiff truncated":
        tifffile.imwrite(path, np.random.rand(64, 64))
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "tiff over one":
        tifffile.imwrite(path, ramp().numpy())
    elif kind == "dicom without pixels":
        save_dicom(path, None)
    elif kind == "dicom frames":
        save_dicom(path, np.stack([PICTURE, PICTURE]), NumberOfFrames=2)
    elif kind == "dicom colour":
        save_dicom(path, PICTURE, PhotometricInterpretation="RGB")
    elif kind == "dicom compressed":
        save_dicom(path, PICTURE, syntax=JPEGLSLossless)
    elif kind == "dicom truncated":
        save_dicom(path, PICTURE)
        path.write_bytes(path.read_bytes()[:-300])
    return path, intensity


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "empty"),
        ("folder", "folder"),
        ("text", "no PNG"),
        ("truncated", "damaged"),
        ("RGB", r"colours in \d+\.\d% of its pixels"),
        ("transparent", "transparent over 100%"),
        ("huge", "more pixels than any film"),
        ("constant", "same value 7"),
        ("8-bit line integrals", "8 bits"),
        ("unknown intensity", "density"),
        ("nifti 3-D", "2-D"),
        ("nifti 4-D", "2-D slice"),
        ("nifti NaN", "NaN"),
        ("nifti inf", "infinite"),
        ("nifti damaged", "not a readable NIfTI"),
        ("tiff pages", "pages"),
        ("tiff colour", "colour"),
        ("tiff truncated", "damaged"),
        ("tiff over one", "0 to 1"),
        ("dicom without pixels", "no pixel data"),
        ("dicom frames", "2 frames"),
        ("dicom colour", "not greyscale"),
        ("dicom compressed", "damaged or incomplete"),
        ("dicom truncated", "damaged"),
    ],
)
def test_wrong_files(tmp_path, kind, message):
    path, intensity = make_bad(kind, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_radiograph(path, intensity)
    assert "\n" not in str(caught.value).strip()
    if kind != "unknown intensity":
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("unattenuated", [0.0, -1.0, float("nan")])
def test_wrong_unattenuated_intensity(tmp_path, unattenuated):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="positive"):
        read_radiograph(tmp_path / "a.png", "transmission", unattenuated)


@pytest.mark.parametrize(
    ("name", "image", "bits", "message"),
    [
        ("a.jpg", ramp(), 16, "nii.gz or .png"),
        ("a.png", ramp(), 12, "12"),
        ("a.png", ramp() + 20, 16, "does not fit"),
        ("a.png", ramp() * torch.nan, 16, "NaN"),
        ("a.png", torch.stack([ramp(), ramp()]), 16, "stack"),
    ],
)
def test_what_is_not_written(tmp_path, name, image, bits, message):
    with pytest.raises(InputError, match=message):
        write_radiograph(tmp_path / name, image, bits)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pair(tmp_path):
    write_radiograph(tmp_path / "pa.png", ramp())
    write_radiograph(tmp_path / "lat.png", ramp().T)
    return [tmp_path / "pa.png", tmp_path / "lat.png"]


def load(files, geometry=GEOMETRY, **options):
    options = {"intensity": "line_integral", "check_order": False, **options}
    return LoadRadiographsd("image", geometry, **options)({"image": files})["image"]


def test_loads_in_the_order_of_the_views(pair):
    images = load(pair)
    torch.testing.assert_close(images.as_tensor(), torch.stack([ramp(), ramp().T]), rtol=0, atol=2e-4)
    assert images.meta["filename_or_obj"] == [str(p) for p in pair]
    torch.testing.assert_close(load(pair, vertical_flip=True), images.flip(1))
    assert list_data_collate([{"image": images}, {"image": images}])["image"].shape == (2, 2, 24, 24)


def test_loads_a_stack_and_a_single_view(tmp_path, pair):
    write_radiograph(tmp_path / "both.nii.gz", torch.stack([ramp(), ramp().T]))
    torch.testing.assert_close(load(tmp_path / "both.nii.gz"), load(pair), rtol=0, atol=2e-4)
    single = BiplanarGeometry.from_angles(angles_deg=[0.0], detector_size=24)
    assert load(str(pair[0]), single).shape == (1, 24, 24)


def test_resamples_without_aliasing_and_without_shift(tmp_path):
    fine = torch.nn.functional.interpolate(ramp()[None, None], scale_factor=4, mode="bilinear")[0, 0]
    fine = fine + torch.tensor([1.0, -1.0]).repeat(48)  # the finest stripes, which must vanish
    files = [tmp_path / "pa.nii.gz", tmp_path / "lat.nii.gz"]
    for file in files:
        write_radiograph(file, fine)
    result = load(files)[0]
    torch.testing.assert_close(result[2:-2, 2:-2], MetaTensor(ramp()[2:-2, 2:-2]), rtol=0, atol=0.02)


def test_wrong_sets_of_files(tmp_path, pair):
    with pytest.raises(InputError, match=r"3 radiographs .* 2 views pa, lat"):
        load([*pair, pair[0]])
    with pytest.raises(InputError, match="0 radiographs"):
        load([])
    with pytest.raises(InputError, match="stack of 2 views"):
        load(pair[:1])
    write_radiograph(tmp_path / "wide.png", ramp(24, 32))
    with pytest.raises(InputError, match=r"wide.png has 24×32 pixels, the geometry's detector 24×24"):
        load([tmp_path / "wide.png"] * 2)
    with pytest.raises(InputError, match=r"wide.png has 24×32 .*pa.png has 24×24"):
        load([pair[0], tmp_path / "wide.png"])
    with pytest.raises(InputError, match="unknown radiograph intensity"):
        LoadRadiographsd("image", GEOMETRY, "grey")
    with pytest.raises(KeyError):
        LoadRadiographsd("image", GEOMETRY, "display")({})
    assert LoadRadiographsd("image", GEOMETRY, "display", allow_missing_keys=True)({}) == {}


def test_dicom_that_contradicts_the_geometry(tmp_path):
    pixels = ramp().numpy() * 99
    pa = save_dicom(tmp_path / "pa.dcm", pixels, ViewPosition="PA")
    lat = save_dicom(tmp_path / "lat.dcm", pixels, ViewPosition="LL")
    oblong = save_dicom(tmp_path / "oblong.dcm", pixels, ImagerPixelSpacing=[0.2, 0.3])
    assert load([pa, lat], intensity="display").shape == (2, 24, 24)
    with pytest.raises(InputError, match="marked LL, but view pa"):
        load([lat, pa], intensity="display")
    with pytest.raises(InputError, match="square"):
        load([oblong, oblong], intensity="display")


@pytest.mark.parametrize(
    ("position", "angle", "fits"),
    [
        ("PA", 0.0, True),
        ("PA", 10.0, True),
        ("PA", 180.0, False),
        ("AP", -180.0, True),
        ("AP", 0.0, False),
        ("LL", 90.0, True),
        ("LL", -270.0, True),
        ("LL", -90.0, False),
        ("RL", -90.0, True),
        ("LAT", 270.0, True),
        ("LAT", 0.0, False),
        ("", 0.0, True),
        ("LLO", 0.0, False),
    ],
)
def test_view_position(position, angle, fits):
    view = BiplanarGeometry.from_angles(angles_deg=[angle], names=["v"]).views[0]
    metadata = {"filename_or_obj": "a.dcm", "view_position": position}
    if fits:
        check_view_position(metadata, view)
    else:
        with pytest.raises(InputError, match=position):
            check_view_position(metadata, view)


def chest():
    """A crude chest: a wide elliptic trunk, two lungs, a spine at the back and a heart to the left."""
    grid = VolumeGrid(64, 400.0)
    x, y, z = grid.centres().unbind(-1)
    hu = torch.full(x.shape, -1000.0)
    hu[(x / 160) ** 2 + (y / 110) ** 2 < 1] = 30
    for side in (-75, 75):
        hu[((x - side) / 55) ** 2 + ((y + 5) / 80) ** 2 + ((z - 20) / 120) ** 2 < 1] = -820
    hu[((x + 25) / 55) ** 2 + ((y - 35) / 45) ** 2 + ((z + 20) / 60) ** 2 < 1] = 40
    hu[(x.abs() < 18) & ((y + 80).abs() < 18)] = 500
    hu[z.abs() > 150] = -1000
    return hu[None], grid


@pytest.mark.parametrize("angles", [(0.0, 90.0), (180.0, -90.0), (90.0, 0.0)])
def test_exchanged_views_are_noticed(angles):
    hu, grid = chest()
    geometry = BiplanarGeometry.from_angles(grid, angles, names=["one", "two"], detector_size=128)
    images = render_drr(hu, geometry, grid.affine())
    check_view_order(images, geometry, "a.png, b.png")
    with pytest.raises(InputError, match=r"a\.png, b\.png look exchanged"):
        check_view_order(images.flip(0), geometry, "a.png, b.png")
    assert pa_score(images[0] * 3) == pytest.approx(pa_score(images[0]), abs=1e-3)


def test_other_angles_are_not_judged():
    hu, grid = chest()
    images = render_drr(hu, BiplanarGeometry.from_angles(grid, detector_size=128), grid.affine())
    oblique = BiplanarGeometry.from_angles(grid, (0.0, 45.0), names=["a", "b"], detector_size=128)
    check_view_order(images.flip(0), oblique, "a.png, b.png")


def test_dicom_windows_apply_to_display_alone(tmp_path):
    stored = (ramp() / ramp().max() * 4000).round().numpy()
    window = {"WindowCenter": 2000.5, "WindowWidth": 2001, "PixelIntensityRelationshipSign": 1}
    path = save_dicom(tmp_path / "a.dcm", stored, 12, **window)
    shown, metadata = read_radiograph(path, "display")
    expected = np.clip((stored - 1000) / 2000, 0, 1) * DISPLAY_MAXIMUM
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    assert any("window (centre 2000.5, width 2001)" in note for note in metadata["assumptions"])
    assert any("contradict" in note for note in metadata["assumptions"])  # MONOCHROME2, but higher is more X-ray
    plain = save_dicom(tmp_path / "b.dcm", stored, 12, PixelIntensityRelationshipSign=1)
    torch.testing.assert_close(read_radiograph(path, "transmission")[0], read_radiograph(plain, "transmission")[0])
    with pytest.raises(InputError, match="not line integrals"):
        read_radiograph(path, "line_integral")
    inverted = save_dicom(tmp_path / "c.dcm", 4095 - stored, 12, PhotometricInterpretation="MONOCHROME1",
                          WindowCenter=4095 - 2000.5 + 1, WindowWidth=2001)  # fmt: skip
    np.testing.assert_allclose(read_radiograph(inverted, "display")[0], expected, atol=2e-3)
    wide = save_dicom(tmp_path / "d.dcm", stored, 12, WindowCenter=[30000, 9, 2000.5], WindowWidth=[100, 0, 2001])
    shown, metadata = read_radiograph(wide, "display")
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    assert sum("was not used" in note for note in metadata["assumptions"]) == 2
    np.testing.assert_allclose(read_radiograph(wide, "display", window="2000.5,2001")[0], expected, atol=1e-4)
    np.testing.assert_allclose(read_radiograph(wide, "display", window="3")[0], expected, atol=1e-4)
    plain = read_radiograph(plain, "display")[0]
    torch.testing.assert_close(read_radiograph(wide, "display", window="none")[0], plain)
    none = save_dicom(tmp_path / "e.dcm", stored, 12, WindowCenter=2000, WindowWidth=0)
    torch.testing.assert_close(read_radiograph(none, "display")[0], plain)
    for window, message in (("4", "3 windows and no window 4"), ("2", "has no width"), ("wide", "neither auto"),
                            ("5,0", "neither auto")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_radiograph(wide, "display", window=window)


@pytest.mark.parametrize("depth", [8, 12])
def test_dicom_voi_lookup_table(tmp_path, depth):
    """Also 8-bit tables of more than 256 entries, and input outside the table."""
    stored = (ramp() / ramp().max() * 4000).round().numpy().astype(int)
    table = (np.sqrt(np.arange(3000) / 2999) * (2**depth - 1)).astype("<u2")
    item = pydicom.Dataset()
    item.LUTDescriptor = [3000, 500, depth]
    item.add_new("LUTData", "OW", table.tobytes())
    path = save_dicom(tmp_path / "a.dcm", stored, 12, VOILUTSequence=[item], WindowCenter=1, WindowWidth=2)
    shown = read_radiograph(path, "display")[0]
    expected = table[(stored - 500).clip(0, 2999)] / (2**depth - 1) * DISPLAY_MAXIMUM
    np.testing.assert_allclose(shown, expected, rtol=1e-5)


def test_dicom_acquisition(tmp_path):
    view = pydicom.Dataset()
    view.CodeValue, view.CodingSchemeDesignator = "399173006", "SCT"
    path = save_dicom(
        tmp_path / "a.dcm", ramp().numpy() * 99, ImagerPixelSpacing=[0.2, 0.2], PixelSpacing=[0.17, 0.17],
        DistanceSourceToDetector=1800, DistanceSourceToPatient=1500, ViewCodeSequence=[view], ImageLaterality="L",
        PatientOrientation=["P", "F"],
    )  # fmt: skip
    metadata = read_radiograph(path, "display")[1]
    expected = {
        "pixel_spacing_mm": (0.2, 0.2),
        "pixel_spacing_plane": "detector",
        "source_to_detector_mm": 1800.0,
        "source_to_isocentre_mm": 1500.0,
        "view_position": "LL",
        "laterality": "L",
        "patient_orientation": ("P", "F"),
    }
    assert metadata.items() >= expected.items()
    for tags, plane in (
        ({"PixelSpacing": [0.2, 0.2]}, "unstated"),
        ({"PixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "GEOMETRY"}, "patient"),
    ):
        path = save_dicom(tmp_path / "b.dcm", ramp().numpy() * 99, **tags)
        assert read_radiograph(path, "display")[1]["pixel_spacing_plane"] == plane
    path = save_dicom(tmp_path / "c.dcm", ramp().numpy() * 99, DistanceSourceToDetector=0, ImagerPixelSpacing=[0, 0])
    assert not {"source_to_detector_mm", "pixel_spacing_mm"} & read_radiograph(path, "display")[1].keys()


def test_logarithmic_numbers_are_no_transmission(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", ramp().numpy() * 99, PixelIntensityRelationship="LOG")
    with pytest.raises(InputError, match="Relationship LOG"):
        read_radiograph(path, "transmission")


def test_unattenuated_intensity_is_estimated_from_the_air(tmp_path):
    p = ramp(60, 60) / 4
    p[:, :12] = 0
    noise = torch.randn(60, 60, generator=torch.Generator().manual_seed(0)) * 0.005
    counts = (3600 * torch.exp(-p) * (1 + noise)).round().numpy()
    path = save_dicom(tmp_path / "a.dcm", counts, 12)
    image, metadata = read_radiograph(path, "transmission", "estimate")
    torch.testing.assert_close(image, p, rtol=0, atol=0.04)
    assert "not even" not in metadata["assumptions"][0] and "estimated as 3" in metadata["assumptions"][0]
    covered = save_dicom(tmp_path / "b.dcm", counts[:, 12:], 12)
    assert "not even" in read_radiograph(covered, "transmission", "estimate")[1]["assumptions"][0]
    assert "full scale of 4095" in read_radiograph(path, "transmission")[1]["assumptions"][0]
    with pytest.raises(InputError, match="'estimate', not 'guess'"):
        read_radiograph(path, "transmission", "guess")


def chest_radiographs():
    """Line integrals of a chest on the detector of a hospital, and on that of a trained network."""
    hu, grid = chest()
    trained = BiplanarGeometry.from_angles(grid, detector_size=96)
    hospital = BiplanarGeometry(
        VolumeGrid(64, 300.0),
        tuple(
            View(name, angle, 1350.0, 1600.0, (430, 400), 1.0)
            for name, angle in (("pa", 0.0), ("lat", 90.0))
        ),
    )  # fmt: skip
    return (render_drr(hu, g, grid.affine()) for g in (hospital, trained))


def test_a_hospitals_radiographs_become_the_line_integrals_of_the_trained_geometry(tmp_path):
    """DX files of another size, pitch and distance: raw counts exactly, display-processed pictures nearly."""
    acquired, expected = chest_radiographs()
    geometry = BiplanarGeometry.from_angles(chest()[1], detector_size=96)
    statistics = radiograph_statistics([{"image": expected / LINE_INTEGRAL_SCALE}])
    tags = {"ImagerPixelSpacing": [1.0, 1.0], "DistanceSourceToDetector": 1600, "DistanceSourceToPatient": 1350}
    raw, shown = [], []
    for image, position in zip(acquired.numpy(), ("PA", "LL"), strict=True):
        counts = np.rint(3900 * np.exp(-image))
        raw.append(save_dicom(tmp_path / f"raw{position}.dcm", counts, 12, ViewPosition=position, **tags))
        curve = 1 / (1 + np.exp(-4 * (image / image.max() - 0.4)))
        picture = np.rint((curve - curve.min()) / np.ptp(curve) * 4095)
        shown.append(
            save_dicom(
                tmp_path / f"{position}.dcm", 4095 - picture, 12, ViewPosition=position,
                PhotometricInterpretation="MONOCHROME1", **tags,
            )
        )  # fmt: skip
    inner = slice(16, 80)  # what the hospital's detector covers
    for files, options, mean, correlation in (
        (raw, {"intensity": "transmission", "unattenuated": 3900}, 0.06, 0.998),
        (raw, {"intensity": "transmission", "unattenuated": "estimate"}, 0.12, 0.998),
        (shown, {"intensity": "display", "statistics": statistics}, 0.35, 0.985),
    ):
        images = load(files, geometry, fit="pitch", check_order=True, **options)
        for got, truth in zip(images.as_tensor()[:, inner, inner], expected[:, inner, inner], strict=True):
            assert float((got - truth).abs().mean()) < mean
            assert np.corrcoef(got.flatten(), truth.flatten())[0, 1] > correlation


def test_without_air_the_training_set_says_what_is_missing(tmp_path):
    _, expected = chest_radiographs()
    geometry = BiplanarGeometry.from_angles(chest()[1], detector_size=96)
    statistics = radiograph_statistics([{"image": expected / LINE_INTEGRAL_SCALE}])
    inner = expected[:, 28:68, 28:68]  # within the body
    pitch = geometry.views[0].pixel_pitch_mm
    files = [
        save_dicom(tmp_path / f"{i}.dcm", np.rint(60000 * np.exp(-image)), ImagerPixelSpacing=[pitch, pitch])
        for i, image in enumerate(inner.numpy())
    ]
    options = {"intensity": "transmission", "fit": "pitch", "unattenuated": "estimate"}
    without = load(files, geometry, **options).as_tensor()[:, 28:68, 28:68]
    images = load(files, geometry, statistics=statistics, **options)
    assert sum("was added" in note for note in images.meta["assumptions"]) == 2
    for got, less, truth in zip(images.as_tensor()[:, 28:68, 28:68], without, inner, strict=True):
        assert float((less - truth).mean()) < -1  # the brightest part of the lungs was taken for air
        assert abs(float((got - truth).mean())) < 0.5
    assert images[:, :27].equal(images[:, 27:28].expand(-1, 27, -1))  # beyond what was seen, its edge goes on


def test_an_inverted_picture_is_noticed_and_turned(tmp_path):
    _, expected = chest_radiographs()
    geometry = BiplanarGeometry.from_angles(chest()[1], detector_size=96)
    statistics = radiograph_statistics([{"image": expected / LINE_INTEGRAL_SCALE}])
    files, wrong = [], []
    for name, image in zip(("pa", "lat"), expected, strict=True):
        picture = (image / image.max() * 255).round().numpy().astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        Image.fromarray(255 - picture).save(tmp_path / f"{name}_wrong.png")
        files.append(tmp_path / f"{name}.png")
        wrong.append(tmp_path / f"{name}_wrong.png")
    options = {"intensity": "display", "fit": "pitch", "statistics": statistics}
    right, turned = load(files, geometry, **options), load(wrong, geometry, **options)
    assert (turned - right).abs().mean() < 0.005 and (turned - right).abs().max() < 0.3  # the body's outline
    assert sum("was inverted" in note for note in turned.meta["assumptions"]) == 2
    assert not any("was inverted" in note for note in right.meta["assumptions"])
    torch.testing.assert_close(load(wrong, geometry, inverted=True, **options).as_tensor(), turned.as_tensor())
    as_stated = load(wrong, geometry, inverted=False, **options)
    assert np.corrcoef(as_stated[0].flatten(), right[0].flatten())[0, 1] < 0
    plain = load(wrong, geometry, intensity="display", inverted=True)
    torch.testing.assert_close(plain.as_tensor(), load(files, geometry, intensity="display").as_tensor())


def test_polarity_is_found_where_only_some_files_need_turning(tmp_path):
    """Feet first is said of the PNG; the DICOM states its own orientation."""
    _, expected = chest_radiographs()
    geometry = BiplanarGeometry.from_angles(chest()[1], detector_size=96)
    statistics = radiograph_statistics([{"image": expected / LINE_INTEGRAL_SCALE}])
    pa, lat = (4095 - (image / image.max() * 4095).round().numpy().astype(np.uint16) for image in expected)
    stated = save_dicom(tmp_path / "pa.dcm", pa, 12, PatientOrientation=["L", "F"])
    Image.fromarray((lat[::-1] // 16).astype(np.uint8)).save(tmp_path / "lat.png")
    options = {"intensity": "display", "fit": "pitch", "statistics": statistics}
    options["pixel_spacing_mm"] = geometry.views[0].pixel_pitch_mm
    found = load([stated, tmp_path / "lat.png"], geometry, vertical_flip=True, **options)
    assert sum("was inverted" in note for note in found.meta["assumptions"]) == 2
    for image, wanted in zip(found, expected, strict=True):
        assert np.corrcoef(image.flatten(), wanted.flatten())[0, 1] > 0.9


@pytest.mark.parametrize("pitch", [None, 1.0])
def test_collimation_is_not_known(tmp_path, pitch):
    """It is extended from the edge, and stays in place where the pitch is known.

    Without one, what is left after cropping is a cassette.
    """
    picture = (ramp(120, 120) * 5 + 40 * torch.rand(120, 120, generator=torch.Generator().manual_seed(0))).numpy()
    picture = (picture / picture.max() * 200).astype(np.uint8)
    picture[:30] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    geometry = BiplanarGeometry(VolumeGrid(16, 60.0), (View("pa", 0.0, 1500, 1800, (120, 120), 1.0),))
    options = {"intensity": "display", "fit": "pitch", "pixel_spacing_mm": pitch}
    loaded = load(tmp_path / "a.png", geometry, crop_collimation=True, **options)
    assert re.match(r"a.png is collimated: rows 3[0-2] to 119 and columns 0 to 119", loaded.meta["assumptions"][0])
    if pitch:
        first = int(re.search(r"rows (\d+)", loaded.meta["assumptions"][0])[1])
        assert torch.equal(loaded[0, :first], loaded[0, first].expand(first, 120)) and loaded[0, first].max() > 0
        torch.testing.assert_close(loaded[0, 33:], load(tmp_path / "a.png", geometry, **options)[0, 33:])
        untouched = load(tmp_path / "a.png", geometry, **options)
        assert untouched[0, :29].min() > 7.9
    else:
        assert loaded[0, :, 60].min() > 0 and loaded[0, :, :10].abs().max() > 0


def test_assumptions_are_collected_and_stored_drrs_have_none(tmp_path, pair):
    sample = LoadRadiographsd("image", GEOMETRY, "line_integral", check_order=False)({"image": pair})
    assert sample["assumptions"] == "" and sample["image"].meta["assumptions"] == []
    sample = LoadRadiographsd("image", GEOMETRY, "line_integral", check_order=False, fit="pitch")({"image": pair})
    sentences = sample["assumptions"].split("\n")
    assert sentences == sample["image"].meta["assumptions"] and len(sentences) == 3
    assert sentences[0].startswith("pa.png does not state its pixel pitch")
    assert all(sentence.endswith(".") for sentence in sentences)
    # same detector, so nothing is resampled
    torch.testing.assert_close(sample["image"], load(pair), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "width"}, "not by 'width'"),
        ({"pixel_spacing_mm": [0.1, 0.1, 0.1]}, "3 values for 2 views"),
        ({"pixel_spacing_mm": -1.0}, "must be positive"),
        ({"statistics": {"views": [{}]}}, "same checkpoint"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        LoadRadiographsd("image", GEOMETRY, "display", **options)
