"""What a checkpoint says of itself: the plain facts that a user of its weights must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drr2ct.networks import ProgressiveCascade
from drr2ct.pipeline.checkpoints.files import CHECKPOINT_FORMAT, read_checkpoint
from drr2ct.pipeline.data.identity import ct_fingerprints
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.pipeline.running.provenance import versions
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
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
        "training_cts": cts,
        "versions": versions(),
    }
