"""Endless variations of a data set's training patients: what they are made with, and the registration kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from rich.console import Console
from torch.utils.data import Dataset

from drr2ct.pipeline.running.distributed import share, wait
from drr2ct.pipeline.running.faults import explain_fault, origin
from drr2ct.pipeline.running.progress import tracked
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.preprocessing import kept_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.registration import (
    Registered,
    RegisteredPatients,
    RegistrationSettings,
    SmoothMap,
    register,
    to_compare,
)
from drr2ct.transforms.varied.variation import TOWARDS, WIDE, Variation

WAYS = {"within-patients": WIDE, "between-patients": TOWARDS}
"""How training patients can be varied, beside not at all."""

_FORMAT = 1
logger = logging.getLogger(__name__)


def endless_variations(
    dataset: Dataset[Any],
    geometry: BiplanarGeometry,
    vary: str,
    registration_dir: str | Path,
    mode: str = "cube",
    variation: Variation | Mapping[str, Any] | None = None,
    render: Any | None = None,
    afterwards: Any | None = None,
    pathology: Any | None = None,
) -> Compose:
    """What makes a sample of a kept CT: another patient each time, with radiographs rendered from it.

    Between patients, the CTs are registered first, once; other patients are those of ``dataset`` alone.

    Args:
        dataset: the training patients' CTs, from :func:`~drr2ct.transforms.preprocessing.files_to_kept`.
        geometry: grid and views.
        vary: one of :data:`WAYS`.
        registration_dir: where registrations are kept.
        mode: how the CT is put on the grid.
        variation: how far patients differ, or what of it is not as :data:`WAYS` has it.
        render: how radiographs are rendered from a varied scan, see ``kept_to_samples``.
        afterwards: random transforms of the samples, such as those of radiographs.
        pathology: a random transform of a varied scan, see ``kept_to_samples``.

    Raises:
        InputError: for an unknown way, a variation that is none, or a single patient to go between.
    """
    if vary not in WAYS:
        raise InputError(f"vary is {vary!r}; choose off (no vary.yaml), {' or '.join(WAYS)}.")
    if not isinstance(variation, Variation):
        known = [field.name for field in fields(Variation)]
        if unknown := set(variation or {}) - set(known):
            raise InputError(f"variation has no {', '.join(sorted(unknown))}; choose from {', '.join(known)}.")
        variation = replace(WAYS[vary], **(variation or {}))
    stored = [item["patient"] for item in _items(dataset) if "image" in item]
    if stored:
        logger.warning(
            "%d training patients have stored radiographs; those of varied patients are rendered instead.", len(stored)
        )
    anatomies = None
    if vary == "between-patients":
        anatomies = registered_patients(dataset, registration_dir)
    steps = kept_to_samples(geometry, variation, mode, anatomies, render=render, pathology=pathology)
    return steps if afterwards is None else Compose([steps, afterwards])


def registered_patients(
    dataset: Dataset[Any],
    folder: str | Path,
    settings: RegistrationSettings | None = None,
    console: Console | None = None,
) -> RegisteredPatients:
    """Register a data set's CTs to one of them, each once; what is in the folder already is read.

    Results are kept by the content of the two CTs and the settings, so a run that was stopped goes on where it was,
    and a CT that was exchanged is registered again. Several processes share the work.

    Args:
        dataset: of kept CTs (``label``) and ``patient``. The reference is the one of median volume. A CT that cannot be
            read is left out, and named; what trains with it says why.
        folder: for the registrations.
        settings: how.
        console: for the progress.

    Raises:
        InputError: for less than two patients, or a folder that cannot be written.
    """
    settings = settings or RegistrationSettings()
    count = len(dataset)  # type: ignore[arg-type]
    read = [_comparable(dataset, index, settings.spacing_mm) for index in range(count)]
    images = dict(entry for entry in read if entry is not None)
    if len(images) < 2:
        raise InputError(
            f"between patients there have to be two or more, the training set has {len(images)}; "
            "set vary to within-patients."
        )
    by_volume = sorted(images, key=lambda name: (float(np.prod(images[name].GetSize())), name))
    reference = by_volume[len(by_volume) // 2]
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the first takes its seconds
    except OSError as error:
        raise _unwritable(folder, error) from error
    paths = {name: folder / f"{_key(images[reference], image, settings)}.pt" for name, image in images.items()}
    names = sorted(name for name in images if name != reference)
    mine = [names[i] for i in share(len(names)) if _read(paths[names[i]]) is None]
    console = console or Console(stderr=True)
    if mine:
        console.print(f"registering {len(mine)} CTs to that of {reference}; kept in {folder}", soft_wrap=True)
    for name in tracked(mine, len(mine), console, "registrations"):
        _write(paths[name], register(images[reference], images[name], settings))
    wait()
    # read again even what was just made: it is rounded, and a resumed training has nothing else
    found = {name: _read(paths[name]) for name in names}
    if lost := [name for name, entry in found.items() if entry is None]:
        raise InputError(f"registration folder {folder} lacks what was just written for {lost[0]}; check the disk.")
    itself = _identity(images[reference])
    registered = {reference: itself, **{name: entry for name, entry in found.items() if entry}}
    return RegisteredPatients(registered, KeptCTs(dataset))


class KeptCTs:
    """The kept CTs of a data set by patient; read when they are asked for.

    Args:
        dataset: of kept CTs (``label``) and ``patient``.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.places = {str(item["patient"]): index for index, item in enumerate(_items(dataset))}

    def __call__(self, patient: str) -> MetaTensor:
        """(1, I, J, K) in HU."""
        found: MetaTensor = self.dataset[self.places[patient]]["label"]
        return found


def _items(dataset: Any) -> Sequence[Mapping[str, Any]]:
    """The data list behind a data set."""
    while not hasattr(dataset, "data"):
        dataset = dataset.dataset
    return dataset.data


def _comparable(dataset: Dataset[Any], index: int, spacing_mm: float) -> tuple[str, sitk.Image] | None:
    try:
        sample = dataset[index]
        return str(sample["patient"]), to_compare(sample["label"], spacing_mm)
    except Exception as error:  # whatever a damaged file leads to
        if (fault := explain_fault(error)) is not None:
            raise fault from origin(fault, error)  # a full disk is not the patient's fault
        logger.warning("patient %s is left out between patients (%s)", _items(dataset)[index]["patient"], error)
        return None


def _key(reference: sitk.Image, patient: sitk.Image, settings: RegistrationSettings) -> str:
    """Digest of all that a registration depends on."""
    digest = hashlib.sha256(json.dumps([_FORMAT, sitk.__version__, asdict(settings)]).encode())
    for image in (reference, patient):
        digest.update(repr((image.GetSize(), image.GetOrigin(), image.GetSpacing())).encode())
        digest.update(sitk.GetArrayViewFromImage(image).tobytes())
    return digest.hexdigest()


def _identity(image: sitk.Image) -> Registered:
    low = torch.tensor(image.GetOrigin())
    high = low + torch.tensor(image.GetSpacing()) * (torch.tensor(image.GetSize()) - 1)
    nothing = SmoothMap(torch.eye(3), torch.zeros(3), torch.zeros(3, 2, 2, 2), low, high)
    return Registered(nothing, nothing)


def _write(path: Path, registered: Registered) -> None:
    content = {}
    for name, way in vars(registered).items():
        content[name] = {**vars(way), "added": way.added.half()}  # to a tenth of a millimetre
    try:
        with replacing(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch hides the reason why a file cannot be written
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"registration folder {folder} cannot be written ({reason}); set registration_dir to another.")


def _read(path: Path) -> Registered | None:
    """None if there is none, or a damaged one."""
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Registered(**{name: SmoothMap(**way) for name, way in content.items()})
    except Exception:
        logger.warning("registration %s is damaged; it is made again", path)
        return None
