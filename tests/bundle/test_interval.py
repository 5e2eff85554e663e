"""Bounds beside the estimate, as a user trains, resumes, grows and transfers them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from drr2ct.networks import create_network, network_config
from drr2ct.pipeline.checkpoints.files import read_checkpoint, write_checkpoint
from drr2ct.pipeline.checkpoints.network_export import export_network, facts
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, merged_config, run_bundle
from drr2ct.pipeline.training.recipes import coarse_network, frozen_with_interval
from drr2ct.pipeline.training.transfer import transfer_matching
from drr2ct.transforms.validation import InputError
from tests.bundle.conftest import TRAIN, assert_one_sentence, train
from tests.bundle.test_resume import same

RECIPE = bundle_file("configs/recipes/interval.yaml")


def last(run: Path, name: str = "last") -> dict:
    return read_checkpoint(run / "checkpoints" / f"{name}.pt")


@pytest.fixture(scope="module")
def doubting(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with bounds from the start."""
    return train(dataset, tmp_path_factory.mktemp("doubting"), **{"network_def#interval": True})


def test_the_estimate_is_trained_as_without(run: Path, doubting: Path) -> None:
    plain, with_bounds = last(run)["network"], last(doubting)["network"]
    assert all(torch.equal(value, with_bounds[name]) for name, value in plain.items())
    assert all(name.startswith("interval.") for name in with_bounds.keys() - plain.keys())
    for metric in ("psnr", "ssim"):
        assert last(run)["best"][metric] == last(doubting)["best"][metric]


def test_a_training_goes_on_exactly(dataset: Path, doubting: Path, tmp_path: Path) -> None:
    overrides = {"network_def#interval": True, "lr_scheduler#T_max": 2}
    train(dataset, tmp_path, **overrides, **{"train#trainer#max_epochs": 1})
    train(dataset, tmp_path, **overrides)
    for name in ("network", "optimizer"):
        assert same(last(tmp_path)[name], last(doubting)[name]), name


def head_only(dataset: Path, finished: Path, output: Path, *more: str, epochs: int = 2) -> dict:
    settings = {
        "dataset_dir": str(dataset),
        "output_dir": str(output),
        "transfer_from": str(finished),
        "train#trainer#max_epochs": epochs,
        "precision": "fp32",
        "num_workers": 0,
    }
    run_bundle([bundle_file(name) for name in (TRAIN, *more)] + [RECIPE], settings)
    return last(output)


def test_bounds_for_a_finished_network(dataset: Path, run: Path, tmp_path: Path) -> None:
    """Whatever network and size the configuration names, it is the checkpoint's that gets bounds."""
    finished = run / "checkpoints" / "last.pt"
    made = head_only(dataset, finished, tmp_path / "first", "configs/networks/cascade256.yaml", "configs/vary.yaml")
    before = read_checkpoint(finished)
    assert all(torch.equal(value, made["network"][name]) for name, value in before["network"].items())
    assert made["description"]["name"] == "cascade64" and made["description"]["config"]["interval"] is True
    assert sorted(path.name for path in (tmp_path / "first" / "checkpoints").glob("best*")) == ["best_loss.pt"]
    network = load_network(tmp_path / "first" / "checkpoints" / "last.pt")
    assert network(torch.rand(1, 2, 24, 24)).shape == (1, 3, 16, 16, 16)
    plain = head_only(dataset, finished, tmp_path / "plain", epochs=1)
    other = head_only(dataset, tmp_path / "first" / "checkpoints" / "last.pt", tmp_path / "again", epochs=1)
    assert not torch.equal(plain["network"]["interval.heads.0.0.weight"], other["network"]["interval.heads.0.0.weight"])


def test_bounds_begin_with_those_of_another_checkpoint(
    dataset: Path, run: Path, doubting: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, bounds = run / "checkpoints" / "last.pt", doubting / "checkpoints" / "last.pt"
    network = frozen_with_interval(finished, bounds)
    given = read_checkpoint(bounds)["network"]
    heads = [name for name in given if name.startswith("interval.heads.")]
    assert heads and all(torch.equal(network.state_dict()[name], given[name]) for name in heads)
    assert f"bounds begin with {len(heads)} tensors" in capsys.readouterr().out
    assert not torch.equal(network.state_dict()["volume"], read_checkpoint(bounds)["network"]["volume"])
    with pytest.raises(InputError, match="has no bounds that fit"):
        frozen_with_interval(finished, finished)
    content = read_checkpoint(bounds)
    content["description"]["patients"]["training"] += ["stranger"]
    write_checkpoint(tmp_path / "other.pt", content)
    with pytest.raises(InputError, match=r"trained on patients that .* was not trained on \(stranger\)"):
        frozen_with_interval(finished, tmp_path / "other.pt")


def test_patients_of_the_first_training_stay_known(dataset: Path, run: Path, tmp_path: Path) -> None:
    finished = run / "checkpoints" / "last.pt"
    others = tmp_path / "others"
    others.mkdir()
    first = last(run)["description"]
    unseen = [name for part in ("validation", "test") for name in first["patients"].get(part, [])]
    unseen = [*unseen, *(p.name for p in dataset.iterdir() if p.is_dir())]
    unseen = [name for name in dict.fromkeys(unseen) if name not in first["patients"]["training"]]
    for name in unseen:
        (others / name).symlink_to(dataset / name)
    settings = {"split_fractions": [0.5, 0.5, 0.0]}
    assert len(unseen) == 2
    run_bundle(
        [bundle_file(TRAIN), RECIPE],
        {
            **{"dataset_dir": str(others), "output_dir": str(tmp_path / "out"), "transfer_from": str(finished)},
            **{"train#trainer#max_epochs": 1, "precision": "fp32", "num_workers": 0, **settings},
        },
    )
    made = last(tmp_path / "out")["description"]
    assert set(first["patients"]["training"]) < set(made["patients"]["training"])
    assert set(first["training_cts"]) < set(made["training_cts"])


def test_without_a_finished_network_it_says_what_is_missing(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as refused:
        run_bundle([bundle_file(TRAIN), RECIPE], {"dataset_dir": str(dataset), "output_dir": str(tmp_path)})
    assert "give transfer_from, such as" in str(find_input_error(refused.value))


def test_bounds_of_several_networks_are_refused(dataset: Path, tmp_path: Path) -> None:
    settings = {"dataset_dir": str(dataset), "output_dir": str(tmp_path), "transfer_from": ["a.pt", "b.pt"]}
    with pytest.raises(Exception) as refused:
        run_bundle([bundle_file(TRAIN), RECIPE], settings)
    assert "one finished network, not for 2" in str(find_input_error(refused.value))


def test_bounds_grow_with_the_network() -> None:
    files = [bundle_file(TRAIN), bundle_file("configs/recipes/coarse_stages.yaml")]
    config = merged_config(files, {"network_def#interval": True, "network_name": "cascade64", "coarse_stages": 1})
    assert config["network_def"]["interval"] is True
    geometry = network_config("cascade256").geometry
    coarse = coarse_network("cascade256", 3, geometry.resized(size=128), interval=True)
    transfer = transfer_matching(create_network("cascade256", interval=True), coarse.state_dict())
    assert not transfer.unused and not transfer.reshaped, "a grown network contains the network that it was"
    assert {name for name in transfer.taken if name.startswith("interval.heads.")} == {
        name for name in coarse.state_dict() if name.startswith("interval.heads.")
    }


def test_bounds_are_calibrated_judged_and_written(
    command, dataset: Path, run: Path, doubting: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, calibrated = doubting / "checkpoints" / "last.pt", tmp_path / "calibrated.pt"
    arguments = ("calibrate", dataset, "--output", calibrated, "--checkpoint")
    assert_one_sentence(command(*arguments, run / "checkpoints" / "last.pt"), "gives no bounds")
    assert_one_sentence(command(*arguments, checkpoint, "--part", "training"), "was trained on 4 of the 4")
    assert_one_sentence(command(*arguments[:3], tmp_path / "c.safetensors", "--checkpoint", checkpoint), ".pt file")
    assert command(*arguments, checkpoint)[0] == 0
    assert_one_sentence(command(*arguments, checkpoint), "exists")
    made, before = read_checkpoint(calibrated), read_checkpoint(checkpoint)
    changed = {name for name, value in made["network"].items() if not torch.equal(value, before["network"][name])}
    assert changed == {"interval.knots", "interval.factors"}
    entry = made["description"]["interval"]
    assert entry["patients"] == before["description"]["patients"]["validation"] and entry["left_out"] is None
    settings = {"dataset_dir": str(dataset), "checkpoint": str(calibrated), "precision": "fp32", "num_workers": 0}
    output = tmp_path / "evaluation"
    run_bundle([bundle_file("configs/evaluate.yaml")], {**settings, "output_dir": str(output)})
    summary = json.loads((output / "summary.json").read_text())
    assert summary["model"]["calibrated_on"] == 1
    assert 0 < summary["figures"]["interval_coverage"]["mean"] <= 1
    (patient,) = (row["patient"] for row in json.loads((output / "patients.json").read_text())["patients"])
    bounds, ct = (nib.load(output / "predictions" / patient / f"{patient}_ct{end}.nii.gz") for end in ("_interval", ""))
    assert bounds.shape == (*ct.shape, 2) and np.allclose(bounds.affine, ct.affine)
    low, high = np.moveaxis(np.asarray(bounds.dataobj), -1, 0)
    assert (
        (low <= high).all() and (low <= np.asarray(ct.dataobj) + 1).all() and (np.asarray(ct.dataobj) <= high + 1).all()
    )
    # of a patient whom they are calibrated on, only the estimate is judged
    again = {**settings, "output_dir": str(tmp_path / "again"), "part": "validation", "export_grid": "none"}
    run_bundle([bundle_file("configs/evaluate.yaml")], again)
    judged = json.loads((tmp_path / "again" / "summary.json").read_text())["figures"]
    assert judged["psnr"]["mean"] > 0 and not any(name.startswith("interval") for name in judged)
    assert f"calibrated on 1 of the 1 patients ({entry['patients'][0]})" in caplog.text
    exported = export_network(calibrated, tmp_path / "network.pt2")
    assert (
        exported.difference <= 1e-3
        and facts(calibrated, made["description"], load_network(calibrated))["output"]["shape"][1] == 3
    )
