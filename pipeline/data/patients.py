"""The patients of a data set's folder: what can be read is found, what cannot is named.

The same reader as ``prepare``'s judges what lies in the folder of a patient, so a CT is found whatever its files are
called, and of several series the best is used.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drr2ct.pipeline.data.candidate import VOLUME_SUFFIXES, Candidate, pass_note, preference
from drr2ct.pipeline.data.candidates import find_candidates
from drr2ct.pipeline.data.headers import ARCHIVE
from drr2ct.pipeline.data.patient_names import printable, stem_of
from drr2ct.transforms.validation import InputError

RADIOGRAPH_SUFFIXES = (".nii.gz", ".nii", ".png", ".tif", ".tiff", ".dcm")
ON_BAD_SAMPLE = ("stop", "skip")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftOut:
    """A patient without a CT that can be used, and why."""

    patient: str
    reason: str


def find_radiographs(folder: Path, views: Sequence[str]) -> list[Path] | None:
    """The stored radiographs of a patient folder, one per view, or None unless all are there."""
    found = []
    for view in views:
        names = [folder / f"{folder.name}_{view}_drr{suffix}" for suffix in RADIOGRAPH_SUFFIXES]
        path = next((name for name in names if name.is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found


def find_patients(
    dataset_dir: str | Path, views: Sequence[str] = ("pa", "lat"), on_bad_sample: str = "stop"
) -> list[dict[str, Any]]:
    """Patients that have a CT, sorted by name: items with ``patient``, ``label`` and, if stored, ``image``.

    Where the CT is a DICOM series, ``label`` is its folder and ``slices`` its files in order; ``group`` is the Patient
    ID that another folder has too. What was noticed and
    what is left out is logged.

    Args:
        dataset_dir: folder of patient folders.
        views: names of the geometry's views; stored radiographs are found by them.
        on_bad_sample: ``stop``, or ``skip`` to go on without folders whose CT cannot be used.

    Raises:
        InputError: if the folder does not exist or holds no patient, or with ``stop`` if a patient has no usable CT.
    """
    patients, left_out = read_folder(dataset_dir, views)
    for missing in left_out:
        if on_bad_sample == "stop":
            raise InputError(
                f"data set {dataset_dir}: patient {missing.patient} has no CT that can be used ({missing.reason}); "
                "repair or remove it, or set on_bad_sample to skip."
            )
        logger.warning("patient %s left out: %s", missing.patient, missing.reason)
    if not patients:
        raise InputError(
            f"data set folder {dataset_dir} holds no patient; expected <patient>/<patient>.nii.gz "
            f"(or {', '.join(VOLUME_SUFFIXES[1:])}, or a DICOM folder) inside."
        )
    return patients


def read_folder(dataset_dir: str | Path, views: Sequence[str]) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """What :func:`find_patients` finds, and whose CT cannot be used.

    A folder without any file that could be a CT is no patient; it is logged.

    Raises:
        InputError: if the folder does not exist.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise InputError(f"data set folder {root} does not exist; set dataset_dir to a folder of patient folders.")
    try:
        candidates = find_candidates(root, patient_folders=True)
    except InputError:  # neither DICOM nor volume files
        candidates = []
    members: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        parts = Path(os.path.relpath(candidate.files[0], root)).parts
        # what is called a mask or a radiograph is no patient whose CT is missing
        if any(part.startswith(".") for part in parts[:-1]) or candidate.by_name:
            continue
        if len(parts) == 1 and candidate.reason == ARCHIVE:  # mostly what the folders beside it came from
            logger.warning("%s left out: %s", printable(parts[0]), ARCHIVE)
            continue
        members[parts[0] if len(parts) > 1 else ""].append(candidate)
    items: list[dict[str, Any]] = []
    ids: dict[str, str] = {}
    unusable: dict[str, tuple[Sequence[Candidate], str]] = {}
    found: set[str] = set()
    for folder, inside in members.items():
        for patient, own in _by_patient(root, folder, inside).items():
            best = min(own, key=preference)
            if best.reason:
                first = os.path.relpath(best.source, root / folder)
                unusable[patient] = (own, f"{printable(first)}: {best.reason}")
                continue
            found |= {candidate.patient for candidate in own}
            for note in best.notes:
                logger.warning("patient %s: %s", patient, note)
            for other in own:
                if other is not best and not other.reason and (note := pass_note(other)):
                    logger.warning("patient %s: not used is %s", patient, note)
            if best.dicom and best.patient:
                ids[patient] = best.patient
            items.append(_item(patient, best, root / folder, views))
    _note_shared_ids(items, ids)
    left_out = []
    for patient, (failed, reason) in unusable.items():
        if all(
            not candidate.dicom and candidate.patient in found for candidate in failed
        ):  # maps and the like, in a folder beside the CTs
            logger.warning("%s left out: %s", patient, reason)
        else:
            left_out.append(LeftOut(patient, reason))
    empty = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in members]
    if empty:
        logger.warning("no CT in %d folders: %s", len(empty), ", ".join(map(printable, sorted(empty)[:20])))
    return sorted(items, key=lambda item: str(item["patient"])), left_out


def _note_shared_ids(items: Sequence[dict[str, Any]], ids: Mapping[str, str]) -> None:
    """Patients' folders with one Patient ID become one ``group``, unless all have that one, as an anonymiser's."""
    if len(ids) > 1 and len(set(ids.values())) == 1:
        logger.warning(
            "all %d folders of DICOM have the Patient ID %s; each is taken for a patient of its own",
            len(ids),
            printable(next(iter(ids.values()))),
        )
        return
    shared = {name for name, count in Counter(ids.values()).items() if count > 1}
    for item in items:
        if (name := ids.get(str(item["patient"]))) in shared:
            item["group"] = printable(str(name))


def _by_patient(root: Path, folder: str, inside: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """A folder's candidates by patient: the folder itself is one, unless those in it are clearly several."""
    named = [c for c in inside if not c.dicom and Path(c.files[0]).parent == root / folder]
    own = [c for c in named if stem_of(Path(c.files[0])).lower() == folder.lower()]
    if own:  # as the data contract has it
        return {printable(folder): own}
    usable = {c.patient for c in inside if not c.reason}
    if folder and len(usable) < 2:
        return {printable(folder): list(inside)}
    patients: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in inside:
        if candidate.patient in usable or not folder or not usable:
            patients[printable(candidate.patient)].append(candidate)
        else:
            logger.warning("%s left out: %s", printable(candidate.files[0]), candidate.reason)
    return patients


def _item(patient: str, best: Candidate, folder: Path, views: Sequence[str]) -> dict[str, Any]:
    item: dict[str, Any] = {"patient": patient, "label": str(best.source), **recorded_aim(best.source)}
    if best.dicom:
        item["slices"] = list(best.files)
    radiographs = find_radiographs(folder, views)
    if radiographs is not None:
        item["image"] = [str(path) for path in radiographs]
    return item


def record_beside(ct: str | Path) -> dict[str, Any]:
    """What ``prepare`` wrote beside a CT, as ``<patient>.json``; empty if it was not made by it."""
    path = Path(ct)
    try:
        content = json.loads((path.parent / f"{stem_of(path)}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "source_sha256" in content else {}


def recorded_isocentre(ct: str | Path) -> list[float] | None:
    """Where ``prepare`` let the views turn about (patient coordinates, mm), if that was not the centre of the box.

    Raises:
        InputError: if its record holds something else.
    """
    isocentre = record_beside(ct).get("isocentre")
    return None if isocentre is None else check_isocentre(isocentre, f"the record beside {ct}")


def recorded_aim(ct: str | Path) -> dict[str, list[float]]:
    """:func:`recorded_isocentre` as an item of a data list has it: its entry ``isocentre``, or nothing.

    Raises:
        InputError: as :func:`recorded_isocentre`.
    """
    isocentre = recorded_isocentre(ct)
    return {} if isocentre is None else {"isocentre": isocentre}


def check_isocentre(isocentre: Any, where: str) -> list[float]:
    """Three coordinates in mm.

    Raises:
        InputError: if they are something else.
    """
    try:
        x, y, z = map(float, isocentre)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: isocentre {isocentre!r} is not three coordinates in mm; correct it.") from error
    if not np.isfinite([x, y, z]).all():
        raise InputError(f"{where}: isocentre {isocentre!r} is not three coordinates in mm; correct it.")
    return [x, y, z]


def series_of(folder: str | Path) -> list[str]:
    """The slices, in order, of the DICOM series to use of a folder.

    Raises:
        InputError: if there is none that can be used, with the reason.
    """
    best = min(find_candidates(Path(folder)), key=lambda candidate: (not candidate.dicom, *preference(candidate)))
    if best.reason or not best.dicom:
        raise InputError(f"CT folder {folder} holds no series that can be used: {best.reason or 'no DICOM'}.")
    return list(best.files)
