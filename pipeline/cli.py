"""``drr2ct``: short commands over the bundle."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from drr2ct.transforms.validation import InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reconstruct a CT volume from two X-ray views. Research software, not for clinical use.",
)

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override any key of the configuration, e.g. train#trainer#max_epochs=10."
    ),
]


def parse_overrides(assignments: list[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` strings to a dictionary; values are read as YAML.

    Raises:
        InputError: for a string without ``=``.
    """
    values: dict[str, Any] = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment} is not KEY=VALUE.")
        values[key] = yaml.safe_load(value)
    return values


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("outputs/demo"),
    training: Annotated[int, typer.Option(min=2, help="Patients to train on.")] = 96,
    validation: Annotated[int, typer.Option(min=1, help="Patients to watch.")] = 8,
    test: Annotated[int, typer.Option(min=1, help="Patients the network never sees.")] = 16,
    seconds: Annotated[float, typer.Option(min=1, help="Time for training.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of the cohort and of the training.")] = 0,
) -> None:
    """Train a small cascade on variations of one real chest CT, and reconstruct a patient it has never seen."""
    from drr2ct.pipeline.demo import DemoSettings, run_demo

    run_demo(output, DemoSettings(training, validation, test, seconds, seed), Console())


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Folder of patient folders.")],
    output: Annotated[Path, typer.Option(help="Folder of the run.")],
    network: Annotated[str, typer.Option(help="A named network.")] = "cascade256",
    epochs: Annotated[int, typer.Option(min=1)] = 200,
    overrides: Overrides = None,
) -> None:
    """Train a network on a data set: the bundle's train.yaml with networks/<NETWORK>.yaml."""
    from drr2ct.networks import network_config
    from drr2ct.pipeline.bundle import bundle_file, run_bundle

    network_config(network)  # an unknown name is refused with its neighbours
    configs = [bundle_file("configs/train.yaml"), bundle_file(f"configs/networks/{network}.yaml")]
    settings = {"dataset_dir": str(dataset), "output_dir": str(output), "train#trainer#max_epochs": epochs}
    run_bundle(configs, {**settings, **parse_overrides(overrides)})


@app.command()
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder of patient folders.")],
    checkpoint: Annotated[Path, typer.Option(help="For example RUN/checkpoints/best_psnr.pt.")],
    output: Annotated[Path, typer.Option(help="Folder for tables and predictions.")],
    overrides: Overrides = None,
) -> None:
    """Evaluate a checkpoint on a data set's test patients: the bundle's evaluate.yaml."""
    from drr2ct.pipeline.bundle import bundle_file, run_bundle

    settings = {"dataset_dir": str(dataset), "checkpoint": str(checkpoint), "output_dir": str(output)}
    run_bundle([bundle_file("configs/evaluate.yaml")], {**settings, **parse_overrides(overrides)})


@app.command()
def reconstruct(
    pa: Annotated[Path, typer.Option(help="The frontal radiograph.")],
    lateral: Annotated[Path, typer.Option(help="The lateral radiograph.")],
    checkpoint: Annotated[Path, typer.Option(help="For example RUN/checkpoints/best_psnr.pt.")],
    output: Annotated[Path, typer.Option(help="Folder for the volume and its picture.")],
    patient: Annotated[str, typer.Option(help="Name for the output files.")] = "patient",
    intensity: Annotated[
        str, typer.Option(help="What the files hold: line_integral, transmission or display.")
    ] = "line_integral",
    overrides: Overrides = None,
) -> None:
    """Reconstruct a CT volume from two radiographs: the bundle's inference.yaml."""
    from drr2ct.pipeline.bundle import bundle_file, run_bundle

    settings = {
        "radiographs": [str(pa), str(lateral)],
        "checkpoint": str(checkpoint),
        "output_dir": str(output),
        "patient": patient,
        "intensity": intensity,
    }
    run_bundle([bundle_file("configs/inference.yaml")], {**settings, **parse_overrides(overrides)})


def main() -> None:
    """Entry point: a user's mistake is one sentence and status 2."""
    from drr2ct.pipeline.bundle import find_input_error

    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    try:
        app()
    except Exception as error:
        mistake = find_input_error(error)
        if mistake is None:
            raise
        print(f"drr2ct: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None
