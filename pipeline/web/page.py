"""The page's own files: one template, its words in a language, scripts and style, all from the package."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from importlib.resources import files

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup
from starlette.responses import Response

from drr2ct.pipeline.reports.parts import VIEWER_WINDOWS, read_asset, viewer_module

LANGUAGES = ("en", "de")
"""The first is spoken to those who understand none."""

PAGE_FILES = {
    "style.css": "text/css",
    "web.css": "text/css",
    "web.js": "text/javascript",
    "films.js": "text/javascript",
    "result.js": "text/javascript",
    "viewer.js": "text/javascript",
}
"""Name → type, of everything that the page asks for."""

_STEP = 1 / 256  # of the viewer's sliders


@functools.cache
def _file(name: str) -> str:
    if name == "viewer.js":
        return viewer_module()
    if name in ("style.css", "viewer.html.j2"):
        return read_asset(name)
    return (files("drr2ct.pipeline.web") / "assets" / name).read_text(encoding="utf-8")


@functools.cache
def words(language: str) -> dict[str, str]:
    """Everything that the page says, by key."""
    return json.loads(_file(f"words.{language}.json"))


def choose_language(accepted: str) -> str:
    """The first of an Accept-Language header that we speak."""
    wanted = [entry.split(";")[0].strip().lower()[:2] for entry in accepted.split(",")]
    return next((language for language in wanted if language in LANGUAGES), LANGUAGES[0])


@functools.cache
def _page(language: str) -> str:
    said = words(language)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_file))
    return environment.get_template("page.html.j2").render(
        language=language,
        t=said,
        words=Markup(json.dumps(said).replace("<", "\\u003c")),
        windows=[(said[f"window_{name.lower().split()[0]}"], low, high) for name, low, high in VIEWER_WINDOWS],
        step=_STEP,
        version=importlib.metadata.version("drr2ct"),
        niivue=importlib.metadata.version("ipyniivue"),
    )


def page_file(name: str, accepted: str) -> Response:
    """The page (``page.html``), or one of :data:`PAGE_FILES`.

    Args:
        name: of the file.
        accepted: languages of the reader, an Accept-Language header.
    """
    if name == "page.html":
        return Response(_page(choose_language(accepted)), media_type="text/html")
    return Response(_file(name), media_type=PAGE_FILES[name])
