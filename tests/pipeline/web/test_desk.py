"""Nothing is reconstructed of films that were read for another network, whatever comes at the same time."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from drr2ct.pipeline.web import desk as module
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
