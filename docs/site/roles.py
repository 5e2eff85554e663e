"""Docstrings speak reStructuredText where they name code and write formulas; the site's pages are Markdown."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")
_FORMULA = re.compile(r":math:`([^`]+)`")
_DISPLAYED = re.compile(r"^\.\. math::\n((?:\n|[ ]+.*\n?)+)", re.MULTILINE)
_CODE_FOLLOWS = re.compile(r"::$", re.MULTILINE)


def as_markdown(text: str) -> str:
    """A docstring with roles as code, formulas as they are typed, and literal blocks as Markdown has them."""
    text = _DISPLAYED.sub(lambda found: f"```text\n{textwrap.dedent(found[1]).strip()}\n```\n\n", text)
    text = _ROLE.sub(r"`\1`", text)
    text = _FORMULA.sub(r"`\1`", text)
    return _CODE_FOLLOWS.sub(":", text)


class PlainRoles(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
