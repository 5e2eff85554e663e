"""From a tree of CT studies to a data set: CTs in HU, paired DRRs, geometry, data list, provenance.

Each patient is made in a folder of its own below ``.partial`` and moved to its place when it is complete, so a run
that was killed goes on where it was. Which patient a process makes depends on the sorted names only; under
``torchrun`` each rank takes every n-th patient, and whichever rank finishes last writes the data list: nobody waits.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from drr2ct.pipeline.data.datalist import PARTS, split_patients, write_datalist
from drr2ct.pipeline.data.dicom_series import (
    Candidate,
    Header,
    dicom_candidates,
    file_candidate,
    is_volume_file,
    preference,
    read_candidate,
    read_header,
    walk_files,
)
from drr2ct.pipeline.running.progress import tracked
from drr2ct.pipeline.running.provenance import DISCLAIMER, versions
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.files import replacing, write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiograph_scale import DISPLAY_MAXIMUM, PNG_COUNTS
from drr2ct.transforms.radiograph_write import write_radiograph
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW

_COLUMNS = ("patient", "source", "slices", "voxel_mm", "kernel", "used", "reason")
_KEY_CHECK = b"drr2ct key check"
_MANY_FILES = 5000
"""From so many files on, starting processes to read their headers takes less time than it saves."""


@dataclass(frozen=True)
class PrepareSettings:
    """What decides the result.

    Args:
        geometry: of the rendered DRRs.
        fractions: of training, validation and test patients.
        seed: of the split.
        png_bits: of the PNG copies of the DRRs, 8 or 16.
        per_study: one CT per study of a patient, instead of one per patient.
        patient_pattern: which part of a volume file's path names the patient; see ``patient_of_file``.
        key: patients are named by HMAC-SHA256 under this key.

    Raises:
        InputError: for impossible fractions, another bit depth, a pattern that is no regular expression, a short key.
    """

    geometry: BiplanarGeometry
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    png_bits: int = 16
    per_study: bool = False
    patient_pattern: str | None = None
    key: bytes | None = None

    def __post_init__(self) -> None:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise InputError(f"split fractions {self.fractions} do not fit; give three positive numbers that sum to 1.")
        if self.png_bits not in (8, 16):
            raise InputError(f"PNG has 8 or 16 bits per pixel, not {self.png_bits}.")
        if self.key is not None and len(self.key) < 16:
            raise InputError(
                "the key for patients' names is shorter than 16 bytes and can be guessed; make a longer one."
            )
        try:
            re.compile(self.patient_pattern or "")
        except re.error as error:
            raise InputError(
                f"patient pattern {self.patient_pattern!r} is no regular expression ({error}); repair or quote it."
            ) from error

    def describe(self) -> dict[str, Any]:
        """Plain types, without the key; what provenance holds and a resumed run must agree with."""
        return {
            "geometry": self.geometry.to_dict(),
            "fractions": list(self.fractions),
            "seed": self.seed,
            "png_bits": self.png_bits,
            "one_ct_per": "study" if self.per_study else "patient",
            "patient_pattern": self.patient_pattern,
            "names": "as found" if self.key is None else f"HMAC-SHA256, key {_keyed(self.key, _KEY_CHECK.decode())}",
            "hu_window": list(HU_WINDOW),
        }


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


@dataclass(frozen=True)
class Summary:
    """Counts of a run: patients in the data set, made now, failed; ``complete`` if the data list was written."""

    ready: int
    made: int
    failed: int
    complete: bool
    seconds: dict[str, float]


def _keyed(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]


def _folder_name(patient: str, key: bytes | None) -> str:
    """A name that is safe as a folder's; different patients keep different names."""
    if key is not None:
        return _keyed(key, patient)
    safe = re.sub(r"[/\\\0-\x1f\x7f]", "_", patient).strip(" ").lstrip(".")[:60]
    return safe if safe == patient else f"{safe or 'patient'}-{hashlib.sha256(patient.encode()).hexdigest()[:6]}"


def _inspect(path: Path, source: Path, patient_pattern: str | None) -> Header | Candidate | None:
    return file_candidate(path, source, patient_pattern) if is_volume_file(path) else read_header(str(path))


def _inspect_all(
    paths: Sequence[Path], source: Path, patient_pattern: str | None, workers: int
) -> Iterator[Header | Candidate | None]:
    inspect = partial(_inspect, source=source, patient_pattern=patient_pattern)
    if workers == 1 or len(paths) < _MANY_FILES:
        yield from map(inspect, paths)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker) as pool:
        yield from pool.map(inspect, paths, chunksize=100)


def find_candidates(
    source: Path, patient_pattern: str | None = None, workers: int = 1, console: Console | None = None
) -> list[Candidate]:
    """Every CT candidate below ``source``, usable or not; each has a patient.

    Args:
        source: the tree.
        patient_pattern: see ``patient_of_file``.
        workers: processes that read headers, if there are many.
        console: for progress; silent without.

    Raises:
        InputError: if the folder does not exist, or holds neither DICOM nor volume files.
    """
    if not source.is_dir():
        raise InputError(f"source {source} is not a folder; give the folder that holds the studies.")
    unreadable: list[OSError] = []
    console = console or Console(quiet=True)
    with console.status(f"listing {source}"):
        paths = list(walk_files(source, unreadable.append))
    inspected = tracked(_inspect_all(paths, source, patient_pattern, workers), len(paths), console, "files' headers")
    headers: list[Header] = []
    found: list[Candidate] = []
    for result in inspected:
        if isinstance(result, Header):
            headers.append(result)
        elif result is not None:
            found.append(result)
    found += [_unreadable(error) for error in unreadable]
    found += dicom_candidates(headers)
    if not found:
        raise InputError(f"source {source} holds no DICOM, NIfTI, NRRD or MHA files; check the path.")

    def named(candidate: Candidate) -> Candidate:
        top = Path(os.path.relpath(candidate.files[0], source)).parts[0]
        return candidate if candidate.patient else replace(candidate, patient=top)

    return sorted(map(named, found), key=lambda candidate: (candidate.patient, preference(candidate)))


def _unreadable(error: OSError) -> Candidate:
    reason = f"{(error.strerror or 'unreadable').lower()}; repair the link or its permissions"
    return Candidate("", ("", ""), (str(error.filename),), False, reason=reason)


def plan_jobs(candidates: Sequence[Candidate], source: Path, settings: PrepareSettings) -> list[Job]:
    """The patients to make, sorted by name."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if not candidate.reason:
            groups[candidate.patient].append(candidate)
    jobs = []
    for patient, members in groups.items():
        group = _folder_name(patient, settings.key)
        studies = sorted({member.study for member in members}) if settings.per_study else [None]
        for number, study in enumerate(studies, 1):
            chosen = tuple(sorted((m for m in members if study in (None, m.study)), key=preference))
            name = group if len(studies) == 1 else f"{group}_study{number}"
            described = [(Path(path).name, Path(path).stat().st_size) for m in chosen for path in m.files]
            digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
            jobs.append(Job(name, group, chosen, digest, source))
    return sorted(jobs, key=lambda job: job.name)


def _record(dest: Path, name: str) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((dest / name / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return content


def _failure_file(dest: Path, name: str) -> Path:
    return dest / ".failed" / f"{name}.json"


def is_ready(dest: Path, job: Job) -> bool:
    """The patient was made, from these files."""
    record = _record(dest, job.name)
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
            hidden = {_shown(path, job.source, settings.key): reason for path, reason in refused.items()}
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
    hidden = {_shown(path, job.source, settings.key): reason for path, reason in refused.items()}
    write_json(_failure_file(dest, job.name), {"error": error_text, "refused": hidden})
    return Outcome(job.name, error_text, dict(seconds))


def _shown(path: str, source: Path, key: bytes | None) -> str:
    relative = Path(os.path.relpath(path, source)).as_posix()
    return relative if key is None else _keyed(key, relative)


def _without_paths(message: str, candidate: Candidate) -> str:
    """Messages land in the data set, where a path may name the patient."""
    for path in sorted({*candidate.files, str(candidate.source)}, key=len, reverse=True):
        message = message.replace(f"CT {path}", "the CT").replace(path, "the file")
    return message.rstrip(".")


def _write_patient(
    job: Job, candidate: Candidate, folder: Path, settings: PrepareSettings, seconds: dict[str, float]
) -> dict[str, Any]:
    clock = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step] += now - clock
        clock = now

    ct = read_candidate(candidate)
    lap("read")
    digest = hashlib.sha256()
    for path in candidate.files:
        with Path(path).open("rb") as stream:
            for block in iter(lambda: stream.read(2**20), b""):
                digest.update(block)
    lap("hash")
    notes = list(candidate.notes)
    values = ct.as_tensor()
    low, high = HU_WINDOW
    for count, side in ((int((values > high).sum()), f"above {high:g}"), (int((values < low).sum()), f"below {low:g}")):
        if count:
            notes.append(f"{count} voxels {side} HU clipped")
    values.clamp_(low, high).round_()  # the DRRs see what the file will hold
    radiographs = render_drr(ct, settings.geometry, isocentre=ct.meta["isocentre"])
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
        "used": _shown(candidate.files[0], job.source, settings.key),
        "shape": list(ct.shape[1:]),
        "voxel_mm": np.linalg.norm(np.asarray(ct.affine)[:3, :3], axis=0).round(6).tolist(),
        "notes": notes,
    }


def _estimated_bytes(job: Job, settings: PrepareSettings) -> int:
    """Upper estimate: gzip halves a CT at least, float DRRs little."""
    pixels = int(np.prod(settings.geometry.detector_size)) * len(settings.geometry.views)
    best = job.candidates[0]
    # DICOM holds 2 bytes a voxel, as we write; a compressed file may grow a little
    return int(1.2 * sum(Path(path).stat().st_size for path in best.files)) + 6 * pixels


def _begin_worker() -> None:
    """One thread for each process, and an end with its parent: else one that outlives it would go on writing.

    Ctrl-C reaches all processes of a terminal; the parent's answer to it is enough.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_jobs(jobs: Sequence[Job], dest: Path, settings: PrepareSettings, workers: int) -> Iterator[Outcome]:
    """Make patients in several processes; one that takes its process down is tried once more alone, then failed."""
    if workers == 1:
        for job in jobs:
            yield make_patient(job, dest, settings)
        return
    queue = list(jobs)
    suspects: list[Job] = []
    while queue or suspects:
        alone = not queue
        count, spawn = 1 if alone else workers, get_context("spawn")
        with ProcessPoolExecutor(count, spawn, initializer=_begin_worker) as pool:
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
                    write_json(_failure_file(dest, job.name), {"error": text, "refused": {}})
                    yield Outcome(job.name, text, {})
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def prepare(
    source: str | Path,
    dest: str | Path,
    settings: PrepareSettings,
    workers: int = 2,
    report: str | Path | None = None,
    console: Console | None = None,
) -> Summary:
    """Make a data set of every patient below ``source``; see the module.

    Args:
        source: tree of DICOM studies, volume files or patient folders.
        dest: the data set; new, empty, or begun by an earlier run with the same settings.
        settings: what to make.
        workers: processes.
        report: the CSV of all series, used and left out; ``series.csv`` in the data set by default. With a key, only
            a report given here names the sources.
        console: for progress; silent without.

    Raises:
        InputError: if nothing usable is found, the folder holds something else, or the disk is or would be full.
    """
    source, dest = Path(source), Path(dest)
    console = console or Console(quiet=True)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if source.resolve() == dest.resolve() or source.resolve() in dest.resolve().parents:
        raise InputError(f"the data set {dest} would lie inside its source {source}; choose another folder.")
    _check_dest(dest, settings)
    candidates = find_candidates(source, settings.patient_pattern, workers, console)
    jobs = plan_jobs(candidates, source, settings)
    if not jobs:
        raise InputError(
            f"source {source} holds no usable CT; the first of {len(candidates)} left out, "
            f"{os.path.relpath(candidates[0].source, source)}, is: {candidates[0].reason}."
        )
    names = {job.name for job in jobs}
    found = (path for path in dest.glob("*/*.json") if path.stem == path.parent.name)
    stray = sorted(path.stem for path in found if path.stem not in names)
    if stray:
        raise InputError(
            f"{dest} holds {len(stray)} patients that the source lacks ({stray[0]}); choose another folder."
        )
    mine = [job for job in jobs[rank::world] if not is_ready(dest, job)]
    _check_space(dest, mine, settings)
    _claim(dest, settings)
    for job in mine:
        _failure_file(dest, job.name).unlink(missing_ok=True)
    seconds: dict[str, float] = defaultdict(float)
    failed = 0
    for outcome in tracked(run_jobs(mine, dest, settings, workers), len(mine), console, "patients"):
        failed += bool(outcome.error)
        for step, value in outcome.seconds.items():
            seconds[step] += value
        if outcome.error:
            console.print(f"{outcome.name} left out: {outcome.error}", markup=False)
    ready = [job for job in jobs if is_ready(dest, job)]
    done = {job.name for job in ready}
    complete = all(job.name in done or _failure_file(dest, job.name).exists() for job in jobs)
    if complete:
        _finish(dest, source, settings, jobs, ready, candidates, report, console)
        if world == 1:  # what a run killed while it wrote left behind; of several ranks, one may be writing
            for path in dest.glob(".*"):
                if re.fullmatch(r"\.[0-9a-f]{32}\..+", path.name):
                    path.unlink()
    return Summary(len(ready), len(mine) - failed, failed, complete, dict(seconds))


def _check_dest(dest: Path, settings: PrepareSettings) -> None:
    if dest.exists() and not dest.is_dir():
        raise InputError(f"{dest} is a file; give a folder for the data set.")
    record = dest / "provenance.json"
    if record.exists():
        try:
            earlier = json.loads(record.read_text())["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{record} was not written by this command; choose another folder.") from error
        now = settings.describe()
        if earlier != now:
            changed = ", ".join(sorted(name for name in now if earlier.get(name) != now[name]))
            raise InputError(f"{dest} was prepared with other settings ({changed}); use those or another folder.")
    elif dest.is_dir() and any(not path.name.startswith(".") for path in dest.iterdir()):
        raise InputError(f"{dest} is not empty and holds no data set made by this command; choose another folder.")


def _claim(dest: Path, settings: PrepareSettings) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    if not (dest / "provenance.json").exists():
        write_json(dest / "provenance.json", {"settings": settings.describe()})
    settings.geometry.save(dest / "geometry.json")


def _check_space(dest: Path, jobs: Sequence[Job], settings: PrepareSettings) -> None:
    folder = next(path for path in (dest, *dest.resolve().parents) if path.exists())
    needed = sum(_estimated_bytes(job, settings) for job in jobs)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{len(jobs)} patients need about {needed / 1e9:.3g} GB in {dest}, where {free / 1e9:.3g} GB are free; "
            "free space or choose another disk."
        )


def _finish(
    dest: Path,
    source: Path,
    settings: PrepareSettings,
    jobs: Sequence[Job],
    ready: Sequence[Job],
    candidates: Sequence[Candidate],
    report: str | Path | None,
    console: Console,
) -> None:
    """Write what describes the whole set; the same whoever writes it."""
    records = {job.name: _record(dest, job.name) or {} for job in ready}
    _write_report(dest, source, settings, jobs, records, candidates, report)
    content = {
        "note": DISCLAIMER,
        "settings": settings.describe(),
        "versions": versions(),
        "patients": {name: {k: v for k, v in r.items() if k not in ("used", "refused")} for name, r in records.items()},
    }
    write_json(dest / "provenance.json", content)
    shutil.rmtree(dest / ".partial", ignore_errors=True)
    members: dict[str, list[dict[str, Any]]] = defaultdict(list)
    views = [view.name for view in settings.geometry.views]
    for job in ready:
        stem = dest / job.name / job.name
        image = [str(stem.with_name(f"{job.name}_{view}_drr.nii.gz")) for view in views]
        members[job.group].append(
            {
                "patient": job.name,
                "group": job.group,
                "label": str(stem.with_name(f"{job.name}.nii.gz")),
                "image": image,
            }
        )
    if len(members) < len(PARTS):
        console.print(f"{len(members)} patients are too few to split into three parts; dataset.json was not written.")
        return
    groups = split_patients([{"patient": group} for group in sorted(members)], settings.fractions, settings.seed)
    parts = {part: [item for group in groups[part] for item in members[group["patient"]]] for part in PARTS}
    write_datalist(dest, parts, "CTs in HU and DRRs in line integrals, made by drr2ct prepare")


def _write_report(
    dest: Path,
    source: Path,
    settings: PrepareSettings,
    jobs: Sequence[Job],
    records: Mapping[str, Mapping[str, Any]],
    candidates: Sequence[Candidate],
    report: str | Path | None,
) -> None:
    used: dict[str, Sequence[str]] = {}
    refused: dict[str, str] = {}
    for job in jobs:
        try:
            record = records.get(job.name) or json.loads(_failure_file(dest, job.name).read_text())
        except (OSError, ValueError):
            continue
        if "used" in record:
            used[record["used"]] = record["notes"]
        refused |= record["refused"]
        if "error" in record:
            refused.setdefault(_shown(job.candidates[0].files[0], source, settings.key), record["error"])
    path = dest / "series.csv" if report is None else Path(report)
    hide = settings.key is not None and report is None
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for candidate in candidates:
            first = _shown(candidate.files[0], source, settings.key)
            reason = candidate.reason or refused.get(first, "")
            if not reason and first not in used:
                reason = "another series of the patient is preferred (more slices, softer kernel, or original)"
            shown = _shown(str(candidate.source), source, settings.key if hide else None)
            writer.writerow(
                [
                    _folder_name(candidate.patient, settings.key),
                    shown,
                    candidate.slices,
                    "×".join(f"{v:.4g}" for v in candidate.voxel_mm),
                    candidate.kernel,
                    "yes" if first in used else "no",
                    "; ".join(used.get(first, ())) or reason,
                ]
            )
