"""Whether bounds hold on patients left out, how wide they are, and whether they widen when films are not as rendered.

python benchmarks/doubt.py --output DIR --cts DIR [--groups 4] [--only 0 …] [--seconds 600] [--head-seconds 150]
    [--checkpoints FILE …] [--films] [--threads 1] [--seed 0]

Patients of --cts (and the sample) are left out in groups. For each group, cascade64 is trained on another variation of
the others in every step for --seconds of a core (or taken from the group's file of --checkpoints, which must not have
seen the group), then frozen while an interval head is trained for --head-seconds; with --films on films as the bundle's
recipe draws them. The group's patients are then reconstructed as they are, under every condition of drr2ct robustness.

Each patient's bounds are calibrated on all other patients, each by the network that has not seen it. The table compares
the bounds as trained, with one factor for all, with one for each tissue of the estimate, and with factors by predicted
width. A group's network and a patient's voxels stay in DIR and are not made again, so the command goes on where it was
stopped; --only makes some of the groups now.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cascades import GEOMETRY, INFERER, VARIANTS, Batches, Budget, descend, varied
from claims import otherwise_claimed
from film_training import CLEAN, RECIPE, Recipe, label_of, under_conditions
from matplotlib.figure import Figure
from monai.utils import set_determinism
from rich.table import Table
from torch import Tensor

from drr2ct.networks import ProgressiveCascade
from drr2ct.networks.interval import interval_parameters
from drr2ct.networks.losses import WeightedLoss
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import read_checkpoint, write_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.loading import derived_seed
from drr2ct.pipeline.data.sample.cts import real_cts
from drr2ct.pipeline.evaluation.calibration import UNCALIBRATED, Calibration, PatientScores, calibrate, patient_scores
from drr2ct.pipeline.evaluation.intervals import (
    SHARES,
    plain,
    rank_correlation,
    rank_of_regions,
    rank_of_volume,
    sparsification,
)
from drr2ct.pipeline.evaluation.protocol import refuse_leakage
from drr2ct.pipeline.evaluation.structures import TISSUES, body_mask
from drr2ct.pipeline.running.console import wide_console
from drr2ct.pipeline.training.recipes import frozen_with_interval
from drr2ct.pipeline.training.time_budget import annealed
from drr2ct.pipeline.training.transfer import transfer_weights
from drr2ct.transforms.files import replacing
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.radiographs.intensity import radiograph_statistics
from drr2ct.transforms.volume import HU_WINDOW, to_hu

NETWORK = VARIANTS["cascade64"]
RANGE_HU = HU_WINDOW[1] - HU_WINDOW[0]
VOXELS = 4000
"""Of a patient's body, under each condition."""
METHODS = ("as trained", "one factor", "by tissue", "by width")
HEAD_RATE = 1e-2
"""Learning rate of an interval head, as in the bundle's recipe."""
_CLASSES_HU = (-500.0, -150.0, 0.0, 150.0)
"""What divides the estimate into lung, what is between, fat, soft tissue and bone."""


@dataclass(frozen=True)
class Scores(PatientScores):
    """Of a patient under one condition.

    Args:
        regions: rank correlation of width, as trained, and error in the means of regions.
        volume: that over all voxels, the air around the patient included.
    """

    regions: float
    volume: float


Conditions = dict[str, Scores]


def train(
    network: torch.nn.Module,
    parameters: Iterable[Tensor],
    batches: Batches,
    budget: Budget,
    rate: float,
    recipe: Recipe | None = None,
) -> None:
    """Train some of a network's parameters until the budget is used up; making samples is not counted."""
    loss = WeightedLoss(NETWORK.terms())
    optimizer = torch.optim.AdamW(list(parameters), rate, weight_decay=1e-4)
    used, steps = 0.0, 0
    network.train()
    while (share := budget.share(used, steps)) < 1:
        image, label = next(batches)
        if recipe is not None:
            image = recipe.film(image[0], image[0], derived_seed(0, steps))[None]
        began = budget.clock()
        for group in optimizer.param_groups:
            group["lr"] = annealed(rate, share)
        descend(network, optimizer, loss(INFERER(image, network), label), f"step {steps}")
        steps += 1
        used += budget.clock() - began
    print(f"{steps} steps in {used:.0f} s")


def trained_network(
    path: Path, items: list[dict[str, Any]], given: Path | None, budgets: list[Budget], films: bool, seed: int
) -> ProgressiveCascade:
    """A group's network with bounds: read, or trained on everybody else; the head always on a finished estimate."""
    if path.exists():
        return load_network(path)
    folder = path.parents[1]
    set_determinism(seed, use_deterministic_algorithms=False)
    plain = given or path.with_name(f"{path.stem}_estimate.pt")
    about = {"training": items}
    if not plain.exists():
        network = NETWORK.build()
        batches = varied(items, folder, "within-patients", None, seed)
        train(network, network.parameters(), batches, budgets[0], NETWORK.learning_rate)
        description = describe(network, NETWORK.network, "cube", about)
        write_checkpoint(plain, {"network": network.state_dict(), "description": description})
    network = frozen_with_interval(plain)
    if network.config.geometry != GEOMETRY:
        raise SystemExit(f"{plain} is of another geometry than this benchmark's.")
    transfer_weights(network, plain)
    recipe = Recipe(RECIPE) if films else None
    batches = varied(items, folder, "within-patients", None, seed + 1)
    train(network, interval_parameters(network), batches, budgets[1], HEAD_RATE, recipe)
    description = describe(network, NETWORK.network, "cube", about, plain)
    write_checkpoint(path, {"network": network.state_dict(), "description": description})
    return network.eval()


def write_scores(path: Path, network: ProgressiveCascade, ct: Path, statistics: dict[str, Any]) -> None:
    """A patient's voxels under every condition."""
    found: dict[str, dict[str, Tensor]] = {}
    for condition, image, label in under_conditions(ct, statistics):
        with torch.no_grad():
            output = INFERER(image[None], network)[0]
        scores = patient_scores(output, label, voxels=VOXELS)
        kept = {key: torch.from_numpy(value).float() for key, value in vars(scores).items()}
        made, truth = to_hu(plain(output)).cpu(), to_hu(plain(label)).cpu()
        ranks = {"regions": rank_of_regions(made, truth, body_mask(truth)), "volume": rank_of_volume(made, truth)}
        found[label_of(condition)] = {**kept, **{key: torch.tensor(value) for key, value in ranks.items()}}
    with replacing(path) as temporary:
        torch.save(found, temporary)


def read_scores(path: Path) -> Conditions:
    """What :func:`write_scores` wrote."""
    content = torch.load(path, weights_only=True)
    found = {}
    for name, entry in content.items():
        ranks = {key: float(entry.pop(key)) for key in ("regions", "volume")}
        found[name] = Scores(**{key: value.numpy().astype(np.float64) for key, value in entry.items()}, **ranks)
    return found


def error_hu(scores: PatientScores) -> np.ndarray:
    """Absolute error of the estimate."""
    return np.abs(scores.score[0]) * np.exp(scores.logarithm[0]) * RANGE_HU


def part(scores: PatientScores, chosen: np.ndarray) -> PatientScores:
    """Some of a patient's voxels."""
    return PatientScores(scores.logarithm[:, chosen], scores.score[:, chosen], scores.truth[chosen])


def tissue_of(scores: PatientScores) -> np.ndarray:
    """Class of each voxel by its estimate, as the truth is not known where it is to be applied."""
    estimate = scores.truth + scores.score[0] * np.exp(scores.logarithm[0]) * RANGE_HU
    return np.searchsorted(_CLASSES_HU, estimate)


class Calibrated:
    """A method's factors, found on some patients.

    Args:
        method: one of :data:`METHODS`.
        patients: that they are found on.
    """

    def __init__(self, method: str, patients: list[PatientScores]) -> None:
        self.by_class: list[Calibration] | None = None
        self.whole = UNCALIBRATED if method == "as trained" else calibrate(patients, by_width=method == "by width")
        if method == "by tissue":
            self.by_class = []
            for name in range(len(_CLASSES_HU) + 1):
                parts = [part(scores, tissue_of(scores) == name) for scores in patients]
                filled = [scores for scores in parts if scores.truth.size]
                self.by_class.append(calibrate(filled, by_width=False) if filled else self.whole)

    def factors(self, scores: PatientScores) -> np.ndarray:
        """Of both widths, (2, voxels)."""
        factors = np.stack([self.whole.factor(tail, scores.logarithm[tail]) for tail in range(2)])
        if self.by_class is not None:
            tissue = tissue_of(scores)
            for name, calibration in enumerate(self.by_class):
                for tail in range(2):
                    there = tissue == name
                    factors[tail, there] = calibration.factor(tail, scores.logarithm[tail, there])
        return factors

    def judge(self, scores: PatientScores) -> dict[str, Any]:
        """Which voxels are covered, and how wide the bounds are in HU."""
        factors = self.factors(scores)
        covered = (scores.score <= factors).all(axis=0)
        return {"covered": covered, "width": (factors * np.exp(scores.logarithm)).sum(axis=0) * RANGE_HU}


def figures_of(scores: Scores, calibrated: Calibrated) -> dict[str, float]:
    """A patient's figures."""
    judged, error = calibrated.judge(scores), error_hu(scores)
    width = judged["width"]
    drawn = width * np.abs(np.random.default_rng(0).standard_normal(len(width)))
    found = {
        "coverage": float(judged["covered"].mean()),
        "width": float(width.mean()),
        "rank": rank_correlation(torch.from_numpy(width), torch.from_numpy(error)),
        "rank regions": scores.regions,
        "rank volume": scores.volume,
        "rank drawn": rank_correlation(torch.from_numpy(width), torch.from_numpy(drawn)),
        "error": float(error.mean()),
    }
    for name, (low, high) in TISSUES.items():
        there = (scores.truth >= low) & (scores.truth <= high)
        found[name] = float(judged["covered"][there].mean()) if there.any() else float("nan")
    return found


def compare(patients: dict[str, Conditions], method: str, condition: str = CLEAN.name) -> dict[str, dict[str, float]]:
    """Figures of every patient, calibrated on all others as rendered."""
    found = {}
    for name, own in patients.items():
        others = [scores[CLEAN.name] for other, scores in patients.items() if other != name]
        found[name] = figures_of(own[condition], Calibrated(method, others))
    return found


def mean_of(rows: dict[str, dict[str, float]], key: str) -> float:
    """Over patients that have it."""
    return float(np.nanmean([row[key] for row in rows.values()]))


def print_methods(patients: dict[str, Conditions], title: str) -> None:
    """Each way to calibrate: coverage (mean, least, most), width, rank correlation, coverage of each tissue.

    Beside the rank correlation: those of regions' means and over the whole volume, by the bounds as trained; and what
    it would be of errors drawn from normal distributions as wide as the bounds.
    """
    table = Table(title=f"{title}; {len(patients)} patients left out, as rendered")
    ranks = ("rank correlation", "of regions", "of the volume", "of drawn errors")
    columns = ("covered, mean", "least", "most", "width HU", *ranks, *TISSUES)
    for column in ("bounds", *columns):
        table.add_column(column, justify="left" if column == "bounds" else "right")
    for method in METHODS:
        rows = compare(patients, method)
        covered = [row["coverage"] for row in rows.values()]
        cells = [f"{100 * value:.1f} %" for value in (np.mean(covered), min(covered), max(covered))]
        cells.append(f"{mean_of(rows, 'width'):.0f}")
        cells += [f"{mean_of(rows, key):.2f}" for key in ("rank", "rank regions", "rank volume", "rank drawn")]
        table.add_row(method, *cells, *(f"{100 * mean_of(rows, name):.1f} %" for name in TISSUES))
    wide_console().print(table)


def print_conditions(patients: dict[str, Conditions]) -> dict[str, tuple[float, float]]:
    """Each condition: error, width and coverage; returns by how much error and width grow."""
    table = Table(title="calibrated by width as rendered, under each condition")
    for column in ("condition", "error HU", "× rendered", "width HU", "× rendered", "covered", "rank correlation"):
        table.add_column(column, justify="left" if column == "condition" else "right")
    grown = {}
    clean = compare(patients, "by width")
    for condition in next(iter(patients.values())):
        rows = compare(patients, "by width", condition)
        error, width = (mean_of(rows, key) / mean_of(clean, key) for key in ("error", "width"))
        grown[condition] = (error, width)
        cells = [f"{mean_of(rows, 'error'):.0f}", f"{error:.2f}", f"{mean_of(rows, 'width'):.0f}", f"{width:.2f}"]
        table.add_row(condition, *cells, f"{100 * mean_of(rows, 'coverage'):.1f} %", f"{mean_of(rows, 'rank'):.2f}")
    wide_console().print(table)
    return grown


def plot(patients: dict[str, Conditions], grown: dict[str, tuple[float, float]], path: Path) -> None:
    """Sparsification, and how width grows with error from condition to condition."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = []
    for name, own in patients.items():
        others = [scores[CLEAN.name] for other, scores in patients.items() if other != name]
        scores = own[CLEAN.name]
        width, error = Calibrated("by width", others).judge(scores)["width"], error_hu(scores)
        by_width, best = sparsification(torch.from_numpy(width), torch.from_numpy(error))
        curves.append([by_width / by_width[0], best / best[0]])
    for values, label in zip(np.mean(curves, axis=0), ("the widest left out", "the most wrong left out"), strict=True):
        left.plot(100 * SHARES, values, label=label)
    left.axhline(1, color="grey", linewidth=1, label="left out by chance")
    left.set(xlabel="voxels left out, %", ylabel="mean absolute error of the rest, of that of all", ylim=(0, 1.1))
    left.legend()
    errors, widths = np.array(list(grown.values())).T
    right.plot(errors, widths, "o")
    right.axline((1, 1), slope=1, color="grey", linewidth=1)
    right.set(xlabel="error under a condition, × as rendered", ylabel="width, × as rendered")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cts", type=Path, required=True, help="folder of real CTs")
    parser.add_argument("--seconds", type=float, default=600.0, help="core-seconds of training of each estimate")
    parser.add_argument("--head-seconds", type=float, default=150.0, help="and of each interval head")
    parser.add_argument("--steps", type=int, default=0, help="train estimate and head for so many steps instead")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--only", type=int, nargs="+", help="groups to make now, from 0; all by default")
    parser.add_argument("--checkpoints", type=Path, nargs="+", help="finished cascade64s, one for each group")
    parser.add_argument("--films", action="store_true", help="train the heads on films")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cts = real_cts(arguments.cts)
    if not 2 <= arguments.groups <= len(cts):
        parser.error(f"--groups: {len(cts)} patients cannot be left out in {arguments.groups} groups")
    given = arguments.checkpoints
    if given is not None and len(given) != arguments.groups:
        parser.error(f"--checkpoints: {len(given)} files for {arguments.groups} groups")
    torch.set_num_threads(arguments.threads)
    keys = ("seconds", "head_seconds", "steps", "groups", "films", "threads", "seed")
    settings = {key: getattr(arguments, key) for key in keys} | {
        "checkpoints": [hashlib.sha256(path.read_bytes()).hexdigest() for path in given or ()],
        "network": NETWORK.digest(),
        "head_rate": HEAD_RATE,
        "patients": list(cts),
    }
    if other := otherwise_claimed(arguments.output, settings):
        parser.error(f"{other}; choose another folder")
    (arguments.output / "networks").mkdir(parents=True, exist_ok=True)
    (arguments.output / "scores").mkdir(exist_ok=True)

    def core_seconds() -> float:
        return time.process_time() / arguments.threads

    budgets = [Budget(s, arguments.steps, core_seconds) for s in (arguments.seconds, arguments.head_seconds)]
    names = list(cts)
    for group in range(arguments.groups) if arguments.only is None else arguments.only:
        left_out = names[group :: arguments.groups]
        paths = {name: arguments.output / "scores" / f"{name}.pt" for name in left_out}
        if all(path.exists() for path in paths.values()):
            continue
        items = [{"patient": name, "label": str(cts[name])} for name in names if name not in left_out]
        finished = None if given is None else given[group]
        if finished is not None:
            judged = [{"patient": name, "label": str(cts[name])} for name in left_out]
            refuse_leakage(finished, read_checkpoint(finished)["description"], judged)
        place = arguments.output / "networks" / f"{group}.pt"
        network = trained_network(place, items, finished, budgets, arguments.films, arguments.seed)
        load = files_to_samples(GEOMETRY, keep_metadata=False)
        statistics = radiograph_statistics([load(dict(item)) for item in items])  # type: ignore[arg-type]
        for name, path in paths.items():
            if not path.exists():
                write_scores(path, network, cts[name], statistics)
                print(f"{name}: judged", flush=True)
    patients = {name: read_scores(p) for name in names if (p := arguments.output / "scores" / f"{name}.pt").exists()}
    if len(patients) < 2:
        raise SystemExit("fewer than two patients are judged: nothing to calibrate on.")
    each = f"{arguments.seconds:g} + {arguments.head_seconds:g} core-seconds"
    print_methods(patients, f"cascade64, {each if not arguments.steps else f'{arguments.steps} steps'}")
    plot(patients, print_conditions(patients), arguments.output / "doubt.png")


if __name__ == "__main__":
    main()
