import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch

from drr2ct.pipeline.evaluation import robustness
from drr2ct.pipeline.evaluation.robustness import Condition, conditions, degrade, run_robustness, turned
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT
from tests.files import chest, write_nifti

LINES = torch.full((2, 64, 64), 3.0)
PITCHES = [1.0, 1.0]


def test_noise_has_the_variance_of_its_counts():
    noisy = degrade(LINES, Condition("photons", 1e5), PITCHES)
    # Var(ln n) ≈ 1 / n, n = 1e5 · e^-3
    assert noisy.var().item() == pytest.approx(1 / (1e5 * torch.exp(torch.tensor(-3.0)).item()), rel=0.1)
    assert torch.equal(noisy, degrade(LINES, Condition("photons", 1e5), PITCHES))
    assert not torch.equal(noisy, degrade(LINES, Condition("photons", 1e5), PITCHES, seed=1))


def test_exposure_shifts_line_integrals():
    torch.testing.assert_close(degrade(LINES, Condition("exposure", 0.5), PITCHES), LINES + 0.693147)


def test_blur_spreads_intensity_over_millimetres():
    lines = torch.full((1, 65, 65), 50.0)
    lines[0, 32, 32] = 0.0
    spread = torch.exp(-degrade(lines, Condition("blur", 4.0), [2.0]))[0]
    assert spread.sum().item() == pytest.approx(1, abs=0.01)
    offsets = torch.arange(65.0) - 32
    assert (spread.sum(0) * offsets**2).sum().item() == pytest.approx(4, rel=0.1)  # (4 mm / 2 mm)²
    torch.testing.assert_close(degrade(LINES, Condition("blur", 2.0), PITCHES), LINES, rtol=1e-3, atol=0)


def test_every_view_is_blurred_by_its_own_pitch():
    lines = torch.full((2, 65, 65), 50.0)
    lines[:, 32, 32] = 0.0
    spread = torch.exp(-degrade(lines, Condition("blur", 4.0), [2.0, 1.0]))
    variances = [(view.sum(0) * (torch.arange(65.0) - 32) ** 2).sum().item() for view in spread]
    assert variances == pytest.approx([4, 16], rel=0.1)  # in pixels: (4 mm / 2 mm)², (4 mm / 1 mm)²


def test_only_the_last_view_is_turned_and_all_conditions_are_there():
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=32)
    assert [v.gantry_angle_deg for v in turned(geometry, -5).views] == [0.0, 85.0]
    assert {c.name for c in conditions(64)} == {"clean", "view_angle", "photons", "blur", "exposure", "grid"}


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
    content = {"description": {"mode": "cube", "patients": {"training": ["p9"]}}}
    network = FromTheMean()
    monkeypatch.setattr(robustness, "load_network", lambda path, device: network)
    monkeypatch.setattr(robustness, "read_checkpoint", lambda path: content)

    def measure():
        run_robustness(tmp_path / "cts", tmp_path / "last.pt", tmp_path / "out", split=((0.3, 0.3, 0.4), 0))
        with (tmp_path / "out" / "robustness.csv").open(newline="") as file:
            return {(row["condition"], row["value"]): row for row in csv.DictReader(file)}

    return SimpleNamespace(measure=measure, content=content, folder=tmp_path, seen=network.seen)


def test_known_changes_have_known_effects(measured):
    rows = measured.measure()
    assert len(rows) == len(conditions(24)) == 18
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
    assert len(others) == 16 and not any(torch.allclose(clean_views, views, atol=1e-5) for views in others)
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
        there = BiplanarGeometry.from_angles(
            VolumeGrid(24), (0.0, 90.0 + angle), detector_size=128, pixel_pitch_mm=GEOMETRY.views[0].pixel_pitch_mm
        )
        torch.testing.assert_close(views, render_drr(ct, there) / LINE_INTEGRAL_SCALE, atol=1e-5, rtol=1e-4)


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
