"""What is looked at once in every CT: its anatomy, its lungs, its height; and what follows for where the views aim.

``prepare`` keeps it beside each patient. For other data sets ``train`` looks at its start and keeps it in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from rich.console import Console

from drr2ct.pipeline.data.anatomy import anatomy_of, decode_anatomy, encode_anatomy, twins
from drr2ct.pipeline.data.cache import stamp
from drr2ct.pipeline.data.patients import record_beside
from drr2ct.pipeline.running.distributed import is_main_process, share, wait
from drr2ct.pipeline.running.progress import tracked
from drr2ct.pipeline.running.workers import worker_pool
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import VolumeGrid
from drr2ct.transforms.lungs import Lungs, find_lungs
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT, bounding_box_centre

LEAST_SHARE_GAINED = 0.05
"""Aiming at the lungs is proposed where the cube would hold so much more of them."""
SHORT_SCAN = 1 / 3
"""Scans of less than this part of the cube's height are named."""

_FORMAT = 1
_PROCESSES_FROM = 16
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What a look at a CT gives.

    Args:
        anatomy: of ``encode_anatomy``.
        lungs: None if there are none.
        centre: of the scan's bounding box, patient coordinates, mm.
        height_mm: of the scan, along the patient.
    """

    anatomy: str
    lungs: Lungs | None
    centre: tuple[float, float, float]
    height_mm: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Seen:
        """Inverse of :meth:`to_dict`; other entries are ignored.

        Raises:
            KeyError, TypeError, ValueError: if something is missing.
        """
        lungs = data["lungs"]
        found = None if lungs is None else Lungs(_point(lungs["low"]), _point(lungs["high"]), float(lungs["litres"]))
        decode_anatomy(data["anatomy"])
        return cls(data["anatomy"], found, _point(data["centre"]), float(data["height_mm"]))


def _point(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z


def look_at(ct: MetaTensor) -> Seen:
    """Look at a CT (1, I, J, K) in HU."""
    reach = np.abs(np.asarray(ct.affine, dtype=np.float64)[2, :3]) * ct.shape[1:]
    height = float(reach.max())  # of slices that are not quite axial, the stack's
    return Seen(encode_anatomy(anatomy_of(ct)), find_lungs(ct), _point(bounding_box_centre(ct).tolist()), height)


def lungs_to_aim_at(seen: Seen) -> Lungs:
    """The lungs of a CT.

    Raises:
        InputError: if it shows none.
    """
    if seen.lungs is None:
        raise InputError("the CT shows no lungs to aim at; leave it out, or aim at the centre of its box.")
    return seen.lungs


def aim_notes(seen: Seen, isocentre: Sequence[float], grid: VolumeGrid) -> tuple[str, ...]:
    """What to say of a scan that the cube about ``isocentre`` does not fit, one phrase each; mostly nothing."""
    notes = []
    if seen.height_mm < SHORT_SCAN * grid.fov_mm:
        notes.append(f"the scan is {seen.height_mm:.3g} mm high, the cube {grid.fov_mm:.3g} mm")
    if seen.lungs is None:
        notes.append("no lungs were found, so it may be no chest")
        return tuple(notes)
    now, best = (_share(seen.lungs, about, grid.fov_mm) for about in (isocentre, seen.lungs.centre))
    if best - now > LEAST_SHARE_GAINED:
        away = np.linalg.norm(np.subtract(seen.lungs.centre, isocentre))
        notes.append(
            f"the lungs' centre is {away:.0f} mm from the isocentre, and the cube of {grid.fov_mm:.3g} mm holds "
            f"{100 * now:.0f} % of them (prepare with --centre lungs aims at it: {100 * best:.0f} %)"
        )
    return tuple(notes)


def _share(lungs: Lungs, isocentre: Sequence[float], fov_mm: float) -> float:
    """Part of the lungs' box that a cube holds."""
    part = 1.0
    for low, high, middle in zip(lungs.low, lungs.high, isocentre, strict=True):
        inside = min(high, middle + fov_mm / 2) - max(low, middle - fov_mm / 2)
        part *= max(0.0, inside) / max(high - low, 1e-6)
    return min(part, 1.0)


def is_variation(item: Mapping[str, Any]) -> bool:
    """Made by ``write_cohort`` from another's CT, and meant to be alike."""
    return "seed" in item and "source" in item


def report_on(
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    grid: VolumeGrid,
    cache_dir: str | Path,
    mode: str = "cube",
    workers: int = 0,
    console: Console | None = None,
    leave_out: Callable[[Collection[str]], None] | None = None,
) -> None:
    """At the start of a training: name CTs that two parts have in common, and scans that the cube does not fit.

    CTs whose record or cached look is there are not read. Several processes share the reading; the first reports. A CT
    that cannot be read is passed over: what trains with it says why.

    Args:
        parts: data lists by part.
        grid: of the training.
        cache_dir: where looks are kept.
        mode: how CTs are put on the grid; what is said of the cube holds for ``cube``.
        workers: processes that read, where there are many CTs.
        console: for progress.
        leave_out: of a split that was drawn: gets the training patients who show a CT of another part. Not if none
            would be left, nor of a split that somebody chose, where these are named only.
    """
    items = [(part, item) for part, listed in parts.items() for item in listed if not is_variation(item)]
    folder = Path(cache_dir) / "seen"
    # of all, not of those that are not known yet: to a later process another's looks are known already
    mine = [item for _, item in (items[i] for i in share(len(items))) if _known(item, folder) is None]
    shown = tracked(_look_each(mine, folder, workers), len(mine), console or Console(stderr=True), "CTs looked at")
    for _ in shown if mine else ():
        pass
    wait()
    found = {(part, str(item["patient"])): (_known(item, folder), item) for part, item in items}
    seen = {key: (look, item) for key, (look, item) in found.items() if look is not None}
    same = twins({f"{part}\0{name}": decode_anatomy(look.anatomy) for (part, name), (look, _) in seen.items()})
    held = _held_out_twins(same)
    if leave_out is None or len(held) >= len({str(item["patient"]) for item in parts.get("training", ())}):
        held = {}
    elif held:
        leave_out(list(held))
    if not is_main_process():
        return
    for name, (first, home) in sorted(held.items()):
        logger.warning("%s shows the CT of %s (%s) and is left out of the training", name, first, home)
    for one, other in sorted(same.items()):
        (part, name), (home, first) = one.split("\0"), other.split("\0")
        gone = {key for key, where in ((name, part), (first, home)) if where == "training" and key in held}
        if part != home and not gone:
            logger.warning(
                "%s (%s) shows the CT of %s (%s), so what is measured there is not of a new patient: keep one",
                *(name, part, first, home),
            )
    for (_, name), (look, item) in seen.items() if mode == "cube" else ():
        for note in aim_notes(look, item.get("isocentre") or look.centre, grid):
            logger.warning("patient %s: %s", name, note)


def _held_out_twins(same: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Training patients with the CT of one of another part: for each its name and part."""
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key in {*same, *same.values()}:
        part, name = key.split("\0")
        alike[same.get(key, key)].append((part, name))
    found = {}
    for members in alike.values():
        others = sorted((part, name) for part, name in members if part != "training")
        for part, name in members:
            if part == "training" and others:
                found[name] = (others[0][1], others[0][0])
    return found


class LookAtCTs:
    """:func:`report_on`, when a training starts: what is refused before that leaves nothing behind.

    Args:
        parts: see :func:`report_on`.
        grid: likewise.
        cache_dir: likewise.
        mode: likewise.
        workers: likewise.
        leave_out: likewise.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[Mapping[str, Any]]],
        grid: VolumeGrid,
        cache_dir: str | Path,
        mode: str = "cube",
        workers: int = 0,
        leave_out: Callable[[Collection[str]], None] | None = None,
    ) -> None:
        self._report = partial(report_on, parts, grid, cache_dir, mode, workers, leave_out=leave_out)

    def attach(self, trainer: Engine) -> None:
        """Register on the trainer."""
        trainer.add_event_handler(Events.STARTED, lambda: self._report())  # else it is given the engine


def _look_each(items: Sequence[Mapping[str, Any]], folder: Path, workers: int) -> Iterator[None]:
    if workers == 0 or len(items) < _PROCESSES_FROM:
        for item in items:
            _look(item, folder)
            yield
        return
    with worker_pool(workers) as pool:
        yield from pool.map(_look, items, [folder] * len(items))


def _look(item: Mapping[str, Any], folder: Path) -> None:
    try:
        seen = look_at(LoadCT()(item["label"], None, item.get("slices", ())))
    except Exception:  # whatever a damaged file leads to; the training names it
        return
    try:
        write_json(_place(item, folder), seen.to_dict())
    except OSError as error:
        raise InputError(
            f"cache folder {folder} cannot be written ({error.strerror}); set cache_dir to another."
        ) from error


def _place(item: Mapping[str, Any], folder: Path) -> Path:
    about = [_FORMAT, stamp({key: item[key] for key in ("label", "slices") if key in item})]
    return folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"


def _known(item: Mapping[str, Any], folder: Path) -> Seen | None:
    """What is kept of a CT, by ``prepare`` or by an earlier training."""
    try:
        return Seen.from_dict(record_beside(item["label"]))
    except (KeyError, TypeError, ValueError):
        pass
    try:
        return Seen.from_dict(json.loads(_place(item, folder).read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError):
        return None
