"""What a checkpoint is: the facts that travel with its weights, for reading and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from drr2ct.pipeline.checkpoints.description import network_sentence
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.transforms.geometry import BiplanarGeometry

_FEW = 12
"""Patients that are listed by name."""


def checkpoint_facts(path: str | Path) -> dict[str, Any]:
    """A checkpoint's description, and what its file holds: plain types.

    Raises:
        InputError: as ``read_checkpoint``.
    """
    content = read_checkpoint(path)
    states = sorted(set(content) - {"network", "description", "best", "epoch_state"})
    return {
        "file": str(path),
        "mib": Path(path).stat().st_size / 2**20,
        "parameters": sum(value.numel() for value in content["network"].values()),
        "resumable": "trainer" in content,
        "within_epoch": content.get("epoch_state") is not None,
        "states": states,
        "best": dict(content.get("best", {})),
        **content["description"],
    }


def print_facts(facts: Mapping[str, Any], console: Console) -> None:
    """Tables of :func:`checkpoint_facts`."""
    geometry = BiplanarGeometry.from_dict(facts["config"]["geometry"])
    grid = geometry.grid
    low, high = facts["hu_window"]
    where = " (within it)" if facts["within_epoch"] else ""
    _print_table(
        console,
        facts["file"],
        {
            "network": f"{facts['name']}, {facts['parameters']:,} weights",
            "in words": network_sentence(facts),
            "trained": f"epoch {facts.get('epoch', '?')}{where}, step {facts.get('iteration', '?')}",
            "last metrics": _numbers(facts.get("metrics", {})),
            "best so far": _numbers(facts["best"]),
            "grid": f"{grid.size}³ voxels of {grid.spacing_mm:g} mm, {grid.fov_mm:g} mm wide, mode {facts['mode']}",
            "vertical flip": "index 0 of the last axis is the head" if grid.vertical_flip else "index 0 is the feet",
            "HU window": f"{low:g} to {high:g}",
            "bounds": _bounds(facts),
            "line integral scale": f"{facts['line_integral_scale']:g}",
            "file": f"{facts['mib']:.1f} MiB; {'can be resumed' if facts['resumable'] else 'weights only'}",
        },
    )
    views = Table("view", "gantry angle", "source to isocentre", "source to detector", "detector", "pixel pitch")
    for view in geometry.views:
        rows, columns = view.detector_size
        views.add_row(
            view.name,
            f"{view.gantry_angle_deg:g}°",
            f"{view.source_to_isocentre_mm:g} mm",
            f"{view.source_to_detector_mm:g} mm",
            f"{rows} × {columns}",
            f"{view.pixel_pitch_mm:.4g} mm",
        )
    console.print(views)
    settings = {key: value for key, value in facts["config"].items() if key != "geometry"}
    _print_table(console, "network configuration", {key: str(value) for key, value in settings.items()})
    _print_table(console, "patients", {part: _names(names) for part, names in facts["patients"].items()})
    _print_table(console, "versions", facts["versions"])


def _print_table(console: Console, title: str, entries: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in entries.items():
        table.add_row(name, value)
    console.print(table)


def _bounds(facts: Mapping[str, Any]) -> str:
    if not facts["config"].get("interval"):
        return "none"
    calibration = facts.get("interval")
    if calibration is None:
        return "not calibrated"
    return f"{calibration['level']:.0%}, calibrated on {_names(calibration['patients'])}"


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "none"


def _names(names: list[str]) -> str:
    more = f" … and {len(names) - _FEW} more (--json lists all)" if len(names) > _FEW else ""
    return f"{len(names)}: {', '.join(names[:_FEW])}{more}"
