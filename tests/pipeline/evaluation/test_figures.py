"""Figures against independent implementations, hand-computed cases, and volumes that only look good."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from drr2ct.pipeline.evaluation import figures, similarity, structures
from drr2ct.pipeline.evaluation.figures import FIGURES
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from tests.pipeline.evaluation.volumes import blurred, volume


def test_psnr_and_ssim_are_those_of_skimage():
    truth, pred = volume(), blurred(volume())
    got = ReconstructionMetric().compute(pred, truth)
    for suffix, (low, high) in similarity.WINDOWS.items():
        x, y = (v[0].clamp(low, high).double().numpy() for v in (pred, truth))
        width = high - low
        assert got[f"psnr{suffix}"] == pytest.approx(peak_signal_noise_ratio(y, x, data_range=width), abs=1e-3)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        # skimage's Gaussian of σ 1.5 is cut at 3.5 σ: 11 voxels
        _, full = structural_similarity(x, y, data_range=width, **options)
        inner = (slice(5, -5),) * 3
        assert got[f"ssim{suffix}"] == pytest.approx(full[inner].mean(), abs=2e-4)
        body = structures.body_mask(truth)[0].numpy()
        assert got[f"ssim{suffix}_body"] == pytest.approx(full[inner][body[inner]].mean(), abs=2e-4)
        assert got[f"psnr{suffix}_body"] == pytest.approx(
            10 * np.log10(width**2 / np.square(x - y)[body].mean()), abs=1e-3
        )


@pytest.mark.parametrize("planes", [3, 7, 10, 24])
def test_figures_do_not_depend_on_what_is_computed_at_a_time(monkeypatch, planes):
    truth, pred = volume(), blurred(volume())
    monkeypatch.setattr(similarity, "_PLANES", 1000)
    whole = ReconstructionMetric().compute(pred, truth)
    monkeypatch.setattr(similarity, "_PLANES", planes)
    assert ReconstructionMetric().compute(pred, truth) == pytest.approx(whole, rel=1e-5, nan_ok=True)


def test_tissue_errors_by_hand():
    truth = torch.full((1, 20, 20, 20), -1000.0)
    truth[:, 4:16, 4:16, 4:16] = 50.0
    truth[:, 6:8, 6:8, 6:8] = -80.0
    truth[:, 10:12, 10:12, 10:12] = 700.0
    pred = truth.clone()
    pred[truth == 700] = 400.0
    pred[truth == -80] = -70.0
    got = ReconstructionMetric().compute(pred, truth)
    assert (got["mae_hu_bone"], got["bias_hu_bone"]) == (300.0, -300.0)
    assert (got["mae_hu_fat"], got["bias_hu_fat"]) == (10.0, 10.0)
    assert got["mae_hu_soft"] == 0.0
    assert math.isnan(got["mae_hu_lung"]) and math.isnan(got["dice_lung"])
    assert got["bias_hu_body"] == pytest.approx((8 * -300 + 8 * 10) / 12**3)
    assert got["mae_hu"] == pytest.approx((8 * 300 + 8 * 10) / 20**3, rel=1e-5)


def test_tissues_take_both_ends_of_their_range_and_bone_begins_above_it():
    truth = torch.full((1, 20, 20, 20), -1000.0)
    truth[:, 2:18, 2:18, 2:18] = 50.0
    ends = (-950.0, -500.0, -951.0, -499.0, -150.0, -30.0, 0.0, 100.0, 300.0, 301.0)
    for x, hu in enumerate(ends, start=5):
        truth[0, x, 10, 10] = hu
    pred = truth + torch.arange(20.0)[None, :, None, None]  # so that a voxel's error says which it is
    got = ReconstructionMetric().compute(pred, truth)
    assert got["bias_hu_lung"] == pytest.approx((5 + 6) / 2)
    assert got["bias_hu_fat"] == pytest.approx((9 + 10) / 2)
    assert got["bias_hu_bone"] == pytest.approx((13 + 14) / 2)
    masks = structures.structure_masks(truth, structures.body_mask(truth))
    assert masks["body"][0, 2:18, 2:18, 2:18].all() and masks["body"].sum() == 16**3
    assert masks["lung"].nonzero()[:, 1].tolist() == [5, 7]  # below −500 HU
    assert masks["bone"].nonzero()[:, 1].tolist() == [14]  # above 300 HU


def test_the_page_on_evaluation_defines_every_figure():
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    families = {
        f"{what}_hu_{part}": f"{what}_hu_X" for what in ("mae", "bias") for part in ("body", *structures.TISSUES)
    }
    families |= {f"{what}_{part}": f"{what}_X" for what in ("dice", "nsd", "hd95") for part in structures.STRUCTURES}
    for name in (*figures.FIGURES, *figures.REPROJECTION_FIGURES):
        column = name.removesuffix("_body") if name.startswith(("psnr", "ssim")) else families.get(name, name)
        assert f"`{column}`" in page, name
    assert "`…_body`" in page
    for name in (*structures.STRUCTURES, *structures.TISSUES):
        assert name in page, name


def test_identical_volumes_are_perfect():
    got = ReconstructionMetric().compute(volume(), volume())
    for name, value in got.items():
        if name.startswith(("psnr", "legacy")):
            assert value == 100.0
        elif name.startswith(("ssim", "ms_ssim", "gms", "detail", "dice", "nsd")):
            assert value == pytest.approx(1.0, abs=1e-5)
        elif figures.lower_is_better(name):
            assert value == 0.0 or math.isnan(value)


@settings(max_examples=8, deadline=None)
@given(axis=st.integers(1, 3), seed=st.integers(0, 99))
def test_mirroring_both_changes_nothing(axis, seed):
    truth = volume(24, seed)
    pred = blurred(truth + 20)
    metric = ReconstructionMetric()
    first, second = metric.compute(pred, truth), metric.compute(pred.flip(axis), truth.flip(axis))
    for name in FIGURES:
        assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-3, nan_ok=True), name


@settings(max_examples=8, deadline=None)
@given(shift=st.floats(1, 80))
def test_a_constant_error_is_its_own_bias(shift):
    truth = volume(24).clamp(-900, 1000)
    got = ReconstructionMetric().compute(truth + shift, truth)
    assert got["bias_hu_body"] == pytest.approx(shift, rel=1e-3)
    assert got["psnr"] == pytest.approx(20 * math.log10(2500 / shift), abs=1e-2)
    assert got["gms_body"] == pytest.approx(1, abs=1e-4)


def test_mirrored_and_mean_volumes_are_exposed():
    truth = volume()
    metric = ReconstructionMetric()
    good, mirrored = metric.compute(blurred(truth), truth), metric.compute(blurred(truth).flip(1), truth)
    assert good["chirality_db"] > 1 > 0 > -1 > mirrored["chirality_db"]
    symmetric = (truth + truth.flip(1)) / 2
    mean = metric.compute(symmetric, truth)
    assert mean["chirality_db"] == pytest.approx(0, abs=1e-3)


def test_the_mean_of_other_patients_scores_below_a_reconstruction_everywhere():
    def patient(shift: int, seed: int) -> torch.Tensor:
        return volume(seed=seed).roll((shift, -shift, shift), dims=(1, 2, 3))

    truth = patient(0, 0)
    average = torch.stack([patient(shift, seed) for seed, shift in enumerate((-6, -3, 3, 6), start=1)]).mean(dim=0)
    metric = ReconstructionMetric()
    good, mean = metric.compute(blurred(truth), truth), metric.compute(average, truth)
    for name in ("psnr", "psnr_body", "ssim", "ssim_body", "gms_body", "dice_lung", "nsd_body", "chirality_db"):
        assert good[name] > mean[name], name
    assert good["mae_hu_bone"] < mean["mae_hu_bone"]


def test_a_blurred_volume_loses_sharpness():
    truth, names = volume(), ("gms_body", "ms_ssim", "detail_explained")
    got = [ReconstructionMetric(names).compute(blurred(truth, s), truth) for s in (0.7, 1.5, 3.0)]
    for name in names:
        assert got[0][name] > got[1][name] > got[2][name]
