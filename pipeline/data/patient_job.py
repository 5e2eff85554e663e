"""Making one patient: which jobs there are, what a job writes, and the processes that do it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drr2ct.pipeline.data.candidate import Candidate, preference, read_candidate
from drr2ct.pipeline.data.patient_names import printable
from drr2ct.pipeline.data.settings import PrepareSettings, folder_name, keyed
from drr2ct.pipeline.data.survey import aim_notes, look_at, lungs_to_aim_at
from drr2ct.pipeline.running.faults import disk_is_full
from drr2ct.pipeline.running.workers import worker_pool
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.files import write_json
from drr2ct.transforms.hounsfield import clipped_above
from drr2ct.transforms.lost_slices import repeated_slices
from drr2ct.transforms.memory_order import value_range
from drr2ct.transforms.radiographs.scale import DISPLAY_MAXIMUM, PNG_COUNTS
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW, slices_last


@dataclass(frozen=True)
class Job:
    """One patient to make: the name, the patient it belongs to in the split, and its usable CTs, best first."""

    name: str
    group: str
    candidates: tuple[Candidate, ...]
    fingerprint: str
    source: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job, and the seconds of each step."""

    name: str
    error: str
    seconds: dict[str, float]


def plan_jobs(candidates: Sequence[Candidate], source: Path, settings: PrepareSettings) -> list[Job]:
    """The patients to make, sorted by name."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if not candidate.reason:
            groups[candidate.patient].append(candidate)
    jobs = []
    for patient, members in groups.items():
        group = folder_name(patient, settings.key)
        studies = sorted({member.study for member in members}) if settings.per_study else [None]
        for number, study in enumerate(studies, 1):
            chosen = tuple(sorted((m for m in members if study in (None, m.study)), key=preference))
            name = group if len(studies) == 1 else f"{group}_study{number}"
            described = [(Path(path).name, Path(path).stat().st_size) for m in chosen for path in m.files]
            digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
            jobs.append(Job(name, group, chosen, digest, source))
    return sorted(jobs, key=lambda job: job.name)


def patient_record(dest: Path, name: str) -> dict[str, Any] | None:
    """What lies beside a patient that is ready."""
    try:
        content: dict[str, Any] = json.loads((dest / name / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return content


def failure_file(dest: Path, name: str) -> Path:
    """Where it stands why a patient could not be made."""
    return dest / ".failed" / f"{name}.json"


def is_ready(dest: Path, job: Job) -> bool:
    """The patient was made, from these files."""
    record = patient_record(dest, job.name)
    return record is not None and record["fingerprint"] == job.fingerprint


def make_patient(job: Job, dest: Path, settings: PrepareSettings) -> Outcome:
    """Make one patient's folder from the best CT that can be read.

    Raises:
        InputError: if the disk is full. Whatever is wrong with the patient is in the outcome instead.
    """
    partial = dest / ".partial" / job.name
    seconds: dict[str, float] = defaultdict(float)
    shutil.rmtree(partial, ignore_errors=True)
    refused: dict[str, str] = {}
    try:
        partial.mkdir(parents=True)
        for candidate in job.candidates:
            try:
                record = _write_patient(job, candidate, partial, settings, seconds)
            except InputError as error:
                refused[candidate.files[0]] = _without_paths(str(error), candidate)
                continue
            except Exception as error:  # whatever is wrong with one CT, the next may be sound
                if isinstance(error, OSError) and disk_is_full(error):
                    raise
                refused[candidate.files[0]] = _without_paths(f"{type(error).__name__}: {error}", candidate)
                continue
            hidden = {shown_path(path, job.source, settings.key): reason for path, reason in refused.items()}
            write_json(partial / f"{job.name}.json", {**record, "refused": hidden})
            shutil.rmtree(dest / job.name, ignore_errors=True)
            partial.replace(dest / job.name)
            return Outcome(job.name, "", dict(seconds))
        error_text = next(iter(refused.values()))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(partial, ignore_errors=True)
            raise InputError(
                f"the disk of {dest} is full; finished patients are kept: free space and give the same command again."
            ) from error
        error_text = _without_paths(str(error), job.candidates[0])
    except Exception as error:  # one bad patient must not stop the others
        error_text = _without_paths(f"{type(error).__name__}: {error}", job.candidates[0])
    shutil.rmtree(partial, ignore_errors=True)
    hidden = {shown_path(path, job.source, settings.key): reason for path, reason in refused.items()}
    write_json(failure_file(dest, job.name), {"error": error_text, "refused": hidden})
    return Outcome(job.name, error_text, dict(seconds))


def shown_path(path: str, source: Path, key: bytes | None) -> str:
    """A file of the source as the data set may name it: relative, or hashed under the key."""
    relative = Path(os.path.relpath(path, source)).as_posix()
    return printable(relative) if key is None else keyed(key, relative)


def _without_paths(message: str, candidate: Candidate) -> str:
    """Messages land in the data set, where a path may name the patient."""
    for path in sorted({*candidate.files, str(candidate.source)}, key=len, reverse=True):
        message = message.replace(f"CT {path}", "the CT").replace(path, "the file")
    return printable(message).rstrip(".")


def _write_patient(
    job: Job, candidate: Candidate, folder: Path, settings: PrepareSettings, seconds: dict[str, float]
) -> dict[str, Any]:
    clock = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step] += now - clock
        clock = now

    digest = hashlib.sha256()
    ct = read_candidate(candidate, digest.update)
    lap("read")
    notes = list(candidate.notes)
    values = ct.as_tensor()
    low, high = HU_WINDOW
    least, greatest = value_range(values)
    if greatest > high:
        notes.append(f"{int((values > high).sum())} voxels above {high:g} HU clipped")
    if least < low:
        notes.append(f"{int((values < low).sum())} voxels below {low:g} HU clipped")
    notes += filter(None, (clipped_above(values), repeated_slices(slices_last(ct))))
    values.clamp_(low, high).round_()  # the DRRs see what the file will hold
    seen = look_at(ct)
    isocentre = seen.centre
    if settings.centre == "lungs":
        lungs = lungs_to_aim_at(seen)
        isocentre = lungs.centre
        away = np.linalg.norm(np.subtract(isocentre, seen.centre))
        notes.append(f"aimed at the lungs ({lungs.litres:.2g} l), {away:.0f} mm from the middle of the scan")
    notes += aim_notes(seen, isocentre, settings.geometry.grid)
    lap("look")
    radiographs = render_drr(ct, settings.geometry, isocentre=isocentre)
    lap("render")
    ceiling = DISPLAY_MAXIMUM if settings.png_bits == 8 else (2**16 - 1) / PNG_COUNTS
    for view, radiograph in zip(settings.geometry.views, radiographs, strict=True):
        stem = folder / f"{job.name}_{view.name}_drr"
        write_radiograph(stem.with_name(f"{stem.name}.nii.gz"), radiograph, pitch_mm=view.pixel_pitch_mm)
        write_radiograph(stem.with_name(f"{stem.name}.png"), radiograph.clamp(max=ceiling), bits=settings.png_bits)
    lap("write DRRs")
    write_volume(folder / f"{job.name}.nii.gz", ct)
    lap("write CT")
    return {
        "fingerprint": job.fingerprint,
        "source_sha256": digest.hexdigest(),
        "source_files": len(candidate.files),
        "used": shown_path(candidate.files[0], job.source, settings.key),
        "shape": list(ct.shape[1:]),
        "voxel_mm": np.linalg.norm(np.asarray(ct.affine)[:3, :3], axis=0).round(6).tolist(),
        **seen.to_dict(),
        **({"isocentre": list(isocentre)} if settings.centre != "box" else {}),
        "notes": notes,
    }


def run_jobs(
    jobs: Sequence[Job], dest: Path, settings: PrepareSettings, workers: int, begun: Executor | None
) -> Iterator[Outcome]:
    """Make patients in several processes; one that takes its process down is tried once more alone, then failed.

    Args:
        jobs: the patients.
        dest: the data set.
        settings: what to make.
        workers: processes.
        begun: those, if they are there already; without any, they are this one.
    """
    if begun is None:
        for job in jobs:
            yield make_patient(job, dest, settings)
        return
    queue = list(jobs)
    suspects: list[Job] = []
    while queue or suspects:
        alone = not queue
        count = 1 if alone else workers
        with begun or worker_pool(count) as pool:
            begun = None  # one that breaks is of no more use
            running: dict[Future[Outcome], Job] = {}
            try:
                while running or (suspects if alone else queue):
                    waiting = suspects if alone else queue
                    while waiting and len(running) < count:
                        running[pool.submit(make_patient, waiting[0], dest, settings)] = waiting[0]
                        waiting.pop(0)  # not before: a broken pool takes no job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        del running[future]
                        yield outcome
            except BrokenProcessPool:
                # finished ones among them are done again: they are few, and making a patient twice changes nothing
                if not alone:
                    suspects += running.values()
                    continue
                for job in running.values():
                    text = "the process that made it died; there may be too little memory"
                    write_json(failure_file(dest, job.name), {"error": text, "refused": {}})
                    yield Outcome(job.name, text, {})
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
