"""Every CT candidate of a tree of files, usable or not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from drr2ct.pipeline.data.candidate import AGAIN, Candidate, preference
from drr2ct.pipeline.data.headers import MAC_FILE, Header, is_volume_file, read_header, walk_files
from drr2ct.pipeline.data.patient_names import name_patients
from drr2ct.pipeline.data.series import dicom_candidates
from drr2ct.pipeline.data.volume_file import file_candidate
from drr2ct.pipeline.running.progress import tracked
from drr2ct.transforms.validation import InputError

_MANY_FILES = 5000
"""From so many files on, other processes are worth reading their headers with."""


def _inspect(path: Path, source: Path) -> Header | Candidate | None:
    if re.search(r"\.z?raw(\.gz)?$", path.name, re.IGNORECASE):
        if any(beside.suffix.lower() in (".mhd", ".nhdr") for beside in path.parent.iterdir()):
            return None
        reason = f"voxels without the header that says how many and where; {AGAIN}, with it"
        return Candidate("", ("", ""), (str(path),), False, reason=reason)
    if match := re.search(r"\.img(\.gz)?$", path.name, re.IGNORECASE):
        stem = path.name[: match.start()]
        if not any((path.parent / f"{stem}{suffix}").exists() for suffix in (".hdr", ".HDR", ".hdr.gz", ".HDR.GZ")):
            return Candidate("", ("", ""), (str(path),), False, reason=f"an .img file without its .hdr; {AGAIN}")
    return file_candidate(path, source) if is_volume_file(path) else read_header(str(path))


def _inspect_all(paths: Sequence[Path], source: Path, pool: Executor | None) -> Iterator[Header | Candidate | None]:
    inspect = partial(_inspect, source=source)
    if pool is None or len(paths) < _MANY_FILES:
        yield from map(inspect, paths)
    else:
        yield from pool.map(inspect, paths, chunksize=100)


def find_candidates(
    source: Path,
    patient_pattern: str | None = None,
    pool: Executor | None = None,
    console: Console | None = None,
    patient_folders: bool = False,
) -> list[Candidate]:
    """Every CT candidate below ``source``, usable or not; each has a patient.

    Args:
        source: the tree.
        patient_pattern: searched in each path within ``source``; its first group (or the whole match) is the patient.
            Where it does not match, and without one, the patient is the Patient ID of a DICOM header, else that of
            :func:`~drr2ct.pipeline.data.patient_names.name_patients`, else the topmost folder, else the Study Instance
            UID.
        pool: processes that read headers, if there are many; else they start meanwhile, for what comes after.
        console: for progress; silent without.
        patient_folders: each folder of ``source`` is a patient's; a series in two that is a stack is one.

    Raises:
        InputError: if the folder does not exist, or holds neither DICOM nor volume files.
    """
    if not source.is_dir():
        raise InputError(f"source {source} is not a folder; give the folder that holds the studies.")
    unreadable: list[OSError] = []
    console = console or Console(quiet=True)
    with console.status(f"listing {source}"):
        paths = list(walk_files(source, unreadable.append))
    if pool is not None and paths:
        pool.submit(os.getpid)  # anything: it starts them
    inspected = tracked(_inspect_all(paths, source, pool), len(paths), console, "files' headers")
    headers: list[Header] = []
    found: list[Candidate] = []
    for result in inspected:
        if isinstance(result, Header):
            headers.append(result)
        elif result is not None:
            found.append(result)
    found += [_unreadable(error) for error in unreadable]

    def by_path(path: str) -> str:
        """Whom the pattern finds in a path; empty for nobody."""
        match = None if patient_pattern is None else re.search(patient_pattern, _within(source, path).as_posix())
        return "" if match is None else (match.groups() or (None,))[0] or match.group(0)

    stacks = dicom_candidates(headers, by_path)
    if patient_folders:  # what is no stack and lies in several is several people's with the same identifiers
        torn = {path for stack in stacks if stack.reason and _is_spread(source, stack) for path in stack.files}
        stacks = [stack for stack in stacks if torn.isdisjoint(stack.files)]
        apart = [header for header in headers if header.path in torn]
        stacks += dicom_candidates(apart, lambda path: _top_folder(source, path))
    found += stacks
    if not found:
        raise InputError(f"source {source} holds no DICOM, NIfTI, NRRD or MHA files; check the path.")

    # where masks lie says nothing about patients
    volumes = [
        Path(c.files[0])
        for c in found
        if not c.dicom and is_volume_file(Path(c.files[0])) and not c.by_name and c.reason != MAC_FILE
    ]
    names = name_patients(volumes, source)

    def named(candidate: Candidate) -> Candidate:
        relative = _within(source, candidate.files[0])
        if patient := by_path(candidate.files[0]):
            return replace(candidate, patient=patient)
        if own := names.get(Path(candidate.files[0])):
            return replace(candidate, patient=own[0], study=("", own[1]))
        if candidate.patient:
            return candidate
        # files of nobody, side by side: what belongs to one examination is one person's
        own_folder = len(relative.parts) > 1 or not candidate.study[1]
        return replace(candidate, patient=relative.parts[0] if own_folder else candidate.study[1])

    return sorted(map(named, found), key=lambda candidate: (candidate.patient, preference(candidate)))


def _within(source: Path, path: str) -> Path:
    return Path(os.path.relpath(path, source))


def _top_folder(source: Path, path: str) -> str:
    parts = _within(source, path).parts
    return parts[0] if len(parts) > 1 else ""


def _is_spread(source: Path, stack: Candidate) -> bool:
    return len({_top_folder(source, path) for path in stack.files}) > 1


def _unreadable(error: OSError) -> Candidate:
    reason = f"{(error.strerror or 'unreadable').lower()}; repair the link or its permissions"
    return Candidate("", ("", ""), (str(error.filename),), False, reason=reason)
