"""Structures and their overlap against MONAI's and hand-computed cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, SurfaceDiceMetric, compute_hausdorff_distance
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage

from drr2ct.pipeline.evaluation import structures


def test_body_is_the_largest_component_with_its_lungs():
    hu = torch.full((1, 20, 20, 20), -1000.0)
    hu[:, 4:16, 4:16] = 0.0  # cut by both ends of the scan
    hu[:, 8:12, 8:12] = -850.0  # a tunnel, open at both ends
    hu[:, 1:3, 1:3, 1:3] = 0.0  # an arm
    expected = torch.zeros(1, 20, 20, 20, dtype=torch.bool)
    expected[:, 4:16, 4:16] = True
    assert torch.equal(structures.body_mask(hu), expected)
    assert not structures.body_mask(torch.full((1, 12, 12, 12), -1000.0)).any()


def test_overlap_is_monais_and_shifted_cube_by_hand():
    truth = torch.zeros(1, 24, 24, 24, dtype=torch.bool)
    truth[:, 6:16, 6:16, 6:16] = True
    pred = truth.roll(3, dims=1)
    got = structures.overlap_figures(pred, truth, [2.0, 2.0, 2.0], tolerance_mm=3.0)
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
        assert np.count_nonzero(structures.surface(mask)) == int(edge.sum())
    for ours, monais in zip(structures.surface_distances(made, there, spacing), found, strict=True):
        np.testing.assert_allclose(np.sort(ours), np.sort(monais.numpy()), atol=1e-5)
    one, other = (torch.from_numpy(mask)[None] for mask in (made, there))
    got = structures.overlap_figures(one, other, spacing, tolerance_mm=2.0)
    near = sum(int((d <= 2.0 + 1e-6).sum()) for d in found)
    assert got["nsd"] == pytest.approx(near / sum(map(len, found)))
    assert got["hd95"] == pytest.approx(max(np.percentile(d.numpy(), 95) for d in found), abs=1e-5)


def test_surface_figures_of_boxes_by_hand():
    truth = torch.zeros(1, 20, 20, 20, dtype=torch.bool)
    truth[:, 5:15, 5:15, 5:15] = True  # 1000 voxels, 488 on its surface
    pred = torch.zeros_like(truth)
    pred[:, 5:15, 5:15, 5:11] = True  # cut short by four voxels of 2 mm along z
    got = structures.overlap_figures(pred, truth, [1.0, 1.0, 2.0], tolerance_mm=1.9)
    assert got["dice"] == pytest.approx(2 * 600 / 1600)
    # far are, of the truth, three rings of 36 and the lid of 100 above the cut, at least 2 mm away; and of the
    # prediction's 344, the middle 6 × 6 of its lid, at least 2 mm inside the truth's sides
    assert got["nsd"] == pytest.approx((488 - 208 + 344 - 36) / (488 + 344))
    assert structures.overlap_figures(pred, truth, [1.0, 1.0, 2.0], tolerance_mm=8.0)["nsd"] == 1.0
    assert got["hd95"] == pytest.approx(8.0)  # the far lid, 100 of 488
