"""From predictions to files: NIfTI in HU in patient space, and pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from torch import Tensor

from drr2ct.pipeline.checkpoint import versions
from drr2ct.pipeline.export import DISCLAIMER, write_volume
from drr2ct.pipeline.figures import planes_figure, save_figure
from drr2ct.pipeline.handlers import batch_patients, engine_output
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu

logger = logging.getLogger(__name__)

EXPORT_GRIDS = ("network", "ct", "none")


def place_on_grid(prediction: Tensor, geometry: BiplanarGeometry, label: Tensor | None = None) -> MetaTensor:
    """A network's output in HU, in patient space.

    Args:
        prediction: (1, N, N, N) in [0, 1].
        geometry: whose grid it lies on, with the isocentre at the origin.
        label: the CT on the network's grid, if there is one: then its affine holds.

    Returns:
        (1, N, N, N) in HU with an affine.
    """
    affine = label.affine if isinstance(label, MetaTensor) else torch.from_numpy(geometry.grid.affine())
    return MetaTensor(to_hu(_plain(prediction)), affine=affine)


def _plain(prediction: Tensor) -> Tensor:
    """On the CPU in float32, without metadata."""
    return prediction.detach().cpu().float().as_subclass(Tensor)


def restore_to_ct(prediction: Tensor, label: MetaTensor, preprocessing: Compose) -> MetaTensor:
    """A network's output in HU on the voxels of the CT that ``label`` was made from.

    Args:
        prediction: (1, N, N, N) in [0, 1].
        label: the CT on the network's grid, with the record of what was done to it.
        preprocessing: the transform that did it.
    """
    invert = Invertd("pred", transform=preprocessing, orig_keys="label", nearest_interp=False)
    return invert({"pred": MetaTensor(_plain(prediction), affine=label.affine), "label": label.cpu()})["pred"]


class ExportPredictions:
    """Write every prediction of an evaluator: ``<patient>/<patient>_ct.nii.gz``, with a record beside it.

    Args:
        output_dir: where to.
        geometry: of the network; written into the record.
        grid: ``network`` for the network's own voxels, ``ct`` for the voxels of the patient's CT, ``none`` for no
            volumes.
        preprocessing: needed for ``ct``.
        picture: also write three planes as PNG.
        provenance: further entries of the record, for example the checkpoint.
    """

    def __init__(
        self,
        output_dir: str | Path,
        geometry: BiplanarGeometry,
        grid: str = "network",
        preprocessing: Compose | None = None,
        picture: bool = False,
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
        self.picture = picture
        self.provenance = dict(provenance or {})

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        if self.grid != "none":
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, evaluator: Engine) -> None:
        """Write the predictions of one batch."""
        for patient, sample in zip(batch_patients(evaluator.state.batch), engine_output(evaluator), strict=True):
            self._write(patient, sample["pred"], sample.get("label"))

    def _write(self, patient: str, prediction: Tensor, label: Tensor | None) -> None:
        if self.preprocessing is not None and self.grid == "ct":
            if not isinstance(label, MetaTensor):
                raise InputError(f"patient {patient} has no CT whose grid the prediction could be put on.")
            volume = restore_to_ct(prediction, label, self.preprocessing)
        else:
            volume = place_on_grid(prediction, self.geometry, label)
        stem = self.output_dir / patient / f"{patient}_ct"
        path = write_volume(stem.with_name(f"{stem.name}.nii.gz"), volume)
        record = {
            "patient": patient,
            "note": f"{DISCLAIMER}; two views cannot determine a volume, what they do not show is inferred",
            "units": "HU",
            "affine": volume.affine.tolist(),
            "geometry": self.geometry.to_dict(),
            "versions": versions(),
            **self.provenance,
        }
        write_json(stem.with_name(f"{stem.name}.json"), record)
        if self.picture:
            save_figure(planes_figure(volume, f"{patient}: {DISCLAIMER}"), stem.with_name(f"{stem.name}.png"))
        logger.info("wrote %s", path)
