"""What fitting a reconstruction to its radiographs gains, and when: patients under the conditions of drr2ct robustness.

python benchmarks/consistency.py --cts CTS [--model cascade64 | --checkpoint FILE] [--patients NAME …]
    [--conditions NAME …] [--steps 1 2]

By default the network's own validation patients, on whom the largest difference was chosen that is still fitted
(``drr2ct.pipeline.reconstruction.consistency``). "difference" is that of the structures; PSNR is 3-D, over
−1024…1476 HU, on the network's own grid; "gain" is what every number of steps brings, also where none would be made.
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
from drr2ct.pipeline.evaluation.conditions import conditions, taken_under
from drr2ct.pipeline.reconstruction.consistency import LARGEST_DIFFERENCE, fit_to_radiographs
from drr2ct.pipeline.running.console import wide_console
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.volume import LoadCT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cts", type=Path, required=True, help="folder of real CTs")
    parser.add_argument("--model", default="cascade64", help="a shipped network")
    parser.add_argument("--checkpoint", type=Path, help="another one")
    parser.add_argument("--patients", nargs="+", help="of the folder; by default the network's validation")
    parser.add_argument("--conditions", nargs="+", help="names; all by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = chosen_weights(arguments.checkpoint, None if arguments.checkpoint else arguments.model)
    description = read_checkpoint(path)["description"]
    network = load_network(path).eval()
    geometry, statistics = network.config.geometry, description.get("radiographs")
    read = files_to_samples(geometry, keep_metadata=False)
    cts = real_cts(arguments.cts)
    patients = arguments.patients or description["patients"]["validation"]
    if unknown := set(patients) - cts.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not in {arguments.cts}")
    found: dict[str, list[tuple[float, ...]]] = {}
    for patient in patients:
        sample = read({"patient": patient, "label": str(cts[patient])})
        clean, whole = sample["image"] * LINE_INTEGRAL_SCALE, LoadCT()(cts[patient])
        for condition in track(conditions(geometry.grid.size, statistics is not None), patient):
            wanted = arguments.conditions is None or condition.name in arguments.conditions
            if not wanted or condition.name in ("grid", "isocentre"):  # these are of another truth
                continue
            image = taken_under(condition, whole, clean, geometry, statistics=statistics) / LINE_INTEGRAL_SCALE
            with torch.inference_mode():
                estimate = estimate_of(network(image[None]))[0].float()
            fits = [
                fit_to_radiographs(estimate, image, geometry, steps, largest_difference=float("inf"))
                for steps in arguments.steps
            ]
            scores = [psnr(volume, sample["label"]) for volume in (estimate, *(volume for volume, _ in fits))]
            value = "" if condition.value is None else f" {condition.value:g} {condition.unit}"
            row = (fits[0][1].difference, scores[0], *(score - scores[0] for score in scores[1:]))
            found.setdefault(condition.name + value, []).append(row)
    table = Table(title=f"{path.name}, {len(patients)} patients; fitted up to a difference of {LARGEST_DIFFERENCE:.0%}")
    for column in ("condition", "difference", "PSNR, dB", *(f"gain, steps: {steps}" for steps in arguments.steps)):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for name, rows in found.items():
        difference, score, *gains = (mean(column) for column in zip(*rows, strict=True))
        table.add_row(name, f"{difference:.0%}", f"{score:.2f}", *(f"{gain:+.2f}" for gain in gains))
    wide_console().print(table)


if __name__ == "__main__":
    main()
