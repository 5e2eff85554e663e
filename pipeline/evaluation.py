"""The evaluation's protocol: no patient of the training, tables by patient, summaries with intervals.

``docs/evaluation.md`` defines the columns and the entries of the JSON files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather

from drr2ct.pipeline.checkpoint import read_checkpoint, versions
from drr2ct.pipeline.export import DISCLAIMER
from drr2ct.pipeline.handlers import batch_patients
from drr2ct.pipeline.metrics import SURFACE_TOLERANCE_MM, WINDOWS, overlap_figures
from drr2ct.pipeline.statistics import PairedDifference, Summary, compare_paired, summarise
from drr2ct.transforms.files import write_csv, write_json
from drr2ct.transforms.validation import InputError, existing_file

FORMAT = 1

Figures = Mapping[str, Mapping[str, float]]
"""Patient → figure → value; NaN where it is not defined."""


def trained_patients(checkpoint: str | Path) -> set[str]:
    """Names of the patients that a checkpoint was trained on; of names that are paths, the last part."""
    names = read_checkpoint(checkpoint)["description"]["patients"].get("training", [])
    return {Path(name).name for name in names}


def refuse_leakage(checkpoint: str | Path, datalist: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to evaluate a checkpoint on patients that it was trained on.

    Raises:
        InputError: naming them.
    """
    trained = trained_patients(checkpoint)
    leaked = sorted({str(item["patient"]) for item in datalist} & trained)
    if leaked:
        names = ", ".join(leaked[:5]) + (f" and {len(leaked) - 5} more" if len(leaked) > 5 else "")
        raise InputError(
            f"checkpoint {checkpoint} was trained on {len(leaked)} of the {len(datalist)} patients to be evaluated "
            f"({names}); choose others, or the split (dataset.json, split_fractions, split_seed) of the training."
        )


def model_facts(checkpoint: str | Path) -> dict[str, Any]:
    """What ``summary.json`` says of the model, from its checkpoint."""
    description = read_checkpoint(checkpoint)["description"]
    return {
        "checkpoint": str(checkpoint),
        "name": description["name"],
        "epoch": description.get("epoch"),
        "mode": description["mode"],
        "geometry": description["config"]["geometry"],
        "trained_on": len(description["patients"].get("training", [])),
    }


class PatientTable:
    """Tables of an evaluator's figures: ``patients.csv``, and ``patients.json`` and ``summary.json`` beside it.

    Patients of all processes are gathered; one process writes. Each patient counts once, also where a distributed
    sampler repeats some to fill the last batch.

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
    rows = [[patient, *(_number(row[name]) for name in columns)] for patient, row in {**figures, "mean": means}.items()]
    write_csv(path, ["patient", *columns], rows)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def patient_records(figures: Figures) -> list[dict[str, Any]]:
    """The entries of ``patients.json``; undefined values are null."""
    return [
        {"patient": patient, "figures": {name: None if math.isnan(v) else v for name, v in row.items()}}
        for patient, row in figures.items()
    ]


def summarise_all(figures: Figures, seed: int = 0) -> dict[str, Summary]:
    """Summary of every figure that some patient has."""
    names = list(next(iter(figures.values())))
    found = {name: summarise(name, {p: row[name] for p, row in figures.items()}, seed) for name in names}
    return {name: summary for name, summary in found.items() if summary is not None}


def compare_all(first: Figures, second: Figures, seed: int = 0) -> dict[str, PairedDifference]:
    """Paired comparison of every figure that both have.

    Raises:
        InputError: if they have no patient in common.
    """
    columns = set(next(iter(second.values())))
    names = [name for name in next(iter(first.values())) if name in columns]
    found = {
        name: compare_paired(
            name, {p: row[name] for p, row in first.items()}, {p: row[name] for p, row in second.items()}, seed
        )
        for name in names
    }
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


def compare_segmentations(
    predicted: str | Path, true: str | Path, output: str | Path, tolerance_mm: float = SURFACE_TOLERANCE_MM
) -> list[dict[str, Any]]:
    """Dice, NSD and HD95 of every ``<patient>/<structure>.nii.gz`` that the second folder holds.

    Args:
        predicted: folder of masks found in predictions; one that is missing counts as empty.
        true: folder of masks found in the CTs.
        output: CSV file to write: patient, structure, dice, nsd, hd95.
        tolerance_mm: of the NSD.

    Returns:
        The rows.

    Raises:
        InputError: if there are no masks, or two lie on different voxels.
    """
    rows = []
    for path in sorted(Path(true).glob("*/*.nii.gz")):
        patient, structure = path.parent.name, path.name.removesuffix(".nii.gz")
        truth, affine = _read_mask(path)
        made = torch.zeros_like(truth)
        if (other := Path(predicted) / patient / path.name).exists():
            made, other_affine = _read_mask(other)
            if made.shape != truth.shape or not np.allclose(affine, other_affine, atol=1e-2):
                raise InputError(f"masks {other} and {path} lie on different voxels; segment both on one grid.")
        spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        rows.append({"patient": patient, "structure": structure, **overlap_figures(made, truth, spacing, tolerance_mm)})
    if not rows:
        raise InputError(f"folder {true} holds no <patient>/<structure>.nii.gz.")
    header = list(rows[0])
    write_csv(Path(output), header, [[_number(v) if isinstance(v, float) else v for v in row.values()] for row in rows])
    return rows


def _read_mask(path: Path) -> tuple[torch.Tensor, np.ndarray]:
    try:
        image: Any = nib.load(path)
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"mask {path} cannot be read ({error}); export it again.") from error
    if values.ndim != 3:
        raise InputError(f"mask {path} has {values.ndim} dimensions; one volume per structure is needed.")
    return torch.from_numpy(values > 0)[None], np.asarray(image.affine)
