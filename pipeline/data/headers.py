"""Finding the files of a tree, and what a DICOM file says about itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drr2ct.pipeline.data.candidate import AGAIN, VOLUME_SUFFIXES, Candidate
from drr2ct.transforms.dicom_slices import tolerate_odd_values

if TYPE_CHECKING:
    import pydicom

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")


_FIRST_GROUPS = (b"\x08\x00", b"\x02\x00")
MAC_FILE = "a side file of macOS; nothing to do"
ARCHIVE = "an archive; unpack it first"
_OTHER_FORMATS = (
    ".nii.bz2", ".nii.xz", ".nii.zst", ".dcm.gz", ".mgz", ".mgh", ".mnc", ".npy", ".npz", ".gipl",
    ".vtk", ".vti", ".h5", ".hdf5", ".mat", ".tif", ".tiff",
)  # fmt: skip
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


PASS_TAGS = {
    "AcquisitionNumber": "Acquisition Number",
    "TemporalPositionIdentifier": "Temporal Position Identifier",
    "NominalPercentageOfCardiacPhase": "Nominal Percentage of Cardiac Phase",
    "TriggerTime": "Trigger Time",
    "ContrastBolusAgent": "Contrast/Bolus Agent",
    "SeriesDescription": "Series Description",
    "KVP": "KVP",
    "AcquisitionTime": "Acquisition Time",
    "ContentTime": "Content Time",
    "ConvolutionKernel": "Convolution Kernel",
    "ImageType": "Image Type",
}
"""What may tell the passes of one series apart, by keyword; the most telling first."""
_TAGS = [
    *PASS_TAGS, "BitsAllocated", "Columns", "GantryDetectorTilt",
    "ImageOrientationPatient", "ImagePositionPatient", "InstanceNumber", "Modality", "NumberOfFrames",
    "PatientID", "PixelSpacing", "RescaleIntercept", "RescaleType", "Rows", "SOPClassUID", "SOPInstanceUID",
    "SamplesPerPixel", "SeriesInstanceUID", "SliceThickness", "StudyDate", "StudyInstanceUID",
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What one DICOM file says about itself, as far as choosing a series needs it.

    ``patient`` is empty where the file names none; lengths are mm; ``missing_bytes`` counts what the pixel data lack;
    ``thickness`` is 0 if unknown; ``number`` is the Instance Number, None without; ``samples`` of a pixel are 3 in
    colours, and have ``bits``; ``passes`` holds the values of :data:`PASS_TAGS`, in that order.
    """

    path: str
    patient: str
    study: tuple[str, str]
    series: str
    instance: str
    modality: str
    image_type: tuple[str, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    shape: tuple[int, int]
    spacing: tuple[float, ...]
    kernel: str
    tilt_deg: float
    frames: int
    codec: str
    has_pixels: bool
    missing_bytes: int
    rescale_type: str
    has_intercept: bool
    thickness: float
    description: str
    number: int | None
    samples: int
    bits: int
    passes: tuple[str, ...]


class _UnknownSyntaxError(ValueError):
    """A transfer syntax that the standard has not; its UID is the message."""


def walk_files(root: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """All files below ``root``, sorted; symbolic links are followed, each folder and each file is given once.

    Only regular files: opening a named pipe would wait for ever.

    Args:
        root: where to start.
        on_error: gets what cannot be listed; the walk goes on.
    """
    seen: set[tuple[int, int]] = set()

    def is_new(path: Path) -> bool:
        try:
            status = path.stat()
        except OSError as error:  # a dangling or circular link, or no permission
            on_error(error)
            return False
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return False
        identity = (status.st_dev, status.st_ino)
        if identity in seen:
            return False
        seen.add(identity)
        return True

    def walk(folder: Path) -> Iterator[Path]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            on_error(error)
            return
        folders = []
        for entry in entries:
            path = Path(entry.path)
            if path.is_dir():
                folders.append(path)
            elif is_new(path):
                yield path
        for path in folders:
            if is_new(path):
                yield from walk(path)

    if is_new(root):
        yield from walk(root)


def is_volume_file(path: Path) -> bool:
    """A file that may hold a volume, by its name."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def read_header(path: str) -> Header | Candidate | None:
    """Header of a DICOM file, without its pixels.

    Returns:
        None for a file that is not DICOM by name or content, a :class:`Candidate` with a reason for a damaged one.
    """
    if path.lower().endswith(_ARCHIVE_SUFFIXES):
        return _refused(path, ARCHIVE)
    if path.lower().endswith(_OTHER_FORMATS):
        return replace(_refused(path, "a format that is not read; convert it to NIfTI from DICOM"), by_name=True)
    if Path(path).name.startswith("._"):
        return replace(_refused(path, MAC_FILE), by_name=True)
    named = Path(path).suffix.lower() in _DICOM_SUFFIXES
    try:
        with Path(path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(132)
            marked = start[128:] == b"DICM"
            # old archives write neither preamble nor meta header: the file begins with the first group itself
            if not (marked or named or start[:2] in _FIRST_GROUPS):
                return None
            if size == 0:
                return _refused(path, f"an empty file; {AGAIN}")
            import pydicom  # not at the top: who trains on NIfTI files needs none

            tolerate_odd_values()
            stream.seek(0)
            data: pydicom.Dataset
            try:
                data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=not marked)
            except Exception:
                if marked:
                    raise
                data = pydicom.Dataset()
            if not marked and "SOPClassUID" not in data and "Modality" not in data:
                return _refused(path, f"not DICOM (no DICM mark); {AGAIN}") if named else None
            remaining = size - stream.tell()  # the reader stops where the pixels begin
        return _header(path, data, remaining)
    except ModuleNotFoundError:  # no fault of the file
        raise
    except _UnknownSyntaxError as error:
        return _refused(path, f"the transfer syntax {error}, a vendor's own; export it again in one of the standard")
    except PermissionError:
        return _refused(path, "no permission to read the file; change its mode")
    except Exception as error:  # pydicom raises many kinds for damaged files
        return _refused(path, f"a damaged DICOM file ({type(error).__name__}); {AGAIN}")


def _header(path: str, data: pydicom.Dataset, remaining: int) -> Header:
    from pydicom.multival import MultiValue  # as in read_header

    def text(name: str) -> str:
        value = data.get(name)
        return "" if value is None else str(value[0] if isinstance(value, MultiValue) and value else value).strip()

    def numbers(name: str) -> tuple[float, ...]:
        value = data.get(name)
        if value is None or value == "":
            return ()
        return tuple(float(v) for v in (value if isinstance(value, (MultiValue, list)) else [value]))

    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_transfer_syntax:
        raise _UnknownSyntaxError(syntax)
    compressed = syntax is not None and syntax.is_compressed
    deflated = syntax is not None and syntax.is_deflated
    rows, columns = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
    frames = int(data.get("NumberOfFrames") or 1)
    needed = rows * columns * frames * int(data.get("SamplesPerPixel") or 1) * int(data.get("BitsAllocated") or 0) // 8
    return Header(
        path=path,
        patient=text("PatientID"),
        study=(text("StudyDate"), text("StudyInstanceUID")),
        series=text("SeriesInstanceUID"),
        instance=text("SOPInstanceUID"),
        modality=text("Modality"),
        image_type=tuple(str(value).upper() for value in data.get("ImageType") or ()),
        position=numbers("ImagePositionPatient"),
        orientation=numbers("ImageOrientationPatient"),
        shape=(rows, columns),
        spacing=numbers("PixelSpacing"),
        kernel=text("ConvolutionKernel"),
        tilt_deg=next(iter(numbers("GantryDetectorTilt")), 0.0),
        frames=frames,
        codec=syntax.name if syntax is not None and compressed else "",
        # a deflated file is unpacked as a whole, so how much is left of it says nothing
        has_pixels=needed > 0 and (remaining > 8 or deflated),
        missing_bytes=0 if compressed or deflated else max(0, needed - remaining),
        rescale_type=text("RescaleType"),
        has_intercept=data.get("RescaleIntercept") is not None,
        thickness=next(iter(numbers("SliceThickness")), 0.0),
        description=text("SeriesDescription"),
        number=int(number) if (number := data.get("InstanceNumber")) not in (None, "") else None,
        samples=int(data.get("SamplesPerPixel") or 1),
        bits=int(data.get("BitsAllocated") or 0),
        passes=tuple(
            " ".join(map(str, value)) if isinstance(value := data.get(tag), MultiValue) else str(value or "")
            for tag in PASS_TAGS
        ),
    )


def _refused(path: str, reason: str) -> Candidate:
    return Candidate("", ("", ""), (path,), dicom=not is_volume_file(Path(path)), reason=reason)
