import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from drr2ct.pipeline.evaluation import robustness
from drr2ct.pipeline.evaluation.conditions import conditions
from drr2ct.pipeline.evaluation.robustness import run_robustness
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT
from tests.files import chest, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(24), detector_size=128)
SLOPE = 0.3


class FromTheMean(torch.nn.Module):
    """Predicts one value everywhere, above all of the truth's: 0.5 and a multiple of the radiographs' mean."""

    config = SimpleNamespace(geometry=GEOMETRY)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(image[0])
        value = 0.5 + SLOPE * image.mean(dim=(1, 2, 3))
        return value[:, None, None, None, None].expand(-1, 1, 24, 24, 24)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    for seed in range(3):
        write_nifti(tmp_path / "cts" / f"p{seed}" / f"p{seed}.nii.gz", chest(seed=seed))
    config = {"geometry": GEOMETRY.to_dict()}
    content = {
        "description": {"name": "mean", "mode": "cube", "config": config, "patients": {"training": ["p9"]}},
        "network": {},
    }
    network = FromTheMean()
    monkeypatch.setattr(robustness, "load_network", lambda *_: network)
    monkeypatch.setattr(robustness, "read_checkpoint", lambda path: content)

    def measure():
        run_robustness(tmp_path / "cts", tmp_path / "last.pt", tmp_path / "out", split=((0.3, 0.3, 0.4), 0))
        with (tmp_path / "out" / "robustness.csv").open(newline="") as file:
            return {(row["condition"], row["value"]): row for row in csv.DictReader(file)}

    return SimpleNamespace(measure=measure, content=content, folder=tmp_path, seen=network.seen)


def test_known_changes_have_known_effects(measured):
    rows = measured.measure()
    assert len(rows) == len(conditions(24, pictures=False))
    clean = float(rows["clean", ""]["mae_hu"])
    for factor in (0.5, 0.8, 1.25, 2.0):
        # less intensity is read as more matter, by -ln(factor) on every ray
        expected = -math.log(factor) / LINE_INTEGRAL_SCALE * SLOPE * 4095
        change = float(rows["exposure", f"{factor:g}"]["mae_hu"]) - clean
        if factor < 1:
            assert change == pytest.approx(expected, rel=2e-3, abs=0.05)
        else:  # a ray that met nothing has no less than nothing to lose
            assert expected < change < 0.2 * expected
    # blur keeps the mean intensity, and so lowers the mean of the line integrals, the more the wider it is
    blurred = [float(rows["blur", f"{sigma:g}"]["mae_hu"]) for sigma in (1.0, 2.0, 4.0)]
    assert clean >= blurred[0] >= blurred[1] > blurred[2]
    # noise averages out, the less of it the better
    noise = [abs(float(rows["photons", count]["mae_hu"]) - clean) for count in ("100000", "1000")]
    assert noise[0] < 1.0 and noise[0] < noise[1]
    clean_views, *others = measured.seen
    assert len(others) == len(rows) - 2  # the other grid is the same prediction
    assert not any(torch.allclose(clean_views, views, atol=1e-5) for views in others)
    for pa, lat in others[:6]:  # the six angles
        assert torch.allclose(pa, clean_views[0], atol=1e-5) and not torch.allclose(lat, clean_views[1], atol=1e-3)
    assert float(rows["clean", ""]["psnr_change"]) == 0.0
    change = float(rows["exposure", "2"]["psnr"]) - float(rows["clean", ""]["psnr"])
    assert float(rows["exposure", "2"]["psnr_change"]) == pytest.approx(change, abs=1e-3) and change > 0


def test_turned_views_are_those_of_a_geometry_at_that_angle(measured, monkeypatch):
    read = []
    load = LoadCT.__call__
    monkeypatch.setattr(LoadCT, "__call__", lambda self, path, *rest: read.append(path) or load(self, path, *rest))
    measured.measure()
    assert len(read) == 1  # one patient, one reading
    ct = load(LoadCT(), read[0])
    angles = (-5, -2, -1, 1, 2, 5)
    for angle, views in zip(angles, measured.seen[1:7], strict=True):
        pa, lateral = GEOMETRY.views
        there = BiplanarGeometry(GEOMETRY.grid, (pa, replace(lateral, gantry_angle_deg=90.0 + angle)))
        torch.testing.assert_close(views, render_drr(ct, there) / LINE_INTEGRAL_SCALE, atol=1e-5, rtol=1e-4)


def test_pictures_are_read_by_the_training_s_histogram(measured):
    _, first = measured.measure(), measured.seen[0]
    measured.content["description"]["radiographs"] = radiograph_statistics([{"image": first}])
    rows = measured.measure()
    assert len(rows) == len(conditions(24))
    mean = {key: float(rows[key]["mae_hu"]) for key in (("clean", ""), ("picture", "0"), ("picture", "0.4"))}
    # the patient's own histogram: without compression the picture is read as it was
    assert abs(mean["picture", "0"] - mean["clean", ""]) < 0.03 * mean["clean", ""]


def test_the_truth_goes_with_the_isocentre(measured, monkeypatch):
    labels = []
    compute = robustness.ReconstructionMetric.compute

    def seen(self, made, truth):
        labels.append(truth)
        return compute(self, made, truth)

    monkeypatch.setattr(robustness.ReconstructionMetric, "compute", seen)
    measured.measure()
    names = [condition.name for condition in conditions(24, pictures=False)]
    clean, off = labels[0], labels[names.index("isocentre")]
    step = round(30 / math.sqrt(3) / (360 / 24))  # one voxel of 15 mm, and 2.3 mm
    assert step == 1
    # x and y rise with the index, z falls; what was at the isocentre is now behind it
    back = off[:, :-1, :-1, 1:], clean[:, 1:, 1:, :-1]
    assert float((back[0] - back[1]).abs().mean()) < 0.5 * float((off - clean).abs().mean())


def test_scores_on_another_grid_are_no_gain(measured):
    row = measured.measure()["grid", "12"]
    assert row["psnr_change"] == "" and float(row["psnr"]) > 0
    content = json.loads((measured.folder / "out" / "robustness.json").read_text())
    changes = {entry["condition"]: entry["psnr_change"] for entry in content["conditions"]}
    assert changes["grid"] is None and changes["blur"]["count"] == 1


def test_patients_of_the_training_are_refused(measured):
    measured.content["description"]["patients"]["training"] = ["p0", "p1", "p2"]
    with pytest.raises(InputError, match="was trained on 1 of the 1"):
        measured.measure()
    assert not (measured.folder / "out").exists()
