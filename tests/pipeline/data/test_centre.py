"""A data set that is aimed at the lungs is so for whatever makes labels and radiographs of it."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drr2ct.pipeline.data import survey
from drr2ct.pipeline.data.cohort import CohortPlan, _load_source, write_cohort
from drr2ct.pipeline.data.datalist import load_parts
from drr2ct.pipeline.data.dataset_check import check_dataset
from drr2ct.pipeline.data.prepare import prepare
from drr2ct.pipeline.data.settings import PrepareSettings
from drr2ct.pipeline.data.survey import report_on
from drr2ct.transforms import LoadCT, files_to_samples, render_drr
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.lungs import find_lungs
from drr2ct.transforms.preprocessing import files_to_kept, kept_to_samples
from drr2ct.transforms.radiographs.scale import read_radiograph
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.kept import Scan
from drr2ct.transforms.varied.scan import Varier
from drr2ct.transforms.varied.variation import WIDE, Draw, Variation
from drr2ct.transforms.volume import bounding_box_centre
from tests.files import chest, read_rows, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=32)


def long_scan(seed: int) -> np.ndarray:
    """A chest of 200 mm on 500 mm of trunk without air; 10 mm voxels, axes R, A, S."""
    values = chest((34, 30 + seed, 70), seed=seed)
    values[(values < -500) & (values > -950)] = 30
    values[:, :, 50:] = chest((34, 30 + seed, 20), seed=seed)
    return values


def write(source: Path, count: int = 3) -> Path:
    for i in range(count):
        affine = np.diag([-10.0, -10, 10, 1])
        affine[:3, 3] = [170, 150, -1000 + 100 * i]
        write_nifti(source / f"p{i}.nii.gz", long_scan(i), affine)
    return source


@pytest.fixture(scope="module")
def aimed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("aimed")
    prepare(write(root / "source"), root / "set", PrepareSettings(GEOMETRY, centre="lungs"), workers=1)
    return root / "set"


def items(root: Path) -> list[dict]:
    return [item for part in load_parts(root).values() for item in part]


def test_labels_and_radiographs_are_of_the_lungs(aimed: Path) -> None:
    for item in items(aimed):
        ct = LoadCT()(item["label"])
        lungs = find_lungs(ct)
        assert lungs is not None
        np.testing.assert_allclose(item["isocentre"], lungs.centre)
        assert item["isocentre"][2] - bounding_box_centre(ct)[2] == pytest.approx(250, abs=15)
        sample = files_to_samples(GEOMETRY)(item)
        affine = np.asarray(sample["label"].affine)
        np.testing.assert_allclose((affine @ [7.5, 7.5, 7.5, 1])[:3], item["isocentre"], atol=1e-3)
        # what is stored is what would be rendered for that label
        rendered = render_drr(ct, GEOMETRY, isocentre=item["isocentre"])
        for path, image in zip(item["image"], rendered, strict=True):
            np.testing.assert_allclose(read_radiograph(path, "line_integral")[0], image, atol=1e-3)
        np.testing.assert_allclose(sample["image"] * LINE_INTEGRAL_SCALE, rendered, atol=1e-3)


def test_it_is_known_without_the_data_list_too(aimed: Path, tmp_path: Path) -> None:
    shutil.copytree(aimed, tmp_path / "copy")
    before = {item["patient"]: item["isocentre"] for item in items(aimed)}
    (tmp_path / "copy" / "dataset.json").unlink()
    assert {item["patient"]: item["isocentre"] for item in items(tmp_path / "copy")} == before
    # nor is it forgotten by a list that the user writes
    listed = {"training": [{"label": "p0/p0.nii.gz"}]}
    (tmp_path / "copy" / "dataset.json").write_text(json.dumps(listed))
    assert items(tmp_path / "copy")[0]["isocentre"] == before["p0"]


def test_what_was_found_is_said(aimed: Path) -> None:
    for row in read_rows(aimed / "series.csv"):
        assert re.search(r"aimed at the lungs \([\d.]+ l\), 2[45]\d mm from the middle of the scan", row["reason"])
        assert "--centre" not in row["reason"]
    said = [text for check in check_dataset(aimed) for text in (*check.problems, *check.notes)]
    # crude chests are alike, and too few to be kept in one part; nothing is said of the aim
    assert all(text.startswith("shows the CT of") for text in said), said


def test_varied_patients_are_aimed_at_the_lungs(aimed: Path) -> None:
    item = items(aimed)[0]
    kept = files_to_kept(GEOMETRY)({"label": item["label"], "patient": "p", "isocentre": item["isocentre"]})
    unvaried = kept_to_samples(GEOMETRY, prob=0.0)(kept)
    label = files_to_samples(GEOMETRY)(item)["label"]
    np.testing.assert_allclose(unvaried["label"].affine, label.affine, atol=1e-3)
    assert (unvaried["label"].as_tensor() - label.as_tensor()).abs().mean() < 0.01
    # the end of the scan that is cut off does not move the aim, warping takes it along
    cut = Draw.of(Variation(0.0, 0.0, 0.0, 0.0, coverage=0.3, tissue=0.0), np.random.RandomState(1))
    varied = Varier(GEOMETRY)(kept["label"], cut)
    assert varied.meta["scan_high"][2] - varied.meta["scan_low"][2] < 650
    np.testing.assert_allclose(varied.meta["isocentre"], item["isocentre"], atol=1e-3)
    ball = kept["label"].clone()
    i, j, k = (round(float(x)) for x in (np.linalg.inv(np.asarray(ball.affine)) @ [*item["isocentre"], 1])[:3])
    ball[0, i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3] = 3000
    for seed in range(3):
        bent = Varier(GEOMETRY)(ball, Draw.of(replace(WIDE, shift_mm=0), np.random.RandomState(seed)))
        i, j, k = (round(float(x)) for x in (np.linalg.inv(np.asarray(bent.affine)) @ [*bent.meta["isocentre"], 1])[:3])
        assert float(bent[0, i, j, k]) > 1500


def test_a_cohort_is_aimed_where_its_cts_are(aimed: Path, tmp_path: Path) -> None:
    source = aimed / "p0" / "p0.nii.gz"
    wanted = {item["patient"]: item for item in items(aimed)}["p0"]["isocentre"]
    assert Scan.of(_load_source(source, GEOMETRY)["label"]).isocentre == pytest.approx(wanted)
    # where the CTs themselves are to be varied while training, the list has it
    write_cohort(tmp_path / "cohort", CohortPlan((source,), GEOMETRY, training=0, validation=0, test=0))
    (listed,) = load_parts(tmp_path / "cohort")["training"]
    assert listed["isocentre"] == wanted


def test_without_lungs_there_is_nothing_to_aim_at(tmp_path: Path) -> None:
    write(tmp_path / "source")
    legs = long_scan(0)[:, :, :45]
    write_nifti(tmp_path / "source" / "legs.nii.gz", legs)
    summary = prepare(tmp_path / "source", tmp_path / "set", PrepareSettings(GEOMETRY, centre="lungs"), workers=1)
    assert (summary.ready, summary.failed) == (3, 1)
    reasons = {row["patient"]: row["reason"] for row in read_rows(tmp_path / "set" / "series.csv")}
    assert reasons["legs"] == "the CT shows no lungs to aim at; leave it out, or aim at the centre of its box"


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    write(tmp_path / "source")
    prepare(tmp_path / "source", tmp_path / "set", PrepareSettings(GEOMETRY), workers=1)
    record = tmp_path / "set" / "provenance.json"
    content = json.loads(record.read_text())
    del content["settings"]["centre"]  # as earlier versions wrote it
    record.write_text(json.dumps(content))
    assert prepare(tmp_path / "source", tmp_path / "set", PrepareSettings(GEOMETRY), workers=1).made == 0
    with pytest.raises(InputError, match="other settings \\(centre\\)"):
        prepare(tmp_path / "source", tmp_path / "set", PrepareSettings(GEOMETRY, centre="lungs"), workers=1)


def test_aim_and_twins_are_said_at_the_start_of_a_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source", 2)
    wide = np.diag([-10.0, -10, 10, 1])
    write_nifti(source / "chest.nii.gz", chest((34, 30, 26)), wide)
    thick = chest((34, 30, 26)).reshape(34, 30, 13, 2).mean(3)  # every two slices in one
    affine = np.diag([-10.0, -10, 20, 1])
    affine[2, 3] = 5
    write_nifti(source / "again.nii.gz", thick.round(), affine)
    parts = {
        "training": [{"patient": name, "label": str(source / f"{name}.nii.gz")} for name in ("p0", "chest")],
        "validation": [{"patient": name, "label": str(source / f"{name}.nii.gz")} for name in ("p1", "again")],
        "test": [{"patient": "gone", "label": str(source / "gone.nii.gz")}],
    }
    with caplog.at_level(logging.WARNING):
        report_on(parts, VolumeGrid(16), tmp_path / "cache")
    said = "\n".join(caplog.messages)
    assert "chest (training) shows the CT of again (validation)" in said or "again (validation) shows the CT of" in said
    assert "patient p0: the lungs' centre is" in said and "--centre lungs" in said
    assert "patient chest: " not in said and "gone" not in said
    # and once more, from what is kept
    caplog.clear()
    monkeypatch.setattr(LoadCT, "__call__", lambda *_: pytest.fail("was read again"))
    parts.pop("test")
    with caplog.at_level(logging.WARNING):
        report_on(parts, VolumeGrid(16), tmp_path / "cache")
    assert "\n".join(caplog.messages) == said
    # a file that has changed is looked at again
    (source / "again.nii.gz").write_bytes(b"")
    monkeypatch.undo()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        report_on(parts, VolumeGrid(16), tmp_path / "cache")
    assert "again" not in "\n".join(caplog.messages)


def test_each_ct_is_looked_at_though_a_process_comes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [
        {"patient": f"p{i}", "label": str(write_nifti(tmp_path / f"p{i}.nii.gz", chest(seed=i)))} for i in range(5)
    ]
    for rank in (0, 1):  # the second finds what the first has looked at
        monkeypatch.setattr(survey, "share", lambda count, rank=rank: range(rank, count, 2))
        report_on({"training": items}, VolumeGrid(16), tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "seen").glob("*.json"))) == len(items)


def test_an_isocentre_that_is_none_is_refused(aimed: Path, tmp_path: Path) -> None:
    for i, wrong in enumerate(([1, 2], "here", [0, 0, float("nan")], None)):
        root = tmp_path / str(i)
        write_nifti(root / "p" / "p.nii.gz", chest())
        listed = {"training": [{"label": "p/p.nii.gz", "isocentre": wrong}]}
        (root / "dataset.json").write_text(json.dumps(listed))
        with pytest.raises(InputError, match="is not three coordinates in mm"):
            load_parts(root)
