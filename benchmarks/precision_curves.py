"""Train the same small cascade in fp32, bf16 and, on CUDA, fp16, and compare the curves: same seed, data and order.

    python benchmarks/precision_curves.py [--epochs 30] [--device cpu] [--json FILE]

The figures are, over the second half of the epochs, the largest difference from fp32 in validation PSNR (dB) and in
training loss (relative). The command fails if one is outside of its band. fp16 is left out on a CPU: there is no loss
scaling there, and choose_precision refuses it.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from pathlib import Path
from typing import Any

from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.running.bundle import bundle_file, run_bundle
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid

SIZE, DETECTOR = 32, 64
PSNR_BAND_DB = 0.5
LOSS_BAND = 0.05


def curve(data: Path, output: Path, precision: str, device: str, epochs: int) -> dict[str, list[float]]:
    """Training loss and validation PSNR by epoch."""
    settings: dict[str, Any] = {
        "dataset_dir": str(data),
        "output_dir": str(output),
        "cache_dir": str(data / "cache"),
        "device": f"$torch.device('{device}')",
        "size": SIZE,
        "detector_size": DETECTOR,
        "precision": precision,
        "num_workers": 0,
        "learning_rate": 1e-3,
        "train#trainer#max_epochs": epochs,
        "network_def#stages": [
            {"channels": 16, "scale": 1, "growth": 8, "layers": 2, "lift_channels": 8},
            {"channels": 16, "growth": 8, "layers": 2, "lift_channels": 8},
        ],
        "network_def#encoder_channels": [8, 16],
        "network_def#encoder_norm_groups": [4],
    }
    run_bundle([bundle_file(f"configs/{name}.yaml") for name in ("train", "networks/cascade64")], settings)
    with (output / "epochs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "loss": [float(row["loss"]) for row in rows if row["phase"] == "training"],
        "psnr": [float(row["psnr"]) for row in rows if row["phase"] == "validation"],
    }


def main() -> None:
    """Print the figures; status 1 if a curve leaves its band."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write curves and figures to this file")
    arguments = parser.parse_args()
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    precisions = ["fp32", "bf16", *(["fp16"] if arguments.device.startswith("cuda") else [])]
    geometry = BiplanarGeometry.from_angles(VolumeGrid(SIZE), detector_size=DETECTOR)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_cohort(data, CohortPlan((sample_ct(),), geometry, 12, 3, 1))
        curves = {
            name: curve(data, Path(folder) / name, name, arguments.device, arguments.epochs) for name in precisions
        }

    half = arguments.epochs // 2
    reference = curves["fp32"]
    figures = {}
    print(f"{'precision':10} {'final loss':>10} {'final PSNR':>11} {'PSNR off by':>12} {'loss off by':>12}")
    for name, found in curves.items():
        off_db = max(abs(a - b) for a, b in zip(found["psnr"][half:], reference["psnr"][half:], strict=True))
        off = max(abs(a / b - 1) for a, b in zip(found["loss"][half:], reference["loss"][half:], strict=True))
        figures[name] = {"loss": found["loss"][-1], "psnr": found["psnr"][-1], "off_db": off_db, "off_loss": off}
        print(f"{name:10} {found['loss'][-1]:10.5f} {found['psnr'][-1]:8.2f} dB {off_db:9.3f} dB {100 * off:10.2f} %")
    print(f"bands: {PSNR_BAND_DB} dB, {100 * LOSS_BAND:g} %, over epochs {half + 1} to {arguments.epochs}")
    if arguments.json is not None:
        write_json(arguments.json, {"figures": figures, "curves": curves})
    if any(f["off_db"] > PSNR_BAND_DB or f["off_loss"] > LOSS_BAND for f in figures.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
