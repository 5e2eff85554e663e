"""Each training recipe once on the demonstration's cohort, with the same number of samples seen: a table.

python benchmarks/recipes.py --output DIR [--training 36] [--epochs 16] [--recipes plain warm_up …] [--seed 0]

cascade64 at 64³ on variations of one real chest CT (as drr2ct demo). Every recipe sees training · epochs samples;
early stopping may see fewer, and says so. A recipe's row is the mean over test patients that no training saw. Finished
recipes are kept, and one that was stopped goes on, so the same command goes on where it was. One seed, one CT:
differences of a few tenths of a dB say nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.demo import DETECTOR_SIZE, GRID_SIZE
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.pipeline.training.recipes import finished, train_growing
from drr2ct.transforms.files import write_csv, write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid

RECIPES = (
    "plain",
    "accumulation",
    "weight_average",
    "warm_up",
    "early_stopping",
    "growing",
    "transferred",
    "transferred_frozen",
)
COLUMNS = ("recipe", "epochs", "samples", "steps", "psnr", "ssim", "seconds")


def settings_of(recipe: str, epochs: int, coarse: Path) -> tuple[list[str], dict[str, Any]]:
    """Overlays and overrides."""
    if recipe == "accumulation":
        return ["recipes/accumulation"], {"accumulation_steps": 2}
    if recipe == "weight_average":
        return ["recipes/weight_average"], {"average_decay": 0.99}
    if recipe == "warm_up":
        return ["recipes/warm_up"], {"warm_up_epochs": max(epochs // 10, 1)}
    if recipe == "early_stopping":
        return ["recipes/early_stopping"], {"early_stopping_patience": max(epochs // 6, 1)}
    if recipe == "transferred":
        return [], {"transfer_from": str(coarse)}
    if recipe == "transferred_frozen":
        return ["recipes/freeze"], {"transfer_from": str(coarse), "freeze": ["encoder.down.*", "stages.0.*", "volume"]}
    return [], {}


def run_recipe(recipe: str, data: Path, output: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, evaluate on the test patients; the row of the table."""
    folder = output / recipe
    # a third of growing's epochs go to the first stage alone; the transferred ones start from that stage
    third = max(arguments.epochs // 3, 1)
    overlays, changes = settings_of(recipe, arguments.epochs, output / "growing/stages1/checkpoints/last.pt")
    files = [bundle_file(f"configs/{name}.yaml") for name in ("train", "networks/cascade64", *overlays)]
    common = {"dataset_dir": str(data), "seed": arguments.seed, "num_workers": 0}
    settings = {
        **common,
        "output_dir": str(folder / "run"),
        "cache_dir": str(output / "cache"),
        "learning_rate": arguments.learning_rate,
        "train#trainer#max_epochs": arguments.epochs,
        **changes,
    }
    last = folder / "run" / "checkpoints" / "last.pt"
    began = time.monotonic()
    if recipe == "growing":
        coarse = output / "growing" / "stages1"
        settings |= {"train#trainer#max_epochs": arguments.epochs - third, "output_dir": str(output / "growing")}
        last = output / "growing" / "checkpoints" / "last.pt"
        if not finished(last, arguments.epochs - third):
            train_growing(files, settings, [(1, third)])
        folder = coarse.parent
    elif not finished(last, arguments.epochs):
        run_bundle(files, settings)
    seconds = time.monotonic() - began
    overrides = {"checkpoint": str(last), "output_dir": str(folder / "evaluation"), "export_grid": "none"}
    run_bundle([bundle_file("configs/evaluate.yaml")], {**common, **overrides, "with_baselines": False})
    with (folder / "evaluation" / "patients.csv").open(newline="") as file:
        mean = next(row for row in csv.DictReader(file) if row["patient"] == "mean")
    description = read_checkpoint(last)["description"]
    steps, epochs = description["iteration"], description["epoch"]
    if recipe == "growing":
        steps, epochs = steps + third * arguments.training, epochs + third
    return {
        "recipe": recipe,
        "epochs": epochs,
        "samples": epochs * arguments.training,
        "steps": -(-steps // changes.get("accumulation_steps", 1)),
        "psnr": float(mean["psnr"]),
        "ssim": float(mean["ssim"]),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--training", type=int, default=36)
    parser.add_argument("--validation", type=int, default=4)
    parser.add_argument("--test", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = [recipe for recipe in RECIPES if recipe in arguments.recipes]
    if {"transferred", "transferred_frozen"} & set(chosen) and "growing" not in chosen:
        parser.error("the transferred recipes start from what growing trains first; add growing")
    output, console = arguments.output, Console()
    geometry = BiplanarGeometry.from_angles(VolumeGrid(GRID_SIZE), detector_size=DETECTOR_SIZE)
    counts = (arguments.training, arguments.validation, arguments.test)
    write_cohort(output / "data", CohortPlan((sample_ct(),), geometry, *counts, seed=arguments.seed))
    rows = []
    for recipe in chosen:
        record = output / recipe / "row.json"
        if not record.exists():
            console.print(f"[bold]{recipe}[/]")
            write_json(record, run_recipe(recipe, output / "data", output, arguments))
        rows.append(json.loads(record.read_text()))
    table = Table(title=f"cascade64, {arguments.test} test patients, learning rate {arguments.learning_rate:g}")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for row in rows:
        values = {**row, "psnr": f"{row['psnr']:.2f}", "ssim": f"{row['ssim']:.3f}", "seconds": f"{row['seconds']:.0f}"}
        table.add_row(*(str(values[column]) for column in COLUMNS))
    console.print(table)
    write_csv(output / "recipes.csv", COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


if __name__ == "__main__":
    main()
