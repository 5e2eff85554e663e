import json

import numpy as np
import pytest
import torch

from drr2ct.networks.zoo import create_network
from drr2ct.pipeline.evaluation.baselines import (
    backproject,
    coarser_volumes,
    evaluate_baselines,
    write_baselines,
)
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW
from tests.files import chest, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(24, 240.0), detector_size=48)


def sample(seed, shift=0.0):
    hu = torch.from_numpy(chest((24, 24, 24), seed))[None].clamp(min=-1000) + shift
    image = render_drr(hu, GEOMETRY, GEOMETRY.grid.affine()) / LINE_INTEGRAL_SCALE
    return {"image": image, "label": (hu - HU_WINDOW[0]) / (HU_WINDOW[1] - HU_WINDOW[0])}


def test_backprojection_of_a_uniform_cube_is_that_cube():
    water = torch.zeros(1, 24, 24, 24)
    image = render_drr(water, GEOMETRY, GEOMETRY.grid.affine()) / LINE_INTEGRAL_SCALE
    made = backproject(image, GEOMETRY)
    assert made[:, 4:-4, 4:-4, 4:-4].mean().item() == pytest.approx(0, abs=30)


def test_backprojection_keeps_the_sides():
    hu = torch.full((1, 24, 24, 24), -1000.0)
    hu[:, 18:21, 4:7, 2:5] = 1000.0
    made = backproject(render_drr(hu, GEOMETRY, GEOMETRY.grid.affine()) / LINE_INTEGRAL_SCALE, GEOMETRY)[0]
    peak = torch.tensor(torch.unravel_index(made.argmax(), made.shape))
    assert (peak - torch.tensor([19, 5, 3])).abs().max() <= 1


def test_backprojection_into_a_box_that_is_no_cube():
    """Mode resize: voxels differ in size by axis, and the line integrals come from that box."""
    box = (200.0, 150.0, 100.0)
    affine = np.diag([box[0] / 24, box[1] / 24, -box[2] / 24, 1])
    affine[:3, 3] = -affine.diagonal()[:3] * 11.5
    water = torch.zeros(1, 24, 24, 24)
    image = render_drr(water, GEOMETRY, affine) / LINE_INTEGRAL_SCALE
    middle = (slice(None), *(slice(6, -6),) * 3)
    assert backproject(image, GEOMETRY, box)[middle].mean().item() == pytest.approx(0, abs=40)
    assert backproject(image, GEOMETRY)[middle].mean().item() < -150  # taken for the cube, it is too thin
    spot = torch.full((1, 24, 24, 24), -1000.0)
    spot[:, 18:21, 4:7, 2:5] = 1000.0
    made = backproject(render_drr(spot, GEOMETRY, affine) / LINE_INTEGRAL_SCALE, GEOMETRY, box)[0]
    peak = torch.tensor(torch.unravel_index(made.argmax(), made.shape))
    assert (peak - torch.tensor([19, 5, 3])).abs().max() <= 1


def test_each_baseline_is_what_it_says():
    samples = {"a": sample(0), "b": sample(1, 60.0), "t": sample(2, 55.0)}
    items = [{"patient": name} for name in samples]
    got = evaluate_baselines(
        items[2:], items[:2], lambda item: samples[item["patient"]], GEOMETRY, ["psnr", "bias_hu_body"]
    )
    assert got["nearest_patient"]["t"]["bias_hu_body"] == pytest.approx(5, abs=1)  # b, not a
    assert got["mean_volume"]["t"]["bias_hu_body"] == pytest.approx(-25, abs=1)
    assert got["nearest_patient"]["t"]["psnr"] > got["mean_volume"]["t"]["psnr"] > got["backprojection"]["t"]["psnr"]
    assert list(evaluate_baselines(items[2:], [], lambda i: samples["t"], GEOMETRY, ["psnr"])) == ["backprojection"]


def test_only_an_empty_training_part_means_that_there_is_none(tmp_path):
    write_nifti(tmp_path / "t" / "t.nii.gz", chest())
    lists = {"test": [{"patient": "t", "label": "t/t.nii.gz"}]}
    evaluation = {"format": 1, "patients": [{"patient": "t", "figures": {"psnr": 20.0}}]}
    (tmp_path / "patients.json").write_text(json.dumps(evaluation))

    def baselines(training):
        (tmp_path / "dataset.json").write_text(json.dumps({**lists, "training": training}))
        write_baselines(tmp_path, tmp_path, {"patients": {}}, lists["test"], lambda item: sample(2), GEOMETRY)
        return json.loads((tmp_path / "baselines.json").read_text())["baselines"]

    assert list(baselines([])) == ["backprojection"]
    with pytest.raises(InputError, match="does not exist"):
        baselines([{"patient": "gone", "label": "gone/gone.nii.gz"}])


def test_coarser_volumes_are_those_of_the_network_before_its_finer_stages():
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=64)
    network = create_network("cascade128", geometry=geometry).eval()
    assert len(network.outputs) == 2
    with torch.no_grad():
        network.outputs[-1].conv_block.bias.fill_(0.25)
    image = torch.rand(2, 64, 64)
    volumes = coarser_volumes(network)
    assert list(volumes) == ["coarser_stages"]
    coarser, added = volumes["coarser_stages"], 0.25 * network.shares[-1]
    with torch.no_grad():
        # and the network is as it was
        assert torch.allclose(network(image[None])[0], coarser(image) + added, atol=1e-5)
    one = create_network("cascade64", geometry=BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=32))
    assert coarser_volumes(one) == {}
    finest = create_network("cascade256", geometry=geometry).eval()
    with torch.no_grad():
        for output in finest.outputs[1:]:
            output.conv_block.bias.fill_(0.25)
        volumes = coarser_volumes(finest)
        assert list(volumes) == ["coarser_stages", "coarsest_stages"]
        whole, without_one, first = finest(image[None])[0], *(volume(image) for volume in volumes.values())
    assert torch.allclose(whole, without_one + 0.25, atol=1e-5)
    assert torch.allclose(without_one, first + 0.25 * finest.shares[1], atol=1e-5)

    item = {"patient": "t", "image": image, "label": coarser(image).clamp(0, 1)}
    got = evaluate_baselines([item], [], lambda item: item, geometry, ["mae_hu"], {"coarser_stages": coarser})
    assert got["coarser_stages"]["t"]["mae_hu"] == pytest.approx(0, abs=1)
    assert got["backprojection"]["t"]["mae_hu"] > 10
