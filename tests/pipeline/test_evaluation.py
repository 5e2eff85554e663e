import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoint import describe, write_checkpoint
from drr2ct.pipeline.evaluation import (
    PatientTable,
    compare_evaluations,
    compare_segmentations,
    refuse_leakage,
)
from drr2ct.pipeline.metrics import FigureHandler, ReconstructionMetric
from drr2ct.transforms.validation import InputError
from tests.files import write_nifti


def test_leakage_is_refused(tmp_path):
    network = create_network("cascade64")
    lists = {"training": [{"patient": "a"}, {"patient": "b"}], "validation": [{"patient": "c"}]}
    content = {"network": {}, "description": describe(network, "cascade64", "cube", lists)}
    path = write_checkpoint(tmp_path / "last.pt", content)
    refuse_leakage(path, [{"patient": "c"}, {"patient": "d"}])
    with pytest.raises(InputError, match=r"trained on 1 of the 2 patients.*\(b\)"):
        refuse_leakage(path, [{"patient": "b"}, {"patient": "d"}])


def evaluate(folder, shifts):
    """Run an engine over patients whose prediction is off by so many HU."""
    truth = torch.full((1, 16, 16, 16), -1000.0)
    truth[:, 3:13, 3:13, 3:13] = 50.0

    def step(engine, batch):
        return [truth + shifts[batch["patient"][0]]], [truth]

    engine = Engine(step)
    engine.state.metric_details = {}
    FigureHandler(ReconstructionMetric(["psnr", "mae_hu", "mae_hu_bone"]), lambda x: x).attach(engine, "figures")
    PatientTable(folder / "patients.csv", {"part": "test"}).attach(engine)
    engine.run([{"patient": [name]} for name in shifts], max_epochs=1)


def test_tables_and_summary(tmp_path):
    evaluate(tmp_path, {"a": 10.0, "b": 30.0, "a_": 20.0})
    lines = (tmp_path / "patients.csv").read_text().splitlines()
    assert lines[0] == "patient,psnr,mae_hu,mae_hu_bone"
    assert lines[2].split(",")[2:] == ["30", ""]  # no bone, no figure
    assert lines[-1].split(",")[0] == "mean" and lines[-1].split(",")[2] == "20"
    patients = json.loads((tmp_path / "patients.json").read_text())["patients"]
    assert patients[0]["patient"] == "a" and patients[0]["figures"]["mae_hu_bone"] is None
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["figures"]["mae_hu"]["worst_patient"] == "b" and summary["count"] == 3
    assert summary["figures"]["psnr"]["mean"] == pytest.approx(
        np.mean([20 * math.log10(2500 / s) for s in (10, 30, 20)]), abs=1e-3
    )
    assert summary["part"] == "test" and "mae_hu_bone" not in summary["figures"]


def test_two_evaluations_are_paired(tmp_path):
    evaluate(tmp_path / "one", {"a": 10.0, "b": 30.0})
    evaluate(tmp_path / "two", {"b": 35.0, "a": 20.0, "c": 1.0})
    got = compare_evaluations(tmp_path / "one", tmp_path / "two")
    assert got["mae_hu"].difference == pytest.approx(-7.5) and got["mae_hu"].better == 1.0
    with pytest.raises(InputError, match="does not exist"):
        compare_evaluations(tmp_path / "one", tmp_path / "three")


def test_segmentations_of_files(tmp_path):
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    for name in ("heart", "liver"):
        write_nifti(tmp_path / "true/p" / f"{name}.nii.gz", mask)
    write_nifti(tmp_path / "made/p/heart.nii.gz", np.roll(mask, 1, axis=0))
    heart, liver = compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
    assert heart["dice"] == pytest.approx(7 / 8) and heart["hd95"] == pytest.approx(10.0)
    assert liver["dice"] == 0.0 and (tmp_path / "out.csv").read_text().splitlines()[2] == "p,liver,0,0,"
    write_nifti(tmp_path / "made/p/liver.nii.gz", mask[1:])
    with pytest.raises(InputError, match="different voxels"):
        compare_segmentations(tmp_path / "made", tmp_path / "true", tmp_path / "out.csv")
