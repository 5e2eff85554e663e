"""One patient's reconstruction in values, before anything is written: the volume, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from monai.data import MetaTensor
from torch import Tensor

from drr2ct.networks.interval import estimate_of, has_bounds
from drr2ct.pipeline.evaluation.figures import REPROJECTION_FIGURES
from drr2ct.pipeline.evaluation.metrics import ReprojectionMetric
from drr2ct.pipeline.evaluation.reprojection import reprojection_verdict
from drr2ct.pipeline.reconstruction.consistency import Fit, fitted_prediction
from drr2ct.pipeline.reconstruction.job import ReconstructionJob
from drr2ct.pipeline.volumes.placing import half_width, place_bounds, place_like, place_on_grid, place_resized
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.radiographs.intensity import distribution_warning


@dataclass(frozen=True)
class Result:
    """One patient's reconstruction.

    Args:
        patient: its name.
        volume: (1, I, J, K) in HU in patient space, on the voxels that were asked for.
        on_grid: (1, N, N, N) in HU on the network's grid.
        bounds: (2, I, J, K) in HU on the voxels of ``volume``, lower and upper; None of a network without.
        doubt_on_grid: (1, N, N, N) in HU on the network's grid, half of what lies between the bounds; likewise.
        given: line integrals that the network was given.
        covered: where they are known, and not only extended from the edge.
        reprojection: figure → how far the own radiographs of what the network gave are from those.
        fit: how that was fitted to them; None if it was not to be.
        assumptions: what was assumed, one sentence each.
        warnings: what makes the volume doubtful, one sentence each.
    """

    patient: str
    volume: MetaTensor
    on_grid: MetaTensor
    bounds: MetaTensor | None
    doubt_on_grid: MetaTensor | None
    given: Float[Tensor, "views rows columns"]
    covered: Bool[Tensor, "views rows columns"]
    reprojection: Mapping[str, float]
    fit: Fit | None
    assumptions: Sequence[str]
    warnings: Sequence[str]

    @property
    def radiographs_mean(self) -> float:
        """Mean line integral that was given, where it is known."""
        return float(self.given[self.covered].mean())

    @property
    def reprojection_sentence(self) -> str:
        """How well the volume fits the radiographs, in words."""
        error, bias, _ = (self.reprojection[name] for name in REPROJECTION_FIGURES)
        before = "before it was fitted, " if self.fit is not None and self.fit.steps else ""
        return (
            f"{before}the volume's own radiographs differ from those given by {error:.3f} on average "
            f"(bias {bias:+.3f}), in line integrals whose mean is {self.radiographs_mean:.3f}"
        )


def make_result(
    job: ReconstructionJob,
    patient: str,
    prediction: Float[Tensor, "channels n n n"],
    image: Float[Tensor, "views rows columns"],
    covered: Bool[Tensor, "views rows columns"],
    read: Sequence[str] = (),
    doubts: Sequence[str] = (),
) -> Result:
    """Put a prediction into patient space as the job wants it, and compare it with the radiographs it came from.

    Args:
        job: whose geometry, size and CT to be like hold.
        patient: its name.
        prediction: in [0, 1] over the HU window, on the network's grid; with bounds or without.
        image: line integrals / ``LINE_INTEGRAL_SCALE``, as the network was given them.
        covered: where they are known; only there they are judged.
        read: what reading the radiographs assumed.
        doubts: what it warns of.
    """
    mode = job.description["mode"]
    ct, size = job.ct, None if job.size == job.geometry.grid.size else job.size
    stays = ct is None and size is None  # on the network's grid

    def on_network_grid(scaled: Tensor) -> MetaTensor:
        return place_on_grid(scaled, job.geometry)

    def place(scaled: Tensor) -> MetaTensor:
        if ct is not None:
            return place_like(scaled, job.geometry, ct, mode)
        return on_network_grid(scaled) if size is None else place_resized(scaled, job.geometry, size)

    given = image * LINE_INTEGRAL_SCALE
    # judged is what the network gives: a fit would hide how little it suits the radiographs
    on_grid = on_network_grid(estimate_of(prediction))
    figures: Any = ReprojectionMetric(job.geometry)([on_grid], [torch.where(covered, given, torch.nan)])
    fit = None
    if job.consistency_steps:
        there = prediction.device
        steps = job.consistency_steps
        prediction, fit = fitted_prediction(prediction, image.to(there), job.geometry, steps, covered.to(there))
        if fit.steps:
            on_grid = on_network_grid(estimate_of(prediction))
    volume = on_grid if stays else place(estimate_of(prediction))
    bounds = doubt = None
    if has_bounds(prediction):
        bounds_on_grid = place_bounds(on_network_grid, prediction)
        bounds, doubt = bounds_on_grid if stays else place_bounds(place, prediction), half_width(bounds_on_grid)
    statistics = job.description.get("radiographs")
    assumptions = [*read, *_placing_assumptions(job, mode), *([fit.sentence()] if fit is not None else [])]
    if statistics is None:
        assumptions.append(
            "It was not checked whether the radiographs look like the training set's, as the checkpoint holds no "
            "statistics of those."
        )
    reprojection = dict(zip(REPROJECTION_FIGURES, figures[0].tolist(), strict=True))
    verdict = reprojection_verdict(reprojection["reprojection_relative"], job.description.get("reprojection"))
    if not verdict.doubtful:
        assumptions.append(verdict.sentence)
    found = [distribution_warning(image * covered, statistics), verdict.sentence if verdict.doubtful else None]
    warnings = [*doubts, *(warning for warning in found if warning is not None)]
    if doubt is not None:
        (assumptions if "interval" in job.description else warnings).append(_about_bounds(job))
    return Result(patient, volume, on_grid, bounds, doubt, given, covered, reprojection, fit, assumptions, warnings)


def _about_bounds(job: ReconstructionJob) -> str:
    calibration = job.description.get("interval")
    if calibration is None:
        return (
            "The bounds are not calibrated: nothing is known of how often they hold; drr2ct calibrate does that with "
            "patients that the network has not seen."
        )
    count = len(calibration["patients"])
    return (
        f"The bounds are meant to hold for {calibration['level']:.0%} of the body's voxels, in the mean of patients "
        f"like the {count} on which they are calibrated; of another kind of patient or film they say less."
    )


def _placing_assumptions(job: ReconstructionJob, mode: str) -> Iterator[str]:
    grid = job.geometry.grid
    if job.ct is not None:
        centre = ", ".join(f"{c:.1f}" for c in job.ct.meta["isocentre"])
        yield (
            f"The isocentre is the centre of the bounding box of {job.like}, at ({centre}) mm; the volume is "
            f"interpolated from {grid.size}³ voxels of {grid.spacing_mm:.3g} mm onto that CT's."
        )
    else:
        yield "The isocentre is the origin of the volume's coordinates."
    if job.size is not None and job.size != grid.size:
        yield f"The volume is interpolated from {grid.size}³ to {job.size}³ voxels; that adds no detail to it."
    if mode == "resize" and job.ct is None:
        yield (
            f"The network was trained on CTs stretched to a cube: a voxel's size of {grid.spacing_mm:.3g} mm "
            "is nominal; give the patient's CT (like) for the true one."
        )
