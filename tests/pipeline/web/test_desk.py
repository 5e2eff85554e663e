"""Nothing is reconstructed of films that were read for another network, whatever comes at the same time."""

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import pytest

from drr2ct.pipeline.web import desk as module
from drr2ct.pipeline.web import processes
from drr2ct.pipeline.web.cases import Case
from drr2ct.pipeline.web.desk import Desk, change, enqueue
from drr2ct.transforms.validation import InputError


def test_what_is_read_anew_cannot_begin_and_the_last_change_is_what_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[str] = []

    async def task(name: str, arguments: dict[str, Any], *_: Any) -> dict[str, Any]:
        await asyncio.sleep(0.05)
        read.append(arguments["checkpoint"])
        return {"state": "ready", "sentence": "", "order": [0, 1]}

    async def killed_slowly() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise

    async def user() -> None:
        desk = Desk(tmp_path, [{"id": name, "path": f"{name}.pt"} for name in ("fine", "middle", "coarse")])
        case = desk.cases["a"] = Case("a", tmp_path, "fine", state="ready", reading={"order": [0, 1]})
        desk.work["a"] = asyncio.create_task(killed_slowly())
        await asyncio.sleep(0)
        changes = [asyncio.create_task(change(desk, case, {}, None, name, "x")) for name in ("middle", "coarse")]
        await asyncio.sleep(0)
        assert (case.state, case.reading) == ("reading", None)
        with pytest.raises(InputError, match="are not ready"):
            enqueue(desk, case)
        await asyncio.gather(*changes)
        await asyncio.wait([desk.work["a"]])
        assert (case.state, case.network, read) == ("ready", "coarse", ["coarse.pt"])
        assert enqueue(desk, case).state == "waiting"

    monkeypatch.setattr(module, "run_task", task)
    asyncio.run(user())


def test_what_is_stopped_while_it_starts_does_not_work_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []
    start = processes._context.Process.start

    def start_slowly(process: Any) -> None:
        time.sleep(0.2)
        start(process)
        started.append(process)

    async def user() -> None:
        task = asyncio.create_task(processes.run_task("networks", {"paths": []}, tmp_path, 60))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    monkeypatch.setattr(processes._context.Process, "start", start_slowly)
    asyncio.run(user())
    assert len(started) == 1 and not started[0].is_alive()


def test_what_cannot_start_prints_nothing_if_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shield = asyncio.shield

    def fail(process: Any) -> None:
        raise OSError("no more processes")

    def stopped(future: Any) -> Any:
        """A signal ends the server when it was about to wait."""
        unseen = shield(future)
        monkeypatch.setattr(asyncio, "shield", shield)
        raise asyncio.CancelledError(unseen)

    async def user() -> None:
        with pytest.raises(processes.WorkerDiedError, match="no more processes"):
            await processes.run_task("networks", {}, tmp_path, 60)
        monkeypatch.setattr(asyncio, "shield", stopped)
        with pytest.raises(asyncio.CancelledError):
            await processes.run_task("networks", {}, tmp_path, 60)
        gc.collect()

    monkeypatch.setattr(processes._context.Process, "start", fail)
    asyncio.run(user())
    assert not caplog.records
