"""Each recipe's overlay, trained with."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drr2ct.networks import list_networks
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, merged_config, run_bundle
from drr2ct.pipeline.training import time_budget
from drr2ct.pipeline.training.recipes import train_growing
from drr2ct.transforms.films import pose as film_pose
from tests.bundle.conftest import SMALL, TRAIN
from tests.files import read_rows

FOLDER = bundle_file(TRAIN).parent / "recipes"


def train_with(recipe: str, dataset: Path, output: Path, epochs: int = 2, **overrides: Any) -> dict[str, Any]:
    """Train the small network with an overlay; returns the last checkpoint."""
    settings = {"dataset_dir": str(dataset), "output_dir": str(output), "train#trainer#max_epochs": epochs}
    run_bundle([bundle_file(TRAIN), FOLDER / f"{recipe}.yaml"], {**settings, **SMALL, **overrides})
    return read_checkpoint(output / "checkpoints" / "last.pt")


def column(run: Path, name: str, phase: str = "training") -> list[float]:
    return [float(row[name]) for row in read_rows(run / "epochs.csv") if row["phase"] == phase]


@pytest.mark.parametrize("recipe", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_overlay_fits_every_network(recipe: str) -> None:
    plain = merged_config([bundle_file(TRAIN)], {})
    for name in list_networks():
        files = [bundle_file(TRAIN), bundle_file(f"configs/networks/{name}.yaml"), FOLDER / f"{recipe}.yaml"]
        config = merged_config([*files, bundle_file("configs/multi_gpu_train.yaml")], {})
        assert set(plain) <= set(config), "an overlay takes nothing away"
        assert config["initialize"][0].startswith("$[distributed.start(@device)"), "before anything else"


def test_accumulation_takes_a_step_for_several_batches(dataset: Path, tmp_path: Path) -> None:
    # with a large eps AdamW's step is proportional to the gradient, and does not blow up its rounding errors
    common = {"optimizer#_target_": "torch.optim.AdamW", "learning_rate": 0.1, "optimizer#eps": 0.01}
    # four patients: two batches of two in one step are one batch of four
    accumulated = train_with("accumulation", dataset, tmp_path / "a", accumulation_steps=2, **common)
    whole = train_with("accumulation", dataset, tmp_path / "b", accumulation_steps=1, batch_size=4, **common)
    apart = train_with("accumulation", dataset, tmp_path / "c", accumulation_steps=1, **common)
    counts = {int(entry["step"]) for entry in accumulated["optimizer"]["state"].values()}
    assert counts == {2}, "one step per epoch"

    def differ(other: dict[str, Any]) -> float:
        return max(float((value - other["network"][name]).abs().max()) for name, value in whole["network"].items())

    assert differ(accumulated) < 1e-5 < 1e-3 < differ(apart)


def test_averaged_weights_validate_and_are_kept_with_the_others(dataset: Path, tmp_path: Path) -> None:
    common = {"average_decay": 0.9, "learning_rate": 1e-2, "lr_scheduler#T_max": 4}
    content = train_with("weight_average", dataset, tmp_path / "whole", 4, **common)
    average, trained = content["network"], content["training_network"]
    assert content["weight_average"] == {"updates": 8}
    assert max(float((average[name] - trained[name]).abs().max()) for name in average) > 1e-4
    plain = train_with("accumulation", dataset, tmp_path / "plain", 4, accumulation_steps=1, learning_rate=1e-2)
    for name, value in plain["network"].items():
        assert torch.equal(value, trained[name]), "averaging does not change the training"
    validated, without = (column(tmp_path / run, "psnr", "validation") for run in ("whole", "plain"))
    assert validated != without
    network = load_network(tmp_path / "whole" / "checkpoints" / "last.pt")
    assert torch.equal(network.volume, average["volume"])

    train_with("weight_average", dataset, tmp_path / "parts", 2, **common)
    resumed = train_with("weight_average", dataset, tmp_path / "parts", 4, **common)
    for part in ("network", "training_network"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in content[part].items()), part


def test_warm_up_rises_and_falls(dataset: Path, tmp_path: Path) -> None:
    common = {"warm_up_epochs": 2, "learning_rate": 1e-3}
    train_with("warm_up", dataset, tmp_path / "whole", 5, **common)
    rates = column(tmp_path / "whole", "lr")
    assert rates[:3] == pytest.approx([1e-5, (1e-5 + 1e-3) / 2, 1e-3], rel=1e-3)
    assert rates[2] > rates[3] > rates[4] > 1e-6
    train_with("warm_up", dataset, tmp_path / "parts", 1, **common, **{"lr_scheduler#schedulers#1#T_max": 3})
    train_with("warm_up", dataset, tmp_path / "parts", 5, **common)
    assert column(tmp_path / "parts", "lr") == pytest.approx(rates)


def test_early_stopping_ends_a_run_with_its_last_epoch_written(dataset: Path, tmp_path: Path) -> None:
    # nothing improves at a rate of zero
    still = {"early_stopping_patience": 2, "learning_rate": 0.0, "lr_scheduler#eta_min": 0.0}
    content = train_with("early_stopping", dataset, tmp_path, 9, **still)
    assert content["description"]["epoch"] == 3
    assert content["early_stopping"]["counter"] == 2
    assert len(column(tmp_path, "psnr", "validation")) == 3
    with pytest.raises(Exception) as refused:
        train_with("early_stopping", dataset, tmp_path, 9, **still)
    assert "raise early_stopping_patience" in str(find_input_error(refused.value))


def test_a_time_budget_validates_its_last_weights_and_goes_on_from_them(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))  # a step is 1 s
    run = tmp_path / "run"

    def seconds(budget: float) -> dict[str, Any]:
        return train_with("time_budget", dataset, run, epochs=100, batch_size=1, train_seconds=budget)

    last = seconds(6)  # of four steps an epoch
    assert (last["trainer"]["iteration"], last["description"]["epoch"]) == (6, 2)
    rows = [(row["epoch"], row["phase"]) for row in read_rows(run / "epochs.csv")]
    assert rows == [("1", "training"), ("1", "validation"), ("2", "training"), ("2", "validation")]
    best = read_checkpoint(run / "checkpoints" / "best_psnr.pt")["best"]["psnr"]
    assert best == pytest.approx(max(column(run, "psnr", "validation")), abs=1e-3)
    assert column(run, "lr")[-1] < 0.2 * column(run, "lr")[0]

    assert seconds(6)["trainer"]["iteration"] == 6  # there is no time left
    last = seconds(11)
    assert (last["trainer"]["iteration"], last["description"]["epoch"]) == (11, 3)
    assert [row["epoch"] for row in read_rows(run / "epochs.csv")] == ["1", "1", "2", "2", "3", "3"]
    last = seconds(12)  # its end is an epoch's end
    assert (last["trainer"]["iteration"], last["description"]["epoch"]) == (12, 3)
    assert len(column(run, "psnr", "validation")) == 3


def test_what_is_frozen_stays(dataset: Path, tmp_path: Path) -> None:
    start = train_with("freeze", dataset, tmp_path / "start", 1, learning_rate=0.0)
    content = train_with("freeze", dataset, tmp_path / "run", 1, freeze=["encoder.*", "volume"])
    for name, value in content["network"].items():
        frozen = name.startswith("encoder.") or name == "volume"
        assert torch.equal(value, start["network"][name]) == frozen, name
    assert len(content["optimizer"]["param_groups"][0]["params"]) == sum(
        not (name.startswith("encoder.") or name == "volume") for name in content["network"]
    )
    with pytest.raises(Exception) as refused:
        train_with("freeze", dataset, tmp_path / "other", 1, freeze=["decoder.*"])
    assert "matches no parameter" in str(find_input_error(refused.value))


def test_growing_starts_each_training_from_the_one_before(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    settings = {key: SMALL[key] for key in ("network_name", "detector_size", "num_workers", "precision", "batch_size")}
    settings |= {"dataset_dir": str(dataset), "output_dir": str(output), "train#trainer#max_epochs": 1}
    # so that the weights can be followed
    settings |= {"learning_rate": 0.0, "size": 32}
    train_growing([bundle_file(TRAIN), bundle_file("configs/networks/cascade64.yaml")], settings, [(1, 1)])
    coarse = read_checkpoint(output / "stages1" / "checkpoints" / "last.pt")
    whole = read_checkpoint(output / "checkpoints" / "last.pt")
    assert len(coarse["description"]["config"]["stages"]) == 1
    assert coarse["description"]["config"]["geometry"]["grid"]["size"] == 16
    assert len(whole["description"]["config"]["stages"]) == 2
    assert "took " in capsys.readouterr().out
    both = [name for name in whole["network"] if name in coarse["network"]]
    shared = [name for name in both if whole["network"][name].shape == coarse["network"][name].shape]
    assert "volume" in shared and any(name.startswith("stages.0.") for name in shared)
    assert all(torch.equal(whole["network"][name], coarse["network"][name]) for name in shared)


def test_monitoring_of_a_run(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {
        "speed/samples_per_second", "speed/waiting_for_data_share", "memory/now_gib", "memory/peak_gib",
    } <= set(events.Tags()["scalars"])  # fmt: skip
    from tensorboard.plugins.hparams import metadata

    start = metadata.parse_session_start_info_plugin_data(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    assert start.hparams["network"].string_value == "cascade64"
    assert start.hparams["loss/l1"].number_value == 1.0 and start.hparams["processes"].number_value == 1
    experiment = metadata.parse_experiment_plugin_data(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    )
    for info in experiment.metric_infos:
        assert info.name.tag in events.Tags()["scalars"], "the tab shows it"


def test_histograms_by_key(dataset: Path, tmp_path: Path) -> None:
    train_with("accumulation", dataset, tmp_path, 1, accumulation_steps=1, histogram_interval=1)
    histograms = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["histograms"]
    assert {"weights/volume", "gradients/volume"} <= set(histograms)


@pytest.mark.slow
def test_a_log_file_gets_a_line_per_epoch(dataset: Path, tmp_path: Path) -> None:
    overrides = [f"--set={key}={value}" for key, value in SMALL.items() if key != "network_name"]
    command = [sys.executable, "-c", "from drr2ct.pipeline.cli import main; main()"]
    arguments = ["train", dataset, "--output", tmp_path, "--network", "cascade64", "--epochs", "2"]
    result = subprocess.run(
        [*command, *map(str, arguments), "--recipe", "warm_up", *overrides], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    assert [line.split(",")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"], result.stdout


def test_films_train_on_other_radiographs_of_the_same_cts(dataset: Path, tmp_path: Path) -> None:
    first, again = (train_with("films", dataset, tmp_path / name) for name in ("a", "b"))
    never = train_with("films", dataset, tmp_path / "c", film_share=0.0)
    assert all(torch.equal(value, again["network"][name]) for name, value in first["network"].items())
    assert not all(torch.equal(value, never["network"][name]) for name, value in first["network"].items())
    # DRRs only: nothing is drawn that would change a plain training
    settings = {"dataset_dir": str(dataset), "output_dir": str(tmp_path / "d"), "train#trainer#max_epochs": 2, **SMALL}
    run_bundle([bundle_file(TRAIN)], settings)
    plain = read_checkpoint(tmp_path / "d" / "checkpoints" / "last.pt")
    assert all(torch.equal(value, plain["network"][name]) for name, value in never["network"].items())


def test_films_of_varied_patients_are_rendered_once(dataset: Path, tmp_path: Path, monkeypatch) -> None:
    calls = []
    render = film_pose.render_films
    monkeypatch.setattr(film_pose, "render_films", lambda *args, **options: calls.append(1) or render(*args, **options))
    settings = {"dataset_dir": str(dataset), "output_dir": str(tmp_path), "train#trainer#max_epochs": 1, **SMALL}
    files = [bundle_file(TRAIN), bundle_file("configs/vary.yaml"), FOLDER / "films.yaml"]
    run_bundle(files, settings)
    description = read_checkpoint(tmp_path / "checkpoints" / "last.pt")["description"]
    assert len(calls) == len(description["patients"]["training"])
