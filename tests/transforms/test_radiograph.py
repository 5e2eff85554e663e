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

from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.radiograph import (
    DISPLAY_MAXIMUM,
    LoadRadiographsd,
    check_view_order,
    check_view_position,
    pa_score,
    read_radiograph,
    write_radiograph,
)
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
    elif kind in ("RGB", "RGBA", "LA", "P", "1"):
        Image.fromarray(PICTURE).convert(kind).save(path)
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
        tifffile.imwrite(path, np.stack([PICTURE] * 3, axis=-1), photometric="rgb")
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
        ("text", "not a PNG"),
        ("truncated", "damaged"),
        ("RGB", "colour"),
        ("P", "colour"),
        ("1", "greyscale"),
        ("RGBA", "alpha"),
        ("LA", "alpha"),
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
        ("tiff truncated", "cannot be decoded"),
        ("tiff over one", "0 to 1"),
        ("dicom without pixels", "no pixel data"),
        ("dicom frames", "2 frames"),
        ("dicom colour", "not greyscale"),
        ("dicom compressed", "pylibjpeg"),
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
        ("LLO", 0.0, True),
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
