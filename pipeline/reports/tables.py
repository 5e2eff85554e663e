"""The tables of pages, cells as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drr2ct.networks import CascadeConfig, ProgressiveCascade
from drr2ct.pipeline.evaluation.protocol import by_patient, summarise_all
from drr2ct.pipeline.evaluation.statistics import compare_paired
from drr2ct.pipeline.evaluation.structures import TISSUES
from drr2ct.pipeline.reports.runs import Run, mean_of, read_rows
from drr2ct.pipeline.reports.wording import NOT_MEASURED, figure_name, interval_text, value_text
from drr2ct.pipeline.running.console import duration_text
from drr2ct.transforms.geometry import BiplanarGeometry


@dataclass(frozen=True)
class Table:
    """Cells as text; the columns whose index is in ``text`` are left-aligned, rows named in ``ours`` stand out."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text: tuple[int, ...] = (0,)
    ours: tuple[str, ...] = ()


EXPECTED = ((10, "22–23", "0.35"), (50, "25–26", "0.50"), (100, "26–27", "0.60"), (None, "27–28", "0.65–0.70"))
"""Epoch (None: the last), PSNR in dB and SSIM that the project expected when it started."""
_HEADLINE = (("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("mae_hu", "MAE (HU)"), ("psnr_body", "PSNR in body (dB)"))
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


def headline_table(run: Run) -> Table:
    """Means over test patients, of the network and of the baselines on the same patients."""
    columns = [(name, title) for name, title in _HEADLINE if run.figures or name in ("psnr", "ssim")]
    sources = {run.description["name"]: run.figures, **(run.baselines or {"baselines": {}})}
    rows = [
        (name.replace("_", " "), *(value_text(mean_of(figures, key), key) for key, _ in columns))
        for name, figures in sources.items()
    ]
    return Table(("method", *(title for _, title in columns)), rows, ours=(rows[0][0],))


def statistics_table(run: Run) -> Table:
    """Spread of every figure over test patients."""
    columns = ("figure", "mean", "95 % interval", "SD", "median", "worst", "worst patient")
    rows = []
    for name, s in (summarise_all(run.figures) if run.figures else {}).items():
        values = (
            value_text(s.mean, name),
            interval_text(s.low, s.high, name),
            value_text(s.std, name.replace("bias", "")),
        )
        rows.append(
            (figure_name(name), *values, value_text(s.median, name), value_text(s.worst, name), s.worst_patient)
        )
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
                value_text(row["psnr"], "psnr"),
                value_text(row["ssim"], "ssim"),
                duration_text(run.seconds_until(row["epoch"])),
            )
        else:
            found = (NOT_MEASURED,) * 3
        rows.append((name, found[0], psnr, found[1], ssim, found[2]))
    columns = ("", "PSNR (dB)", "expected", "SSIM", "expected", "time until then")
    return Table(columns, rows)


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
                *(value_text(mean_of(run.figures, name), name) for name in ("psnr", "ssim", "mae_hu")),
                f"{run.geometry.grid.spacing_mm:.2f}",
                f"{size}³ = {size**3 / 1e6:.1f} million",
                _parameters(run),
                NOT_MEASURED if math.isnan(memory) else f"{memory:.1f}",
                NOT_MEASURED if math.isnan(epochs) else f"{epochs:.0f}",
                duration_text(run.seconds_until(math.inf)) if run.epochs else NOT_MEASURED,
            )
        )
    labels, *columns = zip(*rows, strict=True)
    body = [(name, *values) for name, values in zip(("network", *_COMPARED), columns, strict=True)]
    return Table(("", *labels), body)


def _parameters(run: Run) -> str:
    # built in memory: on the meta device PyTorch would first import its compiler
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
                reason += f"; difference on {d.count} shared patients {interval_text(d.low, d.high, paired)} (95 %)"
                if d.low <= 0 <= d.high:
                    winner = f"{winner}, but it may be chance"
        elif paired:
            reason += "; on different patients, so this decides nothing"
        rows.append((what, winner, reason))

    for name, what, sign in (("psnr", "Closest voxel by voxel", -1), ("ssim", "Closest in structure", -1)):
        best(what, [mean_of(run.figures, name) for run in runs], sign, lambda v, n=name: value_text(v, n), name)
    best("Finest voxels", [r.geometry.grid.spacing_mm for r in runs], 1, lambda v: f"{v:.2f} mm")
    best("Least memory in training", [r.peak_memory_gib for r in runs], 1, lambda v: f"{v:.1f} GiB")
    best("Shortest training", [r.seconds_until(math.inf) if r.epochs else math.nan for r in runs], 1, duration_text)
    return Table(("if you want", "choose", "because"), rows, text=(0, 1, 2))


def tissue_table(run: Run) -> Table:
    """Mean absolute error and bias by tissue, over test patients."""
    rows = []
    for name in ("body", *TISSUES):
        low, high = TISSUES.get(name, (math.nan, math.nan))
        span = "largest part above −500 HU" if name == "body" else f"{low:.0f} … {high:.0f} HU".replace("-", "−")
        found = [value_text(mean_of(run.figures, f"{what}_hu_{name}"), what) for what in ("mae", "bias")]
        rows.append((name, span, *found))
    return Table(("tissue", "truth within", "MAE (HU)", "bias (HU)"), rows, text=(0, 1))


def robustness_table(run: Run) -> Table:
    """``robustness.csv`` of the evaluation folder, or of ``robustness`` beside it or in the run."""
    places = (run.evaluation, run.folder / "robustness", run.folder.parent / "robustness")
    rows = next((rows for place in places if (rows := read_rows(place / "robustness.csv"))), [])
    if not rows:
        return Table(("condition", "PSNR (dB)"), [("all conditions", NOT_MEASURED)])
    columns = [name for name in rows[0] if name not in ("condition", "value", "unit")]

    def cell(row: Mapping[str, str], name: str) -> str:
        text = row.get(name) or ""
        if name == "psnr_change" and row["condition"] == "grid":
            return "another task"
        if name == "patients" or not re.fullmatch(r"[-+\d.e]+", text):
            return text or NOT_MEASURED
        value = value_text(float(text), name)
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
