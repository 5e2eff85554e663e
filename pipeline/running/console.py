"""What the console shows: tables that are not cut where there is no terminal, times as people say them."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Column, Table


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Rows of one kind as a table."""
    table = Table(*(Column(name, overflow="fold") for name in rows[0]))  # in a narrow terminal nothing is cut
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    wide_console().print(table)


def wide_console() -> Console:
    """For tables: a file or a pipe has no width, and rich would cut the numbers to fit 80 columns."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def duration_text(seconds: float) -> str:
    """A time as text, in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
