"""A run and its evaluation: which files belong to it, and what they hold."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.evaluation.protocol import read_patients
from drr2ct.pipeline.running.plain import as_text
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError

_CHECKPOINTS = ("best_psnr.pt", "last.pt", "best_ssim.pt", "best_loss.pt")

Figures = dict[str, dict[str, float]]
"""Patient → figure → value; NaN where it is not defined."""


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
        rows = read_rows(path)
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
        # slow to import, and only needed here
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
        events.Reload()
        found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        return {tag: ([e.step for e in values], [e.value for e in values]) for tag, values in found.items()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.yaml`` of the run; empty if there is none."""
        path = self.folder / "config.yaml"
        found = (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}
        return {key: as_text(value) for key, value in found.items()}

    @cached_property
    def figures(self) -> Figures:
        """Test patients' figures; empty without an evaluation."""
        return read_patients(self.evaluation) if (self.evaluation / "patients.csv").is_file() else {}

    @cached_property
    def baselines(self) -> dict[str, Figures]:
        """Baseline → test patients' figures."""
        found: dict[str, Figures] = {}
        for row in read_rows(self.evaluation / "baselines.csv"):
            name, patient = row.pop("baseline"), row.pop("patient")
            if patient != "mean":
                found.setdefault(name, {})[patient] = {key: _number(value) for key, value in row.items()}
        return found

    @property
    def peak_memory_gib(self) -> float:
        """Most memory that training held; NaN if it was not recorded."""
        return max(self.scalars.get("training/peak_memory_gib", ([], [math.nan]))[1])


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
    found = as_text((yaml.safe_load(config.read_text()) or {}).get("checkpoint")) if config.is_file() else None
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def run_labels(folders: Sequence[Path]) -> list[str]:
    """Shortest ends of the paths that tell the runs apart.

    Raises:
        InputError: if two are the same.
    """
    resolved = [folder.resolve() for folder in folders]
    depth = 2
    while depth < max(len(p.parts) for p in resolved) and len({p.parts[-depth:] for p in resolved}) < len(resolved):
        depth += 1
    names = ["/".join(path.parts[-depth:]) for path in resolved]
    if len(set(names)) < len(names):
        raise InputError("the same run is given twice; give each run once.")
    return names


def mean_of(figures: Figures, name: str) -> float:
    """Mean of a figure over the patients that have it; NaN if none has."""
    values = [v for row in figures.values() if not math.isnan(v := row.get(name, math.nan))]
    return sum(values) / len(values) if values else math.nan


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text; none without the file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str | None) -> float:
    return float(text) if text else math.nan
