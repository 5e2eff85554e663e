"""The patients that a report shows: which ones, and their volumes and radiographs."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor

from drr2ct.networks.interval import estimate_of, has_bounds
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import ALL, load_datalist
from drr2ct.pipeline.evaluation.readable import unreadable
from drr2ct.pipeline.pictures.radiographs import with_reprojection
from drr2ct.pipeline.reports.runs import Figures, Run
from drr2ct.pipeline.volumes.files import read_volume
from drr2ct.pipeline.volumes.placing import half_width, place_bounds, place_on_grid
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)

AT_ONCE = 2
"""Patients that are read at the same time: what each takes is memory."""


@dataclass(frozen=True)
class Case:
    """One patient to show: volumes in HU on the network's grid (the doubt ± HU), radiographs as pictures show them."""

    patient: str
    rank: str
    truth: MetaTensor
    prediction: MetaTensor
    doubt: MetaTensor | None
    given: torch.Tensor
    reprojected: torch.Tensor


def choose_patients(figures: Figures, figure: str = "psnr") -> dict[str, str]:
    """Rank (``Best``, ``Median``, ``Worst``) → patient, by a figure where more is better; fewer for few patients."""
    order = sorted((p for p in figures if not math.isnan(figures[p][figure])), key=lambda p: figures[p][figure])
    if not order:
        return {}
    chosen = {"Median": order[len(order) // 2]}
    if len(order) > 1:
        chosen = {"Best": order[-1], **chosen, "Worst": order[0]}
    return {rank: p for i, (rank, p) in enumerate(chosen.items()) if p not in list(chosen.values())[:i]}


def load_cases(run: Run, chosen: Mapping[str, str], dataset_dir: str | Path | None = None) -> list[Case]:
    """Reconstruct the chosen patients, or take their stored predictions where those lie on the network's grid.

    One that cannot be read is named and left out.

    Args:
        run: whose network it is.
        chosen: rank → patient.
        dataset_dir: folder of patient folders; the training's own by default.

    Raises:
        InputError: if the data set or a patient is missing.
    """
    dataset_dir = dataset_dir or run.config.get("dataset_dir")
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        raise InputError(f"data set {dataset_dir} of run {run.folder} does not exist; give --dataset.")
    views = [view.name for view in run.geometry.views]
    items = {item["patient"]: item for item in load_datalist(dataset_dir, ALL, views, on_bad_sample="skip")}
    load = files_to_samples(
        run.geometry,
        run.description["mode"],
        run.config.get("intensity", "line_integral"),
        run.config.get("feet_first", False),
    )
    for patient in chosen.values():
        if patient not in items:
            raise InputError(f"patient {patient} of {run.evaluation} is not in data set {dataset_dir}; give --dataset.")

    # bounds are not stored on the network's grid
    doubtful = bool(run.description["config"].get("interval"))
    opened = cache(lambda: load_network(run.checkpoint))

    def load_case(rank: str, patient: str) -> Case | None:
        try:
            sample = load(items[patient])
        except Exception as error:
            logger.warning("patient %s is not shown: %s", patient, unreadable(error))
            return None
        truth = place_on_grid(sample["label"], run.geometry, sample["label"])
        prediction = None if doubtful else _stored_prediction(run, patient, truth)
        doubt = None
        if prediction is None:
            with torch.inference_mode():
                output = opened()(sample["image"][None])[0].clone()
            place = partial(place_on_grid, geometry=run.geometry, label=sample["label"])
            prediction = place(estimate_of(output))
            if has_bounds(output):
                doubt = half_width(place_bounds(place, output))
        given = sample["image"] * LINE_INTEGRAL_SCALE
        return Case(patient, rank, truth, prediction, doubt, *with_reprojection(given, prediction, run.geometry))

    with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        return [case for case in pool.map(load_case, *zip(*chosen.items(), strict=True)) if case is not None]


def _stored_prediction(run: Run, patient: str, truth: MetaTensor) -> MetaTensor | None:
    path = run.evaluation / "predictions" / patient / f"{patient}_ct.nii.gz"
    if not path.is_file():
        return None
    volume = read_volume(path)
    same = volume.shape == truth.shape and np.allclose(np.asarray(volume.affine), np.asarray(truth.affine), atol=1e-2)
    return volume if same else None
