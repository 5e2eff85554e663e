"""What a checkpoint says of itself: the plain facts that a user of its weights must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from drr2ct.networks import ProgressiveCascade
from drr2ct.pipeline.checkpoints.files import CHECKPOINT_FORMAT, read_checkpoint
from drr2ct.pipeline.data.identity import ct_fingerprints
from drr2ct.pipeline.running.console import duration_text
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.pipeline.running.provenance import versions
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import HU_WINDOW


def describe(
    network: ProgressiveCascade,
    name: str,
    mode: str,
    datalists: Mapping[str, Sequence[Mapping[str, Any]]],
    started_from: str | Path | None = None,
) -> dict[str, Any]:
    """What a user of the weights must know, in plain types.

    Args:
        network: its configuration holds the geometry.
        name: of the configuration, as in ``list_networks``.
        mode: how CTs were put on the grid, ``cube`` or ``resize``.
        datalists: data lists by part; patients' names are kept, and of the training's CTs a hash of parts of the file,
            by which an evaluation knows them under another name.
        started_from: the checkpoint that the weights came from before this training; its patients were trained on too.

    Raises:
        InputError: as ``read_checkpoint``.
    """
    patients = {part: [str(item["patient"]) for item in items] for part, items in datalists.items()}
    # read by the process that writes the description, not by every one
    cts = ct_fingerprints(datalists.get("training", [])) if is_main_process() else []
    if started_from is not None:
        before = read_checkpoint(started_from)["description"]
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
    training = description.get("training")
    if training is None or training["seconds"] is None:
        return None
    before = training.get("began_with")
    earlier = 0.0 if before is None else training_seconds(before)
    return None if earlier is None else training["seconds"] + earlier


def network_sentence(description: Mapping[str, Any]) -> str:
    """Which network it is, and how and how long it was trained, in one line for the terminal."""
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    shipped = ", as shipped" if "released" in description else ""
    patients = len(description.get("patients", {}).get("training", []))
    seconds, vary = training_seconds(description), description.get("training", {}).get("vary", "off")
    how = "" if vary == "off" else f" and what variations {vary.replace('-', ' ')} make of them"
    long = "" if seconds is None else f", for {duration_text(seconds)}"
    grid = geometry.grid
    return (
        f"{description['name']}{shipped}, epoch {description.get('epoch', '?')}, "
        f"trained on {patients} patients{how}{long}: {grid.size}³ voxels of {grid.spacing_mm:.3g} mm"
    )
