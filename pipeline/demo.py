"""The demonstration: an unseen patient by a shipped network; then one CT varied without end, and a cascade trained."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drr2ct.pipeline.checkpoints.shipped import chosen_weights, weights_file
from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.data.loading import derived_seed
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.demo_unseen import reconstruct_unseen
from drr2ct.pipeline.evaluation.baselines import evaluate_baselines
from drr2ct.pipeline.evaluation.metrics import InWindow
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.pipeline.pictures.figures import save_figure
from drr2ct.pipeline.pictures.overview import overview_figure
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.pipeline.running.provenance import DISCLAIMER, versions
from drr2ct.pipeline.volumes.files import read_volume
from drr2ct.pipeline.volumes.placing import place_on_grid
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import refuse_unwritable, replacing, write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept, files_to_samples, kept_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.variation import Variation

GRID_SIZE = 64
DETECTOR_SIZE = 128
VARIATION = Variation()
"""How far the demonstration's patients differ from the CT."""

_COLUMNS = ("psnr", "ssim", "mae_hu")


@dataclass(frozen=True)
class DemoSettings:
    """How large the demonstration is.

    Args:
        training: variations of the CT in an epoch; the mean of as many is what the network has to beat.
        validation: variations to watch.
        test: variations that the network never sees.
        train_seconds: time for training.
        seed: of the variations and of the training.
    """

    training: int = 96
    validation: int = 8
    test: int = 16
    train_seconds: float = 300.0
    seed: int = 0


def run_demo(
    output: str | Path,
    settings: DemoSettings,
    console: Console,
    model: str | None = None,
    reconstruct_only: bool = False,
) -> dict[str, float]:
    """Reconstruct an unseen patient with a shipped network, then train one. What was stopped goes on where it was.

    Args:
        output: ``unseen`` lands here (see :func:`~drr2ct.pipeline.demo_unseen.reconstruct_unseen`), and ``data``,
            ``run``, ``evaluation``, ``reconstruction.nii.gz``, ``overview.png`` and ``summary.json`` of the training.
        settings: how large the training is.
        console: where progress and tables are printed.
        model: name of a shipped network; by default the finest. Where none is shipped, this part is left out.
        reconstruct_only: leave the training out.

    Returns:
        What ``summary.json`` holds of the training, or the figures of the unseen patient if that is left out.

    Raises:
        InputError: if the folder cannot be written, or holds a finished demonstration or data made with other
            settings, if there is nothing to reconstruct with, or for a network that is not shipped.
    """
    output = Path(output)
    refuse_unwritable([output / "summary.json"])
    if not reconstruct_only and (output / "summary.json").exists():
        raise InputError(f"{output} holds a finished demonstration; delete it or choose another folder.")
    weights = chosen_weights(model=model) if reconstruct_only else weights_file(model=model)
    figures: dict[str, float] = {}
    if weights is None:
        console.print("no network is shipped here, so the demonstration begins with training one")
    else:
        console.print("[bold]a real patient whom no shipped network has seen[/], from two radiographs")
        figures = reconstruct_unseen(output / "unseen", weights, console)
    return figures if reconstruct_only else train_one(output, settings, console)


def train_one(output: Path, settings: DemoSettings, console: Console) -> dict[str, float]:
    """Train a small cascade on variations of one CT; :func:`run_demo` says of what it writes and raises."""
    began = time.monotonic()
    geometry = BiplanarGeometry.from_angles(VolumeGrid(GRID_SIZE), detector_size=DETECTOR_SIZE)
    plan = CohortPlan((sample_ct(),), geometry, 0, settings.validation, settings.test, seed=settings.seed)
    data, run = output / "data", output / "run"
    patients = len(plan.patients())
    console.print(f"[bold]1/4[/] {patients} variations of one real chest CT to judge on, with paired DRRs → {data}")
    with Progress(console=console) as progress:
        task = progress.add_task("rendering", total=patients)
        write_cohort(data, plan, on_patient=lambda: progress.advance(task))

    console.print(
        f"[bold]2/4[/] training cascade64 for {settings.train_seconds:.0f} s, on another variation each time → {run}"
    )
    names = ("train", "networks/cascade64", "vary", "recipes/time_budget", "demo")
    configs = [bundle_file(f"configs/{name}.yaml") for name in names]
    common = {"dataset_dir": data, "seed": settings.seed}
    training = {
        "train_seconds": settings.train_seconds,
        "variations": settings.training,
        "variation": asdict(VARIATION),
    }
    run_bundle(configs, {**common, **training, "output_dir": run})
    checkpoint = run / "checkpoints" / "last.pt"

    console.print(f"[bold]3/4[/] evaluating on {settings.test} patients it has never seen")
    evaluation = output / "evaluation"
    overrides = {"checkpoint": checkpoint, "output_dir": evaluation, "export_grid": "none"}
    run_bundle([bundle_file("configs/evaluate.yaml")], {**common, **overrides})
    rows = _read_table(evaluation / "patients.csv")
    mean = rows.pop("mean")
    blind = mean_of_variations(data, geometry, settings)

    # the patient in the middle, not the best one
    patient = sorted(rows, key=lambda name: rows[name]["psnr"])[len(rows) // 2]
    console.print(f"[bold]4/4[/] reconstructing {patient} from its two radiograph files alone")
    reconstruct_from_files(output, data / patient, checkpoint, geometry)
    draw_overview(output, data, patient, geometry, rows[patient]["psnr"])

    summary = {
        "psnr": mean["psnr"],
        "baseline_psnr": blind["psnr"],
        "gain": mean["psnr"] - blind["psnr"],
        "ssim": mean["ssim"],
        "baseline_ssim": blind["ssim"],
        "mae_hu": mean["mae_hu"],
        "seconds": time.monotonic() - began,
    }
    record = {
        **summary,
        "note": f"{DISCLAIMER}; patients are variations of one CT",
        "hu_window": list(DEFAULT_WINDOW),
        "patient": patient,
        "train_seconds": settings.train_seconds,
        "versions": versions(),
    }
    write_json(output / "summary.json", record)
    _print_table(summary, settings, output, console)
    return summary


def mean_of_variations(data: Path, geometry: BiplanarGeometry, settings: DemoSettings) -> dict[str, float]:
    """PSNR and SSIM of the mean of an epoch's variations, as everybody's reconstruction."""
    kept = files_to_kept(geometry)({"patient": sample_ct().parent.name, "label": str(sample_ct())})
    vary, read = kept_to_samples(geometry, VARIATION), files_to_samples(geometry)

    def load(item: Mapping[str, Any]) -> Mapping[str, Any]:
        if "seed_of_epoch" not in item:
            return read(dict(item))
        vary.set_random_state(item["seed_of_epoch"])
        return vary(dict(kept))

    seen = [{"seed_of_epoch": derived_seed(settings.seed, 1, index)} for index in range(settings.training)]
    figures = evaluate_baselines(load_datalist(data, "test"), seen, load, geometry, ("psnr", "ssim"))["mean_volume"]
    return {name: float(np.mean([row[name] for row in figures.values()])) for name in ("psnr", "ssim")}


def _read_table(path: Path) -> dict[str, dict[str, float]]:
    with path.open(newline="") as file:
        return {row.pop("patient"): {name: float(row[name]) for name in _COLUMNS} for row in csv.DictReader(file)}


def reconstruct_from_files(output: Path, patient_dir: Path, checkpoint: Path, geometry: BiplanarGeometry) -> None:
    """Run inference on one patient's radiographs, copied away from the CT so that nothing else can be read."""
    patient = patient_dir.name
    folder = output / "reconstruction"
    folder.mkdir(exist_ok=True)
    radiographs = []
    for view in geometry.views:
        stored = patient_dir / f"{patient}_{view.name}_drr.nii.gz"
        radiographs.append(shutil.copyfile(stored, folder / stored.name))
    overrides = {"radiographs": radiographs, "patient": patient, "output_dir": folder}
    run_bundle([bundle_file("configs/inference.yaml")], {**overrides, "checkpoint": checkpoint, "overwrite": True})
    made = folder / patient / f"{patient}_ct.nii.gz"
    with replacing(output / "reconstruction.nii.gz") as temporary:
        shutil.copyfile(made, temporary)


def draw_overview(output: Path, data: Path, patient: str, geometry: BiplanarGeometry, psnr: float) -> None:
    """Draw ``overview.png``: what the network saw, what was there, what it made, and the difference."""
    views = [view.name for view in geometry.views]
    item = next(item for item in load_datalist(data, "test", views) if item["patient"] == patient)
    sample = files_to_samples(geometry)(item)
    truth = place_on_grid(sample["label"], geometry)
    made = read_volume(output / "reconstruction.nii.gz")
    title = f"{patient}, never seen in training: {psnr:.1f} dB PSNR (3-D, {InWindow().width:.0f} HU range)"
    figure = overview_figure(sample["image"] * LINE_INTEGRAL_SCALE, truth, made, geometry, title)
    save_figure(figure, output / "overview.png")


def _print_table(summary: dict[str, float], settings: DemoSettings, output: Path, console: Console) -> None:
    low, high = DEFAULT_WINDOW
    table = Table(title=f"{settings.test} unseen patients, 3-D, HU window {low:.0f}…{high:.0f}")
    table.add_column("")
    table.add_column("PSNR (dB)", justify="right")
    table.add_column("SSIM", justify="right")
    table.add_row(
        f"mean of {settings.training} variations", f"{summary['baseline_psnr']:.2f}", f"{summary['baseline_ssim']:.3f}"
    )
    table.add_row("cascade64", f"{summary['psnr']:.2f}", f"{summary['ssim']:.3f}")
    table.add_row("gain", f"{summary['gain']:+.2f}", f"{summary['ssim'] - summary['baseline_ssim']:+.3f}")
    console.print(table)
    console.print(f"{output / 'reconstruction.nii.gz'}  open it in 3D Slicer or ITK-SNAP")
    console.print(f"{output / 'overview.png'}  radiographs, truth, reconstruction, error")
    console.print(f"tensorboard --logdir {output / 'run' / 'tensorboard'}")
    console.print(f"{summary['seconds']:.0f} s in all. {DISCLAIMER}.")
