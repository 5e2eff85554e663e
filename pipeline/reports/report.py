"""The report of a run: one self-contained ``report.html`` that needs no server and no network, and its figures as PNG.

It reads what training and evaluation left behind (``epochs.csv``, TensorBoard events, a checkpoint, ``config.yaml``,
the evaluation's tables) and reconstructs three patients again to show them. What a run does not have is said to be
not measured.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

from drr2ct.pipeline.data.splitting import PARTS
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.pipeline.pictures.figures import save_figure
from drr2ct.pipeline.pictures.planes import comparison_figure
from drr2ct.pipeline.pictures.radiographs import radiographs_figure
from drr2ct.pipeline.pictures.scales import DISPLAY_WINDOW, ERROR_RANGE
from drr2ct.pipeline.reports.cases import Case, choose_patients, load_cases
from drr2ct.pipeline.reports.curves import training_figures
from drr2ct.pipeline.reports.page import VIEWER_STEP_HU, encode_doubt, encode_volume, viewer_values, write_page
from drr2ct.pipeline.reports.runs import Run, mean_of, open_run, run_labels
from drr2ct.pipeline.reports.tables import (
    Table,
    comparison_table,
    decision_table,
    geometry_tables,
    headline_table,
    milestones_table,
    robustness_table,
    statistics_table,
    tissue_table,
)
from drr2ct.pipeline.reports.wording import NOT_MEASURED, bounds_note, value_text, window_text
from drr2ct.pipeline.running.console import duration_text
from drr2ct.transforms.files import refuse_unwritable
from drr2ct.transforms.validation import InputError

VIEWER_BYTES = 22_000_000
"""Volumes in the page, base64; with NiiVue and the figures it then stays below 30 MB."""


class _Pictures:
    """Write each figure as PNG, and keep it for the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, figure: Figure, name: str, caption: str) -> dict[str, str]:
        path = save_figure(figure, self.folder / f"{name}.png")
        return {"base64": base64.b64encode(path.read_bytes()).decode(), "caption": caption}


def write_report(
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    evaluations: Sequence[str | Path] = (),
    dataset_dir: str | Path | None = None,
    console: Console | None = None,
) -> Path:
    """Write ``report.html`` and ``figures/*.png`` on the first run, compared with the others.

    Args:
        runs: folders of trainings; the first is the report's subject.
        output: folder; ``report`` in the first run by default.
        evaluations: their evaluation folders, in the same order; found in or beside each run if not given.
        dataset_dir: data set with the first run's test patients; the training's own by default.
        console: where progress is shown.

    Returns:
        The path of the page.

    Raises:
        InputError: if a run, its evaluation or the data set cannot be used, or nothing can be written.
    """
    if not runs:
        raise InputError("give at least one run folder.")
    if evaluations and len(evaluations) != len(runs):
        raise InputError(f"{len(runs)} runs but {len(evaluations)} evaluation folders; give one for each, in order.")
    labels = run_labels([Path(run) for run in runs])
    places: list[str | Path | None] = [*evaluations] or [None] * len(runs)
    opened = [open_run(run, place, label) for run, place, label in zip(runs, places, labels, strict=True)]
    run = opened[0]
    folder = Path(output) if output else run.folder / "report"
    refuse_unwritable([page := folder / "report.html"])
    pictures = _Pictures(folder / "figures")
    with Progress(console=console or Console(), transient=True) as progress:
        task = progress.add_task("report: patients", total=4)
        # first, since it may be refused, and nothing is to be written then
        cases = load_cases(run, choose_patients(run.figures), dataset_dir) if run.figures else []
        progress.update(task, advance=1, description="report: training")
        curves = [pictures(figure, name, caption) for name, figure, caption in training_figures(run)]
        progress.update(task, advance=1, description="report: figures")
        top = max((float(case.given.max()) for case in cases), default=1.0)
        shown = [_case_pictures(case, run, pictures, top) for case in cases]
        progress.update(task, advance=1, description="report: page")
        path = write_page(page, "page.html.j2", **_content(opened, curves, cases, shown))
        progress.advance(task)
    return path


def _case_pictures(case: Case, run: Run, pictures: _Pictures, top: float) -> dict[str, Any]:
    stem = case.rank.lower()
    row = run.figures[case.patient]
    score = ", ".join(value_text(row.get(k, math.nan), k) + unit for k, unit in (("psnr", " dB"), ("ssim", " SSIM")))
    low, high = DISPLAY_WINDOW
    planes = (
        f"Middle planes. Grey: {low:.0f} to {high:.0f} HU. "
        f"Error: blue is not dense enough, red too dense, full at ±{ERROR_RANGE:.0f} HU."
    ).replace("-", "−")
    views = "What the network was given, and the X-ray that its own volume would give."
    return {
        "patient": case.patient,
        "rank": case.rank,
        "score": score,
        "planes": pictures(comparison_figure(case.truth, case.prediction), f"{stem}_planes", planes),
        "radiographs": pictures(
            radiographs_figure(case.given, case.reprojected, run.geometry, top), f"{stem}_radiographs", views
        ),
    }


def _viewer(run: Run, cases: Sequence[Case]) -> dict[str, Any]:
    pairs: list[dict[str, Any]] = []
    names = []
    used = 0
    for case in sorted(cases, key=lambda case: case.rank != "Median"):  # the one in the middle first
        pair = {"truth": encode_volume(case.truth), "prediction": encode_volume(case.prediction)}
        if case.doubt is not None:
            pair["doubt"] = encode_doubt(case.doubt)
        size = sum(map(len, pair.values()))
        if pairs and used + size > VIEWER_BYTES:
            continue
        used += size
        pairs.append({**pair, "fov_mm": run.geometry.grid.fov_mm})
        names.append(f"{case.patient} ({case.rank.lower()})")
    left_out = (
        "" if len(pairs) == len(cases) else f" Only {len(pairs)} of {len(cases)} patients: more would be too large."
    )
    return {
        "names": names,
        **viewer_values(pairs, run.geometry.grid.size),
        "doubt_note": bounds_note(len(run.description.get("interval", {}).get("patients", ()))),
        "note": f"Values are shown in steps of {VIEWER_STEP_HU:.0f} HU, from −1000 to "
        f"{255 * VIEWER_STEP_HU - 1000:.0f} HU. "
        f"Distances are from the middle of the reconstructed cube.{left_out}",
    }


def _content(
    runs: Sequence[Run], curves: Sequence[Mapping[str, str]], cases: Sequence[Case], shown: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Values of the page's template."""
    run = runs[0]
    description = run.description
    grid = run.geometry.grid
    window = window_text(run.config.get("metric_window", DEFAULT_WINDOW))
    validation = run.phase("validation")
    epochs = max((row["epoch"] for row in run.epochs), default=0)
    psnr, ssim, mae = (mean_of(run.figures, name) for name in ("psnr", "ssim", "mae_hu"))
    cards = [
        (f"{value_text(psnr, 'psnr')}" + ("" if math.isnan(psnr) else " dB"), "PSNR, 3-D, mean over test patients"),
        (value_text(ssim, "ssim"), "SSIM, 3-D, mean over test patients"),
        (f"{value_text(mae, 'mae_hu')}" + ("" if math.isnan(mae) else " HU"), "mean absolute error"),
        (f"{grid.size}³", f"voxels of {grid.spacing_mm:.2g} mm"),
    ]
    n = len(run.figures)
    result_note = (
        f"Means over {n} test patient{'s' * (n != 1)} that the network never saw in training. "
        f"PSNR and SSIM are computed in 3-D over {window_text(DEFAULT_WINDOW)}. "
        "Baselines show what is reached without a network, or by a part of it, on the same patients; fitted is the "
        "network's own volume, fitted to the radiographs."
        if n
        else "This run has not been evaluated on test patients: run drr2ct evaluate, then write the report again."
    )
    views_table, grid_table = geometry_tables(run.geometry)
    configs = [
        (name, path.read_text())
        for name, path in (("Training", run.folder / "config.yaml"), ("Evaluation", run.evaluation / "config.yaml"))
        if path.is_file()
    ]
    viewer = _viewer(run, cases) if cases else None
    sections = [("result", "Result"), ("patients", "Patients"), ("viewer", "Look inside"), ("training", "Training")]
    sections += [
        ("comparison", "Comparison"),
        ("tissue", "By tissue"),
        ("robustness", "Robustness"),
        ("details", "How it was made"),
    ]
    patients = {part: description["patients"].get(part, []) for part in PARTS if part in description["patients"]}
    if run.figures:
        patients["test"] = list(run.figures)
    comparison_note = (
        "PSNR and SSIM at different grid sizes are measured on different voxels: a coarser grid is an easier task."
        if len(runs) > 1
        else "Only one run was given; drr2ct report RUN OTHER_RUN puts them side by side and says which to choose."
    )
    return {
        "title": f"{description['name']}: CT from {len(run.geometry.views)} X-ray views",
        "subtitle": f"Run {run.label}, {epochs:.0f} epochs, {duration_text(run.seconds_until(math.inf))} of training; "
        f"checkpoint {run.checkpoint.name} (epoch {description.get('epoch', '?')}).",
        "date": datetime.datetime.now().strftime("%d %B %Y"),
        "missing": NOT_MEASURED,
        "n_views": len(run.geometry.views),
        "sections": [section for section in sections if viewer or section[0] != "viewer"],
        "cards": cards,
        "result_note": result_note,
        "headline": headline_table(run),
        "statistics": statistics_table(run),
        "patients_note": "Chosen by PSNR. The same grey and the same error colours are used for all."
        if cases
        else f"Test patients: {NOT_MEASURED}.",
        "cases": shown,
        "viewer": viewer,
        "training_note": f"The network was trained on {len(patients.get('training', []))} patients and watched on "
        f"{len(patients.get('validation', []))} more (validation). PSNR and SSIM: 3-D over {window}.",
        "curves": curves,
        "milestones": milestones_table(run),
        "milestones_note": "Scores are of the validation patients. Expected is what the project assumed when it "
        "started, before anything was measured. "
        + (f"This run ended at epoch {epochs:.0f}." if validation else "This run has no epochs.csv with validation."),
        "comparison": comparison_table(runs),
        "comparison_note": comparison_note,
        "decisions": decision_table(runs),
        "tissue": tissue_table(run),
        "robustness": robustness_table(run),
        "geometry": views_table,
        "grid_table": grid_table,
        "versions": Table(("package", "version"), sorted(description["versions"].items()), text=(0, 1)),
        "patients": patients,
        "network_config": json.dumps(description["config"], indent=1, ensure_ascii=False),
        "configs": configs,
    }
