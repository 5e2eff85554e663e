"""What the page is made of: options, uploads, views, sentences, words."""

from __future__ import annotations

import asyncio
import io
import json
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.datastructures import UploadFile
from starlette.requests import Request

from drr2ct.pipeline.web import tasks, uploads
from drr2ct.pipeline.web.decisions import refusal, sorted_sentences, why_not_ready
from drr2ct.pipeline.web.options import checked_options, checked_patient, file_stem
from drr2ct.pipeline.web.page import LANGUAGES, choose_language, words
from drr2ct.pipeline.web.views import find_order
from drr2ct.transforms.radiographs.pixels import Pixels
from drr2ct.transforms.validation import InputError
from tests.transforms.drawn_films import FIELD, GEOMETRY, line_integrals, statistics, toned

ASSETS = Path(uploads.__file__).parent / "assets"


def test_options_that_differ_are_kept_one_for_each_view():
    assert checked_options({"intensity": "auto", "inverted": None, "check_order": True, "window": ""}, 2) == {}
    assert checked_options({"orientation": "as-is", "inverted": "auto,true", "check_header": "false"}, 2) == {
        "orientation": ["as-is", "as-is"],
        "inverted": [None, True],
        "check_header": False,
    }
    assert checked_options({"window": "2048,4096", "pixel_spacing_mm": [None, 0.2]}, 2) == {
        "window": ["2048,4096"] * 2,
        "pixel_spacing_mm": [None, 0.2],
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"output": "/etc/passwd"}, "'output' is no option of reading"),
        ({"colour": "$__import__('os')"}, "choose from refuse, ignore"),
        ({"check_order": 0}, "choose from true, false"),
        ({"orientation": ["auto"] * 3}, "3 values for 2 views"),
        ({"pixel_spacing_mm": "-1"}, "positive"),
        ({"pixel_spacing_mm": "nan"}, "positive"),
        ({"pixel_spacing_mm": "wide"}, "give a number"),
    ],
)
def test_other_options_are_refused(options: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        checked_options(options, 2)


def test_a_name_for_the_files_is_no_path():
    assert checked_patient(" Jürgen 1 ") == "Jürgen 1" and file_stem("Jürgen 1") == "J_rgen_1"
    assert checked_patient(None) == "patient"
    for name in ("../x", "a/b", "a\\b", "x" * 65, ".hidden", "a\nb"):
        with pytest.raises(InputError, match="a name has at most"):
            checked_patient(name)


@pytest.mark.parametrize(
    ("given", "shown", "suffix"),
    [
        ("pa.png", "pa.png", ".png"),
        ("../../etc/cron.d/x.NII.GZ", "x.NII.GZ", ".nii.gz"),
        ("C:\\scans\\a_drr.png", "a_drr.png", "_drr.png"),
        ("a.png/../b.sh", "b.sh", ""),
        ("\x00\x1b[2J.dcm", "[2J.dcm", ".dcm"),
        ("", "radiograph", ""),
    ],
)
def test_names_are_for_eyes(given: str, shown: str, suffix: str):
    assert uploads.shown_name(UploadFile(io.BytesIO(), filename=given)) == shown
    assert uploads.stored_suffix(shown) == suffix


def received(chunks: list[tuple[float, bytes]]) -> bytes:
    """What gets through of a body that comes in pieces, each after some seconds."""

    pieces = [*chunks, None]

    async def receive() -> Any:
        piece = pieces.pop(0)
        await asyncio.sleep(piece[0] if piece else 0)
        return {"type": "http.request", "body": piece[1] if piece else b"", "more_body": piece is not None}

    async def run() -> bytes:
        return b"".join([chunk async for chunk in uploads._counted(Request({"type": "http"}, receive))])

    return asyncio.run(run())


def test_a_body_is_counted_and_timed_while_it_streams(monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 10)
    monkeypatch.setattr(uploads, "SILENCE_SECONDS", 0.2)
    assert received([(0, b"12345"), (0.01, b"12345")]) == b"1234512345"
    with pytest.raises(uploads.TooMuchError, match="more than 0 MB together"):
        received([(0, b"12345"), (0, b"123456")])
    with pytest.raises(uploads.TooSlowError, match="too slowly"):
        received([(0, b"1"), (5, b"2")])
    monkeypatch.setattr(uploads, "MOST_SECONDS", 0.3)
    with pytest.raises(uploads.TooSlowError):
        received([(0.1, b"1")] * 8)


def pixels(view: int, **metadata: Any) -> Pixels:
    picture = toned(line_integrals()[view][FIELD]).numpy()
    return Pixels((picture * 255).astype(np.uint8), 0, 255, 8, "display", {"format": "PNG", **metadata})


def test_the_frontal_film_is_found_by_header_then_name_then_looks():
    def found(names: list[str], known: Any = None, **headers: str) -> tuple[list[int], str]:
        return find_order([pixels(1, **headers), pixels(0)], names, GEOMETRY, known)

    assert found(["a.png", "b.png"], view_position="LL") == ([1, 0], "header")
    assert found(["a.png", "b.png"], view_position="PA") == ([0, 1], "header"), "it is believed"
    assert found(["1_lateral.png", "2.png"]) == ([1, 0], "name")
    assert found(["Thorax PA.png", "Thorax-LAT.png"]) == ([0, 1], "name")
    assert found(["palate.png", "flat.png"]) == ([1, 0], "looks"), "whole words only"
    assert found(["pa lat 1.png", "pa lat 2.png"], statistics()) == ([1, 0], "looks")


def test_sentences_are_sorted_and_none_is_lost():
    said = [
        "film-0.png was read as display: a PNG file without units is a picture.",
        "film-1.png faced right: mirrored, as it looks most like the training radiographs of view lat so (0.61).",
        "film-1.png was inverted, because it looks more like the training radiographs so.",
        "film-0.png does not state its pixel pitch: taken to be a cassette of 35×43 cm, 0.128 mm a pixel.",
        "film-0.png has a secret of its own.",
        "The sums of line integrals along rows of the two views differ by 2.9% once film-1.png is aligned by −12 mm.",
        "The central ray is taken to meet the middle of each radiograph.",
    ]
    films, pair = sorted_sentences(said, ["film-0.png", "film-1.png"], ["Jane's.png", "side.png"])
    assert [*films[0]] == ["tone", "size", "other"] and [*films[1]] == ["turn", "polarity"]
    assert films[0]["other"] == ["Jane's.png has a secret of its own."]
    assert len(pair) == 2 and "once side.png is aligned" in pair[0]
    (other, *_), _ = sorted_sentences(["a.nii was read as line_integral: its mark says so."], ["a.nii"], ["pa.nii"])
    assert list(other.values()) == [["pa.nii was read as line integrals: its mark says so."]], "a word, not an option"


@pytest.mark.parametrize(
    ("said", "plain", "about", "option"),
    [
        (
            "radiograph film-0.png has colours in 3% of its pixels, so it is no plain radiograph; export it as "
            "greyscale, or use its luminance (--set colour=ignore).",
            "radiograph a.png has colours in 3% of its pixels, so it is no plain radiograph; export it as greyscale.",
            [0],
            "colour",
        ),
        (
            "film-0.png and film-1.png are of two patients: their headers have different Patient IDs; give the right "
            "file, or use it all the same by --set check_header=false.",
            "a.png and b.png are of two patients: their headers have different Patient IDs; give the right file.",
            [0, 1],
            "check_header",
        ),
        (
            "radiographs film-0.png, film-1.png look exchanged: the one for view lat is the more frontal; give pa "
            "first where the geometry does, or switch this check off (--set check_order=false).",
            "radiographs a.png, b.png look exchanged: the one for view lat is the more frontal; give pa first where "
            "the geometry does.",
            [0, 1],
            "swap",
        ),
    ],
)
def test_a_refusal_offers_a_button_and_no_command_line(said: str, plain: str, about: list[int], option: str):
    sentence, films, remedies = refusal(said, ["film-0.png", "film-1.png"], ["a.png", "b.png"])
    assert sentence == plain and films == about and remedies[0]["option"] == option


def test_a_script_is_told_every_refusal_and_what_to_send():
    remedies = [{"option": "swap", "value": True}, {"option": "check_order", "value": False}]
    film = {"error": "a.png has colours.", "remedies": [{"option": "colour", "value": "ignore"}]}
    reading = {"films": [film, {"error": "", "remedies": []}], "remedies": remedies}
    assert why_not_ready(reading, "They look exchanged.") == (
        "a.png has colours. They look exchanged. To use it all the same, send colour=ignore check_order=false with it."
    )
    assert why_not_ready(None, "It took too long.") == "It took too long."


def test_what_numpy_cannot_write_is_a_full_disk(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="written") as caught:
            np.save(tmp_path / "used.npy", np.zeros(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tasks.is_full(caught.value) and not tasks.is_full(OSError("no such device"))


def test_every_word_is_there_in_every_language_and_is_used():
    known = words("en")
    for language in LANGUAGES:
        assert set(words(language)) == set(known), language
        for name, text in words(language).items():
            assert text and set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", known[name])), name
    scripts = {path.suffix: path.read_text() for path in ASSETS.iterdir() if path.suffix == ".j2"}
    code = "".join(path.read_text() for path in ASSETS.glob("*.js"))
    asked = set(re.findall(r"\bt\.([a-z_]+)", scripts[".j2"])) | set(re.findall(r"\bt\(\"([a-z_]+)\"", code))
    assert asked <= set(known)
    made = {*re.findall(r"`([a-z]+_)\$", code), "window_", "nothing_"}
    said = asked | set(re.findall(r"\"([a-z_]+)\"", code))
    assert not [name for name in known if name not in said and not name.startswith(tuple(made)) and name not in code]


def test_the_readers_language_is_spoken():
    assert choose_language("de-AT,de;q=0.9,en;q=0.8") == "de"
    assert choose_language("fr, en-GB") == "en" and choose_language("") == "en"
    assert json.loads((ASSETS / "words.de.json").read_text())["reconstruct"] != words("en")["reconstruct"]
