"""``drr2ct``: short commands over the bundle.

Each command imports what it needs when it is called: PyTorch and MONAI take seconds, and help or a mistake in the
arguments should not wait for them.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from drr2ct.pipeline.running.arguments import refuse_ignored, refuse_unused_split
from drr2ct.pipeline.running.console import print_rows, wide_console
from drr2ct.pipeline.running.plain import typed_value
from drr2ct.pipeline.running.startup import importing, start_lightly
from drr2ct.transforms.files import refuse_unwritable
from drr2ct.transforms.validation import InputError, existing_file

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""

app = typer.Typer(
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


Checkpoint = Annotated[
    Path | None, typer.Option(help="For example RUN/checkpoints/best_psnr.pt, instead of a shipped network.")
]
Model = Annotated[
    str | None, typer.Option(metavar="NAME", help="A shipped network; by default the finest that is shipped.")
]
Split = Annotated[
    tuple[float, float, float],
    typer.Option(help="Fractions that a set without dataset.json is drawn by, as its training had them."),
]
SplitSeed = Annotated[int, typer.Option(help="Likewise.")]
Part = Annotated[str, typer.Option(help="Of the data set: training, validation, test or all.")]


def parse_overrides(assignments: list[str] | None) -> dict[str, Any]:
    """``KEY=VALUE`` strings to a dictionary; values are read as YAML.

    Raises:
        InputError: for a string without ``=``, or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment} is not KEY=VALUE.")
        try:
            values[key] = typed_value(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {assignment}: the value is not YAML; quote it or close its brackets.") from error
    return values


@app.command()
def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("outputs/demo"),
    training: Annotated[int, typer.Option(min=2, help="Variations in an epoch.")] = 96,
    validation: Annotated[int, typer.Option(min=1, help="Variations to watch.")] = 8,
    test: Annotated[int, typer.Option(min=1, help="Variations the network never sees.")] = 16,
    seconds: Annotated[float, typer.Option(min=1, help="Time for training.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of the variations and of the training.")] = 0,
    model: Model = None,
    reconstruct_only: Annotated[
        bool, typer.Option("--reconstruct-only", help="Leave the training out: the unseen patient alone.")
    ] = False,
) -> None:
    """Reconstruct a patient whom no shipped network has seen, and train a small cascade on variations of one CT."""
    if reconstruct_only:
        refuse_ignored(context, ("training", "validation", "test", "seconds", "seed"), "with --reconstruct-only")
    from drr2ct.pipeline.demo import DemoSettings, run_demo

    run_demo(output, DemoSettings(training, validation, test, seconds, seed), Console(), model, reconstruct_only)


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="Folder of patient folders.")],
    output: Annotated[Path, typer.Option(help="Folder of the run.")],
    network: Annotated[str, typer.Option(help="A named network.")] = "cascade256",
    epochs: Annotated[int, typer.Option(min=1)] = 200,
    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="One of configs/recipes, such as weight_average or warm_up; repeatable."),
    ] = None,
    grow: Annotated[
        str | None,
        typer.Option(metavar="STAGES:EPOCHS,…", help="Train so many first stages first, such as 2:50,3:50."),
    ] = None,
    vary: Annotated[
        str,
        typer.Option(
            metavar="off|within-patients|between-patients",
            help="Make another patient of each CT for every sample: bent at random, or also towards other patients.",
        ),
    ] = "off",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Begin with the weights of this shipped network: fine-tune it.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a network on a data set: train.yaml, networks/<NETWORK>.yaml and recipes; under torchrun, on all GPUs."""
    from drr2ct.networks import network_config
    from drr2ct.pipeline.checkpoints.description import members_of
    from drr2ct.pipeline.checkpoints.files import read_checkpoint
    from drr2ct.pipeline.checkpoints.shipped import chosen_weights
    from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
    from drr2ct.pipeline.running.distributed import world_size
    from drr2ct.pipeline.running.plain import as_data
    from drr2ct.pipeline.training.recipes import parse_growth, train_growing

    network_config(network)  # an unknown name is refused with its neighbours
    overlays = [f"networks/{network}", *(["vary"] if vary != "off" else [])]
    overlays += [f"recipes/{name}" for name in recipes or []]
    if world_size() > 1:
        overlays.append("multi_gpu_train")
    configs = [bundle_file(f"configs/{name}.yaml") for name in ("train", *overlays)]
    settings: dict[str, Any] = {"dataset_dir": dataset, "output_dir": output, "train#trainer#max_epochs": epochs}
    if vary != "off":
        settings["vary"] = as_data(vary)
    settings |= parse_overrides(overrides)
    if model is not None:
        if grow is not None or settings.get("transfer_from"):
            raise InputError(
                f"the shipped network {model} cannot be begun with besides --grow or transfer_from; give one of them."
            )
        settings["transfer_from"] = weights = chosen_weights(model=model)
        if "interval" not in (recipes or []):  # that recipe takes the checkpoint's own network
            settings.setdefault("network_def#members", members_of(read_checkpoint(weights)["description"]))
    if grow is None:
        run_bundle(configs, settings)
    else:
        train_growing(configs, settings, parse_growth(grow))


@app.command()
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder of patient folders.")],
    output: Annotated[Path, typer.Option(help="Folder for tables and predictions.")],
    checkpoint: Checkpoint = None,
    model: Model = None,
    part: Part = "test",
    overrides: Overrides = None,
) -> None:
    """Evaluate a network on patients that it was not trained on: the bundle's evaluate.yaml."""
    from json import loads

    from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
    from drr2ct.pipeline.running.plain import as_data

    given = {"dataset_dir": dataset, "checkpoint": checkpoint, "model": as_data(model), "output_dir": output}
    settings: dict[str, Any] = {**given, "part": as_data(part), **parse_overrides(overrides)}
    run_bundle([bundle_file("configs/evaluate.yaml")], settings)
    summary = Path(settings["output_dir"]) / "summary.json"
    figures = loads(summary.read_text(encoding="utf-8"))["figures"]
    psnr, ssim, mae = (figures[name] for name in ("psnr", "ssim", "mae_hu"))
    print(f"{psnr['count']} patients: PSNR {psnr['mean']:.2f} dB, SSIM {ssim['mean']:.3f}, MAE {mae['mean']:.1f} HU")
    print(f"{summary}  these and all others; patients.csv, baselines.csv and the predictions lie beside it")
    if (left_out := summary.with_name("left_out.csv")).is_file():
        print(f"{left_out}  patients that could not be read, and why")


@app.command()
def calibrate(
    context: typer.Context,
    dataset: Annotated[Path, typer.Argument(help="Folder of patient folders that the network was not trained on.")],
    checkpoint: Annotated[Path, typer.Option(help="Of a network with bounds.")],
    output: Annotated[Path, typer.Option(help="The calibrated checkpoint to write, .pt.")],
    part: Part = "validation",
    split: Split = (0.8, 0.1, 0.1),
    split_seed: SplitSeed = 0,
    intensity: Annotated[
        str, typer.Option(help="What stored radiographs hold: line_integral, transmission or display.")
    ] = "line_integral",
    feet_first: Annotated[bool, typer.Option("--feet-first", help="They are stored with the feet up.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Scale a network's bounds so that they cover 90 % of the voxels of patients it has not seen."""
    from drr2ct.pipeline.data.datalist import is_drawn
    from drr2ct.pipeline.evaluation.calibration import run_calibration

    refuse_unused_split(context, dataset, part, is_drawn(dataset))
    reading = {"intensity": intensity, "feet_first": feet_first}
    made = run_calibration(dataset, checkpoint, output, part, (split, split_seed), reading, device, overwrite)
    before, after = made["uncalibrated"], made["left_out"]
    print(f"{len(made['patients'])} patients; within the bounds lay {before['mean']:.1%} of their bodies' voxels")
    if after is not None:
        spread = f"{after['mean']:.1%} in the mean, {after['least']:.1%} to {after['most']:.1%}"
        print(f"and each calibrated on the others: {spread}")
    print(f"{output}  the network with calibrated bounds")


@app.command()
def join(
    first: Annotated[Path, typer.Argument(help="Checkpoint of a network, which may have finer stages.")],
    others: Annotated[
        list[Path], typer.Argument(help="Of networks with the same first stages, of other seeds or without films.")
    ],
    output: Annotated[Path, typer.Option(help="The checkpoint to write, .pt.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Make an ensemble: one network, whose coarsest volume is what several agree on."""
    from drr2ct.pipeline.checkpoints.ensemble import join as run_join

    config = run_join(first, others, output, overwrite)
    if config.interval:
        print("its bounds are no longer calibrated: drr2ct calibrate")
    print(f"{output}  a network of {config.members} members")


@app.command()
def reconstruct(
    context: typer.Context,
    patients: Annotated[
        Path | None, typer.Argument(help="A folder of patient folders with radiographs, instead of --pa and --lateral.")
    ] = None,
    output: Annotated[  # text, as a path would lose the / at its end
        str,
        typer.Option(
            metavar="<path>", help="File (.nii.gz, .nii, .nrrd, .mha), DICOM folder (…dicom), or folder of patients."
        ),
    ] = ...,  # type: ignore[assignment]
    checkpoint: Checkpoint = None,
    model: Model = None,
    pa: Annotated[Path | None, typer.Option(help="The frontal radiograph.")] = None,
    lateral: Annotated[Path | None, typer.Option(help="The lateral radiograph.")] = None,
    patient: Annotated[str, typer.Option(help="Name for the output.")] = "patient",
    patient_id: Annotated[str | None, typer.Option(help="Patient ID in DICOM; the name by default.")] = None,
    intensity: Annotated[
        str, typer.Option(help="What the files hold: auto (they say it), line_integral, transmission or display.")
    ] = "auto",
    window: Annotated[
        str, typer.Option(help="Of DICOM: auto (the first that shows something), a number, none, or centre,width.")
    ] = "auto",
    orientation: Annotated[
        str,
        typer.Option(
            help="auto (by the header, else by looks), or what to do with what is stored: as-is, mirrored, "
            "upside-down, half-turn, clockwise, anticlockwise."
        ),
    ] = "auto",
    pixel_spacing_mm: Annotated[float | None, typer.Option(help="At the detector; the file's by default.")] = None,
    source_to_detector_mm: Annotated[float | None, typer.Option(help="The file's by default.")] = None,
    source_to_isocentre_mm: Annotated[float | None, typer.Option(help="The network's by default.")] = None,
    crop_collimation: Annotated[
        bool, typer.Option("--crop-collimation", help="Leave out borders that a collimator cast.")
    ] = False,
    opposite_side: Annotated[
        bool, typer.Option("--opposite-side", help="Accept AP for PA, and right for left lateral.")
    ] = False,
    format: Annotated[str | None, typer.Option(help="nii.gz, nii, nrrd, mha or dicom.")] = None,
    size: Annotated[int | None, typer.Option(help="Interpolate to so many voxels along each axis.")] = None,
    like: Annotated[Path | None, typer.Option(help="A CT on whose voxels the volume is put.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also a page to look into the volume.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    overrides: Overrides = None,
) -> None:
    """Reconstruct CT volumes from radiographs: the bundle's inference.yaml."""
    settings = parse_overrides(overrides)
    if "radiographs" not in settings and (pa is None, lateral is None) != (patients is not None,) * 2:
        raise InputError("give --pa and --lateral, or a folder of patients.")
    if "radiographs" in settings:
        refuse_ignored(context, ("pa", "lateral"), "with --set radiographs")
    if patients is not None:
        refuse_ignored(context, ("patient",), "on a folder of patients, who are named as their folders")
    for path, what in ((checkpoint, "checkpoint"), (pa, "radiograph"), (lateral, "radiograph")):
        if path is not None:
            existing_file(path, what)
    print("drr2ct: loading PyTorch and MONAI", flush=True)
    with importing():
        from drr2ct.pipeline.reconstruction import reconstruct as run_reconstruct
        from drr2ct.pipeline.reconstruction.destination import file_destination
        from drr2ct.pipeline.volumes.files import volume_ending

    one_file = file_destination(output, format) if patients is None else volume_ending(Path(output))
    if "dicom" not in (format, settings.get("format"), getattr(one_file, "format", None)):
        refuse_ignored(context, ("patient_id",), "on a volume that is not DICOM")
    place = "output" if one_file else "output_dir"
    run_reconstruct(
        checkpoint,
        overrides=settings,
        **{
            "model": model,
            "radiographs": [pa, lateral] if pa and lateral else None,
            "dataset_dir": patients,
            place: output,
            "patient": patient,
            "patient_id": patient_id,
            "intensity": intensity,
            "window": window,
            "orientation": orientation,
            "pixel_spacing_mm": pixel_spacing_mm,
            "source_to_detector_mm": source_to_detector_mm,
            "source_to_isocentre_mm": source_to_isocentre_mm,
            "crop_collimation": crop_collimation,
            "opposite_side": opposite_side,
            "format": format,
            "size": size,
            "like": like,
            "preview": preview,
            "overwrite": overwrite,
        },
    )


@app.command()
def serve(
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="A network of your own to choose, before those that are shipped; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; another than this computer's own needs --token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="DRR2CT_TOKEN", help="Everybody has to give it; 16 characters or more."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep films and volumes in this folder; deleted at the end by default.")
    ] = None,
) -> None:
    """Open a page in the browser: two X-rays in, a volume out, all on this computer."""
    from drr2ct.pipeline.web.server import serve as run_serve

    run_serve(checkpoint or (), host, port, token, keep, Console())


@app.command()
def plan(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAMES]...", help="Networks to --compare.")] = None,
    network: Annotated[str, typer.Option(help="A named network.")] = "cascade256",
    compare: Annotated[bool, typer.Option("--compare", help="Print one row for each of NAMES.")] = False,
    batch: Annotated[int, typer.Option(help="Samples per step.")] = 1,
    precision: Annotated[str, typer.Option(help="bf16, fp16 or fp32.")] = "bf16",
    views: Annotated[int, typer.Option(help="Number of radiographs.")] = 2,
    size: Annotated[int | None, typer.Option(help="Voxels along each axis; the network's own by default.")] = None,
    detector: Annotated[int | None, typer.Option(help="Pixels along each axis; the network's own by default.")] = None,
    checkpointing: Annotated[str | None, typer.Option(metavar="on|off", help="Recompute activations.")] = None,
    interval: Annotated[bool, typer.Option("--interval", help="With a lower and an upper bound.")] = False,
    members: Annotated[int, typer.Option(min=1, help="Of an ensemble.")] = 1,
    gpu: Annotated[str | None, typer.Option(help='Memory to fit, such as "80 GiB".')] = None,
    samples: Annotated[int, typer.Option(min=0, help="Samples in an epoch; 0 leaves its time out.")] = 1000,
    throughput: Annotated[
        str | None, typer.Option(help='Such as "50 TFLOP/s"; measured on this machine by default.')
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Its metrics join the comparison instead of the shipped networks'; repeatable."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
) -> None:
    """Say what a network costs in memory, FLOPs and time, without allocating it."""
    if bool(names) != compare:
        raise InputError("give --compare and the networks' names together: --compare direct256 cascade256.")
    if checkpointing not in (None, "on", "off"):
        raise InputError(f"--checkpointing {checkpointing} is neither on nor off.")
    refuse_ignored(context, ("network",) if compare else ("checkpoint",), f"with{'' if compare else 'out'} --compare")
    if not samples:
        refuse_ignored(context, ("throughput",), "with --samples 0")
    from drr2ct.pipeline.checkpoints.shipped import shipped_networks
    from drr2ct.pipeline.planning.plan import Settings
    from drr2ct.pipeline.planning.tables import run_plan

    switch = None if checkpointing is None else checkpointing == "on"
    settings = [
        Settings(name, batch, precision, views, size, detector, switch, interval=interval, members=members)
        for name in names or [network]
    ]
    known = checkpoint or [path for name, path in shipped_networks().items() if compare and name in (names or ())]
    run_plan(settings, wide_console(), gpu, samples, throughput, known, markdown, json, compare)


_MAKING = (
    *("workers", "fov_mm", "detector", "geometry", "split", "seed", "png_bits"),
    *("per_study", "patient_pattern", "key_file", "report", "centre"),
)
"""Options of ``prepare`` that say how a data set is made; a check reads what was made."""


@app.command()
def prepare(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Tree of DICOM studies, volume files, or patient folders.")],
    dest: Annotated[Path | None, typer.Argument(help="The data set to make.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check DEST, or without it the data set SOURCE.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    fov_mm: Annotated[float, typer.Option(help="Edge of the cube that the views see, mm.")] = 360.0,
    detector: Annotated[int, typer.Option(min=8, help="Rows and columns of a radiograph.")] = 512,
    geometry: Annotated[Path | None, typer.Option(help="A geometry.json, instead of these two.")] = None,
    split: Annotated[tuple[float, float, float], typer.Option(help="Fractions for training, validation and test.")] = (
        0.8,
        0.1,
        0.1,
    ),
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    png_bits: Annotated[int, typer.Option(help="8 or 16, of the PNG copies.")] = 16,
    per_study: Annotated[bool, typer.Option("--per-study", help="One CT per study instead of per patient.")] = False,
    patient_pattern: Annotated[
        str | None, typer.Option(help="Regular expression: which part of a path within SOURCE names the patient.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="Name patients by a hash under this secret key.")] = None,
    report: Annotated[Path | None, typer.Option(help="CSV of all series; DEST/series.csv by default.")] = None,
    centre: Annotated[
        str, typer.Option(metavar="box|lungs", help="Aim at the middle of the scan, or at the lungs.")
    ] = "box",
    intensity: Annotated[
        str, typer.Option(help="For --check: line_integral, transmission or display.")
    ] = "line_integral",
    feet_first: Annotated[bool, typer.Option("--feet-first", help="For --check: stored with the feet up.")] = False,
) -> None:
    """Make a data set of CT studies, or check one."""
    if dest is None and not check:
        raise InputError("give DEST, the data set to make, or --check to check the data set SOURCE.")
    if dest is None:
        refuse_ignored(context, _MAKING, "without DEST, a data set to make")
    if not check:
        refuse_ignored(context, ("intensity", "feet_first"), "without --check")
    if geometry is not None:
        refuse_ignored(context, ("fov_mm", "detector"), "with --geometry")
    if report is not None:
        refuse_unwritable([report])
    from drr2ct.pipeline.data.datalist import dataset_geometry
    from drr2ct.transforms.geometry import BiplanarGeometry

    console = Console()
    if dest is not None:
        from drr2ct.pipeline.data.prepare import prepare as run_prepare
        from drr2ct.pipeline.data.settings import PrepareSettings

        space = BiplanarGeometry.load(geometry) if geometry else dataset_geometry(fov_mm=fov_mm, detector_size=detector)
        key = existing_file(key_file, "key file").read_bytes().strip() if key_file else None
        settings = PrepareSettings(space, split, seed, png_bits, per_study, patient_pattern, key, centre)
        summary = run_prepare(source, dest, settings, workers, report, console)
        counts = f"{summary.ready} patients in {dest}, {summary.made} made now, {summary.failed} failed"
        console.print(f"{counts}, {summary.without_ct} without a CT that can be used" if summary.without_ct else counts)
        if summary.complete:
            console.print(f"{report or dest / 'series.csv'}  every series, and why it was used or left out")
            if not summary.ready:
                raise InputError(f"no patient of {source} could be made; see {report or dest / 'series.csv'}.")
    if check:
        from drr2ct.pipeline.data.dataset_check import check_dataset, conclusions, write_check

        root = dest or source
        checks = check_dataset(root, intensity, feet_first, console)
        for patient in checks:
            for said in (*patient.problems, *patient.notes):
                console.print(f"{patient.patient}: {said}", markup=False)
        for path in write_check(checks, root, [view.name for view in dataset_geometry(root).views]):
            console.print(str(path))
        if found := conclusions(checks):
            raise InputError(" ".join(found))
        console.print(f"{len(checks)} patients, nothing wrong")


@app.command()
def robustness(
    context: typer.Context,
    dataset: Annotated[Path, typer.Argument(help="Folder of patient folders with CTs.")],
    output: Annotated[Path, typer.Option(help="Folder for robustness.csv and robustness.json.")],
    checkpoint: Checkpoint = None,
    model: Model = None,
    part: Part = "test",
    split: Split = (0.8, 0.1, 0.1),
    split_seed: SplitSeed = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Evaluate a network under other view angles, noise, blur, exposure and on another grid."""
    from drr2ct.pipeline.checkpoints.shipped import chosen_weights
    from drr2ct.pipeline.data.datalist import is_drawn
    from drr2ct.pipeline.evaluation.robustness import run_robustness

    refuse_unused_split(context, dataset, part, is_drawn(dataset))
    rows = run_robustness(dataset, chosen_weights(checkpoint, model), output, part, (split, split_seed), device)
    figures = ("psnr", "ssim", "mae_hu", "psnr_body", "psnr_change")
    print_rows([{key: float(v) if key in figures and v else v for key, v in row.items()} for row in rows])


@app.command()
def inspect(
    context: typer.Context,
    checkpoint: Annotated[
        Path | None, typer.Argument(help="RUN/checkpoints/*.pt or released weights, instead of a shipped network.")
    ] = None,
    model: Model = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write weights and description to this .safetensors file, to be passed on.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Say what a checkpoint is: network, geometry, patients, versions and metrics; its checksum is verified."""
    if export is None:
        refuse_ignored(context, ("overwrite",), "without --export")
    from json import dumps

    from drr2ct.pipeline.checkpoints.files import write_release
    from drr2ct.pipeline.checkpoints.inspection import checkpoint_facts, print_facts
    from drr2ct.pipeline.checkpoints.shipped import chosen_weights

    weights = chosen_weights(checkpoint, model)
    if export is not None:
        write_release(weights, export, overwrite)
    facts = checkpoint_facts(weights)
    if json:
        print(dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_facts(facts, Console())
    if export is not None:
        print(export, file=sys.stderr)


@app.command()
def release(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a training (its best_psnr.pt), or a file of weights.")
    ],
    name: Annotated[str, typer.Option("--as", help="The named network that it is, such as cascade128.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Folder of drr2ct evaluate of these weights; repeatable.")
    ] = None,
    left_out: Annotated[
        list[Path] | None,
        typer.Option(help="Such a folder of a network that the same recipe made without those patients; repeatable."),
    ] = None,
    robustness: Annotated[Path | None, typer.Option(help="Folder of drr2ct robustness of these weights.")] = None,
    same_recipe: Annotated[
        bool,
        typer.Option("--same-recipe", help="It is that of the weights shipped so far: keep who was left out of it."),
    ] = False,
    bundle: Annotated[Path, typer.Option(help="Root of the bundle that ships it.")] = Path("bundles/biplanar_ct"),
) -> None:
    """Ship a training's weights with the bundle: models/NAME.safetensors, model card, model.pt, metadata.json."""
    from drr2ct.networks import network_config
    from drr2ct.pipeline.reports.release import release as run_release

    network_config(name)  # an unknown name is refused with its neighbours
    for path in run_release(source, name, bundle, evaluation or (), left_out or (), robustness, same_recipe):
        print(path)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(help="Folder of another, on the same patients.")],
) -> None:
    """Compare two evaluations patient by patient: first minus second, with 95 % intervals."""
    from drr2ct.pipeline.evaluation.protocol import compare_evaluations, plain

    found = plain(compare_evaluations(first, second))
    print_rows([{"figure": name, **entry} for name, entry in found.items()])


@app.command()
def segmentations(
    predicted: Annotated[Path, typer.Argument(help="Masks of predictions: <patient>/<structure>.nii.gz.")],
    true: Annotated[Path, typer.Argument(help="Masks of the CTs, likewise.")],
    output: Annotated[Path, typer.Option(help="CSV file to write.")],
) -> None:
    """Compare masks from files by Dice, normalised surface Dice and 95 % Hausdorff distance."""
    from drr2ct.pipeline.evaluation.segmentations import compare_segmentations

    print_rows(compare_segmentations(predicted, true, output))


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="File: .ts TorchScript, .pt2 torch.export, .onnx ONNX.")],
    checkpoint: Checkpoint = None,
    model: Model = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
) -> None:
    """Write a network as one file for other runtimes, and check it against its checkpoint."""
    from drr2ct.pipeline.checkpoints.network_export import export_network
    from drr2ct.pipeline.checkpoints.shipped import chosen_weights

    made = export_network(chosen_weights(checkpoint, model), output, overwrite)
    print(made.network)
    print(f"{made.path}  {made.kind}, float32; differs from the checkpoint's network by at most {made.difference:.1e}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trainings; the first is the subject.")],
    evaluation: Annotated[list[Path] | None, typer.Option(help="Their evaluation folders, in order.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="Data set of the first; the training's own by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the page; RUN/report by default.")] = None,
) -> None:
    """Write one self-contained page about a run, compared with others: report.html and its figures."""
    from drr2ct.pipeline.reports.report import write_report

    console = Console()
    console.print(str(write_report(runs, output, evaluation or (), dataset, console)))


def behind(error: BaseException) -> InputError | None:
    """The user's mistake or the machine's fault behind an exception, if it is one."""
    from drr2ct.pipeline.running.bundle import find_input_error

    return find_input_error(error) or misplaced(error)


def misplaced(error: BaseException) -> InputError | None:
    """The sentence for a place where nothing can be written or read, if that is what an exception says."""
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError)) and error.filename:
        return InputError(f"{error.filename} cannot be used ({error.strerror}); choose another place.")
    return None


def usage_sentence(error: typer.TyperException) -> str:
    """What is wrong with the arguments, and which command lists the right ones."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = "drr2ct" if context is None else f"drr2ct {context.info_name}" if context.parent else "drr2ct"
    return f"{message[:1].lower()}{message[1:]} ({command} --help lists what there is)."


def main() -> None:
    """Entry point: a user's mistake is one sentence and status 2."""
    start_lightly()
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # a filter, since MONAI sets its loggers' levels when it is imported, which is later
    logging.getLogger("monai.bundle.workflows").addFilter(lambda record: record.levelno >= logging.ERROR)
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it logs every error that it passes on
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:  # wrong arguments
        print(f"drr2ct: {usage_sentence(error)}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        mistake = error if isinstance(error, InputError) else behind(error)
        if mistake is None:
            raise
        print(f"drr2ct: {mistake}", file=sys.stderr)
        raise SystemExit(getattr(mistake, "exit_status", 2)) from None
    if status == INTERRUPTED:
        print("drr2ct: interrupted; the same command goes on from what is complete.", file=sys.stderr)
    if status:
        raise SystemExit(status)
