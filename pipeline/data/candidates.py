"""Every CT candidate of a tree of files, usable or not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from drr2ct.pipeline.data.candidate import Candidate, preference
from drr2ct.pipeline.data.headers import Header, is_volume_file, read_header, walk_files
from drr2ct.pipeline.data.series import dicom_candidates
from drr2ct.pipeline.data.volume_file import file_candidate
from drr2ct.pipeline.running.progress import tracked
from drr2ct.pipeline.running.workers import begin_worker
from drr2ct.transforms.validation import InputError

_MANY_FILES = 5000
"""From so many files on, starting processes to read their headers takes less time than it saves."""


def _inspect(path: Path, source: Path, patient_pattern: str | None) -> Header | Candidate | None:
    return file_candidate(path, source, patient_pattern) if is_volume_file(path) else read_header(str(path))


def _inspect_all(
    paths: Sequence[Path], source: Path, patient_pattern: str | None, workers: int
) -> Iterator[Header | Candidate | None]:
    inspect = partial(_inspect, source=source, patient_pattern=patient_pattern)
    if workers == 1 or len(paths) < _MANY_FILES:
        yield from map(inspect, paths)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=begin_worker) as pool:
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
