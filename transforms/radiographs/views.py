"""Which of two views a radiograph shows, by what it looks like."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.validation import InputError

SWAP_MARGIN = 0.15
"""How far :func:`pa_score` must contradict the declared views before they are refused as swapped."""


def pa_score(image: Float[Tensor, "rows columns"]) -> float:
    """How much a chest image looks frontal: higher for PA than for lateral, by comparison only.

    The sum of two cues that are independent of exposure and patient size when two views of a patient are compared:
    the logarithm of the attenuation's spread across columns (a chest is wider than deep), and the correlation of the
    detail in each row with its mirror image about the best midline (a lateral chest is less symmetric).
    """
    small = F.interpolate(image[None, None], size=(128, 128), mode="area")[0, 0].double().clamp(min=0)
    columns = torch.arange(128, dtype=torch.float64)
    mass = small.sum(dim=0) / small.sum()
    spread = ((columns - (mass * columns).sum()).square() * mass).sum().sqrt() / 128
    local = F.avg_pool2d(small[None, None], (1, 33), stride=1, padding=(0, 16), count_include_pad=False)[0, 0]
    detail, body = small - local, small > 0.05 * small.max()
    symmetry = -1.0
    for midline in range(48, 81):
        half = min(midline, 128 - midline)
        left, right = (slice(midline - half, midline), slice(midline, midline + half))
        both = (body[:, left] & body[:, right].flip(1)).double()
        count = both.sum(dim=1, keepdim=True).clamp(min=1)
        a, b = (
            (half_image - (half_image * both).sum(dim=1, keepdim=True) / count) * both
            for half_image in (detail[:, left], detail[:, right].flip(1))
        )
        symmetry = max(symmetry, ((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-9)).item())
    return symmetry + math.log(max(spread.item(), 1e-9))


def check_view_order(images: Float[Tensor, "views rows columns"], geometry: BiplanarGeometry, names: str) -> None:
    """Refuse a PA and a lateral chest image that were exchanged.

    Other pairs of angles are not checked for an exchange.

    Args:
        images: line integrals, in the order of ``geometry.views``.
        geometry: the declared views.
        names: the files, for the message.

    Raises:
        InputError: if the view declared lateral looks clearly more frontal than the one declared PA.
    """

    def near(view: View, *angles: float) -> bool:
        return any(abs(math.remainder(view.gantry_angle_deg - a, 360)) < 20 for a in angles)

    scores = {
        kind: [
            (pa_score(image) + math.log(view.pixel_pitch_mm / view.source_to_detector_mm), view.name)
            for image, view in zip(images, geometry.views, strict=True)
            if near(view, *angles)
        ]
        for kind, angles in (("frontal", (0.0, 180.0)), ("lateral", (90.0, -90.0)))
    }
    for frontal, frontal_name in scores["frontal"]:
        for lateral, lateral_name in scores["lateral"]:
            if lateral - frontal > SWAP_MARGIN:
                raise InputError(
                    f"radiographs {names} look exchanged: the one for view {lateral_name} is the more frontal; give "
                    f"{frontal_name} first where the geometry does, or switch this check off (--set check_order=false)."
                )
