"""``drr2ct prepare`` as it is typed, and that what it makes can be trained on."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import numpy as np
import pytest
import torch

from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.data.splitting import PARTS
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.radiographs.scale import read_radiograph
from tests.bundle.conftest import assert_one_sentence
from tests.files import chest, write_dicom_series, write_nifti

AFFINE = np.array([[-10.0, 0, 0, 160], [0, -11, 0, 170], [0, 0, 12, 40], [0, 0, 0, 1]])


@pytest.mark.slow
def test_prepare_makes_a_data_set_and_checks_it(command, tmp_path: Path) -> None:
    for i in range(3):
        ct = chest(seed=i)
        ct[18 * (i % 2) : 18 * (i % 2) + 18, 8:24, 14 * (i // 2) : 14 * (i // 2) + 14] = 20  # an effusion of its own
        write_nifti(tmp_path / "source" / f"n{i}" / f"n{i}.nii.gz", ct, AFFINE)
    write_dicom_series(tmp_path / "source" / "d" / "study" / "series", chest(seed=9).round(), AFFINE)
    key = tmp_path / "key"
    key.write_text("a secret of the hospital, 32 bytes")
    options = ("--detector", 64, "--workers", 1, "--key-file", key, "--split", 0.5, 0.25, 0.25)
    threads = torch.get_num_threads()
    status, message = command("prepare", tmp_path / "source", tmp_path / "set", *options)
    assert torch.get_num_threads() == threads, "a process that goes on computing keeps its threads"
    assert status == 0, message
    found = {part: load_datalist(tmp_path / "set", part) for part in PARTS}
    assert sum(map(len, found.values())) == 4 and all(found.values())
    assert not any(
        item["patient"].startswith("n") and len(item["patient"]) < 4 for items in found.values() for item in items
    )
    status, message = command("prepare", tmp_path / "set", "--check")
    assert status == 0, message


def test_geometry_split_and_key_of_the_command(command, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(5)]
    for i, name in enumerate(names):
        write_nifti(tmp_path / "source" / f"{name}.nii.gz", chest((20, 18, 16), seed=i))
    views = BiplanarGeometry.from_angles(VolumeGrid(32, 300.0), (10.0, 80.0), detector_size=24)
    views.save(tmp_path / "views.json")
    key = tmp_path / "key"
    key.write_text("a secret of the hospital, 32 bytes\n")
    files = ("--geometry", tmp_path / "views.json", "--key-file", key, "--workers", 1)
    options = (*files, "--split", 0.2, 0.4, 0.4, "--seed", 3)
    status, message = command("prepare", tmp_path / "source", tmp_path / "set", *options)
    assert status == 0, message

    assert BiplanarGeometry.load(tmp_path / "set" / "geometry.json") == views
    found = {part: load_datalist(tmp_path / "set", part) for part in PARTS}
    assert {part: len(items) for part, items in found.items()} == {"training": 1, "validation": 2, "test": 2}
    hashed = {hmac.new(key.read_bytes().strip(), n.encode(), hashlib.sha256).hexdigest()[:16] for n in names}
    assert {item["patient"] for items in found.values() for item in items} == hashed
    image = read_radiograph(found["training"][0]["image"][0], "line_integral")[0]
    assert image.shape == (24, 24) and image.max() > 0.5

    again = command("prepare", tmp_path / "source", tmp_path / "set", *files, "--split", 0.6, 0.2, 0.2, "--seed", 3)
    assert_one_sentence(again, "other settings (fractions)")
    key.write_text("the secret of another hospital")
    assert_one_sentence(command("prepare", tmp_path / "source", tmp_path / "set", *options), "other settings (names)")


def test_prepare_says_what_is_missing(command, tmp_path: Path) -> None:
    assert_one_sentence(command("prepare", tmp_path / "nowhere", tmp_path / "set"), "nowhere")
    assert_one_sentence(command("prepare", tmp_path), "--check")
    assert not (tmp_path / "set").exists()
