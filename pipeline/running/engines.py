"""What handlers of any room ask an engine: whose batch this is, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine


def batch_patients(batch: Any) -> list[str]:
    """Names of the patients of a batch: collated, or decollated as MONAI's engines leave it after an iteration."""
    if isinstance(batch, Mapping):
        names = batch.get("patient", [])
        return [str(name) for name in ([names] if isinstance(names, str) else names)]
    return [str(sample["patient"]) for sample in batch if isinstance(sample, Mapping) and "patient" in sample]


def engine_output(engine: Engine) -> Any:
    """What the iteration gave: a dictionary, and once it is completed a list of them, one per sample."""
    return engine.state.output
