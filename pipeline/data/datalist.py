"""Which patients a data set holds, in which part they are, and with which geometry their radiographs were made.

A data set is a folder of patient folders (see the README); everything but the CT is optional::

    root/<patient>/<patient>.nii.gz            or .nii .nrrd .mha .mhd, or a folder with one DICOM series
    root/<patient>/<patient>_<view>_drr.png    or .nii.gz .nii .tif .tiff .dcm
    root/geometry.json
    root/dataset.json
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from drr2ct.pipeline.data.candidate import VOLUME_SUFFIXES
from drr2ct.pipeline.data.identity import ct_fingerprint
from drr2ct.pipeline.data.patient_names import stem_of
from drr2ct.pipeline.data.patients import (
    RADIOGRAPH_SUFFIXES,
    check_isocentre,
    find_patients,
    recorded_aim,
    series_of,
)
from drr2ct.pipeline.data.splitting import PARTS, TooFewPatientsError, split_together
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)

ALL = "all"
"""All parts of a data set as one, which needs no split."""

_PATHS = ("image", "label", "slices")


def dataset_geometry(
    dataset_dir: str | Path | None = None,
    size: int = 256,
    fov_mm: float = 360.0,
    detector_size: int = 512,
    vertical_flip: bool = True,
    **acquisition: Any,
) -> BiplanarGeometry:
    """The geometry of a data set's radiographs on a grid of ``size``³ voxels.

    With ``geometry.json`` in the data set, its views are taken as they are and only the number of voxels is set here.
    Without, radiographs will be rendered, so ``fov_mm``, ``detector_size`` and ``acquisition`` (arguments of
    :meth:`BiplanarGeometry.from_angles`) decide.
    """
    stored = None if dataset_dir is None else Path(dataset_dir) / "geometry.json"
    if stored is not None and stored.exists():
        return BiplanarGeometry.load(stored).resized(size=size)
    return BiplanarGeometry.from_angles(
        VolumeGrid(size, fov_mm, vertical_flip), detector_size=detector_size, **acquisition
    )


def check_stored_geometry(
    dataset_dir: str | Path, geometry: BiplanarGeometry, items: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse stored radiographs that were made with another geometry than the one they are to be used with.

    Distances and the detector's width may differ by 1 %, angles by 0.5°; the number of pixels does not count.

    Args:
        dataset_dir: its ``geometry.json`` is of the stored radiographs; without one nothing is known.
        geometry: for which they are to be used, for example a checkpoint's.
        items: of a data list; those without ``image`` are rendered, with the right geometry.

    Raises:
        InputError: naming the first difference.
    """
    path = Path(dataset_dir) / "geometry.json"
    if not path.exists() or not any("image" in item for item in items):
        return
    for stored, wanted in zip(BiplanarGeometry.load(path).views, geometry.views, strict=False):
        for what, unit, measure in _ACQUISITION:
            has, needs = measure(stored), measure(wanted)
            if abs(has - needs) > (0.5 if unit == "°" else 0.01 * needs):
                raise InputError(
                    f"the radiographs of {path.parent} were made with a {what} of {has:g}{unit} (view {stored.name}), "
                    f"but {needs:g}{unit} is needed; use a checkpoint of that geometry, or prepare the set with "
                    "this one (--geometry)."
                )


_ACQUISITION: tuple[tuple[str, str, Callable[[View], float]], ...] = (
    ("gantry angle", "°", lambda view: view.gantry_angle_deg),
    ("source-to-isocentre distance", " mm", lambda view: view.source_to_isocentre_mm),
    ("source-to-detector distance", " mm", lambda view: view.source_to_detector_mm),
    ("detector width", " mm", lambda view: view.pixel_pitch_mm * view.detector_size[1]),
)


def write_datalist(dataset_dir: str | Path, parts: dict[str, list[dict[str, Any]]], description: str) -> Path:
    """Write ``dataset.json`` (MONAI's data list, paths relative to the folder)."""
    root = Path(os.path.abspath(dataset_dir))  # noqa: PTH100  # patients' folders may be links to other disks

    def relative(value: Any) -> Any:
        if isinstance(value, list):
            return [relative(entry) for entry in value]
        return os.path.relpath(value, root)

    content: dict[str, Any] = {"name": root.name, "description": description}
    for part in PARTS:
        content[part] = [
            {key: relative(value) if key in _PATHS else value for key, value in item.items()} for item in parts[part]
        ]
    path = root / "dataset.json"
    write_json(path, content)
    return path


def load_datalist(
    dataset_dir: str | Path,
    part: str,
    views: Sequence[str] = ("pa", "lat"),
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    on_bad_sample: str = "stop",
) -> list[dict[str, Any]]:
    """One part of a data set: from its ``dataset.json``, else from :func:`split_together` of what the folder holds.

    Args:
        dataset_dir: folder of patient folders.
        part: ``training``, ``validation``, ``test``, or ``all`` for every patient.
        views: names of the geometry's views; stored radiographs are found by them.
        fractions: of the split, if there is no ``dataset.json``.
        seed: likewise.
        on_bad_sample: likewise; ``skip`` leaves out folders whose CT cannot be used, see :func:`find_patients`.

    Returns:
        Items with ``patient``, ``label`` (path) and, where radiographs are stored, ``image`` (paths); with
        ``isocentre`` (patient coordinates, mm) where the list or ``prepare``'s record names another than the centre of
        the CT's box.

    Raises:
        InputError: if the folder, the part or a listed file is missing, or a patient is in two parts.
    """
    if part not in (*PARTS, ALL):
        raise InputError(f"data list part {part!r} is unknown; choose from {', '.join((*PARTS, ALL))}.")
    if part == ALL and is_drawn(dataset_dir):
        return find_patients(dataset_dir, views, on_bad_sample)
    try:
        parts = load_parts(dataset_dir, views, fractions, seed, on_bad_sample)
    except TooFewPatientsError as error:
        raise InputError(f"{str(error).rstrip('.')}, or part {ALL}, which takes every patient.") from error
    if part == ALL:
        parts[ALL] = [item for items in parts.values() for item in items]
    return filled_part(parts, part, dataset_dir, fractions)


def filled_part(
    parts: Mapping[str, list[dict[str, Any]]], part: str, dataset_dir: str | Path, fractions: Sequence[float]
) -> list[dict[str, Any]]:
    """One of the parts that :func:`load_parts` found.

    Raises:
        InputError: if it is empty.
    """
    if not parts[part]:
        if not (Path(dataset_dir) / "dataset.json").is_file():
            raise InputError(f"the split {tuple(fractions)} leaves no patients for {part}; give it a share.")
        raise InputError(f"data list {Path(dataset_dir) / 'dataset.json'} has no patients under {part!r}; add some.")
    return parts[part]


def load_parts(
    dataset_dir: str | Path,
    views: Sequence[str] = ("pa", "lat"),
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    on_bad_sample: str = "stop",
    validation_patients: Sequence[str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """All parts of a data set, some of which may be empty; see :func:`load_datalist`.

    Args:
        dataset_dir: folder of patient folders.
        views: names of the views that stored radiographs are of.
        fractions: of a drawn split, where there is no data list.
        seed: of that split.
        on_bad_sample: ``stop``, or ``skip`` folders without a usable CT.
        validation_patients: instead of a drawn split these are for validation, all others for training.

    Raises:
        InputError: if the folder or a listed file is missing, a patient is in two parts, one for validation is not
            there, or the data set has a list that says the parts already.
    """
    listing = Path(dataset_dir) / "dataset.json"
    if validation_patients is not None and listing.is_file():
        raise InputError(f"{listing} says which patients are for validation; leave validation_patients null.")
    if validation_patients is not None:
        return _validated_on(find_patients(dataset_dir, views, on_bad_sample), validation_patients, dataset_dir)
    if not listing.is_file():
        return split_together(find_patients(dataset_dir, views, on_bad_sample), fractions, seed)
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
        parts = {name: [_join_paths(listing.parent, _own_item(i)) for i in content.get(name, [])] for name in PARTS}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"data list {listing} is not a MONAI data list in JSON ({error}); write it again.") from error
    _check_datalist(listing, parts, len(views))
    for item in (item for items in parts.values() for item in items):
        if "isocentre" not in item:
            item |= recorded_aim(item["label"])
        if "slices" not in item and Path(item["label"]).is_dir():
            item["slices"] = series_of(item["label"])
    home: dict[str, tuple[str, str]] = {}
    for part, items in parts.items():
        for item in items:
            patient = str(item["patient"])
            first = home.setdefault(ct_fingerprint(item["label"]) or patient, (part, patient))
            if first[0] != part:
                logger.warning("%s (%s) and %s (%s) are the same CT: keep one", first[1], first[0], patient, part)
    return parts


def is_drawn(dataset_dir: str | Path, validation_patients: Sequence[str] | None = None) -> bool:
    """Whether :func:`load_parts` splits the data set itself: nobody chose who is for validation and test."""
    return validation_patients is None and not (Path(dataset_dir) / "dataset.json").is_file()


def _validated_on(
    patients: Sequence[dict[str, Any]], chosen: Sequence[str], dataset_dir: str | Path
) -> dict[str, list[dict[str, Any]]]:
    """The chosen patients for validation, all others for training; a chosen one's copies may not be among those."""
    names = {str(item["patient"]) for item in patients}
    if missing := sorted(set(chosen) - names):
        raise InputError(f"validation_patients: {', '.join(missing)} is not in {dataset_dir}; give folders' names.")
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in PARTS}
    for item in patients:
        parts["validation" if item["patient"] in chosen else "training"].append(item)
    held = {ct_fingerprint(item["label"]): item["patient"] for item in parts["validation"]}
    held.pop(None, None)
    for item in parts["training"]:
        if original := held.get(ct_fingerprint(item["label"])):
            raise InputError(f"{item['patient']} is the same CT as {original}, which is for validation; keep one.")
    return parts


def _own_item(item: Any) -> dict[str, Any]:
    """An item in our keys: the Decathlon's lists have bare paths for tests, and call the CT ``image``."""
    if isinstance(item, str):
        item = {"image": item}
    image = item.get("image")
    if isinstance(image, str) and image.lower().endswith(VOLUME_SUFFIXES):
        return {"patient": stem_of(Path(image)), **{k: v for k, v in item.items() if k != "image"}, "label": image}
    return item


def _join_paths(root: Path, item: dict[str, Any]) -> dict[str, Any]:
    """The item with its paths under ``root``; MONAI's own loader would also turn a patient's name into a path."""
    joined = dict(item)
    for key in {*_PATHS} & item.keys():
        value = item[key]
        joined[key] = [str(root / path) for path in value] if isinstance(value, list) else str(root / value)
    return joined


def check_patient_name(patient: str, where: str) -> None:
    """Names of patients become names of files: refuse those that would lead elsewhere.

    Raises:
        InputError: for an empty name, or one with a separator.
    """
    if not patient or patient in (".", "..") or any(c in patient for c in "/\\\0"):
        raise InputError(f"{where}: patient name {patient!r} cannot be a file name; rename it.")


def _check_datalist(listing: Path, parts: dict[str, list[dict[str, Any]]], n_views: int) -> None:
    home: dict[str, str] = {}
    root = Path(os.path.abspath(listing.parent))  # noqa: PTH100
    for part, items in parts.items():
        for item in items:
            if "label" not in item:
                raise InputError(f"data list {listing}: an item under {part!r} has no 'label'; give the CT's path.")
            patient = item.setdefault("patient", Path(item["label"]).parent.name)
            check_patient_name(patient, f"data list {listing}")
            if home.setdefault(patient, part) != part:
                raise InputError(
                    f"data list {listing}: patient {patient} is in {home[patient]!r} and in {part!r}; keep one."
                )
            if "isocentre" in item:
                item["isocentre"] = check_isocentre(item["isocentre"], f"data list {listing}: patient {patient}")
            images = item.get("image", [])
            if images and (isinstance(images, str) or len(images) != n_views):
                raise InputError(
                    f"data list {listing}: patient {patient} needs a list of {n_views} radiographs under 'image'."
                )
            for path in (item["label"], *images):
                # links are the user's own: sets are often spread over disks by them
                if not Path(os.path.abspath(path)).is_relative_to(root):  # noqa: PTH100  # resolve() follows links
                    raise InputError(
                        f"data list {listing}: {path} lies outside the data set's folder; give paths inside it."
                    )
                if not Path(path).exists():
                    raise InputError(f"data list {listing}: {path} does not exist; restore it or take it off the list.")


def _radiographs_by_view(folder: Path, views: Sequence[str]) -> list[Path]:
    """Files to reconstruct from, ``<patient>_<view>_drr.*`` or ``<view>.*``; where there is none, a missing name.

    Capitals do not matter, as names come from all kinds of systems.
    """
    files = {path.name.casefold(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_file()}
    found = []
    for view in views:
        stems = (f"{folder.name}_{view}_drr", view)
        names = [f"{stem}{suffix}".casefold() for stem in stems for suffix in RADIOGRAPH_SUFFIXES]
        found.append(next((files[name] for name in names if name in files), folder / f"{view}.*"))
    return found


def radiograph_items(
    views: Sequence[str],
    radiographs: Sequence[str | Path] | None = None,
    patients_dir: str | Path | None = None,
    patient: str = "patient",
) -> list[dict[str, Any]]:
    """What to reconstruct: one patient's files in the order of ``views``, or every patient of a folder.

    Returns:
        Items with ``patient`` and ``image`` (paths, one per view).

    Raises:
        InputError: if neither or both are given, or no patient of the folder has a radiograph. A patient who lacks one
            of several views is listed, so that reading fails for that patient alone; folders without any are named in
            a warning.
    """
    if (radiographs is None) == (patients_dir is None):
        raise InputError("give either radiographs (one file per view) or patients_dir (a folder of patient folders).")
    if radiographs is not None:
        if len(radiographs) != len(views) or not all(radiographs):
            raise InputError(f"{len(views)} radiographs are needed, one per view ({', '.join(views)}).")
        check_patient_name(patient, "radiographs")
        for path in radiographs:
            if Path(path).is_dir():
                raise InputError(f"radiograph {path} is a folder; give one image file.")
        return [{"patient": patient, "image": [str(path) for path in radiographs]}]
    root = Path(str(patients_dir))
    if not root.is_dir():
        raise InputError(f"patients folder {root} does not exist.")
    items, without = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = _radiographs_by_view(folder, views)
        if any(path.is_file() for path in found):
            items.append({"patient": folder.name, "image": [str(path) for path in found]})
        else:
            without.append(folder.name)
    if items and without:
        logger.warning(
            "left out, as they hold no radiograph called %s.* or <patient>_%s_drr.*: %s",
            ".* or ".join(views),
            views[0],
            ", ".join(without),
        )
    if not items:
        raise InputError(
            f"patients folder {root} holds no <patient>/{views[0]}.* or <patient>/<patient>_{views[0]}_drr.*."
        )
    return items
