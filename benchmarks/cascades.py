"""Networks trained side by side for equal time: which choices earn their place. A table and a plot.

python benchmarks/cascades.py --output DIR [--cts DIR] [--seconds 600] [--threads 2] [--clock wall|cpu]
    [--variants mean broadcast cascade64 …] [--data written endless between grafted] [--folds PATIENT …] [--groups 4]
    [--patients PATIENT …] [--seed 0]

Without --cts: a cohort of variations of the sample CT; the curve is measured on validation patients, the final figure
on test patients. With --cts, a folder of patient folders, which the sample joins: leave one patient out; training on
variations of all the others, the final figure on the one left out, undeformed; for each in turn, mean and spread.
With --groups the patients are left out in so many groups instead: fewer trainings tell something of every patient.
Every training and fold that is finished stays in DIR and is not repeated, so the command goes on where it was stopped.

--data says what a step learns from, drawn alike: --training variations over and over (written), another one every time
(endless), another one every time that is also led towards other patients of the training (between; registered in DIR),
or of which a part is another patient's besides (grafted). Several give a row each. Making samples is not counted:
loading processes do it; "s a sample" says what it costs.

All train on a 64³ grid from two 128² radiographs with the bundle's loss and a batch of one, by AdamW at 1e-3 where the
variant says nothing else; the learning rate falls by a cosine over the time. "fitted" is the PSNR after two steps of
data consistency. --clock cpu counts core-seconds over --threads instead of wall time: for a machine that others use
too. Only training counts, measuring does not.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import otherwise_claimed
from matplotlib.figure import Figure
from monai.metrics import PSNRMetric
from monai.utils import set_determinism
from rich.console import Console
from rich.table import Table
from torch import Tensor

from drr2ct.networks import ProgressiveCascade, create_network, network_config
from drr2ct.networks.config import CascadeConfig, StageConfig
from drr2ct.networks.losses import DEFAULT_TERMS, ReprojectionLoss, WeightedLoss
from drr2ct.networks.ssim import SeparableSSIMMetric
from drr2ct.pipeline.data.cache import CachedDataset
from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.data.endless import endless_variations
from drr2ct.pipeline.data.loading import derived_seed
from drr2ct.pipeline.data.sample.cts import real_cts, sample_ct
from drr2ct.pipeline.demo import DETECTOR_SIZE, GRID_SIZE
from drr2ct.pipeline.evaluation.metrics import InWindow
from drr2ct.pipeline.evaluation.similarity import DEFAULT_WINDOW
from drr2ct.pipeline.reconstruction.consistency import fit_to_radiographs
from drr2ct.pipeline.running.console import wide_console
from drr2ct.pipeline.running.precision import AutocastInferer, choose_precision
from drr2ct.pipeline.training.muon import Muon
from drr2ct.pipeline.training.time_budget import annealed
from drr2ct.transforms import files_to_samples
from drr2ct.transforms.files import replacing, write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept
from drr2ct.transforms.varied.variation import TOWARDS, WIDE, Variation

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(GRID_SIZE), detector_size=DETECTOR_SIZE)
INFERER = AutocastInferer("cpu", choose_precision(torch.device("cpu")))
CURVE_POINTS = 12
CONSISTENCY_STEPS = 2


@dataclass(frozen=True)
class Variant:
    """What is trained, and how: a named network with overrides, its loss and its optimiser."""

    about: str
    network: str = "cascade64"
    overrides: dict[str, Any] = field(default_factory=dict)
    terms: Callable[[], dict[str, Any]] = lambda: dict(DEFAULT_TERMS)
    learning_rate: float = 1e-3
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the optimiser, other than the rate and a weight decay of 1e-4."""

    def build(self) -> ProgressiveCascade:
        """The network on the benchmark's geometry, with random weights."""
        return create_network(self.network, geometry=GEOMETRY, **self.overrides)

    def digest(self) -> str:
        """Of all that is trained and how: results that are kept are of no use to another network, loss or rate."""
        with torch.device("meta"):
            network = self.build()
        recipe = {
            "configuration": _told(network_config(self.network, geometry=GEOMETRY, **self.overrides).to_dict()),
            "weights": {name: list(p.shape) for name, p in network.named_parameters()},
            "loss": WeightedLoss(self.terms()).weights,
            "learning_rate": self.learning_rate,
        }
        if self.optimizer is not torch.optim.AdamW or self.settings:
            recipe["optimizer"] = [self.optimizer.__name__, self.settings]
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


LATER = {"members": 1, "halvings": 0}
"""What networks can be told since the first results were kept, at the value at which nothing is different."""


def _told(configuration: dict[str, Any]) -> dict[str, Any]:
    """A network's configuration, as results that were kept before ``LATER`` have it too."""

    def kept(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key not in LATER or value != LATER[key]}

    return {**kept(configuration), "stages": [kept(stage) for stage in configuration["stages"]]}


def narrowed(config: CascadeConfig, factor: int = 4) -> dict[str, Any]:
    """Overrides that divide every width of a ``direct*`` design, as the size is divided: a step takes seconds."""

    def less(value: int) -> int:
        return max(value // factor, 1)

    return {
        "encoder_channels": tuple(map(less, config.encoder_channels)),
        "encoder_norm_groups": tuple(map(less, config.encoder_norm_groups)),
        "volume_channels": less(config.volume_channels),
        "stages": tuple(
            replace(s, channels=less(s.channels), growth=less(s.growth), norm_groups=less(s.norm_groups))
            for s in config.stages
        ),
        "skips": tuple(replace(s, channels=less(s.channels)) for s in config.skips),
        "skip_fusion_channels": less(config.skip_fusion_channels),
        "skip_fusion_norm_groups": less(config.skip_fusion_norm_groups),
        "refinement_growth": less(config.refinement_growth),
        "refinement": tuple((less(channels), less(groups)) for channels, groups in config.refinement),
    }


_DIRECT = narrowed(network_config("direct256"))
_DRAFT = narrowed(network_config("direct256_draft"))
_LIGHT = network_config("cascade64")
_NORMALISED = tuple(replace(stage, norm_groups=8) for stage in _LIGHT.stages)
_DIRECT_LIFTING = {"lift": "broadcast", "fuse": "after", "encoder_norm_groups": (8, 8, 8, 8), "stages": _NORMALISED}
_REPROJECTION = {"reprojection": (0.1, ReprojectionLoss(GEOMETRY))}


def draft(about: str, network: str = "direct256_draft", **changes: Any) -> Variant:
    """The first design, narrowed, with some of its fields changed."""
    return Variant(about, network, {**_DRAFT, **changes}, learning_rate=5e-4)


def squared_besides() -> dict[str, Any]:
    """The bundle's loss and the squared error."""
    return {**DEFAULT_TERMS, "l2": 20.0}


def doubled(stage: StageConfig) -> StageConfig:
    """Twice as wide."""
    return replace(stage, channels=2 * stage.channels, growth=2 * stage.growth)


VARIANTS = {
    "cascade64": Variant("ours, by AdamW"),
    "broadcast": Variant(
        "ours with the direct lifting: stacked views, features repeated along one axis; and its normalisation",
        overrides=_DIRECT_LIFTING,
        learning_rate=5e-4,
    ),
    "muon-broadcast": Variant(
        "ours with the direct lifting and its normalisation, by Muon",
        overrides=_DIRECT_LIFTING,
        optimizer=Muon,
    ),
    "fuse-after": Variant("ours, radiographs taken in after the dense blocks", overrides={"fuse": "after"}),
    "transformer": Variant("ours with two transformer blocks at 16³", overrides={"transformer_layers": 2}),
    "no-head": Variant(
        "ours with a third stage at 64³ instead of the sub-voxel head",
        overrides={
            "head_scale": 1,
            "stages": (*_LIGHT.stages, StageConfig(16, norm_groups=0, growth=8, layers=2, lift_channels=8)),
        },
    ),
    "wide": Variant(
        "ours twice as wide and more",
        overrides={
            "stages": (
                StageConfig(64, scale=1, growth=24, layers=4, lift_channels=32),
                StageConfig(32, growth=24, layers=3, lift_channels=24),
            ),
            "encoder_channels": (16, 32, 48, 64),
        },
    ),
    "momenta": Variant("ours with AdamW's momenta 0.5 and 0.99", settings={"betas": (0.5, 0.99)}),
    "adamw-1e-4": Variant("ours at a tenth of the learning rate", learning_rate=1e-4),
    "muon": Variant("ours by Muon instead of AdamW, as the bundle trains", optimizer=Muon),
    "muon-3e-4": Variant("ours by Muon at a third of the learning rate", optimizer=Muon, learning_rate=3e-4),
    "muon-3e-3": Variant("ours by Muon at three times the learning rate", optimizer=Muon, learning_rate=3e-3),
    "muon-squared": Variant(
        "ours by Muon, with the squared error besides, weight 20",
        terms=squared_besides,
        optimizer=Muon,
    ),
    "muon-wide": Variant(
        "ours by Muon, twice as wide", overrides={"stages": tuple(map(doubled, _LIGHT.stages))}, optimizer=Muon
    ),
    "confidence": Variant(
        "ours with a learned confidence of each view, voxel by voxel", overrides={"confidence": True}
    ),
    "squared": Variant("ours with the squared error besides, weight 20", terms=squared_besides),
    "normalised": Variant(
        "ours with group normalisation in the stages, at half the learning rate",
        overrides={"stages": _NORMALISED},
        learning_rate=5e-4,
    ),
    "reprojection": Variant(
        "ours with the reprojection loss, weight 0.1", terms=lambda: {**DEFAULT_TERMS, **_REPROJECTION}
    ),
    "direct256": draft("the draft with its three memory fixes", network="direct256", **_DIRECT),
    "direct128": Variant(
        "direct128 cut to 64³, every width divided by 4",
        network="direct128",
        overrides=narrowed(network_config("direct128")),
        learning_rate=5e-4,
    ),
    "draft": draft("direct256_draft cut to 64³, every width divided by 4"),
    "draft-fix-xray": draft(
        "the draft with 128/4 X-ray channels",
        **{key: _DIRECT[key] for key in ("encoder_channels", "encoder_norm_groups")},
    ),
    "draft-fix-stage4": draft(
        "the draft without dense blocks in stage 4", stages=(*_DRAFT["stages"][:3], _DIRECT["stages"][3])
    ),
    "draft-fix-refinement": draft(
        "the draft with the plain refinement", refinement_blocks=0, refinement=_DIRECT["refinement"]
    ),
}
MEAN = "mean"
"""The mean training volume: no network."""

BETWEEN = ("between", "grafted")
DATA = ("written", "endless", *BETWEEN)
"""What a step learns from; the last need several patients."""
GRAFTED = 0.7
"""How often a part of another patient takes the place of the patient's own."""


@cache
def digest_of(row: str) -> str:
    """:meth:`Variant.digest` of a row's network; the mean volume has nothing to tell."""
    return MEAN if row == MEAN else VARIANTS[row.split("+")[0]].digest()


def row_name(variant: str, data: str) -> str:
    """A row of the table, and the folder of its results."""
    return variant if variant == MEAN or data == DATA[0] else f"{variant}+{data}"


@dataclass(frozen=True)
class Samples:
    """Radiographs (n, views, H, W), CTs (n, 1, N, N, N) on the network's scale."""

    images: Tensor
    labels: Tensor

    @classmethod
    def read(cls, items: list[dict[str, Any]]) -> Samples:
        """Through the bundle's own chain."""
        to_sample = files_to_samples(GEOMETRY, keep_metadata=False)
        samples = [to_sample(item) for item in items]
        return cls(torch.stack([s["image"] for s in samples]), torch.stack([s["label"] for s in samples]))


Batches = Iterator[tuple[Tensor, Tensor]]
"""Radiographs and CT of one patient after the other, without end."""


@dataclass(frozen=True)
class Fold:
    """What trainings see, what draws their curve, what they are judged on (by name), and whose mean they have to beat.

    ``training`` makes the samples, of a kind of data and in the order of a seed.
    """

    training: Callable[[str, int], Batches]
    validation: Samples | None
    tests: dict[str, Samples]
    averaged: Tensor


def shuffled(samples: Samples) -> Batches:
    """One after the other, each time in another order."""
    while True:
        for index in torch.randperm(len(samples.images)).tolist():
            yield samples.images[index : index + 1], samples.labels[index : index + 1]


def varied(
    items: list[dict[str, Any]], folder: Path, vary: str, variation: Variation | None, seed: int, each: int = 0
) -> Batches:
    """A variation of each patient in turn, from the bundle's own chain; the same for the same seed.

    Another one every time, or so many of ``each`` over and over.
    """
    kept = CachedDataset(items, files_to_kept(GEOMETRY), folder / "kept")
    chain = endless_variations(kept, GEOMETRY, vary, folder / "registration", variation=variation)
    made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for number in itertools.count():
        for index in torch.randperm(len(kept)).tolist():
            key = (number % each if each else number, index)
            batch = made.get(key)
            if batch is None:
                chain.set_random_state(derived_seed(seed, *key))
                sample = chain(kept[index])
                batch = sample["image"].as_tensor()[None], sample["label"].as_tensor()[None]
            if each:
                made[key] = batch
            yield batch


def cohort_fold(folder: Path, training: int, seed: int) -> Fold:
    """Variations of the sample CT."""
    root = folder / "cohort"
    write_cohort(root, CohortPlan((sample_ct(),), GEOMETRY, training, 8, 16, seed=seed))
    seen, curve, test = [Samples.read(load_datalist(root, part)) for part in ("training", "validation", "test")]
    items = [{"patient": "sample", "label": str(sample_ct())}]

    def batches(data: str, seed: int) -> Batches:
        if data == "written":
            return shuffled(seen)
        return varied(items, folder, "within-patients", Variation(), seed)

    return Fold(batches, curve, {"cohort": test}, averaged=seen.labels)


def patient_folds(cts: dict[str, Path], folder: Path, training: int, groups: list[list[str]]) -> Iterator[Fold]:
    """One fold per group of patients, who are left out; each of the others gives as many variations in every fold."""
    each = math.ceil(training / (len(cts) - 1))
    undeformed = {p: Samples.read([{"patient": p, "label": str(ct)}]) for p, ct in cts.items()}
    for group in groups:
        others = [other for other in cts if other not in group]

        def batches(data: str, seed: int, others: list[str] = others) -> Batches:
            items = [{"patient": other, "label": str(cts[other])} for other in others]
            way = "between-patients" if data in BETWEEN else "within-patients"
            variation = replace(TOWARDS, graft=GRAFTED) if data == "grafted" else None
            return varied(items, folder, way, variation, seed, each if data == "written" else 0)

        # the mean of the patients themselves: that of their variations, which end elsewhere, is easier to beat
        mean_of = torch.cat([undeformed[other].labels for other in others])
        yield Fold(batches, None, {patient: undeformed[patient] for patient in group}, mean_of)


def predict(network: torch.nn.Module, images: Tensor) -> Tensor:
    """One by one, in the precision that training uses."""
    network.eval()
    with torch.no_grad():
        return torch.cat([INFERER(image[None], network) for image in images])


def figures(prediction: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean over patients of PSNR (dB) and SSIM over the default window, and MAE (HU)."""
    window = InWindow(DEFAULT_WINDOW)
    pairs = window([{"pred": p, "label": t} for p, t in zip(prediction, labels, strict=True)])
    inside = [torch.stack(list(values)) for values in pairs]
    psnr = PSNRMetric(max_val=window.width)(*inside).mean()
    ssim = SeparableSSIMMetric(spatial_dims=3, data_range=window.width)(*inside).mean()
    mae = (inside[0] - inside[1]).abs().mean()
    return {"psnr": float(psnr), "ssim": float(ssim), "mae_hu": float(mae)}


@dataclass(frozen=True)
class Budget:
    """How long each trains: ``seconds`` by ``clock``, or that many ``steps`` if not zero."""

    seconds: float
    steps: int
    clock: Callable[[], float]

    def share(self, seconds: float, steps: int) -> float:
        """What of it is used up, from 0 to 1."""
        return steps / self.steps if self.steps else seconds / self.seconds


def descend(network: torch.nn.Module, optimizer: torch.optim.Optimizer, value: Tensor, where: str) -> None:
    """One step down a loss, its gradients clipped as in a training; a loss that is not finite ends the comparison."""
    if not torch.isfinite(value):
        raise SystemExit(f"{where}: the loss is not finite.")
    optimizer.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def fit(
    network: torch.nn.Module,
    value_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    budget: Budget,
    where: str,
    after_step: Callable[[float, int], None] = lambda used, steps: None,
) -> dict[str, Any]:
    """Train until the budget is used up, every learning rate falling by a cosine over it.

    Args:
        network: what is trained.
        value_of: radiographs and CTs → the loss.
        optimizer: of the network's parameters.
        batches: what it learns from; making them is not counted.
        budget: when to stop.
        where: what a message names it.
        after_step: told the seconds and steps used so far; what it takes is not counted.

    Returns:
        How many steps, seconds, seconds for making a sample, and parameters there were.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    used, steps, making = 0.0, 0, 0.0
    while (share := budget.share(used, steps)) < 1:
        began = time.process_time()
        image, label = next(batches)
        making += (time.process_time() - began) * (steps > 0)  # registration comes with the first
        began = budget.clock()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = annealed(rate, share)
        network.train()
        descend(network, optimizer, value_of(image, label), f"{where}, step {steps}")
        steps += 1
        used += budget.clock() - began
        after_step(used, steps)
    parameters = sum(p.numel() for p in network.parameters())
    return {"steps": steps, "seconds": used, "sample_seconds": making / max(steps - 1, 1), "parameters": parameters}


def judged(network: torch.nn.Module, fold: Fold, trained: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the table needs of a network, for each that it is judged on."""
    rows = {}
    for name, test in fold.tests.items():
        prediction = predict(network, test.images)
        pairs = zip(prediction, test.images, strict=True)
        fitted = torch.stack([fit_to_radiographs(p, image, GEOMETRY, CONSISTENCY_STEPS)[0] for p, image in pairs])
        rows[name] = {**figures(prediction, test.labels), "fitted": figures(fitted, test.labels), **trained}
    return rows


def train(variant: Variant, data: str, fold: Fold, budget: Budget, seed: int) -> dict[str, dict[str, Any]]:
    """Train and measure; returns what the table and the plot need, for each that it is judged on."""
    set_determinism(seed, use_deterministic_algorithms=False)
    network = variant.build()
    loss = WeightedLoss(variant.terms())
    optimizer = variant.optimizer(network.parameters(), lr=variant.learning_rate, weight_decay=1e-4, **variant.settings)
    curve: list[tuple[float, float]] = []

    def measure(used: float, steps: int) -> None:
        if fold.validation is not None and budget.share(used, steps) >= (len(curve) + 1) / CURVE_POINTS:
            prediction = predict(network, fold.validation.images)
            curve.append((used, figures(prediction, fold.validation.labels)["psnr"]))

    batches = fold.training(data, seed)
    trained = fit(
        network,
        lambda image, label: loss(INFERER(image, network), label),
        optimizer,
        batches,
        budget,
        variant.about,
        measure,
    )
    return judged(network, fold, {**trained, "curve": curve})


def mean_volume(fold: Fold) -> dict[str, dict[str, Any]]:
    """The mean training volume as everybody's reconstruction."""
    mean = fold.averaged.mean(dim=0, keepdim=True)
    untrained = {"steps": 0, "seconds": 0, "sample_seconds": 0, "parameters": 0, "curve": []}
    return {
        name: {**figures(mean.expand_as(test.labels), test.labels), **untrained} for name, test in fold.tests.items()
    }


COLUMNS = (
    "variant",
    "folds",
    "PSNR dB",
    "spread",
    "gain dB",
    "worst gain",
    "over ours",
    "SSIM",
    "MAE HU",
    "fitted dB",
    "steps",
    "s",
    "s a sample",
    "Mpar",
)


def table_rows(results: dict[str, dict[str, dict[str, Any]]]) -> Iterator[tuple[str, ...]]:
    """Under :data:`COLUMNS`; gains over the mean volume, and over ours, are of the same folds."""
    ours = results.get("cascade64", {})
    for name, folds in results.items():
        rows = list(folds.values())
        psnr = np.array([row["psnr"] for row in rows])
        gains = np.array([row["psnr"] - results[MEAN][fold]["psnr"] for fold, row in folds.items()])
        others = [
            float(np.mean([row[key] for row in rows])) for key in ("ssim", "mae_hu", "steps", "seconds", "parameters")
        ]
        # the first results do not tell it
        a_sample = [row["sample_seconds"] for row in rows if "sample_seconds" in row]
        fitted = [row["fitted"]["psnr"] for row in rows if "fitted" in row]
        over_ours = [row["psnr"] - ours[fold]["psnr"] for fold, row in folds.items() if fold in ours]
        yield (
            name,
            str(len(rows)),
            f"{psnr.mean():.2f}",
            f"{psnr.std(ddof=1):.2f}" if len(rows) > 1 else "",
            f"{gains.mean():+.2f}",
            f"{gains.min():+.2f}",
            f"{np.mean(over_ours):+.2f}" if over_ours and folds is not ours else "",
            f"{others[0]:.3f}",
            f"{others[1]:.0f}",
            f"{np.mean(fitted):.2f}" if fitted else "",
            f"{others[2]:.0f}",
            f"{others[3]:.0f}",
            f"{np.mean(a_sample):.3f}" if a_sample else "",
            f"{others[4] / 1e6:.2f}",
        )


def print_table(results: dict[str, dict[str, dict[str, Any]]], console: Console, title: str) -> None:
    """One row a variant."""
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for row in table_rows(results):
        table.add_row(*row)
    console.print(table)


def plot(results: dict[str, dict[str, dict[str, Any]]], path: Path, unit: str) -> None:
    """PSNR against time, where there are curves; else the gain of every fold."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    curves = {name: row["curve"] for name, folds in results.items() for row in folds.values() if row["curve"]}
    if curves:
        for name, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), "-o", markersize=3, label=name)
        axes.set(xlabel=f"training time, {unit}", ylabel="validation PSNR, dB")
    else:
        for name, folds in results.items():
            if name != MEAN:
                gains = [row["psnr"] - results[MEAN][fold]["psnr"] for fold, row in folds.items()]
                axes.plot(list(folds), gains, "o", label=name)
        axes.axhline(0, color="grey", linewidth=1)
        axes.tick_params(axis="x", rotation=90)
        axes.set(ylabel="PSNR above the mean training volume, dB")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cts", type=Path, help="folder of real CTs: leave one patient out")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, for each")
    parser.add_argument("--steps", type=int, default=0, help="train each for so many steps instead of the seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--variants", nargs="+", default=[MEAN, *VARIANTS], choices=[MEAN, *VARIANTS])
    parser.add_argument("--data", nargs="+", default=["written"], choices=DATA, help="what a step learns from")
    parser.add_argument("--patients", nargs="+", help="with --cts: those to use, beside the sample; all by default")
    parser.add_argument("--folds", nargs="+", help="with --cts: patients to leave out; all by default")
    parser.add_argument("--groups", type=int, default=0, help="with --cts: leave out so many groups; 0: each alone")
    parser.add_argument(
        "--training", type=int, default=1728, help="variations that are written, with one patient left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cts = real_cts(arguments.cts) if arguments.cts else {}
    if unknown := set(arguments.patients or ()) - cts.keys():
        parser.error(f"--patients: {', '.join(sorted(unknown))} is not among {', '.join(cts) or 'those of --cts'}")
    if arguments.patients:
        used = {*arguments.patients, sample_ct().parent.name}
        cts = {patient: path for patient, path in cts.items() if patient in used}
    if unknown := set(arguments.folds or ()) - cts.keys():
        parser.error(f"--folds: {', '.join(sorted(unknown))} is not among the patients {', '.join(cts) or 'of --cts'}")
    if arguments.groups and not 2 <= arguments.groups <= len(cts):
        parser.error(f"--groups: {len(cts)} patients cannot be left out in {arguments.groups} groups")
    if (several := [data for data in arguments.data if data in BETWEEN]) and not cts:
        parser.error(f"--data {several[0]} needs several patients: give --cts")
    torch.set_num_threads(arguments.threads)
    console = wide_console()

    def core_seconds() -> float:
        return time.process_time() / arguments.threads

    clock = time.monotonic if arguments.clock == "wall" else core_seconds
    budget = Budget(arguments.seconds, arguments.steps, clock)
    keys = ("seconds", "steps", "threads", "clock", "training", "seed")
    settings: dict[str, Any] = {key: getattr(arguments, key) for key in keys}
    if cts:
        settings |= {"variation": asdict(WIDE), "groups": arguments.groups, "patients": list(cts)}
    if other := otherwise_claimed(arguments.output, settings):
        parser.error(f"{other}; choose another folder")

    kept = arguments.output / "results"

    chosen_rows = {
        row_name(variant, data): (variant, data)
        for data in arguments.data
        for variant in dict.fromkeys([MEAN, *arguments.variants])
    }

    def missing(tests: Iterable[str]) -> list[str]:
        return [row for row in chosen_rows if not all((kept / row / f"{test}.json").exists() for test in tests)]

    known_rows = list(dict.fromkeys(row_name(variant, data) for variant in (MEAN, *VARIANTS) for data in DATA))
    for path in sorted(kept.glob("*/*.json")):
        name = path.parent.name
        if name not in known_rows or digest_of(name) != json.loads(path.read_text()).get("digest"):
            parser.error(f"{path} is of another {name} (network, loss or learning rate); delete it to train this one")

    folds: Iterator[Fold] = iter(())
    if cts:
        patients = list(cts)
        groups = [patients[i :: arguments.groups] for i in range(arguments.groups)] or [[p] for p in patients]
        chosen = set(arguments.folds or cts)
        if to_do := [group for group in groups if chosen & set(group) and missing(group)]:
            folds = patient_folds(cts, arguments.output, arguments.training, to_do)
    elif missing(["cohort"]):
        folds = iter([cohort_fold(arguments.output, arguments.training, arguments.seed)])
    for fold in folds:
        for name in missing(fold.tests):
            variant, data = chosen_rows[name]
            if variant == MEAN:
                rows = mean_volume(fold)
            else:
                rows = train(VARIANTS[variant], data, fold, budget, arguments.seed)
            for test, row in rows.items():
                write_json(kept / name / f"{test}.json", {**row, "digest": digest_of(name)})
                told = f"{test}  {name}: {row['psnr']:.2f} dB after {row['steps']} steps"
                console.print(told, highlight=False)

    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name in known_rows:
        rows = {p.stem: json.loads(p.read_text()) for p in sorted((kept / name).glob("*.json"))}
        if rows:
            results[name] = rows
    unit = "s" if arguments.clock == "wall" else f"core-seconds on {arguments.threads}"
    each = f"{arguments.steps} steps" if arguments.steps else f"{arguments.seconds:.0f} s of training each"
    title = f"{each} ({arguments.clock} clock, {arguments.threads} threads)"
    print_table(results, console, title)
    plot(results, arguments.output / "cascades.png", unit)
    for variant in dict.fromkeys(name.split("+")[0] for name in results if name != MEAN):
        console.print(f"{variant}: {VARIANTS[variant].about}", highlight=False)


if __name__ == "__main__":
    main()
