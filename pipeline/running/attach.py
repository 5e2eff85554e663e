"""Handlers that other parts of a configuration refer to, as one entry of its list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine


class Attach:
    """Handlers that other parts of a configuration refer to, as one entry of its list of handlers.

    A plain reference in that list ends MONAI's ``check_properties``, which takes every entry for a dictionary.

    Args:
        handlers: attached in this order.
    """

    def __init__(self, handlers: Sequence[Any]) -> None:
        self.handlers = list(handlers)

    def attach(self, engine: Engine) -> None:
        """Register all on the engine."""
        for handler in self.handlers:
            handler.attach(engine)
