"""Which window a DICOM picture is seen through where its header is odd: colour, other functions, no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

from drr2ct.transforms.radiographs.scale import DISPLAY_MAXIMUM, read_radiograph
from drr2ct.transforms.validation import InputError
from tests.transforms.radiographs.test_dicom import EXPECTED, RAMP, colour_capture, notes_of
from tests.transforms.radiographs.test_loading import save_dicom

GREY = (RAMP // 16).astype(np.uint8)
WINDOW: dict[str, Any] = {"WindowCenter": 128, "WindowWidth": 64}


def palette_capture(path: Path, **tags: Any) -> Path:
    """Numbers of 8 bits with a grey palette of 16 bits."""
    entries = (np.arange(256) * 257).astype("<u2").tobytes()
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = entries
    data = {"BitsAllocated": 8, "PhotometricInterpretation": "PALETTE COLOR", "PixelData": GREY.tobytes()}
    return save_dicom(path, GREY, 8, **data, **tags)


def captures(folder: Path, **tags: Any) -> list[tuple[Path, int]]:
    """The same picture in two kinds of colour, and the full scale of its grey."""
    rgb = colour_capture(folder / "rgb.dcm", np.stack([GREY] * 3, axis=-1), **tags)
    return [(rgb, 255), (palette_capture(folder / "palette.dcm", **tags), 65535)]


def test_a_window_beside_colour_has_no_meaning_and_is_said(tmp_path: Path) -> None:
    plain = torch.from_numpy(GREY.astype(np.float32)) / 255 * DISPLAY_MAXIMUM
    for path, _ in captures(tmp_path, **WINDOW):
        torch.testing.assert_close(read_radiograph(path)[0], plain)
        assert f"{path.name} is kept in colour, for which its windows" in notes_of(path)
        assert "windows and tables, as stated" in notes_of(path, window="none")


def test_a_window_that_is_asked_for_applies_to_the_grey_of_colour(tmp_path: Path) -> None:
    for path, full in captures(tmp_path, **WINDOW):
        centre, width = full * 0.5, full * 0.25
        grey = GREY.astype(np.float32) / 255
        expected = ((grey - 0.375) / 0.25).clip(0, 1) * DISPLAY_MAXIMUM
        image, _ = read_radiograph(path, window=f"{centre + 0.5},{width + 1}")
        torch.testing.assert_close(image, torch.from_numpy(expected), rtol=0, atol=0.01 * DISPLAY_MAXIMUM)


def test_a_function_that_is_not_known_leaves_its_windows_out(tmp_path: Path) -> None:
    tags = {"WindowCenter": 1000, "WindowWidth": 800, "VOILUTFunction": "GAMMA"}
    path = save_dicom(tmp_path / "a.dcm", RAMP, 12, **tags)
    torch.testing.assert_close(read_radiograph(path)[0], EXPECTED)
    assert "was not used, because its VOI LUT Function GAMMA is not known" in notes_of(path)
    with pytest.raises(InputError, match="VOI LUT Function GAMMA, which is not known; give none"):
        read_radiograph(path, window="1")
    linear = save_dicom(tmp_path / "b.dcm", RAMP, 12)
    stated = "1000,800"
    torch.testing.assert_close(read_radiograph(path, window=stated)[0], read_radiograph(linear, window=stated)[0])


def test_a_window_of_half_its_numbers_is_named(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", RAMP, 12, WindowCenter=2000)
    torch.testing.assert_close(read_radiograph(path)[0], EXPECTED)
    assert "its window was not used, because it has no numbers for centre and width" in notes_of(path)


def test_floating_point_numbers_are_seen_through_their_window(tmp_path: Path) -> None:
    values = RAMP.astype("<f4")
    path = save_dicom(tmp_path / "a.dcm", None, 16, Rows=40, Columns=50, BitsAllocated=32, WindowCenter=2000.5,
                      WindowWidth=4001, FloatPixelData=values.tobytes())  # fmt: skip
    _without(path, "BitsStored", "HighBit", "PixelRepresentation")
    expected = torch.from_numpy(values / 4000) * DISPLAY_MAXIMUM
    torch.testing.assert_close(read_radiograph(path)[0], expected, rtol=0, atol=0.01)


def _without(path: Path, *keywords: str) -> None:
    dataset = pydicom.dcmread(path)
    for keyword in keywords:
        del dataset[keyword]
    dataset.save_as(path)
