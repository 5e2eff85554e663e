"""Does a data set hold what it says? Files, HU, and whether stored radiographs show the CT beside them.

Each stored radiograph is compared with one rendered from the CT, as it is and turned: upside down, mirrored, both.
The comparison is the correlation of their detail (without slow shading), the best over small shifts, so it depends
neither on brightness nor on exact distances. A set whose turned images fit better was stored that way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from matplotlib.figure import Figure
from monai.data import MetaTensor
from rich.console import Console
from torch import Tensor

from drr2ct.pipeline.data.anatomy import decode_anatomy, twins
from drr2ct.pipeline.data.datalist import dataset_geometry, load_parts
from drr2ct.pipeline.data.patients import find_patients, read_folder
from drr2ct.pipeline.data.survey import Seen, aim_notes, is_variation, look_at
from drr2ct.pipeline.pictures.figures import save_figure
from drr2ct.pipeline.pictures.planes import mid_planes
from drr2ct.pipeline.pictures.scales import DISPLAY_WINDOW
from drr2ct.pipeline.running.progress import tracked
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.files import write_csv
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT

TURNS: Mapping[str, tuple[int, ...]] = {"upright": (), "feet first": (0,), "mirrored": (1,), "turned by 180°": (0, 1)}
"""How an image may be stored, and the axes that undo it."""
MIN_CORRELATION = 0.5
MARGIN = 0.02
"""By how much a turned image must fit better before the set is called turned."""
SCALE_TOLERANCE = 0.1

_SIZE = 128
_MAX_SHIFT = 12
_SHEET_PATIENTS = 24


@dataclass(frozen=True)
class PatientCheck:
    """One patient's findings.

    Args:
        patient: name.
        problems: what is wrong, one phrase each; empty if nothing is.
        of_turns: those of the problems that say how a view is stored.
        turns: how each view is stored, a key of :data:`TURNS` or "exchanged"; empty without stored radiographs.
        correlation: of each view with its rendering, as best turned.
        notes: what is no problem but should be known.
        seen: the look at the CT; None if it cannot be read.
        preview: what the contact sheet shows: the coronal plane in HU and the radiographs; empty if unreadable.
    """

    patient: str
    problems: tuple[str, ...]
    turns: tuple[str, ...] = ()
    correlation: tuple[float, ...] = ()
    preview: tuple[np.ndarray, ...] = ()
    of_turns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seen: Seen | None = None


def check_dataset(
    dataset_dir: str | Path,
    intensity: str = "line_integral",
    feet_first: bool = False,
    console: Console | None = None,
) -> list[PatientCheck]:
    """Check a data set, patient by patient.

    Args:
        dataset_dir: folder of patient folders.
        intensity: what stored radiographs hold; see ``read_radiograph``.
        feet_first: they are declared to have the feet in row 0.
        console: for progress; silent without.

    Raises:
        InputError: if there is no patient, or ``dataset.json`` or ``geometry.json`` is wrong.
    """
    root = Path(dataset_dir)
    geometry = dataset_geometry(root)
    views = [view.name for view in geometry.views]
    patients, left_out = read_folder(root, views)
    if not patients and not left_out:
        find_patients(root, views)  # says what was expected
    home: dict[str, str] = {}
    listed: dict[str, Mapping[str, Any]] = {}
    if (root / "dataset.json").is_file():
        for part, items in load_parts(root, views).items():
            home |= {str(item["patient"]): part for item in items}
            listed |= {str(item["patient"]): item for item in items}
    # aimed as a training would be
    patients = [{**item, **_aim(listed.get(str(item["patient"]), item))} for item in patients]
    checks = (check_patient(item, geometry, intensity, feet_first) for item in patients)
    found = list(tracked(checks, len(patients), console or Console(quiet=True), "patients"))
    found = _with_twins(found, home, {name for name, item in listed.items() if is_variation(item)})
    found += [PatientCheck(missing.patient, (missing.reason,)) for missing in left_out]
    return sorted(found, key=lambda check: check.patient)


def _aim(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"isocentre": item["isocentre"]} if "isocentre" in item else {}


def _with_twins(checks: Sequence[PatientCheck], home: Mapping[str, str], varied: Set[str]) -> list[PatientCheck]:
    """The checks, with CTs that several patients show named: a problem where two parts have one.

    Args:
        checks: of all patients.
        home: part of each patient in ``dataset.json``.
        varied: patients that were made from another's CT.
    """
    seen = {c.patient: decode_anatomy(c.seen.anatomy) for c in checks if c.seen is not None and c.patient not in varied}
    same = twins(seen)
    found = []
    for check in checks:
        if (other := same.get(check.patient)) is None:
            found.append(check)
        elif home.get(check.patient) == home.get(other):
            found.append(replace(check, notes=(*check.notes, f"shows the CT of {other}")))
        else:
            problem = f"shows the CT of {other}, which is in {home.get(other)}, not in {home.get(check.patient)}"
            found.append(replace(check, problems=(*check.problems, problem)))
    return found


def check_patient(
    item: Mapping[str, Any], geometry: BiplanarGeometry, intensity: str, feet_first: bool
) -> PatientCheck:
    """Check one item of a data list."""
    try:
        ct = LoadCT()(item["label"], item.get("isocentre"), item.get("slices", ()))
    except InputError as error:
        return PatientCheck(item["patient"], (str(error).rstrip("."),))
    seen = look_at(ct)
    check = _check_pictures(item, ct, geometry, intensity, feet_first)
    return replace(check, notes=aim_notes(seen, ct.meta["isocentre"], geometry.grid), seen=seen)


def _check_pictures(
    item: Mapping[str, Any], ct: MetaTensor, geometry: BiplanarGeometry, intensity: str, feet_first: bool
) -> PatientCheck:
    """The CT's numbers, and whether stored radiographs show it."""
    patient = item["patient"]
    problems = _implausible_hu(ct)
    # the detail that is compared survives 128 pixels
    rows, columns = geometry.detector_size
    small = geometry.resized(detector_size=(_SIZE, _SIZE)) if rows == columns else geometry
    rendered = render_drr(ct, small, isocentre=ct.meta["isocentre"])
    coronal = mid_planes(ct)["coronal"]
    if "image" not in item:
        return PatientCheck(patient, tuple(problems), preview=(coronal, *rendered.numpy()))
    load = LoadRadiographsd("image", small, intensity, vertical_flip=feet_first, check_order=False)
    try:
        stored = load({"image": item["image"]})["image"].as_tensor()
    except InputError as error:
        return PatientCheck(patient, (*problems, str(error).rstrip(".")), preview=(coronal,))
    details = [_detail(image) for image in stored]
    spectra = [{turn: _spectrum(d.flip(axes)) for turn, axes in TURNS.items()} for d in details]
    # view of the stored image, view of the rendering → correlation by turn
    truths = [_spectrum(_detail(truth)) for truth in rendered]
    fits = [[{turn: _match(s, truth) for turn, s in turns.items()} for truth in truths] for turns in spectra]
    if exchanged := _exchanged([[max(fit.values()) for fit in row] for row in fits]):
        first, second = (geometry.views[i].name for i in exchanged)
        exchange = f"{first} and {second} are stored exchanged"
        preview = (coronal, *stored.numpy())
        each = ("exchanged",) * len(stored)
        return PatientCheck(patient, (*problems, exchange), each, preview=preview, of_turns=(exchange,))
    turns, correlations, of_turns = [], [], []
    for index, (view, image, truth) in enumerate(zip(geometry.views, stored, rendered, strict=True)):
        scores = fits[index][index]
        best = max(scores, key=lambda turn: scores[turn])
        turn = best if scores[best] > scores["upright"] + MARGIN else "upright"
        turns.append(turn)
        correlations.append(scores[turn])
        if scores[turn] < MIN_CORRELATION:
            problems.append(f"{view.name} does not show this CT (correlation {scores[turn]:.2f})")
        elif turn != "upright":
            of_turns.append(
                f"{view.name} is stored {turn} (correlation {scores[turn]:.2f}, as it is {scores['upright']:.2f})"
            )
            problems.append(of_turns[-1])
        elif intensity == "line_integral":
            ratio = float(image.sum() / truth.sum())
            if abs(ratio - 1) > SCALE_TOLERANCE:
                problems.append(f"{view.name} is {ratio:.2f} times the rendered line integrals")
    preview = (coronal, *stored.numpy())
    return PatientCheck(patient, tuple(problems), tuple(turns), tuple(correlations), preview, tuple(of_turns))


def _exchanged(fits: Sequence[Sequence[float]]) -> tuple[int, int] | None:
    """Two views of which each shows clearly more of the other, however it is turned; image × view → correlation."""
    for j in range(len(fits)):
        for i in range(j):
            if min(fits[i][j] - fits[i][i], fits[j][i] - fits[j][j]) > MARGIN:
                return i, j
    return None


def _implausible_hu(ct: MetaTensor) -> list[str]:
    values = ct.as_tensor()
    tissue = float(((values > -150) & (values < 150)).float().mean())
    problems = []
    if tissue < 0.03:
        problems.append(f"only {100 * tissue:.1f} % of the CT are soft tissue (−150…150 HU)")
    if float(values.max()) < 200:
        problems.append(f"the CT reaches only {float(values.max()):.0f} HU, so it shows no bone")
    return problems


def detail_correlation(a: Float[Tensor, "rows columns"], b: Float[Tensor, "rows columns"]) -> float:
    """Correlation of two images' detail, the best over shifts of up to 12 of 128 pixels; 1 for the same content."""
    return _match(_spectrum(_detail(a)), _spectrum(_detail(b)))


def _match(first: Complex[Tensor, "256 129"], second: Complex[Tensor, "256 129"]) -> float:
    correlation = torch.fft.irfft2(first * second.conj(), s=(2 * _SIZE, 2 * _SIZE))
    shifts = torch.arange(-_MAX_SHIFT, _MAX_SHIFT + 1)
    return float(correlation[shifts][:, shifts].max())


def _spectrum(detail: Float[Tensor, "128 128"]) -> Complex[Tensor, "256 129"]:
    """Of the normalised detail, padded so that shifts do not wrap around."""
    return torch.fft.rfft2(detail / detail.norm().clamp(min=1e-9), s=(2 * _SIZE, 2 * _SIZE))


def _detail(image: Float[Tensor, "rows columns"]) -> Float[Tensor, "128 128"]:
    small = F.interpolate(image[None, None].double(), size=(_SIZE, _SIZE), mode="area")
    shading = small
    for kernel, padding in (((33, 1), (16, 0)), ((1, 33), (0, 16))):  # far cheaper than 33 × 33 at once
        shading = F.avg_pool2d(shading, kernel, stride=1, padding=padding, count_include_pad=False)
    detail = (small - shading)[0, 0]
    return detail - detail.mean()


def conclusions(checks: Sequence[PatientCheck]) -> list[str]:
    """What holds for the set as a whole, one sentence each; empty if it is fine."""
    sentences = []
    count = Counter(turn for check in checks for turn in set(check.turns))
    images = sum(bool(check.turns) for check in checks)
    if count["feet first"]:
        sentences.append(
            f"{count['feet first']} of {images} patients have radiographs that are stored feet first: if all have, "
            "set feet_first to true."
        )
    sentences += [
        f"{count[turn]} of {images} patients have radiographs that are stored {turn}: turn them before training."
        for turn in ("mirrored", "turned by 180°")
        if count[turn]
    ]
    if count["exchanged"]:
        sentences.append(
            f"{count['exchanged']} of {images} patients have two radiographs that are exchanged: rename their files."
        )
    others = sum(len(check.problems) > len(check.of_turns) for check in checks)
    if others:
        sentences.append(f"{others} of {len(checks)} patients have other problems; see check.csv.")
    return sentences


def write_check(checks: Sequence[PatientCheck], folder: str | Path, views: Sequence[str]) -> tuple[Path, Path]:
    """Write ``check.csv`` and ``contact-sheet.png`` (patients with problems first, at most 24) and return the paths."""
    folder = Path(folder)
    table = folder / "check.csv"
    rows = []
    for check in checks:
        correlation = " ".join(f"{value:.3f}" for value in check.correlation)
        said = "; ".join(check.problems), "; ".join(check.notes)
        rows.append([check.patient, "; ".join(check.turns), correlation, *said])
    write_csv(table, ["patient", "stored", "correlation", "problems", "notes"], rows)
    return table, save_figure(contact_sheet(checks, views), folder / "contact-sheet.png")


def contact_sheet(checks: Sequence[PatientCheck], views: Sequence[str]) -> Figure:
    """One row of pictures per patient: the CT's coronal plane and the radiographs, named by how they are stored."""
    shown = sorted(checks, key=lambda check: not check.problems)[:_SHEET_PATIENTS]
    columns = 1 + len(views)
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(2.1 * columns * across, 2.5 * down + 0.4), layout="constrained")
    figure.suptitle(f"{len(shown)} of {len(checks)} patients; red: problems")
    grid = figure.subplots(down, across * columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, check in enumerate(shown):
        row, start = divmod(number, across)
        panels = grid[row, start * columns : (start + 1) * columns]
        names = [
            check.patient[:24],
            *(f"{v}: {t}" for v, t in zip(views, check.turns or ("rendered",) * 9, strict=False)),
        ]
        colour = "tab:red" if check.problems else "black"
        panels[0].set_title(names[0], fontsize=8, color=colour)
        for index, (axes, picture) in enumerate(zip(panels, check.preview, strict=False)):
            low, high = DISPLAY_WINDOW if index == 0 else (0.0, float(picture.max()))
            # planes have voxels of any shape: show them as wide as the radiographs
            axes.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect="auto" if index == 0 else "equal")
            axes.set_title(names[index], fontsize=8, color=colour)
    return figure
