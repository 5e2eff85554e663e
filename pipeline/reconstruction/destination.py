"""Where a reconstruction goes: the names of the files, decided by what the user gives as output and format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drr2ct.pipeline.volumes.files import VOLUME_ENDINGS, volume_ending
from drr2ct.transforms.validation import InputError

FORMATS = (*(ending[1:] for ending in VOLUME_ENDINGS), "dicom")

INTERVAL, DOUBT = "_interval.nii.gz", "_doubt.nii.gz"
"""Beside a volume: its lower and upper bounds, and half of what lies between."""


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

    def written(self, picture: bool, page: bool) -> list[Path]:
        """All that a reconstruction may write here, bounds included.

        Args:
            picture: a picture of the volume is wanted.
            page: a page to look into it is wanted.
        """
        more = [".json", INTERVAL, DOUBT, *([".png"] if picture else []), *([".html"] if page else [])]
        return [self.volume, *(self.beside(suffix) for suffix in more)]


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


def given_destination(
    patient: str, output: str | Path | None, output_dir: str | Path, format: str | None = None
) -> Destination:
    """Where a patient's reconstruction goes: the output if one is given, or else a folder of its own.

    Args:
        patient: its name.
        output: one volume file, or the folder of one DICOM series.
        output_dir: folder of patient folders, if ``output`` is not given.
        format: one of :data:`FORMATS`; by default what ``output`` ends in, or NIfTI.

    Raises:
        InputError: as :func:`file_destination`, or if the output is neither.
    """
    if output is None:
        return patient_destination(output_dir, patient, format)
    found = file_destination(output, format)
    if found is None:
        raise InputError(
            f"output {output} is no volume file ({', '.join(VOLUME_ENDINGS)}) and no DICOM folder (format "
            "dicom); for a folder of patients, give output_dir."
        )
    return found
