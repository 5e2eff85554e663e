"""Parts that pages share, written to a file or served: style, templates, viewer. It needs neither PyTorch nor MONAI."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import urllib.parse
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader

from drr2ct.transforms.validation import InputError

VIEWER_WINDOWS = (("Lung", -1000, 200), ("Soft tissue", -160, 240), ("Bone", -450, 1050))
"""Name, and HU shown as black and white."""


def read_asset(name: str) -> str:
    """The text of a file of ``assets``."""
    return (files("drr2ct.pipeline.reports") / "assets" / name).read_text(encoding="utf-8")


def templates() -> Environment:
    """Jinja with our templates; values are escaped unless they are ``Markup``."""
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(read_asset))


def viewer_module() -> str:
    """NiiVue and our viewer as one JavaScript module that loads nothing; it exports ``startViewer``.

    Raises:
        InputError: see :func:`niivue_module`.
    """
    return niivue_module() + "\n" + read_asset("viewer.js")


@functools.cache
def niivue_module() -> str:
    """NiiVue as one JavaScript module: ipyniivue carries it for the pages that NiiVue itself saves.

    Raises:
        InputError: if ipyniivue is not installed, or holds it no longer.
    """
    try:
        package = importlib.metadata.distribution("ipyniivue")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("the viewer needs the package ipyniivue; pip install ipyniivue.") from error
    widget = Path(str(package.locate_file("ipyniivue/static/widget.js"))).read_text(encoding="utf-8")
    # the only literal of that length that is percent-encoded source
    found = re.search(r"=\s*\"([a-z]+%20[\w%.!~*'()-]{1000000,})\"", widget)
    module = urllib.parse.unquote(found.group(1)) if found else ""
    if "Niivue" not in module[-2000:] or "</script" in module:
        raise InputError(
            f"ipyniivue {package.version} carries no NiiVue page module; install the version pinned in constraints.txt."
        )
    return module
