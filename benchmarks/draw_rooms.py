"""Print and draw which room imports from which, as the sources have it.

PYTHONPATH=. python benchmarks/draw_rooms.py [docs/figures/rooms.svg]
"""

from __future__ import annotations

import argparse
import ast
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tests.rooms import ROOMS, ROOT, imports_of, room_of, source_files

FACES = "cli, demo"
INK, PALE, FILLED = "#222222", "#eef1f4", "#1f5f99"


def imports_between(files: dict[str, Path]) -> Counter[tuple[int, int]]:
    """(importing room, imported room) → number of files of the one that import something of the other."""
    pairs = {(module, room_of(other)) for module, path in files.items() for other in imports_of(path, set(files))}
    return Counter((room_of(module), other) for module, other in pairs)


def label(room: str) -> str:
    return FACES if room == "pipeline" else room.removeprefix("pipeline.")


def subject(room: str) -> str:
    """First line of the room's own docstring."""
    path = ROOT / room.replace(".", "/") / "__init__.py"
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") if path.exists() else ""
    return text.splitlines()[0] if text else "configurations, overlays and documents of the MONAI bundle"


def draw(counts: Counter[tuple[int, int]], files: dict[str, Path]) -> Figure:
    """One row a room, the highest on top; the number in a column says how many of its files import from there."""
    order = list(reversed(range(len(ROOMS))))
    sizes = Counter(room_of(module) for module in files)
    count, left = len(ROOMS), 11.6
    figure = Figure(figsize=(14.2, 0.44 * count + 1.5))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, left + 0.62 * count + 0.9)
    axes.set_ylim(-count - 0.2, 2.4)
    axes.axis("off")
    for row, importer in enumerate(order):
        y = -row - 0.5
        axes.text(0.1, y, label(ROOMS[importer]), fontsize=11, weight="bold", va="center", color=INK)
        axes.text(2.2, y, textwrap.fill(subject(ROOMS[importer]), 72), fontsize=8.5, va="center", color=INK)
        axes.text(
            left - 0.15,
            y,
            f"{sizes[importer]} file{'s' * (sizes[importer] != 1)}",
            fontsize=8,
            va="center",
            ha="right",
            color="#5a6875",
        )
        for column, imported in enumerate(order):
            x, number = left + 0.62 * column, counts[importer, imported]
            shade = "#c9d1d9" if row == column else FILLED if number else PALE
            axes.add_patch(Rectangle((x, y - 0.42), 0.56, 0.84, facecolor=shade, edgecolor="none"))
            if number and row != column:
                axes.text(x + 0.28, y, str(number), color="white", fontsize=9, ha="center", va="center")
    for column, imported in enumerate(order):
        x = left + 0.62 * column + 0.28
        axes.text(x, 0.12, label(ROOMS[imported]), fontsize=9, rotation=50, ha="left", va="bottom", color=INK)
    axes.text(0.1, 0.25, "files that import from →", fontsize=9, color="#5a6875")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?", help="an SVG or PNG to write")
    output = parser.parse_args().output
    files = source_files()
    counts = imports_between(files)
    for importer in reversed(range(len(ROOMS))):
        below = [f"{label(ROOMS[i])} {counts[importer, i]}" for i in reversed(range(importer)) if counts[importer, i]]
        print(f"{label(ROOMS[importer])}: {', '.join(below) or 'nothing of ours'}")
        for module, path in files.items():
            if room_of(module) == importer:
                print(f"    {path.relative_to(ROOT)}  {len(path.read_text(encoding='utf-8').splitlines())} lines")
    if output is not None:
        matplotlib.rcParams["svg.hashsalt"] = "drr2ct"
        draw(counts, files).savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)
        print(output)


if __name__ == "__main__":
    main()
