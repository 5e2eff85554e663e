from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from drr2ct.pipeline.evaluation.conditions import Condition, conditions, degrade, is_of_pose, rendered
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from tests.transforms.phantoms import GEOMETRY, GRID, phantom, phantom_radiographs

LINES = torch.full((2, 64, 64), 3.0)
VIEWS = tuple(replace(view, detector_size=(64, 64), pixel_pitch_mm=1.0) for view in GEOMETRY.views)
CT = MetaTensor(phantom(0), affine=torch.from_numpy(GRID.affine()), meta={"isocentre": [0.0, 0.0, 0.0]})
CLEAN = phantom_radiographs(1)[0] * LINE_INTEGRAL_SCALE


def test_noise_has_the_variance_of_its_counts():
    noisy = degrade(LINES, Condition("photons", 1e5), VIEWS)
    # Var(ln n) ≈ 1 / n, n = 1e5 · e^-3
    assert noisy.var().item() == pytest.approx(1 / (1e5 * torch.exp(torch.tensor(-3.0)).item()), rel=0.1)
    assert torch.equal(noisy, degrade(LINES, Condition("photons", 1e5), VIEWS))
    assert not torch.equal(noisy, degrade(LINES, Condition("photons", 1e5), VIEWS, seed=1))


def test_exposure_shifts_line_integrals():
    torch.testing.assert_close(degrade(LINES, Condition("exposure", 0.5), VIEWS), LINES + 0.693147)


def test_every_view_is_blurred_by_its_own_pitch():
    lines = torch.full((2, 65, 65), 50.0)
    lines[:, 32, 32] = 0.0
    views = tuple(replace(view, pixel_pitch_mm=pitch) for view, pitch in zip(VIEWS, (2.0, 1.0), strict=True))
    spread = torch.exp(-degrade(lines, Condition("blur", 4.0), views))
    variances = [(view.sum(0) * (torch.arange(65.0) - 32) ** 2).sum().item() for view in spread]
    assert variances == pytest.approx([4, 16], rel=0.1)  # in pixels: (4 mm / 2 mm)², (4 mm / 1 mm)²
    assert spread[0].sum().item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(degrade(LINES, Condition("blur", 2.0), VIEWS), LINES, rtol=1e-3, atol=0)


@pytest.mark.parametrize("condition", conditions(64), ids=lambda c: f"{c.name} {c.value}")
def test_every_condition_changes_what_it_says(condition):
    statistics = radiograph_statistics([{"image": image} for image in phantom_radiographs(3, first=5)])
    if is_of_pose(condition):
        changed = rendered(CT, CLEAN, condition, GEOMETRY)
        assert torch.equal(degrade(changed, condition, GEOMETRY.views), changed)
        # the first view stands for the patient, but for its scale and, by its distance, the depth
        same = condition.name not in ("distances", "pixel_size", "moved")
        assert torch.equal(changed[0], CLEAN[0]) == same
    else:
        changed = degrade(CLEAN, condition, GEOMETRY.views, statistics=statistics)
    apart = float((changed - CLEAN).abs().mean()) / float(CLEAN.mean())
    if condition.name in ("clean", "isocentre", "grid"):  # a matter of the truth
        assert apart == 0
    else:
        least = 0.0 if condition.name.endswith("blur") else 0.001  # the phantom's pixels are 10 mm
        assert least < apart < 1.5
    assert bool(torch.isfinite(changed).all())


def test_pictures_need_statistics():
    names = {condition.name for condition in conditions(64, pictures=False)}
    assert {condition.name for condition in conditions(64)} - names == {"picture"}
    assert "grid" not in {condition.name for condition in conditions(8)}


def test_a_turned_patient_is_a_turned_view():
    turned = rendered(CT, CLEAN, Condition("turned", 5.0), GEOMETRY)
    off = rendered(CT, CLEAN, Condition("view_angle", -5.0), GEOMETRY)
    assert float((turned - off).abs().mean()) < 0.01 * float(off.mean())
    views = (GEOMETRY.views[0], replace(GEOMETRY.views[1], gantry_angle_deg=85.0))
    assert torch.equal(off[1], render_drr(CT, views, np.asarray(CT.affine), [0.0, 0.0, 0.0])[1])
