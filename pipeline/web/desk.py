"""The desk: what happens to cases, one reconstruction at a time, and who is told of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drr2ct.pipeline.web.cases import BUSY, OVER, PENDING, Case, copied, remove_folder
from drr2ct.pipeline.web.processes import run_task
from drr2ct.transforms.validation import InputError

READERS = 2
"""Pairs that are read at the same time."""
MOST_WAITING = 10
MOST_CASES = 40
READ_SECONDS = 180.0
CONVERT_SECONDS = 600.0
RECONSTRUCT_SECONDS = 6 * 3600.0


class BusyError(InputError):
    """Too much is asked for at once, or what is asked for goes on already."""


@dataclass
class Desk:
    """A session: its networks and its cases.

    Args:
        root: folder of the session; each case has one in it.
        networks: facts of each, of the task ``networks``; the first is the default.
    """

    root: Path
    networks: Sequence[Mapping[str, Any]]
    cases: dict[str, Case] = field(default_factory=dict)
    version: int = 0
    closed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    queue: list[Case] = field(default_factory=list)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    work: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    removed: deque[Case] = field(default_factory=lambda: deque(maxlen=MOST_CASES))
    readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READERS))

    def network(self, name: str | None) -> Mapping[str, Any]:
        """Facts of a network; of the first without a name.

        Raises:
            InputError: for one that is not offered.
        """
        found = [facts for facts in self.networks if name in (None, "", facts["id"])]
        if not found:
            known = ", ".join(facts["id"] for facts in self.networks)
            raise InputError(f"network {str(name)[:40]!r} is not offered here; choose from {known}.")
        return found[0]

    def touch(self, case: Case, **changes: Any) -> None:
        """Change a case, and tell everybody."""
        for name, value in changes.items():
            setattr(case, name, value)
        self.version += 1
        case.version = self.version
        self.changed.set()
        self.changed = asyncio.Event()

    async def add(self, case: Case) -> None:
        """Take a case in; of too many, the oldest that was never reconstructed leaves.

        Raises:
            BusyError: if all are results, or on their way to one.
        """
        if len(self.cases) >= MOST_CASES:
            idle = [other for other in self.cases.values() if other.state not in (*BUSY, "done")]
            if not idle:
                remove_folder(case)
                raise BusyError(f"there are {len(self.cases)} reconstructions in this session; remove some first.")
            await self.remove(min(idle, key=lambda other: other.created))
        self.cases[case.id] = case

    async def remove(self, case: Case) -> None:
        """Stop whatever goes on with a case, and delete it."""
        self.cases.pop(case.id, None)
        await self.stop(case)
        await asyncio.to_thread(remove_folder, case)
        self.removed.append(case)
        self.touch(case, state="removed")

    async def stop(self, case: Case) -> None:
        """Take a case out of the queue, and kill the process that works on it; it is gone when this returns."""
        if case in self.queue:
            self.queue.remove(case)
        if (task := self.work.pop(case.id, None)) is not None:
            task.cancel()
            await asyncio.wait([task])

    def close(self) -> None:
        """End what waits for changes: the server stops."""
        self.closed = True
        self.changed.set()

    async def updates(self) -> AsyncIterator[list[Case]]:
        """Cases as they change; what changes while nobody looks comes once: slow readers hold up nothing."""
        seen = -1
        while not self.closed:
            changed = self.changed
            news = [case for case in (*self.cases.values(), *self.removed) if case.version > seen]
            seen = self.version
            if news:
                yield sorted(news, key=lambda case: case.version)
            await changed.wait()


async def start_reading(desk: Desk, case: Case) -> None:
    """Read a case's films anew, in place of a reading that goes on."""
    # before anything is waited for: nothing may begin with films that were read for something else
    desk.touch(case, state="reading", sentence="", mistake=InputError, reading=None)
    await desk.stop(case)
    if case.id not in desk.work:  # or a later change has begun meanwhile, with all that was stated
        desk.work[case.id] = asyncio.create_task(_read(desk, case))


async def _read(desk: Desk, case: Case) -> None:
    arguments = {
        "films": case.given_films(),
        "checkpoint": desk.network(case.network)["path"],
        "order": case.order,
        "settings": case.options,
    }
    try:
        async with desk.readers:
            found = await run_task("read", arguments, case.folder, READ_SECONDS)
        desk.touch(case, state=found["state"], reading=found, sentence=found["sentence"])
    except InputError as error:
        desk.touch(case, state="refused", sentence=str(error), mistake=type(error))


def refuse_while_pending(case: Case) -> None:
    """Nothing is changed of what a reconstruction is made of.

    Raises:
        BusyError: while a case is reconstructed, or waits for it.
    """
    if case.state in PENDING:
        raise BusyError("these X-rays are being reconstructed; cancel that first, or wait for the end.")


async def change(
    desk: Desk, case: Case, options: Mapping[str, Any], order: list[int] | None, network: str | None, patient: str
) -> Case:
    """Overrule: the films are read again. A case that was reconstructed stays, and a new one is made.

    Returns:
        The case that is read.

    Raises:
        BusyError: while it is reconstructed.
    """
    refuse_while_pending(case)
    if case.state in OVER:
        case = copied(case, desk.root)
        await desk.add(case)
    case.options, case.order, case.patient = dict(options), order, patient
    case.network = desk.network(network or case.network)["id"]
    await start_reading(desk, case)
    return case


def enqueue(desk: Desk, case: Case) -> Case:
    """Put a case at the end of the queue; the same work is not done twice.

    Returns:
        The case that is or was reconstructed: this one, or an earlier one of the same films and settings.

    Raises:
        BusyError: if too many wait.
        InputError: if its films are not ready.
    """
    if case.state in (*PENDING, "done"):
        return case
    if case.state not in ("ready", "cancelled", "failed"):
        raise InputError(case.sentence or "the X-rays are not ready: two are needed, and both have to be readable.")
    for other in desk.cases.values():
        if other is not case and other.state in (*PENDING, "done") and other.same_work(case):
            return other
    if len(desk.queue) >= MOST_WAITING:
        raise BusyError(f"{len(desk.queue)} reconstructions are waiting; give this one again when some are done.")
    desk.queue.append(case)
    case.sentence, case.mistake, case.result, case.began, case.ended = "", InputError, None, None, None
    desk.touch(case, state="waiting", stage="", share=0.0)
    desk.wanted.set()
    return case


async def run_queue(desk: Desk) -> None:
    """Reconstruct one case after the other, for as long as the server runs."""
    while True:
        await desk.wanted.wait()
        desk.wanted.clear()
        while desk.queue:
            case = desk.queue.pop(0)
            task = desk.work[case.id] = asyncio.create_task(_reconstruct(desk, case))
            await asyncio.wait([task])


async def _reconstruct(desk: Desk, case: Case) -> None:
    network = desk.network(case.network)
    arguments = {
        "films": case.given_films(),
        "checkpoint": network["path"],
        "order": (case.reading or {})["order"],
        "settings": case.options,
        "patient": case.patient,
    }
    desk.touch(case, state="running", stage="starting", share=0.0, began=time.time())
    try:
        result = await run_task(
            "reconstruct", arguments, case.folder, RECONSTRUCT_SECONDS, lambda message: desk.touch(case, **message)
        )
        desk.touch(case, state="done", result=result, ended=time.time())
    except InputError as error:
        desk.touch(case, state="failed", sentence=str(error), mistake=type(error), ended=time.time())


async def cancel(desk: Desk, case: Case) -> None:
    """End a reconstruction that waits or runs; its process is gone when this returns."""
    if case.state not in PENDING:
        return
    await desk.stop(case)
    desk.touch(case, state="cancelled", ended=time.time())


async def converted(desk: Desk, case: Case, kind: str) -> Path:
    """The volume in another format, made when it is first asked for.

    Args:
        desk: of the case.
        case: that is done.
        kind: ``nrrd`` or ``dicom``.

    Raises:
        InputError: if it cannot be made.
    """
    name = {"nrrd": "ct.nrrd", "dicom": "ct_dicom.zip"}[kind]
    if not (case.folder / name).exists():
        async with desk.readers:
            arguments = {"kind": kind, "patient": case.patient, "network": case.network}
            await run_task("convert", arguments, case.folder, CONVERT_SECONDS)
    return case.folder / name


def losses(desk: Desk, kept: bool) -> str:
    """What stopping the server loses, in words; empty if nothing."""
    states = [case.state for case in desk.cases.values()]
    running, waiting, done = (states.count(state) for state in ("running", "waiting", "done"))
    parts = [
        *(["1 reconstruction that runs"] if running else []),
        *([f"{waiting} that wait" if waiting > 1 else "1 that waits"] if waiting else []),
        *([f"{done} results" if done > 1 else "1 result"] if done and not kept else []),
    ]
    return ", ".join(parts)
