"""Pictures as people have them: grey kept as colour, palettes, transparency, turned by a camera, in many formats."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from drr2ct.transforms.radiographs.scale import DISPLAY_MAXIMUM, read_radiograph
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.validation import InputError
from tests.transforms.radiographs.test_loading import save_dicom

GREY = (np.arange(48)[:, None] * 3 + np.arange(64) * 1.5).astype(np.uint8)  # differs by row and column
EXPECTED = torch.from_numpy(GREY).float() / 255 * DISPLAY_MAXIMUM


def said(path: Path, **options: str) -> tuple[torch.Tensor, str]:
    image, metadata = read_radiograph(path, **options)
    assert metadata["intensity"] == "display"
    return image, " ".join(metadata["assumptions"])


@pytest.mark.parametrize(
    ("mode", "note"),
    [
        ("L", "a PNG file without units is a picture"),
        ("RGB", "its colour channels are equal"),
        ("RGBA", "its alpha channel is opaque; its colour channels are equal"),
        ("LA", "its alpha channel is opaque"),
        ("P", "it has a palette; its colour channels are equal"),
        ("CMYK", "its colour channels are equal"),
    ],
)
def test_grey_is_grey_however_it_is_kept(tmp_path: Path, mode: str, note: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(GREY).convert("RGB" if mode == "CMYK" else mode).convert(mode).save(path)
    image, notes = said(path)
    torch.testing.assert_close(image, EXPECTED, rtol=0, atol=1e-5)
    assert note in notes


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", GREY > 127, photometric="minisblack")
    for name in ("a.png", "a.tif"):
        image, notes = said(tmp_path / name)
        np.testing.assert_array_equal(image > 4, GREY > 127)
        assert set(image.unique().tolist()) == {0.0, DISPLAY_MAXIMUM}
        assert "one bit per pixel" in notes


def test_jpegs_coarse_colour_is_grey_and_a_marker_is_not(tmp_path: Path) -> None:
    tinted = np.clip(GREY[..., None] + np.array([4, 0, -4]), 0, 255).astype(np.uint8)
    Image.fromarray(tinted).save(tmp_path / "a.jpg", quality=70)
    image, notes = said(tmp_path / "a.jpg")
    assert float((image - EXPECTED).abs().mean()) < 0.1
    assert "its colour channels differ by at most" in notes
    marked = np.stack([GREY] * 3, axis=-1)
    marked[:10, :8] = (250, 20, 20)
    Image.fromarray(marked).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"colours in 2\.6% of its pixels.*colour=ignore"):
        read_radiograph(tmp_path / "b.png")
    image, notes = said(tmp_path / "b.png", colour="ignore")
    torch.testing.assert_close(image[10:, 8:], EXPECTED[10:, 8:], rtol=0, atol=1e-5)
    assert image[0, 0] == pytest.approx(round(0.299 * 250 + 0.587 * 20 + 0.114 * 20) / 255 * 8, abs=1e-5)
    assert "colours in 2.6% of its pixels were ignored" in notes


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.bmp", {}, 0.0),
        ("a.jp2", {}, 0.0),
        ("a.webp", {"lossless": True}, 0.0),
        ("a.gif", {}, 0.0),
        ("a.jpg", {"quality": 95}, 0.2),
        ("lzw.tif", {"compression": "tiff_lzw"}, 0.0),
        ("jpeg.tif", {"compression": "jpeg"}, 0.3),
        ("deflate.tif", {"compression": "tiff_deflate"}, 0.0),
    ],
)
def test_formats(tmp_path: Path, name: str, options: dict[str, object], tolerance: float) -> None:
    Image.fromarray(GREY).save(tmp_path / name, **options)
    torch.testing.assert_close(said(tmp_path / name)[0], EXPECTED, rtol=0, atol=tolerance + 1e-5)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "lzw.tif", "white.tif", "a.jp2"])
def test_sixteen_bits_are_kept(tmp_path: Path, name: str) -> None:
    deep = GREY.astype(np.uint16) * 257 + 3
    if name == "white.tif":
        tifffile.imwrite(tmp_path / name, 65535 - deep, photometric="miniswhite")
    else:
        Image.fromarray(deep).save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
    expected = torch.from_numpy(deep.astype(np.float32)) / 65535 * DISPLAY_MAXIMUM
    torch.testing.assert_close(said(tmp_path / name)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "lzw.tif"])
def test_orientation_is_followed_as_pillow_does(tmp_path: Path, orientation: int, name: str) -> None:
    from PIL import ImageOps

    path = tmp_path / name
    stored = Image.fromarray(GREY)
    exif = Image.Exif()
    exif[274] = orientation
    if name == "a.tif":  # uncompressed, so that tifffile reads it
        tifffile.imwrite(path, GREY, extratags=[(274, "H", 1, orientation, True)])
    elif name == "lzw.tif":
        Image.fromarray(GREY).save(path, compression="tiff_lzw", tiffinfo={274: orientation})
    else:
        Image.fromarray(GREY).save(path, quality=100)
        with Image.open(path) as image:
            stored = Image.fromarray(np.asarray(image))
        Image.open(path).save(path, exif=exif, quality="keep")
    stored.getexif()[274] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(stored)).astype(np.float32) / 255 * DISPLAY_MAXIMUM
    image, notes = said(path)
    torch.testing.assert_close(image, torch.from_numpy(wanted), rtol=0, atol=1e-5)
    assert ("EXIF orientation" in notes) == (orientation != 1)


def test_transparent_parts_are_not_looked_at(tmp_path: Path) -> None:
    from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
    from drr2ct.transforms.radiographs.loading import LoadRadiographsd

    alpha = np.full_like(GREY, 255)
    alpha[:12] = 0
    values = GREY.copy()
    values[:12] = 255  # what lies under the transparency is no patient
    Image.merge("LA", [Image.fromarray(values), Image.fromarray(alpha)]).save(tmp_path / "a.png")
    geometry = BiplanarGeometry(VolumeGrid(8, 20.0), (View("pa", 0.0, 1500, 1800, (48, 64), 1.0),))
    load = LoadRadiographsd("image", geometry, check_order=False, fit="pitch", pixel_spacing_mm=1.0)
    image = load({"image": tmp_path / "a.png"})["image"]
    assert image[0, :12].equal(image[0, 12:13].expand(12, -1))  # extended from the edge
    torch.testing.assert_close(image[0, 12:].as_tensor(), EXPECTED[12:], rtol=0, atol=1e-4)
    assert "transparent over 25.0%" in image.meta["assumptions"][0]


def test_a_transparent_tone_leaves_sixteen_bits_as_they_are(tmp_path: Path) -> None:
    values = GREY.astype(np.uint16) * 257 + 100
    values[:12] = 7
    Image.fromarray(values).save(tmp_path / "a.png", transparency=7)
    image, notes = said(tmp_path / "a.png")
    torch.testing.assert_close(image, torch.from_numpy(values / 65535 * DISPLAY_MAXIMUM).float())
    assert "it has a transparent colour; its alpha channel is transparent over 25.0%" in notes


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-1024.0, 1024.0), (-1.0, 1.0), (0.0, 4095.0)])
def test_floating_point_pictures(tmp_path: Path, low: float, high: float) -> None:
    unit = (GREY - GREY.min()) / np.ptp(GREY)
    unit = unit * 0.9
    tifffile.imwrite(tmp_path / "a.tif", (low + unit * (high - low)).astype(np.float32))
    image, notes = said(tmp_path / "a.tif", intensity="display")
    torch.testing.assert_close(image, torch.from_numpy(unit).float() * DISPLAY_MAXIMUM, rtol=0, atol=1e-4)
    assert (f"from {low:g} to {high:g}" in notes) == ((low, high) != (0.0, 1.0))


@pytest.mark.parametrize(("top", "intensity"), [(8.0, "line_integral"), (1.0, "display"), (255.0, "display")])
def test_noise_in_air_does_not_decide_what_numbers_mean(tmp_path: Path, top: float, intensity: str) -> None:
    clean = (GREY - GREY.min()) / np.ptp(GREY) * 0.99 * top
    noise = np.random.default_rng(0).normal(0, 0.003 * top, clean.shape)
    noisy = np.where(clean < 0.1 * top, clean + noise - 0.1 * (clean == 0) * noise.max(), clean)
    for name, values in (("clean.tif", clean), ("noisy.tif", noisy)):
        tifffile.imwrite(tmp_path / name, values.astype(np.float32))
    assert noisy.min() < 0
    image, facts = read_radiograph(tmp_path / "noisy.tif")
    expected = read_radiograph(tmp_path / "clean.tif")[0]
    torch.testing.assert_close(image, expected, rtol=0, atol=0.02 * float(expected.max()))
    assert facts["intensity"] == intensity
    assert any("lie below 0, as noise in air does: taken as 0" in note for note in facts["assumptions"])
    shifted = (clean - 0.4 * top).astype(np.float32)  # a normalised picture is none that begins at zero
    tifffile.imwrite(tmp_path / "normalised.tif", shifted)
    assert read_radiograph(tmp_path / "normalised.tif")[1]["intensity"] == "display"


@pytest.mark.parametrize("intensity", ["auto", "line_integral", "display"])
def test_a_thorax_of_40_is_refused_whatever_is_declared(tmp_path: Path, intensity: str) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image((GREY / GREY.max() * 40).astype(np.float32).T, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"too large for line integrals|a patient has 0 to 16 at most"):
        read_radiograph(tmp_path / "a.nii.gz", intensity)
    with pytest.raises(InputError, match="a patient has 0 to 16 at most"):
        read_radiograph(tmp_path / "a.nii.gz", "transmission", unattenuated=1e20)


def test_files_of_ours_are_marked_and_older_ones_recognised(tmp_path: Path) -> None:
    import nibabel as nib

    image = torch.from_numpy(GREY).float() / 32
    for name, bits in (("a.nii.gz", 16), ("a.png", 16)):
        write_radiograph(tmp_path / name, image, bits)
        back, metadata = read_radiograph(tmp_path / name)
        torch.testing.assert_close(back, image, rtol=0, atol=2e-4)
        assert metadata["intensity"] == "line_integral" and "its mark says so" in metadata["assumptions"][0]
    write_radiograph(tmp_path / "b.png", image, 8)
    assert read_radiograph(tmp_path / "b.png")[1]["intensity"] == "display"
    nib.save(nib.Nifti1Image(image.numpy().T, np.eye(4)), tmp_path / "old.nii.gz")
    counts = (image * 4096).round().numpy().astype(np.uint16)
    Image.fromarray(counts).save(tmp_path / "p_pa_drr.png")
    Image.fromarray(counts).save(tmp_path / "other.png")
    for name, intensity in (
        ("old.nii.gz", "line_integral"),
        ("p_pa_drr.png", "line_integral"),
        ("other.png", "display"),
    ):
        metadata = read_radiograph(tmp_path / name)[1]
        assert metadata["intensity"] == intensity
        assert f"was read as {intensity}" in metadata["assumptions"][0]


def test_several_pictures_in_a_file_are_named(tmp_path: Path) -> None:
    pictures = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    for name in ("a.gif", "a.webp", "a.tif"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
        with pytest.raises(InputError, match=r"has 2 (frames|pages).*export a single image"):
            read_radiograph(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jp2", "a.jpg", "a.webp", "lzw.tif"])
def test_damaged_pictures_are_one_sentence(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
    whole = (tmp_path / name).read_bytes()
    # an LZW file has its directory at the end: damage its data
    broken = whole[:300] + bytes(3000) + whole[3300:] if name == "lzw.tif" else whole[: len(whole) // 3]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(InputError, match="damaged or incomplete"):
        read_radiograph(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", None])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_a_cut_tiff_is_damaged_and_has_no_pages_to_count(tmp_path: Path, compression: str | None, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(noise).save(path, **({"compression": compression} if compression else {}))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"is damaged or incomplete .*; export it again"):
        read_radiograph(path)


def test_integers_of_32_bits_that_need_16_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY.astype(np.int32) * 16)
    image, _ = said(path)
    torch.testing.assert_close(image, EXPECTED * 255 * 16 / 65535)
    tifffile.imwrite(path, GREY.astype(np.int32) * 4096)
    with pytest.raises(InputError, match="pixels of type int32"):
        said(path)


def test_numbers_too_small_for_a_chest_are_no_line_integrals(tmp_path: Path) -> None:
    """Those of another unit: lengths in centimetres, attenuation in 1/mm."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, (GREY / GREY.max() * 1.04).astype(np.float32))
    with pytest.raises(InputError, match=r"up to 1\.04, too small for line integrals of a chest"):
        read_radiograph(path)
    assert float(read_radiograph(path, "line_integral")[0].max()) == pytest.approx(1.04)


@pytest.mark.parametrize("kind", ["JPEG", "DICOM"])
def test_a_jpeg_that_is_damaged_within_is_refused_though_it_can_be_decoded(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, columns = np.ogrid[:200, :160]
    grey = np.hypot(rows - 100, columns - 80).astype(np.uint8)
    sound = io.BytesIO()
    Image.fromarray(grey).save(sound, "JPEG")
    damaged = bytearray(sound.getvalue())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 200] = bytes(200)
    for content, refused in ((sound.getvalue(), False), (bytes(damaged), True)):
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        assert np.asarray(Image.open(path)).shape == (200, 160)
        if kind == "DICOM":
            path = save_dicom(tmp_path / "a.dcm", grey, 8, syntax=JPEGBaseline8Bit, BitsAllocated=8)
            dataset = dcmread(path)
            dataset.PixelData = encapsulate([content])
            dataset.save_as(path)
        if refused:
            with pytest.raises(InputError, match="damaged or incomplete"):
                read_radiograph(path)
        else:
            assert read_radiograph(path)[0].shape == (200, 160)
    assert "JPEG" not in "".join(capfd.readouterr())
