"""What was decided about films, sentence by sentence, sorted by film and subject for the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

SUBJECTS = (
    ("tone", r"was read as|is a picture|unattenuated|at full scale, so|through (its|the|a) |without its windows|"
             r"floating-point|was added to its line|window"),
    ("polarity", r"inverted"),
    ("turn", r"mirrored|turned|transposed|upright|faced right|marker is not read|its sides may|from the opposite side|"
             r"not state its orientation"),
    ("size", r"pitch|pixels [\d.]+ times|cassette|Spacing"),
    ("distance", r"distance|isocentre|magnification|from the source|from its source"),
    ("field", r"collimat|border|round field|padding|shutter|burned in|clipped|not covered|transparent"),
)  # fmt: skip
"""Subject → how its sentences are known; what fits none is ``other``."""

REMEDIES = (
    (r"colour=ignore", "colour", "ignore"),
    (r"check_header=false", "check_header", False),
    (r"look exchanged", "swap", True),
    (r"check_order=false", "check_order", False),
    (r"--orientation as-is", "orientation", "as-is"),
    (r"--opposite-side", "opposite_side", True),
)
"""What a refusal mentions, and the option that uses the film all the same."""


def sorted_sentences(
    sentences: Sequence[str], files: Sequence[str], shown: Sequence[str]
) -> tuple[list[dict[str, list[str]]], list[str]]:
    """Sentences by film and subject, and those of the pair.

    Args:
        sentences: of reading.
        files: stored names of the films, in the order of the views.
        shown: their names for eyes.
    """
    films: list[dict[str, list[str]]] = [{} for _ in files]
    pair = []
    for sentence in sentences:
        named = [i for i, file in enumerate(files) if file in sentence]
        text = with_names(sentence, files, shown)
        if len(named) != 1 or ("rows" in sentence and "two views" in sentence):
            pair.append(text)
            continue
        subject = next((name for name, known in SUBJECTS if re.search(known, sentence)), "other")
        films[named[0]].setdefault(subject, []).append(text)
    return films, pair


def with_names(sentence: str, files: Sequence[str], shown: Sequence[str]) -> str:
    """A sentence for the page: with the user's names of files for ours, and words for values of options."""
    sentence = sentence.replace("line_integral", "line integrals")
    for file, name in sorted(zip(files, shown, strict=True), key=lambda both: -len(both[0])):
        sentence = sentence.replace(file, name)
    return sentence


def refusal(
    sentence: str, files: Sequence[str], shown: Sequence[str]
) -> tuple[str, list[int], list[dict[str, str | bool]]]:
    """A refusal for the page: without hints at the command line, whose films it is about, and what to do about it.

    Args:
        sentence: of the reader.
        files: stored names.
        shown: names for eyes.

    Returns:
        The sentence, indices of the films that it names, and options that use them all the same.
    """
    about = [i for i, file in enumerate(files) if file in sentence]
    remedies: list[dict[str, str | bool]] = [
        {"option": option, "value": value} for known, option, value in REMEDIES if re.search(known, sentence)
    ]
    plain = re.sub(
        r",? or (use it all the same|use its luminance|overwrite it)? ?(by )?\(?--set [^)\s;.]+\)?", "", sentence
    )
    plain = re.sub(r",? or switch this check off( \(--[^)]*\))?", "", plain)
    plain = re.sub(r",? ?\(--[^)]*\)", "", plain)
    plain = re.sub(r", which --opposite-side takes", "", plain)
    return with_names(plain, files, shown), about, remedies


def why_not_ready(reading: Mapping[str, Any] | None, otherwise: str) -> str:
    """Every refusal of a reading, for a script: with the fields that use the films all the same.

    Args:
        reading: what the task ``read`` found, if it came to an end.
        otherwise: what else is said of the case.
    """
    reading = reading or {}
    films = reading.get("films", [])
    remedies = [remedy for place in (*films, reading) for remedy in place.get("remedies", [])]
    fields = [f"{r['option']}={str(r['value']).lower()}" for r in remedies if r["option"] != "swap"]
    sentences = [*(film["error"] for film in films if film["error"]), otherwise]
    if fields:
        sentences.append(f"To use it all the same, send {' '.join(dict.fromkeys(fields))} with it.")
    return " ".join(sentence for sentence in sentences if sentence)
