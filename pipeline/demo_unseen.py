"""What people come for: a real patient whom no shipped network has seen, from two radiographs, beside the true CT."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.checkpoints.description import network_sentence
from drr2ct.pipeline.checkpoints.files import read_checkpoint, weights_sha256
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.evaluation.metrics import ReconstructionMetric
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.pipeline.pictures.figures import save_figure
from drr2ct.pipeline.pictures.overview import overview_figure
from drr2ct.pipeline.reconstruction import reconstruct
from drr2ct.pipeline.reports.wording import figure_name, value_text
from drr2ct.pipeline.running.provenance import DISCLAIMER, versions
from drr2ct.pipeline.volumes.files import read_volume, write_volume
from drr2ct.pipeline.volumes.placing import place_on_grid
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.radiographs.write import write_radiograph

FIGURES = ("psnr", "ssim", "mae_hu", "dice_lung", "dice_bone")


def reconstruct_unseen(output: str | Path, weights: Path, console: Console) -> dict[str, float]:
    """Reconstruct the sample patient from radiographs alone and compare the volume with the CT.

    Written to ``output``: the radiographs, ``ct.nii.gz`` with its record, page and picture, ``true_ct.nii.gz`` on the
    same voxels, ``overview.png`` with both and the difference, ``summary.json``. If this was done before with the same
    weights, it is not done again.

    Args:
        output: a folder.
        weights: of a network.
        console: where it is said how it went.

    Returns:
        Figure → value, on the network's grid.
    """
    output, began = Path(output), time.monotonic()
    content = read_checkpoint(weights)
    description, digest = content["description"], weights_sha256(content["network"])
    summary = output / "summary.json"
    before = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    if before.get("weights_sha256") != digest:
        figures = _reconstruct(output, weights, description)
        about = {
            "note": DISCLAIMER,
            "patient": sample_ct().parent.name,
            "network": network_sentence(description),
            "weights_sha256": digest,
            "hu_window": list(DEFAULT_WINDOW),
            "seconds": time.monotonic() - began,
            "versions": versions(),
        }
        before = {**about, "figures": figures}
        write_json(summary, before)
    _tell(before, output, console)
    return dict(before["figures"])


def _reconstruct(output: Path, weights: Path, description: dict[str, Any]) -> dict[str, float]:
    patient = sample_ct().parent.name
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    item = {"patient": patient, "label": str(sample_ct())}
    sample: Any = files_to_samples(geometry, description["mode"])(item)  # renders the radiographs
    given = sample["image"] * LINE_INTEGRAL_SCALE
    radiographs = []
    for view, image in zip(geometry.views, given, strict=True):
        radiographs.append(output / f"{view.name}.nii.gz")
        write_radiograph(radiographs[-1], image, pitch_mm=view.pixel_pitch_mm)
    volume = output / "ct.nii.gz"
    reconstruct(weights, radiographs=radiographs, output=volume, patient=patient, preview=True, overwrite=True)
    truth, made = place_on_grid(sample["label"], geometry), read_volume(volume)
    write_volume(output / "true_ct.nii.gz", truth)
    figures = ReconstructionMetric(FIGURES).compute(made, MetaTensor(truth.as_tensor(), affine=truth.affine))
    title = f"{patient}, a real patient whom the network has never seen: {figures['psnr']:.1f} dB PSNR"
    save_figure(overview_figure(given, truth, made, geometry, title), output / "overview.png")
    return figures


def _tell(summary: dict[str, Any], output: Path, console: Console) -> None:
    low, high = DEFAULT_WINDOW
    table = Table(title=f"{summary['patient']} against the true CT, 3-D, HU window {low:.0f}…{high:.0f}")
    for name in FIGURES:
        table.add_column(figure_name(name), justify="right")
    table.add_row(*(value_text(summary["figures"][name], name) for name in FIGURES))
    console.print(table)
    for name, about in (
        ("overview.png", "radiographs, truth, reconstruction, error"),
        ("ct.html", "a page to look into the reconstruction"),
        ("ct.nii.gz", "the reconstruction in HU; true_ct.nii.gz lies beside it, open both in 3D Slicer or ITK-SNAP"),
    ):
        console.print(f"{output / name}  {about}", soft_wrap=True)
    console.print(f"{summary['seconds']:.0f} s for this patient. {DISCLAIMER}.", soft_wrap=True)
