"""Files appear whole or not at all."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from drr2ct.transforms.files import replacing, write_csv, write_json
from drr2ct.transforms.nifti import save_nifti


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


def test_a_nifti_is_what_nibabel_writes_but_for_the_compression(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-1024, 3071, (20, 30, 40), dtype=np.int16)
    image = nib.Nifti1Image(values, np.diag([0.7, 0.7, 2.5, 1]))
    nib.save(image, tmp_path / "theirs.nii.gz")
    for name in ("ours.nii.gz", "again.nii.gz", "ours.nii"):
        save_nifti(tmp_path / name, image)
    theirs = gzip.decompress((tmp_path / "theirs.nii.gz").read_bytes())
    assert gzip.decompress((tmp_path / "ours.nii.gz").read_bytes()) == theirs
    assert (tmp_path / "ours.nii").read_bytes() == theirs
    assert (tmp_path / "again.nii.gz").read_bytes() == (tmp_path / "ours.nii.gz").read_bytes()
    np.testing.assert_array_equal(nib.load(tmp_path / "ours.nii.gz").get_fdata(), values)
