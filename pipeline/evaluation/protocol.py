"""The evaluation's protocol: no patient of the training, tables by patient, summaries with intervals.

``docs/evaluation.md`` defines the columns and the entries of the JSON files.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather

from drr2ct.pipeline.checkpoints.description import members_of
from drr2ct.pipeline.checkpoints.files import weights_sha256
from drr2ct.pipeline.data.identity import trained_on
from drr2ct.pipeline.evaluation.similarity import WINDOWS
from drr2ct.pipeline.evaluation.statistics import PairedDifference, Summary, compare_paired, summarise
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.pipeline.running.engines import batch_patients
from drr2ct.pipeline.running.provenance import DISCLAIMER, versions
from drr2ct.transforms.files import write_csv, write_json
from drr2ct.transforms.validation import InputError, existing_file

FORMAT = 1
logger = logging.getLogger(__name__)

Figures = Mapping[str, Mapping[str, float]]
"""Patient → figure → value; NaN where it is not defined."""


def refuse_leakage(
    checkpoint: str | Path, description: Mapping[str, Any], datalist: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse to evaluate a checkpoint on patients that it was trained on, also under another path or file name.

    Args:
        checkpoint: its path, for the message.
        description: what the checkpoint says of itself.
        datalist: items to be evaluated.

    Raises:
        InputError: naming the patients.
    """
    leaked = sorted(str(item["patient"]) for item in trained_on(description, datalist))
    if leaked:
        raise InputError(
            f"checkpoint {checkpoint} was trained on {len(leaked)} of the {len(datalist)} patients to be evaluated "
            f"({_some(leaked)}); choose others, or the split (dataset.json, split_fractions, split_seed) of the "
            "training."
        )


def bounds_to_judge(description: Mapping[str, Any], datalist: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a network's bounds can be judged on these patients.

    They cover by construction those whom they are calibrated on. If one of the patients is such, bounds are not judged,
    and it is said; the estimate knows nothing of a calibration, and is.

    Args:
        description: what the checkpoint says of itself.
        datalist: items to be evaluated.
    """
    if not description["config"].get("interval"):
        return False
    calibration = description.get("interval")
    if calibration is None:  # as they were trained
        return True
    known = {"patients": {"training": calibration["patients"]}, "training_cts": calibration["cts"]}
    seen = sorted(str(item["patient"]) for item in trained_on(known, datalist))
    if seen and is_main_process():
        logger.warning(
            "The bounds were calibrated on %d of the %d patients (%s): the estimate is judged, the bounds are not.",
            len(seen), len(datalist), _some(seen),
        )  # fmt: skip
    return not seen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def model_facts(
    checkpoint: str | Path, description: Mapping[str, Any], network: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """What an evaluation's files say of the model: from its checkpoint, what that says of itself, and its weights."""
    return {
        "checkpoint": str(checkpoint),
        "weights_sha256": weights_sha256(network),
        "name": description["name"],
        "epoch": description.get("epoch"),
        "mode": description["mode"],
        "geometry": description["config"]["geometry"],
        "members": members_of(description),
        "trained_on": len(description["patients"].get("training", [])),
        "calibrated_on": len(description["interval"]["patients"]) if "interval" in description else None,
    }


class PatientTable:
    """Tables of an evaluator's figures: ``patients.csv``, and ``patients.json`` and ``summary.json`` beside it.

    Patients of all processes are gathered and sorted by name; one process writes. Each patient counts once, also where
    several processes evaluated it.

    Args:
        path: of the CSV file.
        about: further entries of the summary, in plain types.
        seed: of the bootstrap intervals.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any] | None = None, seed: int = 0) -> None:
        self.path = Path(path)
        self.about = dict(about or {})
        self.seed = seed
        self._patients: list[str] = []

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator; attach it after the metrics, as MONAI does with handlers."""
        evaluator.add_event_handler(Events.EPOCH_STARTED, self._patients.clear)
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: self._patients.extend(batch_patients(evaluator.state.batch))
        )
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _write(self, evaluator: Engine) -> None:
        patients = string_list_all_gather(self._patients)
        if idist.get_rank() > 0:
            return
        found: Mapping[str, torch.Tensor] = getattr(evaluator.state, "metric_details")  # noqa: B009  # MONAI's own
        details = {name: values.flatten().tolist() for name, values in found.items()}
        figures: dict[str, dict[str, float]] = {}
        for patient, *values in zip(patients, *details.values(), strict=True):
            figures.setdefault(patient, dict(zip(details, values, strict=True)))
        figures = dict(sorted(figures.items()))
        write_table(self.path, figures)
        write_json(self.path.with_name("patients.json"), {"format": FORMAT, "patients": patient_records(figures)})
        summary = {
            "format": FORMAT,
            "note": DISCLAIMER,
            "count": len(figures),
            "windows": {f"psnr{suffix}": list(window) for suffix, window in WINDOWS.items()},
            "figures": plain(summarise_all(figures, self.seed)),
            "versions": versions(),
            **self.about,
        }
        write_json(self.path.with_name("summary.json"), summary)


def write_table(path: Path, figures: Figures) -> None:
    """One CSV row per patient, and ``mean`` in the last row; undefined values are empty."""
    columns = list(next(iter(figures.values())))
    means = {}
    for name in columns:
        defined = [row[name] for row in figures.values() if not math.isnan(row[name])]
        means[name] = sum(defined) / len(defined) if defined else math.nan
    rows = [
        [patient, *(number_text(row[name]) for name in columns)] for patient, row in {**figures, "mean": means}.items()
    ]
    write_csv(path, ["patient", *columns], rows)


def number_text(value: float) -> str:
    """A figure in a CSV file; empty where it is not defined."""
    return "" if math.isnan(value) else f"{value:.6g}"


def patient_records(figures: Figures) -> list[dict[str, Any]]:
    """The entries of ``patients.json``; undefined values are null."""
    return [
        {"patient": patient, "figures": {name: None if math.isnan(v) else v for name, v in row.items()}}
        for patient, row in figures.items()
    ]


def by_patient(figures: Figures, name: str) -> dict[str, float]:
    """One figure of every patient."""
    return {patient: row[name] for patient, row in figures.items()}


def summarise_all(figures: Figures, seed: int = 0) -> dict[str, Summary]:
    """Summary of every figure that some patient has."""
    names = list(next(iter(figures.values())))
    found = {name: summarise(name, by_patient(figures, name), seed) for name in names}
    return {name: summary for name, summary in found.items() if summary is not None}


def compare_all(first: Figures, second: Figures, seed: int = 0) -> dict[str, PairedDifference]:
    """Paired comparison of every figure that both have.

    Raises:
        InputError: if they have no patient in common.
    """
    columns = set(next(iter(second.values())))
    names = [name for name in next(iter(first.values())) if name in columns]
    found = {name: compare_paired(name, by_patient(first, name), by_patient(second, name), seed) for name in names}
    return {name: difference for name, difference in found.items() if difference is not None}


def plain(results: Mapping[str, Summary] | Mapping[str, PairedDifference]) -> dict[str, dict[str, Any]]:
    """Plain types, for JSON."""
    return {name: asdict(result) for name, result in results.items()}


def read_patients(folder: str | Path) -> dict[str, dict[str, float]]:
    """The figures that an evaluation wrote.

    Raises:
        InputError: if the folder holds no evaluation.
    """
    path = existing_file(Path(folder) / "patients.json", "evaluation")
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise InputError(f"evaluation {path} has format {content['format']}; this version reads {FORMAT}.")
        return {
            entry["patient"]: {name: math.nan if v is None else float(v) for name, v in entry["figures"].items()}
            for entry in content["patients"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not the table of an evaluation; run drr2ct evaluate again.") from error


def compare_evaluations(first: str | Path, second: str | Path, seed: int = 0) -> dict[str, PairedDifference]:
    """First − second of two evaluation folders, by figure, paired by patient.

    Raises:
        InputError: if a folder holds no evaluation, or they have no patient in common.
    """
    return compare_all(read_patients(first), read_patients(second), seed)
