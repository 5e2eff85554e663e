"""What the site needs beside the pages of docs/: the tutorial and the API as pages, figures that lie elsewhere."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("transforms", "networks", "pipeline")
_RELATIVE = re.compile(r"!?\[([^\]]*)\]\((?![a-z]+:|#)[^)]+\)")
_FETCHED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*(?:src|href)=["']?((?:https?:)?//[^"'> ]+)""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the four folders together as the namespace that they are installed as, and list the API's pages."""
    namespace = ROOT / "build" / "docs" / "drr2ct"
    namespace.mkdir(parents=True, exist_ok=True)
    for name in (*PACKAGES, "bundles"):
        if not (namespace / name).is_symlink():
            (namespace / name).symlink_to(ROOT / name, target_is_directory=True)
    assert config.nav is not None
    sections = {title: pages for section in config.nav for title, pages in section.items()}
    named = re.findall(r"[\w./-]+\.md", str(config.nav))
    # a page that mkdocs.yml gives no place is not lost
    pages = (path.relative_to(config.docs_dir).as_posix() for path in sorted(Path(config.docs_dir).rglob("*.md")))
    sections["Use"] += [page for page in pages if page not in named]
    sections["Code"] += [{title: f"reference/{title}.md"} for title in references()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the API's pages, the tutorial, and the figures that pages show from outside docs/."""
    for title, page in references().items():
        files.append(File.generated(config, f"reference/{title}.md", content=page))
    notebook = ROOT / "docs" / "tutorial.ipynb"
    files.append(File.generated(config, "tutorial.md", content=notebook_as_page(json.loads(notebook.read_text()))))
    texts = {page: page.read_text(encoding="utf-8") for page in Path(config.docs_dir).rglob("*.md")}
    depths = {page: len(page.relative_to(config.docs_dir).parts) - 1 for page in texts}
    outside = {found[1] for page, text in texts.items() for found in _outside(depths[page]).finditer(text)}
    for path in sorted(outside):
        if (ROOT / path).is_file():
            place, source = f"elsewhere/{path}", str(ROOT / path)
            files.append(File.generated(config, place, abs_src_path=source, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that would fetch something: it is read without a network, and nobody is told of its readers."""
    for page in Path(config.site_dir).rglob("*.html"):
        if fetched := _FETCHED.findall(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page} fetches {', '.join(fetched)}; pages must be whole without a network.")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to where ``on_files`` has put what they name."""
    if page.file.src_uri.startswith("elsewhere/"):  # what stands beside it there is not here
        return _RELATIVE.sub(r"\1", markdown)
    depth = page.file.src_uri.count("/")
    return _outside(depth).sub(lambda found: f"]({'../' * depth}elsewhere/{found[1]}{found[2] or ''})", markdown)


def _outside(depth: int) -> re.Pattern[str]:
    """Links that leave docs/, from a page so many folders deep: the site does not have what they name."""
    return re.compile(rf"\]\((?:\.\./){{{depth + 1}}}((?!\.\./)[^)#]+)(#[^)]*)?\)")


@functools.cache
def references() -> dict[str, str]:
    """Title → page of docstrings: one for each package, of the pipeline one for each room."""
    pages: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            title = ".".join(parts[:2]) if package == "pipeline" and len(parts) > 2 else package
            if _has_something(path):
                pages.setdefault(title, f"# {title}\n\n")
                pages[title] += f"::: {'.'.join(('drr2ct', *parts))}\n\n"
    return dict(sorted(pages.items(), key=lambda page: PACKAGES.index(page[0].split(".")[0])))


def _has_something(path: Path) -> bool:
    """Whether a module defines something public."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text()).body
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in body)


def notebook_as_page(notebook: dict[str, Any]) -> str:
    """Its text and code, without outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"
