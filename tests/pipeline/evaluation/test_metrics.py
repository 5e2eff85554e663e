"""Figures against independent implementations, hand-computed cases, and volumes that only look good."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.metrics import DiceMetric, SurfaceDiceMetric, compute_hausdorff_distance
from monai.metrics.regression import MultiScaleSSIMMetric
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from drr2ct.pipeline.evaluation import metrics
from drr2ct.pipeline.evaluation.metrics import (
    FIGURES,
    FigureHandler,
    PredictionAndRadiographs,
    ReconstructionMetric,
    ReprojectionMetric,
)
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.files import chest


def volume(n: int = 48, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(chest((n, n, n), seed))[None]


def blurred(hu: torch.Tensor, sigma: float = 1.5) -> torch.Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(hu.numpy(), (0, sigma, sigma, sigma)))


def test_psnr_and_ssim_are_those_of_skimage():
    truth, pred = volume(), blurred(volume())
    got = ReconstructionMetric().compute(pred, truth)
    for suffix, (low, high) in metrics.WINDOWS.items():
        x, y = (v[0].clamp(low, high).double().numpy() for v in (pred, truth))
        width = high - low
        assert got[f"psnr{suffix}"] == pytest.approx(peak_signal_noise_ratio(y, x, data_range=width), abs=1e-3)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
        # skimage's Gaussian of σ 1.5 is cut at 3.5 σ: 11 voxels
        _, full = structural_similarity(x, y, data_range=width, **options)
        inner = (slice(5, -5),) * 3
        assert got[f"ssim{suffix}"] == pytest.approx(full[inner].mean(), abs=2e-4)
        body = metrics.body_mask(truth)[0].numpy()
        assert got[f"ssim{suffix}_body"] == pytest.approx(full[inner][body[inner]].mean(), abs=2e-4)
        assert got[f"psnr{suffix}_body"] == pytest.approx(
            10 * np.log10(width**2 / np.square(x - y)[body].mean()), abs=1e-3
        )


@pytest.mark.parametrize(("size", "scales"), [(64, 3), pytest.param(176, 5, marks=pytest.mark.slow)])
def test_ms_ssim_is_monais(size, scales):
    truth, pred = volume(size), blurred(volume(size))
    weights = np.array(metrics.MS_SSIM_WEIGHTS[:scales])
    monai = MultiScaleSSIMMetric(3, data_range=2500.0, weights=(weights / weights.sum()).tolist())
    x, y = pred.clamp(*metrics.DEFAULT_WINDOW), truth.clamp(*metrics.DEFAULT_WINDOW)
    expected = float(monai(x[None], y[None]))
    assert metrics.ms_ssim(x, y, 2500.0) == pytest.approx(expected, abs=1e-4)
    assert ReconstructionMetric(["ms_ssim"]).compute(pred, truth)["ms_ssim"] == pytest.approx(expected, abs=1e-4)


def test_gradient_similarity_by_hand():
    ramp = torch.arange(40.0).expand(1, 12, 12, 40) * 10
    steeper = ramp * 2
    a, b = (10 / 2500) ** 2, (20 / 2500) ** 2
    c = metrics.GRADIENT_CONSTANT
    expected = (2 * math.sqrt(a * b) + c) / (a + b + c)
    got = metrics.gradient_similarity(ramp, steeper, 2500.0)
    torch.testing.assert_close(got, torch.full_like(got, expected))


@pytest.mark.parametrize("planes", [3, 7, 10, 24])
def test_figures_do_not_depend_on_what_is_computed_at_a_time(monkeypatch, planes):
    truth, pred = volume(), blurred(volume())
    monkeypatch.setattr(metrics, "_PLANES", 1000)
    whole = ReconstructionMetric().compute(pred, truth)
    monkeypatch.setattr(metrics, "_PLANES", planes)
    assert ReconstructionMetric().compute(pred, truth) == pytest.approx(whole, rel=1e-5, nan_ok=True)


def test_body_is_the_largest_component_with_its_lungs():
    hu = torch.full((1, 20, 20, 20), -1000.0)
    hu[:, 4:16, 4:16] = 0.0  # cut by both ends of the scan
    hu[:, 8:12, 8:12] = -850.0  # a tunnel, open at both ends
    hu[:, 1:3, 1:3, 1:3] = 0.0  # an arm
    expected = torch.zeros(1, 20, 20, 20, dtype=torch.bool)
    expected[:, 4:16, 4:16] = True
    assert torch.equal(metrics.body_mask(hu), expected)
    assert not metrics.body_mask(torch.full((1, 12, 12, 12), -1000.0)).any()


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
    masks = metrics.structure_masks(truth, metrics.body_mask(truth))
    assert masks["body"][0, 2:18, 2:18, 2:18].all() and masks["body"].sum() == 16**3
    assert masks["lung"].nonzero()[:, 1].tolist() == [5, 7]  # below −500 HU
    assert masks["bone"].nonzero()[:, 1].tolist() == [14]  # above 300 HU


def test_overlap_is_monais_and_shifted_cube_by_hand():
    truth = torch.zeros(1, 24, 24, 24, dtype=torch.bool)
    truth[:, 6:16, 6:16, 6:16] = True
    pred = truth.roll(3, dims=1)
    got = metrics.overlap_figures(pred, truth, [2.0, 2.0, 2.0], tolerance_mm=3.0)
    assert got["dice"] == pytest.approx(0.7)
    one, other = pred[None].float(), truth[None].float()
    assert got["dice"] == pytest.approx(float(DiceMetric()(one, other)))
    surface = SurfaceDiceMetric([3.0], include_background=True)(one, other, spacing=2.0)
    assert got["nsd"] == pytest.approx(float(surface))
    hausdorff = compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=2.0)
    assert got["hd95"] == pytest.approx(float(hausdorff)) == pytest.approx(6.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0.02, 0.98), spacing=st.tuples(*[st.floats(0.5, 4.0)] * 3))
def test_surfaces_of_any_masks_are_monais(seed, density, spacing):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, 14, 11, 12)), (0, 1, 1, 1))
    made, there = noise > np.quantile(noise, density)
    if not (made.any() and there.any()):
        return
    edges, found, _ = get_edge_surface_distance(
        torch.from_numpy(made), torch.from_numpy(there), spacing=spacing, symmetric=True
    )
    for mask, edge in zip((made, there), edges, strict=True):
        assert np.count_nonzero(metrics.surface(mask)) == int(edge.sum())
    for ours, monais in zip(metrics.surface_distances(made, there, spacing), found, strict=True):
        np.testing.assert_allclose(np.sort(ours), np.sort(monais.numpy()), atol=1e-5)
    one, other = (torch.from_numpy(mask)[None] for mask in (made, there))
    got = metrics.overlap_figures(one, other, spacing, tolerance_mm=2.0)
    near = sum(int((d <= 2.0 + 1e-6).sum()) for d in found)
    assert got["nsd"] == pytest.approx(near / sum(map(len, found)))
    assert got["hd95"] == pytest.approx(max(np.percentile(d.numpy(), 95) for d in found), abs=1e-5)


def test_surface_figures_of_boxes_by_hand():
    truth = torch.zeros(1, 20, 20, 20, dtype=torch.bool)
    truth[:, 5:15, 5:15, 5:15] = True  # 1000 voxels, 488 on its surface
    pred = torch.zeros_like(truth)
    pred[:, 5:15, 5:15, 5:11] = True  # cut short by four voxels of 2 mm along z
    got = metrics.overlap_figures(pred, truth, [1.0, 1.0, 2.0], tolerance_mm=1.9)
    assert got["dice"] == pytest.approx(2 * 600 / 1600)
    # far are, of the truth, three rings of 36 and the lid of 100 above the cut, at least 2 mm away; and of the
    # prediction's 344, the middle 6 × 6 of its lid, at least 2 mm inside the truth's sides
    assert got["nsd"] == pytest.approx((488 - 208 + 344 - 36) / (488 + 344))
    assert metrics.overlap_figures(pred, truth, [1.0, 1.0, 2.0], tolerance_mm=8.0)["nsd"] == 1.0
    assert got["hd95"] == pytest.approx(8.0)  # the far lid, 100 of 488


def test_legacy_figure_by_hand():
    truth = torch.full((1, 12, 12, 12), -1024.0)
    pred = truth.clone()
    pred[0, 0] = -1014.0  # one slice of the first axis is wrong by 10
    first = (10 * math.log10(4095**2 / 100) + 11 * 100) / 12
    others = 10 * math.log10(4095**2 / (100 / 12))
    assert metrics.legacy_x2ct_psnr(pred, truth) == pytest.approx((first + 2 * others) / 3)
    # HU + 1024 is clipped to 0…2500: beyond its ends there is no error
    assert metrics.legacy_x2ct_psnr(torch.full_like(truth, 3000.0), torch.full_like(truth, 1476.0)) == 100
    assert metrics.legacy_x2ct_psnr(torch.full_like(truth, -2000.0), truth) == 100


def test_the_page_on_evaluation_defines_every_figure():
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    families = {f"{what}_hu_{part}": f"{what}_hu_X" for what in ("mae", "bias") for part in ("body", *metrics.TISSUES)}
    families |= {f"{what}_{part}": f"{what}_X" for what in ("dice", "nsd", "hd95") for part in metrics.STRUCTURES}
    for name in (*metrics.FIGURES, *metrics.REPROJECTION_FIGURES):
        column = name.removesuffix("_body") if name.startswith(("psnr", "ssim")) else families.get(name, name)
        assert f"`{column}`" in page, name
    assert "`…_body`" in page
    for name in (*metrics.STRUCTURES, *metrics.TISSUES):
        assert name in page, name


def test_identical_volumes_are_perfect():
    got = ReconstructionMetric().compute(volume(), volume())
    for name, value in got.items():
        if name.startswith(("psnr", "legacy")):
            assert value == 100.0
        elif name.startswith(("ssim", "ms_ssim", "gms", "dice", "nsd")):
            assert value == pytest.approx(1.0, abs=1e-5)
        elif metrics.lower_is_better(name):
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
    truth = volume()
    got = [ReconstructionMetric(["gms_body", "ms_ssim"]).compute(blurred(truth, s), truth) for s in (0.7, 1.5, 3.0)]
    for name in ("gms_body", "ms_ssim"):
        assert got[0][name] > got[1][name] > got[2][name]


def test_streaming_in_any_batches_gives_the_same():
    truths = torch.stack([volume(24, s) for s in range(3)])
    preds = torch.stack([blurred(t) for t in truths])
    one, other = ReconstructionMetric(["psnr", "mae_hu_bone"]), ReconstructionMetric(["psnr", "mae_hu_bone"])
    one(preds, truths)
    for pred, truth in zip(preds, truths, strict=True):
        other([pred], [truth])
    torch.testing.assert_close(one.get_buffer(), other.get_buffer())
    assert one.aggregate().shape == (2,)


def test_spacing_is_taken_from_the_affine():
    truth, pred = volume(24), volume(24).roll(1, dims=1)
    near = ReconstructionMetric(["hd95_body"]).compute(pred, truth)["hd95_body"]
    far = ReconstructionMetric(["hd95_body"]).compute(
        pred, MetaTensor(truth, affine=torch.diag(torch.tensor([5.0, 5, 5, 1])))
    )
    assert far["hd95_body"] == pytest.approx(5 * near) and near > 0


def test_handler_names_every_figure():
    truth = volume(24)
    engine = Engine(lambda *_: (([blurred(truth)]), [truth]))
    engine.state.metric_details = {}
    FigureHandler(ReconstructionMetric(["ssim", "psnr"]), lambda x: x).attach(engine, "figures")
    engine.run([0, 1], max_epochs=1)
    expected = ReconstructionMetric(["psnr"]).compute(blurred(truth), truth)["psnr"]
    assert engine.state.metrics["psnr"] == pytest.approx(expected, rel=1e-5)
    assert engine.state.metric_details["psnr"].shape == (2, 1)


def test_reprojection_of_the_truth_and_of_a_denser_volume():
    geometry = BiplanarGeometry.from_angles(VolumeGrid(24, 240.0), detector_size=32)
    truth = volume(24).clamp(min=-1000)
    radiographs = render_drr(truth, geometry, geometry.grid.affine())
    metric = ReprojectionMetric(geometry)
    rows = metric([truth, truth + 50], [radiographs, radiographs])
    assert rows[0].abs().max() < 1e-5
    assert rows[1, 1] == pytest.approx(float(rows[1, 0]), rel=1e-3) and rows[1, 1] > 0.05


def test_predictions_and_radiographs_leave_the_network_s_scale():
    scaled = torch.tensor([0.0, 1024 / 4095, 1.0, 1.5]).reshape(1, 4, 1, 1).expand(1, 4, 4, 4)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    image = torch.full((2, 3, 3), 0.25)
    output = [
        {"pred": scaled, "label": MetaTensor(torch.zeros(1, 4, 4, 4), affine=affine), "image": image},
        {"pred": MetaTensor(scaled, affine=affine), "label": torch.zeros(1, 4, 4, 4), "image": image},
    ]
    (placed, bare), radiographs = PredictionAndRadiographs()(output)
    for volume in (placed, bare):
        assert volume[0, :, 0, 0].tolist() == pytest.approx([-1024, 0, 3071, 3071], abs=1e-3)
    torch.testing.assert_close(placed.affine.float(), affine)  # the label's
    assert not isinstance(bare, MetaTensor)  # nobody says where it lies: the geometry's grid will
    assert len(radiographs) == 2
    for lines in radiographs:
        torch.testing.assert_close(lines, torch.full((2, 3, 3), 0.25 * LINE_INTEGRAL_SCALE))


@pytest.mark.parametrize("shapes", [((1, 24, 24, 24), (1, 24, 24, 23)), ((1, 8, 8, 8), (1, 8, 8, 8))])
def test_volumes_that_cannot_be_compared_are_refused(shapes):
    with pytest.raises(InputError, match="cannot be compared"):
        ReconstructionMetric().compute(*(torch.zeros(s) for s in shapes))


def test_unknown_figures_are_refused():
    with pytest.raises(InputError, match="psnrr"):
        ReconstructionMetric(["psnrr"])
