"""Reconstruct from Python: :func:`reconstruct` runs the bundle's ``inference.yaml``, as ``drr2ct reconstruct`` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, run_bundle
from drr2ct.pipeline.running.faults import origin
from drr2ct.pipeline.running.plain import as_data

_DATA = {
    *("model", "radiographs", "dataset_dir", "patient", "patient_id", "output", "output_dir", "like"),
    *("format", "intensity", "window", "colour", "fit", "orientation"),
}
"""Settings that are paths, names or words; none is an expression of MONAI's, whatever it begins with."""


def reconstruct(
    checkpoint: str | Path | None = None, overrides: Mapping[str, Any] | None = None, **settings: Any
) -> list[Path]:
    """Reconstruct one patient from radiographs, or every patient of a folder: what ``drr2ct reconstruct`` does.

    Args:
        checkpoint: of a training; by default the network ``model`` of those shipped, or the finest of them.
        overrides: of any keys of ``inference.yaml``, in MONAI's own language (``$``, ``@``, ``%``, ``#``); of settings
            as well.
        **settings: keys of ``inference.yaml``: ``model``, ``radiographs`` (one file per view) or ``dataset_dir``,
            ``output`` or ``output_dir``, ``intensity``, and so on. Paths and names are taken as they are.

    Returns:
        The volumes' files, or folders of DICOM series.

    Raises:
        InputError: if something that was given cannot be used; nothing is written then.
        PatientsFailedError: if some patients of a folder could not be reconstructed; the others are.
    """
    given = {key: as_data(value) if key in _DATA else value for key, value in settings.items()}
    changed = {"checkpoint": as_data(checkpoint), **given, **(overrides or {})}
    try:
        results = run_bundle([bundle_file("configs/inference.yaml")], changed, keep_config=False)
    except RuntimeError as error:  # MONAI wraps what a configuration raises
        mistake = find_input_error(error)
        if mistake is None:
            raise
        raise mistake from origin(mistake, error)
    return results[-1]
