"""What is typed as plain data in a configuration, whose text MONAI reads as expressions, macros and references."""

from __future__ import annotations

import ast
import re
from pathlib import PurePath
from typing import Any

import yaml

_POWER_OF_TEN = re.compile(r"[-+]?\d+[eE][-+]?\d+")
_SIGNS = "#$%@"
"""Of keys, expressions, macros and references."""


def typed_value(text: str) -> Any:
    """What a word of a command line says, read as YAML; 1e-3 is a number, as for everybody but YAML 1.1.

    Raises:
        yaml.YAMLError: if it is not YAML.
    """
    return float(text) if _POWER_OF_TEN.fullmatch(text.strip()) else yaml.safe_load(text)


def as_data(value: Any) -> Any:
    """A path, a name, or a list of them so that a configuration holds it as it is, whatever signs it has.

    Text with a sign that MONAI may take for its own becomes the expression of a literal that has these signs escaped,
    so that nothing but the text can come of it. All other text stays as it is, and so does what is no text.
    """
    if isinstance(value, (list, tuple)):
        return [as_data(entry) for entry in value]
    text = str(value) if isinstance(value, PurePath) else value
    if not isinstance(text, str) or not any(sign in text for sign in _SIGNS):
        return text
    literal = repr(text)
    for sign in _SIGNS:
        literal = literal.replace(sign, f"\\x{ord(sign):02x}")
    return f"${literal}"


def paths_as_data(value: Any) -> Any:
    """As :func:`as_data`, of paths alone: text is what MONAI makes of it."""
    if isinstance(value, (list, tuple)):
        return [paths_as_data(entry) for entry in value]
    return as_data(value) if isinstance(value, PurePath) else value


def as_text(value: Any) -> Any:
    """The text that :func:`as_data` was given, from a configuration as it is stored; all else stays as it is."""
    if not (isinstance(value, str) and value.startswith("$")):
        return value
    try:
        found = ast.literal_eval(value[1:])
    except (ValueError, SyntaxError):
        return value
    return found if isinstance(found, str) else value
