"""Leave one patient out: train on variations of all other real CTs, test on that patient as it is; for each in turn.

python benchmarks/leave_one_out.py CTS --output DIR [--seconds 300] [--network cascade64] [--training 576] [--seed 0]

CTS is a folder of patient folders; the sample CT of the package joins them. Folds that are finished are kept, so the
command goes on where it was stopped. Writes patients.csv, patients.json and summary.json over all folds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from drr2ct.networks import network_config
from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.sample.cts import real_cts
from drr2ct.pipeline.evaluation.protocol import (
    FORMAT,
    patient_records,
    plain,
    read_patients,
    summarise_all,
    write_table,
)
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.varied.variation import WIDE


def run_fold(patient: str, cts: dict[str, Path], folder: Path, arguments: argparse.Namespace) -> None:
    """Cohort of the others, training, evaluation on the patient."""
    size = network_config(arguments.network).geometry.grid.size
    geometry = BiplanarGeometry.from_angles(VolumeGrid(size), detector_size=2 * size)
    others = tuple(path for name, path in cts.items() if name != patient)
    count, watched = arguments.training, arguments.validation
    plan = CohortPlan(others, geometry, count, watched, 0, seed=arguments.seed, variation=WIDE)
    write_cohort(folder / "data", plan)
    common = {"dataset_dir": str(folder / "data"), "seed": arguments.seed}
    configs = [
        bundle_file(f"configs/{name}.yaml")
        for name in ("train", f"networks/{arguments.network}", "recipes/time_budget", "demo")
    ]
    run_bundle(configs, {**common, "train_seconds": arguments.seconds, "output_dir": str(folder / "run")})
    overrides = {
        "datalist": [{"patient": patient, "label": str(cts[patient].resolve())}],
        "checkpoint": str(folder / "run" / "checkpoints" / "last.pt"),
        "output_dir": str(folder / "evaluation"),
        "export_grid": "network",
    }
    run_bundle([bundle_file("configs/evaluate.yaml")], {**common, **overrides})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cts", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--network", default="cascade64")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training, per fold")
    parser.add_argument("--training", type=int, default=576, help="variations to train on, per fold")
    parser.add_argument("--validation", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cts = real_cts(arguments.cts)
    if len(cts) < 2:
        parser.error(f"{arguments.cts} holds no other patient than the sample")
    console = Console()
    figures: dict[str, dict[str, float]] = {}
    for number, patient in enumerate(cts, start=1):
        folder = arguments.output / patient
        console.print(f"[bold]{number}/{len(cts)}[/] {patient} left out → {folder}")
        if not (folder / "evaluation" / "baselines.json").exists():
            run_fold(patient, cts, folder, arguments)
        figures |= read_patients(folder / "evaluation")
        console.print(f"  PSNR {figures[patient]['psnr']:.2f} dB, SSIM {figures[patient]['ssim']:.3f}")
    write_table(arguments.output / "patients.csv", figures)
    write_json(arguments.output / "patients.json", {"format": FORMAT, "patients": patient_records(figures)})
    summaries = summarise_all(figures)
    about = {"network": arguments.network, "train_seconds": arguments.seconds, "count": len(figures)}
    write_json(arguments.output / "summary.json", {"format": FORMAT, **about, "figures": plain(summaries)})
    psnr = summaries["psnr"]
    console.print(f"PSNR {psnr.mean:.2f} dB, 95 % interval {psnr.low:.2f}…{psnr.high:.2f}, over {psnr.count} patients")


if __name__ == "__main__":
    main()
