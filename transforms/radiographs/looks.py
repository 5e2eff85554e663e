"""What is decided by looking at films: markers, turn, polarity, what is clipped, and whether two belong together.

Each step maps a :class:`~drr2ct.transforms.radiographs.film.Film` to the next. What a header states is not decided
here, and nothing is where the user says that the film is right as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.detector import resample_covered, states_pitch
from drr2ct.transforms.geometry import View
from drr2ct.transforms.radiographs.agreement import (
    agreement_note,
    agreement_warning,
    compare_views,
    missing_exposure,
    moved_view,
)
from drr2ct.transforms.radiographs.film import Film
from drr2ct.transforms.radiographs.identity import orientation_entry
from drr2ct.transforms.radiographs.intensity import QUANTILES, quantiles_for_field
from drr2ct.transforms.radiographs.likeness import likeness, pixel_edge_mm, seen_part, state_scores
from drr2ct.transforms.radiographs.markers import fill, find_markers, marker_note
from drr2ct.transforms.radiographs.orientation import (
    DOUBTED,
    HEART_MARGIN,
    LIKENESS,
    OTHER_VIEW,
    SURE,
    Orientation,
    choose_orientation,
    is_lateral,
    mirror_margin,
    side_note,
    turn_of_axes,
)
from drr2ct.transforms.radiographs.saturation import (
    NOTED,
    censored_difference,
    clipping_notes,
    find_clipping,
    saturated_share,
)
from drr2ct.transforms.radiographs.size import PART, with_plausible_field
from drr2ct.transforms.validation import InputError

TURNS = {
    "as-is": Orientation(),
    "mirrored": Orientation(mirrored=True),
    "upside-down": Orientation(upside_down=True),
    "half-turn": Orientation(upside_down=True, mirrored=True),
    "clockwise": Orientation(transposed=True, mirrored=True),
    "anticlockwise": Orientation(transposed=True, upside_down=True),
}
"""What the user says has to be done to a stored picture, whatever a header states: nothing, or one of these."""

ORIENTATIONS = ("auto", *TURNS)
"""``auto``: by the header, else by looks; or one of :data:`TURNS`."""


def fill_burned_in(film: Film) -> Film:
    """Markers and labels of a picture, filled from their surroundings."""
    if film.intensity != "display":
        return film
    mask = find_markers(film.image) & film.covered
    note = marker_note(mask, film.name)
    return film if note is None else film.saying(note, image=fill(film.image, mask))


def turn_as_told(film: Film, orientation: str, feet_first: bool) -> Film:
    """Upright, by what the user says.

    Args:
        film: on its own pixels, as stored.
        orientation: one of :data:`TURNS`.
        feet_first: row 0 is caudal once that is done.
    """
    turn, pitch = TURNS[orientation], film.pixel_pitch_mm
    flips = [0] if feet_first else []
    done = "is upright as it is stored" if turn.as_stored else f"was {turn}"
    return film.saying(
        f"{film.name} {done}, as stated.",
        image=turn.turn(film.image).flip(flips),
        covered=turn.turn(film.covered).flip(flips),
        pixel_pitch_mm=pitch[::-1] if pitch and turn.transposed else pitch,
    )


def read_as_one_kind(films: Sequence[Film], edge_to_edge: bool, inverted: Sequence[bool | None]) -> list[Film]:
    """Numbers that were guessed to be line integrals by their range are a picture if one of them cannot be those.

    That is one that looks inverted (line integrals are high where a patient is dense), or whose range is that of a
    picture: views of one patient that nothing is said of are of one kind.

    Args:
        films: on their own pixels, as stored.
        edge_to_edge: they cover the detector exactly.
        inverted: what the user says of each, see :func:`turn_by_looks`.
    """
    guessed = [film for film in films if film.pixels.guessed]
    pictures = [film.name for film in guessed if film.intensity == "display"]
    upside = [film.name for film, said in zip(films, inverted, strict=True) if _dense_is_low(film, edge_to_edge, said)]
    if not (pictures or upside):
        return list(films)
    why = f"{upside[0]} is low where the patient is dense" if upside else f"{pictures[0]} is a picture by its range"
    return [
        replace(film, pixels=film.pixels.as_picture(film.name, why))
        if film.pixels.guessed and film.intensity == "line_integral"
        else film
        for film in films
    ]


def _dense_is_low(film: Film, edge_to_edge: bool, inverted: bool | None) -> bool:
    """Whether what was guessed to be line integrals looks clearly more usual inverted, or is said to be."""
    if not film.pixels.guessed or film.intensity != "line_integral":
        return False
    if inverted is not None or film.usual is None:
        return bool(inverted)
    scores = state_scores(seen_part(film), film.view, film.usual, pixel_edge_mm(film, edge_to_edge))
    low, high = (max(score for state, score in scores.items() if state.inverted == way) for way in (True, False))
    return low > max(LIKENESS, high + DOUBTED)


def turn_by_looks(
    film: Film,
    the_other_way_round: Callable[[], Film],
    edge_to_edge: bool,
    inverted: bool | None,
    decide: bool = True,
    others: Sequence[tuple[View, Mapping[str, Any]]] = (),
) -> Film:
    """Upright and dense-is-high, by what looks most like the training set's radiographs.

    Args:
        film: turned as its header states, if that states anything.
        the_other_way_round: gives the film that its numbers make if dense is low where it was taken to be high, or high
            where it was taken to be low: borders and markers are told by how bright they are.
        edge_to_edge: the film covers the detector exactly.
        inverted: what the user says of a picture: dense is dark (True) or bright (False) in it.
        decide: False takes its turn as it is.
        others: the geometry's other views, and what radiographs usually look like in them.

    Raises:
        InputError: if it is not clear how the film has to be turned, if it looks more like another view, if it holds
            both, or if its pitch cannot be.
    """
    if not edge_to_edge:
        film = with_plausible_field(film, decide)
    calibrated = film.intensity == "line_integral"
    axes, marked = film.pixels.metadata.get("nifti_axes"), film.pixels.metadata.get("marked", False)
    by_affine = not turn_of_axes(axes or "", marked).as_stored
    known_side = film.oriented or by_affine or is_lateral(film.view) or (calibrated and marked)
    sides = () if known_side else (side_note(film.name),)
    known = False if calibrated else inverted
    if film.usual is None:
        if decide and not (calibrated or film.oriented):
            unknown = "without statistics of the training set's radiographs that is not looked at"
            sides = (f"{film.name} is taken to be upright, the patient of a lateral facing left: {unknown}.", *sides)
        if inverted and film.intensity == "display":
            return the_other_way_round().saying(f"{film.name} was inverted, as stated.", *sides)
        return film.saying(*sides)
    scores = state_scores(seen_part(film), film.view, film.usual, pixel_edge_mm(film, edge_to_edge))
    turnable = decide and not film.oriented
    own = max(scores.values())
    if decide and film.oriented:
        film = _doubting_header(film, scores)
        if (found := _other_view(film, own, others, edge_to_edge)) is not None:
            warning = f"{film.name} {found}, whatever its header says; check that it is not the other view's film."
            film = film.doubting(warning)
    if turnable and not calibrated:
        _check_one_radiograph(film, own, others, edge_to_edge)
        if (found := _other_view(film, own, others, edge_to_edge)) is not None:
            raise InputError(
                f"radiograph {film.path} {found}; check the order of the files, or say that it is right as it is "
                "(--orientation as-is)."
            )
    if not turnable:
        scores = {state: score for state, score in scores.items() if state.as_stored}
    try:
        best, notes = choose_orientation(scores, film.view, film.path, known, None if by_affine else axes)
    except InputError as unclear:
        if turnable and not calibrated:
            raise
        best, notes = Orientation(inverted=bool(known)), []
        if turnable:
            notes = [f"{film.name} was not turned by its looks, which are not clear ({unclear})"]
    if known and best.inverted:
        notes = [note for note in notes if "was inverted" not in note] + [f"{film.name} was inverted, as stated."]
    if best.inverted:
        film = the_other_way_round().doubting(*film.warnings)
    pitch = film.pixel_pitch_mm
    return film.saying(
        *notes,
        *sides,
        image=best.turn(film.image),
        covered=best.turn(film.covered),
        pixel_pitch_mm=pitch[::-1] if pitch and best.transposed else pitch,
    )


def _doubting_header(film: Film, scores: Mapping[Orientation, float]) -> Film:
    """With a warning, if a film looks much more usual otherwise than its header says that it lies."""
    entry = orientation_entry(film.facts)
    ranking: dict[Orientation, float] = {}
    for state, score in scores.items():
        turn = state.turn_alone if is_lateral(film.view) else state.turned_only
        ranking[turn] = max(ranking.get(turn, -1.0), score)
    best, stated = max(ranking, key=ranking.__getitem__), ranking[Orientation()]
    if not (best.as_stored or ranking[best] < max(LIKENESS, stated + DOUBTED)):
        warning = (
            f"{film.name} lies as its {entry} says, but looks more like view {film.view.name} when it is "
            f"{best} ({ranking[best]:.2f} against {stated:.2f}): if the header is wrong, say how the stored picture "
            "lies (--orientation as-is if it is upright)."
        )
        return film.doubting(warning)
    upright = max((state for state in scores if state.as_stored), key=scores.__getitem__)
    if not is_lateral(film.view) and (apart := mirror_margin(scores, upright)) > HEART_MARGIN:
        warning = (
            f"{film.name} lies as its {entry} says, but looks more like the training radiographs when "
            f"it is mirrored (by {apart:.2f}): check the marker, its sides may be exchanged."
        )
        return film.doubting(warning)
    return film


def _other_view(
    film: Film, own: float, others: Sequence[tuple[View, Mapping[str, Any]]], edge_to_edge: bool
) -> str | None:
    """That a film is another view's, turned however, in words; None if it is not."""
    if own > SURE:
        return None
    for view, usual in others:
        score = likeness(seen_part(film), view, usual, pixel_edge_mm(film, edge_to_edge))
        if score > max(own + OTHER_VIEW, LIKENESS):
            return (
                f"was given for view {film.view.name} and looks like view {view.name} ({score:.2f} against {own:.2f})"
            )
    return None


def _check_one_radiograph(
    film: Film, own: float, others: Sequence[tuple[View, Mapping[str, Any]]], edge_to_edge: bool
) -> None:
    """Refuse a picture that holds both views, side by side or one above the other.

    It is longer than a film, and its halves look more like one view each than the whole looks like any.
    """
    seen, pixel_mm = seen_part(film), pixel_edge_mm(film, edge_to_edge)
    if film.usual is None or max(seen.shape) <= PART * min(seen.shape):
        return
    whole = max([own, *(likeness(seen, *other, pixel_mm) for other in others)])
    axis = int(np.argmax(seen.shape))
    halves = seen.tensor_split(2, dim=axis)
    ways = ("left", "right") if axis else ("upper", "lower")
    here = [likeness(half, film.view, film.usual, pixel_mm) for half in halves]
    for view, usual in others:
        there = [likeness(half, view, usual, pixel_mm) for half in halves]
        for i, j in ((0, 1), (1, 0)):
            if (here[i] + there[j]) / 2 > max(whole + OTHER_VIEW, LIKENESS):
                raise InputError(
                    f"radiograph {film.path} holds two: its {ways[i]} half looks like view {film.view.name} "
                    f"({here[i]:.2f}), its {ways[j]} half like view {view.name} ({there[j]:.2f}), and the whole like "
                    f"neither ({whole:.2f}); cut it in two and give one file for each view, or say that it is right as "
                    "it is (--orientation as-is)."
                )


def know_what_is_clipped(film: Film) -> Film:
    """What is at an end of the scale within the patient is not known; nor is the exposure that did it.

    A raw film whose open field is at full scale was exposed beyond it, by an unknown factor: line integrals in the
    patient are too low by one amount, which is found by comparison with the training set's.

    Args:
        film: on its view's detector; a picture not yet matched, which
            :func:`~drr2ct.transforms.radiographs.scale.match_with_usual` does.
    """
    if film.intensity == "line_integral":
        return film
    clipping = find_clipping(film.image, film.covered)
    notes, warnings = clipping_notes(clipping, film.name)
    film = film.saying(*notes).doubting(*warnings)
    if film.intensity == "display":
        return replace(film, body=clipping.body)
    pixels = film.pixels
    counts = pixels.high - pixels.values if pixels.counts_fall else pixels.values - pixels.low
    saturated, level = saturated_share(counts, pixels.covered, pixels.high - pixels.low)
    if saturated < NOTED:
        return film
    own = "" if level >= 1 else f", which is {level:.0%} of what its bits can hold"
    text = f"{film.name}: {saturated:.0%} of the picture is at full scale{own}, so its exposure is not known"
    if film.usual is None:
        return film.saying(f"{text}; line integrals are too low.", exposure_known=False)
    quantiles = quantiles_for_field(film.usual, float(film.covered.float().mean()))
    image = film.image / LINE_INTEGRAL_SCALE
    missing = max(censored_difference(quantiles, image, clipping), 0.0)
    image = image + missing * clipping.body
    lowest = np.asarray(quantiles)[: max(1, round(clipping.shares[0] * QUANTILES))].mean()
    image = torch.where(clipping.thin, torch.full_like(image, float(lowest)), image)
    return film.saying(
        f"{text}: {missing * LINE_INTEGRAL_SCALE:.2f} was added to the line integrals in the patient, by comparison "
        "with the training radiographs.",
        image=image * LINE_INTEGRAL_SCALE,
        body=clipping.body,
        exposure_known=False,
    )


def bring_together(films: Sequence[Film]) -> list[Film]:
    """Two views of one patient: the second at the height and size at which their rows agree best.

    Args:
        films: on their detectors, in line integrals; other numbers of views than two are left as they are.
    """
    if len(films) != 2:
        return list(films)
    first, second = films
    known = [film.intensity != "display" and film.exposure_known and film.air_seen for film in films]
    views = [film.view for film in films]
    if known == [True, False] and second.intensity == "transmission" and second.body is not None:
        offset = missing_exposure(first.image, second.image, second.body, views)
        second = second.saying(
            f"{second.name}: {offset:+.2f} was added to its line integrals in the patient, so that its rows sum up to "
            f"those of {first.name}.".replace("-", "−"),
            image=(second.image + offset * second.body).clamp(min=0),
        )
    agreement = compare_views(
        torch.stack([first.image, second.image]),
        torch.stack([first.covered, second.covered]),
        views,
        exposures_known=all(known),
        scalable=not all(states_pitch(film.facts, film.stated) for film in films),
    )
    if agreement is not None and agreement.moved:
        image, covered = resample_covered(lambda x: moved_view(x, second.view, agreement), second.image, second.covered)
        second = replace(second, image=image, covered=covered)
    warning = agreement_warning(agreement, all(known))
    second = second.saying(agreement_note(agreement, second.name))
    return [first, second.doubting(warning) if warning else second]
