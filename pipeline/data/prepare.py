"""From a tree of CT studies to a data set: CTs in HU, paired DRRs, geometry, data list, provenance.

Each patient is made in a folder of its own below ``.partial`` and moved to its place when it is complete, so a run
that was killed goes on where it was. Which patient a process makes depends on the sorted names only; under
``torchrun`` each rank takes every n-th patient, and whichever rank finishes last writes the data list: nobody waits.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from drr2ct.pipeline.data.anatomy import decode_anatomy, twins
from drr2ct.pipeline.data.candidate import Candidate, pass_note
from drr2ct.pipeline.data.candidates import find_candidates
from drr2ct.pipeline.data.datalist import write_datalist
from drr2ct.pipeline.data.patient_job import (
    Job,
    failure_file,
    is_ready,
    patient_record,
    plan_jobs,
    run_jobs,
    shown_path,
)
from drr2ct.pipeline.data.settings import PrepareSettings, folder_name
from drr2ct.pipeline.data.splitting import PARTS, split_patients
from drr2ct.pipeline.running.progress import tracked
from drr2ct.pipeline.running.provenance import DISCLAIMER, versions
from drr2ct.pipeline.running.workers import worker_pool
from drr2ct.transforms.files import refuse_to_lose, replacing, write_json
from drr2ct.transforms.validation import InputError

MANY_STUDIES = 4
"""So many studies of one patient are doubted."""
_MOST_NAMED = 20
"""So many patients without a CT are named on the screen; all are in the report."""
_OF_ONE_PATIENT = ("used", "refused", "anatomy", "lungs", "centre", "height_mm")
"""What a patient's record has and the record of the whole set has not."""
_COLUMNS = ("patient", "source", "slices", "voxel_mm", "kernel", "used", "reason")


@dataclass(frozen=True)
class Summary:
    """Counts of a run: patients in the data set, made now, failed, and those of whom there is no CT that can be used.

    ``complete`` if the data list was written.
    """

    ready: int
    made: int
    failed: int
    without_ct: int
    complete: bool
    seconds: dict[str, float]


def _estimated_bytes(job: Job, settings: PrepareSettings) -> int:
    """Upper estimate: gzip halves a CT at least, float DRRs little."""
    pixels = int(np.prod(settings.geometry.detector_size)) * len(settings.geometry.views)
    best = job.candidates[0]
    # DICOM holds 2 bytes a voxel, as we write; a compressed file may grow a little
    return int(1.2 * sum(Path(path).stat().st_size for path in best.files)) + 6 * pixels


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
    seconds: dict[str, float] = defaultdict(float)
    failed = 0
    with nullcontext() if workers == 1 else worker_pool(workers) as pool:
        candidates = find_candidates(source, settings.patient_pattern, pool, console)
        refuse_to_lose([] if report is None else [report], (file for each in candidates for file in each.files))
        jobs = plan_jobs(candidates, source, settings)
        _check_jobs(jobs, candidates, source, dest)
        _warn_of_shared_ids(jobs, console)
        without_ct = _say_who_has_no_ct(candidates, settings, console)
        mine = [job for job in jobs[rank::world] if not is_ready(dest, job)]
        _check_space(dest, mine, settings)
        _claim(dest, settings)
        for job in mine:
            failure_file(dest, job.name).unlink(missing_ok=True)
        for outcome in tracked(run_jobs(mine, dest, settings, workers, pool), len(mine), console, "patients"):
            failed += bool(outcome.error)
            for step, value in outcome.seconds.items():
                seconds[step] += value
            if outcome.error:
                console.print(f"{outcome.name} left out: {outcome.error}", markup=False)
    ready = [job for job in jobs if is_ready(dest, job)]
    done = {job.name for job in ready}
    complete = all(job.name in done or failure_file(dest, job.name).exists() for job in jobs)
    if complete:
        _finish(dest, source, settings, jobs, ready, candidates, report, console)
        if world == 1:  # what a run killed while it wrote left behind; of several ranks, one may be writing
            for path in dest.glob(".*"):
                if re.fullmatch(r"\.[0-9a-f]{32}\..+", path.name):
                    path.unlink()
    return Summary(len(ready), len(mine) - failed, failed, without_ct, complete, dict(seconds))


def _check_jobs(jobs: Sequence[Job], candidates: Sequence[Candidate], source: Path, dest: Path) -> None:
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
        earlier = {"centre": "box", **earlier}  # before it could be chosen
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
    records = {job.name: patient_record(dest, job.name) or {} for job in ready}
    content = {
        "note": DISCLAIMER,
        "settings": settings.describe(),
        "versions": versions(),
        "patients": {name: {k: v for k, v in r.items() if k not in _OF_ONE_PATIENT} for name, r in records.items()},
    }
    write_json(dest / "provenance.json", content)
    shutil.rmtree(dest / ".partial", ignore_errors=True)
    copies, same = _twins(records, console)
    _write_report(dest, source, settings, jobs, records, candidates, report, same)
    wanted = sum(fraction > 0 for fraction in settings.fractions)
    home = {job.name: job.group for job in ready}
    alike = _written_otherwise(home, console)
    groups = joined_groups(home, same | alike)
    if len(set(groups.values())) < wanted <= len(groups):
        groups = joined_groups(home, copies)
        kept = "copies alone are kept together"
        if len(set(groups.values())) < wanted:
            groups = {group: group for group in groups}
            kept = "the split is of its files"
        console.print(f"with what shows one CT kept together there is too little to split: {kept}")
    members: dict[str, list[dict[str, Any]]] = defaultdict(list)
    views = [view.name for view in settings.geometry.views]
    for job in ready:
        stem = dest / job.name / job.name
        item = {
            "patient": job.name,
            "group": job.group,
            "label": str(stem.with_name(f"{job.name}.nii.gz")),
            "image": [str(stem.with_name(f"{job.name}_{view}_drr.nii.gz")) for view in views],
        }
        if "isocentre" in records[job.name]:
            item["isocentre"] = records[job.name]["isocentre"]
        members[groups[job.group]].append(item)
    if len(members) < wanted:
        parts_asked = {1: "one part", 2: "two parts", 3: "three parts"}[wanted]
        count = f"{len(members)} patients are" if len(members) != 1 else "1 patient is"
        console.print(f"{count} too few to split into {parts_asked}; dataset.json was not written.")
        return
    split = split_patients([{"patient": group} for group in sorted(members)], settings.fractions, settings.seed)
    parts = {part: [item for group in split[part] for item in members[group["patient"]]] for part in PARTS}
    write_datalist(dest, parts, "CTs in HU and DRRs in line integrals, made by drr2ct prepare")


def _written_otherwise(home: Mapping[str, str], console: Console) -> dict[str, str]:
    """Patients whose names differ from another's in capitals or spaces alone; the first of them, and said."""
    first: dict[str, str] = {}
    alike = {}
    for name, group in sorted(home.items()):
        # without what folder_name adds to names that it had to change
        other = first.setdefault("".join(re.sub(r"-[0-9a-f]{6}$", "", group).casefold().split()), name)
        if home[other] != group:
            alike[name] = other
            console.print(
                f"{name} and {other} differ in capitals or spaces alone; both stay in one part of the split",
                markup=False,
            )
    return alike


def _twins(records: Mapping[str, Mapping[str, Any]], console: Console) -> tuple[dict[str, str], dict[str, str]]:
    """Patients made of a CT that another has too, by its files, and by these or its anatomy; the first, and said."""
    first: dict[str, str] = {}
    copies: dict[str, str] = {}
    same = twins({name: decode_anatomy(record["anatomy"]) for name, record in records.items()})
    for name in sorted(records):
        other = first.setdefault(str(records[name]["source_sha256"]), name)
        if other != name:
            copies[name] = other
            same[name] = same.get(other, other)
    for name, other in sorted(same.items()):
        console.print(f"{name} shows the CT of {other}; both stay in one part of the split", markup=False)
    return copies, same


def joined_groups(home: Mapping[str, str], same: Mapping[str, str]) -> dict[str, str]:
    """What to split by, for each group: groups with a CT in common are one.

    Args:
        home: group of each patient.
        same: patients that show the CT of another.
    """
    joined = {group: group for group in home.values()}

    def root(group: str) -> str:
        while joined[group] != group:
            group = joined[group]
        return group

    for name, other in same.items():
        first, second = sorted((root(home[name]), root(home[other])))
        joined[second] = first
    return {group: root(group) for group in joined}


def _warn_of_shared_ids(jobs: Sequence[Job], console: Console) -> None:
    """One patient with many studies is often many patients whom an anonymiser gave one ID."""
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for job in jobs:
        groups[job.group] += job.candidates
    for group, members in groups.items():
        studies = {candidate.study for candidate in members if candidate.dicom}
        places = {Path(candidate.files[0]).parent for candidate in members if candidate.dicom}
        if len(studies) >= MANY_STUDIES:
            where = f"in {len(places)} folders" if len(places) > 1 else "in one folder"
            console.print(
                f"{group} has {len(studies)} studies {where}: if they are of different people, name "
                "them by a part of the path (--patient-pattern); if they are one person's, --per-study uses them all",
                markup=False,
            )


def _say_who_has_no_ct(candidates: Sequence[Candidate], settings: PrepareSettings, console: Console) -> int:
    """Name patients of whom nothing can be used by its header, each with the first reason; how many they are."""
    reasons: dict[str, str] = {}
    usable = {candidate.patient for candidate in candidates if not candidate.reason}
    for candidate in candidates:  # sorted, the best first; what is called a mask is nobody's CT
        if candidate.patient not in usable and not candidate.by_name:
            reasons.setdefault(folder_name(candidate.patient, settings.key), candidate.reason)
    for name, reason in list(reasons.items())[:_MOST_NAMED]:
        console.print(f"{name} left out: {reason}", markup=False)
    if len(reasons) > _MOST_NAMED:
        console.print(f"and {len(reasons) - _MOST_NAMED} more without a CT that can be used")
    return len(reasons)


def _write_report(
    dest: Path,
    source: Path,
    settings: PrepareSettings,
    jobs: Sequence[Job],
    records: Mapping[str, Mapping[str, Any]],
    candidates: Sequence[Candidate],
    report: str | Path | None,
    same: Mapping[str, str],
) -> None:
    used: dict[str, Sequence[str]] = {}
    refused: dict[str, str] = {}
    for job in jobs:
        try:
            record = records.get(job.name) or json.loads(failure_file(dest, job.name).read_text())
        except (OSError, ValueError):
            continue
        if "used" in record:
            twin = [f"the same CT as {same[job.name]}"] if job.name in same else []
            used[record["used"]] = [*record["notes"], *twin]
        refused |= record["refused"]
        if "error" in record:
            refused.setdefault(shown_path(job.candidates[0].files[0], source, settings.key), record["error"])
    path = dest / "series.csv" if report is None else Path(report)
    hide = settings.key is not None and report is None
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for candidate in candidates:
            first = shown_path(candidate.files[0], source, settings.key)
            reason = candidate.reason or refused.get(first, "")
            if not reason and first not in used:
                reason = "another series of the patient is preferred (more slices, softer kernel, or original)"
                reason = "; ".join(filter(None, (pass_note(candidate), reason)))
            shown = shown_path(str(candidate.source), source, settings.key if hide else None)
            writer.writerow(
                [
                    folder_name(candidate.patient, settings.key),
                    shown,
                    candidate.slices,
                    "×".join(f"{v:.4g}" for v in candidate.voxel_mm),
                    candidate.kernel,
                    "yes" if first in used else "no",
                    "; ".join(used.get(first, ())) or reason,
                ]
            )
