"""The rooms of the house in their order, and who imports whom, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (
    "transforms",
    "networks",
    "pipeline.running",
    "pipeline.pictures",
    "pipeline.volumes",
    "pipeline.data",
    "pipeline.checkpoints",
    "pipeline.planning",
    "pipeline.evaluation",
    "pipeline.reconstruction",
    "pipeline.reports",
    "pipeline.training",
    "pipeline.web",
    "pipeline",  # the faces: cli, demo
    "bundles",
)
"""From the ground up: a room imports from those before it."""


def module_name(path: Path) -> str:
    """Its name in the import namespace."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "drr2ct." + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> dict[str, Path]:
    """Module → file, of the package's four folders."""
    folders = ("transforms", "networks", "pipeline", "bundles")
    return {module_name(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def imports_of(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports anywhere in it, but for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("drr2ct"))
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: imports are absolute here")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("drr2ct"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def room_of(module: str) -> int:
    """Index of the module's room in :data:`ROOMS`."""
    inner = module.removeprefix("drr2ct.") + "."
    found = [room for room in ROOMS if inner.startswith(f"{room}.")]
    return ROOMS.index(max(found, key=len))
