"""Paths and names reach a configuration's values as they are, whatever MONAI makes of their signs elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from monai.bundle import ConfigParser

from drr2ct.pipeline.running.plain import as_data, as_text, paths_as_data, typed_value

NAMES = [
    "jane",
    "out #3/ct.nii.gz",
    "a#b",
    "a::b",
    "$pa.nii.gz",
    '$print("EXECUTED")or"x"',
    "$import os",
    "%pa.nii.gz",
    "%known",
    "%#known",
    "@known",
    "@#known",
    "x@#known",
    "x%##known",
    "$@known",
    "a@b.org",
    "back\\#slash\\",
    "\\",
    'it\'s "quoted" #1 $@{}',
    "line\nbreak#",
    "é#ü$日本",
    "import #",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_what_was_given(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    stored = as_data(name)
    written = yaml.safe_load(yaml.safe_dump({"known": 1, "one": stored, "list": [stored, "b"]}, allow_unicode=True))
    config = {**written, "copy": "@one", "nested": {"again": "@list"}, "made": "$@one + '/x'"}
    parser = ConfigParser(config)
    assert parser.get_parsed_content("one") == name
    assert parser.get_parsed_content("copy") == name
    assert parser.get_parsed_content("list") == [name, "b"]
    assert parser.get_parsed_content("nested")["again"] == [name, "b"]
    assert parser.get_parsed_content("made") == name + "/x"
    assert as_text(written["one"]) == name
    assert "EXECUTED" not in capsys.readouterr().out


def test_what_is_plain_anyway_stays_as_it_is() -> None:
    assert as_data(["a/b.nii.gz", None, 3, True, 1.5]) == ["a/b.nii.gz", None, 3, True, 1.5]
    assert as_data((Path("a/b"), Path("c"))) == ["a/b", "c"]


def test_of_paths_alone_text_is_monais() -> None:
    assert paths_as_data(["$1 + 1", Path("a")]) == ["$1 + 1", "a"]
    assert ConfigParser({"x": paths_as_data(Path("$1 + 1"))}).get_parsed_content("x") == "$1 + 1"


def test_expressions_of_others_stay_expressions() -> None:
    for text in ("$@bundle_root + '/x'", "$1", "plain", 4, None):
        assert as_text(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2E+1", -20.0),
        ("1.0e-3", 0.001),
        ("3", 3),
        ("true", True),
        ("null", None),
        ("1e", "1e"),
        ("p1e-3", "p1e-3"),
        ("'1e-3'", "1e-3"),
        ("[a, b]", ["a", "b"]),
    ],
)
def test_a_word_is_the_value_that_it_says(text: str, value: object) -> None:
    assert typed_value(text) == value and type(typed_value(text)) is type(value)
