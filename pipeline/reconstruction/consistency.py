"""Data consistency at inference: afterwards the volume's own radiographs are closer to the given ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from monai.inferers import Inferer
from torch import Tensor

from drr2ct.networks.interval import estimate_of
from drr2ct.networks.losses import ReprojectionLoss
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError

_PROBE = 0.01
"""Largest change of a voxel (41 HU) by which a direction's effect on the radiographs is measured."""


def fit_to_radiographs(
    prediction: Float[Tensor, "batch 1 n n n"],
    radiographs: Float[Tensor, "batch views h w"],
    geometry: BiplanarGeometry,
    steps: int,
) -> Float[Tensor, "batch 1 n n n"]:
    r"""Steepest descent on :math:`\frac12\|A v - r\|^2` from the prediction, a few steps with exact line search.

    The residual of the radiographs is spread back along the rays (Landweber's iteration with the step length of
    Nocedal and Wright, *Numerical Optimization*, 2006, eq. 3.26). It corrects what the network got wrong in the sums
    along rays, and says nothing of where along them: more than two or three steps paint streaks.

    Args:
        prediction: in [0, 1] over the HU window, on the geometry's cube.
        radiographs: line integrals / ``LINE_INTEGRAL_SCALE``, as the network was given them.
        geometry: of both.
        steps: number of steps; each projects twice and back once.

    Returns:
        The fitted volume, float32, without a gradient.
    """
    project = ReprojectionLoss(geometry).project
    volume, given = prediction.detach().float(), radiographs.detach().float()
    for _ in range(steps):
        with torch.enable_grad():
            variable = volume.clone().requires_grad_(True)
            projected = project(variable)
            (direction,) = torch.autograd.grad((projected - given).square().sum() / 2, variable)
        with torch.no_grad():
            probe = -direction * (_PROBE / direction.abs().amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-20))
            # towards where the volume goes, since attenuation is a broken line over HU
            change = project(volume + probe) - projected.detach()
            along = ((given - projected.detach()) * change).sum(dim=(1, 2, 3))
            length = along / change.square().sum(dim=(1, 2, 3)).clamp(min=1e-20)
            volume = volume + length[:, None, None, None, None] * probe
    return volume


class FittedInferer(Inferer):
    """What another inferer predicts, fitted to the radiographs it was predicted from (:func:`fit_to_radiographs`).

    Args:
        inferer: runs the network.
        geometry: of the network.
        steps: 0 leaves the prediction as it is.
        mode: how CTs were put on the grid in training.

    Raises:
        InputError: for a negative number, or where the grid is not the geometry's cube.
    """

    def __init__(self, inferer: Inferer, geometry: BiplanarGeometry, steps: int = 0, mode: str = "cube") -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InputError(f"consistency_steps is {steps!r}; give a whole number, 0 for none.")
        if steps and mode != "cube":
            raise InputError(
                f"consistency_steps needs volumes on the geometry's cube, but the checkpoint was trained in mode "
                f"{mode}; leave it at 0."
            )
        self.inferer = inferer
        self.geometry = geometry
        self.steps = steps

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """(B, V, H, W) → what the network gives, (B, 1 or 3, N, N, N), float32."""
        prediction = self.inferer(inputs, network, *args, **kwargs)
        if not self.steps:
            return prediction
        estimate = estimate_of(prediction)
        fitted = fit_to_radiographs(estimate, inputs, self.geometry, self.steps)
        # bounds, if there are any, go with their estimate
        return torch.cat([fitted, prediction[:, 1:] + (fitted - estimate)], dim=1)
