"""An ensemble of checkpoints: whose weights it holds, what it says of them, and what cannot be joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from drr2ct.networks import create_network
from drr2ct.pipeline import cli
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.ensemble import join
from drr2ct.pipeline.checkpoints.files import read_checkpoint, write_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.training.transfer import transfer_weights
from drr2ct.transforms.validation import InputError

STAGES = [
    {"channels": 8, "scale": 1, "norm_groups": 0, "growth": 4, "layers": 1, "lift_channels": 4},
    {"channels": 8, "norm_groups": 0, "growth": 4, "layers": 1, "lift_channels": 4},
]
FINER = {"channels": 4, "norm_groups": 0, "grow_kernel": 1, "growth": 4, "layers": 1, "lift_channels": 4}
SMALL = {"size": 16, "detector_size": 16, "encoder_channels": [4], "encoder_norm_groups": [2], "volume_channels": 4}


def saved(path: Path, seed: int, patients: tuple[str, ...] = ("p1",), **options: Any) -> Path:
    """A checkpoint with random weights, trained on these patients and validated on p8 and p9."""
    torch.manual_seed(seed)
    network = create_network("cascade64", **{**SMALL, "stages": STAGES, **options})
    for parameter in network.outputs[-1].parameters():  # of a finer stage, zero to begin with
        torch.nn.init.normal_(parameter, std=0.1)
    parts = {"training": [{"patient": p} for p in patients], "validation": [{"patient": p} for p in ("p8", "p9")]}
    about = describe(network, "cascade64", "cube", parts)
    about |= {"epoch": 3, "iteration": 12, "radiographs": {"pa": [1.0]}, "interval": {"level": 0.9}}
    return write_checkpoint(path, {"network": network.state_dict(), "description": about})


def finer(path: Path, seed: int, **options: Any) -> Path:
    """The same with a finer stage, and radiographs twice as fine."""
    return saved(path, seed, stages=[*STAGES, FINER], output_stages=2, size=32, detector_size=32, **options)


def radiographs(pixels: int) -> torch.Tensor:
    return torch.rand(1, 2, pixels, pixels, generator=torch.Generator().manual_seed(1))


def test_it_gives_the_mean_and_says_whom_its_members_saw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [saved(tmp_path / f"{seed}.pt", seed, (f"p{seed}", "p8")[: 1 + seed]) for seed in (0, 1)]
    output = tmp_path / "joined.pt"
    printed = CliRunner().invoke(cli.app, ["join", *map(str, paths), "--output", str(output)]).stdout
    assert "2 members" in printed and "calibrate" not in printed
    joined, x = load_network(output), radiographs(16)
    assert torch.allclose(joined(x), sum(load_network(path)(x) for path in paths) / 2, atol=1e-6)
    about = read_checkpoint(output)["description"]
    assert about["patients"] == {"training": ["p0", "p1", "p8"], "validation": ["p9"]}
    assert about["radiographs"] == {"pa": [1.0]} and about["epoch"] == 3
    assert "interval" not in about and about["joined"] == list(map(str, paths))
    # a third one joins, and a training begins with all
    more = join(output, [saved(tmp_path / "2.pt", 2)], tmp_path / "three.pt")
    assert more.members == 3
    begun = create_network("cascade64", **{**SMALL, "stages": STAGES, "members": 3})
    transfer_weights(begun, tmp_path / "three.pt")
    assert torch.equal(begun.eval()(x), load_network(tmp_path / "three.pt")(x))
    assert not caplog.messages
    transfer_weights(create_network("cascade64", **{**SMALL, "stages": STAGES}), tmp_path / "three.pt")
    assert "the first member alone; network_def#members=3 takes all" in caplog.text


def test_every_named_cascade_takes_a_cascade64(tmp_path: Path) -> None:
    """Whose pixels are a half and a quarter as wide, but for rounding."""
    paths = {}
    for name in ("cascade64", "cascade128", "cascade256"):
        torch.manual_seed(len(name))
        network = create_network(name)
        about = describe(network, name, "cube", {"training": [], "validation": []})
        paths[name] = write_checkpoint(tmp_path / f"{name}.pt", {"network": network.state_dict(), "description": about})
    torch.manual_seed(1)
    other = create_network("cascade64")
    write_checkpoint(paths["cascade64"], {**read_checkpoint(paths["cascade64"]), "network": other.state_dict()})
    for name in ("cascade128", "cascade256"):
        assert join(paths[name], [paths["cascade64"]], tmp_path / f"joined_{name}.pt").members == 2


def test_finer_stages_add_to_the_mean_of_coarser_networks(tmp_path: Path) -> None:
    base, other = finer(tmp_path / "fine.pt", 0), saved(tmp_path / "coarse.pt", 1)
    join(base, [other], tmp_path / "joined.pt")
    join(base, [finer(tmp_path / "fine1.pt", 1)], tmp_path / "joined1.pt")
    x = radiographs(32)
    alone, joined = load_network(base), load_network(tmp_path / "joined.pt")
    halved = torch.nn.functional.avg_pool2d(x, 2)
    assert torch.allclose(joined.members[0](x), load_network(other)(halved), atol=1e-6)
    assert 0.001 < (joined(x) - alone(x)).abs().max() < 1
    names = joined.state_dict().keys() & load_network(tmp_path / "joined1.pt").state_dict().keys()
    assert len(names) == len(joined.state_dict()), "of a finer network, what makes its first volume"


def test_bounds_stay_and_their_calibration_goes(tmp_path: Path) -> None:
    base, other = saved(tmp_path / "0.pt", 0, interval=True), saved(tmp_path / "1.pt", 1)
    content = read_checkpoint(base)
    content["network"]["interval.factors"] += 1
    write_checkpoint(base, content)
    output = tmp_path / "joined.pt"
    printed = CliRunner().invoke(cli.app, ["join", str(base), str(other), "--output", str(output)]).stdout
    assert "no longer calibrated" in printed
    weights = read_checkpoint(output)["network"]
    assert (weights["interval.factors"] == 1).all()
    before, after = (w["interval.heads.0.0.weight"] for w in (content["network"], weights))
    seen = before.shape[1]
    assert torch.equal(after[:, :seen], before)
    assert after.shape[1] == seen + 8 + 3 and not after[:, seen:].any(), "what they do not know yet"
    assert not any(name.startswith("members.0.interval") for name in weights)


def test_what_cannot_be_joined(tmp_path: Path) -> None:
    base, other = saved(tmp_path / "0.pt", 0), saved(tmp_path / "1.pt", 1)
    output = tmp_path / "joined.pt"

    def refused(says: str, *others: Path, first: Path = base, to: Path = output) -> None:
        before = to.read_bytes() if to.is_file() else None
        with pytest.raises(InputError, match=says):
            join(first, others, to)
        assert (to.read_bytes() if to.is_file() else None) == before

    refused("two networks or more")
    refused("the same first stages", saved(tmp_path / "again.pt", 0))
    refused("the same first stages", other, saved(tmp_path / "again.pt", 1))
    wider = [{**STAGES[0], "channels": 16}, STAGES[1]]
    refused("other layers, or of another geometry", saved(tmp_path / "wide.pt", 1, stages=wider))
    refused("other layers, or of another geometry", saved(tmp_path / "pixels.pt", 1, detector_size=32))
    content = read_checkpoint(other)
    resized = {**content, "description": {**content["description"], "mode": "resize"}}
    refused("different scales", write_checkpoint(tmp_path / "resized.pt", resized))
    refused("drr2ct release", other, to=tmp_path / "joined.safetensors")
    refused("0.pt", other, to=base)
    refused("does not exist", tmp_path / "none.pt")
    join(base, [other], output)
    refused("exists", other)
    refused("the same first stages", other, first=output, to=tmp_path / "more.pt")
    refused("an ensemble itself", output, first=saved(tmp_path / "2.pt", 2), to=tmp_path / "more.pt")
