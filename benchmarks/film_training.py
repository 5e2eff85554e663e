"""What training on random films costs on clean DRRs, and what it saves under each condition: a table.

python benchmarks/film_training.py --output DIR --cts DIR [--seconds 600] [--groups 4] [--variations 75] [--steps 0]
    [--arms plain films] [--recipe FILE] [--seed 0] [--threads 1]

Patients of DIR (and the sample) are left out in groups. For each group, cascade64 is trained on the same variations of
all the others, for the same core-seconds: once with the radiographs that the variations were rendered to (plain), once
with films of them, as the bundle's recipe draws them (films): pose and breathing when a variation is rendered,
everything else anew in every step, whose time counts. --arms plain films later trains a third, as plain for the first
half of the time and as films for the second; --arms plain members an ensemble of two on films and one plain, each for a
third of the time. All are judged on the patients left out, undeformed, under every condition of drr2ct robustness.

Variations (one file for each patient), networks (a checkpoint for each arm and group) and results (one for each arm and
patient) stay in DIR and are not made again, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cascades import GEOMETRY, INFERER, VARIANTS, Budget, descend, predict
from claims import otherwise_claimed
from monai.bundle import ConfigParser
from monai.metrics import PSNRMetric
from monai.transforms import Compose
from monai.utils import convert_to_tensor, set_determinism
from rich.console import Console as Screen
from rich.progress import track
from rich.table import Table
from torch import Tensor

from drr2ct.networks import ProgressiveCascade
from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.ensemble import with_members
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.data.loading import derived_seed
from drr2ct.pipeline.data.sample.cts import real_cts
from drr2ct.pipeline.evaluation.conditions import Condition, conditions, taken_under, with_isocentre_off
from drr2ct.pipeline.evaluation.metrics import InWindow
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.pipeline.running.console import wide_console
from drr2ct.pipeline.training.muon import Muon
from drr2ct.pipeline.training.time_budget import annealed
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import replacing, write_json
from drr2ct.transforms.films.pose import RandRenderFilmsd
from drr2ct.transforms.preprocessing import files_to_kept, files_to_samples, kept_to_samples
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from drr2ct.transforms.varied.variation import WIDE
from drr2ct.transforms.volume import LoadCTd

ARMS = ("plain", "films", "later", "members")
"""Without films, with, with from half the time on, and an ensemble."""
MEMBERS = ("films", "films", "plain")
"""Of that."""
NETWORK = VARIANTS["cascade64"]
CLEAN = Condition("clean")
RECIPE = bundle_file("configs/recipes/films.yaml")


class Recipe:
    """The bundle's recipe, as far as it changes radiographs that are rendered already."""

    def __init__(self, path: Path) -> None:
        parser = ConfigParser(ConfigParser.load_config_files([str(path)]))
        parser["geometry"], parser["render_on_grid"] = GEOMETRY, False
        self.share = float(parser.get_parsed_content("film_share"))
        self.effects: Compose = parser.get_parsed_content("augmentation#transforms#0")
        self.render: RandRenderFilmsd = parser.get_parsed_content("render")

    def film(self, plain: Tensor, film: Tensor, seed: int) -> Tensor:
        """Of the two renderings of a variation, what a step of training sees."""
        state = np.random.RandomState(seed)
        if state.uniform() >= self.share:
            return plain
        self.effects.set_random_state(seed)
        return self.effects({"image": film})["image"]


def write_variations(path: Path, ct: Path, count: int, recipe: Recipe, seed: int) -> None:
    """Variations of a CT: label, radiographs as rendered, and radiographs as films were taken; in half precision."""
    kept = files_to_kept(GEOMETRY)({"patient": path.stem, "label": str(ct)})
    plain, films = (kept_to_samples(GEOMETRY, WIDE, render=render) for render in (None, recipe.render))
    made: dict[str, list[Tensor]] = {"label": [], "plain": [], "films": []}
    for number in range(count):
        for name, steps in (("plain", plain), ("films", films)):
            steps.set_random_state(derived_seed(seed, number))  # the same variation, as it is drawn first
            sample: Any = steps(kept)
            made[name].append(convert_to_tensor(sample["image"], track_meta=False).half())
        made["label"].append(sample["label"].as_tensor().half())
    with replacing(path) as temporary:
        torch.save({name: torch.stack(tensors) for name, tensors in made.items()}, temporary)


def train(arm: str, seen: list[dict[str, Tensor]], recipe: Recipe, budget: Budget, seed: int) -> ProgressiveCascade:
    """A network trained on everybody's variations until the budget is used up."""
    if arm == "members":
        part = replace(budget, seconds=budget.seconds / len(MEMBERS), steps=-(-budget.steps // len(MEMBERS)))
        first, *others = (train(member, seen, recipe, part, seed + i) for i, member in enumerate(MEMBERS))
        return with_members(first, others)
    set_determinism(seed, use_deterministic_algorithms=False)
    network = NETWORK.build()
    loss = WeightedLoss(NETWORK.terms())
    optimizer = Muon(network.parameters(), NETWORK.learning_rate)
    places = [(patient, number) for patient in range(len(seen)) for number in range(len(seen[patient]["label"]))]
    used, steps = 0.0, 0
    order: list[int] = []
    network.train()
    while (share := budget.share(used, steps)) < 1:
        began = budget.clock()
        for group in optimizer.param_groups:
            group["lr"] = annealed(NETWORK.learning_rate, share)
        order = order or torch.randperm(len(places)).tolist()
        patient, number = places[order.pop()]
        sample = {name: tensors[number].float() for name, tensors in seen[patient].items()}
        image = sample["plain"]
        if arm == "films" or (arm == "later" and share >= 0.5):
            image = recipe.film(image, sample["films"], derived_seed(seed, steps))
        value = loss(INFERER(image[None], network), sample["label"][None])
        descend(network, optimizer, value, f"{arm}, step {steps}")
        steps += 1
        used += budget.clock() - began
    print(f"{arm}: {steps} steps in {used:.0f} s")
    return network


def under_conditions(ct_path: Path, statistics: dict[str, Any]) -> Iterator[tuple[Condition, Tensor, Tensor]]:
    """A patient's radiographs (scaled) under every condition, and the truth that belongs to them."""
    to_sample = files_to_samples(GEOMETRY)
    read = 1 + next(i for i, step in enumerate(to_sample.transforms) if isinstance(step, LoadCTd))
    loaded: Any = to_sample({"patient": ct_path.parent.name, "label": str(ct_path)}, end=read)
    plain: Any = to_sample(loaded, start=read)
    for condition in conditions(GEOMETRY.grid.size):
        if condition.name == "grid":  # another task
            continue
        if condition.name == "isocentre":
            off: Any = to_sample(
                {**loaded, "label": with_isocentre_off(loaded["label"], condition.value or 0.0)}, start=read
            )
            yield condition, off["image"], off["label"].as_tensor()
            continue
        image = plain["image"] * LINE_INTEGRAL_SCALE
        image = taken_under(condition, loaded["label"], image, GEOMETRY, statistics=statistics)
        yield condition, image / LINE_INTEGRAL_SCALE, plain["label"].as_tensor()


def psnr(prediction: Tensor, label: Tensor) -> float:
    """In dB over the default window."""
    window = InWindow(DEFAULT_WINDOW)
    pairs = window([{"pred": prediction, "label": label}])
    inside = [torch.stack(list(values)) for values in pairs]
    return float(PSNRMetric(max_val=window.width)(*inside).mean())


def label_of(condition: Condition) -> str:
    """As the table names it."""
    return condition.name if condition.value is None else f"{condition.name} {condition.value:g} {condition.unit}"


def print_table(screen: Screen, results: dict[str, dict[str, dict[str, Any]]], title: str) -> None:
    """Each condition: by how much it lowers the PSNR of each network, over the patients that all arms have."""
    patients = sorted(set.intersection(*(set(rows) for rows in results.values())))
    if not patients:
        return
    scores = {
        arm: {key: np.array([rows[p]["psnr"][key] for p in patients]) for key in rows[patients[0]]["psnr"]}
        for arm, rows in results.items()
    }
    beside = [arm for arm in results if arm != "plain" and "plain" in results]
    table = Table(title=f"{title}; {len(patients)} patients, PSNR in dB")
    table.add_column("condition")
    for column in (*(f"{arm}: change" for arm in results), *(f"{arm}, of plain's loss" for arm in beside)):
        table.add_column(column, justify="right")
    for arm in beside:
        table.add_column(f"{arm} over plain", justify="right")
    for key in scores[next(iter(scores))]:
        changes = {arm: float((own[key] - own[CLEAN.name]).mean()) for arm, own in scores.items()}
        cells = [
            f"{own[key].mean():.2f} ± {own[key].std():.2f}" if key == CLEAN.name else f"{changes[arm]:+.2f}"
            for arm, own in scores.items()
        ]
        lost = bool(beside) and changes["plain"] < -0.05
        parts = [f"{changes[arm] / changes['plain']:.2f}" if lost else "" for arm in beside]
        gains = [f"{float((scores[arm][key] - scores['plain'][key]).mean()):+.2f}" for arm in beside]
        table.add_row(key, *cells, *parts, *gains)
    screen.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cts", type=Path, required=True, help="folder of real CTs")
    parser.add_argument("--seconds", type=float, default=600.0, help="core-seconds of training, for each")
    parser.add_argument("--steps", type=int, default=0, help="train each for so many steps instead")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--variations", type=int, default=75, help="of each patient")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS[:2]))
    parser.add_argument("--only", type=int, nargs="+", help="groups to train now, from 0; all by default")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cts = real_cts(arguments.cts)
    if not 2 <= arguments.groups <= len(cts):
        parser.error(f"--groups: {len(cts)} patients cannot be left out in {arguments.groups} groups")
    torch.set_num_threads(arguments.threads)
    keys = ("seconds", "steps", "groups", "variations", "threads", "seed")
    settings = {key: getattr(arguments, key) for key in keys} | {
        "recipe": hashlib.sha256(arguments.recipe.read_bytes()).hexdigest(),
        "network": NETWORK.digest(),
        "optimizer": Muon.__name__,
        "patients": list(cts),
    }
    if other := otherwise_claimed(arguments.output, settings):
        parser.error(f"{other}; choose another folder")
    variations, networks, kept = (arguments.output / name for name in ("variations", "networks", "results"))
    for folder in (variations, networks):
        folder.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(arguments.recipe)
    budget = Budget(arguments.seconds, arguments.steps, lambda: time.process_time() / arguments.threads)
    screen = wide_console()
    patients = list(cts)
    groups = [patients[i :: arguments.groups] for i in range(arguments.groups)]
    for index in arguments.only or range(arguments.groups):
        group = groups[index]
        missing = [a for a in arguments.arms if not all((kept / a / f"{p}.json").exists() for p in group)]
        if not missing:
            continue
        others = [patient for patient in patients if patient not in group]
        for patient in track(others, f"group {index}: variations"):
            if not (path := variations / f"{patient}.pt").exists():
                number = patients.index(patient)
                write_variations(path, cts[patient], arguments.variations, recipe, derived_seed(arguments.seed, number))
        plain = files_to_samples(GEOMETRY, keep_metadata=False)
        undeformed = [plain({"patient": patient, "label": str(cts[patient])}) for patient in others]
        statistics = radiograph_statistics(undeformed)  # type: ignore[arg-type]
        seen = [torch.load(variations / f"{patient}.pt", weights_only=True) for patient in others]
        trained = {arm: train(arm, seen, recipe, budget, arguments.seed) for arm in missing}
        about = {"training": [{"patient": patient, "label": str(cts[patient])} for patient in others]}
        for arm, network in trained.items():
            description = {**describe(network, NETWORK.network, "cube", about), "radiographs": statistics}
            content = {"network": network.state_dict(), "description": description}
            write_checkpoint(networks / f"{arm}-{index}.pt", content)
        del seen
        for patient in track(group, f"group {index}: conditions"):
            found: dict[str, dict[str, float]] = {arm: {} for arm in trained}
            for condition, image, label in under_conditions(cts[patient], statistics):
                for arm, network in trained.items():
                    prediction = predict(network, image[None])
                    found[arm][label_of(condition)] = psnr(prediction[0], label)
            for arm, scores in found.items():
                write_json(kept / arm / f"{patient}.json", {"patient": patient, "group": index, "psnr": scores})
    results = {arm: {p.stem: json.loads(p.read_text()) for p in (kept / arm).glob("*.json")} for arm in arguments.arms}
    each = f"{arguments.steps} steps" if arguments.steps else f"{arguments.seconds:g} core-seconds each"
    print_table(screen, results, f"cascade64, {each}, {arguments.groups} groups left out in turn")


if __name__ == "__main__":
    main()
