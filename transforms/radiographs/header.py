"""What a DICOM header says of how a radiograph was taken, and of whom; the impossible is left out, and said."""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

SUPPORT_GAP_MM = 100.0
"""Distance Source to Patient is that of the support's surface (C.8.7.1.1), a few centimetres before the detector.
Where it is further from the detector than this, it was filled in as that of the patient."""

_DISTANCES_MM = (700.0, 5000.0)
"""From source to detector, of any chest radiograph."""

_UNITS = {"millimetres": 1.0, "inches": 25.4, "centimetres": 10.0, "metres": 1000.0}
_INCHES = (36.0, 84.0)
"""Distances to a detector that are set in inches (40, 48, 60, 72); no chest is taken from as few centimetres."""

_KEY = secrets.token_bytes(16)
_UNIT_SIGNS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "in": 25.4, "inch": 25.4, '"': 25.4}
_LENGTH = re.compile(r"([+-]?\d+(?:[.,]\d+)?) ?(mm|cm|m|in|inch|\")?", re.IGNORECASE)
_MEASURES = {  # how many numbers they have
    "ImagerPixelSpacing": 2,
    "NominalScannedPixelSpacing": 2,
    "PixelSpacing": 2,
    "PixelAspectRatio": 2,
    "FieldOfViewDimensions": 2,
    "DistanceSourceToDetector": 1,
    "DistanceSourceToPatient": 1,
    "EstimatedRadiographicMagnificationFactor": 1,
    "PositionerPrimaryAngle": 1,
    "PositionerSecondaryAngle": 1,
}

_MAGNIFICATIONS = (1.01, 2.0)
_VIEW_CODES = {  # DICOM PS3.16 CID 4010: SNOMED CT, and the SNOMED-RT codes of older files
    "272479007": "PA",
    "R-40888": "PA",
    "R-10214": "PA",
    "399348003": "AP",
    "R-10206": "AP",
    "399173006": "LL",
    "R-10236": "LL",
    "399198007": "RL",
    "R-10232": "RL",
    "399067008": "LATERAL",
    "R-102CD": "LATERAL",
}


_OTHER_STORAGE = {  # SOP classes of what is no radiograph of a chest, whatever the Modality
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "MG",
    "1.2.840.10008.5.1.4.1.1.13.1.3": "MG",
    "1.2.840.10008.5.1.4.1.1.1.3": "IO",
    "1.2.840.10008.5.1.4.1.1.1.3.1": "IO",
    "1.2.840.10008.5.1.4.1.1.6.1": "US",
    "1.2.840.10008.5.1.4.1.1.20": "NM",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
}
_CASSETTE = re.compile(r"([\d.]+) ?(CM|IN) ?X ?([\d.]+) ?(?:CM|IN)")
_CASSETTE_ASPECT = 0.05
"""How far a picture's aspect may be from that of its cassette, of which it is then the whole."""


def bring_up_frame_groups(dataset: Dataset) -> None:
    """Put what enhanced files keep for each frame (functional groups, PS3.3 C.7.6.16) where all others have it.

    Args:
        dataset: of one frame; what it states itself stays.
    """
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for groups in (dataset.get(keyword) or ())[:1]:
            for group in groups:
                for element in group.value[0] if group.VR == "SQ" and group.value else ():
                    if element.tag not in dataset:
                        dataset.add(element)


def header_facts(dataset: Dataset, name: str) -> tuple[dict[str, Any], list[str]]:
    """What a header says; entries that are empty or impossible are left out.

    Args:
        dataset: the header.
        name: of the file, for sentences.

    Returns:
        The facts, and sentences without a full stop on what was corrected. The facts, where the file has them, are
        ``format``, ``photometric_interpretation``, ``pixel_spacing_mm`` (rows, columns), ``pixel_spacing_plane``
        (``detector``, ``patient``, or ``unstated``), ``pixel_aspect`` (height by width, if there is no spacing),
        ``source_to_detector_mm``, ``source_to_isocentre_mm``, ``source_to_support_mm``, ``magnification``,
        ``view_position``, ``laterality``, ``primary_angle_deg``, ``secondary_angle_deg``, ``body_part``,
        ``anatomic_region``, ``modality``, ``intensity_relationship``, ``patient_orientation``, ``patient`` (digests of
        the ``Patient ID``, ``name``, ``birth date`` and ``sex``, which tell two patients apart within this process and
        no more) and ``study_date``.
    """
    spacing, notes = _spacing(dataset, name)
    distances, more = _distances(dataset, name)
    found: dict[str, Any] = {
        "format": "DICOM",
        "photometric_interpretation": str(dataset.get("PhotometricInterpretation", "")),
        **spacing,
        **distances,
    }
    texts = {
        "view_position": dataset.get("ViewPosition") or _view_of_code(dataset),
        "intensity_relationship": dataset.get("PixelIntensityRelationship"),
        "laterality": dataset.get("ImageLaterality") or dataset.get("Laterality"),
        "body_part": dataset.get("BodyPartExamined"),
        "anatomic_region": _meaning(dataset.get("AnatomicRegionSequence")),
        "modality": _OTHER_STORAGE.get(str(dataset.get("SOPClassUID"))) or dataset.get("Modality"),
        "study_date": dataset.get("StudyDate"),
    }
    found |= {key: str(text) for key, text in texts.items() if text}
    for key, keyword in (("primary_angle_deg", "PositionerPrimaryAngle"),
                         ("secondary_angle_deg", "PositionerSecondaryAngle")):  # fmt: skip
        angle = _numbers(dataset.get(keyword), 1)
        if angle:
            found[key] = angle[0]
    orientation = dataset.get("PatientOrientation")
    if orientation and len(orientation) == 2 and all(orientation):
        found["patient_orientation"] = tuple(str(letters) for letters in orientation)
    patient = _patient(dataset)
    if patient:
        found["patient"] = patient
    return found, [*_misspelt(dataset, name), *notes, *more]


def _patient(dataset: Dataset) -> dict[str, str]:
    """Digests of what tells patients apart, without capitals, spaces and the like, in which one patient's differ."""
    name = str(dataset.get("PatientName") or "").split("=")[0].split("^")[:2]  # family and given, in letters
    sex = str(dataset.get("PatientSex") or "").strip().upper()
    said = {
        "Patient ID": "".join(str(dataset.get("PatientID") or "").casefold().split()),
        "name": " ".join(sorted(re.sub(r"\W+", " ", " ".join(name).casefold()).split())),
        "birth date": re.sub(r"\D", "", str(dataset.get("PatientBirthDate") or "")),
        "sex": sex if sex in ("F", "M") else "",
    }
    # under a key that is gone with the process, as birth dates could be guessed from a plain digest
    return {what: hmac.digest(_KEY, text.encode(), "sha256").hex()[:16] for what, text in said.items() if text}


def _meaning(codes: Any) -> str | None:
    """What the first code of a sequence means, in words."""
    return (str(codes[0].get("CodeMeaning") or "") or None) if codes else None


def _spacing(dataset: Dataset, name: str) -> tuple[dict[str, Any], list[str]]:
    """The pixels' pitch and its plane, or their aspect."""
    imager, scanned, calibrated = (
        _positive(dataset.get(keyword), 2)
        for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelSpacing")
    )
    if imager:
        # PS3.3 10.7.1.3: at the detector; Pixel Spacing may be corrected for magnification
        return {"pixel_spacing_mm": (imager[0], imager[1]), "pixel_spacing_plane": "detector"}, []
    if scanned:
        note = f"{name} is a digitised film with a Nominal Scanned Pixel Spacing of {scanned[0]:g} mm"
        return {"pixel_spacing_mm": (scanned[0], scanned[1]), "pixel_spacing_plane": "detector"}, [note]
    if calibrated:
        plane = "patient" if dataset.get("PixelSpacingCalibrationType") else "unstated"
        return {"pixel_spacing_mm": (calibrated[0], calibrated[1]), "pixel_spacing_plane": plane}, []
    aspect = _positive(dataset.get("PixelAspectRatio"), 2)
    field = _field(dataset) if aspect is None or aspect[0] == aspect[1] else None
    if field:
        pitch = max(field[0]) / max(dataset.Rows, dataset.Columns)
        note = f"{name} is all of its {field[1]}, so its pixels are {pitch:.3g} mm wide"
        return {"pixel_spacing_mm": (pitch, pitch), "pixel_spacing_plane": "detector"}, [note]
    if aspect and aspect[0] != aspect[1]:
        return {"pixel_aspect": aspect[0] / aspect[1]}, []
    return {}, []


def _field(dataset: Dataset) -> tuple[list[float], str] | None:
    """Sides (mm) of the detector's field of view or the cassette, and what it is, if the picture has its aspect."""
    sides, what = _positive(dataset.get("FieldOfViewDimensions"), 2), "field of view"
    cassette = _CASSETTE.search(str(dataset.get("CassetteSize") or "").upper())
    if sides is None and cassette:
        unit = 10.0 if cassette[2] == "CM" else 25.4
        sides, what = [float(cassette[1]) * unit, float(cassette[3]) * unit], "cassette"
    if sides is None:
        return None
    shape = int(dataset.Rows), int(dataset.Columns)
    if abs(max(sides) * min(shape) / (min(sides) * max(shape)) - 1) > _CASSETTE_ASPECT:
        return None
    return sides, f"{what} of {sides[0] / 10:g}×{sides[1] / 10:g} cm"


def _distances(dataset: Dataset, name: str) -> tuple[dict[str, Any], list[str]]:
    """Distances from the source, in mm whatever they were filled in as, and the magnification."""
    found: dict[str, Any] = {}
    notes = []
    places = {"detector": "DistanceSourceToDetector", "patient": "DistanceSourceToPatient"}
    stated = {place: values[0] for place, key in places.items() if (values := _positive(dataset.get(key), 1))}
    units = _units(stated.get("detector"), stated.get("patient"))
    together = len(stated) == 2 and units["detector"] == units["patient"]
    for place, value in list(stated.items())[: 1 if together else 2]:
        what = "" if together else f" to the {place}"
        unit = units[place]
        if unit is None:
            notes.append(
                f"{name} states a distance of {value:g} mm from its source{what}, which cannot be and was ignored"
            )
        elif unit != "millimetres":
            notes.append(f"{name} states a distance of {value:g} mm from its source{what}, which must be {unit}")
    mm = {place: value * _UNITS[unit] for place, value in stated.items() if (unit := units[place])}
    if "detector" in mm:
        found["source_to_detector_mm"] = mm["detector"]
    if "patient" in mm:
        close = "detector" in mm and 0 <= mm["detector"] - mm["patient"] < SUPPORT_GAP_MM
        found["source_to_support_mm" if close else "source_to_isocentre_mm"] = mm["patient"]
    magnification = _positive(dataset.get("EstimatedRadiographicMagnificationFactor"), 1)
    if magnification and _MAGNIFICATIONS[0] <= magnification[0] <= _MAGNIFICATIONS[1]:
        found["magnification"] = magnification[0]
    return found, notes


def _units(detector: float | None, patient: float | None) -> dict[str, str | None]:
    """What the distances to the detector and to the patient were filled in as: one unit if that can be, else two."""
    alone = {"detector": _possible_units(detector), "patient": _possible_units(patient)}
    if detector is None or patient is None or not alone["detector"]:
        return {place: next(iter(units), None) for place, units in alone.items()}
    pairs = [
        (own, other)
        for own in alone["detector"]
        for other in _UNITS
        if 1 <= detector * _UNITS[own] / (patient * _UNITS[other]) <= _MAGNIFICATIONS[1]
    ]
    pairs.sort(key=lambda pair: pair[0] != pair[1])
    own, other = pairs[0] if pairs else (alone["detector"][0], None)
    if not pairs and patient <= _MAGNIFICATIONS[1] * detector and patient > detector:
        other = own  # the wrong way round: which of them counts, depends on what the user states
    return {"detector": own, "patient": other}


def _possible_units(distance: float | None) -> list[str]:
    """What the distance from source to detector can be in, the likeliest first."""
    if distance is None:
        return []
    low, high = _DISTANCES_MM
    found = [unit for unit, mm in _UNITS.items() if low <= distance * mm <= high]
    return [unit for unit in found if unit != "inches" or _INCHES[0] <= distance <= _INCHES[1]]


def _numbers(value: Any, count: int) -> list[float] | None:
    """``count`` finite numbers, or None; those with a decimal comma or a unit of length as well, which are then mm."""
    try:
        numbers = [_number(x) for x in (np.atleast_1d(value) if value is not None else [])]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _number(value: Any) -> float:
    """One number; raises ValueError."""
    written = _LENGTH.fullmatch(value.strip()) if isinstance(value, str) else None
    if written is None:
        return float(value)
    return float(written[1].replace(",", ".")) * _UNIT_SIGNS[(written[2] or "mm").lower()]


def _misspelt(dataset: Dataset, name: str) -> list[str]:
    """What is said of measures that are written otherwise than DICOM has them."""
    notes = []
    for keyword, count in _MEASURES.items():
        values = [] if dataset.get(keyword) is None else np.atleast_1d(dataset.get(keyword)).tolist()
        lacks_one = keyword.endswith("Spacing") and 0 < len(values) < count
        if not lacks_one and not any(isinstance(value, str) and _not_decimal(value) for value in values):
            continue
        numbers, what = _numbers(values, count), f"{name} has the {_spaced(keyword)} {'/'.join(map(str, values))}"
        if numbers:
            notes.append(f"{what}, which was read as {' and '.join(f'{x:g}' for x in dict.fromkeys(numbers))}")
        else:
            wanted = "no number" if count == 1 else f"not {count} numbers"
            notes.append(f"{what}, which is {wanted} and was ignored")
    return notes


def _not_decimal(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return bool(text.strip())
    return False


def _spaced(keyword: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", keyword).replace(" To ", " to ")


def _positive(value: Any, count: int) -> list[float] | None:
    """``count`` positive finite numbers, or None."""
    numbers = _numbers(value, count)
    return numbers if numbers and min(numbers) > 0 else None


def _view_of_code(dataset: Dataset) -> str | None:
    """View Position by the View Code Sequence (context group 4010), which DX files may have in its place."""
    codes = dataset.get("ViewCodeSequence")
    if not codes:
        return None
    return _VIEW_CODES.get(str(codes[0].get("CodeValue", ""))) or _meaning(codes)
