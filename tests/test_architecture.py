"""The house: imports go one way down the rooms, in no circle, and no file outgrows its subject."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

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
    "pipeline",  # the faces: cli, demo
    "bundles",
)
"""From the ground up: a room imports from those before it."""

LONG_FILES: dict[str, str] = {}
"""Files of more than 400 lines, and why they are one subject."""

LIMIT = 400


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "drr2ct." + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> dict[str, Path]:
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
    inner = module.removeprefix("drr2ct.")
    return max((index for index, room in enumerate(ROOMS) if f"{inner}.".startswith(f"{room}.")), key=_depth)


def _depth(index: int) -> int:
    return len(ROOMS[index])


FILES = source_files()


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    for other in imports_of(FILES[module], set(FILES)):
        assert room_of(other) <= room_of(module), f"{module} imports {other}, which is above it"


def test_no_circle() -> None:
    graph = {module: set(imports_of(path, set(FILES))) - {module} for module, path in FILES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_a_room_is_a_package_that_only_hands_names_on() -> None:
    for room in ROOMS:
        if room.startswith("pipeline."):
            tree = ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
            assert ast.get_docstring(tree)
            assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in tree.body), room


def test_long_files_have_a_reason() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES.values()
    }
    long = {name for name, lines in lengths.items() if lines > LIMIT}
    assert long == set(LONG_FILES), "longer than 400 lines without a reason, or no longer so"


def test_large_classes_are_two() -> None:
    for path in FILES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 200, f"{path.relative_to(ROOT)}: class {node.name} has {lines} lines"
