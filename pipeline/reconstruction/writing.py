"""From radiographs and a checkpoint to files: volumes in HU in patient space, a record of how, and pictures.

``inference.yaml`` is the one chain; :func:`reconstruct`, ``drr2ct reconstruct`` and ``python -m monai.bundle run`` all
run it.
"""

from __future__ import annotations

import datetime
import glob
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from jaxtyping import Float
from monai.data import IterableDataset, MetaTensor
from monai.transforms import Orientation
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, run_bundle
from drr2ct.pipeline.running.engines import batch_patients, engine_output
from drr2ct.pipeline.running.provenance import DISCLAIMER, NOTE, versions
from drr2ct.pipeline.volumes.files import VOLUME_ENDINGS, volume_ending, write_volume
from drr2ct.pipeline.volumes.placing import place_like, place_on_grid, place_resized
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiograph_intensity import distribution_warning
from drr2ct.transforms.validation import InputError, existing_file
from drr2ct.transforms.volume import LoadCT

logger = logging.getLogger(__name__)

FORMATS = (*(ending[1:] for ending in VOLUME_ENDINGS), "dicom")
LARGEST_SIZE = 1024
RECORD_FORMAT = 1


@dataclass(frozen=True)
class Destination:
    """Where one patient's reconstruction goes: a volume file or the folder of a DICOM series, and what lies beside it.

    Args:
        volume: the file or the folder.
        format: one of :data:`FORMATS`.
    """

    volume: Path
    format: str

    def beside(self, suffix: str) -> Path:
        """The file of the same name with another ending: ``.json`` (the record), ``.png``, ``.html``."""
        ending = volume_ending(self.volume) or ""
        name = self.volume.name
        return self.volume.with_name(name[: len(name) - len(ending)] + suffix)


def file_destination(output: str | Path, format: str | None = None) -> Destination | None:
    """One volume file or DICOM folder, if the name (or the format) says so; None for a folder of patients.

    Raises:
        InputError: if the format contradicts the name, or the name ends in something that is no volume format.
    """
    path = Path(output)
    ending = volume_ending(path)
    if format is not None and format not in FORMATS:
        raise InputError(f"format {format!r} is unknown; choose from {', '.join(FORMATS)}.")
    if ending is not None:
        if format not in (None, ending[1:]):
            raise InputError(f"output {path} ends in {ending}, but the format is {format}; change one of them.")
        return Destination(path, ending[1:])
    if format == "dicom" or (format is None and path.name.lower().endswith("dicom")):
        return Destination(path, "dicom")
    if path.suffix and not path.is_dir() and not str(output).endswith("/"):
        raise InputError(
            f"output {path} ends in {path.suffix}, which is no volume format; choose from {', '.join(VOLUME_ENDINGS)}, "
            "or end the name with / if it is a folder."
        )
    return None


def patient_destination(output_dir: str | Path, patient: str, format: str | None = None) -> Destination:
    """``<output_dir>/<patient>/<patient>_ct.nii.gz``, or of another format (``<patient>_ct_dicom/``)."""
    format = format or "nii.gz"
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown; choose from {', '.join(FORMATS)}.")
    name = f"{patient}_ct_dicom" if format == "dicom" else f"{patient}_ct.{format}"
    return Destination(Path(output_dir) / patient / name, format)


class PatientsFailedError(InputError):
    """Some patients of a folder could not be reconstructed; the others were."""

    exit_status = 1


@dataclass
class ReconstructionJob:
    """What is to be reconstructed, where it goes, and what is finished already.

    A patient is finished when its record is there, which is written last. The record holds a key: the hash of the
    checkpoint, the hashes of the radiographs, and the settings. Another key under the same name is refused, so that
    the result of another checkpoint is never taken for this one's.

    Args:
        items: ``patient`` and ``image`` (paths) of each patient.
        geometry: of the network.
        checkpoint: its file.
        output: one volume file, or the folder of one DICOM series; for one patient.
        output_dir: folder of patient folders, if ``output`` is not given.
        format: one of :data:`FORMATS`; by default what ``output`` ends in, or NIfTI.
        size: interpolate to so many voxels along each axis.
        like: a CT on whose voxels the volume is put.
        patient_id: Patient ID in DICOM; the patient's name by default.
        preview: also write a page to look at (HTML) and its picture.
        overwrite: replace what is there.
        settings: how radiographs are read, for the record and its key.
        console: where progress and assumptions are printed.

    Raises:
        InputError: if the settings contradict each other, or something else is in the way.
    """

    items: Sequence[Mapping[str, Any]]
    geometry: BiplanarGeometry
    checkpoint: str | Path
    output: str | Path | None = None
    output_dir: str | Path = "reconstructions"
    format: str | None = None
    size: int | None = None
    like: str | Path | None = None
    patient_id: str | None = None
    preview: bool = False
    overwrite: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        self.description = read_checkpoint(self.checkpoint)["description"]
        self.failures: dict[str, str] = {}
        if self.size is not None and not (isinstance(self.size, int) and 8 <= self.size <= LARGEST_SIZE):
            raise InputError(f"size {self.size} is not a whole number of voxels from 8 to {LARGEST_SIZE}.")
        if self.size is not None and self.like is not None:
            raise InputError("give either a size or a CT whose voxels to use (like), not both.")
        if len(self.items) > 1 and (self.output is not None or self.like is not None):
            what = "output file" if self.output is not None else "CT to be like"
            raise InputError(f"{len(self.items)} patients cannot share one {what}; give output_dir, and no like.")
        self.ct = None if self.like is None else LoadCT()(self.like)
        self.destinations = {str(item["patient"]): self._destination(str(item["patient"])) for item in self.items}
        self._common_key = {
            "checkpoint_sha256": _sha256(existing_file(self.checkpoint, "checkpoint")),
            "like_sha256": None if self.like is None or Path(self.like).is_dir() else _sha256(Path(self.like)),
            "settings": {"size": self.size, "like": None if self.like is None else str(self.like), **self.settings},
        }
        self.keys: dict[str, dict[str, Any]] = {}

    @cached_property
    def pending(self) -> list[Mapping[str, Any]]:
        """What is left to do; found out when it is first asked for, so that a configuration opens without files.

        Raises:
            InputError: if something else is in the way, nothing can be written there, or the one patient's radiographs
                are missing.
        """
        found = [item for item in self.items if self._is_pending(item)]
        if found:
            place = self.destinations[str(found[0]["patient"])].volume
            folder = next(parent for parent in place.parents if parent.exists())
            if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                why = "not writable" if folder.is_dir() else "no folder"
                raise InputError(f"{place} cannot be written: {folder} is {why}; choose another output.")
        return found

    @property
    def alone(self) -> bool:
        """One patient: its failure is the job's."""
        return len(self.items) == 1

    def _destination(self, patient: str) -> Destination:
        if self.output is None:
            return patient_destination(self.output_dir, patient, self.format)
        found = file_destination(self.output, self.format)
        if found is None:
            raise InputError(
                f"output {self.output} is no volume file ({', '.join(VOLUME_ENDINGS)}) and no DICOM folder (format "
                "dicom); for a folder of patients, give output_dir."
            )
        return found

    def _is_pending(self, item: Mapping[str, Any]) -> bool:
        patient = str(item["patient"])
        try:
            radiographs = [_sha256(existing_file(path, "radiograph")) for path in item["image"]]
        except (InputError, OSError) as error:
            mistake = error if isinstance(error, InputError) else InputError(f"radiographs of {patient}: {error}.")
            if self.alone:
                raise mistake from error
            self.fail(patient, mistake)
            return False
        destination = self.destinations[patient]
        key = {**self._common_key, "radiographs_sha256": radiographs}
        if destination.format == "dicom":
            key["names"] = [patient, self.patient_id or patient]  # they stand in the files
        self.keys[patient] = key
        volume, record = destination.volume, destination.beside(".json")
        if self.overwrite or not (volume.exists() or record.exists()):
            return True
        found = _read_record(record)
        if found.get("key") is None:
            if self.output is None and not record.exists():
                return True  # left by a run that was stopped
            raise InputError(f"{volume if volume.exists() else record} exists; give another output, or overwrite.")
        if found.get("volume") != volume.name:
            raise InputError(f"{record} is the record of {found.get('volume')}; give the output another name.")
        changed = [name.split("_")[0] for name in key if found["key"].get(name) != key[name]]
        if not changed:
            return not volume.exists() or (self.preview and not destination.beside(".html").exists())
        raise InputError(
            f"{volume} was made with other {' and '.join(changed)}; give another output, or overwrite to replace it."
        )

    def fail(self, patient: str, mistake: InputError) -> None:
        """Note that a patient of several could not be reconstructed, and say so."""
        self.failures[patient] = str(mistake)
        self.say(f"{patient}: not reconstructed: {mistake}")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def conclude(self) -> list[Path]:
        """Paths of the volumes, those finished before included.

        Raises:
            PatientsFailedError: if some of several patients could not be reconstructed.
            InputError: if none could.
        """
        if not self.pending and not self.failures:
            self.say("nothing to do: finished before, with this checkpoint and these settings")
        if self.failures:
            names = ", ".join(self.failures)
            count = f"{len(self.failures)} of {len(self.items)} patients"
            kind = InputError if len(self.failures) == len(self.items) else PatientsFailedError
            raise kind(f"{count} could not be reconstructed, the reasons are above: {names}.")
        return [self.destinations[str(item["patient"])].volume for item in self.items]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class PendingPatients(IterableDataset):
    """Samples of a job's pending patients; of several, those that cannot be read are noted and passed over.

    Args:
        data: all patients.
        transform: from files to samples.
        job: where failures are noted.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], job: ReconstructionJob
    ) -> None:
        super().__init__(data, transform)
        self.job = job

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One sample after the other."""
        pending = {item["patient"] for item in self.job.pending}
        for item in self.data:
            if item["patient"] not in pending:
                continue
            try:
                sample = self.transform(dict(item))  # type: ignore[misc]
            except Exception as error:
                mistake = find_input_error(error)
                if mistake is None or self.job.alone:
                    raise
                self.job.fail(str(item["patient"]), mistake)
                continue
            yield sample


class WriteReconstructions:
    """Write what an evaluator predicts as a job wants it, and show how far it is.

    Args:
        job: what goes where.
        precision: that the network runs in, for the record.
    """

    def __init__(self, job: ReconstructionJob, precision: str) -> None:
        self.job = job
        self.precision = precision
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=job.console,
            transient=True,
            disable=not job.console.is_terminal,  # there, each patient's lines have to do
        )
        self._done = 0
        self._said: set[str] = set()
        self._hooks: list[Any] = []

    def attach(self, evaluator: Engine) -> None:
        """Register on the evaluator."""
        evaluator.add_event_handler(Events.STARTED, self._started)
        evaluator.add_event_handler(Events.GET_BATCH_COMPLETED, self._loaded)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        evaluator.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._stop)

    def _started(self, evaluator: Engine) -> None:
        job, grid = self.job, self.job.geometry.grid
        patients = len(job.description.get("patients", {}).get("training", []))
        device = next(evaluator.network.parameters()).device  # type: ignore[attr-defined]
        job.say(
            f"{job.description['name']}, epoch {job.description.get('epoch', '?')}, trained on {patients} patients: "
            f"{grid.size}³ voxels of {grid.spacing_mm:.3g} mm, on {device} in {self.precision}"
        )
        finished = len(job.items) - len(job.pending) - len(job.failures)
        if finished:
            job.say(f"finished before, and kept: {finished} of {len(job.items)} patients")
        self._began = self._last = time.monotonic()
        self._task = self._progress.add_task("reading", total=float(len(job.pending)), count="")
        self._progress.start()
        self._hooks = _on_parts(evaluator.network, self._part_done)  # type: ignore[attr-defined]

    def _part_done(self, share: float) -> None:
        self._progress.update(self._task, completed=self._position() + share)

    def _position(self) -> int:
        """Patients behind us, failed ones included."""
        job = self.job
        return self._done + sum(str(item["patient"]) in job.failures for item in job.pending)

    def _loaded(self, evaluator: Engine) -> None:
        (patient,) = batch_patients(evaluator.state.batch)
        self._progress.update(self._task, completed=self._position(), description=patient)

    def _iteration_completed(self, evaluator: Engine) -> None:
        ((patient, sample, read),) = zip(
            batch_patients(evaluator.state.batch), engine_output(evaluator), _assumptions(evaluator), strict=True
        )
        try:
            made = self._write(patient, sample["pred"], sample["image"].detach().cpu().as_subclass(Tensor), read)
        except InputError as mistake:
            if self.job.alone or isinstance(mistake.__cause__, OSError):  # the disk fails the next patient too
                raise
            self.job.fail(patient, mistake)
            return
        self._done += 1
        now = time.monotonic()
        rate = 60 * self._done / (now - self._began)
        self._progress.update(
            self._task,
            completed=self._position(),
            description="reading",
            count=f"{self._done} of {len(self.job.pending)}, {rate:.1f} a minute",
        )
        after = "" if self.job.alone else f", {rate:.1f} patients a minute"
        self.job.say(f"{made}  {now - self._last:.1f} s{after}")
        self._last = now

    def _write(
        self, patient: str, prediction: Tensor, image: Float[Tensor, "views rows columns"], read: Sequence[str]
    ) -> Path:
        from drr2ct.pipeline.evaluation.metrics import REPROJECTION_FIGURES, ReprojectionMetric

        job = self.job
        destination = job.destinations[patient]
        _remove_stale(destination.volume)
        on_grid = place_on_grid(prediction, job.geometry)
        given = image * LINE_INTEGRAL_SCALE
        metric = ReprojectionMetric(job.geometry)
        reprojection = dict(zip(REPROJECTION_FIGURES, metric([on_grid], [given])[0].tolist(), strict=True))
        mode = job.description["mode"]
        if job.ct is not None:
            volume = place_like(prediction, job.geometry, job.ct, mode)
        elif job.size is not None and job.size != job.geometry.grid.size:
            volume = place_resized(prediction, job.geometry, job.size)
        else:
            volume = on_grid
        assumptions = [*read, *self._assumptions(mode)]
        statistics = job.description.get("radiographs")
        warning = distribution_warning(image, statistics)
        if statistics is None:
            assumptions.append(
                "It was not checked whether the radiographs look like the training set's, as the checkpoint holds no "
                "statistics of those."
            )
        warnings = [] if warning is None else [warning]
        error, bias = (reprojection[name] for name in REPROJECTION_FIGURES)
        if not job.alone:
            job.say(f"{patient}:")
        for text in assumptions:
            if text not in self._said:  # of several patients, what is new; each record has all
                self._said.add(text)
                job.say(f"  assumed: {text}")
        for text in warnings:
            job.say(f"  warning: {text}")
        job.say(
            f"  the volume's own radiographs differ from those given by {error:.3f} on average (bias {bias:+.3f}), "
            f"in line integrals whose mean is {float(given.mean()):.3f}"
        )
        record = {
            "format": RECORD_FORMAT,
            "patient": patient,
            "note": NOTE,
            "volume": destination.volume.name,
            "units": "HU",
            "shape": list(volume.shape[1:]),
            "spacing_mm": np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0).tolist(),
            "affine": volume.affine.tolist(),
            "assumptions": assumptions,
            "warnings": warnings,
            **reprojection,
            "radiographs_mean": float(given.mean()),
            "radiographs": [str(path) for item in job.pending if item["patient"] == patient for path in item["image"]],
            "checkpoint": str(job.checkpoint),
            "network": job.description["name"],
            "epoch": job.description.get("epoch"),
            "precision": self.precision,
            "geometry": job.geometry.to_dict(),
            "versions": versions(),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "key": job.keys[patient],
        }
        try:
            self._write_files(destination, patient, volume, on_grid, given, record)
        except OSError as error:
            raise InputError(
                f"{destination.volume} cannot be written ({error.strerror or error}); what is complete is kept."
            ) from error
        return destination.volume

    def _assumptions(self, mode: str) -> list[str]:
        job, grid = self.job, self.job.geometry.grid
        found = []
        if job.ct is not None:
            centre = ", ".join(f"{c:.1f}" for c in job.ct.meta["isocentre"])
            found.append(
                f"The isocentre is the centre of the bounding box of {job.like}, at ({centre}) mm; the volume is "
                f"interpolated from {grid.size}³ voxels of {grid.spacing_mm:.3g} mm onto that CT's."
            )
        else:
            found.append("The isocentre is the origin of the volume's coordinates.")
        if job.size is not None and job.size != grid.size:
            found.append(
                f"The volume is interpolated from {grid.size}³ to {job.size}³ voxels; that adds no detail to it."
            )
        if mode == "resize" and job.ct is None:
            found.append(
                f"The network was trained on CTs stretched to a cube: a voxel's size of {grid.spacing_mm:.3g} mm "
                "is nominal; give the patient's CT (like) for the true one."
            )
        return found

    def _write_files(
        self,
        destination: Destination,
        patient: str,
        volume: MetaTensor,
        on_grid: MetaTensor,
        given: Float[Tensor, "views rows columns"],
        record: Mapping[str, Any],
    ) -> None:
        from drr2ct.pipeline.pictures.figures import planes_figure, save_figure

        job = self.job
        record_path = destination.beside(".json")
        record_path.unlink(missing_ok=True)  # until it is there again, the patient is unfinished
        if destination.format == "dicom":
            from drr2ct.pipeline.volumes.dicom_output import write_dicom_series

            about = f"Network {job.description['name']}, drr2ct {record['versions']['drr2ct']}."
            write_dicom_series(destination.volume, volume, patient, job.patient_id, about)
        else:
            if destination.format in ("nrrd", "mha") and job.ct is None:
                turned: Any = Orientation("LPS", labels=None)(volume)
                volume = turned  # their own axes: the direction is the identity
            write_volume(destination.volume, volume)
        if job.output is None or job.preview:
            save_figure(planes_figure(volume, f"{patient}: {DISCLAIMER}"), destination.beside(".png"))
        if job.preview:
            from drr2ct.pipeline.reports.preview import write_preview

            write_preview(destination.beside(".html"), on_grid, given, job.geometry, record)
        affine = volume.affine.tolist()
        write_json(record_path, {**record, "affine": affine, "shape": list(volume.shape[1:])})

    def _stop(self, *args: Any) -> None:
        self._progress.stop()
        for hook in self._hooks:
            hook.remove()
        if len(args) > 1 and isinstance(args[1], BaseException):
            raise args[1]  # ignite swallows an exception that a handler has seen


def _assumptions(evaluator: Engine) -> list[list[str]]:
    """What reading the batch's radiographs assumed, per patient."""
    batch: Any = evaluator.state.batch
    texts = batch["assumptions"] if isinstance(batch, Mapping) else [sample["assumptions"] for sample in batch]
    return [str(text).splitlines() for text in ([texts] if isinstance(texts, str) else texts)]


def _on_parts(network: nn.Module, done: Callable[[float], None]) -> list[Any]:
    """Call ``done`` with the share of the network's parts that have run, after each."""
    parts = [
        part
        for child in network.children()
        for part in (child if isinstance(child, nn.ModuleList) else [child])
        if any(True for _ in part.parameters())
    ]

    def hook(number: int) -> Callable[..., None]:
        return lambda *_: done(number / (len(parts) + 1))

    return [part.register_forward_hook(hook(number)) for number, part in enumerate(parts, 1)]


def _remove_stale(volume: Path) -> None:
    """Temporary files of the same volume that a killed run left."""
    for path in volume.parent.glob(f".{'[0-9a-f]' * 32}.{glob.escape(volume.name)}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def reconstruct(checkpoint: str | Path, **settings: Any) -> list[Path]:
    """Reconstruct one patient from radiographs, or every patient of a folder: what ``drr2ct reconstruct`` does.

    Args:
        checkpoint: of a training.
        **settings: keys of ``inference.yaml``: ``radiographs`` (one file per view) or ``dataset_dir``, ``output`` or
            ``output_dir``, ``intensity``, and so on.

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

    overrides = {"checkpoint": str(checkpoint), **{key: plain(value) for key, value in settings.items()}}
    try:
        results = run_bundle([bundle_file("configs/inference.yaml")], overrides, keep_config=False)
    except RuntimeError as error:  # MONAI wraps what a configuration raises
        mistake = find_input_error(error)
        if mistake is None:
            raise
        raise mistake from error
    return results[-1]
