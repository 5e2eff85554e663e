"""Which CT of a patient to use: finding series in a tree of files, judging them by their headers, reading the best.

A *candidate* is what could become a volume: one DICOM series (or the part of it that shares orientation, matrix and
pixel spacing, where a series mixes several), or one NIfTI, NRRD, MHA or MHD file. Headers alone decide which are
usable and in which order they are tried; only the chosen one is read. The rules, in order:

1. it must be a CT in axial slices, on a straight and evenly spaced stack, without gantry tilt, of 8 slices or more;
2. most slices;
3. a soft-tissue kernel before an unknown one before a sharp one, where the header names it;
4. original before derived images; then the smallest pixels; then the path, so that the choice never varies.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder

from drr2ct.pipeline.data.datalist import VOLUME_SUFFIXES
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT, bounding_box_centre, check_ct

MIN_SLICES = 8
MAX_TILT_DEG = 0.5
"""A stack that leans more than this against its slices was acquired with a tilted gantry."""
POSITION_TOLERANCE = 0.1
"""How far a slice may lie from its place in an even stack, as a fraction of the spacing."""
THICK_SLICES_MM = 5.0
"""Slices further apart are used, and noted."""

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_ANONYMOUS_STEMS = ("ct", "image", "img", "scan", "volume")
_CODECS = "install pylibjpeg with pylibjpeg-libjpeg and pylibjpeg-openjpeg, or python-gdcm, or decompress the files"
_AGAIN = "copy it again"
_REPAIR = "repair the header"
_NO_VOLUME = f"give a CT of {MIN_SLICES} or more"
_TAGS = [
    "BitsAllocated", "Columns", "ConvolutionKernel", "GantryDetectorTilt",
    "ImageOrientationPatient", "ImagePositionPatient", "ImageType", "Modality", "NumberOfFrames",
    "PatientID", "PixelSpacing", "Rows", "SOPInstanceUID", "SamplesPerPixel", "SeriesInstanceUID",
    "StudyDate", "StudyInstanceUID",
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What one DICOM file says about itself, as far as choosing a series needs it.

    ``patient`` is empty where the file names none; lengths are mm; ``missing_bytes`` counts what the pixel data lack.
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


@dataclass(frozen=True)
class Candidate:
    """What could become a patient's CT.

    Args:
        patient: as the DICOM header or the file's place names it.
        study: groups what belongs to one examination; sorts by date where that is known.
        files: the slices in the order of the stack, or the one file.
        dicom: a DICOM series, not a volume file.
        slices: how many.
        voxel_mm: (column, row, slice) spacing; empty if unknown.
        kernel: reconstruction kernel, if named.
        derived: the header says that the images are not original.
        reason: why it cannot be used; empty if it can.
        notes: what was noticed and does not hinder.
    """

    patient: str
    study: tuple[str, str]
    files: tuple[str, ...]
    dicom: bool
    slices: int = 0
    voxel_mm: tuple[float, ...] = ()
    kernel: str = ""
    derived: bool = False
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        """The file, or the folder of the first slice."""
        return Path(self.files[0]).parent if self.dicom and len(self.files) > 1 else Path(self.files[0])


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
        return _refused(path, "an archive; unpack it first")
    named = Path(path).suffix.lower() in _DICOM_SUFFIXES
    try:
        with Path(path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if stream.read(132)[128:] != b"DICM":
                if not named:
                    return None
                return _refused(path, f"{'an empty file' if size == 0 else 'not DICOM (no DICM mark)'}; {_AGAIN}")
            stream.seek(0)
            data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            remaining = size - stream.tell()  # the reader stops where the pixels begin
        return _header(path, data, remaining)
    except PermissionError:
        return _refused(path, "no permission to read the file; change its mode")
    except Exception as error:  # pydicom raises many kinds for damaged files
        return _refused(path, f"a damaged DICOM file ({type(error).__name__}); {_AGAIN}")


def _header(path: str, data: pydicom.Dataset, remaining: int) -> Header:
    def text(name: str) -> str:
        value = data.get(name)
        return "" if value is None else str(value[0] if isinstance(value, MultiValue) and value else value).strip()

    def numbers(name: str) -> tuple[float, ...]:
        value = data.get(name)
        if value is None or value == "":
            return ()
        return tuple(float(v) for v in (value if isinstance(value, (MultiValue, list)) else [value]))

    syntax = getattr(data.file_meta, "TransferSyntaxUID", None)
    compressed = syntax is not None and syntax.is_compressed
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
        has_pixels=remaining > 8 and needed > 0,
        missing_bytes=0 if compressed or syntax is None or syntax.is_deflated else max(0, needed - remaining),
    )


def _refused(path: str, reason: str) -> Candidate:
    return Candidate("", ("", ""), (path,), dicom=not is_volume_file(Path(path)), reason=reason)


def dicom_candidates(headers: Iterable[Header]) -> list[Candidate]:
    """Group DICOM files into stacks and judge each by its headers.

    Files of one series that differ in orientation, matrix or pixel spacing are separate stacks: some scanners keep
    the localiser and the scan in one series.
    """
    stacks: dict[tuple[object, ...], list[Header]] = defaultdict(list)
    for header in headers:
        rounded = tuple(round(v, 3) + 0.0 for v in (*header.orientation, *header.spacing))
        # in a series without an identifier, the folder holds it together
        series = header.series or str(Path(header.path).parent)
        stacks[header.patient, header.study, series, header.modality, header.shape, rounded].append(header)
    return [_judge_stack(sorted(stack, key=lambda header: header.path)) for stack in stacks.values()]


def _judge_stack(stack: list[Header]) -> Candidate:
    """The stack as a candidate: slices in order and copies dropped, or the first reason against it."""
    first = stack[0]
    candidate = Candidate(
        patient=first.patient,
        study=first.study,
        files=tuple(header.path for header in stack),
        dicom=True,
        slices=len(stack),
        kernel=first.kernel,
        derived="DERIVED" in first.image_type,
    )
    if reason := _refuse_images(stack):
        return replace(candidate, reason=reason)
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    by_position = sorted(stack, key=lambda header: float(normal @ header.position))
    kept = [by_position[0]]
    for header in by_position[1:]:
        if abs(normal @ np.subtract(header.position, kept[-1].position)) > 1e-3:
            kept.append(header)
        elif header.instance != kept[-1].instance and not _same_pixels(header.path, kept[-1].path):
            return replace(
                candidate,
                reason="two different slices at one position, so phases or reconstructions share the series; "
                "give each its own Series Instance UID",
            )
    notes = [f"{len(stack) - len(kept)} duplicate slices dropped"] if len(kept) < len(stack) else []
    candidate = replace(candidate, files=tuple(header.path for header in kept), slices=len(kept))
    if len(kept) < MIN_SLICES:
        return replace(candidate, reason=f"only {len(kept)} {_slices(len(kept))}; {_NO_VOLUME}")
    positions = np.array([header.position for header in kept])
    if reason := _refuse_positions(positions, normal, min(first.spacing)):
        return replace(candidate, reason=reason)
    thickness = float(np.linalg.norm(positions[-1] - positions[0])) / (len(kept) - 1)
    if thickness > THICK_SLICES_MM:
        notes.append(f"slices {thickness:.3g} mm apart")
    return replace(candidate, voxel_mm=(first.spacing[1], first.spacing[0], thickness), notes=tuple(notes))


def _refuse_images(stack: list[Header]) -> str:
    """Why these files cannot be axial CT slices; empty if they can."""
    first = stack[0]
    if first.modality != "CT":
        return f"modality {first.modality or 'unknown'}, not CT; nothing to do"
    if any("LOCALIZER" in header.image_type for header in stack):
        return "a localiser; nothing to do"
    if any(header.frames > 1 for header in stack):
        return "an enhanced multi-frame file; convert it to single slices or NIfTI (dcm2niix does)"
    if not all(header.has_pixels for header in stack):
        return "DICOM without pixels; download the series again"
    if any(header.missing_bytes for header in stack):
        return f"truncated pixel data in {Path(next(h.path for h in stack if h.missing_bytes)).name}; {_AGAIN}"
    if any(len(header.position) != 3 for header in stack) or len(first.orientation) != 6:
        return (
            "no Image Position or Image Orientation (Patient), so where the slices lie is unknown; "
            "export the series again with its geometry"
        )
    numbers = [*first.spacing, *first.orientation, *(v for header in stack for v in header.position)]
    if len(first.spacing) != 2 or not all(map(math.isfinite, numbers)) or min(first.spacing) <= 0:
        return f"pixel spacing {'×'.join(f'{v:g}' for v in first.spacing) or 'missing'} mm is not usable; {_REPAIR}"
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 1e-2:
        return f"the axes of Image Orientation (Patient) are not perpendicular unit vectors; {_REPAIR}"
    axis = int(np.abs(np.cross(row, column)).argmax())
    if axis != 2:
        return f"{('sagittal', 'coronal')[axis]}, not axial; use the series it was made from"
    return _tilt_contradiction(first)


def _refuse_positions(positions: Float[np.ndarray, "slices 3"], normal: Float[np.ndarray, 3], pixel_mm: float) -> str:
    """Why these slice positions are not a straight, even stack; empty if they are."""
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    whole = positions[-1] - positions[0]
    along = float(normal @ whole)
    lean = math.degrees(math.atan2(float(np.linalg.norm(whole - along * normal)), along))
    if lean > MAX_TILT_DEG:
        return f"gantry tilt of {lean:.1f}°, so the slices are sheared; resample them to an upright stack first"
    missing = int(np.rint(steps / usual - 1).clip(min=0).sum())
    if missing:
        where = positions[:-1][steps > 1.5 * usual][0]
        plural = "s are" if missing > 1 else " is"
        return f"{missing} slice{plural} missing, the first after z = {where[2]:g} mm; download the series again"
    even = positions[0] + np.linspace(0, 1, len(positions))[:, None] * whole
    offsets = positions - even
    if np.abs(offsets @ normal).max() > POSITION_TOLERANCE * usual:
        return f"uneven slice spacing, {steps.min():.3g} to {steps.max():.3g} mm; resample the series evenly first"
    if np.linalg.norm(offsets, axis=1).max() > max(pixel_mm, POSITION_TOLERANCE * usual):
        return "the slices are shifted against each other; resample the series to a straight stack first"
    return ""


def _slices(count: int) -> str:
    return "slice" if count == 1 else "slices"


def _same_pixels(first: str, second: str) -> bool:
    try:
        return np.array_equal(pydicom.dcmread(first).pixel_array, pydicom.dcmread(second).pixel_array)
    except Exception:  # what cannot be decoded cannot be shown to be a copy
        return False


def _tilt_contradiction(header: Header) -> str:
    """A tilt that the header declares although its slices are upright: corrected, or lost? Empty if there is none."""
    if abs(header.tilt_deg) <= MAX_TILT_DEG or len(header.orientation) != 6:
        return ""
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    if abs(normal[2]) < math.cos(math.radians(MAX_TILT_DEG)):
        return ""  # the orientation shows the tilt, so the positions say whether the stack leans
    return f"gantry tilt of {header.tilt_deg:g}° in a header whose slices are upright; correct whichever is wrong"


def file_candidate(path: Path, root: Path, patient_pattern: str | None) -> Candidate:
    """Judge a volume file by its header.

    Args:
        path: NIfTI, NRRD, MHA or MHD.
        root: of the tree.
        patient_pattern: regular expression, see :func:`patient_of_file`.
    """
    candidate = Candidate(patient_of_file(path, root, patient_pattern), ("", str(path)), (str(path),), dicom=False)
    if re.search(r"_drr\.nii(\.gz)?$", path.name):
        return replace(candidate, reason="a radiograph, by its name; nothing to do")
    try:
        if path.stat().st_size == 0:
            return replace(candidate, reason=f"an empty file; {_AGAIN}")
        with path.open("rb"):  # nibabel and ITK do not tell a lack of permission from damage
            pass
        if path.name.lower().endswith((".nii", ".nii.gz")):
            image: Any = nib.load(path)  # nibabel types it as a base class without these attributes
            shape, affine, kind = image.shape, np.asarray(image.affine), image.header.get_data_dtype()
            eight_bits = kind.itemsize == 1
        else:
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            shape = reader.GetSize()
            eight_bits = reader.GetPixelID() in (sitk.sitkUInt8, sitk.sitkInt8)
            affine = np.eye(4)
            if len(shape) == 3:
                affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    except PermissionError:
        return replace(candidate, reason="no permission to read the file; change its mode")
    except Exception:  # nibabel, gzip and ITK raise many kinds for damaged files
        return replace(candidate, reason=f"a header that cannot be read, truncated or of another type; {_AGAIN}")
    if len(shape) != 3:
        sizes = "×".join(map(str, shape))
        return replace(candidate, reason=f"{len(shape)} dimensions ({sizes}); extract one volume")
    if eight_bits:
        return replace(candidate, reason="8-bit numbers, a label map or a picture; give the CT in HU")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    singular = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * spacing.prod()
    if singular:
        return replace(
            candidate, reason=f"voxel spacing {'×'.join(f'{v:g}' for v in spacing)} mm is not usable; {_REPAIR}"
        )
    upright = int(np.abs(affine[2, :3] / spacing).argmax())
    order = [axis for axis in range(3) if axis != upright] + [upright]
    candidate = replace(
        candidate, slices=int(shape[upright]), voxel_mm=tuple(float(v) for v in spacing[order].round(6))
    )
    if candidate.slices < MIN_SLICES:
        return replace(candidate, reason=f"only {candidate.slices} {_slices(candidate.slices)}; {_NO_VOLUME}")
    notes = (f"slices {candidate.voxel_mm[2]:.3g} mm apart",) if candidate.voxel_mm[2] > THICK_SLICES_MM else ()
    return replace(candidate, notes=notes)


def patient_of_file(path: Path, root: Path, pattern: str | None) -> str:
    """The patient a volume file belongs to: its name without suffix, or its folder's if it is just ``ct`` or the like.

    Args:
        path: the file.
        root: of the tree.
        pattern: searched in the path relative to ``root``; its first group (or the whole match) is the patient.
    """
    if pattern is not None and (match := re.search(pattern, path.relative_to(root).as_posix())):
        return match.group(1) if match.groups() else match.group(0)
    stem = next(path.name[: -len(suffix)] for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix))
    return path.parent.name if stem.lower() in _ANONYMOUS_STEMS and path.parent != root else stem


def kernel_rank(kernel: str) -> int:
    """0 for a soft-tissue kernel, 1 for an unknown one, 2 for a sharp (lung, bone) one.

    By the vendors' names: GE words, Philips letters, Siemens numbers (B/Br/I… below 50 are soft), Canon FC numbers
    (FC01…FC29 are soft).
    """
    name = kernel.strip().upper()
    if any(word in name for word in ("SOFT", "STANDARD", "STND", "MEDIAST")) or name in ("A", "B", "C"):
        return 0
    if any(word in name for word in ("LUNG", "BONE", "EDGE", "DETAIL", "SHARP")) or re.match(r"(D|E|L|Y[A-D])$", name):
        return 2
    if match := re.match(r"FC(\d+)", name):
        return 0 if int(match[1]) < 30 else 2
    if match := re.match(r"(?:B|I|J|BR|BF|BV|BL|HR|QR|BI)(\d\d)", name):
        return 0 if int(match[1]) < 50 else 2
    return 1


def preference(candidate: Candidate) -> tuple[object, ...]:
    """Sort key: the candidate to use comes first."""
    return (
        bool(candidate.reason),
        -candidate.slices,
        kernel_rank(candidate.kernel),
        candidate.derived,
        candidate.voxel_mm,
        candidate.files,
    )


def read_candidate(candidate: Candidate) -> MetaTensor:
    """The volume of a usable candidate, in HU.

    Returns:
        (1, I, J, K) float32 with the RAS+ affine and the isocentre in ``meta["isocentre"]``.

    Raises:
        InputError: if the pixels cannot be read or are no CT in HU; see :func:`drr2ct.transforms.volume.check_ct`.
    """
    if not candidate.dicom:
        return LoadCT()(candidate.files[0])
    image = _read_slices(candidate.files)
    check_ct(image, "the series")
    image.meta["isocentre"] = [float(v) for v in bounding_box_centre(image)]
    return image


def _read_slices(files: Sequence[str]) -> MetaTensor:
    """Slices in order to a volume: rescale slope and intercept applied to each by its own header."""
    first, last = (
        pydicom.dcmread(files[0], stop_before_pixels=True),
        pydicom.dcmread(files[-1], stop_before_pixels=True),
    )
    rows, columns = int(first.Rows), int(first.Columns)
    stack = np.empty((len(files), rows, columns), dtype=np.float32)
    for target, path in zip(stack, files, strict=True):
        target[:] = _slice_in_hu(path)
    orientation = np.array(first.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    down, right = (float(v) for v in first.PixelSpacing)
    origin, end = (np.array(data.ImagePositionPatient, dtype=np.float64) for data in (first, last))
    affine = np.eye(4)
    affine[:3, :3] = np.stack(
        [orientation[0] * right, orientation[1] * down, (end - origin) / (len(files) - 1)], axis=1
    )
    affine[:3, 3] = origin
    affine = orientation_ras_lps(affine)
    return MetaTensor(torch.from_numpy(stack.transpose(2, 1, 0))[None], affine=torch.from_numpy(affine))


def _slice_in_hu(path: str) -> Float[np.ndarray, "rows columns"]:
    name = Path(path).name
    try:
        data = pydicom.dcmread(path)
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            # ITK's own decoders know the lossless JPEGs of hospital archives, and rescale as they read
            return sitk.GetArrayFromImage(sitk.ReadImage(path, sitk.sitkFloat32))[0]
        stored = data.pixel_array.astype(np.float32)
        slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
        return stored * np.float32(1 if slope is None else slope) + np.float32(0 if intercept is None else intercept)
    except Exception as error:  # depends on the transfer syntax and the decoders that are installed
        header = read_header(path)
        if isinstance(header, Header) and header.codec:
            raise InputError(
                f"slice {name} is compressed ({header.codec}) and cannot be decoded; {_CODECS}."
            ) from error
        raise InputError(f"slice {name} is damaged ({error}); copy the series again.") from error
