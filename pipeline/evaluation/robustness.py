"""How a trained network bears what real radiographs bring; :mod:`~drr2ct.pipeline.evaluation.conditions` lists it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from drr2ct.networks.interval import estimate_of
from drr2ct.pipeline.checkpoints.description import network_sentence
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.evaluation.conditions import Condition, conditions, taken_under, with_isocentre_off
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from drr2ct.pipeline.evaluation.protocol import FORMAT, by_patient, model_facts, patient_records, refuse_leakage
from drr2ct.pipeline.evaluation.readable import LEFT_OUT, name_left_out, read_steps, unreadable
from drr2ct.pipeline.evaluation.statistics import compare_paired
from drr2ct.pipeline.running.faults import refuse_missing_device
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import refuse_unwritable, write_csv, write_json
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.volume import to_hu

ROBUSTNESS_FIGURES = ("psnr", "ssim", "mae_hu", "psnr_body")

TABLE, RECORDS = "robustness.csv", "robustness.json"

logger = logging.getLogger(__name__)


def run_robustness(
    dataset_dir: str | Path,
    checkpoint: str | Path,
    output_dir: str | Path,
    part: str = "test",
    split: tuple[Sequence[float], int] = ((0.8, 0.1, 0.1), 0),
    device: str = "cpu",
    seed: int = 0,
) -> list[dict[str, str]]:
    """Evaluate a checkpoint under every condition; write ``robustness.csv`` and ``robustness.json``.

    Radiographs are rendered from the CT files, so that only the condition differs.

    Returns:
        The rows of the CSV file.

    Raises:
        InputError: for unusable input or output, if a patient was trained on, or if none can be read; others that
            cannot are named in ``left_out.csv``.
    """
    refuse_unwritable(Path(output_dir) / name for name in (TABLE, RECORDS, LEFT_OUT))
    refuse_missing_device(device)
    content = read_checkpoint(checkpoint)
    network = load_network(checkpoint, device, content)
    description = content["description"]
    print(network_sentence(description))
    mode = description["mode"]
    geometry = network.config.geometry
    listed = load_datalist(dataset_dir, part, [view.name for view in geometry.views], *split, "skip")
    refuse_leakage(checkpoint, description, listed)
    to_sample = files_to_samples(geometry, mode)
    items = [{key: value for key, value in item.items() if key != "image"} for item in listed]
    statistics = description.get("radiographs")
    if statistics is None:
        logger.warning(
            "%s holds no statistics of the training's radiographs: reading pictures is not measured.", checkpoint
        )
    metric = ReconstructionMetric(ROBUSTNESS_FIGURES)
    todo = conditions(geometry.grid.size, statistics is not None)
    to_other_grid = files_to_samples(geometry.resized(size=geometry.grid.size // 2), mode)
    read = read_steps(to_sample)

    def reconstruct(image: Tensor) -> Tensor:
        with torch.no_grad():
            return to_hu(estimate_of(network(image[None].to(device))[0]).float().cpu())

    found: dict[Condition, dict[str, dict[str, float]]] = {condition: {} for condition in todo}
    left_out: list[tuple[str, str]] = []
    for number, item in enumerate(track(items, "robustness: patients")):
        patient = str(item["patient"])
        try:
            loaded: Any = to_sample(item, end=read)  # the file is read once for all conditions
        except Exception as error:
            left_out.append((patient, unreadable(error)))
            continue
        clean: Any = to_sample(loaded, start=read)
        truth = to_hu(clean["label"])
        whole = reconstruct(clean["image"])
        for condition in todo:
            if condition.name == "grid":
                size = [int(condition.value or 0)] * 3
                resampled = F.interpolate(whole[None], size=size, mode="trilinear", antialias=False)[0]
                coarse: Any = to_other_grid({**loaded, "image": clean["image"]}, start=read)
                found[condition][patient] = metric.compute(resampled, to_hu(coarse["label"]))
                continue
            if condition.name == "isocentre":  # the truth goes with it
                off = with_isocentre_off(loaded["label"], condition.value or 0.0)
                elsewhere: Any = to_sample({**loaded, "label": off}, start=read)
                made = reconstruct(elsewhere["image"])
                found[condition][patient] = metric.compute(made, to_hu(elsewhere["label"]))
                continue
            image = clean["image"] * LINE_INTEGRAL_SCALE
            changed = taken_under(condition, loaded["label"], image, geometry, seed + number, statistics)
            made = whole if condition.name == "clean" else reconstruct(changed / LINE_INTEGRAL_SCALE)
            found[condition][patient] = metric.compute(made, truth)
    name_left_out(left_out, len(items), output_dir)
    about = {"part": part, "model": model_facts(checkpoint, description, content["network"])}
    return _write(Path(output_dir), found, todo[0], about)


def _write(
    folder: Path, found: dict[Condition, dict[str, dict[str, float]]], clean: Condition, about: dict[str, Any]
) -> list[dict[str, str]]:
    rows, records = [], []
    for condition, figures in found.items():
        means = {name: float(np.nanmean([row[name] for row in figures.values()])) for name in ROBUSTNESS_FIGURES}
        # scores on two grids are of two tasks: their difference is neither gain nor loss
        scores = by_patient(figures, "psnr"), by_patient(found[clean], "psnr")
        difference = None if condition.name == "grid" else compare_paired("psnr", *scores)
        change = None if difference is None else asdict(difference)
        value = "" if condition.value is None else f"{condition.value:g}"
        rows.append(
            {
                "condition": condition.name,
                "value": value,
                "unit": condition.unit,
                "patients": str(len(figures)),
                **{name: f"{mean:.6g}" for name, mean in means.items()},
                "psnr_change": "" if change is None else f"{change['difference']:.6g}",
            }
        )
        which = {"condition": condition.name, "value": condition.value, "unit": condition.unit}
        records.append({**which, "patients": patient_records(figures), "means": means, "psnr_change": change})
    write_csv(folder / TABLE, list(rows[0]), [list(row.values()) for row in rows])
    write_json(folder / RECORDS, {"format": FORMAT, **about, "conditions": records})
    return rows
