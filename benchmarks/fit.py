"""How well a network does on the patients that it was trained on, beside those that it has never seen.

python benchmarks/fit.py --cts CTS [--model cascade64 | --checkpoint FILE …] [--threads 1]

If patients of the training are no better than others, more patients are not what is missing: more training is, or a
wider network. But some patients are easier than others. Of several checkpoints, trained without different patients
(such as those of leave_out.py), the last row has the same patients as some were trained on them and others were not.
`drr2ct evaluate` refuses patients of the training, since what it writes is to be believed; this prints only.
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


def scores(path: Path, cts: dict[str, Path]) -> dict[str, tuple[str, float]]:
    """Of each patient: the part of the training's data set that it was in, or unseen; PSNR, dB."""
    content = read_checkpoint(path)
    parts, network = content["description"]["patients"], load_network(path, content=content)
    read = files_to_samples(network.config.geometry, keep_metadata=False)
    found = {}
    for patient, ct in track(cts.items(), path.name):
        sample = read({"patient": patient, "label": str(ct)})
        with torch.inference_mode():
            estimate = estimate_of(network(sample["image"][None]))[0]
        part = next((name for name, patients in parts.items() if patient in patients), "unseen")
        found[patient] = (part, psnr(estimate, sample["label"]))
    return found


def add_row(table: Table, title: str, found: dict[str, float]) -> None:
    """Of patients: mean, least and most."""
    worst, best = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    cells = [f"{mean(found.values()):.2f}", f"{found[worst]:.2f} ({worst})", f"{found[best]:.2f} ({best})"]
    table.add_row(title, str(len(found)), *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cts", type=Path, required=True, help="folder of real CTs")
    parser.add_argument("--model", default="cascade64", help="a shipped network")
    parser.add_argument("--checkpoint", type=Path, nargs="+", help="others")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cts = real_cts(arguments.cts)
    table = Table(title="PSNR, dB")
    for column in ("patients", "number", "mean", "worst", "best"):
        table.add_column(column, justify="left" if column == "patients" else "right")
    known: dict[str, list[float]] = {}
    strange: dict[str, list[float]] = {}
    for path in arguments.checkpoint or [chosen_weights(None, arguments.model)]:
        found = scores(path, cts)
        for patient, (part, value) in found.items():
            (known if part == "training" else strange).setdefault(patient, []).append(value)
        for part in dict.fromkeys(part for part, _ in found.values()):
            own = {patient: value for patient, (where, value) in found.items() if where == part}
            add_row(table, f"{part}, {path}", own)
        table.add_section()
    if both := [patient for patient in cts if patient in known and patient in strange]:
        for title, values in (("trained on", known), ("not trained on", strange)):
            add_row(table, f"the same, {title}", {patient: mean(values[patient]) for patient in both})
        gained = {patient: mean(known[patient]) - mean(strange[patient]) for patient in both}
        add_row(table, "gained by having been trained on", gained)
    wide_console().print(table)


if __name__ == "__main__":
    main()
