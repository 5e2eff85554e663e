"""How well a network does on the patients that it was trained on, beside those that it has never seen.

python benchmarks/fit.py --cts CTS [--model cascade64 | --checkpoint FILE] [--threads 1]

If patients of the training are no better than others, more patients are not what is missing: more training is, or a
wider network. `drr2ct evaluate` refuses patients of the training, since what it writes is to be believed; this prints
only.
Radiographs are rendered undeformed; PSNR is 3-D, over −1024…1476 HU, on the network's own grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch
from film_training import psnr
from rich.progress import track
from rich.table import Table

from drr2ct.networks.interval import estimate_of
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.checkpoints.shipped import chosen_weights
from drr2ct.pipeline.data.sample.cts import real_cts
from drr2ct.pipeline.running.console import wide_console
from drr2ct.transforms.preprocessing import files_to_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cts", type=Path, required=True, help="folder of real CTs")
    parser.add_argument("--model", default="cascade64", help="a shipped network")
    parser.add_argument("--checkpoint", type=Path, help="another one")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = chosen_weights(arguments.checkpoint, None if arguments.checkpoint else arguments.model)
    parts = read_checkpoint(path)["description"]["patients"]
    network = load_network(path).eval()
    read = files_to_samples(network.config.geometry, keep_metadata=False)
    found: dict[str, list[tuple[float, str]]] = {}
    for patient, ct in track(real_cts(arguments.cts).items(), "patients"):
        sample = read({"patient": patient, "label": str(ct)})
        with torch.inference_mode():
            estimate = estimate_of(network(sample["image"][None]))[0]
        part = next((name for name, patients in parts.items() if patient in patients), "unseen")
        found.setdefault(part, []).append((psnr(estimate, sample["label"]), patient))
    table = Table(title=f"{path.name}: PSNR, dB")
    for column in ("patients", "number", "mean", "worst", "best"):
        table.add_column(column, justify="left" if column == "patients" else "right")
    for part, scores in found.items():
        (low, worst), (high, best) = min(scores), max(scores)
        middle = mean(score for score, _ in scores)
        table.add_row(part, str(len(scores)), f"{middle:.2f}", f"{low:.2f} ({worst})", f"{high:.2f} ({best})")
    wide_console().print(table)


if __name__ == "__main__":
    main()
