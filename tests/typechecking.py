"""The checker of annotated shapes and types during tests (see pyproject.toml)."""

from typing import Any

import typer
from beartype import BeartypeConf, BeartypeHintOverrides, beartype

check = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float, as in PEP 484
        # what typer hands over is not of this class
        hint_overrides=BeartypeHintOverrides({typer.Context: Any}),  # type: ignore[operator]
    )
)
