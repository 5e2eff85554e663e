"""Judging DICOM series by their headers: which are one stack of axial CT slices, and why the others are not."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from drr2ct.pipeline.data.candidate import (
    AGAIN,
    MIN_SLICES,
    NO_VOLUME,
    REPAIR,
    THICK_SLICES_MM,
    Candidate,
    slice_word,
)
from drr2ct.pipeline.data.headers import PASS_TAGS, Header
from drr2ct.transforms.dicom_slices import same_pixels

MAX_TILT_DEG = 0.5
"""A stack that leans more than this against its slices was acquired with a tilted gantry."""
SAME_GEOMETRY = 2e-3
"""By how much direction cosines and pixel spacings (mm) of one stack may differ."""
SLAB_OVERLAP = 3.0
"""Slices thicker than so many times their distance are slabs; reconstructions that overlap by half have 2."""
MOST_OVERLAP = 2.1
"""Slices thicker than so many times their distance stand behind others, however many they are."""
_PROJECTIONS = {"MIP", "MINIP", "MIN_IP", "MAXIP", "MAX_IP", "AVERAGE", "AVG", "MEAN", "MAXIMUM", "MINIMUM"} | {
    "PROJECTION IMAGE", "THICK SLAB",
}  # fmt: skip
_PROJECTED = re.compile(r"(?<![a-z])(?:min[ _-]?|max[ _-]?|m|average[ _-]?)ips?(?![a-z])", re.IGNORECASE)
_NO_HU_TYPES = {"IODINE", "MATERIAL", "MATERIAL_DENSITY", "Z_EFF", "ZEFF", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY"} | {
    "PERFUSION", "MATERIAL_FRACTION", "MATERIAL_VALUE", "FRACTION_MAP", "VRT", "VOLREN", "SSD",
}  # fmt: skip
_NO_HU = re.compile(
    r"iodine|perfusion|overlay|calcium[ _-]?supp|uric[ _-]?acid|fat[ _-]?(?:fraction|map)|\bP?BV\b"
    r"|\b[rc]?(?:CBF|CBV|BV|BF|MTT|TTP|TMAX)\b",
    re.IGNORECASE,
)
"""What describes other quantities where images are derived; of original images, it may be their contrast agent."""
_NEVER_HU = re.compile(
    r"iodine[ _-]?(?:map|dens|conc|no[ _-]?water|\()|\(iodine\)|material[ _-]?dens|\bz[ _-]?eff|effective[ _-]?z\b"
    r"|electron[ _-]?dens",
    re.IGNORECASE,
)
_VIRTUAL = re.compile(r"virtual[ _-]?(?:non|un|mono)|\bVNC\b|\bVUE\b", re.IGNORECASE)
POSITION_TOLERANCE = 0.1
"""How far a slice may lie from its place in an even stack, as a fraction of the spacing."""


def dicom_candidates(headers: Iterable[Header], person: Callable[[str], str]) -> list[Candidate]:
    """Group DICOM files into stacks and judge each by its headers.

    Files of one series that differ in orientation, matrix or pixel spacing are separate stacks: some scanners keep
    the localiser and the scan in one series. So are several passes over one region.

    Args:
        headers: of all files.
        person: whom a path names, where it is known; an anonymiser may have given everybody the same identifiers.
    """
    series: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    for header in headers:
        # in a series without an identifier, the folder holds it together
        name = header.series or str(Path(header.path).parent)
        key = (person(header.path), header.patient, header.study, name, header.modality, header.shape)
        series[key].append(header)
    stacks = [stack for members in series.values() for stack in _by_geometry(sorted(members, key=lambda h: h.path))]
    return [_judge_stack(part, notes) for stack in stacks for part, notes in _passes(stack)]


def _by_geometry(headers: list[Header]) -> list[list[Header]]:
    """Headers of one series by orientation and pixel spacing, which may differ in their last digits."""
    stacks: list[tuple[tuple[float, ...], list[Header]]] = []
    for header in headers:
        numbers = (*header.orientation, *header.spacing)
        for first, stack in stacks:
            if len(first) == len(numbers) and np.allclose(first, numbers, rtol=0, atol=SAME_GEOMETRY, equal_nan=True):
                stack.append(header)
                break
        else:
            stacks.append((numbers, [header]))
    return [stack for _, stack in stacks]


def _passes(stack: list[Header]) -> list[tuple[list[Header], tuple[str, ...]]]:
    """The passes over one region that share a series, each with what tells it from the others.

    Several acquisitions that follow each other along the body are one scan; those that lie between each other are not.
    """
    if any(len(header.position) != 3 or len(header.orientation) != 6 for header in stack):
        return [(stack, ())]
    normal = np.cross(stack[0].orientation[:3], stack[0].orientation[3:])
    for name, values in _pass_values(stack, normal):
        groups: dict[str, list[Header]] = defaultdict(list)
        for header, value in zip(stack, values, strict=True):
            groups[value].append(header)
        if _lie_between_each_other(list(groups.values()), normal):
            return [
                (part, (*notes, f"{name} {value or 'empty'}: one of {len(groups)} passes that share a series"))
                for value, group in sorted(groups.items())
                for part, notes in _passes(group)
            ]
    return [(stack, ())]


def _pass_values(stack: list[Header], normal: Float[np.ndarray, 3]) -> Iterator[tuple[str, list[str]]]:
    """What may tell passes apart: a name, and the value of each slice. Last, the order in which they were counted."""
    for index, name in enumerate(PASS_TAGS.values()):
        yield name, [header.passes[index] for header in stack]
    if any(header.number is None for header in stack):
        return
    # slices are counted along the body; where the count comes back, another pass begins
    order = sorted(stack, key=lambda header: (header.number, float(normal @ header.position)))
    runs: list[list[Header]] = [[]]
    way = 0.0
    for header in order:
        step = float(normal @ np.subtract(header.position, runs[-1][-1].position)) if runs[-1] else 0.0
        if step * way < -1e-3:
            runs.append([])
            way = 0.0
        elif abs(step) > 1e-3:
            way = step
        runs[-1].append(header)
    first = {id(header): f"from {run[0].number}" for run in runs for header in run}
    if len(runs) > 1 and min(map(len, runs)) >= MIN_SLICES:
        yield "Instance Number", [first[id(header)] for header in stack]


def _lie_between_each_other(groups: list[list[Header]], normal: Float[np.ndarray, 3]) -> bool:
    """Whether groups of slices cover one region, and are no parts of one even stack.

    A group of few slices, such as those that wait for the contrast agent, is one if its slices lie on those of a large.
    """
    large = [group for group in groups if len(group) >= MIN_SLICES]
    if len(groups) < 2 or not large:
        return False
    places = [sorted(float(normal @ header.position) for header in group) for group in large]
    ends = sorted((place[0], place[-1]) for place in places)
    if len(large) == len(groups) and any(
        before[1] - after[0] > 0.5 * (after[1] - after[0]) for before, after in pairwise(ends)
    ):
        return True
    few = [header for group in groups if len(group) < MIN_SLICES for header in group]
    if not few or len(few) > sum(map(len, large)):
        return False
    away = [np.abs(np.array(place) - float(normal @ header.position)).min() for header in few for place in places]
    step = min(float(np.median(np.diff(place))) for place in places)
    return bool(min(away) < 0.6 * step and all(np.diff(place).max() < 1.5 * step for place in places))


def _judge_stack(stack: list[Header], seen: tuple[str, ...]) -> Candidate:
    """The stack as a candidate: slices in order and copies dropped, or the first reason against it."""
    first = stack[0]
    candidate = Candidate(
        patient=first.patient,
        study=first.study,
        files=tuple(header.path for header in stack),
        dicom=True,
        slices=len(stack),
        kernel=first.kernel,
        derived="DERIVED" in first.image_type or bool(_VIRTUAL.search(first.description)),
    )
    if reason := _refuse_images(stack):
        return replace(candidate, reason=reason)
    apart = _of_several_folders(stack)
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    by_position = sorted(stack, key=lambda header: float(normal @ header.position))
    kept = [by_position[0]]
    copies: list[tuple[Header, Header]] = []
    for header in by_position[1:]:
        if abs(normal @ np.subtract(header.position, kept[-1].position)) > 1e-3:
            kept.append(header)
        else:
            copies.append((header, kept[-1]))
    if not _are_copies(copies):
        return replace(
            candidate,
            reason="two different slices at one position, so phases or reconstructions share the series; "
            f"give each its own Series Instance UID{apart}",
        )
    notes = [*seen, f"{len(stack) - len(kept)} duplicate slices dropped"] if len(kept) < len(stack) else [*seen]
    bare = [header for header in kept if not header.has_intercept]
    if 0 < len(bare) < len(kept):
        return replace(
            candidate,
            reason=f"{len(bare)} of {len(kept)} slices have no Rescale Intercept, such as {Path(bare[0].path).name}; "
            "export the series again",
        )
    if bare:
        notes.append("no Rescale Intercept, so stored values are taken for HU")
    candidate = replace(candidate, files=tuple(header.path for header in kept), slices=len(kept))
    if len(kept) < MIN_SLICES:
        return replace(candidate, reason=f"only {len(kept)} {slice_word(len(kept))}; {NO_VOLUME}")
    positions = np.array([header.position for header in kept])
    if reason := _refuse_positions(positions, normal, min(first.spacing)):
        return replace(candidate, reason=reason + apart)
    thickness = float(np.linalg.norm(positions[-1] - positions[0])) / (len(kept) - 1)
    if first.thickness > SLAB_OVERLAP * thickness:
        reason = f"slabs of {first.thickness:.3g} mm every {thickness:.3g} mm; use the slices they were made from"
        return replace(candidate, reason=reason)
    if first.thickness > MOST_OVERLAP * thickness:
        candidate = replace(candidate, derived=True)
        notes.append(f"slices of {first.thickness:.3g} mm every {thickness:.3g} mm overlap")
    if thickness > THICK_SLICES_MM:
        notes.append(f"slices {thickness:.3g} mm apart")
    return replace(candidate, voxel_mm=(first.spacing[1], first.spacing[0], thickness), notes=tuple(notes))


def _are_copies(pairs: list[tuple[Header, Header]]) -> bool:
    """Whether slices at one position show the same.

    Of those with one SOP Instance UID, which by the standard are copies, the middle pair is compared: an anonymiser may
    have given the slices of two people the same.
    """
    named = [pair for pair in pairs if pair[0].instance == pair[1].instance]
    others = [pair for pair in pairs if pair[0].instance != pair[1].instance]
    return all(same_pixels(one.path, other.path) for one, other in named[len(named) // 2 :][:1] + others)


def _of_several_folders(stack: list[Header]) -> str:
    """What else may be the matter with a stack that is none, where its files lie in several folders."""
    folders = {Path(header.path).parent for header in stack}
    if len(folders) < 2:
        return ""
    return (
        f", or, if its {len(folders)} folders are of different people with the same identifiers, name them by a part "
        "of the path (--patient-pattern)"
    )


def _refuse_images(stack: list[Header]) -> str:
    """Why these files cannot be axial CT slices; empty if they can."""
    first = stack[0]
    if first.modality != "CT":
        return f"modality {first.modality or 'unknown'}, not CT; nothing to do"
    if any("LOCALIZER" in header.image_type for header in stack):
        return "a localiser; nothing to do"
    if reason := _no_hu(first) or _projection(first):
        return reason
    if any(header.samples > 1 for header in stack):
        return "colours, not CT numbers; give the CT itself"
    if any(header.frames > 1 for header in stack):
        return "an enhanced multi-frame file; convert it to single slices or NIfTI (dcm2niix does)"
    if not all(header.has_pixels for header in stack):
        return "DICOM without pixels; download the series again"
    if any(header.bits == 8 for header in stack):
        return "8-bit numbers, a label map or a picture; give the CT in HU"
    if any(header.missing_bytes for header in stack):
        return f"truncated pixel data in {Path(next(h.path for h in stack if h.missing_bytes)).name}; {AGAIN}"
    if any(len(header.position) != 3 for header in stack) or len(first.orientation) != 6:
        return (
            "no Image Position or Image Orientation (Patient), so where the slices lie is unknown; "
            "export the series again with its geometry"
        )
    numbers = [*first.spacing, *first.orientation, *(v for header in stack for v in header.position)]
    if len(first.spacing) != 2 or not all(map(math.isfinite, numbers)) or min(first.spacing) <= 0:
        return f"pixel spacing {'×'.join(f'{v:g}' for v in first.spacing) or 'missing'} mm is not usable; {REPAIR}"
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 1e-2:
        return f"the axes of Image Orientation (Patient) are not perpendicular unit vectors; {REPAIR}"
    axis = int(np.abs(np.cross(row, column)).argmax())
    if axis != 2:
        return f"{('sagittal', 'coronal')[axis]}, not axial; use the series it was made from"
    return _tilt_contradiction(first)


def _no_hu(header: Header) -> str:
    """Why the numbers are no Hounsfield units, by the header; empty if they may be."""
    if header.rescale_type.upper() not in ("", "HU", "US"):  # US: unspecified
        return f"Rescale Type {header.rescale_type}, not Hounsfield units; use the series in HU"
    derived = "DERIVED" in header.image_type
    words = {*header.image_type, *(word for value in header.image_type for word in re.split(r"[ -]+", value))}
    if kinds := _NO_HU_TYPES.intersection(words):
        return f"Image Type {min(kinds)}, not Hounsfield units; use the series in HU"
    if derived and (found := _NO_HU.search(header.description)):
        return f"derived images described as {found[0]}, not Hounsfield units; use the series in HU"
    if _NEVER_HU.search(header.description):
        return f"described as {header.description}, not Hounsfield units; use the series in HU"
    return ""


def _projection(header: Header) -> str:
    """Whether the header calls the images projections of slabs; empty if not."""
    found = _PROJECTED.search(header.description)
    kinds = sorted(_PROJECTIONS.intersection(header.image_type)) or ([found[0]] if found else [])
    return f"{kinds[0]}, a projection of slabs; use the slices they were made from" if kinds else ""


def _refuse_positions(positions: Float[np.ndarray, "slices 3"], normal: Float[np.ndarray, 3], pixel_mm: float) -> str:
    """Why these slice positions are not a straight, even stack; empty if they are."""
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    whole = positions[-1] - positions[0]
    along = float(normal @ whole)
    lean = math.degrees(math.atan2(float(np.linalg.norm(whole - along * normal)), along))
    if lean > MAX_TILT_DEG:
        return f"gantry tilt of {lean:.1f}°, so the slices are sheared; resample them to an upright stack first"
    missing = int(np.rint(steps / usual - 1).clip(min=0).sum())
    if missing:
        where = positions[:-1][steps > 1.5 * usual][0]
        plural = "s are" if missing > 1 else " is"
        return f"{missing} slice{plural} missing, the first after z = {where[2]:g} mm; download the series again"
    even = positions[0] + np.linspace(0, 1, len(positions))[:, None] * whole
    offsets = positions - even
    if np.abs(offsets @ normal).max() > POSITION_TOLERANCE * usual:
        return f"uneven slice spacing, {steps.min():.3g} to {steps.max():.3g} mm; resample the series evenly first"
    if np.linalg.norm(offsets, axis=1).max() > max(pixel_mm, POSITION_TOLERANCE * usual):
        return "the slices are shifted against each other; resample the series to a straight stack first"
    return ""


def _tilt_contradiction(header: Header) -> str:
    """A tilt that the header declares although its slices are upright: corrected, or lost? Empty if there is none."""
    if abs(header.tilt_deg) <= MAX_TILT_DEG or len(header.orientation) != 6:
        return ""
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    if abs(normal[2]) < math.cos(math.radians(MAX_TILT_DEG)):
        return ""  # the orientation shows the tilt, so the positions say whether the stack leans
    return f"gantry tilt of {header.tilt_deg:g}° in a header whose slices are upright; correct whichever is wrong"
