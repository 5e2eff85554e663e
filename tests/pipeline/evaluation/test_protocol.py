import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.evaluation.metrics import FigureHandler, ReconstructionMetric
from drr2ct.pipeline.evaluation.protocol import PatientTable, compare_evaluations, refuse_leakage
from drr2ct.transforms.validation import InputError
from tests.files import chest, write_nifti


def description(**training: str) -> dict:
    items = [{"patient": name, **({"label": path} if path else {})} for name, path in training.items()]
    lists = {"training": items, "validation": [{"patient": "c"}]}
    return describe(create_network("cascade64"), "cascade64", "cube", lists)


def test_leakage_is_refused():
    about = description(a="", b="")
    refuse_leakage("last.pt", about, [{"patient": "c"}, {"patient": "d"}])
    with pytest.raises(InputError, match=r"last.pt was trained on 1 of the 2 patients.*\(b\)"):
        refuse_leakage("last.pt", about, [{"patient": "b"}, {"patient": "d"}])


@pytest.mark.parametrize(
    "recorded", ["lidc/LIDC-IDRI-0001", "C:\\cts\\LIDC-IDRI-0001", "LIDC-IDRI-0001.nii.gz", "lidc-idri-0001"]
)
@pytest.mark.parametrize(
    "item",
    [
        {"patient": "LIDC-IDRI-0001"},
        {"patient": "test-1", "label": "/other/LIDC-IDRI-0001/ct.nii.gz"},
        {"patient": "test-1", "label": "/flat/LIDC-IDRI-0001.nrrd"},
    ],
)
def test_leakage_under_another_path(recorded, item):
    with pytest.raises(InputError, match="trained on 1 of the 2"):
        refuse_leakage("last.pt", description(**{recorded: ""}), [item, {"patient": "LIDC-IDRI-00010"}])


def test_leakage_of_a_renamed_ct(tmp_path):
    first = write_nifti(tmp_path / "a" / "a.nii.gz", chest(seed=1))
    other = write_nifti(tmp_path / "b" / "b.nii.gz", chest(seed=2))
    copied = tmp_path / "test" / "someone.nii.gz"
    copied.parent.mkdir()
    copied.write_bytes(first.read_bytes())
    about = description(a=str(first))
    refuse_leakage("last.pt", about, [{"patient": "b", "label": str(other)}])
    with pytest.raises(InputError, match=r"\(someone\)"):
        refuse_leakage("last.pt", about, [{"patient": "someone", "label": str(copied)}])


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
    assert [line.split(",")[0] for line in lines[1:]] == ["a", "a_", "b", "mean"]
    assert lines[3].split(",")[2:] == ["30", ""]  # no bone, no figure
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
