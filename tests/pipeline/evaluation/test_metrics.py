"""The MONAI metrics and handlers: batches, affines, names, and what they refuse."""

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from drr2ct.pipeline.evaluation.metrics import (
    FigureHandler,
    PredictionAndRadiographs,
    ReconstructionMetric,
    ReprojectionMetric,
)
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.pipeline.evaluation.volumes import blurred, volume


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
    for hu in (placed, bare):
        assert hu[0, :, 0, 0].tolist() == pytest.approx([-1024, 0, 3071, 3071], abs=1e-3)
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
