"""Progress of a long run: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
_LOG_SECONDS = 10.0


def tracked(items: Iterable[Item], total: int, console: Console, what: str) -> Iterator[Item]:
    """Pass items on; show how many are done, the rate and the time left.

    Args:
        items: as they are completed.
        total: how many there will be.
        console: where to; nothing is written to a quiet one.
        what: the items' name in the plural.
    """
    began = said = time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    # in a log file the bar would be a last line for every step, however short
    with Progress(TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, rate="")
        for done, item in enumerate(items, 1):
            now = time.monotonic()
            per_minute = 60 * done / max(now - began, 1e-3)
            rate = f"{per_minute:.1f} per minute" if per_minute < 600 else f"{per_minute / 60:.0f} per second"
            bar.update(task, advance=1, rate=rate)
            if not console.is_terminal and now - said > _LOG_SECONDS:
                said = now
                left = (total - done) / per_minute
                console.print(f"{done}/{total} {what}, {rate}, {left:.0f} min left", soft_wrap=True)
            yield item
