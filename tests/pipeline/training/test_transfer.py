from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.training.recipes import coarse_network
from drr2ct.pipeline.training.transfer import transfer_matching, transfer_weights
from drr2ct.transforms.validation import InputError


@pytest.mark.parametrize(
    ("source", "target", "tensors", "weights"),
    [
        ("cascade64", "cascade128", (67, 68, 0), (327_600, 935_640)),
        ("cascade128", "cascade256", (135, 34, 0), (935_640, 953_636)),
        ("direct128", "direct256", (14, 22, 89), (376_321, 2_675_489)),
    ],
)
def test_exact_counts(source: str, target: str, tensors: tuple[int, int, int], weights: tuple[int, int]) -> None:
    torch.manual_seed(0)
    smaller, larger = create_network(source), create_network(target)
    before = copy.deepcopy(larger.state_dict())
    transfer = transfer_matching(larger, smaller.state_dict())
    assert (len(transfer.taken), len(transfer.missing), len(transfer.reshaped)) == tensors
    assert (transfer.weights, transfer.of_weights) == weights
    for name, value in larger.state_dict().items():
        expected = smaller.state_dict()[name] if name in transfer.taken else before[name]
        assert torch.equal(value, expected), name
    assert len(transfer.taken) + len(transfer.reshaped) + len(transfer.unused) == len(smaller.state_dict())


def test_the_summary_names_what_was_not_taken() -> None:
    transfer = transfer_matching(create_network("direct256"), create_network("direct128").state_dict())
    lines = transfer.summary()
    assert lines[0] == "took 14 of 125 tensors, 376,321 of 2,675,489 weights (14.1 %)"
    assert "  other shape: volume 1×16×16×16×16, was 1×1×16×16×16" in lines
    assert "  not there: stages.0.fusion.mix.weight 32×160×1×1×1" in lines
    assert "  left over: stages.0.fusion.mix.0.weight" in lines
    assert lines[-1] == "  left over: 114 more"


def test_coarse_stages_fit_into_the_whole() -> None:
    geometry = create_network("cascade256").config.geometry.resized(size=128)
    transfer = transfer_matching(create_network("cascade256"), coarse_network("cascade256", 3, geometry).state_dict())
    assert len(transfer.taken) == 135, "the first three stages of cascade256 are cascade128"
    assert not transfer.unused and not transfer.reshaped


def test_from_a_checkpoint(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    source = create_network("cascade64", size=16, detector_size=24)
    description = describe(source, "cascade64", "cube", {})
    path = write_checkpoint(tmp_path / "last.pt", {"network": source.state_dict(), "description": description})
    target = create_network("cascade64", size=32, detector_size=24)
    assert transfer_weights(target, None) == []
    assert transfer_weights(target, path, tmp_path) == [], "a training that is resumed does not start from it again"
    [transfer] = transfer_weights(target, path)
    assert f"weights from {path}:\ntook {len(transfer.taken)} of " in capsys.readouterr().out
    with pytest.raises(InputError, match="no layer in common"):
        transfer_weights(torch.nn.Linear(2, 2), path)


def test_from_two_the_later_one_wins(tmp_path: Path) -> None:
    fine = create_network("cascade128", size=32, detector_size=48)
    coarse = create_network("cascade64", size=16, detector_size=24)
    paths = []
    for name, trained in {"cascade128": fine, "cascade64": coarse}.items():
        content = {"network": trained.state_dict(), "description": describe(trained, name, "cube", {})}
        paths.append(write_checkpoint(tmp_path / f"{name}.pt", content))
    network = create_network("cascade128", size=32, detector_size=48)
    transfers = transfer_weights(network, paths)
    assert len(transfers) == 2
    own, later = network.state_dict(), coarse.state_dict()
    for key, value in fine.state_dict().items():
        assert torch.equal(own[key], later.get(key, value)), key
    assert later.keys() < own.keys()


def test_from_a_narrower_network(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow = create_network("cascade64", size=16, detector_size=24)
    description = describe(narrow, "cascade64", "cube", {})
    path = write_checkpoint(tmp_path / "last.pt", {"network": narrow.state_dict(), "description": description})
    stages = (replace(narrow.config.stages[0], channels=40, blocks=3), narrow.config.stages[1])
    wide = create_network("cascade64", size=16, detector_size=24, stages=stages)
    [transfer] = transfer_weights(wide, path)
    assert not transfer.reshaped and not transfer.unused
    assert transfer.weights == 179_664 == sum(value.numel() for value in narrow.state_dict().values()), (
        "every weight of the narrower network is in the wider one"
    )
    printed = capsys.readouterr().out
    assert "  widened: stages.0.fusion.mix.weight" in printed
    assert "  not there: stages.0.blocks.2.fuse.weight 40×88×1×1×1" in printed
    radiographs = torch.rand(1, 2, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(wide(radiographs), narrow(radiographs), rtol=1e-4, atol=1e-5)
