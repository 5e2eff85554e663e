"""What a DICOM header says of how a radiograph was taken, and of whom; the impossible is left out, and said."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

SUPPORT_GAP_MM = 100.0
"""Distance Source to Patient is that of the support's surface (C.8.7.1.1), a few centimetres before the detector.
Where it is further from the detector than this, it was filled in as that of the patient."""

_DISTANCES_MM = (700.0, 5000.0)
"""From source to detector, of any chest radiograph."""

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
        ``view_position``, ``laterality``, ``primary_angle_deg``, ``secondary_angle_deg``, ``body_part``, ``modality``,
        ``intensity_relationship``, ``patient_orientation``, ``patient`` (a digest of the Patient ID, or of the name)
        and ``study_date``.
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
    patient = str(dataset.get("PatientID") or dataset.get("PatientName") or "").strip()
    if patient:  # enough to tell two apart, and nothing that could be read back out of a record
        found["patient"] = hashlib.sha256(patient.encode()).hexdigest()[:16]
    return found, [*notes, *more]


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
    keywords = ("DistanceSourceToDetector", "DistanceSourceToPatient")
    stated = [_positive(dataset.get(keyword), 1) for keyword in keywords]
    detector, patient = (values[0] if values else None for values in stated)
    low, high = _DISTANCES_MM
    unit = 1.0
    largest = detector or patient
    if largest is not None and not low <= largest <= high:
        unit = next((u for u in (10.0, 1000.0) if low <= largest * u <= high), 0.0)
        if unit:
            what = "centimetres" if unit == 10 else "metres"
            notes.append(f"{name} states a distance of {largest:g} mm from its source, which must be {what}")
        else:
            notes.append(f"{name} states a distance of {largest:g} mm from its source, which cannot be and was ignored")
    if detector and unit:
        found["source_to_detector_mm"] = detector * unit
    if patient and unit:
        close = detector is not None and 0 <= (detector - patient) * unit < SUPPORT_GAP_MM
        found["source_to_support_mm" if close else "source_to_isocentre_mm"] = patient * unit
    magnification = _positive(dataset.get("EstimatedRadiographicMagnificationFactor"), 1)
    if magnification and _MAGNIFICATIONS[0] <= magnification[0] <= _MAGNIFICATIONS[1]:
        found["magnification"] = magnification[0]
    return found, notes


def _numbers(value: Any, count: int) -> list[float] | None:
    """``count`` finite numbers, or None."""
    try:
        numbers = [float(x) for x in (np.atleast_1d(value) if value is not None else [])]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _positive(value: Any, count: int) -> list[float] | None:
    """``count`` positive finite numbers, or None."""
    numbers = _numbers(value, count)
    return numbers if numbers and min(numbers) > 0 else None


def _view_of_code(dataset: Dataset) -> str | None:
    """View Position by the View Code Sequence (context group 4010), which DX files may have in its place."""
    codes = dataset.get("ViewCodeSequence")
    if not codes:
        return None
    return _VIEW_CODES.get(str(codes[0].get("CodeValue", ""))) or str(codes[0].get("CodeMeaning") or "") or None
