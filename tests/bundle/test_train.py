"""Training through the bundle: what it leaves behind, and that it goes on exactly where it stopped."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, run_bundle
from drr2ct.pipeline.training.epoch_csv import CSV_COLUMNS
from drr2ct.pipeline.training.numerics import NonFiniteLossError
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from tests.bundle.conftest import TRAIN, train
from tests.files import read_rows, write_nifti


def rows_of(run: Path) -> list[dict[str, str]]:
    return read_rows(run / "epochs.csv")


def test_one_csv_row_per_epoch_and_phase(run: Path) -> None:
    rows = rows_of(run)
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(row["epoch"], row["phase"]) for row in rows] == [
        ("1", "training"), ("1", "validation"), ("2", "training"), ("2", "validation"),
    ]  # fmt: skip
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in CSV_COLUMNS if name != "phase")
    # cosine from 1e-3 over two epochs: the rate each epoch ran with
    assert float(rows[0]["lr"]) == pytest.approx(1e-3)
    assert float(rows[2]["lr"]) == pytest.approx((1e-3 + 1e-6) / 2, rel=1e-3)


def test_best_checkpoints_are_those_of_the_csv(run: Path) -> None:
    rows = [row for row in rows_of(run) if row["phase"] == "validation"]
    for name, choose in (("loss", min), ("psnr", max), ("ssim", max)):
        best = choose(rows, key=lambda row: float(row[name]))
        description = read_checkpoint(run / "checkpoints" / f"best_{name}.pt")["description"]
        assert description["epoch"] == int(best["epoch"])
        assert description["metrics"][name] == pytest.approx(float(best[name]), rel=1e-4)
    assert read_checkpoint(run / "checkpoints" / "last.pt")["description"]["epoch"] == 2
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        "last.pt", "previous.pt", "best_loss.pt", "best_psnr.pt", "best_ssim.pt",
    }  # fmt: skip


def test_a_checkpoint_says_what_it_is(run: Path) -> None:
    description = read_checkpoint(run / "checkpoints" / "last.pt")["description"]
    network = load_network(run / "checkpoints" / "last.pt")
    assert isinstance(network.config.geometry, BiplanarGeometry)
    assert network.config.geometry.grid.size == 16 and not network.training
    assert description["name"] == "cascade64" and description["hu_window"] == [-1024.0, 3071.0]
    assert len(description["patients"]["training"]) == 4 and len(description["patients"]["validation"]) == 1
    assert not set(description["patients"]["training"]) & set(description["patients"]["validation"])
    assert {"torch", "monai", "python"} <= set(description["versions"])


def test_tensorboard_shows_it(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "training/loss", "training/loss_l1", "training/loss_ssim", "training/lr", "training/psnr", "training/ssim",
        "training/seconds_per_iteration", "training/peak_memory_gib",
        "validation/loss", "validation/psnr", "validation/ssim",
    } <= scalars  # fmt: skip
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation/psnr")] == [1, 2]
    last = [row for row in rows_of(run) if row["phase"] == "validation"][-1]
    assert events.Scalars("validation/psnr")[-1].value == pytest.approx(float(last["psnr"]), rel=1e-4)
    images = set(events.Tags()["images"])
    planes = {
        f"{plane}/{what}" for plane in ("axial", "coronal", "sagittal") for what in ("truth", "prediction", "error")
    }
    assert images == planes | {"radiographs/pa", "radiographs/lat"}
    assert [image.step for image in events.Images("coronal/truth")] == [1, 2]


def test_resumed_training_ends_where_an_uninterrupted_one_ends(dataset: Path, tmp_path: Path) -> None:
    common = {"lr_scheduler#T_max": 4, "cache_dir": str(tmp_path / "cache")}
    whole = train(dataset, tmp_path / "whole", **common, **{"train#trainer#max_epochs": 4})
    parts = train(dataset, tmp_path / "parts", **common, **{"train#trainer#max_epochs": 2})
    train(dataset, parts, **common, **{"train#trainer#max_epochs": 4})
    a, b = (read_checkpoint(run / "checkpoints" / "last.pt") for run in (whole, parts))
    for name, value in a["network"].items():
        assert torch.equal(value, b["network"][name]), name
    assert a["best"] == b["best"]
    for first, second in zip(rows_of(whole), rows_of(parts), strict=True):
        assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


def test_whom_a_run_has_learned_from_stays_on_record(dataset: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    for place in dataset.iterdir():  # other patients: other CTs by other names
        image = nib.load(place / f"{place.name}.nii.gz")
        write_nifti(others / f"q{place.name}" / "ct.nii.gz", image.get_fdata()[:-2], image.affine)
    run = train(dataset, tmp_path / "run", **{"train#trainer#max_epochs": 1})
    first = read_checkpoint(run / "checkpoints" / "last.pt")["description"]
    train(others, run, **{"train#trainer#max_epochs": 2})
    both = read_checkpoint(run / "checkpoints" / "last.pt")["description"]
    new = both["patients"]["training"][len(first["patients"]["training"]) :]
    assert both["patients"]["training"][: -len(new)] == first["patients"]["training"]
    assert len(new) == 4 and all(name.startswith("q") for name in new)
    assert set(first["training_cts"]) < set(both["training_cts"]) and len(both["training_cts"]) == 8


def test_a_finished_run_is_not_trained_again(dataset: Path, run: Path) -> None:
    before = (run / "checkpoints" / "last.pt").read_bytes()
    with pytest.raises(Exception) as refused:
        train(dataset, run)
    assert "raise max_epochs" in str(find_input_error(refused.value))
    assert (run / "checkpoints" / "last.pt").read_bytes() == before


def test_the_saved_configuration_runs_again(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    run_bundle([run / "config.yaml"], {"output_dir": str(again)})
    first, second = (read_checkpoint(r / "checkpoints" / "last.pt")["network"] for r in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first), "same seed, same weights"


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception) as stopped:
        train(dataset, tmp_path / "run", learning_rate=1e30, max_gradient_norm=1e30)
    error: BaseException | None = stopped.value
    while error is not None and not isinstance(error, NonFiniteLossError):
        error = error.__cause__ or error.__context__
    assert error is not None and "batch of p" in str(error)


def test_gradients_are_clipped_before_the_step(dataset: Path, tmp_path: Path) -> None:
    # with a large eps AdamW's step is proportional to the gradient
    common = {
        "optimizer#_target_": "torch.optim.AdamW",
        "optimizer#weight_decay": 0.0,
        "optimizer#eps": 1.0,
        "lr_scheduler#eta_min": 0.0,
    }
    still = train(dataset, tmp_path / "still", max_gradient_norm=1e-12, **common)
    moving = train(dataset, tmp_path / "moving", **common)
    start = train(dataset, tmp_path / "start", learning_rate=0.0, **common)
    weights = [read_checkpoint(run / "checkpoints" / "last.pt")["network"] for run in (still, moving, start)]
    moved = [max(float((w[name] - weights[2][name]).abs().max()) for name in w) for w in weights[:2]]
    assert moved[0] < 1e-9 < moved[1]


@pytest.mark.parametrize("name", ["cascade64", "cascade128", "cascade256", "direct128", "direct256", "direct256_draft"])
def test_every_network_trains_by_overlay(dataset: Path, tmp_path: Path, name: str) -> None:
    settings = {
        "dataset_dir": str(dataset), "output_dir": str(tmp_path), "size": 16, "detector_size": 32, "precision": "fp32",
        "train#trainer#max_epochs": 1, "split_fractions": [0.2, 0.15, 0.65],  # one step, one validation
    }  # fmt: skip
    run_bundle([bundle_file(TRAIN), bundle_file(f"configs/networks/{name}.yaml")], settings)
    description = read_checkpoint(tmp_path / "checkpoints" / "best_psnr.pt")["description"]
    assert description["name"] == name
    assert description["mode"] == ("resize" if name.startswith("direct") else "cube")


def test_the_checkpoint_knows_what_its_training_radiographs_look_like(dataset: Path, run: Path) -> None:
    description = read_checkpoint(run / "checkpoints" / "last.pt")["description"]
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    items = load_datalist(dataset, "training")
    assert [item["patient"] for item in items] == description["patients"]["training"]
    samples = [files_to_samples(geometry)(item) for item in items]
    wanted = radiograph_statistics(samples)
    for found, view in zip(description["radiographs"]["views"], wanted["views"], strict=True):
        np.testing.assert_allclose(found["thumbnail"], view["thumbnail"], atol=1e-3)
