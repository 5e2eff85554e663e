"""Cases: the radiographs of one patient, how they are to be read, and what became of them."""

from __future__ import annotations

import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drr2ct.transforms.validation import InputError

PENDING = ("waiting", "running")
"""States in which a reconstruction is going to be made, or is made."""
BUSY = ("reading", *PENDING)
"""States in which something goes on, or is going to."""
OVER = ("done", "failed", "cancelled")
"""States after a reconstruction."""


@dataclass(frozen=True)
class FilmFile:
    """One radiograph as it was given.

    Args:
        shown: the user's name of it, for eyes only.
        stored: our name of it within the case's folder.
        sha256: of its content.
    """

    shown: str
    stored: str
    sha256: str


@dataclass
class Case:
    """One patient's radiographs on their way to a volume.

    Args:
        id: random, in addresses and as the folder's name.
        folder: of its own, for its owner alone.
        network: identifier of the one chosen.
        films: as given.
        order: which film is which view's, indices into ``films`` in the order of the network's views; None while that
            is found out.
        options: reading options that the user stated.
        patient: name for the output.
        sample: the radiographs are those of the package's sample patient.
        state: reading, incomplete, refused, ready, waiting, running, done, failed, or cancelled.
        reading: what was decided, of the task ``read``.
        stage: of a reconstruction that runs, and how much of it is behind us.
        share: part of the stage that is done.
        sentence: why it failed or was refused.
        mistake: what kind of mistake that was; the exception itself would hold on to the process that made it.
        result: of the task ``reconstruct``.
        created: seconds since the epoch.
        began: of the reconstruction, likewise.
        ended: likewise.
        version: higher than that of anything that changed before.
    """

    id: str
    folder: Path
    network: str
    films: list[FilmFile] = field(default_factory=list)
    order: list[int] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    patient: str = "patient"
    sample: bool = False
    state: str = "reading"
    reading: dict[str, Any] | None = None
    stage: str = ""
    share: float = 0.0
    sentence: str = ""
    mistake: type[InputError] = InputError
    result: dict[str, Any] | None = None
    created: float = field(default_factory=time.time)
    began: float | None = None
    ended: float | None = None
    version: int = 0

    def given_films(self) -> list[dict[str, str]]:
        """The films as tasks take them."""
        return [{"stored": film.stored, "shown": film.shown} for film in self.films]

    def public(self) -> dict[str, Any]:
        """What the page is told."""
        return {
            "id": self.id,
            "network": self.network,
            "films": [film.shown for film in self.films],
            "order": self.order,
            "options": self.options,
            "patient": self.patient,
            "sample": self.sample,
            "state": self.state,
            "reading": self.reading,
            "stage": self.stage,
            "share": round(self.share, 3),
            "sentence": self.sentence,
            "result": self.result,
            "created": self.created,
            "began": self.began,
            "ended": self.ended,
            "version": self.version,
        }

    def same_work(self, other: Case) -> bool:
        """Whether both ask for the same volume: the same films, read in the same way, by the same network."""

        def work(case: Case) -> tuple[Any, ...]:
            order = (case.reading or {}).get("order") or []
            return ([case.films[i].sha256 for i in order], case.network, case.options, case.patient)

        return work(self) == work(other)


def new_case(root: Path, network: str) -> Case:
    """A case with an empty folder (0700) below ``root``."""
    name = secrets.token_hex(8)
    folder = root / name
    folder.mkdir(mode=0o700)
    return Case(name, folder, network)


def copied(case: Case, root: Path) -> Case:
    """A new case of the same films, read anew; the files are linked, not copied."""
    other = new_case(root, case.network)
    for film in case.films:
        (other.folder / film.stored).hardlink_to(case.folder / film.stored)
    other.films, other.options, other.order = list(case.films), dict(case.options), case.order
    other.patient, other.sample = case.patient, case.sample
    return other


def remove_folder(case: Case) -> None:
    """Everything of a case, from the disk."""
    shutil.rmtree(case.folder, ignore_errors=True)
