"""Who is for training, who for validation and for test: drawn by patient, with what belongs together in one part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from drr2ct.pipeline.data.identity import ct_fingerprint
from drr2ct.transforms.validation import InputError, listed

logger = logging.getLogger(__name__)

PARTS = ("training", "validation", "test")


class TooFewPatientsError(InputError):
    """A data set that is to be split has fewer patients than parts."""


def split_patients(
    patients: Sequence[dict[str, Any]], fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Seeded split by patient into training, validation and test; a part with a fraction above 0 gets at least one.

    Raises:
        TooFewPatientsError: for fewer patients than parts.
        InputError: for fractions that do not sum to 1.
    """
    check_fractions(fractions)
    wanted = [part for part, fraction in zip(PARTS, fractions, strict=True) if fraction > 0]
    if len(patients) < len(wanted):
        raise TooFewPatientsError(
            f"{len(patients)} patient{'s are' if len(patients) != 1 else ' is'} too few to split into "
            f"{listed(wanted)}; {len(wanted)} or more are needed."
        )
    order = np.random.default_rng(seed).permutation(len(patients))
    count = len(patients)
    held_out = [max(1, round(count * fraction)) if fraction > 0 else 0 for fraction in fractions[1:]]
    if fractions[0] == 0:  # rounding: all that is left is validation's or test's
        held_out[held_out.index(max(held_out))] += count - sum(held_out)
    while count - sum(held_out) < (fractions[0] > 0):
        held_out[held_out.index(max(held_out))] -= 1
    edges = np.cumsum([0, count - sum(held_out), *held_out])
    return {
        part: [patients[i] for i in sorted(order[start:stop])]
        for part, start, stop in zip(PARTS, edges[:-1], edges[1:], strict=True)
    }


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse what is no split into three parts; a part may be empty.

    Raises:
        InputError: unless there are three numbers, zero or more, that sum to 1.
    """
    if len(fractions) != len(PARTS) or not min(fractions) >= 0 or not abs(sum(fractions) - 1) <= 1e-6:
        raise InputError(
            f"split fractions {tuple(fractions)} do not fit; give three numbers, zero or more, that sum to 1."
        )


def split_together(
    patients: Sequence[dict[str, Any]], fractions: Sequence[float], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """:func:`split_patients`, with copies of one CT, and items of one ``group``, in the part of the first, and said.

    Where that leaves too little to split, the items of a group are split up; where it still does, the copies too.

    Raises:
        InputError: as :func:`split_patients`.
    """
    wanted = sum(fraction > 0 for fraction in fractions)
    for with_groups in (True, False):
        bundles = _bundled(patients, with_groups)
        if len(bundles) >= wanted:
            break
    else:
        return split_patients(patients, fractions, seed)
    for first, *others in bundles:
        for item in others:
            copied = ct_fingerprint(item["label"]) == ct_fingerprint(first["label"])
            why = "is the same CT as" if copied else f"has the Patient ID {item.get('group')} too, as"
            logger.warning("%s %s %s; both stay in one part", item["patient"], why, first["patient"])
    together = {id(bundle[0]): bundle for bundle in bundles}
    parts = split_patients([bundle[0] for bundle in bundles], fractions, seed)
    return {part: [item for first in items for item in together[id(first)]] for part, items in parts.items()}


def _bundled(patients: Sequence[dict[str, Any]], with_groups: bool) -> list[list[dict[str, Any]]]:
    """The patients, those that belong together as one; in the order of the first of each."""
    bundles: list[list[dict[str, Any]]] = []
    home: dict[str, list[dict[str, Any]]] = {}
    for item in patients:
        keys = [f"ct {ct_fingerprint(item['label']) or item['patient']}"]
        keys += [f"group {item['group']}"] if with_groups and "group" in item else []
        found = [home[key] for key in keys if key in home]
        bundle = found[0] if found else []
        if not found:
            bundles.append(bundle)
        for other in found[1:]:
            if other is not bundle:  # the item shows that two bundles are one
                bundle += other
                bundles = [each for each in bundles if each is not other]
                home = {key: bundle if value is other else value for key, value in home.items()}
        bundle.append(item)
        home |= dict.fromkeys(keys, bundle)
    return bundles
