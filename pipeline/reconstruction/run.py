"""Reconstruct from Python: :func:`reconstruct` runs the bundle's ``inference.yaml``, as ``drr2ct reconstruct`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, run_bundle
from drr2ct.pipeline.running.faults import origin


def reconstruct(checkpoint: str | Path | None = None, **settings: Any) -> list[Path]:
    """Reconstruct one patient from radiographs, or every patient of a folder: what ``drr2ct reconstruct`` does.

    Args:
        checkpoint: of a training; by default the network ``model`` of those shipped, or the finest of them.
        **settings: keys of ``inference.yaml``: ``model``, ``radiographs`` (one file per view) or ``dataset_dir``,
            ``output`` or ``output_dir``, ``intensity``, and so on.

    Returns:
        The volumes' files, or folders of DICOM series.

    Raises:
        InputError: if something that was given cannot be used; nothing is written then.
        PatientsFailedError: if some patients of a folder could not be reconstructed; the others are.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return str(value) if isinstance(value, Path) else value

    overrides = {"checkpoint": plain(checkpoint), **{key: plain(value) for key, value in settings.items()}}
    try:
        results = run_bundle([bundle_file("configs/inference.yaml")], overrides, keep_config=False)
    except RuntimeError as error:  # MONAI wraps what a configuration raises
        mistake = find_input_error(error)
        if mistake is None:
            raise
        raise mistake from origin(mistake, error)
    return results[-1]
