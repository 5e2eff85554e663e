"""The report of a run: one self-contained ``report.html`` that needs no server and no network, and its figures as PNG.

It reads what training and evaluation left behind (``epochs.csv``, TensorBoard events, a checkpoint, ``config.yaml``,
the evaluation's tables) and reconstructs three patients again to show them. What a run does not have is said to be
not measured.
"""

from __future__ import annotations

import base64
import csv
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from monai.data import MetaTensor
from rich.console import Console
from rich.progress import Progress

from drr2ct.networks import CascadeConfig, ProgressiveCascade
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import PARTS, load_parts
from drr2ct.pipeline.evaluation.metrics import DEFAULT_WINDOW, SURFACE_TOLERANCE_MM, TISSUES, WINDOWS
from drr2ct.pipeline.evaluation.protocol import by_patient, read_patients, summarise_all
from drr2ct.pipeline.evaluation.statistics import compare_paired
from drr2ct.pipeline.pictures.figures import DISPLAY_WINDOW, ERROR_RANGE, radiographs_figure, save_figure
from drr2ct.pipeline.reports.figures import Curves, curve_figure, planes_figure
from drr2ct.pipeline.reports.page import VIEWER_STEP_HU, encode_volume, viewer_values, write_page
from drr2ct.pipeline.volumes.placing import place_on_grid
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT

NOT_MEASURED = "not measured"
EXPECTED = ((10, "22–23", "0.35"), (50, "25–26", "0.50"), (100, "26–27", "0.60"), (None, "27–28", "0.65–0.70"))
"""Epoch (None: the last), PSNR in dB and SSIM that the project expected when it started."""
VIEWER_BYTES = 22_000_000
"""Volumes in the page, base64; with NiiVue and the figures it then stays below 30 MB."""
_CHECKPOINTS = ("best_psnr.pt", "last.pt", "best_ssim.pt", "best_loss.pt")

Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Table:
    """Cells as text; the columns whose index is in ``text`` are left-aligned, rows named in ``ours`` stand out."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text: tuple[int, ...] = (0,)
    ours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A run's folder and that of its evaluation.

    Args:
        folder: of the training.
        evaluation: of its evaluation; may not exist.
        checkpoint: that was evaluated, or the best.
        description: of the checkpoint.
        label: name in tables; unique among the runs of a report.
    """

    folder: Path
    evaluation: Path
    checkpoint: Path
    description: dict[str, Any] = field(repr=False)
    label: str

    @cached_property
    def geometry(self) -> BiplanarGeometry:
        """Grid and views of the network."""
        return BiplanarGeometry.from_dict(self.description["config"]["geometry"])

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """Rows of ``epochs.csv``, numbers as numbers; empty if there is none."""
        path = self.folder / "epochs.csv"
        rows = _read_csv(path)
        try:
            return [{k: v if k == "phase" else _number(v) for k, v in row.items()} for row in rows]
        except ValueError as error:
            raise InputError(f"{path} is not the epoch table of a run ({error}).") from error

    def phase(self, name: str) -> list[dict[str, Any]]:
        """Rows of ``training`` or ``validation``."""
        return [row for row in self.epochs if row.get("phase") == name]

    def seconds_until(self, epoch: float) -> float:
        """Training and validation time up to and with an epoch."""
        return sum(row["seconds"] for row in self.epochs if row["epoch"] <= epoch and not math.isnan(row["seconds"]))

    @cached_property
    def scalars(self) -> dict[str, tuple[list[float], list[float]]]:
        """TensorBoard scalars: tag → (steps, values)."""
        folder = self.folder / "tensorboard"
        if not folder.is_dir():
            return {}
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        events.Reload()
        found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        return {tag: ([e.step for e in values], [e.value for e in values]) for tag, values in found.items()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.yaml`` of the run; empty if there is none."""
        path = self.folder / "config.yaml"
        return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}

    @cached_property
    def figures(self) -> Figures:
        """Test patients' figures; empty without an evaluation."""
        return read_patients(self.evaluation) if (self.evaluation / "patients.csv").is_file() else {}

    @cached_property
    def baselines(self) -> dict[str, Figures]:
        """Baseline → test patients' figures."""
        found: dict[str, Figures] = {}
        for row in _read_csv(self.evaluation / "baselines.csv"):
            name, patient = row.pop("baseline"), row.pop("patient")
            if patient != "mean":
                found.setdefault(name, {})[patient] = {key: _number(value) for key, value in row.items()}
        return found

    @property
    def peak_memory_gib(self) -> float:
        """Most memory that training held; NaN if it was not recorded."""
        return max(self.scalars.get("training/peak_memory_gib", ([], [math.nan]))[1])


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str | None) -> float:
    return float(text) if text else math.nan


def open_run(folder: str | Path, evaluation: str | Path | None = None, label: str | None = None) -> Run:
    """Find what belongs to a run.

    Args:
        folder: with ``checkpoints`` and ``epochs.csv``.
        evaluation: folder with ``patients.csv``; ``evaluation`` in the run or beside it by default.
        label: name in tables.

    Raises:
        InputError: if the folder holds no checkpoint, or a given evaluation folder no table.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"run folder {folder} does not exist; give the output_dir of a training.")
    if not any((folder / name).exists() for name in ("checkpoints", "epochs.csv", "config.yaml")):
        raise InputError(f"folder {folder} holds no checkpoints and no epochs.csv; give the output_dir of a training.")
    if evaluation is not None and not (Path(evaluation) / "patients.csv").is_file():
        raise InputError(f"evaluation folder {evaluation} holds no patients.csv; run drr2ct evaluate first.")
    choices = [Path(evaluation)] if evaluation else [folder / "evaluation", folder.parent / "evaluation"]
    place = next((path for path in choices if (path / "patients.csv").is_file()), choices[0])
    checkpoint = _evaluated_checkpoint(place) or next(
        (path for name in _CHECKPOINTS if (path := folder / "checkpoints" / name).is_file()), None
    )
    if checkpoint is None:
        raise InputError(f"run folder {folder} holds no checkpoints/*.pt; give the output_dir of a training.")
    return Run(folder, place, checkpoint, read_checkpoint(checkpoint)["description"], label or folder.name)


def _evaluated_checkpoint(evaluation: Path) -> Path | None:
    config = evaluation / "config.yaml"
    found = (yaml.safe_load(config.read_text()) or {}).get("checkpoint") if config.is_file() else None
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


@dataclass(frozen=True)
class Case:
    """One patient to show: volumes in HU on the network's grid, radiographs in line integrals."""

    patient: str
    rank: str
    truth: MetaTensor
    prediction: MetaTensor
    given: torch.Tensor
    reprojected: torch.Tensor


def choose_patients(figures: Figures, figure: str = "psnr") -> dict[str, str]:
    """Rank (``Best``, ``Median``, ``Worst``) → patient, by a figure where more is better; fewer for few patients."""
    order = sorted((p for p in figures if not math.isnan(figures[p][figure])), key=lambda p: figures[p][figure])
    if not order:
        return {}
    chosen = {"Median": order[len(order) // 2]}
    if len(order) > 1:
        chosen = {"Best": order[-1], **chosen, "Worst": order[0]}
    return {rank: p for i, (rank, p) in enumerate(chosen.items()) if p not in list(chosen.values())[:i]}


def load_cases(run: Run, chosen: Mapping[str, str], dataset_dir: str | Path | None = None) -> list[Case]:
    """Reconstruct the chosen patients, or take their stored predictions where those lie on the network's grid.

    Args:
        run: whose network it is.
        chosen: rank → patient.
        dataset_dir: folder of patient folders; the training's own by default.

    Raises:
        InputError: if the data set or a patient is missing.
    """
    dataset_dir = dataset_dir or run.config.get("dataset_dir")
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        raise InputError(f"data set {dataset_dir} of run {run.folder} does not exist; give --dataset.")
    views = [view.name for view in run.geometry.views]
    split = {"fractions": run.config.get("split_fractions", (0.8, 0.1, 0.1)), "seed": run.config.get("split_seed", 0)}
    items = {item["patient"]: item for part in load_parts(dataset_dir, views, **split).values() for item in part}
    load = files_to_samples(
        run.geometry,
        run.description["mode"],
        run.config.get("intensity", "line_integral"),
        run.config.get("feet_first", False),
    )
    network = None
    cases = []
    for rank, patient in chosen.items():
        if patient not in items:
            raise InputError(f"patient {patient} of {run.evaluation} is not in data set {dataset_dir}; give --dataset.")
        sample = load(items[patient])
        truth = place_on_grid(sample["label"], run.geometry, sample["label"])
        prediction = _stored_prediction(run, patient, truth)
        if prediction is None:
            network = network or load_network(run.checkpoint)
            with torch.inference_mode():
                output = network(sample["image"][None])[0]
            prediction = place_on_grid(output.clone(), run.geometry, sample["label"])
        given = sample["image"] * LINE_INTEGRAL_SCALE
        cases.append(Case(patient, rank, truth, prediction, given, render_drr(prediction, run.geometry)))
    return cases


def _stored_prediction(run: Run, patient: str, truth: MetaTensor) -> MetaTensor | None:
    path = run.evaluation / "predictions" / patient / f"{patient}_ct.nii.gz"
    if not path.is_file():
        return None
    volume = LoadCT()(path)
    same = volume.shape == truth.shape and np.allclose(np.asarray(volume.affine), np.asarray(truth.affine), atol=1e-2)
    return volume if same else None


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
        InputError: if a run, its evaluation or the data set cannot be used.
    """
    if not runs:
        raise InputError("give at least one run folder.")
    if evaluations and len(evaluations) != len(runs):
        raise InputError(f"{len(runs)} runs but {len(evaluations)} evaluation folders; give one for each, in order.")
    labels = _labels([Path(run) for run in runs])
    places: list[str | Path | None] = [*evaluations] or [None] * len(runs)
    opened = [open_run(run, place, label) for run, place, label in zip(runs, places, labels, strict=True)]
    run = opened[0]
    folder = Path(output) if output else run.folder / "report"
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
        path = write_page(folder / "report.html", "page.html.j2", **_content(opened, curves, cases, shown))
        progress.advance(task)
    return path


def _labels(folders: Sequence[Path]) -> list[str]:
    """Shortest ends of the paths that tell the runs apart."""
    resolved = [folder.resolve() for folder in folders]
    depth = 2
    while depth < max(len(p.parts) for p in resolved) and len({p.parts[-depth:] for p in resolved}) < len(resolved):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in resolved]
    if len(set(names)) < len(names):
        raise InputError("the same run is given twice; give each run once.")
    return names


def training_figures(run: Run) -> list[tuple[str, Figure, str]]:
    """(name, figure, caption) of everything that was recorded in training."""

    def column(name: str) -> Curves:
        curves = {}
        for phase in ("training", "validation"):
            rows = [row for row in run.phase(phase) if not math.isnan(row.get(name, math.nan))]
            if rows:
                curves[phase] = ([row["epoch"] for row in rows], [row[name] for row in rows])
        return curves

    terms = {
        tag.removeprefix("training/loss_"): v for tag, v in run.scalars.items() if tag.startswith("training/loss_")
    }
    peak = run.scalars.get("training/peak_memory_gib")
    rates = column("lr")
    found = (
        ("loss", column("loss"), "epoch", "loss", "Loss: what training minimises"),
        ("loss_terms", terms, "iteration", "loss term", "Terms of the loss, before weighting"),
        ("psnr", column("psnr"), "epoch", "PSNR (dB)", "PSNR: higher is better"),
        ("ssim", column("ssim"), "epoch", "SSIM", "SSIM: higher is better, 1 is identical"),
        (
            "learning_rate",
            {"training": rates["training"]} if "training" in rates else {},
            "epoch",
            "learning rate",
            "Learning rate",
        ),
        ("seconds", column("seconds"), "epoch", "seconds", "Time per epoch"),
        ("memory", {"peak": peak} if peak else {}, "epoch", "GiB", "Peak memory"),
    )
    logarithmic = ("loss_terms", "learning_rate")
    return [
        (name, curve_figure(curves, x, y, name in logarithmic, name in ("seconds", "memory")), caption)
        for name, curves, x, y, caption in found
        if curves
    ]


def _case_pictures(case: Case, run: Run, pictures: _Pictures, top: float) -> dict[str, Any]:
    stem = case.rank.lower()
    row = run.figures[case.patient]
    score = ", ".join(_value(row.get(k, math.nan), k) + unit for k, unit in (("psnr", " dB"), ("ssim", " SSIM")))
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
        "planes": pictures(planes_figure(case.truth, case.prediction), f"{stem}_planes", planes),
        "radiographs": pictures(
            radiographs_figure(case.given, case.reprojected, run.geometry, top), f"{stem}_radiographs", views
        ),
    }


def _value(value: float | None, figure: str) -> str:
    """A figure as text, with digits that suit it."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    digits = (
        3
        if re.match(r"(ssim|ms_ssim|gms|dice|nsd|reprojection)", figure)
        else 2
        if re.search(r"psnr|_db", figure)
        else 1
    )
    sign = "+" if "bias" in figure else ""
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _interval(low: float | None, high: float | None, figure: str) -> str:
    return NOT_MEASURED if low is None or high is None else f"{_value(low, figure)} … {_value(high, figure)}"


def _window_text(window: Sequence[float]) -> str:
    low, high = window
    return f"{low:.0f} … {high:.0f} HU (range {high - low:.0f})".replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


_HEADLINE = (("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("mae_hu", "MAE (HU)"), ("psnr_body", "PSNR in body (dB)"))


_MEASURES = {
    "psnr": ("PSNR", "dB"), "ssim": ("SSIM", ""), "mae_hu": ("Mean absolute error", "HU"), "bias_hu": ("Bias", "HU"),
    "dice": ("Dice overlap", ""), "nsd": (f"Surface within {SURFACE_TOLERANCE_MM:g} mm (NSD)", ""),
    "hd95": ("95 % surface distance", "mm"),
}  # fmt: skip
_NAMED = {
    "ms_ssim": "Multi-scale SSIM",
    "gms_body": "Gradient similarity (sharpness), body",
    "chirality_db": "Margin over the mirror image (dB)",
    "legacy_x2ct_psnr": "PSNR as older tables have it (X2CT, not comparable; dB)",
    "reprojection_mae": "Reprojection error (line integrals)",
    "reprojection_bias": "Reprojection bias (line integrals)",
}


def figure_name(figure: str) -> str:
    """A column of the tables in words, with its window or place and its unit."""
    if figure in _NAMED:
        return _NAMED[figure]
    rest = next((m for m in _MEASURES if figure == m or figure.startswith(f"{m}_")), None)
    if rest is None:
        return figure
    words, unit = _MEASURES[rest]
    details = []
    for part in figure.removeprefix(rest).split("_"):
        if f"_{part}" in WINDOWS and part:
            low, high = WINDOWS[f"_{part}"]
            details.append(f"{low:.0f} … {high:.0f} HU".replace("-", "−"))
        elif part:
            details.append(part)
    return ", ".join([words, *details]) + (f" ({unit})" if unit else "")


def _mean(figures: Figures, name: str) -> float:
    values = [v for row in figures.values() if not math.isnan(v := row.get(name, math.nan))]
    return sum(values) / len(values) if values else math.nan


def headline_table(run: Run) -> Table:
    """Means over test patients, of the network and of the baselines on the same patients."""
    columns = [(name, title) for name, title in _HEADLINE if run.figures or name in ("psnr", "ssim")]
    sources = {run.description["name"]: run.figures, **(run.baselines or {"baselines": {}})}
    rows = [
        (name.replace("_", " "), *(_value(_mean(figures, key), key) for key, _ in columns))
        for name, figures in sources.items()
    ]
    return Table(("method", *(title for _, title in columns)), rows, ours=(rows[0][0],))


def statistics_table(run: Run) -> Table:
    """Spread of every figure over test patients."""
    columns = ("figure", "mean", "95 % interval", "SD", "median", "worst", "worst patient")
    rows = []
    for name, s in (summarise_all(run.figures) if run.figures else {}).items():
        values = (_value(s.mean, name), _interval(s.low, s.high, name), _value(s.std, name.replace("bias", "")))
        rows.append((figure_name(name), *values, _value(s.median, name), _value(s.worst, name), s.worst_patient))
    return Table(columns, rows, text=(0, 6))


def milestones_table(run: Run) -> Table:
    """Validation at set epochs, beside what was expected."""
    rows = []
    validation = run.phase("validation")
    for epoch, psnr, ssim in EXPECTED:
        at = [row for row in validation if row["epoch"] == epoch] if epoch else validation[-1:]
        name = f"epoch {epoch}" if epoch else f"last (epoch {at[0]['epoch']:.0f})" if at else "last"
        if at:
            row = at[0]
            found = (
                _value(row["psnr"], "psnr"),
                _value(row["ssim"], "ssim"),
                _duration(run.seconds_until(row["epoch"])),
            )
        else:
            found = (NOT_MEASURED,) * 3
        rows.append((name, found[0], psnr, found[1], ssim, found[2]))
    columns = ("", "PSNR (dB)", "expected", "SSIM", "expected", "time until then")
    return Table(columns, rows)


_COMPARED = (
    "test PSNR (dB)",
    "test SSIM",
    "test MAE (HU)",
    "voxel (mm)",
    "grid",
    "parameters",
    "peak memory (GiB)",
    "epochs",
    "training time",
)


def comparison_table(runs: Sequence[Run]) -> Table:
    """One column per run: scores, resolution and cost."""
    rows = []
    for run in runs:
        size = run.geometry.grid.size
        memory = run.peak_memory_gib
        epochs = max((row["epoch"] for row in run.epochs), default=math.nan)
        rows.append(
            (
                run.label,
                run.description["name"],
                *(_value(_mean(run.figures, name), name) for name in ("psnr", "ssim", "mae_hu")),
                f"{run.geometry.grid.spacing_mm:.2f}",
                f"{size}³ = {size**3 / 1e6:.1f} million",
                _parameters(run),
                NOT_MEASURED if math.isnan(memory) else f"{memory:.1f}",
                NOT_MEASURED if math.isnan(epochs) else f"{epochs:.0f}",
                _duration(run.seconds_until(math.inf)) if run.epochs else NOT_MEASURED,
            )
        )
    labels, *columns = zip(*rows, strict=True)
    body = [(name, *values) for name, values in zip(("network", *_COMPARED), columns, strict=True)]
    return Table(("", *labels), body)


def _parameters(run: Run) -> str:
    with torch.device("meta"):  # counted, not allocated
        network = ProgressiveCascade(CascadeConfig.from_dict(run.description["config"]))
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million"


def decision_table(runs: Sequence[Run]) -> Table:
    """What matters → which run is best at it, and by how much; paired where the patients are the same."""
    if len(runs) < 2:
        return Table(("",), [])
    rows: list[tuple[str, ...]] = []

    def best(what: str, values: Sequence[float], sign: int, text: Any, paired: str | None = None) -> None:
        known = [i for i, value in enumerate(values) if not math.isnan(value)]
        if len(known) < 2:
            rows.append((what, NOT_MEASURED, "fewer than two runs have it"))
            return
        order = sorted(known, key=lambda i: sign * values[i])
        first, second = order[:2]
        if values[first] == values[second]:
            rows.append((what, "no difference", text(values[first])))
            return
        reason = f"{text(values[first])} against {text(values[second])} ({runs[second].label})"
        winner = runs[first].label
        same = runs[first].figures.keys() & runs[second].figures.keys()
        if paired and same:
            one, other = (by_patient(runs[i].figures, paired) for i in (first, second))
            d = compare_paired(paired, one, other)
            if d is None:
                reason += "; on different patients, so this decides nothing"
            elif d.low is None or d.high is None:
                reason += f"; {d.count} shared patient, too few for an interval"
            else:
                reason += f"; difference on {d.count} shared patients {_interval(d.low, d.high, paired)} (95 %)"
                if d.low <= 0 <= d.high:
                    winner = f"{winner}, but it may be chance"
        elif paired:
            reason += "; on different patients, so this decides nothing"
        rows.append((what, winner, reason))

    for name, what, sign in (("psnr", "Closest voxel by voxel", -1), ("ssim", "Closest in structure", -1)):
        best(what, [_mean(run.figures, name) for run in runs], sign, lambda v, n=name: _value(v, n), name)
    best("Finest voxels", [r.geometry.grid.spacing_mm for r in runs], 1, lambda v: f"{v:.2f} mm")
    best("Least memory in training", [r.peak_memory_gib for r in runs], 1, lambda v: f"{v:.1f} GiB")
    best("Shortest training", [r.seconds_until(math.inf) if r.epochs else math.nan for r in runs], 1, _duration)
    return Table(("if you want", "choose", "because"), rows, text=(0, 1, 2))


def tissue_table(run: Run) -> Table:
    """Mean absolute error and bias by tissue, over test patients."""
    rows = []
    for name in ("body", *TISSUES):
        low, high = TISSUES.get(name, (math.nan, math.nan))
        span = "largest part above −500 HU" if name == "body" else f"{low:.0f} … {high:.0f} HU".replace("-", "−")
        found = [_value(_mean(run.figures, f"{what}_hu_{name}"), what) for what in ("mae", "bias")]
        rows.append((name, span, *found))
    return Table(("tissue", "truth within", "MAE (HU)", "bias (HU)"), rows, text=(0, 1))


def robustness_table(run: Run) -> Table:
    """``robustness.csv`` of the evaluation folder, or of ``robustness`` beside it or in the run."""
    places = (run.evaluation, run.folder / "robustness", run.folder.parent / "robustness")
    rows = next((rows for place in places if (rows := _read_csv(place / "robustness.csv"))), [])
    if not rows:
        return Table(("condition", "PSNR (dB)"), [("all conditions", NOT_MEASURED)])
    columns = [name for name in rows[0] if name not in ("condition", "value", "unit")]

    def cell(row: Mapping[str, str], name: str) -> str:
        text = row.get(name) or ""
        if name == "psnr_change" and row["condition"] == "grid":
            return "another task"
        if name == "patients" or not re.fullmatch(r"[-+\d.e]+", text):
            return text or NOT_MEASURED
        value = _value(float(text), name)
        return f"+{value}" if name == "psnr_change" and float(text) > 0 else value

    body = [(_condition(row), *(cell(row, n) for n in columns)) for row in rows]
    titles = {**dict(_HEADLINE), "psnr_change": "change of PSNR (dB)"}
    return Table(("condition", *(titles.get(name, name) for name in columns)), body)


_CONDITIONS = {
    "clean": "X-rays as rendered",
    "view_angle": "last view turned by {}°",
    "photons": "noise of {} photons per pixel",
    "blur": "detector blur, σ {} mm",
    "exposure": "exposure × {}",
    "grid": "judged on {}³ voxels",
}


def _condition(row: Mapping[str, str]) -> str:
    name, value, unit = (row.get(key) or "" for key in ("condition", "value", "unit"))
    if name not in _CONDITIONS:
        return f"{name} {value} {unit}".replace("_", " ").strip()
    number = f"{float(value):,.10g}".replace(",", "\u202f").replace("-", "−") if value else ""
    return _CONDITIONS[name].format(f"+{number}" if name == "view_angle" and float(value) > 0 else number)


def geometry_tables(geometry: BiplanarGeometry) -> tuple[Table, Table]:
    """The views, and the grid."""
    columns = ("view", "gantry angle", "source to isocentre", "source to detector", "detector", "pixel pitch")
    views = [
        (
            v.name,
            f"{v.gantry_angle_deg:g}°",
            f"{v.source_to_isocentre_mm:g} mm",
            f"{v.source_to_detector_mm:g} mm",
            f"{v.detector_size[0]} × {v.detector_size[1]}",
            f"{v.pixel_pitch_mm:.3g} mm",
        )
        for v in geometry.views
    ]
    grid = geometry.grid
    row = (
        f"{grid.size}³ voxels",
        f"{grid.spacing_mm:.4g} mm",
        f"{grid.fov_mm:g} mm",
        "head" if grid.vertical_flip else "feet",
    )
    return Table(columns, views), Table(("grid", "voxel", "field of view", "first slice"), [row])


def _viewer(run: Run, cases: Sequence[Case]) -> dict[str, Any]:
    pairs: list[dict[str, Any]] = []
    names = []
    used = 0
    for case in sorted(cases, key=lambda case: case.rank != "Median"):  # the one in the middle first
        pair = {"truth": encode_volume(case.truth), "prediction": encode_volume(case.prediction)}
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
    window = _window_text(run.config.get("metric_window", DEFAULT_WINDOW))
    validation = run.phase("validation")
    epochs = max((row["epoch"] for row in run.epochs), default=0)
    psnr, ssim, mae = (_mean(run.figures, name) for name in ("psnr", "ssim", "mae_hu"))
    cards = [
        (f"{_value(psnr, 'psnr')}" + ("" if math.isnan(psnr) else " dB"), "PSNR, 3-D, mean over test patients"),
        (_value(ssim, "ssim"), "SSIM, 3-D, mean over test patients"),
        (f"{_value(mae, 'mae_hu')}" + ("" if math.isnan(mae) else " HU"), "mean absolute error"),
        (f"{grid.size}³", f"voxels of {grid.spacing_mm:.2g} mm"),
    ]
    n = len(run.figures)
    result_note = (
        f"Means over {n} test patient{'s' * (n != 1)} that the network never saw in training. "
        f"PSNR and SSIM are computed in 3-D over {_window_text(DEFAULT_WINDOW)}. "
        "Baselines show what is reached without a network, on the same patients."
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
        "subtitle": f"Run {run.label}, {epochs:.0f} epochs, {_duration(run.seconds_until(math.inf))} of training; "
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
