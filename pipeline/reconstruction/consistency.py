"""Data consistency at inference: afterwards the volume's own radiographs are closer to the given ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from jaxtyping import Bool, Float
from monai.inferers import Inferer
from torch import Tensor, nn

from drr2ct.networks.interval import estimate_of
from drr2ct.networks.lifting import BackprojectionLift
from drr2ct.pipeline.reconstruction.beyond import projected_beyond
from drr2ct.pipeline.running.engines import batch_patients
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE, hu_to_attenuation
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.films.shared import smoothed
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError, whole_number
from drr2ct.transforms.volume import HU_WINDOW

logger = logging.getLogger(__name__)

_PROBE_HU = 40.0
"""Largest change of a voxel by which a direction's effect on the radiographs is measured."""

_SMOOTH_MM = 60.0
"""Differences of radiographs are counted but for what is smoother than this, a Gaussian's standard deviation on the
detector: exposure, scatter and a film's tone err smoothly, and would be taken for anatomy."""

LARGEST_DIFFERENCE = 0.25
"""Of radiographs whose structures differ more than this from the volume's own, nothing is taken over: the views do not
belong together as the geometry says, or are no line integrals. Of the validation's patients under the conditions of
``drr2ct robustness``, those below gained and those above lost (docs/evaluation.md)."""

_AGREED, _TONE_GAINS = 0.2, 0.1
"""Where structures differ by more than the first, radiographs' tone is matched to the volume's own if that takes away
the second part of the difference: a film's curve or scatter does. Of line integrals it would take what the network got
wrong by a factor. Chosen as the limit was."""
_TONE_SLOPES = ((0.5, 2.0), (0.2, 3.0))
"""Slopes that such a curve may have where nothing and where most is attenuated: a film's are within."""

_WORTH_SAYING = 0.005
"""Part of the line integrals that lies beyond the field of view."""

_LEAST_SLOPE = 10.0
"""HU per mm, added to the volume's own slope: a change goes where surfaces are, and less of it elsewhere. Weights are
the root of both: with the slope itself a patient gains a tenth more where all is as it should be, and loses twice as
much where distances or a film's tone are not."""

_LARGEST_GRID = 128
"""Voxels along an edge of the grid on which is fitted; a finer volume takes the change over, interpolated."""


@dataclass(frozen=True)
class Fit:
    """How a volume was fitted to its radiographs, or why it was left as it was.

    Args:
        difference: root mean square of the structures by which the prediction's own radiographs differed from those
            given, as a part of those given's.
        steps: that were made; 0 where the difference was too large.
        tone_matched: the radiographs' tone was matched to the prediction's own before; the difference is what was left.
        beyond: part of the radiographs' line integrals that was taken for what lies beyond the field of view.
    """

    difference: float
    steps: int
    tone_matched: bool = False
    beyond: float = 0.0

    def sentence(self) -> str:
        """What was done, for the record."""
        difference = f"the structures of the volume's own radiographs differed by {self.difference:.0%} from theirs"
        tone = ", their tone matched to it" if self.tone_matched else ""
        if not self.steps:
            return f"It was not fitted to the radiographs: {difference}{tone}, more than {LARGEST_DIFFERENCE:.0%}."
        beyond = ""
        if self.beyond >= _WORTH_SAYING:
            beyond = f" {self.beyond:.0%} of what they attenuate was taken to lie beyond the field of view."
        return (
            f"It was fitted to the radiographs in {self.steps} step{'s' * (self.steps > 1)}{tone}: {difference} before."
            f"{beyond}"
        )


def fit_to_radiographs(
    prediction: Float[Tensor, "1 n n n"],
    radiographs: Float[Tensor, "views h w"],
    geometry: BiplanarGeometry,
    steps: int,
    covered: Bool[Tensor, "views h w"] | None = None,
    largest_difference: float = LARGEST_DIFFERENCE,
) -> tuple[Float[Tensor, "1 n n n"], Fit]:
    r"""Descent on :math:`\frac12\|H(A v - r)\|^2` from the prediction, a few steps with exact line search.

    :math:`H` takes away what is smooth. What is left of the differences is sampled where each voxel's centre projects
    to, times how much more the voxel attenuates with its HU: the gradient, but for factors that are alike in all
    voxels, at a tenth of its cost. It says nothing of where along a ray the network was wrong. Mostly it has put a
    surface to the wrong place, so the gradient is weighed by how steep the volume is there, a diagonal
    preconditioner. The length is that of exact line search (Nocedal and Wright, *Numerical Optimization*, 2006,
    eq. 3.26). More than two or three steps fit what a grid cannot hold. What the radiographs show of the body beyond
    the cube (:func:`projected_beyond`) counts as the volume's own. Where they differ much, and a curve
    :math:`a r + b r^2` of each view's own is closer, that is taken for :math:`r`.

    Args:
        prediction: in [0, 1] over the HU window, on the geometry's cube.
        radiographs: line integrals / ``LINE_INTEGRAL_SCALE``, as the network was given them.
        geometry: of both.
        steps: number of steps; each projects once.
        covered: where the radiographs are known; everywhere by default.
        largest_difference: of the structures, above which no step is made.

    Returns:
        The volume, float32 in [0, 1] over the HU window, without a gradient; and what was done.
    """
    low, high = HU_WINDOW
    size, detector = geometry.grid.size, geometry.detector_size
    factor = math.gcd(size, *detector, max(size // _LARGEST_GRID, 1))
    coarse = geometry.resized(size // factor, (detector[0] // factor, detector[1] // factor))
    with torch.no_grad():
        volume = prediction.detach().float()
        given = F.avg_pool2d(radiographs.detach().float() * LINE_INTEGRAL_SCALE, factor)
        known = torch.ones_like(given) if covered is None else -F.max_pool2d(-covered.float(), factor)
        hu = F.avg_pool3d(volume, factor) * (high - low) + low
        change, fit = _descend(hu, given, known, coarse, steps, largest_difference)
        if change is None:
            return volume, fit
        finer = F.interpolate(change[None], size=[size] * 3, mode="trilinear", align_corners=False)[0]
        return finer.div_(high - low).add_(volume).clamp_(0, 1), fit


def _descend(
    start: Tensor, given: Tensor, known: Tensor, geometry: BiplanarGeometry, steps: int, largest_difference: float
) -> tuple[Tensor | None, Fit]:
    """What the steps change in HU, None where the views differ too much; and what was done."""
    affine = geometry.grid.affine()
    # one view at a time, since the positions in all would be most of what the fit holds
    alone = [replace(geometry, views=(view,)) for view in geometry.views]
    lifts = [BackprojectionLift(one, geometry.grid.size, 0).to(start.device) for one in alone]

    def structures(images: Tensor) -> Tensor:
        images = images * known
        views = zip(images, geometry.views, strict=True)
        smooth = torch.stack([smoothed(image, _SMOOTH_MM, view.pixel_pitch_mm) for image, view in views])
        return (images - smooth) * known

    def differing(images: Tensor) -> float:
        shown = structures(images)
        return float((shown - of_start).norm() / shown.norm().clamp(min=1e-20))

    own = render_drr(start, geometry, affine=affine)
    outside = projected_beyond(start, given - own, structures, geometry)
    beyond = float((outside * known).sum() / (given * known).sum().clamp(min=1e-20))
    projected = own + outside
    of_start = structures(projected)
    difference, matched = differing(given), False
    if difference > _AGREED and (toned := _toned(given, of_start, structures)) is not None:
        left = differing(toned)
        if matched := left <= (1 - _TONE_GAINS) * difference:
            given, difference = toned, left
    if not difference <= largest_difference:
        return None, Fit(difference, 0, matched, beyond)
    i, j, k = torch.gradient(start, spacing=geometry.grid.spacing_mm, dim=(1, 2, 3))
    slope = (i.square() + j.square() + k.square()).sqrt()  # linalg.vector_norm takes half a second for it
    weights = (_LEAST_SLOPE + slope).sqrt()
    hu = start.clone()
    for _ in range(steps):
        missing = structures(given - projected)
        direction = torch.zeros_like(hu)
        for lift, image in zip(lifts, missing, strict=True):
            direction += lift(image[None, None, None])[0]
        direction *= weights * (hu_to_attenuation(hu + 1) - hu_to_attenuation(hu))
        direction *= _PROBE_HU / direction.abs().amax().clamp(min=1e-20)
        # towards where the volume goes, since attenuation is a broken line over HU
        effect = render_drr(hu + direction, geometry, affine=affine) + outside - projected
        shaped = structures(effect)
        length = (missing * shaped).sum() / shaped.square().sum().clamp(min=1e-20)
        hu += length * direction
        projected += length * effect
    return hu - start, Fit(difference, steps, matched, beyond)


def _toned(images: Tensor, wanted: Tensor, structures: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Radiographs by the curve :math:`a r + b r^2` of each view whose structures are closest to those wanted.

    None if that is no film's curve (:data:`_TONE_SLOPES`).
    """
    thickest = images.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-20)
    powers = torch.stack([images, images.square() / thickest])
    shown = torch.stack([structures(power) for power in powers]).flatten(2).transpose(0, 1).double()
    sums = shown @ wanted.flatten(1).double()[..., None]
    curves = (torch.linalg.pinv(shown @ shown.transpose(1, 2), hermitian=True) @ sums)[:, :, 0]
    for a, b in curves.tolist():
        if not all(least <= slope <= most for slope, (least, most) in zip((a, a + 2 * b), _TONE_SLOPES, strict=True)):
            return None
    return (powers * curves.to(powers).T[..., None, None]).sum(dim=0)


def fitted_prediction(
    prediction: Float[Tensor, "channels n n n"],
    radiographs: Float[Tensor, "views h w"],
    geometry: BiplanarGeometry,
    steps: int,
    covered: Bool[Tensor, "views h w"] | None = None,
) -> tuple[Float[Tensor, "channels n n n"], Fit]:
    """:func:`fit_to_radiographs` of what a network gives; bounds, if there are any, go with their estimate."""
    estimate = estimate_of(prediction)
    fitted, fit = fit_to_radiographs(estimate, radiographs, geometry, steps, covered)
    if not fit.steps:
        return prediction, fit
    moved = prediction + (fitted - estimate)
    moved[:1] = fitted  # without the rounding of a sum
    return moved, fit


def with_fit(network: nn.Module, geometry: BiplanarGeometry, steps: int = 1) -> Callable[[Tensor], Tensor]:
    """What a reconstruction is by default: the network's volume, fitted to its radiographs where they agree enough.

    Returns:
        radiographs (views, H, W) → (1, N, N, N), with bounds (3, N, N, N), in [0, 1] over the HU window.
    """

    def predict(radiographs: Tensor) -> Tensor:
        given = radiographs.as_subclass(Tensor).to(next(network.parameters()).device).float()
        with torch.inference_mode():
            prediction = network.eval()(given[None])[0].float()
        return fitted_prediction(prediction, given, geometry, steps)[0].cpu()

    return predict


def check_steps(steps: object, mode: str) -> int:
    """A number of steps.

    Raises:
        InputError: for what is none, or where the grid is not the geometry's cube.
    """
    number = whole_number("consistency_steps", steps, 0)
    if number and mode != "cube":
        raise InputError(
            f"consistency_steps needs volumes on the geometry's cube, but the checkpoint was trained in mode "
            f"{mode}; set it to 0."
        )
    return number


class FittedInferer(Inferer):
    """What another inferer predicts, fitted to the radiographs it was predicted from (:func:`fit_to_radiographs`).

    Attached to an engine, it says of whom it leaves the prediction as it is.

    Args:
        inferer: runs the network.
        geometry: of the network.
        steps: 0 leaves the prediction as it is.
        mode: how CTs were put on the grid in training.

    Raises:
        InputError: as :func:`check_steps`.
    """

    def __init__(self, inferer: Inferer, geometry: BiplanarGeometry, steps: int = 0, mode: str = "cube") -> None:
        super().__init__()
        self.steps = check_steps(steps, mode)
        self.inferer = inferer
        self.geometry = geometry
        self.fits: list[Fit] = []  # of the last batch

    def attach(self, engine: Engine) -> None:
        """Register on the engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._say)

    def _say(self, engine: Engine) -> None:
        for patient, fit in zip(batch_patients(engine.state.batch), self.fits, strict=False):
            if not fit.steps:
                logger.warning("%s: %s", patient, fit.sentence())

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """(B, V, H, W) → what the network gives, (B, 1 or 3, N, N, N), float32."""
        prediction = self.inferer(inputs, network, *args, **kwargs)
        if not self.steps:
            return prediction
        pairs = zip(prediction, inputs, strict=True)
        made = [fitted_prediction(one, given, self.geometry, self.steps) for one, given in pairs]
        self.fits = [fit for _, fit in made]
        return torch.stack([fitted for fitted, _ in made])
