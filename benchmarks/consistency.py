"""What fitting a reconstruction to its radiographs gains, and when: patients under the conditions of drr2ct robustness.

python benchmarks/consistency.py --cts CTS [--model cascade64 | --checkpoint FILE …] [--patients NAME …]
    [--conditions NAME …] [--steps 1 2]

By default a shipped network's own validation patients, on whom the largest difference was chosen that is still fitted
(``drr2ct.pipeline.reconstruction.consistency``). Several checkpoints, such as film_training.py's of every group, are
judged together, each on the patients that it was not trained on. "difference" is that of the structures; PSNR is 3-D,
over −1024…1476 HU, on the network's own grid; "gain" is what every number of steps brings, also where none would be
made, and "as given" the first number's where it would be.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from film_training import label_of, psnr
from rich.progress import track
from rich.table import Table

from drr2ct.networks import ProgressiveCascade
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


def fits_of(
    network: ProgressiveCascade,
    statistics: dict[str, Any] | None,
    ct: Path,
    wanted: Sequence[str] | None,
    steps: Sequence[int],
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """A patient under each condition: difference, PSNR of the network's volume, gain of every number of steps."""
    geometry = network.config.geometry
    sample = files_to_samples(geometry, keep_metadata=False)({"patient": ct.parent.name, "label": str(ct)})
    clean, whole = sample["image"] * LINE_INTEGRAL_SCALE, LoadCT()(ct)
    for condition in track(conditions(geometry.grid.size, statistics is not None), ct.parent.name):
        if (wanted and condition.name not in wanted) or condition.name in ("grid", "isocentre"):  # of another truth
            continue
        image = taken_under(condition, whole, clean, geometry, statistics=statistics) / LINE_INTEGRAL_SCALE
        with torch.inference_mode():
            estimate = estimate_of(network(image[None]))[0].float()
        fits = [
            fit_to_radiographs(estimate, image, geometry, count, largest_difference=float("inf")) for count in steps
        ]
        score = psnr(estimate, sample["label"])
        gains = (psnr(volume, sample["label"]) - score for volume, _ in fits)
        yield label_of(condition), (fits[0][1].difference, score, *gains)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cts", type=Path, required=True, help="folder of real CTs")
    parser.add_argument("--model", default="cascade64", help="a shipped network")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], help="others")
    parser.add_argument(
        "--patients", nargs="+", help="of the folder; by default those that a network has not trained on"
    )
    parser.add_argument("--conditions", nargs="+", help="names; all by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cts = real_cts(arguments.cts)
    found: dict[str, list[tuple[float, ...]]] = {}
    judged: list[str] = []
    given = [chosen_weights(path, None) for path in arguments.checkpoint]
    for path in given or [chosen_weights(None, arguments.model)]:
        content = read_checkpoint(path)
        description = content["description"]
        network, parts = load_network(path, content=content), description["patients"]
        untrained = parts.get("validation") or [name for name in cts if name not in parts["training"]]
        patients = arguments.patients or untrained
        if unknown := set(patients) - cts.keys():
            parser.error(f"{', '.join(sorted(unknown))}: not in {arguments.cts}")
        for patient in patients:
            rows = fits_of(network, description.get("radiographs"), cts[patient], arguments.conditions, arguments.steps)
            for key, row in rows:
                found.setdefault(key, []).append(row)
        judged += patients
    table = Table(title=f"{len(judged)} patients; fitted up to a difference of {LARGEST_DIFFERENCE:.0%}")
    gains = (f"gain, steps: {steps}" for steps in arguments.steps)
    for column in ("condition", "difference", "PSNR, dB", *gains, "fitted", "as given"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    for name, every in found.items():
        difference, score, *gained = (mean(column) for column in zip(*every, strict=True))
        fitted = [row[2] if row[0] <= LARGEST_DIFFERENCE else 0.0 for row in every]
        share = sum(row[0] <= LARGEST_DIFFERENCE for row in every)
        shown = (f"{gain:+.2f}" for gain in gained)
        table.add_row(name, f"{difference:.0%}", f"{score:.2f}", *shown, str(share), f"{mean(fitted):+.2f}")
    wide_console().print(table)


if __name__ == "__main__":
    main()
