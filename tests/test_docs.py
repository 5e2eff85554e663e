"""What the pages say can be done: links lead somewhere, code compiles, commands are those of the command line."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from drr2ct.pipeline.cli import app
from drr2ct.pipeline.running.bundle import command_line, merged_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bundles/*/*/*.md")])
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
BUNDLE = ROOT / "bundles" / "biplanar_ct"
_LINK = re.compile(r"(?<!`)\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {re.sub(r"[ ]+", "-", title.strip()) for title in kept} | {title.strip().replace(" ", "-") for title in kept}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def blocks() -> Iterator[tuple[Path, str, str]]:
    """Page, language and text of every block of code; a language that is not given may be a command line."""
    for page in PAGES:
        for indent, language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
            yield page, language, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def commands() -> Iterator[tuple[Path, str, bool]]:
    """Every command line that a page shows; those within its text need not be whole."""
    for page, language, text in blocks():
        if language in ("", "sh", "bash", "console"):
            for line in re.sub(r"\\\n\s*", " ", text).splitlines():
                if re.search(r"\b(drr2ct|make|python)\b", line):
                    yield page, line.strip(), "…" not in line
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for found in re.findall(r"`((?:drr2ct|make|python) [^`]+)`", text):
            yield page, " ".join(found.split()), False


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def test_python_compiles() -> None:
    found = [(page, text) for page, language, text in blocks() if language in ("python", "py")]
    assert len(found) >= 3
    for page, text in found:
        ast.parse(text, filename=str(page))


def test_yaml_is_yaml() -> None:
    for _, language, text in blocks():
        if language == "yaml":
            yaml.safe_load(text)


def parsed(words: list[str]) -> None:
    """Let the command line read its arguments, and do nothing."""
    group: Any = typer.main.get_command(app)
    name, *arguments = words
    assert name in group.commands, f"there is no drr2ct {name}"
    with group.commands[name].make_context(name, arguments):
        pass


def test_commands_are_those_of_the_command_line() -> None:
    whole_lines = 0
    for page, line, whole in commands():
        words = words_of(line)
        # a word of its own: not the end of a path, nor a package
        if "drr2ct" not in words or len(words) == words.index("drr2ct") + 1:
            continue
        words = [re.sub(r"[<>|…]", "", word) for word in words[words.index("drr2ct") + 1 :] if word != "…"]
        if words[0].startswith("-"):
            continue
        try:
            parsed(words)
        except Exception as error:
            # within a text, one option may be named without what the command needs besides, or without its value
            incomplete = type(error).__name__ == "MissingParameter" or "requires an argument" in str(error)
            if whole or not incomplete:
                raise AssertionError(f"{page_id(page)}: {line}: {error!r}") from error
        whole_lines += whole
    assert whole_lines > 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("reconstruct --pa a.png --nonsense 3 --output o.nii", "nonsense"),
        ("trian cts", "trian"),
        ("plan --batch many", "integer"),
    ],
)
def test_a_wrong_command_would_be_found(line: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        parsed(line.split())


def test_bundle_commands_name_keys_of_the_bundle() -> None:
    seen = 0
    for page, line, whole in commands():
        if "monai.bundle run" not in line or not whole:
            continue
        given = command_line([word for word in words_of(line) if not word.startswith("<")])
        paths = [BUNDLE / name.removeprefix("bundles/biplanar_ct/") for name in given.config_files]
        assert paths and all(path.is_file() for path in paths), (page, line)
        merged_config(paths, given.overrides, given.tracking)
        seen += 1
    assert seen >= 5


def test_benchmarks_and_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page, line, _ in commands():
        words = words_of(line)
        for word in words:
            if word.startswith("benchmarks/") and word.endswith(".py"):
                program = (ROOT / word).read_text(encoding="utf-8")
                options = [option.partition("=")[0] for option in words[words.index(word) :] if option.startswith("--")]
                for option in set(options) - {"--help"}:
                    assert f'"{option}"' in program, (page_id(page), line, option)
        if words and words[0] == "make":
            assert f"\n{words[1]}:" in makefile, (page, line)


def test_notebook_holds_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))


def test_first_pages_say_what_it_is_not() -> None:
    for page in ("README.md", "docs/index.md", "docs/start/two-x-rays.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert "not for clinical use" in text.lower() and "inferred from the training patients" in text, page
