import pytest
import torch

from drr2ct.pipeline.robustness import Condition, conditions, degrade, turned
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid

LINES = torch.full((2, 64, 64), 3.0)


def test_noise_has_the_variance_of_its_counts():
    noisy = degrade(LINES, Condition("photons", 1e5), 1.0)
    # Var(ln n) ≈ 1 / n, n = 1e5 · e^-3
    assert noisy.var().item() == pytest.approx(1 / (1e5 * torch.exp(torch.tensor(-3.0)).item()), rel=0.1)
    assert torch.equal(noisy, degrade(LINES, Condition("photons", 1e5), 1.0))
    assert not torch.equal(noisy, degrade(LINES, Condition("photons", 1e5), 1.0, seed=1))


def test_exposure_shifts_line_integrals():
    torch.testing.assert_close(degrade(LINES, Condition("exposure", 0.5), 1.0), LINES + 0.693147)


def test_blur_spreads_intensity_over_millimetres():
    lines = torch.full((1, 65, 65), 50.0)
    lines[0, 32, 32] = 0.0
    spread = torch.exp(-degrade(lines, Condition("blur", 4.0), 2.0))[0]
    assert spread.sum().item() == pytest.approx(1, abs=0.01)
    offsets = torch.arange(65.0) - 32
    assert (spread.sum(0) * offsets**2).sum().item() == pytest.approx(4, rel=0.1)  # (4 mm / 2 mm)²
    torch.testing.assert_close(degrade(LINES, Condition("blur", 2.0), 1.0), LINES, rtol=1e-3, atol=0)


def test_only_the_last_view_is_turned_and_all_conditions_are_there():
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=32)
    assert [v.gantry_angle_deg for v in turned(geometry, -5).views] == [0.0, 85.0]
    assert {c.name for c in conditions(64)} == {"clean", "view_angle", "photons", "blur", "exposure", "grid"}
