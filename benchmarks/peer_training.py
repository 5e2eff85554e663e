"""Trains one network for ``peers.py`` in a process of its own: a job on standard input, JSON on standard output.

A finished training is a file for each patient it is judged on. Lines that begin with the mark tell how far it is, what
could not be trained, or that a checkout cannot be used; all else is what other projects print.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cascades import (
    INFERER,
    MEAN,
    Budget,
    Fold,
    cohort_fold,
    fit,
    judged,
    mean_volume,
    patient_folds,
)
from monai.utils import set_determinism
from peer_adapters import Ours
from peer_checkouts import PEERS, Peer, UnusableError, decayed, load
from torch import nn

from drr2ct.transforms.files import write_json

MARK = "@peers "
TOLD = 10
"""Lines about a training on its way."""


def tell(**what: str) -> None:
    print(MARK + json.dumps(what), flush=True)


def fold_of(job: dict[str, Any]) -> Fold:
    """The samples that a job trains on and is judged on."""
    folder = Path(job["output"])
    if not job["cts"]:
        return cohort_fold(folder, job["training"], job["seed"])
    cts = {patient: Path(ct) for patient, ct in job["cts"].items()}
    return next(patient_folds(cts, folder, job["training"], [job["group"]]))


def network_of(job: dict[str, Any]) -> tuple[nn.Module, Any, float]:
    """An untrained network, its optimiser and its own rate; the same for the same seed."""
    set_determinism(job["seed"], use_deterministic_algorithms=False)
    if not job["checkout"]:
        return Ours(), decayed, 1e-3
    peer: Peer = PEERS[job["network"]]
    return load(peer, Path(job["checkout"])), peer.optimizer, peer.rate


def train(job: dict[str, Any], fold: Fold, row: str, times: float) -> dict[str, dict[str, Any]]:
    """Train at so many times the network's own rate; what the table needs, for each that it is judged on."""
    network, optimizer, rate = network_of(job)
    told = 0

    def progress(used: float, steps: int) -> None:
        nonlocal told
        if (share := min(budget.share(used, steps), 1.0)) * TOLD >= told + 1:
            told = int(share * TOLD)
            tell(progress=f"{row}: {used:.0f} core-seconds, {steps} steps")

    budget = Budget(job["seconds"], job["steps"], time.process_time)
    trained = fit(
        network,
        lambda image, label: INFERER(image, network.loss, label),
        optimizer(network.parameters(), rate * times),
        fold.training(job["data"], job["seed"]),
        budget,
        row,
        progress,
    )
    return judged(network, fold, {**trained, "curve": [], "rate": rate * times})


def run(job: dict[str, Any]) -> None:
    """Train what the job names, and keep it."""
    torch.set_num_threads(1)
    if job["checkout"]:
        try:
            network_of(job)  # before the samples are made
        except UnusableError as error:
            tell(unusable=str(error))
            return
    fold = fold_of(job)
    for row, times in job["rows"].items():
        try:
            rows = mean_volume(fold) if row == MEAN else train(job, fold, row, times)
        except (Exception, SystemExit) as error:
            tell(failed=f"{row}: {type(error).__name__}: {' '.join(str(error).split())}")
            continue
        for patient, figures in rows.items():
            write_json(Path(job["output"]) / "results" / row / f"{patient}.json", {**figures, **job["kept"]})
            tell(progress=f"{patient}  {row}: {figures['psnr']:.2f} dB after {figures['steps']} steps")


if __name__ == "__main__":
    run(json.load(sys.stdin))
