"""An evaluation's predictions as NIfTI files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Compose
from monai.utils import string_list_all_gather
from torch import Tensor

from drr2ct.networks.interval import estimate_of, has_bounds
from drr2ct.pipeline.running.engines import batch_patients, engine_output
from drr2ct.pipeline.running.provenance import NOTE, versions
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.pipeline.volumes.placing import place_bounds, place_on_grid, restore_to_ct
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)

EXPORT_GRIDS = ("network", "ct", "none")


class ExportPredictions:
    """Write every prediction of an evaluator: ``<patient>/<patient>_ct.nii.gz``, with a record beside it.

    Of a network with bounds, ``<patient>_ct_interval.nii.gz`` holds them, lower and upper. What an earlier evaluation
    wrote here of other patients is removed in the end, as the tables beside it are no longer of them.

    Args:
        output_dir: where to.
        geometry: of the network; written into the record.
        grid: ``network`` for the network's own voxels, ``ct`` for the voxels of the patient's CT, ``none`` for no
            volumes.
        preprocessing: needed for ``ct``.
        provenance: further entries of the record, for example the checkpoint.
    """

    def __init__(
        self,
        output_dir: str | Path,
        geometry: BiplanarGeometry,
        grid: str = "network",
        preprocessing: Compose | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if grid not in EXPORT_GRIDS:
            raise InputError(f"export grid {grid!r} is unknown; choose from {', '.join(EXPORT_GRIDS)}.")
        if grid == "ct" and preprocessing is None:
            raise InputError("export on the CT's own grid needs the preprocessing that is to be undone.")
        self.output_dir = Path(output_dir)
        self.geometry = geometry
        self.grid = grid
        self.preprocessing = preprocessing
        self.provenance = dict(provenance or {})
        self._written: list[str] = []

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        evaluator.add_event_handler(Events.EPOCH_STARTED, self._written.clear)
        if self.grid != "none":
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._remove_others)

    def __call__(self, evaluator: Engine) -> None:
        """Write the predictions of one batch."""
        for patient, sample in zip(batch_patients(evaluator.state.batch), engine_output(evaluator), strict=True):
            self._write(patient, sample["pred"], sample.get("label"))

    def _write(self, patient: str, prediction: Tensor, label: Tensor | None) -> None:
        def place(scaled: Tensor) -> MetaTensor:
            if self.preprocessing is None or self.grid != "ct":
                return place_on_grid(scaled, self.geometry, label)
            if not isinstance(label, MetaTensor):
                raise InputError(f"patient {patient} has no CT whose grid the prediction could be put on.")
            return restore_to_ct(scaled, label, self.preprocessing)

        volume = place(estimate_of(prediction))
        path, interval, record_path = self._files(patient)
        if has_bounds(prediction):
            write_volume(interval, place_bounds(place, prediction))
        else:
            interval.unlink(missing_ok=True)  # of an evaluation before
        write_volume(path, volume)
        record = {
            "patient": patient,
            "note": NOTE,
            "units": "HU",
            "affine": volume.affine.tolist(),
            "geometry": self.geometry.to_dict(),
            "versions": versions(),
            **self.provenance,
        }
        write_json(record_path, record)
        self._written.append(patient)
        logger.info("wrote %s", path)

    def _files(self, patient: str) -> tuple[Path, Path, Path]:
        """Volume, bounds and record."""
        folder = self.output_dir / patient
        return (
            folder / f"{patient}_ct.nii.gz",
            folder / f"{patient}_ct_interval.nii.gz",
            folder / f"{patient}_ct.json",
        )

    def _remove_others(self) -> None:
        kept = set(string_list_all_gather(self._written) if self.grid != "none" else ())
        if idist.get_rank() > 0:
            return
        for folder in sorted(path for path in self.output_dir.glob("*") if path.is_dir() and path.name not in kept):
            files = self._files(folder.name)
            if _is_ours(files[-1]):
                for path in files:
                    path.unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether a record is there and an evaluation's: a reconstruction's, of the same name, has a key."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("note") == NOTE and "key" not in record
