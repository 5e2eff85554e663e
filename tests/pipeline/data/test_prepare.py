"""From studies to a data set: the contract, the split, privacy, resuming, shards, and bad patients."""

from __future__ import annotations

import errno
import gzip
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from rich.console import Console

import drr2ct.pipeline.data.patient_job as job_module
import drr2ct.pipeline.data.prepare as module
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.data.prepare import Summary, prepare
from drr2ct.pipeline.data.settings import PrepareSettings
from drr2ct.pipeline.data.splitting import PARTS
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.radiographs.scale import DISPLAY_MAXIMUM, PNG_COUNTS, read_radiograph
from drr2ct.transforms.validation import InputError
from tests.files import chest, read_rows, write_nifti
from tests.pipeline.data.dicom_files import SHAPE, write_series
from tests.pipeline.data.test_dicom_series import put

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=16)


def run(source: Path, dest: Path, workers: int = 1, report: Path | None = None, **settings: object) -> Summary:
    return prepare(source, dest, PrepareSettings(GEOMETRY, **settings), workers, report)  # type: ignore[arg-type]


def volumes(folder: Path, count: int = 5) -> Path:
    for i in range(count):
        write_nifti(folder / f"p{i}.nii.gz", chest((20, 18, 16), seed=i))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_nested_tree_becomes_a_data_set(tmp_path: Path) -> None:
    source, dest = tmp_path / "TCIA download", tmp_path / "set"
    for i in range(3):
        patient = source / f"LIDC {i}" / "study" / "x"
        write_series(patient / "thin", patient=f"LIDC-{i} ä", series="1")
        write_series(patient / "short", chest(SHAPE)[:, :, :10], patient=f"LIDC-{i} ä", series="2")
        write_series(patient / "tilted", patient=f"LIDC-{i} ä", series="3", lean=3)
    summary = run(source, dest)
    assert (summary.ready, summary.failed, summary.complete) == (3, 0, True)
    items = [item for part in PARTS for item in load_datalist(dest, part)]
    assert sorted(item["patient"] for item in items) == ["LIDC-0 ä", "LIDC-1 ä", "LIDC-2 ä"]
    assert nib.load(items[0]["label"]).shape == SHAPE
    assert BiplanarGeometry.load(dest / "geometry.json") == GEOMETRY
    reasons = [(Path(row["source"]).name, row["used"], row["reason"]) for row in read_rows(dest / "series.csv")][:3]
    assert [r[:2] for r in reasons] == [("thin", "yes"), ("short", "no"), ("tilted", "no")]
    assert "more slices" in reasons[1][2] and "gantry tilt" in reasons[2][2]


@pytest.mark.parametrize("bits", [8, 16])
def test_pictures_hold_the_line_integrals_of_the_files_beside_them(tmp_path: Path, bits: int) -> None:
    run(volumes(tmp_path / "source", 3), tmp_path / "set", png_bits=bits)
    full = DISPLAY_MAXIMUM / 255 if bits == 8 else 1 / PNG_COUNTS
    for view in ("pa", "lat"):
        stem = tmp_path / "set" / "p1" / f"p1_{view}_drr"
        picture = np.asarray(Image.open(stem.with_suffix(".png")))
        assert picture.dtype == (np.uint8 if bits == 8 else np.uint16)
        exact = read_radiograph(stem.with_suffix(".nii.gz"), "line_integral")[0].numpy()
        assert exact.max() > 1
        np.testing.assert_allclose(picture * full, exact, atol=full)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_volumes_of_other_kinds_become_the_same_data_set(tmp_path: Path, ending: str) -> None:
    for path in sorted(volumes(tmp_path / "nifti", 3).iterdir()):
        image = sitk.ReadImage(str(path))
        (tmp_path / "other").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(tmp_path / "other" / path.name.replace(".nii.gz", ending)))
    for kind in ("nifti", "other"):
        assert run(tmp_path / kind, tmp_path / f"set {kind}").ready == 3
    a, b = (nib.load(tmp_path / f"set {kind}" / "p2" / "p2.nii.gz") for kind in ("nifti", "other"))
    np.testing.assert_array_equal(a.get_fdata(), b.get_fdata())
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)


def test_the_record_says_what_a_patient_was_made_of(tmp_path: Path) -> None:
    source = volumes(tmp_path / "source", 3)
    run(source, tmp_path / "set")
    record = json.loads((tmp_path / "set" / "provenance.json").read_text())
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["settings"]["png_bits"] == 16
    for i in range(3):
        digest = hashlib.sha256((source / f"p{i}.nii.gz").read_bytes()).hexdigest()
        assert record["patients"][f"p{i}"]["source_sha256"] == digest


def test_the_worked_example_of_the_documentation(tmp_path: Path) -> None:
    source, dest = tmp_path / "LIDC-IDRI", tmp_path / "lidc"
    series = {
        "LIDC-IDRI-0001/01-01-2000-NA-NA-30178/3000566.000000-NA-03192": {},
        "LIDC-IDRI-0001/01-01-2000-NA-NA-35511/3000923.000000-NA-62357": {"change": put(Modality="DX"), "study": "2"},
        "LIDC-IDRI-0002/01-01-2000-NA-NA-98329/3000522.000000-NA-04919": {"skip": (6,)},
    }
    for path, arguments in series.items():
        values = chest((20, 18, 56))
        write_series(source / path, values, patient=path.split("/")[0], spacing=(16.0, 16.0, 2.5), **arguments)
    assert run(source, dest).ready == 1
    page = (Path(__file__).parents[3] / "docs" / "your-data.md").read_text(encoding="utf-8")
    rows = read_rows(dest / "series.csv")
    assert len(rows) == 3
    for row in rows:
        assert f"| {row['patient']} | {row['source']} | {row['used']} | {row['reason']} |" in page


def test_nothing_of_the_header_but_geometry_is_copied(tmp_path: Path) -> None:
    source, dest = tmp_path / "source", tmp_path / "set"
    for i in range(3):
        write_series(source / f"Secret{i}" / "s", patient=f"Secret{i}", series=str(i))
    write_nifti(source / "SecretNaN.nii.gz", np.full((20, 20, 20), np.nan, np.float32))
    run(source, dest, key=b"0123456789abcdef", report=tmp_path / "link.csv")
    run(source, dest, key=b"0123456789abcdef")
    for name, data in contents(dest).items():
        plain = gzip.decompress(data) if name.endswith(".gz") else data
        for secret in (b"Secret", b"19500101", b"200001"):
            assert secret not in plain and secret.decode() not in name, name
    assert {row["source"] for row in read_rows(tmp_path / "link.csv")} >= {"Secret0/s", "Secret1/s"}
    with pytest.raises(InputError, match=r"other settings \(names\)"):
        run(source, dest, key=b"another key of 16")


def test_the_result_depends_neither_on_workers_nor_on_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = volumes(tmp_path / "source")
    run(source, tmp_path / "one" / "set")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, complete in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert run(source, tmp_path / "ranks" / "set").complete == complete
    assert contents(tmp_path / "one") == contents(tmp_path / "ranks")


@pytest.mark.slow
def test_several_processes_give_the_same(tmp_path: Path) -> None:
    source = volumes(tmp_path / "source", 3)
    run(source, tmp_path / "one" / "set")
    run(source, tmp_path / "two" / "set", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, dest = volumes(tmp_path / "source"), tmp_path / "a" / "set"
    write, calls = job_module.write_volume, []

    def killed(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(job_module, "write_volume", killed)
    with pytest.raises(KeyboardInterrupt):
        run(source, dest)
    assert not (dest / "p2").exists() and (dest / ".partial" / "p2").exists()
    calls.clear()
    calls += [()] * 3
    assert run(source, dest).made == 3
    run(source, tmp_path / "b" / "set")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def nan(path: Path) -> None:
    values = chest((20, 18, 16))
    values[3, 3, 3] = np.nan
    write_nifti(path, values)


def truncated(path: Path) -> None:
    write_nifti(path, chest((20, 18, 16)))
    path.write_bytes(path.read_bytes()[:-2000])


BAD = {
    "NaN": (nan, "NaN or infinite"),
    "truncated gzip": (truncated, "cannot be read"),
    "constant": (lambda path: write_nifti(path, np.full((20, 20, 20), -1000, np.int16)), "same value -1000"),
    "not HU": (lambda path: write_nifti(path, chest((20, 18, 16)) + 1024), "no air"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_patient_does_not_stop_the_run(tmp_path: Path, name: str) -> None:
    write, reason = BAD[name]
    source, dest = volumes(tmp_path / "source", 3), tmp_path / "set"
    write(source / "bad.nii.gz")
    summary = run(source, dest)
    assert (summary.ready, summary.failed, summary.complete) == (3, 1, True)
    (row,) = [row for row in read_rows(dest / "series.csv") if row["patient"] == "bad"]
    assert reason in row["reason"] and str(tmp_path) not in row["reason"]
    write_nifti(source / "bad.nii.gz", chest((20, 18, 16), seed=9))
    assert run(source, dest).made == 1  # repaired


def test_the_next_best_series_is_used_if_the_best_cannot_be_read(tmp_path: Path) -> None:
    source, dest = tmp_path / "source", tmp_path / "set"
    write_series(source / "dark", np.full((20, 20, 20), 40.0), series="1")
    write_series(source / "good", series="2")
    assert run(source, dest).ready == 1
    rows = {row["source"]: row for row in read_rows(dest / "series.csv")}
    assert rows["good"]["used"] == "yes" and "same value" in rows["dark"]["reason"]


@pytest.mark.parametrize("affine", [
    np.diag([0.5, 0.5, 10, 1]),
    np.diag([-5.0, 5, 5, 1]),
    np.array([[4.0, -3, 0, 0], [3, 4, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]]),
], ids=["0.5×0.5×10", "left-handed", "oblique"])  # fmt: skip
def test_unusual_affines_are_kept(tmp_path: Path, affine: np.ndarray) -> None:
    write_nifti(tmp_path / "source" / "a.nii.gz", chest((20, 18, 16)), affine)
    assert run(tmp_path / "source", tmp_path / "set").ready == 1
    np.testing.assert_allclose(nib.load(tmp_path / "set" / "a" / "a.nii.gz").affine, affine, atol=1e-5)


def test_metal_is_clipped_and_noted(tmp_path: Path) -> None:
    values = chest((20, 18, 16))
    values[8:10, 8, 8] = 20000
    write_nifti(tmp_path / "source" / "a.nii.gz", values)
    run(tmp_path / "source", tmp_path / "set")
    record = json.loads((tmp_path / "set" / "provenance.json").read_text())["patients"]["a"]
    assert record["notes"][-1] == "2 voxels above 3071 HU clipped"
    assert nib.load(tmp_path / "set" / "a" / "a.nii.gz").get_fdata().max() == 3071


def test_studies_of_a_patient_stay_in_one_part(tmp_path: Path) -> None:
    for i in range(6):
        for study in ("1", "2"):
            write_series(tmp_path / "source" / f"{i}-{study}", patient=f"P{i}", study=study)
    assert run(tmp_path / "source", tmp_path / "set", per_study=True).ready == 12
    home: dict[str, set[str]] = {}
    for part in PARTS:
        for item in load_datalist(tmp_path / "set", part):
            home.setdefault(item["group"], set()).add(part)
    assert len(home) == 6 and all(len(parts) == 1 for parts in home.values())


def test_the_patient_can_be_part_of_a_path(tmp_path: Path) -> None:
    for name in ("train_1_a_1", "train_1_b_1", "train_2_a_1"):
        write_nifti(tmp_path / "source" / f"{name}.nii.gz", chest((20, 18, 16)))
    assert run(tmp_path / "source", tmp_path / "set", patient_pattern=r"(train_\d+)_").ready == 2


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    source = volumes(tmp_path / "source", 3)
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        run(source, dest)
    assert contents(dest) == {"thesis.txt": b"precious"}
    with pytest.raises(InputError, match="inside its source"):
        run(source, source / "set")
    with pytest.raises(InputError, match="is a file"):
        run(source, dest / "thesis.txt")
    run(source, tmp_path / "set")
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        run(source, tmp_path / "set", seed=1)
    with pytest.raises(InputError, match="3 patients that the source lacks"):
        run(write_nifti(tmp_path / "other" / "q.nii.gz", chest((20, 18, 16))).parent, tmp_path / "set")


def test_a_source_without_a_ct_says_why(tmp_path: Path) -> None:
    write_series(tmp_path / "source" / "a", lean=3)
    with pytest.raises(InputError, match=r"no usable CT.*gantry tilt"):
        run(tmp_path / "source", tmp_path / "set")
    with pytest.raises(InputError, match="holds no DICOM"):
        run(write_series(tmp_path / "empty", skip=range(99)), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_too_little_space_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = volumes(tmp_path / "source", 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="3 patients need about"):
        run(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, disk = tmp_path / "source", tmp_path / "disk"
    disk.mkdir()
    noise = np.random.default_rng(0).integers(-1000, 3000, (64, 64, 64), dtype=np.int16)
    for i in range(4):
        write_nifti(source / f"p{i}.nii.gz", noise)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted")
    try:
        monkeypatch.setattr(module, "_check_space", lambda *args: None)
        with pytest.raises(InputError, match="is full"):
            run(source, disk / "set")
        ready = [path for path in (disk / "set").glob("p*") if path.is_dir()]
        assert 0 < len(ready) < 4
        assert all(nib.load(path / f"{path.name}.nii.gz").get_fdata().shape == (64, 64, 64) for path in ready)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_no_patients_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = volumes(tmp_path / "source", 3)
    monkeypatch.setattr(job_module, "write_volume", full)
    with pytest.raises(InputError, match="is full"):
        run(source, tmp_path / "set")
    monkeypatch.undo()
    assert run(source, tmp_path / "set").ready == 3


def test_copies_of_one_ct_stay_in_one_part(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for i in range(6):
        values = np.roll(chest((20, 18, 16)), i, axis=0)
        values[: 3 * i, :, : 2 * i] = 300  # another body each
        write_nifti(source / f"p{i}.nii.gz", values)
        shutil.copy(source / f"p{i}.nii.gz", source / f"p{i} (1).nii.gz")
    assert run(source, tmp_path / "set").ready == 12
    home = {item["patient"]: part for part in PARTS for item in load_datalist(tmp_path / "set", part)}
    assert len(home) == 12
    assert all(home[f"p{i}"] == home[f"p{i} (1)"] for i in range(6))
    reasons = {row["patient"]: row["reason"] for row in read_rows(tmp_path / "set" / "series.csv")}
    assert any("the same CT as p3" in reason for reason in reasons.values())


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    source = volumes(tmp_path / "source", 3)
    path = write_nifti(source / "x" / "ct.nii.gz", chest((20, 18, 16), seed=9))
    path.parent.rename(os.fsdecode(os.fsencode(source) + b"/M\xfcller"))
    assert run(source, tmp_path / "set").ready == 4
    (row,) = [row for row in read_rows(tmp_path / "set" / "series.csv") if "ller" in row["source"]]
    assert row["source"] == "Müller/ct.nii.gz" and row["patient"].startswith("Müller")
    assert run(source, tmp_path / "keyed", key=b"0123456789abcdef").ready == 4


def test_the_next_candidate_is_used_whatever_is_wrong_with_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "source" / "a", series="1")
    write_series(tmp_path / "source" / "b", chest(SHAPE)[::-1, ::-1, :12], series="2")
    read = job_module.read_candidate

    def fails(candidate: job_module.Candidate, *digest: object) -> object:
        if candidate.slices == SHAPE[2]:
            raise TypeError("something else")
        return read(candidate, *digest)

    monkeypatch.setattr(job_module, "read_candidate", fails)
    assert run(tmp_path / "source", tmp_path / "set").ready == 1
    rows = {row["source"]: row for row in read_rows(tmp_path / "set" / "series.csv")}
    assert rows["b"]["used"] == "yes" and "something else" in rows["a"]["reason"]


def test_many_studies_of_one_id_are_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        write_series(tmp_path / "source" / f"subject-{i}" / "CT", patient="ANONYMOUS", study=str(i + 1))
    prepare(tmp_path / "source", tmp_path / "set", PrepareSettings(GEOMETRY), 1, None, Console(width=300))
    assert "ANONYMOUS has 4 studies in 4 folders" in capsys.readouterr().out
    assert run(tmp_path / "source", tmp_path / "named", patient_pattern=r"subject-\d").ready == 4


def test_who_has_no_ct_that_can_be_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = volumes(tmp_path / "source", 1)
    write_series(source / "s1", patient="SLABS", change=lambda data, k: setattr(data, "SliceThickness", 40))
    for name in ("p0_mask.nii.gz", "view.tif"):  # nobody's CT
        (source / name).write_bytes(b"x")
    summary = prepare(source, tmp_path / "set", PrepareSettings(GEOMETRY), 1, None, Console(width=300))
    assert (summary.ready, summary.failed, summary.without_ct) == (1, 0, 1)
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert said == ["SLABS left out: slabs of 40 mm every 10 mm; use the slices they were made from"]


def test_copies_stay_together_where_all_cts_look_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = volumes(tmp_path / "source", 5)
    for i in range(5):
        shutil.copy(source / f"p{i}.nii.gz", source / f"p{i} (1).nii.gz")
    prepare(source, tmp_path / "set", PrepareSettings(GEOMETRY), 1, None, Console(width=300))
    assert "too little to split: copies alone are kept together" in capsys.readouterr().out
    home = {item["patient"]: part for part in PARTS for item in load_datalist(tmp_path / "set", part)}
    assert all(home[f"p{i}"] == home[f"p{i} (1)"] for i in range(5))


def test_ids_that_differ_in_capitals_or_spaces_stay_in_one_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, patient in enumerate(("A 1", "a1", "B", "C")):
        values = chest(SHAPE)[::-1, ::-1]
        values[: 3 * i, :, : 2 * i] = 300  # another body each
        write_series(tmp_path / "source" / str(i), values, patient=patient)
    prepare(tmp_path / "source", tmp_path / "set", PrepareSettings(GEOMETRY), 1, None, Console(width=300))
    assert "a1 and A 1 differ in capitals or spaces alone; both stay in one part" in capsys.readouterr().out
    home = {item["patient"]: part for part in PARTS for item in load_datalist(tmp_path / "set", part)}
    assert home["a1"] == home["A 1"] and len(home) == 4
