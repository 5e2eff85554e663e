"""The house: imports go one way down the rooms, in no circle, and no file outgrows its subject."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.rooms import ROOMS, ROOT, imports_of, room_of, source_files

LONG_FILES = {"pipeline/cli.py": "one command after the other: arguments and their help, nothing else"}
"""Files of more than 400 lines, and why they are one subject."""

LIMIT = 400

TRANSFORMS = ("transforms.radiographs", "transforms.films", "transforms.varied", "transforms.preprocessing")
"""Parts of the transforms' room in their order, above its single files."""

FILES = source_files()


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    for other in imports_of(FILES[module], set(FILES)):
        assert room_of(other) <= room_of(module), f"{module} imports {other}, which is above it"


def part_of(module: str) -> int:
    """How high a module of the transforms stands."""
    inner = module.removeprefix("drr2ct.") + "."
    return next((i for i, part in enumerate(TRANSFORMS, start=1) if inner.startswith(f"{part}.")), 0)


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("drr2ct.transforms.")])
def test_imports_go_down_within_the_transforms(module: str) -> None:
    for other in imports_of(FILES[module], set(FILES)):
        assert part_of(other) <= part_of(module), f"{module} imports {other}, which is above it"


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
