"""What a checkpoint says of itself: the plain facts that a user of its weights must know."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from drr2ct.networks import ProgressiveCascade
from drr2ct.pipeline.checkpoints.files import CHECKPOINT_FORMAT, as_paths, read_checkpoint
from drr2ct.pipeline.data.identity import ct_fingerprints, trained_on
from drr2ct.pipeline.running.console import duration_text
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.pipeline.running.provenance import versions
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import HU_WINDOW

logger = logging.getLogger(__name__)


def describe(
    network: ProgressiveCascade,
    name: str,
    mode: str,
    datalists: Mapping[str, Sequence[Mapping[str, Any]]],
    started_from: str | Path | Sequence[str | Path] | None = None,
) -> dict[str, Any]:
    """What a user of the weights must know, in plain types.

    Args:
        network: its configuration holds the geometry.
        name: of the configuration, as in ``list_networks``.
        mode: how CTs were put on the grid, ``cube`` or ``resize``.
        datalists: data lists by part; patients' names are kept, and of the training's CTs a hash of parts of the file,
            by which an evaluation knows them under another name.
        started_from: the checkpoints that the weights came from before this training; their patients were trained on
            too, and those of other parts among them are warned of.

    Raises:
        InputError: as ``read_checkpoint``.
    """
    patients = {part: [str(item["patient"]) for item in items] for part, items in datalists.items()}
    # read by the process that writes the description, not by every one
    cts = ct_fingerprints(datalists.get("training", [])) if is_main_process() else []
    for path in as_paths(started_from):
        before = read_checkpoint(path)["description"]
        for part in sorted(datalists.keys() - {"training"}) if is_main_process() else ():
            if known := trained_on(before, datalists[part]):
                names = ", ".join(str(item["patient"]) for item in known)
                logger.warning(
                    "%s, which this training begins with, was trained on %s, now in %s: "
                    "what is measured there is not of a new patient",
                    *(path, names, part),
                )
        earlier = before["patients"].get("training", [])
        patients["training"] = list(dict.fromkeys([*patients.get("training", []), *earlier]))
        cts = sorted({*cts, *before.get("training_cts", [])})
    return {
        "format": CHECKPOINT_FORMAT,
        "name": name,
        "config": network.config.to_dict(),
        "mode": mode,
        "hu_window": list(HU_WINDOW),
        "line_integral_scale": LINE_INTEGRAL_SCALE,
        "patients": patients,
        "processor": _processor(network),
        "training_cts": cts,
        "versions": versions(),
    }


def _processor(network: ProgressiveCascade) -> str:
    """What the weights are on, in words; a CPU's number of threads belongs to it."""
    device = next(network.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''}"


def training_seconds(description: Mapping[str, Any]) -> float | None:
    """Seconds of training behind released weights, those of the networks that they grew from included.

    None where it is not known: only released weights hold it.
    """
    runs = training_runs(description)
    return None if None in runs.values() else sum(seconds for seconds in runs.values() if seconds is not None)


def began_with(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The networks whose weights a training began with; none if they were random."""
    before: dict[str, Any] | list[dict[str, Any]] | None = training.get("began_with")  # one alone in older files
    return [before] if isinstance(before, dict) else before or []


def training_runs(description: Mapping[str, Any]) -> dict[str, float | None]:
    """Seconds of every training behind weights, each once, though two of them may have begun with the same weights.

    Those of the members of an ensemble are among them.
    """
    training = description.get("training")
    if training is None:
        return {"": None}
    alone = {key: value for key, value in training.items() if key != "joined_with"}
    found: dict[str, float | None] = {json.dumps(alone, sort_keys=True): training["seconds"]}
    for other in (*began_with(training), *training.get("joined_with", [])):
        found |= training_runs(other)
    return found


def members_of(description: Mapping[str, Any]) -> int:
    """Of how many networks the first volumes are joined; of 1 where a description is older than ensembles."""
    return int(description["config"].get("members", 1))


def network_sentence(description: Mapping[str, Any]) -> str:
    """Which network it is, and how and how long it was trained, in one line for the terminal."""
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    shipped = ", as shipped" if "released" in description else ""
    patients = len(description.get("patients", {}).get("training", []))
    seconds, vary = training_seconds(description), description.get("training", {}).get("vary", "off")
    how = "" if vary == "off" else f" and what variations {vary.replace('-', ' ')} make of them"
    long = "" if seconds is None else f", for {duration_text(seconds)}"
    grid, members = geometry.grid, members_of(description)
    joined = "" if members == 1 else f", an ensemble of {members}"
    return (
        f"{description['name']}{shipped}{joined}, epoch {description.get('epoch', '?')}, "
        f"trained on {patients} patients{how}{long}: {grid.size}³ voxels of {grid.spacing_mm:.3g} mm"
    )
