"""Files appear whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from drr2ct.transforms.files import replacing, write_csv, write_json


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "v.nii.gz"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith("v.nii.gz")
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["v.nii.gz"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"größe": 1})
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")
    assert json.loads(path.read_text(encoding="utf-8")) == {"größe": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_two_writers_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second
        first.touch()
        second.touch()


def test_tables_read_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["a", "b"], [["x, y", 1], ["é", 2]])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"a": "x, y", "b": "1"}, {"a": "é", "b": "2"}]
