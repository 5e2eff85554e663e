"""A bundle that ships what tests made: untrained networks, and the records of a run that did not happen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.running.bundle import bundle_file

PATIENTS = ("p0", "p1", "p2", "p3")
"""Of these, all but the last are trained on, and the last is validated on."""


def make_run(folder: Path, name: str = "cascade64", seed: int = 0, interval: bool = False, **config: Any) -> Path:
    """A finished run of three epochs that take 10, 20 and 30 s, and its best checkpoint, of epoch 2."""
    torch.manual_seed(seed)
    network = create_network(name, interval=interval)
    parts = {"training": PATIENTS[:-1], "validation": PATIENTS[-1:]}
    about = describe(network, name, "cube", {part: [{"patient": p} for p in names] for part, names in parts.items()})
    progress = {"epoch": 2, "iteration": 6, "metrics": {"psnr": 20.0}, "calibration": {"kept": [1.5, 2.5]}}
    content = {"network": network.state_dict(), "description": {**about, **progress}}
    write_checkpoint(folder / "checkpoints" / "best_psnr.pt", content)
    rows = ["epoch,phase,loss,psnr,ssim,lr,seconds,skipped"]
    for epoch in (1, 2, 3):
        rows += [f"{epoch},training,0.1,20,0.5,0.001,{10 * epoch},0", f"{epoch},validation,0.1,20,0.5,0.001,5,0"]
    (folder / "epochs.csv").write_text("\n".join(rows) + "\n")
    given = {
        "loss": {"terms": {"l1": 1.0, "reprojection": [0.1, {"_target_": "some"}]}},
        "batch_size": 1,
        "num_workers": 1,
        "seed": seed,
        "freeze": ["encoder.*"],
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(given))
    return folder


def make_bundle(folder: Path, patients: Sequence[str] = PATIENTS) -> Path:
    """A copy of the bundle that ships nothing yet, with attribution for some patients."""
    shutil.copytree(bundle_file("configs/train.yaml").parents[1], folder, ignore=lambda place, names: _shipped(names))
    collections = [{"name": "Made up", "doi": "10.1/x", "licence": "CC0", "patients": list(patients)}]
    sources = {"source": "Tests", "changes": "made up", "spacing_mm": 2.0, "collections": collections}
    (folder / "models" / "data.yaml").write_text(yaml.safe_dump(sources))
    return folder


def _shipped(names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if name.endswith((".safetensors", ".pt")) or (name.startswith(("cascade", "direct")) and name.endswith(".json"))
    ]


def make_evaluation(folder: Path, model: dict[str, Any], figures: dict[str, dict[str, float | None]]) -> Path:
    """The files of an evaluation that found this of these patients; the mean volume's PSNR is 10 dB on all."""
    folder.mkdir(parents=True)
    records = [{"patient": patient, "figures": row} for patient, row in figures.items()]
    (folder / "patients.json").write_text(json.dumps({"format": 1, "patients": records}))
    (folder / "summary.json").write_text(json.dumps({"format": 1, "model": model}))
    mean = {"patients": [{"patient": patient, "figures": {"psnr": 10.0}} for patient in figures]}
    (folder / "baselines.json").write_text(json.dumps({"format": 1, "baselines": {"mean_volume": mean}}))
    return folder
