"""The commands that judge a run, as users type them: what they write, and what they say to wrong input."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.evaluation.conditions import conditions
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.pipeline.running.provenance import NOTE
from drr2ct.transforms.files import write_json
from tests.bundle.conftest import assert_one_sentence
from tests.files import chest, write_nifti

FAST = ("--set", "num_workers=0", "--set", "precision=fp32", "--set", "export_grid=none")


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.pt"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate_compare_and_report(command, dataset: Path, run: Path, checkpoint: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in ((first, "last"), (second, "best_loss")):
        weights = checkpoint.with_name(f"{name}.pt")
        status, message = command("evaluate", dataset, "--checkpoint", weights, "--output", folder, *FAST)
        assert status == 0, message
    baselines = {row["baseline"] for row in rows_of(first / "baselines.csv")}
    assert baselines == {"mean_volume", "nearest_patient", "backprojection", "fitted"}
    assert json.loads((first / "summary.json").read_text())["model"]["checkpoint"] == str(checkpoint)
    assert command("compare", first, second)[0] == 0
    status, message = command("report", run, "--evaluation", first, "--dataset", dataset, "--output", tmp_path / "page")
    assert status == 0, message
    page = (tmp_path / "page" / "report.html").read_text()
    assert f"{float(rows_of(first / 'patients.csv')[0]['psnr']):.2f} dB" in page and "mean volume" in page


def test_evaluate_says_what_is_wrong(command, dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    def evaluate(data: Path, weights: Path, *more: str) -> tuple[int, str]:
        return command("evaluate", data, "--checkpoint", weights, "--output", tmp_path / "out", *FAST, *more)

    assert_one_sentence(evaluate(dataset, tmp_path / "none.pt"), "does not exist")
    assert_one_sentence(evaluate(tmp_path / "nowhere", checkpoint), "does not exist")
    assert_one_sentence(evaluate(dataset, checkpoint, "--set", "part=training"), "was trained on 4 of the 4")
    assert_one_sentence(evaluate(dataset, checkpoint, "--set", "export_grid=mine"), "export grid 'mine' is unknown")
    assert_one_sentence(evaluate(dataset, checkpoint, "--set", "with_baselins=false"), "with_baselins is no key")
    config = checkpoint.parent.parent / "config.yaml"
    before = config.read_bytes()
    result = command("evaluate", dataset, "--checkpoint", checkpoint, "--output", config.parent, *FAST)
    assert_one_sentence(result, f"{config} is not that of an evaluation, which would replace it")
    assert config.read_bytes() == before
    # a copy of a patient of the training, under another name
    copied = tmp_path / "copy" / "someone" / "someone.nii.gz"
    copied.parent.mkdir(parents=True)
    copied.write_bytes(Path(load_datalist(dataset, "training")[0]["label"]).read_bytes())
    listing = {"test": [{"patient": "someone", "label": "someone/someone.nii.gz"}]}
    (tmp_path / "copy" / "dataset.json").write_text(json.dumps(listing))
    assert_one_sentence(evaluate(tmp_path / "copy", checkpoint), "(someone)")
    assert not (tmp_path / "out" / "patients.csv").exists()


@pytest.mark.parametrize("part", ["test", "all"])
def test_a_data_set_that_is_only_for_testing(command, checkpoint: Path, tmp_path: Path, part: str) -> None:
    write_nifti(tmp_path / "set" / "new" / "new.nii.gz", chest(seed=9))
    arguments = ("evaluate", tmp_path / "set", "--checkpoint", checkpoint, "--output", tmp_path, *FAST)
    if part == "test":
        assert_one_sentence(command(*arguments), "1 patient is too few to split")
        (tmp_path / "set" / "dataset.json").write_text('{"test": [{"patient": "new", "label": "new/new.nii.gz"}]}')
    old, mine = (tmp_path / "predictions" / name for name in ("old", "mine"))
    for folder, key in ((old, {}), (mine, {"key": "of a reconstruction"})):
        write_json(folder / f"{folder.name}_ct.json", {"note": NOTE, **key})
        (folder / f"{folder.name}_ct.nii.gz").touch()
    status, message = command(*arguments, "--part", part)
    assert status == 0, message
    assert mine.is_dir() and not old.exists(), "volumes of patients who are not in the tables"
    assert {row["baseline"] for row in rows_of(tmp_path / "baselines.csv")} == {"backprojection", "fitted"}


def test_compare_says_what_is_wrong(command, tmp_path: Path) -> None:
    def evaluation(name: str, patient: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        entries = [{"patient": patient, "figures": {"psnr": 20.0}}]
        (folder / "patients.json").write_text(json.dumps({"format": 1, "patients": entries}))
        return folder

    one, other = evaluation("one", "a"), evaluation("other", "b")
    assert_one_sentence(command("compare", one, tmp_path / "nowhere"), "does not exist")
    assert_one_sentence(command("compare", one, other), "no patient in common")
    (other / "patients.json").write_text("[]")
    assert_one_sentence(command("compare", one, other), "is not the table of an evaluation")


def test_segmentations(command, tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[3:9, 3:9, 3:9] = 1
    write_nifti(tmp_path / "true" / "p" / "heart.nii.gz", mask)
    write_nifti(tmp_path / "made" / "p" / "heart.nii.gz", np.roll(mask, 2, axis=0))
    table = tmp_path / "table.csv"
    assert command("segmentations", tmp_path / "made", tmp_path / "true", "--output", table)[0] == 0
    (row,) = rows_of(table)
    assert float(row["dice"]) == pytest.approx(4 / 6, abs=1e-5) and float(row["hd95"]) == 20.0
    for folder, says in (("nowhere", "holds no <patient>"), ("made", "has 2 dimensions")):
        write_nifti(tmp_path / "made" / "p" / "heart.nii.gz", mask[0])
        result = command("segmentations", tmp_path / "true", tmp_path / folder, "--output", tmp_path / "x.csv")
        assert_one_sentence(result, says)


def test_robustness(command, dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    status, message = command("robustness", dataset, "--checkpoint", checkpoint, "--output", tmp_path)
    assert status == 0, message
    rows = rows_of(tmp_path / "robustness.csv")
    assert [row["condition"] for row in rows] == [condition.name for condition in conditions(16)]
    assert float(rows[0]["psnr_change"]) == 0
    listing = tmp_path / "listing"
    listing.mkdir()
    (listing / "dataset.json").write_text("{}")
    for arguments, says in (
        ((dataset, "--checkpoint", tmp_path / "none.pt"), "does not exist"),
        ((tmp_path / "nowhere", "--checkpoint", checkpoint), "does not exist"),
        ((dataset, "--checkpoint", checkpoint, "--part", "tests"), "unknown"),
        ((dataset, "--checkpoint", checkpoint, "--part", "training"), "was trained on"),
        ((dataset, "--checkpoint", checkpoint, "--split", 0, 0, 1), "was trained on 4 of the 6"),
        ((dataset, "--part", "all", "--split-seed", 3), "--split-seed has no effect with --part all"),
        ((listing, "--split-seed", 3), f"--split-seed has no effect on {listing}, whose dataset.json says the parts"),
    ):
        assert_one_sentence(command("robustness", *arguments, "--output", tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


def test_report_says_what_is_wrong(command, run: Path, tmp_path: Path) -> None:
    assert_one_sentence(command("report", tmp_path / "nowhere"), "does not exist")
    assert_one_sentence(command("report", tmp_path), "holds no checkpoints")
    assert_one_sentence(command("report", run, run), "given twice")
    assert_one_sentence(command("report", run, "--evaluation", tmp_path), "no patients.csv")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(dataset: Path, checkpoint: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    items = []
    for i in range(3):  # an odd number
        write_nifti(root / f"new{i}" / f"new{i}.nii.gz", chest(seed=20 + i))
        items.append({"patient": f"new{i}", "label": f"new{i}/new{i}.nii.gz"})
    (root / "dataset.json").write_text(json.dumps({"test": items}))
    job = ["-m", "monai.bundle", "run", "--config_file", bundle_file("configs/evaluate.yaml"), "--dataset_dir", root]
    job += ["--checkpoint", checkpoint, "--precision", "fp32", "--num_workers", 0, "--output_dir"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [str(part) for part in (sys.executable, *launcher, *job, tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    for table, keys in (("patients.csv", 4), ("baselines.csv", 6)):
        one, two = (rows_of(tmp_path / name / table) for name in ("one", "two"))
        assert len(one) == len(two) == keys
        for first, second in zip(one, two, strict=True):
            for column, value in first.items():
                if column in ("patient", "baseline") or not value:
                    assert second[column] == value
                else:
                    assert float(second[column]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), column
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["count"] == summaries[1]["count"] == 3
    for column, entry in summaries[0]["figures"].items():
        assert summaries[1]["figures"][column]["worst_patient"] == entry["worst_patient"]
        assert summaries[1]["figures"][column]["low"] == pytest.approx(entry["low"], rel=1e-4, abs=1e-4)
    assert len(list((tmp_path / "two" / "predictions").glob("*/*_ct.nii.gz"))) == 3
