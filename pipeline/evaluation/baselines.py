"""What a network's figures stand beside: above all what can be had without one, which a reconstruction must beat."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.data import MetaTensor
from rich.progress import track
from torch import Tensor, nn

from drr2ct.networks.cascade import ProgressiveCascade
from drr2ct.networks.interval import estimate_of, has_bounds
from drr2ct.networks.lifting import BackprojectionLift
from drr2ct.pipeline.data.datalist import ALL, load_datalist
from drr2ct.pipeline.data.identity import trained_on
from drr2ct.pipeline.evaluation.figures import FIGURES, INTERVAL_FIGURES
from drr2ct.pipeline.evaluation.intervals import interval_figures
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from drr2ct.pipeline.evaluation.protocol import (
    FORMAT,
    compare_all,
    number_text,
    patient_records,
    plain,
    read_patients,
    summarise_all,
)
from drr2ct.pipeline.evaluation.readable import unreadable
from drr2ct.pipeline.evaluation.structures import body_mask
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.transforms.attenuation import HU_BONE, LINE_INTEGRAL_SCALE, MU_BONE, MU_WATER
from drr2ct.transforms.files import write_csv, write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.volume import HU_WINDOW, to_hu

_THUMBNAIL = 64
_FILES = ("baselines.csv", "baselines.json")
logger = logging.getLogger(__name__)


def backproject(
    image: Float[Tensor, "views h w"], geometry: BiplanarGeometry, box_mm: Sequence[float] | None = None
) -> Float[Tensor, "1 n n n"]:
    """Unfiltered back-projection in HU: each line integral spread evenly along its ray's path through the grid.

    The views' attenuations are averaged (the first step of SART; Andersen & Kak, Ultrasonic Imaging 6, 1984).

    Args:
        image: line integrals divided by :data:`LINE_INTEGRAL_SCALE`.
        geometry: grid and views.
        box_mm: edges, along x, y and z, of the box around the isocentre that the grid's voxels fill, where that is not
            the geometry's cube (mode ``resize``).
    """
    rates = []
    fov = geometry.grid.fov_mm
    half = np.array([fov] * 3 if box_mm is None else box_mm, dtype=np.float64) / 2
    for radiograph, view in zip(image * LINE_INTEGRAL_SCALE, geometry.views, strict=True):
        rows, columns = view.detector_size
        u, v = view.detector_axes
        across = (np.arange(columns) - (columns - 1) / 2)[None, :, None] * view.pixel_pitch_mm * u
        down = (np.arange(rows) - (rows - 1) / 2)[:, None, None] * view.pixel_pitch_mm * v
        forward = -view.source_position / view.source_to_isocentre_mm
        direction = forward * view.source_to_detector_mm + across + down
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        with np.errstate(divide="ignore"):  # slabs: a ray along a face never meets the other pairs
            to_faces = np.stack([(side * half - view.source_position) / direction for side in (-1, 1)])
        path = to_faces.max(axis=0).min(axis=-1) - to_faces.min(axis=0).max(axis=-1)
        # rays that only graze the box would divide by nothing
        length = torch.from_numpy(np.maximum(path, geometry.grid.spacing_mm)).float()
        rates.append(radiograph.cpu().float() / length)
    lift = BackprojectionLift(geometry, geometry.grid.size, level=0)
    for line, edge in zip((lift.axis_x, lift.axis_y, lift.axis_z), 2 * half, strict=True):
        line.mul_(edge / fov)
    lifted = lift(torch.stack(rates)[None, :, None])[0]
    attenuation = lifted.mean(dim=0, keepdim=True)
    dense = (attenuation - MU_WATER) * (HU_BONE / (MU_BONE - MU_WATER))
    light = (attenuation / MU_WATER - 1) * 1000
    return torch.where(attenuation > MU_WATER, dense, light).clamp(*HU_WINDOW)


def _box_mm(truth: Tensor) -> list[float] | None:
    """Edges of the box that a volume fills, if it says."""
    if not isinstance(truth, MetaTensor):
        return None
    return [n * float(spacing) for n, spacing in zip(truth.shape[1:], truth.pixdim, strict=True)]


def _thumbnail(image: Float[Tensor, "views h w"]) -> Float[Tensor, "views h w"]:
    rows, columns = image.shape[1:]
    size = (min(rows, _THUMBNAIL), min(columns, _THUMBNAIL))
    return F.adaptive_avg_pool2d(image.cpu().float(), size)


Predictor = Callable[[Tensor], Tensor]
"""Radiographs (views, H, W) as the network is given them → a volume in [0, 1] over the HU window."""


def coarser_volumes(network: nn.Module) -> dict[str, Predictor]:
    """What a cascade gives without its finer stages: coarser volumes, upsampled to the same grid.

    ``coarser_stages`` lacks the finest stage, ``coarsest_stages`` all but the first that gives a volume, where that is
    less. They are the shipped coarser networks where their weights were kept while the finer stages were trained; a
    finer network must beat them, or its voxels hold nothing new.

    Args:
        network: a cascade, see ``drr2ct.networks``.

    Returns:
        By name: radiographs (views, H, W) → (1, N, N, N) in [0, 1] over the HU window.
    """
    finer = len(network.outputs) - 1 if isinstance(network, ProgressiveCascade) else 0
    found = {}
    if finer > 0:
        found["coarser_stages"] = _without_finest(network, 1)
    if finer > 1:
        found["coarsest_stages"] = _without_finest(network, finer)
    return found


def _without_finest(network: nn.Module, count: int) -> Predictor:
    coarser = copy.deepcopy(network).eval()
    assert isinstance(coarser, ProgressiveCascade)  # for the type checker
    coarser.interval = None
    for output in coarser.outputs[-count:]:
        for parameter in output.parameters():
            nn.init.zeros_(parameter)
    device = next(coarser.parameters()).device

    def predict(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return coarser(image.as_subclass(Tensor)[None].to(device).float())[0].cpu()

    return predict


def evaluate_baselines(
    test: Sequence[Mapping[str, Any]],
    training: Sequence[Mapping[str, Any]],
    load: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    geometry: BiplanarGeometry,
    figures: Sequence[str] = FIGURES,
    made_by: Mapping[str, Predictor] = MappingProxyType({}),
    with_bounds: bool = False,
) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of each baseline on the same patients: baseline → patient → figure → value.

    Args:
        test: data list items to judge on.
        training: items that may be learned from, those that cannot be read are left out; without any there
            is no ``mean_volume`` and no ``nearest_patient``.
        load: item → sample, see ``files_to_samples``.
        geometry: of the samples.
        figures: names, see ``ReconstructionMetric``.
        made_by: further ones, by name; see :func:`coarser_volumes`.
        with_bounds: judge bounds too, of those that have them.
    """
    metric = ReconstructionMetric(figures)
    mean: Tensor | None = None
    thumbnails, learned = [], []
    for item in track(training, "baselines: training patients", disable=not training):
        try:
            sample = load(item)
        except Exception as error:
            logger.warning("patient %s is left out of the baselines: %s", item["patient"], unreadable(error))
            continue
        learned.append(item)
        label = sample["label"].as_subclass(Tensor)
        mean = label.clone() if mean is None else mean.add_(label)
        thumbnails.append(_thumbnail(sample["image"]))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for item in track(test, "baselines: test patients"):
        sample = load(item)
        truth, patient = to_hu(sample["label"]), str(item["patient"])
        made = {"backprojection": backproject(sample["image"], geometry, _box_mm(truth))}
        made |= {name: to_hu(predict(sample["image"])) for name, predict in made_by.items()}
        if mean is not None:
            made["mean_volume"] = to_hu(mean / len(learned))
            own = _thumbnail(sample["image"])
            nearest = min(range(len(learned)), key=lambda i: float((thumbnails[i] - own).square().sum()))
            made["nearest_patient"] = to_hu(load(learned[nearest])["label"].as_subclass(Tensor))
        for name, volume in made.items():
            row = metric.compute(estimate_of(volume), truth)
            if with_bounds and has_bounds(volume):
                row |= interval_figures(volume, truth, body_mask(truth))
            found.setdefault(name, {})[patient] = row
    return found


def remove_baselines(output_dir: str | Path) -> None:
    """Remove what an evaluation before wrote of baselines, where this one judges none; one process does."""
    if is_main_process():
        for name in _FILES:
            (Path(output_dir) / name).unlink(missing_ok=True)


def write_baselines(
    output_dir: str | Path,
    dataset_dir: str | Path,
    description: Mapping[str, Any],
    test: Sequence[Mapping[str, Any]],
    load: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    geometry: BiplanarGeometry,
    network: nn.Module | None = None,
    beside: Mapping[str, Predictor] = MappingProxyType({}),
    with_bounds: bool = False,
) -> None:
    """Write ``baselines.csv`` and ``baselines.json`` beside an evaluation's ``patients.json``; one process does.

    Only patients that the checkpoint was trained on are learned from, in whichever part of the data set they are; where
    it holds none of them, there is no mean volume and no nearest patient.

    Args:
        output_dir: of the evaluation.
        dataset_dir: with the training's patients.
        description: what the checkpoint says of itself.
        test: items to judge on.
        load: item → sample.
        geometry: of the samples.
        network: that is judged; of a cascade of several outputs, its coarser volumes are baselines too.
        beside: what else is to stand beside it, by name.
        with_bounds: judge the bounds of those too.
    """
    if not is_main_process():
        return
    judged = {item["patient"] for item in test}
    everyone = load_datalist(dataset_dir, ALL, [view.name for view in geometry.views], on_bad_sample="skip")
    candidates = [item for item in everyone if item["patient"] not in judged]
    training = trained_on(description, candidates)
    made_by = {**beside, **(coarser_volumes(network) if network is not None else {})}
    found = evaluate_baselines(test, training, load, geometry, made_by=made_by, with_bounds=with_bounds)
    model = read_patients(output_dir)
    columns = (*FIGURES, *(INTERVAL_FIGURES if with_bounds and beside else ()))
    entries, rows = {}, []
    for name, figures in found.items():
        entries[name] = {
            "patients": patient_records(figures),
            "figures": plain(summarise_all(figures)),
            "gain": plain(compare_all(model, figures)),
        }
        for patient, row in figures.items():
            rows.append([name, patient, *(number_text(row[column]) if column in row else "" for column in columns)])
    table, records = (Path(output_dir) / name for name in _FILES)
    write_csv(table, ["baseline", "patient", *columns], rows)
    write_json(records, {"format": FORMAT, "baselines": entries})
