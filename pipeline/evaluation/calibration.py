r"""Bounds that cover what they say, on patients that the network has not seen: conformal scaling.

On calibration patients it is known by how many predicted widths the truth lies below or above the estimate; the factor
of a bound is the 95 % quantile of that (split conformal prediction with the score of Lei et al., *Distribution-free
predictive inference for regression*, JASA 113, 2018, for either bound on its own). A factor depends on the predicted
width: what is narrow is wrong by other factors than what is wide. What is promised is of the body's voxels;
where bounds are narrower than nearly all of the body's, which they are in the air around it, that air has factors of
its own.

Voxels of one patient are not independent, so patients count alike, whatever their size, and what is promised is a mean
over patients. There is no correction for their number (Lee, Barber and Willett, *Distribution-free inference with
hierarchical data*, 2023, needs 20 or more to promise 95 %): how far it may be off is measured, by leaving each
calibration patient out of the calibration in turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from drr2ct.networks import ProgressiveCascade
from drr2ct.networks.interval import KNOTS, TAIL, IntervalHead, interval_heads
from drr2ct.pipeline.checkpoints.files import RELEASE_SUFFIX, read_checkpoint, write_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.data.identity import ct_fingerprints
from drr2ct.pipeline.evaluation.intervals import LEVEL, plain
from drr2ct.pipeline.evaluation.protocol import refuse_leakage
from drr2ct.pipeline.evaluation.structures import body_mask
from drr2ct.pipeline.running.faults import refuse_missing_device
from drr2ct.transforms.files import refuse_to_replace
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

VOXELS = 20_000
"""Of a patient's body, so many are drawn."""
LEAST_FACTOR = 0.05
"""A bound stays on its side of the estimate, even where nearly all truths lie on the other."""
AIR_KNOTS = 2
"""Of :data:`~drr2ct.networks.interval.KNOTS`, for what is narrower than the body's bounds; none where little is."""
_LITTLE = 0.05
"""Of the voxels around the body."""


@dataclass(frozen=True)
class PatientScores:
    """Of voxels drawn from a patient's body, for the lower (0) and the upper (1) bound.

    Args:
        logarithm: of the predicted width, (2, voxels).
        score: how many widths the truth lies beyond the estimate, on the bound's side; (2, voxels).
        truth: in HU; (voxels).
    """

    logarithm: np.ndarray
    score: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Factors of the lower and of the upper width, at logarithms of the width (``IntervalHead.calibrate``)."""

    knots: tuple[float, ...]
    factors: tuple[tuple[float, ...], tuple[float, ...]]

    def factor(self, tail: int, logarithm: np.ndarray) -> np.ndarray:
        """What widths are multiplied by."""
        return np.interp(logarithm, self.knots, self.factors[tail])


UNCALIBRATED = Calibration(tuple(map(float, range(-KNOTS, 0))), ((1.0,) * KNOTS, (1.0,) * KNOTS))


@torch.no_grad()
def patient_scores(
    output: torch.Tensor, label: torch.Tensor, seed: int = 0, voxels: int = VOXELS, around: bool = False
) -> PatientScores:
    """How far off the bounds of one patient are.

    Args:
        output: (3, N, N, N) on the network's scale, of a head that is not calibrated.
        label: (1, N, N, N) likewise.
        seed: of the voxels that are drawn.
        voxels: how many, at most.
        around: of what is around the body instead.
    """
    output, label = plain(output).cpu(), plain(label).cpu()
    places = (body_mask(to_hu(label))[0].flatten() != around).nonzero()[:, 0]
    if len(places) > voxels:
        generator = torch.Generator().manual_seed(seed)
        places = places[torch.randperm(len(places), generator=generator)[:voxels]]
    estimate, low, high, truth = (volume.flatten()[places].numpy() for volume in (*output, label[0]))
    widths = np.maximum(np.stack([estimate - low, high - estimate]), np.finfo(np.float32).tiny)
    scores = np.stack([estimate - truth, truth - estimate]) / widths
    return PatientScores(np.log(widths), scores, to_hu(torch.from_numpy(truth)).numpy())


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The least of some values below or at which that share of their weights lies."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weights[order])
    return float(values[order][min(int(np.searchsorted(sums, share * sums[-1])), len(values) - 1)])


@dataclass(frozen=True)
class _Voxels:
    """Of all patients, as in :class:`PatientScores`; weights, (2, voxels), in which patients count alike."""

    logarithm: np.ndarray
    score: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, patients: Sequence[PatientScores]) -> _Voxels:
        """Voxels of some patients."""
        weights = [np.full(s.score.shape, 1 / s.score.shape[1]) for s in patients]
        parts = ([s.logarithm for s in patients], [s.score for s in patients], weights)
        return cls(*(np.concatenate(part, axis=1) for part in parts))

    def below(self, logarithm: float) -> _Voxels | None:
        """Those of which both bounds are narrower; None if they are few."""
        there = (self.logarithm < logarithm).all(axis=0)
        if self.weights[0, there].sum() <= _LITTLE * self.weights[0].sum():
            return None
        return _Voxels(self.logarithm[:, there], self.score[:, there], self.weights[:, there])

    def knots(self, count: int) -> np.ndarray:
        """So many logarithms of the width, between which equally many voxels lie; increasing."""
        knots = np.quantile(self.logarithm, (np.arange(count) + 0.5) / count)
        return np.maximum.accumulate(knots + 1e-6 * np.arange(count))  # also where all widths are alike

    def line(self, tail: int, knots: np.ndarray, by_width: bool) -> np.ndarray:
        """A bound's factor at each knot."""
        logarithm, score, weights = self.logarithm[tail], self.score[tail], self.weights[tail]
        line = np.full(len(knots), max(weighted_quantile(score, weights, 1 - TAIL), LEAST_FACTOR))
        if not by_width:
            return line
        place = np.searchsorted((knots[1:] + knots[:-1]) / 2, logarithm)
        for k in range(len(knots)):
            if (place == k).any():
                found = weighted_quantile(score[place == k], weights[place == k], 1 - TAIL)
                line[k] = max(found, LEAST_FACTOR)
        # the line between the knots is not the steps that were fitted
        left = score / np.interp(logarithm, knots, line)
        return line * max(weighted_quantile(left, weights, 1 - TAIL), LEAST_FACTOR)


def calibrate(
    patients: Sequence[PatientScores], by_width: bool = True, around: Sequence[PatientScores] = ()
) -> Calibration:
    """The factors by which bounds cover, in the mean of these patients, 95 % on either side.

    Args:
        patients: calibration patients; each counts alike.
        by_width: factors that depend on the predicted width, or one for all.
        around: of the same patients, what is around their bodies; for what is narrower than the body's bounds.
    """
    body = _Voxels.of(patients)
    air = _Voxels.of(around).below(float(np.quantile(body.logarithm, 0.5 / KNOTS))) if around and by_width else None
    count = KNOTS if air is None else KNOTS - AIR_KNOTS
    knots = body.knots(count)
    lines = [body.line(tail, knots, by_width) for tail in range(2)]
    if air is not None:
        lower = air.knots(AIR_KNOTS)
        lines = [np.concatenate([air.line(tail, lower, True), lines[tail]]) for tail in range(2)]
        knots = np.concatenate([lower, np.maximum(knots, lower[-1] + 1e-6 * (1 + np.arange(count)))])
    return Calibration(tuple(knots.tolist()), (tuple(lines[0].tolist()), tuple(lines[1].tolist())))


def coverage(patient: PatientScores, calibration: Calibration) -> float:
    """Share of a patient's voxels that calibrated bounds cover."""
    within = [patient.score[t] <= calibration.factor(t, patient.logarithm[t]) for t in range(2)]
    return float((within[0] & within[1]).mean())


def left_out_coverage(
    patients: Sequence[PatientScores], by_width: bool = True, around: Sequence[PatientScores] = ()
) -> list[float]:
    """Each patient's coverage by a calibration on all the others; empty for a single patient."""
    if len(patients) < 2:
        return []
    return [
        coverage(patient, calibrate(_without(patients, i), by_width, _without(around, i)))
        for i, patient in enumerate(patients)
    ]


def _without(patients: Sequence[PatientScores], i: int) -> list[PatientScores]:
    return [*patients[:i], *patients[i + 1 :]]


def apply_calibration(network: nn.Module, calibration: Calibration) -> None:
    """Put the factors into a network's interval head."""
    for head in interval_heads(network):
        head.calibrate(calibration.knots, calibration.factors)


def interval_head(network: ProgressiveCascade, checkpoint: str | Path) -> IntervalHead:
    """The head that makes a network's bounds.

    Raises:
        InputError: if it has none.
    """
    if network.interval is None:
        raise InputError(
            f"checkpoint {checkpoint} gives no bounds that could be calibrated; train them first (drr2ct train DATA "
            f"--recipe interval --set transfer_from={checkpoint})."
        )
    return network.interval


def run_calibration(
    dataset_dir: str | Path,
    checkpoint: str | Path,
    output: str | Path,
    part: str = "validation",
    split: tuple[Sequence[float], int] = ((0.8, 0.1, 0.1), 0),
    reading: Mapping[str, Any] | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Calibrate a checkpoint's bounds on patients that it was not trained on, and write it with the factors.

    The new checkpoint holds weights and description, and cannot be trained on. Its description says under ``interval``
    what the calibration is and on whom it rests.

    Args:
        dataset_dir: folder of patient folders.
        checkpoint: of a network with bounds.
        output: the checkpoint to write, ``.pt``.
        part: of the data set, or ``all``.
        split: fractions and seed, for a data set without ``dataset.json``.
        reading: how stored radiographs are read, see ``files_to_samples``.
        device: where the network runs.
        overwrite: replace a file that is there.

    Returns:
        The description's entry ``interval``.

    Raises:
        InputError: for a checkpoint without bounds, patients that it was trained on, or files that cannot be used.
    """
    output = Path(output)
    if output.suffix == RELEASE_SUFFIX or not output.suffix:
        raise InputError(f"a calibrated checkpoint is a .pt file, not {output}; drr2ct inspect --export makes others.")
    refuse_to_replace(output, overwrite, [checkpoint])
    refuse_missing_device(device)
    content = read_checkpoint(checkpoint)
    network = load_network(checkpoint, device, content)
    head = interval_head(network, checkpoint)
    description = content["description"]
    views = [view.name for view in network.config.geometry.views]
    items = load_datalist(dataset_dir, part, views, *split)
    refuse_leakage(checkpoint, description, items)
    head.reset_calibration()
    load = files_to_samples(network.config.geometry, description["mode"], **(reading or {}))
    scores: list[PatientScores] = []
    around: list[PatientScores] = []
    for number, item in enumerate(track(items, "calibration: patients")):
        sample: Any = load(item)
        with torch.inference_mode():
            made = network(sample["image"][None].to(device))[0]
        for kept, air in ((scores, False), (around, True)):
            kept.append(patient_scores(made, sample["label"], number, around=air))
    calibration = calibrate(scores, around=around)
    entry = {
        "level": LEVEL,
        "patients": [str(item["patient"]) for item in items],
        "cts": ct_fingerprints(items),
        **asdict(calibration),
        "uncalibrated": _spread([coverage(patient, UNCALIBRATED) for patient in scores]),
        "left_out": _spread(left_out_coverage(scores, around=around)),
    }
    apply_calibration(network, calibration)
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    write_checkpoint(output, {"network": weights, "description": {**description, "interval": entry}})
    return entry


def _spread(coverages: Sequence[float]) -> dict[str, float] | None:
    """Mean, least and greatest, for the description; None of nothing."""
    if not coverages:
        return None
    return {"mean": math.fsum(coverages) / len(coverages), "least": min(coverages), "most": max(coverages)}
