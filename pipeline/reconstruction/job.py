"""What is to be reconstructed, where it goes, and what is finished already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from monai.data import IterableDataset
from rich.console import Console

from drr2ct.pipeline.data.patients import recorded_isocentre
from drr2ct.pipeline.reconstruction.consistency import check_steps
from drr2ct.pipeline.reconstruction.destination import Destination, given_destination
from drr2ct.pipeline.reconstruction.record import file_sha256, is_finished
from drr2ct.pipeline.running.bundle import find_input_error
from drr2ct.pipeline.running.faults import origin
from drr2ct.pipeline.volumes.placing import refuse_too_large
from drr2ct.transforms.files import refuse_long_names, refuse_to_lose, refuse_unwritable
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError, existing_file
from drr2ct.transforms.volume import LoadCT

LARGEST_SIZE = 1024


class PatientsFailedError(InputError):
    """Some patients of a folder could not be reconstructed; the others were."""

    exit_status = 1


PageWriter = Callable[..., Any]
"""Writes a page to look at: to a path, of a volume on the grid, line integrals given, their geometry, and the record;
of a network with bounds also, as ``doubt``, half of what lies between them on the grid.

It is given to a job, since pages are made of what is reconstructed and not the other way round."""


StageWatcher = Callable[[str, float], Any]
"""Is told of a stage (``reading``, ``network``, ``comparing``, ``writing``), and how much of it is done."""


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
        description: that the checkpoint holds.
        output: one volume file, or the folder of one DICOM series; for one patient.
        output_dir: folder of patient folders, if ``output`` is not given.
        format: of ``drr2ct.pipeline.reconstruction.destination.FORMATS``; by default what ``output`` ends in, or NIfTI.
        size: interpolate to so many voxels along each axis.
        like: a CT on whose voxels the volume is put.
        patient_id: Patient ID in DICOM; the patient's name by default.
        preview: also write a page to look at (HTML) and its picture.
        write_page: that writes it.
        overwrite: replace what is there.
        consistency_steps: by which volumes are fitted to their radiographs; 0 leaves them as the network gives them.
        settings: what else the volume depends on, such as how radiographs are read; for the record and its key.
        console: where progress and assumptions are printed.
        watcher: is told how far each patient is.

    Raises:
        InputError: if the settings contradict each other, or something else is in the way.
    """

    items: Sequence[Mapping[str, Any]]
    geometry: BiplanarGeometry
    checkpoint: str | Path
    description: Mapping[str, Any]
    output: str | Path | None = None
    output_dir: str | Path = "reconstructions"
    format: str | None = None
    size: int | None = None
    like: str | Path | None = None
    patient_id: str | None = None
    preview: bool = False
    write_page: PageWriter | None = None
    overwrite: bool = False
    consistency_steps: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    console: Console = field(default_factory=Console)
    watcher: StageWatcher | None = None

    def __post_init__(self) -> None:
        _check(self)
        self.failures: dict[str, str] = {}
        self.ct = None if self.like is None else LoadCT()(self.like, recorded_isocentre(self.like))
        self.destinations = {
            patient: given_destination(patient, self.output, self.output_dir, self.format)
            for patient in (str(item["patient"]) for item in self.items)
        }
        self.keys: dict[str, dict[str, Any]] = {}
        self._common_key = _common_key(self)

    @cached_property
    def pending(self) -> list[Mapping[str, Any]]:
        """What is left to do; found out when it is first asked for, so that a configuration opens without files.

        Raises:
            InputError: if something else is in the way, nothing can be written there, a name is too long, what is read
                would be replaced, or the one patient's radiographs are missing.
        """
        films = [path for item in self.items for path in item["image"]]
        written = [path for place in self.destinations.values() for path in self._written(place)]
        refuse_long_names(written)
        refuse_to_lose(written, [*films, self.checkpoint, *([self.like] if self.like else [])])
        found = [item for item in self.items if self._is_pending(item)]
        if found:
            refuse_unwritable([self.destinations[str(found[0]["patient"])].beside(".json")])
        return found

    @property
    def alone(self) -> bool:
        """One patient: its failure is the job's."""
        return len(self.items) == 1

    def _written(self, destination: Destination) -> list[Path]:
        return destination.written(picture=self.output is None or self.preview, page=self.preview)

    def _is_pending(self, item: Mapping[str, Any]) -> bool:
        patient = str(item["patient"])
        try:
            radiographs = [file_sha256(existing_file(path, "radiograph")) for path in item["image"]]
        except (InputError, OSError) as error:
            mistake = error if isinstance(error, InputError) else InputError(f"radiographs of {patient}: {error}.")
            if self.alone:
                raise mistake from origin(mistake, error)
            self.fail(patient, mistake)
            return False
        destination = self.destinations[patient]
        key = {**self._common_key, "radiographs_sha256": radiographs}
        if destination.format == "dicom":
            key["names"] = [patient, self.patient_id or patient]  # they stand in the files
        self.keys[patient] = key
        # beside the films anything may lie, such as the patient's CT
        films = {Path(path).resolve().parent for path in item["image"]}
        own_folder = self.output is None and destination.volume.resolve().parent not in films
        return self.overwrite or not is_finished(destination, key, own_folder, self.preview)

    def fail(self, patient: str, mistake: InputError) -> None:
        """Note that a patient of several could not be reconstructed, and say so."""
        self.failures[patient] = str(mistake)
        self.say(f"{patient}: not reconstructed: {mistake}")

    def watch(self, stage: str, share: float = 0.0) -> None:
        """Tell who watches how far the patient is."""
        if self.watcher is not None:
            self.watcher(stage, share)

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


def _check(job: ReconstructionJob) -> None:
    """Refuse what contradicts itself, before anything is read."""
    if job.size is not None and not (isinstance(job.size, int) and 8 <= job.size <= LARGEST_SIZE):
        raise InputError(f"size {job.size} is not a whole number of voxels from 8 to {LARGEST_SIZE}.")
    if job.size is not None:
        refuse_too_large(job.size, bool(job.description.get("config", {}).get("interval")))
    if job.size is not None and job.like is not None:
        raise InputError("give either a size or a CT whose voxels to use (like), not both.")
    if len(job.items) > 1 and (job.output is not None or job.like is not None):
        what = "output file" if job.output is not None else "CT to be like"
        raise InputError(f"{len(job.items)} patients cannot share one {what}; give output_dir, and no like.")
    check_steps(job.consistency_steps, job.description["mode"])
    if job.preview and job.write_page is None:
        raise InputError(
            "a preview is asked for, but the job has nothing that writes the page; give it write_page, such as "
            "drr2ct.pipeline.reports.preview.write_preview."
        )


def _common_key(job: ReconstructionJob) -> dict[str, Any]:
    """What all patients' volumes depend on."""
    return {
        "checkpoint_sha256": file_sha256(existing_file(job.checkpoint, "checkpoint")),
        "like_sha256": None if job.like is None or Path(job.like).is_dir() else file_sha256(Path(job.like)),
        "settings": {
            "size": job.size,
            "like": None if job.like is None else str(job.like),
            "consistency_steps": job.consistency_steps,
            **job.settings,
        },
    }


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
