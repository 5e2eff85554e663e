"""An ensemble's members under the conditions of drr2ct robustness: each alone, their mean, and what they agree on.

python benchmarks/members.py --cts CTS [--model cascade64 | --checkpoint FILE] [--patients NAME …] [--conditions NAME …]
    [--alike 0.0005 0.002]

By default the shipped cascade64 on its own validation patients. PSNR in dB, 3-D, over −1024…1476 HU, means over the
patients; beside it how far each member is from the mean of the others (RMS over the volume, HU), and what it counts
(drr2ct.networks.ensemble). --alike: what they would agree on with other constants.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch
from film_training import GEOMETRY, label_of, psnr, under_conditions
from rich.progress import track
from rich.table import Table
from torch import Tensor

from drr2ct.networks import ProgressiveCascade
from drr2ct.networks.ensemble import AGREED, agreed_and_spread, distances_and_weights
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.checkpoints.shipped import chosen_weights
from drr2ct.pipeline.data.sample.cts import real_cts
from drr2ct.pipeline.running.console import wide_console
from drr2ct.transforms.volume import HU_WINDOW


def volumes_of(network: ProgressiveCascade, image: Tensor) -> list[Tensor]:
    """Each member's volume of radiographs (1, V, H, W), its own first."""
    own: list[Tensor] = []
    hook = network.outputs[0].register_forward_hook(lambda module, inputs, volume: own.append(volume))
    with torch.inference_mode():
        network(image)
        hook.remove()
        return [own[0], *(member(image) for member in network.members)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cts", type=Path, required=True, help="folder of real CTs")
    parser.add_argument("--model", default="cascade64", help="a shipped network")
    parser.add_argument("--checkpoint", type=Path, help="another")
    parser.add_argument("--patients", nargs="+", help="of the folder; by default the network's validation patients")
    parser.add_argument("--conditions", nargs="+", help="names; all by default")
    parser.add_argument("--alike", type=float, nargs="+", default=[], help=f"in place of {AGREED:g}")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = chosen_weights(arguments.checkpoint, None if arguments.checkpoint else arguments.model)
    content = read_checkpoint(path)
    description, network = content["description"], load_network(path, content=content)
    if not network.members or network.config.geometry.to_dict() != GEOMETRY.to_dict():
        parser.error(f"{path} is no ensemble of cascade64 on its own grid")
    cts = real_cts(arguments.cts)
    patients = arguments.patients or description["patients"].get("validation", [])
    if unknown := set(patients) - cts.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not in {arguments.cts}")
    count, width = 1 + len(network.members), HU_WINDOW[1] - HU_WINDOW[0]
    found: dict[str, list[list[float]]] = {}
    for patient in patients:
        each = under_conditions(cts[patient], description["radiographs"])
        for condition, image, label in track(each, patient):
            if arguments.conditions and condition.name not in arguments.conditions:
                continue
            volumes = volumes_of(network, image[None])
            joined = [torch.stack(volumes).mean(dim=0)]
            joined += [agreed_and_spread(volumes, alike)[0] for alike in (AGREED, *arguments.alike)]
            distances, weights = distances_and_weights(torch.stack(volumes), AGREED)
            figures = [psnr(volume[0].float(), label) for volume in (*volumes, *joined)]
            row = [*figures, *(distances[:, 0].sqrt() * width).tolist(), *weights[:, 0].tolist()]
            found.setdefault(label_of(condition), []).append(row)
    table = Table(title=f"{len(patients)} patients: {', '.join(patients)}")
    members = [str(number) for number in range(1, count + 1)]
    others = [f"agreed, {alike:g}" for alike in arguments.alike]
    names = [*(f"member {m}" for m in members), "mean", "agreed", *others]
    names += [*(f"{m}: HU" for m in members), *(f"{m}: counts" for m in members)]
    for name in ("condition", *names):
        table.add_column(name, justify="left" if name == "condition" else "right")
    scores = len(names) - 2 * count
    for name, rows in found.items():
        means = [mean(column) for column in zip(*rows, strict=True)]
        forms = [".2f"] * scores + [".0f"] * count + [".2f"] * count
        table.add_row(name, *(f"{value:{form}}" for value, form in zip(means, forms, strict=True)))
    wide_console().print(table)


if __name__ == "__main__":
    main()
