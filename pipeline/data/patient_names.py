"""Who is the patient, and what is the file: read from where volume files lie and what they are called.

Public data sets name their files in two ways: by patient (``img0001.nii.gz``, ``coronacases_001.nii.gz``), or by role
in a folder of the patient (``s0001/ct.nii.gz``, ``case_00001/imaging.nii.gz``). A name that recurs in many folders is
a role; the folder is the patient then.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from drr2ct.pipeline.data.candidate import VOLUME_SUFFIXES

_ROLE_STEMS = {"ct", "image", "imaging", "img", "scan", "volume", "ct_res", "ctres", "ct_resampled"}
_RESAMPLED = {"ctres", "res", "resampled", "registered", "warped", "deformed"}
_OTHER_ROLES: Mapping[str, set[str]] = {
    "a mask": {"seg", "segmentation", "segmentations", "mask", "masks", "msk", "label", "labels", "labelmap", "roi"}
    | {"contour", "contours", "annotation", "annotations"},
    "a dose": {"dose", "rtdose"},
    "a PET": {"pet", "suv"},
    "a cone-beam CT": {"cbct"},
    "an MR image": {"mri", "t1w", "t2w", "flair", "adc"},
    "a projection of slabs": {"mip", "minip"},
}
_MASK_FOLDERS = _OTHER_ROLES["a mask"] | {"labelstr", "labelsts", "labelsva", "instances", "rtstruct"}
_WITHIN_PATIENT = re.compile(
    r"cts?|nii|nifti|images?|imaging|img|scans?|data|raw|rawdata|volumes?|dicom|anat|pre-?op|post-?op|baseline"
    r"|(?:follow-?up|series|study|session|ses|visit|timepoint)[ _-]?\d*.*"
    r"|\d{1,2}-\d{1,2}-\d{4}.*|(?:19|20)\d\d-?(?:0[1-9]|1[0-2])-?[0-3]\d.*",
    re.IGNORECASE,
)
"""Folders that stand for an examination or a kind of file, as TCIA, BIDS and others name them."""


_CHANNEL = r"(.*\d.*)_(000\d)"


def stem_of(path: PurePath) -> str:
    """A volume file's name without its suffix."""
    name = path.name
    return next((name[: -len(s)] for s in VOLUME_SUFFIXES if name.lower().endswith(s)), path.stem)


def other_role(relative: PurePath) -> str:
    """What a file is that is no CT, by the words in its name and its folders' names; empty if they name nothing else.

    Args:
        relative: its path within the tree.
    """
    stem = stem_of(relative)
    words = _words(stem)
    if relative.parent.name == stem:
        return ""  # the patient's own name, whatever it means
    for role, names in _OTHER_ROLES.items():
        # with a number it may be a patient's name: a collection's (FDG-PET-042), or a study's
        numbered = role != "a mask" and re.search(r"\d{2}", stem)
        if names & words and not numbered and "ct" not in words:
            return role
    if re.search(r"(?:^|[_-])mr$", stem, re.IGNORECASE):
        return "an MR image"
    folders = [_words(folder) for folder in relative.parts[:-1]]
    # a collection called CT-Seg holds both
    masks = any(_MASK_FOLDERS & (folder - {"seg"} if "ct" in folder else folder) for folder in folders)
    return "a mask" if masks else ""


def is_resampled(path: PurePath) -> bool:
    """The name says that it was made of another CT."""
    return bool(_RESAMPLED & _words(stem_of(path)))


def _words(name: str) -> set[str]:
    return {word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.lower())} - {""}


def name_patients(paths: Sequence[Path], root: Path) -> dict[Path, tuple[str, str]]:
    """The patient and the examination of each volume file.

    Args:
        paths: of the CTs among them; masks and the like would be taken for patients' folders.
        root: of the tree.

    Returns:
        For each path the patient's name, and what files of one examination share.
    """
    folders_of: dict[str, set[Path]] = defaultdict(set)
    stems_in: dict[Path, set[str]] = defaultdict(set)
    for path in paths:
        folders_of[stem_of(path).lower()].add(path.parent)
        stems_in[path.parent].add(stem_of(path).lower())
    return {path: _name(path, root, folders_of, stems_in) for path in paths}


def _name(
    path: Path, root: Path, folders_of: Mapping[str, set[Path]], stems_in: Mapping[Path, set[str]]
) -> tuple[str, str]:
    stem = stem_of(path)
    above = path.relative_to(root).parts[:-1]
    if not above:
        return stem, str(path)
    if _is_role(stem.lower(), folders_of, stems_in):
        # the deepest folder that does not stand for an examination
        names = [folder for folder in above if not _WITHIN_PATIENT.fullmatch(folder)]
        return (names or above)[-1], str(path.parent)
    # <patient>/…/<patient>_ct, as BIDS has it: the topmost, since <patient>/<patient>_a/<patient>_a_1 is one person
    if channel := re.fullmatch(_CHANNEL, stem):
        others = [match for other in stems_in[path.parent] if (match := re.fullmatch(_CHANNEL, other))]
        people, channels = {match[1] for match in others}, {match[2] for match in others}
        # <patient>_0000, <patient>_0001: nnU-Net's images of one patient; more patients than images of each
        if len(people) > len(channels) > 1 and "0000" in channels:
            return channel[1], str(path)
    owners = [f for f in above if re.search(r"\d", f) and re.match(rf"{re.escape(f)}(?![a-z0-9])", stem, re.IGNORECASE)]
    return (owners[0] if owners else stem), str(path)


def _is_role(stem: str, folders_of: Mapping[str, set[Path]], stems_in: Mapping[Path, set[str]]) -> bool:
    if stem in _ROLE_STEMS:
        return True
    folders = folders_of[stem]
    if len(folders) < 2:
        return False
    numbered = re.search(r"\d", stem) is not None
    if numbered != all(re.search(r"\d", folder.name) for folder in folders):
        return not numbered
    # the axis along which there are more is that of the patients
    return len(folders) > len(set().union(*(stems_in[folder] for folder in folders)))


def printable(text: str) -> str:
    """A file's name as text: names that are not UTF-8 are read as Latin-1, as Windows wrote them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode("cp1252", errors="replace")
    return text
