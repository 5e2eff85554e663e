"""Pictures that hold a radiograph: PNG, JPEG, TIFF, BMP, JPEG 2000, WebP and whatever else Pillow reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from drr2ct.transforms.quiet import quiet_libraries
from drr2ct.transforms.radiographs.jpeg import jpeg_damage
from drr2ct.transforms.radiographs.pixels import Pixels, Reading, check_size, with_units
from drr2ct.transforms.validation import InputError

PNG_MARK = "drr2ct-intensity"
"""Key of the text that says what the numbers of a PNG of this project are."""

CHROMA_TOLERANCE = 0.1
"""Difference between the channels of a pixel that is still grey, of the full scale: JPEG stores colour coarsely."""

STRAY_COLOUR = 1e-3
"""Share of coloured pixels that is no colour picture: where JPEG met a line, a letter or a cursor."""

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_ORIENTATIONS = {  # of EXIF and TIFF, tag 274: what was done to the stored picture so that it is shown upright
    2: "mirrored",
    3: "turned by 180°",
    4: "turned upside down",
    5: "transposed",
    6: "turned by 90° clockwise",
    7: "transposed and turned by 180°",
    8: "turned by 90° anticlockwise",
}


def is_picture(path: Path) -> bool:
    """Whether Pillow knows a file by its content, damaged or not."""
    try:
        with quiet_libraries(also_native=True), Image.open(path):
            return True
    except Image.UnidentifiedImageError:
        return False
    except Exception:  # of a kind that is known: too large, or damaged
        return True


def decode_picture(path: Path, reading: Reading) -> Pixels:
    """Read a picture file, found by its content.

    Grey kept as colour (equal channels, but for JPEG's coarse colour), palettes and single bits are read as grey,
    transparent parts are not covered, and EXIF's orientation is followed; each is said.

    Raises:
        InputError: if the file is no picture, damaged, of several frames, coloured, or far too large.
    """
    try:
        return _by_pillow(path, reading)
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"radiograph {path} is no PNG, JPEG, TIFF, DICOM, NIfTI, NRRD or MetaImage file; export it as one."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"radiograph {path} has more pixels than any film; export it smaller.") from error
    except InputError:
        raise
    except Exception as error:  # Pillow passes on what its codecs raise
        raise InputError(f"radiograph {path} is damaged or incomplete ({error}); export it again.") from error


def _by_pillow(path: Path, reading: Reading) -> Pixels:
    with quiet_libraries(also_native=True), Image.open(path) as image:
        check_size(path, image.height, image.width)
        frames = getattr(image, "n_frames", 1)
        if frames != 1:
            raise InputError(f"radiograph {path} has {frames} frames or pages; export a single image.")
        tiles = getattr(image, "tile", ())  # says what the file holds before it is loaded
        raw_mode = str(tiles[0][3]) if tiles else ""
        orientation = int(image.getexif().get(274, 1))
        image.load()
        samples, mode, kind, notes, own = _channels(image, raw_mode)
    if kind == "JPEG" and (damage := jpeg_damage(path)):
        raise InputError(f"radiograph {path} is damaged or incomplete ({damage}); export it again.")
    if kind == "TIFF" and orientation in _ORIENTATIONS:  # Pillow has turned it in loading
        notes.append(f"it was {_ORIENTATIONS[orientation]}, as its EXIF orientation says")
        orientation = 1
    return _grey(samples, mode, path, reading, {"format": kind}, orientation, notes, own)


def decode_tiff(path: Path, reading: Reading) -> Pixels:
    """Read a TIFF file: by tifffile, which keeps any bit depth; what it has no codec for (LZW, JPEG), by Pillow.

    Raises:
        InputError: as :func:`decode_picture`.
    """
    import tifffile

    try:
        with quiet_libraries(), tifffile.TiffFile(path) as tiff:
            if not len(tiff.pages):
                raise InputError(
                    f"radiograph {path} is damaged or incomplete (its directory is missing); export it again."
                )
            if len(tiff.pages) != 1:
                raise InputError(f"radiograph {path} has {len(tiff.pages)} pages; export a single image.")
            page = tiff.pages.first
            check_size(path, page.imagelength, page.imagewidth)
            photometric = tifffile.PHOTOMETRIC
            if page.photometric not in (photometric.MINISWHITE, photometric.MINISBLACK, photometric.RGB):
                return _by_pillow(path, reading)
            try:
                values = page.asarray()
            except Exception:  # whatever a codec that is not there, or a damaged file, leads to
                return _tiff_by_pillow(path, reading, page.photometric == photometric.MINISWHITE)
            orientation = int(page.tags[274].value) if 274 in page.tags else 1
            dark_is_high = page.photometric == photometric.MINISWHITE
            planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
            mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(page.samplesperpixel, "")
    except InputError:
        raise
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise InputError(f"radiograph {path} is damaged or incomplete ({error}); export it again.") from error
    if not mode:
        raise InputError(f"radiograph {path} has {page.samplesperpixel} channels; export it as plain greyscale.")
    if planar:
        values = np.moveaxis(values, 0, -1)
    if values.dtype == bool:
        values, mode = values.astype(np.uint8) * 255, "1"
    return _grey(values, mode, path, reading, {"format": "TIFF"}, orientation, [], None, dark_is_high)


def _tiff_by_pillow(path: Path, reading: Reading, white_is_zero: bool) -> Pixels:
    pixels = _by_pillow(path, reading)
    if white_is_zero and pixels.bits == 16:  # Pillow inverts those of 8 bits itself
        return Pixels(**{**vars(pixels), "dark_is_high": True})
    return pixels


def _channels(image: Image.Image, raw_mode: str) -> tuple[np.ndarray, str, str, list[str], str | None]:
    """Samples, the mode they are in, the format, notes, this project's mark."""
    notes = []
    mode, kind = image.mode, image.format or "picture"
    own = image.info.get(PNG_MARK)
    deep = "16" in raw_mode and not mode.startswith("I")
    if deep and mode != "F":
        notes.append("its 16 bits per colour were read with 8")
    if mode == "1":
        return np.asarray(image.convert("L")), mode, kind, notes, own
    transparent = image.info.get("transparency")
    if mode.startswith("I") and isinstance(transparent, int):  # Pillow would cut 16 bits to 8
        notes.append("it has a transparent colour")
        values = np.asarray(image)
        opaque = np.where(values == transparent, 0, np.iinfo(values.dtype).max).astype(values.dtype)
        return np.stack([values, opaque], axis=-1), "LA", kind, notes, own
    if mode in ("P", "PA") or "transparency" in image.info:
        alpha = mode == "PA" or "transparency" in image.info
        what = "a palette" if mode.startswith("P") else "a transparent colour"
        notes.append(f"it has {what}")
        mode = "RGBA" if alpha else "RGB"
    elif mode in ("La", "RGBa"):
        mode = mode.upper()
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        mode = "RGB"
    if mode not in ("L", "LA", "RGB", "RGBA", "I", "F") and not mode.startswith("I;16"):
        raise InputError(f"radiograph {getattr(image, 'filename', '')} is a {mode} picture; export it as greyscale.")
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    return values, mode, kind, notes, own


def _grey(
    samples: Shaped[np.ndarray, "rows columns ..."],
    mode: str,
    path: Path,
    reading: Reading,
    metadata: dict[str, Any],
    orientation: int,
    notes: list[str],
    own: str | None,
    dark_is_high: bool = False,
) -> Pixels:
    """One channel, upright as the file says."""
    covered = None
    full = 1.0 if samples.dtype.kind == "f" else float(np.iinfo(samples.dtype).max)
    if mode.endswith("A"):
        opaque = samples[..., -1] >= full / 2
        samples = samples[..., :-1]
        share = 1 - float(opaque.mean())
        if share > 0.95:
            raise InputError(f"radiograph {path} is transparent over {share:.0%}; export it as plain greyscale.")
        if share > 0:
            covered = opaque
        notes.append(
            f"its alpha channel is {f'transparent over {share:.1%}, which was left out' if share else 'opaque'}"
        )
    if samples.ndim == 3 and samples.shape[-1] == 1:
        samples = samples[..., 0]
    if samples.ndim == 3:
        samples, note = one_channel(samples, full, path, reading)
        notes.append(note)
    if mode == "1":
        notes.append("its one bit per pixel was read as black and white")
    if orientation in _ORIENTATIONS:
        samples = _turned(samples, orientation)
        covered = None if covered is None else _turned(covered, orientation)
        notes.append(f"it was {_ORIENTATIONS[orientation]}, as its EXIF orientation says")
    sentences = (f"{path.name} was read as grey: {'; '.join(notes)}.",) if notes else ()
    return with_units(samples, path, reading, own, metadata, dark_is_high, covered, sentences)


def one_channel(
    samples: Shaped[np.ndarray, "rows columns channels"], full: float, path: Path, reading: Reading
) -> tuple[Shaped[np.ndarray, "rows columns"], str]:
    """The luminance of three channels, if they are one, and what was found.

    Args:
        samples: red, green and blue.
        full: their full scale.
        path: of the file.
        reading: what the user says about it.

    Raises:
        InputError: for colours, unless they are to be ignored.
    """
    spread = samples.max(axis=-1).astype(np.float32) - samples.min(axis=-1)
    share = float((spread > CHROMA_TOLERANCE * full).mean())
    if share > STRAY_COLOUR and reading.colour != "ignore":
        raise InputError(
            f"radiograph {path} has colours in {share:.1%} of its pixels, so it is no plain radiograph; export it as "
            "greyscale, or use its luminance (--set colour=ignore)."
        )
    if not spread.any():
        return samples[..., 0], "its colour channels are equal"
    grey = samples @ _LUMINANCE
    grey = grey.astype(samples.dtype) if samples.dtype.kind == "f" else np.rint(grey).astype(samples.dtype)
    if share > STRAY_COLOUR:
        return grey, f"colours in {share:.1%} of its pixels were ignored"
    return grey, f"its colour channels differ by at most {spread.max() / full:.1%}, in {(spread > 0).mean():.1%} of it"


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """As EXIF's orientation (tag 274, 1…8) wants it shown."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)
