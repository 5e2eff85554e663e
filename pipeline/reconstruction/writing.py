"""What is written for one patient: the volume, its record, and where they are wanted a picture and a page."""

from __future__ import annotations

import datetime
import glob
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation

from drr2ct.pipeline.evaluation.intervals import LEVEL
from drr2ct.pipeline.pictures.figures import save_figure
from drr2ct.pipeline.pictures.planes import planes_figure
from drr2ct.pipeline.reconstruction.destination import DOUBT, INTERVAL, Destination
from drr2ct.pipeline.reconstruction.job import ReconstructionJob
from drr2ct.pipeline.reconstruction.record import RECORD_FORMAT
from drr2ct.pipeline.reconstruction.result import Result
from drr2ct.pipeline.running.provenance import DISCLAIMER, NOTE, versions
from drr2ct.pipeline.volumes.dicom_output import write_dicom_series
from drr2ct.pipeline.volumes.files import write_volume
from drr2ct.pipeline.volumes.placing import half_width
from drr2ct.transforms.files import write_json
from drr2ct.transforms.validation import InputError


def write_result(job: ReconstructionJob, result: Result, precision: str) -> Path:
    """Write one patient's files; the record comes last, and until it is there the patient counts as unfinished.

    Args:
        job: what goes where; the patient must be pending.
        result: what is written.
        precision: that the network ran in, for the record.

    Returns:
        The volume's file, or the folder of its DICOM series.

    Raises:
        InputError: if it cannot be written.
    """
    destination = job.destinations[result.patient]
    remove_stale(destination.volume)
    volume = _on_the_formats_axes(result.volume, destination, job)
    record = record_of(job, result, volume, precision)
    record_path = destination.beside(".json")
    try:
        record_path.unlink(missing_ok=True)
        if destination.format == "dicom":
            about = f"Network {record['network']}, drr2ct {record['versions']['drr2ct']}."
            write_dicom_series(destination.volume, volume, result.patient, job.patient_id, about)
        else:
            write_volume(destination.volume, volume)
        if result.bounds is not None:  # NIfTI beside any format, on the voxels that were asked for
            write_volume(destination.beside(INTERVAL), result.bounds)
            write_volume(destination.beside(DOUBT), half_width(result.bounds))
        if job.output is None or job.preview:
            figure = planes_figure(volume, f"{result.patient}: {DISCLAIMER}")
            save_figure(figure, destination.beside(".png"))
        if job.preview and job.write_page is not None:  # a job asks for no page without a writer
            doubt = {} if result.doubt_on_grid is None else {"doubt": result.doubt_on_grid}
            job.write_page(destination.beside(".html"), result.on_grid, result.given, job.geometry, record, **doubt)
        write_json(record_path, record)
    except OSError as error:
        raise InputError(
            f"{destination.volume} cannot be written ({error.strerror or error}); what is complete is kept."
        ) from error
    return destination.volume


def record_of(job: ReconstructionJob, result: Result, volume: MetaTensor, precision: str) -> dict[str, Any]:
    """The record of a patient's volume, in plain types (``docs/your-data.md``).

    Args:
        job: of which the patient is one.
        result: of the patient.
        volume: as it is written.
        precision: that the network ran in.
    """
    patient, fit = result.patient, result.fit
    interval: dict[str, Any] = {}
    if result.bounds is not None:
        destination, calibration = job.destinations[patient], job.description.get("interval")
        interval["interval"] = {
            "bounds": destination.beside(INTERVAL).name,
            "doubt": destination.beside(DOUBT).name,
            "level": LEVEL,
            "calibrated_on": 0 if calibration is None else len(calibration["patients"]),
        }
    return {
        "format": RECORD_FORMAT,
        "patient": patient,
        "note": NOTE,
        "volume": job.destinations[patient].volume.name,
        "units": "HU",
        **interval,
        "shape": list(volume.shape[1:]),
        "spacing_mm": np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0).tolist(),
        "affine": volume.affine.tolist(),
        "assumptions": list(result.assumptions),
        "warnings": list(result.warnings),
        **result.reprojection,
        **({} if fit is None else {"consistency": asdict(fit)}),
        "radiographs_mean": result.radiographs_mean,
        "radiographs": [str(path) for item in job.items if str(item["patient"]) == patient for path in item["image"]],
        "checkpoint": str(job.checkpoint),
        "network": job.description["name"],
        "epoch": job.description.get("epoch"),
        "precision": precision,
        "geometry": job.geometry.to_dict(),
        "versions": versions(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "key": job.keys[patient],
    }


def _on_the_formats_axes(volume: MetaTensor, destination: Destination, job: ReconstructionJob) -> MetaTensor:
    """NRRD and MHA are LPS: unless the voxels are another CT's, turn them so that the direction is the identity."""
    if destination.format not in ("nrrd", "mha") or job.ct is not None:
        return volume
    turned: Any = Orientation("LPS", labels=None)(volume)
    return turned


def remove_stale(volume: Path) -> None:
    """Remove temporary files of the same volume that a killed run left."""
    for path in volume.parent.glob(f".{'[0-9a-f]' * 32}.{glob.escape(volume.name)}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
