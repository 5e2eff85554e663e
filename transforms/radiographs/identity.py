"""What headers say of the patient, the view and how it lies, compared with what is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from drr2ct.transforms.geometry import View
from drr2ct.transforms.radiographs.film import Film
from drr2ct.transforms.radiographs.orientation import turn_of_axes
from drr2ct.transforms.validation import InputError, listed

OBLIQUE_DEG = 20.0
"""A beam so far from the four main directions is an oblique; networks have seen a few degrees."""

VIEW_TOLERANCE_DEG = 45.0
"""A header's View Position contradicts a view that looks from an angle further away than this."""


_POSITIONS = {
    "PA": ("a PA view", (0.0,)),
    "AP": ("an AP view", (180.0,)),
    "LL": ("a left lateral", (90.0,)),
    "RL": ("a right lateral", (-90.0,)),
    "LAT": ("a lateral", (90.0, -90.0)),
}
_OBLIQUE = ("RAO", "LAO", "RPO", "LPO", "RLO", "LLO")
_DECUBITUS = ("LLD", "RLD")
_LATERAL = re.compile(r"(L|LT|LEFT|R|RT|RIGHT)?(LAT|LATERAL)(L|LT|LEFT|R|RT|RIGHT)?")
_SIDES = ("L", "LT", "LEFT", "R", "RT", "RIGHT")
_CHEST = (
    "CHEST", "THORA", "TORAX", "TORACE", "TORACIC", "POITRINE", "PECHO", "BRUST", "CXR", "LUNG", "PULMO", "RIB",
    "STERNUM", "HEART", "CARDIAC", "MEDIASTIN", "TSPINE", "T SPINE", "DSPINE", "TRUNK", "TORSO", "WHOLEBODY",
    "WHOLE BODY",
)  # fmt: skip
_NO_CHEST = (
    "KNEE", "HAND", "WRIST", "ELBOW", "SHOULDER", "CLAVIC", "SCAPULA", "ANKLE", "FOOT", "FEET", "HEEL", "HIP", "PELVI",
    "SKULL", "HEAD", "NECK", "SPINE", "CERVICAL", "LUMBAR", "SACR", "LEG", "ARM", "FEMUR", "THIGH", "TIBIA", "FIBULA",
    "HUMERUS", "RADIUS", "ULNA", "FINGER", "THUMB", "TOE", "JAW", "MANDIB", "MAXILLA", "TEETH", "TOOTH", "DENTAL",
    "BREAST", "MAMMA", "ABD", "KUB", "STOMACH", "BOWEL", "COLON", "KIDNEY", "BLADDER", "URIN", "EXTREMIT", "EXM",
    "LIMB", "SACRUM", "COCCYX", "CALCANEUS", "PATELLA", "ORBIT", "SINUS", "NASAL", "NOSE", "FACE", "FACIAL", "ZYGOMA",
    "MASTOID", "BRAIN",
)  # fmt: skip
_RADIOGRAPHS = ("CR", "DX", "DR", "RG", "RF", "XA", "OT", "SC")


_DIRECTIONS = {  # of PatientOrientation, in RAS+
    "R": (1.0, 0.0, 0.0),
    "L": (-1.0, 0.0, 0.0),
    "A": (0.0, 1.0, 0.0),
    "P": (0.0, -1.0, 0.0),
    "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}


def check_identity(films: Sequence[Film], strict: bool) -> list[Film]:
    """Whether headers speak of chest radiographs of one patient, of modality, body part, angle, and patient.

    Two Patient IDs are two patients, and so are two names where an ID is missing. What else differs (names beside one
    ID, birth dates, sexes) is a warning: people marry, and clerks err.

    Args:
        films: of one patient, one for each view.
        strict: refuse those that do not; otherwise it is said.

    Raises:
        InputError: if they do not and ``strict``.
    """
    checked = [film.saying(*_objections(film, strict)) for film in films]
    names = " and ".join(film.name for film in films)
    unlike = _unlike(films)
    known = [film.pixels.metadata.get("patient", {}) for film in films]
    # a name stands in for an ID that is not there; beside one ID it may be a maiden name
    identified = all("Patient ID" in facts for facts in known)
    decisive = ["Patient ID"] if identified else ["Patient ID", "name"]
    told_apart = next((what for what in decisive if what in unlike), None)
    if told_apart:
        said = _object(f"{names} are of two patients: their headers have different {told_apart}s", strict)
        checked[-1] = checked[-1].saying(*said)
    elif unlike:
        one = "one Patient ID but " if identified else ""
        plurals = listed([f"{what}es" if what.endswith("x") else f"{what}s" for what in unlike])
        checked[-1] = checked[-1].doubting(
            f"{names} have {one}different {plurals}: check that they are of one patient."
        )
    dates = {film.pixels.metadata["study_date"] for film in films if "study_date" in film.pixels.metadata}
    if len(dates) > 1:
        checked[-1] = checked[-1].saying(f"{names} were taken on different days, {' and '.join(sorted(dates))}.")
    return checked


def _objections(film: Film, strict: bool) -> list[str]:
    """What in one header does not fit a chest radiograph."""
    facts = film.pixels.metadata
    said = []
    modality = str(facts.get("modality", "")).upper()
    if modality and modality not in _RADIOGRAPHS:
        said += _object(f"radiograph {film.path} has the Modality {modality}, which is no radiograph's", strict)
    said += _objections_to_part(film, strict)
    for key, what in (("primary_angle_deg", "Primary"), ("secondary_angle_deg", "Secondary")):
        angle = float(facts.get(key, 0.0))
        apart = abs(math.remainder(angle, 90))
        if apart > OBLIQUE_DEG:
            said += _object(
                f"radiograph {film.path} has the Positioner {what} Angle {angle:g}°, an oblique view and not "
                f"{film.view.name}",
                strict,
            )
        elif apart > 2:
            said.append(
                f"{film.name} was taken {apart:g}° off by its Positioner {what} Angle of {angle:g}°, which is not "
                "corrected."
            )
        elif _from_elsewhere(angle, key, film.view):
            said.append(
                f"{film.name} has the Positioner {what} Angle {angle:g}°, which is not {film.view.name}'s: taken to be "
                "the stand's; check that it is that view."
            )
    return said


def _from_elsewhere(angle: float, key: str, view: View) -> bool:
    """Whether a right angle turns the beam from the view's: from the front to the side, or to head or feet.

    A lateral may have none: many stands count from the detector.
    """
    turned = abs(math.remainder(angle, 180)) > 45
    frontal = abs(math.cos(math.radians(view.gantry_angle_deg))) > math.sqrt(0.5)
    return turned and (frontal or key == "secondary_angle_deg")


def _objections_to_part(film: Film, strict: bool) -> list[str]:
    """What Body Part Examined and Anatomic Region Sequence say that is no chest; one that says chest wins."""
    entries = {"body_part": "Body Part Examined", "anatomic_region": "Anatomic Region"}
    parts = {what: str(film.pixels.metadata[key]) for key, what in entries.items() if key in film.pixels.metadata}
    others = {what: part for what, part in parts.items() if not _names_one(part, _CHEST)}
    said = []
    for what, part in others.items():
        if len(others) < len(parts):
            if _names_one(part, _NO_CHEST):
                said.append(f"{film.name} has the {what} {part} beside one that is a chest, which was followed.")
        elif _names_one(part, _NO_CHEST):
            said += _object(f"radiograph {film.path} has the {what} {part}, not a chest", strict)
        else:
            said.append(f"{film.name} has the {what} {part}, which is not known: taken to be a chest.")
    return said


def _names_one(part: str, words: Sequence[str]) -> bool:
    text = re.sub(r"[\W_]+", " ", part.upper())
    return any(word in text for word in words)


def _unlike(films: Sequence[Film]) -> list[str]:
    """What of the patient differs between headers that have it."""
    known = [film.pixels.metadata.get("patient", {}) for film in films]
    whats = dict.fromkeys(what for facts in known for what in facts)
    return [what for what in whats if len({facts[what] for facts in known if what in facts}) > 1]


def _object(sentence: str, strict: bool) -> list[str]:
    """Raise, or say it."""
    if strict:
        raise InputError(f"{sentence}; give the right file, or use it all the same by --set check_header=false.")
    return [f"{sentence}; used all the same, as stated."]


def check_view_position(
    metadata: Mapping[str, Any], view: View, opposite_side: bool = False, strict: bool = True
) -> bool:
    """Compare DICOM's View Position or view code with the view's gantry angle; unknown ones pass.

    A lateral whose laterality is given is a left or right one (the side nearer to the detector). Obliques and
    decubitus views are never what is asked for.

    Args:
        metadata: of :func:`~drr2ct.transforms.radiographs.scale.read_radiograph`.
        view: that the file was given for.
        opposite_side: also accept the view from the opposite side, AP for PA and right for left lateral.
        strict: refuse what does not fit.

    Returns:
        Whether it is the view from the opposite side.

    Raises:
        InputError: if they contradict each other by more than :data:`VIEW_TOLERANCE_DEG`, and ``strict``.
    """
    position = view_kind(metadata)
    stated = str(metadata.get("view_position", ""))
    if position in ("oblique", "decubitus"):
        article = "an" if position == "oblique" else "a"
        file = metadata["filename_or_obj"]
        _object(f"radiograph {file} is marked {stated}, {article} {position} view and not {view.name}", strict)
        return False
    if position not in _POSITIONS:
        return False
    what, angles = _POSITIONS[position]
    apart = min(abs(math.remainder(view.gantry_angle_deg - angle, 360)) for angle in angles)
    if apart <= VIEW_TOLERANCE_DEG:
        return False
    opposite = apart >= 180 - VIEW_TOLERANCE_DEG
    if opposite and opposite_side:
        return True
    if not strict:
        return False
    advice = (
        "it is the same projection from the other side, which --opposite-side takes"
        if opposite
        else "check the order of the files"
    )
    raise InputError(
        f"radiograph {metadata['filename_or_obj']} is marked {stated.upper()}, but view {view.name} looks from "
        f"{view.gantry_angle_deg:g}° (0 is PA, 90 left lateral), which is not {what}; {advice}."
    )


def view_kind(metadata: Mapping[str, Any]) -> str:
    """PA, AP, LL, RL, LAT, oblique or decubitus, of what people write for them; empty if it is something else.

    Args:
        metadata: of :func:`~drr2ct.transforms.radiographs.scale.read_radiograph`.
    """
    words = re.sub(r"[^A-Z]+", " ", str(metadata.get("view_position") or "").upper()).split()
    text = " ".join(words)
    if any(word in _DECUBITUS for word in words) or "DECUB" in text:
        return "decubitus"
    if any(word in _OBLIQUE for word in words) or "OBLI" in text:
        return "oblique"
    if "LL" in words or "RL" in words:
        return "LL" if "LL" in words else "RL"
    laterals = [found for word in words if (found := _LATERAL.fullmatch(word))]
    if laterals or any(word.startswith("LAT") for word in words):
        sides = [found[1] or found[3] for found in laterals] + [word for word in words if word in _SIDES]
        side = next((side for side in sides if side), "") or str(metadata.get("laterality") or "").upper()
        return {"L": "LL", "R": "RL"}.get(side[:1], "LAT")
    if "PA" in words or re.search(r"POSTER\w* ?ANTER", text):
        return "PA"
    if "AP" in words or re.search(r"ANTER\w* ?POSTER", text):
        return "AP"
    return ""


def turn_upright(
    image: Float[Tensor, "rows columns"],
    metadata: Mapping[str, Any],
    view: View,
    opposite_side: bool = False,
    strict: bool = True,
) -> tuple[Float[Tensor, "r c"], list[str]]:
    """Turn an image as the geometry has it: row 0 cranial, columns along the view's detector axis.

    DICOM's Patient Orientation (PS3.3 C.7.6.1.1.1), or a NIfTI's affine
    (:func:`~drr2ct.transforms.radiographs.orientation.turn_of_axes`), decides where the file has it. Without it the
    image stays as it is, except a lateral from the opposite side, which is mirrored.

    Args:
        image: as it was read.
        metadata: of :func:`~drr2ct.transforms.radiographs.scale.read_radiograph`.
        view: that the file was given for.
        opposite_side: see :func:`check_view_position`.
        strict: likewise.

    Returns:
        The image, and sentences on what was done or taken for granted beyond the usual.

    Raises:
        InputError: if View Position or Patient Orientation contradict the view.
    """
    name = Path(metadata["filename_or_obj"]).name
    opposite = check_view_position(metadata, view, opposite_side, strict)
    notes = []
    if not strict:
        try:
            check_view_position(metadata, view, opposite_side)
        except InputError as objection:
            notes.append(f"{str(objection).split(';', maxsplit=1)[0]}; used all the same, as stated.")
    stated_position = str(metadata.get("view_position", ""))
    if stated_position and not view_kind(metadata):
        notes.append(f"{name} has the View Position {stated_position}, which is not known: taken to be {view.name}.")
    if any(word in stated_position.upper() for word in ("SUPINE", "LYING", "RECUMBENT")):
        notes.append(f"{name} was taken lying ({stated_position}); networks are trained as their CTs were taken.")
    if opposite:
        notes.append(
            f"{name} is {_POSITIONS[view_kind(metadata)][0]}, used for view {view.name} from the opposite side: what "
            "is near the detector and what is far from it are magnified the other way round."
        )
    axes_turn = turn_of_axes(metadata.get("nifti_axes", ""), metadata.get("marked", False))
    directions = [_direction(letters) for letters in metadata.get("patient_orientation", ())]
    if len(directions) == 2 and all(direction is not None for direction in directions):
        stated = "\\".join(metadata["patient_orientation"])
        where = orientation_entry(metadata)
        # along increasing columns and increasing rows, in the detector's own axes
        axes = np.stack(view.detector_axes)
        turn = np.stack([axes @ direction for direction in directions])
        transposed = abs(turn[0, 1]) > abs(turn[0, 0])
        if transposed:
            image, turn = image.T, turn[::-1]
        if min(abs(turn[0, 0]), abs(turn[1, 1])) < 0.5:
            raise InputError(
                f"radiograph {metadata['filename_or_obj']} has {where} {stated}, which view {view.name} "
                f"from {view.gantry_angle_deg:g}° cannot have; check the order of the files."
            )
        flips = [axis for axis, cosine in ((1, turn[0, 0]), (0, turn[1, 1])) if cosine < 0]
        if flips:
            image = image.flip(flips)
        if transposed or flips:
            done = [
                *(["transposed"] if transposed else []),
                *(["mirrored", "turned upside down"][1 - a] for a in flips),
            ]
            notes.append(f"{name} was {' and '.join(done)}, because its {where} is {stated}.")
    elif not axes_turn.as_stored:
        image = axes_turn.turn(image)
        notes.append(
            f"{name} was {axes_turn}, because its affine's axes are {metadata['nifti_axes']}, and LP where images are "
            "stored as they are shown; if that is made up, say how the picture lies (--orientation as-is if upright)."
        )
    elif "A" in metadata.get("nifti_axes", ""):
        notes.append(f"{name}: its affine's axes are {metadata['nifti_axes']}, which says nothing of how it lies.")
    elif opposite and abs(math.sin(math.radians(view.gantry_angle_deg))) > math.sqrt(0.5):
        image = image.flip(1)
        notes.append(f"{name} was mirrored: it does not state its orientation, and is taken as seen from the detector.")
    elif opposite:
        if view.detector_axes[0][0] > 0:
            image = image.flip(1)
        notes.append(
            f"{name} does not state its orientation; the patient's right is taken to be on the stored image's left."
        )
    return image, notes


def orientation_entry(metadata: Mapping[str, Any]) -> str:
    """What of a file says how the patient lies in it, for sentences."""
    kind = metadata.get("format", "DICOM")
    return "Patient Orientation" if kind == "DICOM" else f"{kind} orientation"


def _direction(letters: str) -> np.ndarray | None:
    """Unit vector (RAS+) of a Patient Orientation such as ``L`` or ``PF``, the main direction first."""
    if not letters or any(letter not in _DIRECTIONS for letter in letters):
        return None
    total = sum((np.array(_DIRECTIONS[letter]) * 0.5**i for i, letter in enumerate(letters)), np.zeros(3))
    norm = float(np.linalg.norm(total))
    return total / norm if norm > 0 else None
