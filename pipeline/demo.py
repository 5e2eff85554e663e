"""The demonstration: one real chest CT, a cohort made of it, a trained cascade, and a reconstruction from two files."""

from __future__ import annotations

import csv
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.evaluation.metrics import InWindow
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.pipeline.pictures.figures import save_figure
from drr2ct.pipeline.pictures.overview import overview_figure
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.pipeline.running.provenance import DISCLAIMER, versions
from drr2ct.pipeline.volumes.placing import place_on_grid
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import replacing, write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT

GRID_SIZE = 64
DETECTOR_SIZE = 128
_COLUMNS = ("psnr", "ssim", "mae_hu")


@dataclass(frozen=True)
class DemoSettings:
    """How large the demonstration is.

    Args:
        training: patients to train on.
        validation: patients to watch.
        test: patients that the network never sees.
        train_seconds: time for training.
        seed: of the cohort and of the training.
    """

    training: int = 96
    validation: int = 8
    test: int = 16
    train_seconds: float = 300.0
    seed: int = 0


def run_demo(output: str | Path, settings: DemoSettings, console: Console) -> dict[str, float]:
    """Run everything and return what ``summary.json`` holds. A demonstration that was stopped goes on where it was.

    Args:
        output: ``data``, ``run``, ``evaluation``, ``reconstruction.nii.gz``, ``overview.png`` and ``summary.json``
            land here.
        settings: how large.
        console: where progress and the table are printed.

    Raises:
        InputError: if the folder holds a finished demonstration, or data made with other settings.
    """
    output = Path(output)
    began = time.monotonic()
    geometry = BiplanarGeometry.from_angles(VolumeGrid(GRID_SIZE), detector_size=DETECTOR_SIZE)
    plan = CohortPlan(
        (sample_ct(),), geometry, settings.training, settings.validation, settings.test, seed=settings.seed
    )
    data, run = output / "data", output / "run"
    if (output / "summary.json").exists():
        raise InputError(f"{output} holds a finished demonstration; delete it or choose another folder.")
    patients = len(plan.patients())
    console.print(f"[bold]1/4[/] {patients} variations of one real chest CT, with paired DRRs → {data}")
    with Progress(console=console) as progress:
        task = progress.add_task("rendering", total=patients)
        write_cohort(data, plan, on_patient=lambda: progress.advance(task))

    console.print(f"[bold]2/4[/] training cascade64 for {settings.train_seconds:.0f} s → {run}")
    configs = [bundle_file(f"configs/{name}.yaml") for name in ("train", "networks/cascade64", "demo")]
    common = {"dataset_dir": str(data), "seed": settings.seed}
    run_bundle(configs, {**common, "train_seconds": settings.train_seconds, "output_dir": str(run)})
    checkpoint = run / "checkpoints" / "last.pt"

    console.print(f"[bold]3/4[/] evaluating on {settings.test} patients it has never seen")
    evaluation = output / "evaluation"
    overrides = {"checkpoint": str(checkpoint), "output_dir": str(evaluation), "export_grid": "none"}
    run_bundle([bundle_file("configs/evaluate.yaml")], {**common, **overrides})
    rows = _read_table(evaluation / "patients.csv")
    mean = rows.pop("mean")
    baselines = json.loads((evaluation / "baselines.json").read_text())["baselines"]
    blind = {name: baselines["mean_volume"]["figures"][name]["mean"] for name in ("psnr", "ssim")}

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
    overrides = {"radiographs": [str(path) for path in radiographs], "patient": patient, "output_dir": str(folder)}
    run_bundle([bundle_file("configs/inference.yaml")], {**overrides, "checkpoint": str(checkpoint), "overwrite": True})
    made = folder / patient / f"{patient}_ct.nii.gz"
    with replacing(output / "reconstruction.nii.gz") as temporary:
        shutil.copyfile(made, temporary)


def draw_overview(output: Path, data: Path, patient: str, geometry: BiplanarGeometry, psnr: float) -> None:
    """Draw ``overview.png``: what the network saw, what was there, what it made, and the difference."""
    views = [view.name for view in geometry.views]
    item = next(item for item in load_datalist(data, "test", views) if item["patient"] == patient)
    sample = files_to_samples(geometry)(item)
    truth = place_on_grid(sample["label"], geometry)
    made = LoadCT()(output / "reconstruction.nii.gz")
    title = f"{patient}, never seen in training: {psnr:.1f} dB PSNR (3-D, {InWindow().width:.0f} HU range)"
    figure = overview_figure(sample["image"] * LINE_INTEGRAL_SCALE, truth, made, geometry, title)
    save_figure(figure, output / "overview.png")


def _print_table(summary: dict[str, float], settings: DemoSettings, output: Path, console: Console) -> None:
    low, high = DEFAULT_WINDOW
    table = Table(title=f"{settings.test} unseen patients, 3-D, HU window {low:.0f}…{high:.0f}")
    table.add_column("")
    table.add_column("PSNR (dB)", justify="right")
    table.add_column("SSIM", justify="right")
    table.add_row("mean training volume", f"{summary['baseline_psnr']:.2f}", f"{summary['baseline_ssim']:.3f}")
    table.add_row("cascade64", f"{summary['psnr']:.2f}", f"{summary['ssim']:.3f}")
    table.add_row("gain", f"{summary['gain']:+.2f}", f"{summary['ssim'] - summary['baseline_ssim']:+.3f}")
    console.print(table)
    console.print(f"{output / 'reconstruction.nii.gz'}  open it in 3D Slicer or ITK-SNAP")
    console.print(f"{output / 'overview.png'}  radiographs, truth, reconstruction, error")
    console.print(f"tensorboard --logdir {output / 'run' / 'tensorboard'}")
    console.print(f"{summary['seconds']:.0f} s in all. {DISCLAIMER}.")
