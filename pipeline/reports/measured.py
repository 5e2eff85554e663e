"""What evaluations found of a shipped network: gathered from their own files, and kept beside its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drr2ct.pipeline.evaluation.protocol import read_patients
from drr2ct.transforms.validation import InputError, existing_file

FORMAT = 1
KEPT_FIGURES = (
    "psnr",
    "ssim",
    "psnr_full",
    "ssim_full",
    "mae_hu",
    "dice_lung",
    "dice_bone",
    "detail_explained",
    "chirality_db",
    "interval_coverage",
    "interval_width_hu",
    "interval_rank",
    "interval_rank_regions",
    "interval_rank_volume",
)
"""Of all that an evaluation measures, what is kept."""
GROUPS = ("validation", "unseen")
"""Patients whom the best epoch was chosen by, and patients whom nothing was chosen by."""


@dataclass
class Measured:
    """What was measured of a network's weights.

    Args:
        path: of the file that holds it.
        weights_sha256: of the weights.
        patients: by name: ``group``, one of :data:`GROUPS`; ``figures``; ``baselines``, each with such figures.
        left_out: likewise without a group: patients who were reconstructed by networks that the same recipe made
            without them; ``weights_sha256`` is theirs.
        robustness: ``count`` of patients, and ``conditions`` with their mean figures.
    """

    path: Path
    weights_sha256: str
    patients: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    robustness: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as the file has them."""
        return {
            "format": FORMAT,
            "weights_sha256": self.weights_sha256,
            "patients": dict(sorted(self.patients.items())),
            "left_out": dict(sorted(self.left_out.items())),
            "robustness": self.robustness,
        }

    def of_group(self, group: str) -> dict[str, dict[str, Any]]:
        """The patients of a group."""
        return {name: entry for name, entry in self.patients.items() if entry["group"] == group}

    def means(self, figures: Sequence[str]) -> dict[str, float]:
        """Group and figure (``validation_psnr``) → mean over the group's patients, and how many those are."""
        found: dict[str, float] = {}
        for group in GROUPS:
            entries = self.of_group(group)
            if entries:
                found[f"{group}_patients"] = len(entries)
                found |= {f"{group}_{name}": round(mean_of(entries.values(), name), 4) for name in figures}
        return found


def mean_of(entries: Any, figure: str, baseline: str | None = None) -> float:
    """Mean of a figure over patients' entries that have it, or of a baseline's on them; NaN if none has."""
    rows = [entry["figures"] if baseline is None else entry["baselines"].get(baseline, {}) for entry in entries]
    values = [row[figure] for row in rows if row.get(figure) is not None]
    return sum(values) / len(values) if values else math.nan


def read_measured(path: Path, digest: str, same_recipe: bool = False) -> Measured:
    """What the file says of these weights: nothing if it is not there, or is of others.

    Args:
        path: of the file.
        digest: of the weights.
        same_recipe: if it is of others, that the same recipe made: what it says of patients left out is of the recipe,
            and holds for these too.

    Raises:
        InputError: if it is no such file.
    """
    if not path.is_file():
        return Measured(path, digest)
    content = _read_json(path)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is not what a release writes; delete it.")
    if content["weights_sha256"] != digest:
        return Measured(path, digest, left_out=content["left_out"]) if same_recipe else Measured(path, digest)
    return Measured(path, digest, content["patients"], content["left_out"], content["robustness"])


def add_evaluation(measured: Measured, folder: str | Path, description: Mapping[str, Any]) -> None:
    """Take in an evaluation of these weights.

    Args:
        measured: what it is added to.
        folder: that ``drr2ct evaluate`` wrote.
        description: of the weights: whom they were validated on.

    Raises:
        InputError: if it is of other weights, or no evaluation.
    """
    model = _model_of(Path(folder) / "summary.json", "evaluation")
    if model.get("weights_sha256") != measured.weights_sha256:
        raise InputError(f"evaluation {folder} is not of the weights that are released; evaluate those.")
    validation = set(description["patients"].get("validation", []))
    for patient, entry in _entries(Path(folder)).items():
        measured.patients[patient] = {"group": GROUPS[patient not in validation], **entry}


def left_out_checkpoint(folder: str | Path) -> Path | None:
    """The weights that an evaluation is of, if they still lie where they lay then.

    Raises:
        InputError: if it is no evaluation.
    """
    place = _model_of(Path(folder) / "summary.json", "evaluation").get("checkpoint")
    return Path(place) if place and Path(place).is_file() else None


def add_left_out(
    measured: Measured, folder: str | Path, description: Mapping[str, Any], trained_for: str | None = None
) -> None:
    """Take in an evaluation of another network of the same kind, on patients that it was not trained on.

    Args:
        measured: what it is added to.
        folder: that ``drr2ct evaluate`` wrote.
        description: of the weights that are released.
        trained_for: how long that other network was trained, as the card is to say it.

    Raises:
        InputError: if it is of another kind or of these weights, or no evaluation.
    """
    model = _model_of(Path(folder) / "summary.json", "evaluation")
    same = model["name"] == description["name"] and model["geometry"] == description["config"]["geometry"]
    if not same or model.get("weights_sha256") in (None, measured.weights_sha256):
        raise InputError(
            f"evaluation {folder} is not of another {description['name']} of the same geometry, which was trained "
            "without its patients."
        )
    about = {"weights_sha256": model["weights_sha256"], "trained_for": trained_for, "members": model.get("members", 1)}
    for patient, entry in _entries(Path(folder)).items():
        measured.left_out[patient] = {**about, **entry}


def add_robustness(measured: Measured, folder: str | Path) -> None:
    """Take in what ``drr2ct robustness`` found of these weights.

    Raises:
        InputError: if it is of other weights, or no such folder.
    """
    path = Path(folder) / "robustness.json"
    if _model_of(path, "robustness").get("weights_sha256") != measured.weights_sha256:
        raise InputError(f"robustness {folder} is not of the weights that are released; measure those.")
    conditions = _read_json(path)["conditions"]
    measured.robustness = {
        "count": len(conditions[0]["patients"]),
        "conditions": [
            {
                **{key: entry[key] for key in ("condition", "value", "unit", "means")},
                "psnr_change": None if entry["psnr_change"] is None else entry["psnr_change"]["difference"],
            }
            for entry in conditions
        ],
    }


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Patient → ``figures`` and ``baselines`` of an evaluation's folder."""
    found: dict[str, dict[str, Any]] = {
        patient: {"figures": _kept(row), "baselines": {}} for patient, row in read_patients(folder).items()
    }
    path = folder / "baselines.json"
    if path.is_file():
        for name, baseline in _read_json(path)["baselines"].items():
            for entry in baseline["patients"]:
                found[entry["patient"]]["baselines"][name] = _kept(entry["figures"])
    return found


def _kept(row: Mapping[str, float | None]) -> dict[str, float | None]:
    values = {name: row.get(name) for name in KEPT_FIGURES}
    return {name: None if value is None or math.isnan(value) else value for name, value in values.items()}


def _model_of(path: Path, what: str) -> dict[str, Any]:
    model = _read_json(existing_file(path, what)).get("model")
    if not isinstance(model, dict):
        raise InputError(f"{what} {path} does not say of which weights it is; run it again with this version.")
    return model


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); write it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not what is written there; write it again.")
    return content
