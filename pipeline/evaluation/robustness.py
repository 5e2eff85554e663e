"""How a trained network bears what real radiographs bring: other angles, noise, blur, exposure, another grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from monai.networks.layers import GaussianFilter
from rich.progress import track
from torch import Tensor

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from drr2ct.pipeline.evaluation.protocol import FORMAT, by_patient, patient_records, refuse_leakage
from drr2ct.pipeline.evaluation.similarity import SMALLEST_GRID
from drr2ct.pipeline.evaluation.statistics import compare_paired
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE, transmission_to_line_integral
from drr2ct.transforms.drr import RenderDRR
from drr2ct.transforms.files import write_csv, write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCTd, to_hu

ROBUSTNESS_FIGURES = ("psnr", "ssim", "mae_hu", "psnr_body")

Radiographs = Float[Tensor, "views h w"]


@dataclass(frozen=True)
class Condition:
    """One thing changed: its name, by how much, and in what unit."""

    name: str
    value: float | None = None
    unit: str = ""


def conditions(grid_size: int) -> tuple[Condition, ...]:
    """Every condition of the table; the second grid has half the voxels along each axis, if SSIM's window fits it."""
    half = grid_size // 2
    return (
        Condition("clean"),
        *(Condition("view_angle", angle, "deg") for angle in (-5.0, -2.0, -1.0, 1.0, 2.0, 5.0)),
        *(Condition("photons", count, "per pixel") for count in (1e5, 1e4, 1e3)),
        *(Condition("blur", sigma, "mm") for sigma in (1.0, 2.0, 4.0)),
        *(Condition("exposure", factor, "times") for factor in (0.5, 0.8, 1.25, 2.0)),
        *((Condition("grid", half, "voxels"),) if half >= SMALLEST_GRID else ()),
    )


def turned(geometry: BiplanarGeometry, angle_deg: float) -> BiplanarGeometry:
    """The geometry with its last view taken at another gantry angle."""
    last = geometry.views[-1]
    return BiplanarGeometry(
        geometry.grid,
        (*geometry.views[:-1], replace(last, gantry_angle_deg=last.gantry_angle_deg + angle_deg)),
    )


def degrade(
    line_integrals: Radiographs, condition: Condition, pitches_mm: Sequence[float], seed: int = 0
) -> Radiographs:
    """Radiographs under ``photons``, ``blur`` or ``exposure``; as they are under any other condition.

    Args:
        line_integrals: of the views.
        condition: which change.
        pitches_mm: edge length of a pixel on the detector, of each view.
        seed: of the noise.
    """
    value = condition.value or 0.0
    if condition.name == "photons":
        generator = torch.Generator().manual_seed(seed)
        counts = torch.poisson(value * torch.exp(-line_integrals), generator)
        return transmission_to_line_integral(counts, value, 0.5)
    if condition.name == "blur":
        # the detector sees intensities, so these are blurred, with the border continued
        views = []
        for view, pitch_mm in zip(line_integrals, pitches_mm, strict=True):
            sigma = value / pitch_mm
            border = int(4 * sigma) + 1
            padded = F.pad(torch.exp(-view)[None, None], [border] * 4, mode="replicate")
            views.append(-torch.log(GaussianFilter(2, sigma)(padded)[0, 0, border:-border, border:-border]))
        return torch.stack(views)
    if condition.name == "exposure":
        return transmission_to_line_integral(value * torch.exp(-line_integrals), 1.0, 1e-12)
    return line_integrals


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
        InputError: for unusable input, or if a patient was trained on.
    """
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"device {device!r} is not to be had here; choose cpu, or cuda on a machine with a GPU.")
    network = load_network(checkpoint, device)
    description = read_checkpoint(checkpoint)["description"]
    mode = description["mode"]
    geometry = network.config.geometry
    items = load_datalist(dataset_dir, part, [view.name for view in geometry.views], *split)
    refuse_leakage(checkpoint, description, items)
    items = [{key: value for key, value in item.items() if key != "image"} for item in items]
    pitches_mm = [view.pixel_pitch_mm for view in geometry.views]
    metric = ReconstructionMetric(ROBUSTNESS_FIGURES)
    todo = conditions(geometry.grid.size)
    to_sample = files_to_samples(geometry, mode)
    to_other_grid = files_to_samples(geometry.resized(size=geometry.grid.size // 2), mode)
    read = 1 + next(i for i, step in enumerate(to_sample.transforms) if isinstance(step, LoadCTd))
    # views other than the last stay as they are
    renderers = {
        c: RenderDRR(BiplanarGeometry(geometry.grid, turned(geometry, c.value or 0.0).views[-1:]))
        for c in todo
        if c.name == "view_angle"
    }

    def reconstruct(image: Tensor) -> Tensor:
        with torch.no_grad():
            return to_hu(network(image[None].to(device))[0].float().cpu())

    found: dict[Condition, dict[str, dict[str, float]]] = {condition: {} for condition in todo}
    for number, item in enumerate(track(items, "robustness: patients")):
        patient = str(item["patient"])
        loaded: Any = to_sample(item, end=read)  # the file is read once for all conditions
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
            image = clean["image"] * LINE_INTEGRAL_SCALE
            if condition in renderers:
                image = torch.cat([image[:-1], renderers[condition](loaded["label"]).as_tensor()])
            changed = degrade(image, condition, pitches_mm, seed + number)
            made = whole if condition.name == "clean" else reconstruct(changed / LINE_INTEGRAL_SCALE)
            found[condition][patient] = metric.compute(made, truth)
    return _write(Path(output_dir), found, todo[0])


def _write(folder: Path, found: dict[Condition, dict[str, dict[str, float]]], clean: Condition) -> list[dict[str, str]]:
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
        about = {"condition": condition.name, "value": condition.value, "unit": condition.unit}
        records.append({**about, "patients": patient_records(figures), "means": means, "psnr_change": change})
    write_csv(folder / "robustness.csv", list(rows[0]), [list(row.values()) for row in rows])
    write_json(folder / "robustness.json", {"format": FORMAT, "conditions": records})
    return rows
