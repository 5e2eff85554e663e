"""How much a film looks like a view's usual radiograph, at the size that it states or at any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from drr2ct.transforms.detector import covered_rectangle, pixel_size_on_detector, states_pitch
from drr2ct.transforms.geometry import View
from drr2ct.transforms.radiographs.film import Film
from drr2ct.transforms.radiographs.orientation import Orientation, orientation_scores


def likeness(
    picture: Float[Tensor, "rows columns"], view: View, usual: Mapping[str, Any], pixel_mm: float | None
) -> float:
    """How much a picture looks like a view's usual radiograph, turned as it looks most like it."""
    return max(state_scores(picture, view, usual, pixel_mm).values())


def state_scores(
    picture: Float[Tensor, "rows columns"], view: View, usual: Mapping[str, Any], pixel_mm: float | None
) -> dict[Orientation, float]:
    """How much a picture looks like a view's usual radiograph in each state."""
    template = np.asarray(usual["thumbnail"], dtype=np.float32)
    return orientation_scores(picture, template, view.detector_size[0] * view.pixel_pitch_mm, pixel_mm)


def seen_part(film: Film) -> Float[Tensor, "r c"]:
    """The part of the image that shows anything."""
    return film.image[covered_rectangle(film.covered)]


def pixel_edge_mm(film: Film, edge_to_edge: bool) -> float | None:
    """Edge length of a pixel on the view's detector, if it is known."""
    rows, columns = film.image.shape
    if edge_to_edge:
        return film.view.detector_size[0] * film.view.pixel_pitch_mm / rows
    facts = {**film.facts, "pixel_spacing_mm": film.pixel_pitch_mm}
    if not states_pitch(facts, film.stated):
        return None
    size, _ = pixel_size_on_detector(facts, film.view, (rows, columns), film.stated)
    return max(size)
