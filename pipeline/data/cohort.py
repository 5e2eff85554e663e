"""A seeded cohort of plausible variations of real CTs, written as a data set.

Real anatomy, varied: rigid and anisotropic affine deformation, a smooth random displacement field, and the
attenuation of lung, fat, muscle and bone. It makes a data set where there is only one CT (the demo) or a few
(the benchmarks); it does not replace patients.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, RandAffine, RandSmoothDeform, SpatialCrop

from drr2ct.pipeline.data.datalist import PARTS, write_datalist
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiograph import write_radiograph
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import AIR_HU, HU_WINDOW, LoadCT, ResampleToGrid, bounding_box_centre

_TISSUE_KNOTS_HU = np.array([-1024.0, -980.0, -850.0, -100.0, 50.0, 400.0, 3071.0])
_TISSUE_SPREAD_HU = np.array([0.0, 0.0, 40.0, 20.0, 15.0, 80.0, 0.0])


@dataclass(frozen=True)
class Variation:
    """How far patients of a cohort differ.

    Args:
        rotation_deg: largest rotation about each axis.
        scale: largest relative change of size, drawn for each axis.
        shift_mm: largest displacement along each axis.
        deformation: largest local displacement, as a fraction of the scan's extent.
        control_points: of the displacement field, along each axis.
        tissue: multiplies the HU variation of lung (±40), fat (±20), muscle (±15) and bone (±80).
        coverage: largest part of the scan's extent that is cut off, at either end of each axis: scans end elsewhere.

    Raises:
        InputError: if the coverage would leave nothing.
    """

    rotation_deg: float = 6.0
    scale: float = 0.12
    shift_mm: float = 12.0
    deformation: float = 0.05
    control_points: int = 5
    tissue: float = 1.0
    coverage: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.coverage < 0.5:
            raise InputError(f"coverage is {self.coverage:g}; at either end less than 0.5 of a scan can be cut off.")


BETWEEN_PATIENTS = Variation(
    rotation_deg=8.0, scale=0.2, shift_mm=20.0, deformation=0.08, control_points=6, tissue=1.5, coverage=0.12
)
"""Wide enough to learn other patients from: a scan that is left out differs in build, and in where it ends."""


def deformation(shape: tuple[int, ...], spacing_mm: Float[np.ndarray, 3], variation: Variation) -> Compose:
    """How a cohort's shapes differ: MONAI's random affine and smooth deformation, border values repeated.

    Args:
        shape: of the volumes, without the channel.
        spacing_mm: of their voxels.
        variation: how far they may differ.
    """
    steps: list[Any] = [
        RandAffine(
            prob=1.0,
            rotate_range=(np.radians(variation.rotation_deg),) * 3,
            scale_range=(variation.scale,) * 3,
            translate_range=tuple(variation.shift_mm / spacing_mm),
            mode="bilinear",
            padding_mode="border",
        )
    ]
    if variation.deformation > 0:  # MONAI's takes no empty range
        steps.append(
            RandSmoothDeform(
                spatial_size=shape,
                rand_size=(variation.control_points,) * 3,
                prob=1.0,
                field_mode="trilinear",
                align_corners=True,
                def_range=2 * variation.deformation,  # MONAI's coordinates span 2
                grid_mode="bilinear",
                grid_padding_mode="border",
                grid_align_corners=True,
            )
        )
    return Compose(steps)


def vary(ct: MetaTensor, seed: int, variation: Variation | None = None) -> MetaTensor:
    """One variation of a CT.

    Args:
        ct: (1, I, J, K) in HU, oriented RAS.
        seed: the same seed gives the same patient.
        variation: how far it may differ.

    Returns:
        (1, I, J, K) in HU, on the voxels of ``ct`` or, where its ends are cut off, some of them.
    """
    variation = variation or Variation()
    spacing = np.linalg.norm(np.asarray(ct.affine)[:3, :3], axis=0)
    deform = deformation(tuple(ct.shape[1:]), spacing, variation)
    deform.set_random_state(seed)
    warped = deform(ct.as_tensor()).numpy()
    draw = np.random.default_rng(seed)
    offsets = draw.uniform(-1, 1, len(_TISSUE_KNOTS_HU)) * _TISSUE_SPREAD_HU * variation.tissue
    remapped = np.interp(warped, _TISSUE_KNOTS_HU, _TISSUE_KNOTS_HU + offsets).astype(np.float32)
    varied = MetaTensor(torch.from_numpy(remapped).clamp(AIR_HU, HU_WINDOW[1]), meta=ct.meta)
    shape = np.asarray(ct.shape[1:])
    cut = np.round(draw.uniform(0, variation.coverage, (2, 3)) * shape).astype(int)
    return cast(MetaTensor, SpatialCrop(roi_start=cut[0], roi_end=shape - cut[1])(varied)) if cut.any() else varied


@dataclass(frozen=True)
class CohortPlan:
    """What :func:`write_cohort` makes: how many patients per part, from which CTs, on which geometry."""

    cts: tuple[Path, ...]
    geometry: BiplanarGeometry
    training: int = 96
    validation: int = 8
    test: int = 16
    seed: int = 0
    variation: Variation = Variation()

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
    """Write the cohort in the data contract's layout: CTs on the grid, DRRs rendered at the source's resolution.

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
    # spawned, not forked: torch's and ITK's thread pools do not survive a fork
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        written = pool.map(_write_patient, missing)  # no process is started for none
        for _ in itertools.chain(range(len(jobs) - len(missing)), written):
            if on_patient is not None:
                on_patient()
    parts: dict[str, list[dict[str, object]]] = {part: [] for part in PARTS}
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
    ct = vary(_load_source(source), seed, variation)
    ct.meta["isocentre"] = bounding_box_centre(ct).tolist()
    for path, radiograph in zip(radiographs, render_drr(ct, geometry), strict=True):
        write_radiograph(path, radiograph)
    # the volume last: its presence says that the patient is complete
    write_volume(volume, ResampleToGrid(geometry.grid)(ct))


_SOURCES: dict[Path, Any] = {}


def _load_source(path: Path) -> MetaTensor:
    """The source CT, RAS; kept, because one worker varies it many times."""
    if path not in _SOURCES:
        _SOURCES.clear()
        _SOURCES[path] = Orientation("RAS", labels=None)(LoadCT()(path))
    return _SOURCES[path]
