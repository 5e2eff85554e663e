"""Which of two films is the frontal one: by their headers, else by their names, else by looks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.identity import view_kind
from drr2ct.transforms.radiographs.orientation import is_lateral, orientation_scores
from drr2ct.transforms.radiographs.pixels import Pixels
from drr2ct.transforms.radiographs.views import pa_score

_FRONTAL = {"pa", "ap", "frontal", "front", "posteroanterior", "anteroposterior"}
_LATERAL = {"lat", "lateral", "ll", "rl", "side", "seitlich", "profile", "profil"}
_KINDS = {"PA": "frontal", "AP": "frontal", "LL": "lateral", "RL": "lateral", "LAT": "lateral"}


def find_order(
    films: Sequence[Pixels], names: Sequence[str], geometry: BiplanarGeometry, statistics: Mapping[str, Any] | None
) -> tuple[list[int], str]:
    """Which film is which view's.

    Args:
        films: decoded, one for each view.
        names: that their files were given under.
        geometry: of the views; only a frontal and a lateral view are told apart, others are taken as they come.
        statistics: of the training set's radiographs, to go by looks.

    Returns:
        Indices into ``films`` in the order of the views, and how that was found: ``header``, ``name``, ``looks``, or
        ``given``.
    """
    kinds = ["lateral" if is_lateral(view) else "frontal" for view in geometry.views]
    if sorted(kinds) != ["frontal", "lateral"] or len(films) != 2:
        return list(range(len(films))), "given"
    for how, found in (
        ("header", [_KINDS.get(view_kind(film.metadata)) for film in films]),
        ("name", [_kind_of_name(name) for name in names]),
    ):
        known = [kind for kind in found if kind is not None]
        if len(set(known)) == len(known) and known:
            first = found[0] or kinds[1 - kinds.index(known[0])]
            return ([0, 1] if first == kinds[0] else [1, 0]), how
    return _by_looks(films, kinds, geometry, statistics), "looks"


def _kind_of_name(name: str) -> str | None:
    """Frontal or lateral, if a file's name says one of them and not both."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    says = [kind for kind, known in (("frontal", _FRONTAL), ("lateral", _LATERAL)) if words & known]
    return says[0] if len(says) == 1 else None


def _by_looks(
    films: Sequence[Pixels], kinds: Sequence[str], geometry: BiplanarGeometry, statistics: Mapping[str, Any] | None
) -> list[int]:
    pictures = [_picture(film) for film in films]
    if statistics is None:
        scores = [pa_score(picture) for picture in pictures]
        frontal = 0 if scores[0] >= scores[1] else 1
        return [frontal, 1 - frontal] if kinds[0] == "frontal" else [1 - frontal, frontal]
    likeness = [
        [
            max(
                orientation_scores(
                    picture,
                    np.asarray(usual["thumbnail"], dtype=np.float32),
                    view.detector_size[0] * view.pixel_pitch_mm,
                ).values()
            )
            for view, usual in zip(geometry.views, statistics["views"], strict=True)
        ]
        for picture in pictures
    ]
    straight, crossed = likeness[0][0] + likeness[1][1], likeness[0][1] + likeness[1][0]
    return [0, 1] if straight >= crossed else [1, 0]


def _picture(film: Pixels) -> torch.Tensor:
    """Dense is bright as far as the file says, 0 to 1; small, since that is enough for looks."""
    values = film.values.astype(np.float32)
    low, high = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    shown = np.nan_to_num(np.clip((values - low) / max(high - low, 1e-9), 0, 1))
    if film.dark_is_high or (film.intensity == "transmission" and not film.counts_fall):
        shown = 1 - shown
    step = max(1, math.ceil(max(shown.shape) / 1024))
    return torch.from_numpy(np.ascontiguousarray(shown[::step, ::step]))
