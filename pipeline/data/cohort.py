"""A seeded cohort of variations of real CTs, written as a data set: patients to judge on where there is only one CT.

It makes the demonstration's patients, and the written samples that endless variations are compared with; it does not
replace patients. Trainings vary while they train, see :mod:`~drr2ct.pipeline.data.endless`.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from monai.data import MetaTensor

from drr2ct.pipeline.data.datalist import write_datalist
from drr2ct.pipeline.data.patients import recorded_aim
from drr2ct.pipeline.data.splitting import PARTS
from drr2ct.pipeline.running.workers import worker_pool
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.preprocessing import files_to_kept, kept_to_samples
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.variation import Variation
from drr2ct.transforms.volume import to_hu


@dataclass(frozen=True)
class CohortPlan:
    """What :func:`write_cohort` makes: how many patients per part, from which CTs, on which geometry.

    Of CTs that ``prepare`` aimed elsewhere than at the middle of the scan, variations are aimed there too.

    With no patient for the training, its part lists copies of the CTs themselves: to be varied while training.
    """

    cts: tuple[Path, ...]
    geometry: BiplanarGeometry
    training: int = 96
    validation: int = 8
    test: int = 16
    seed: int = 0
    variation: Variation = field(default_factory=Variation)

    def patients(self) -> list[tuple[str, str, Path, int]]:
        """(part, name, source CT, seed) of every patient; sources take turns."""
        counts = dict(zip(PARTS, (self.training, self.validation, self.test), strict=True))
        parts = [part for part in PARTS for _ in range(counts[part])]
        return [
            (part, f"patient-{i:03d}", self.cts[i % len(self.cts)], self.seed * 100_003 + i)
            for i, part in enumerate(parts)
        ]


def write_cohort(
    dataset_dir: str | Path,
    plan: CohortPlan,
    workers: int = 2,
    on_patient: Callable[[], None] | None = None,
) -> Path:
    """Write the cohort in the data contract's layout: CTs on the grid, DRRs rendered from the whole varied scan.

    The result does not depend on ``workers``. Patients that are already there are kept, so a run that was stopped
    goes on where it was.

    Returns:
        The path of ``dataset.json``.
    """
    root = Path(dataset_dir)
    root.mkdir(parents=True, exist_ok=True)
    _claim(root / "cohort.json", plan)
    plan.geometry.save(root / "geometry.json")
    patients = plan.patients()
    jobs = [(root, name, source, seed, plan.geometry, plan.variation) for _, name, source, seed in patients]
    missing = [job for job in jobs if not _is_complete(root / job[1], plan.geometry)]
    with worker_pool(workers) as pool:
        written = pool.map(_write_patient, missing)  # no process is started for none
        for _ in itertools.chain(range(len(jobs) - len(missing)), written):
            if on_patient is not None:
                on_patient()
    parts: dict[str, list[dict[str, object]]] = {part: [] for part in PARTS}
    for source in plan.cts if plan.training == 0 else ():
        name = source.name.split(".")[0]
        copy = root / name / source.name
        with replacing(copy) as temporary:
            shutil.copyfile(source, temporary)
        aim = recorded_aim(source)
        parts["training"].append({"patient": name, "label": str(copy), "source": source.name, **aim})
    for part, name, source, seed in patients:
        volume, radiographs = _files(root / name, plan.geometry)
        parts[part].append(
            {
                "patient": name,
                "label": str(volume),
                "image": [str(path) for path in radiographs],
                "source": source.name,
                "seed": seed,
            }
        )
    return write_datalist(root, parts, f"seeded variations of {len(plan.cts)} CT; not patients")


def _claim(record: Path, plan: CohortPlan) -> None:
    """Note the plan beside the data, and refuse a folder that was made by another."""
    described = json.dumps(
        {**asdict(plan), "cts": [path.name for path in plan.cts], "geometry": plan.geometry.to_dict()}, indent=1
    )
    if record.exists():
        if record.read_text() != described:
            raise InputError(f"{record.parent} holds a cohort made with other settings; delete it or choose another.")
    elif any(record.parent.iterdir()):
        raise InputError(f"{record.parent} is not empty and holds no cohort; choose another folder.")
    else:
        with replacing(record) as temporary:
            temporary.write_text(described)


def _files(folder: Path, geometry: BiplanarGeometry) -> tuple[Path, list[Path]]:
    """CT and radiographs of a patient."""
    name = folder.name
    return folder / f"{name}.nii.gz", [folder / f"{name}_{view.name}_drr.nii.gz" for view in geometry.views]


def _is_complete(folder: Path, geometry: BiplanarGeometry) -> bool:
    volume, radiographs = _files(folder, geometry)
    return volume.exists() and all(path.exists() for path in radiographs)


def _write_patient(job: tuple[Path, str, Path, int, BiplanarGeometry, Variation]) -> None:
    root, name, source, seed, geometry, variation = job
    volume, radiographs = _files(root / name, geometry)
    volume.parent.mkdir(exist_ok=True)
    vary = kept_to_samples(geometry, variation)
    vary.set_random_state(seed)
    sample = vary({**_load_source(source, geometry), "patient": name})
    for path, view, radiograph in zip(radiographs, geometry.views, sample["image"] * LINE_INTEGRAL_SCALE, strict=True):
        write_radiograph(path, radiograph, pitch_mm=view.pixel_pitch_mm)
    # the volume last: its presence says that the patient is complete
    write_volume(volume, MetaTensor(to_hu(sample["label"].as_tensor()), affine=sample["label"].affine))


_SOURCES: dict[tuple[Path, BiplanarGeometry], dict[str, Any]] = {}


def _load_source(path: Path, geometry: BiplanarGeometry) -> dict[str, Any]:
    """What is kept of the source CT; and kept, because one worker varies it many times."""
    if (path, geometry) not in _SOURCES:
        _SOURCES.clear()
        item: dict[str, Any] = {"label": str(path), "patient": path.name, **recorded_aim(path)}
        _SOURCES[path, geometry] = files_to_kept(geometry)(item)
    return _SOURCES[path, geometry]
