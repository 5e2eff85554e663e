"""The model card of the shipped networks, written from their descriptions and from what was measured of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from drr2ct.pipeline.checkpoints.description import began_with, members_of, training_seconds
from drr2ct.pipeline.evaluation.similarity import WINDOWS
from drr2ct.pipeline.planning.tables import TableText
from drr2ct.pipeline.reconstruction.record import file_sha256
from drr2ct.pipeline.reports.measured import KEPT_FIGURES, Measured, mean_of
from drr2ct.pipeline.reports.parts import read_asset
from drr2ct.pipeline.reports.wording import figure_name, value_text, window_text
from drr2ct.pipeline.running.console import duration_text
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError, existing_file, listed

BASELINES = {
    "fitted": "fitted to its radiographs, as `drr2ct reconstruct` gives it",
    "coarser_stages": "baseline: its coarser stages alone, upsampled",
    "coarsest_stages": "baseline: its coarsest volume alone, upsampled",
    "mean_volume": "baseline: mean of the training CTs",
    "nearest_patient": "baseline: nearest training patient",
    "backprojection": "baseline: back-projection",
}
_GROUP_TITLES = {"validation": "Validation patients", "unseen": "Unseen patients"}


@dataclass(frozen=True)
class Sources:
    """Where patients' CTs come from: a bundle's ``models/data.yaml``.

    Args:
        path: of that file.
        source: whose archive it is.
        changes: what was done to the CTs, in words.
        spacing_mm: of their voxels, after that.
        collections: each with ``name``, ``doi``, ``licence`` and its ``patients``.
    """

    path: Path
    source: str
    changes: str
    spacing_mm: float
    collections: tuple[Mapping[str, Any], ...]

    def coarser_than(self, networks: Sequence[ShippedNetwork]) -> list[ShippedNetwork]:
        """Networks whose voxels are finer than the CTs that they were trained on."""
        return [network for network in networks if network.geometry.grid.spacing_mm < self.spacing_mm]

    @property
    def patients(self) -> list[str]:
        """All that are listed."""
        return [patient for collection in self.collections for patient in collection["patients"]]

    def used_by(self, networks: Sequence[ShippedNetwork]) -> list[tuple[Mapping[str, Any], list[str]]]:
        """Collections of which networks have seen patients, with those."""
        seen = {patient for network in networks for patient in network.patients}
        found = [(collection, [p for p in collection["patients"] if p in seen]) for collection in self.collections]
        return [(collection, patients) for collection, patients in found if patients]


def read_sources(models: Path) -> Sources:
    """Read ``data.yaml`` of a bundle's ``models``.

    Raises:
        InputError: if it is not there, or lacks something.
    """
    path = existing_file(models / "data.yaml", "attribution")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        collections = tuple(
            {"patients": [str(p) for p in entry["patients"]], **{key: str(entry[key]) for key in _ATTRIBUTION}}
            for entry in content["collections"]
        )
        return Sources(path, str(content["source"]), str(content["changes"]), float(content["spacing_mm"]), collections)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"attribution {path} cannot be read ({error}); it needs source, changes, spacing_mm, and collections with "
            "name, doi, licence and patients."
        ) from error


_ATTRIBUTION = ("name", "doi", "licence")


@dataclass(frozen=True)
class ShippedNetwork:
    """A shipped network as the card sees it.

    Args:
        name: under which it is shipped.
        path: of its weights.
        description: that they hold.
        parameters: number of weights.
        measured: of them.
    """

    name: str
    path: Path
    description: Mapping[str, Any]
    parameters: int
    measured: Measured

    @cached_property
    def geometry(self) -> BiplanarGeometry:
        """Grid and views."""
        return BiplanarGeometry.from_dict(self.description["config"]["geometry"])

    @property
    def file_sha256(self) -> str:
        """Of the file of weights, as a download is checked."""
        return file_sha256(self.path)

    def part(self, name: str) -> list[str]:
        """Patients of a part of its data."""
        return list(self.description["patients"].get(name, []))

    @property
    def patients(self) -> list[str]:
        """All that it has seen, in training or validation."""
        return [*self.part("training"), *self.part("validation")]

    @property
    def training(self) -> list[tuple[str, str]]:
        """How it was trained, in pairs of what and how; nothing is said of what is not known."""
        return list(_training(self))

    @property
    def tables(self) -> list[str]:
        """What was measured, as Markdown."""
        found = [
            _figures_table(f"{title}, {self.name}", self.measured.of_group(group))
            for group, title in _GROUP_TITLES.items()
            if self.measured.of_group(group)
        ]
        if self.measured.left_out:
            networks = len({entry["weights_sha256"] for entry in self.measured.left_out.values()})
            times = {entry.get("trained_for") or "a time not on record" for entry in self.measured.left_out.values()}
            heads, commas, tails = zip(*(time.partition(", ") for time in sorted(times)), strict=True)
            # "12 min, after …": what is alike is said once
            long = listed(heads, "or") + commas[0] + tails[0] if len(set(tails)) == 1 else listed(sorted(times), "or")
            shipped = training_seconds(self.description)
            own = "" if shipped is None else f" (the shipped one: {duration_text(shipped)})"
            members = {entry.get("members", 1) for entry in self.measured.left_out.values()}
            ensemble = members_of(self.description)
            of = (
                ""
                if members == {ensemble}
                else f", of {listed(sorted(map(str, members)), 'or')} instead of {ensemble} members"
            )
            kind = f"{networks} network{'s' * (networks != 1)} of the recipe of {self.name}{of}"
            title = f"Left out: {kind}, each judged on others' patients; trained for {long}{own}"
            found.append(_figures_table(title, self.measured.left_out))
        if self.measured.robustness is not None:
            found.append(_robustness_table(self.name, self.measured.robustness))
        return found


def card(networks: Sequence[ShippedNetwork], sources: Sources) -> str:
    """The card of shipped networks, the default one first, as Markdown."""
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    counts = sorted({len(network.part("training")) for network in networks})
    return environment.from_string(read_asset("model_card.md.j2")).render(
        networks=networks,
        sources=sources,
        networks_table=_networks_table(networks),
        collections=sources.used_by(networks),
        trained_on=" or ".join(map(str, counts)),
        fov=f"{networks[0].geometry.grid.fov_mm:g}",
        with_left_out=any(network.measured.left_out for network in networks),
        window=window_text(WINDOWS[""]),
        full_window=window_text(WINDOWS["_full"]),
    )


def data_line(sources: Sources, networks: Sequence[ShippedNetwork]) -> str:
    """Collections that the networks have seen patients of, in one line: ``data_source`` of ``metadata.json``."""
    used = [f"{entry['name']} ({entry['licence']})" for entry, _ in sources.used_by(networks)]
    return f"{sources.source}: {', '.join(used)}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return TableText(title, tuple(columns), tuple(map(tuple, rows))).markdown()


def _networks_table(networks: Sequence[ShippedNetwork]) -> str:
    rows = []
    for network in networks:
        grid, seconds = network.geometry.grid, training_seconds(network.description)
        rows.append(
            (
                f"`{network.name}`",
                f"{grid.size}³ of {grid.spacing_mm:.3g} mm",
                f"{network.parameters:,}",
                f"{network.path.stat().st_size / 1e6:.1f} MB",
                f"{len(network.part('training'))} patients",
                "" if seconds is None else duration_text(seconds),
            )
        )
    columns = ["network", "voxels", "weights", "file", "trained on", "trained for"]
    known = len(columns) if any(row[-1] for row in rows) else -1
    return _table("Networks", columns[:known], [row[:known] for row in rows])


def _training(network: ShippedNetwork) -> Iterator[tuple[str, str]]:
    about, training = network.description, network.description["training"]
    yield "trained on", ", ".join(network.part("training"))
    yield "validated on", ", ".join(network.part("validation"))
    for view in network.geometry.views:
        rows, columns = view.detector_size
        yield (
            f"view {view.name}",
            f"gantry {view.gantry_angle_deg:g}°, source {view.source_to_isocentre_mm:g} mm from the isocentre and "
            f"{view.source_to_detector_mm:g} mm from the detector, {rows} × {columns} pixels of "
            f"{view.pixel_pitch_mm:.3g} mm",
        )
    yield "epoch, step", f"{about.get('epoch', '?')}, {about.get('iteration', '?')}"
    if training["seconds"] is not None:
        on = f" on {training['processor']}" if training.get("processor") else ""
        workers = training.get("workers") or 0
        beside = f", beside {workers} process{'es' * (workers > 1)} that made samples" if workers else ""
        yield "time of its own training", f"{duration_text(training['seconds'])}{on}{beside}"
    for before in began_with(training):
        since = training_seconds(before)
        long = "" if since is None else f", after {duration_text(since)}"
        yield "began with the weights of", f"{before['name'] or 'a training whose record is gone'}{long}"
    if others := _further_members(training):
        known = [duration_text(seconds) for other in others if (seconds := training_seconds(other)) is not None]
        long = f", trained for {listed(known, 'and')}" if len(known) == len(others) else ""
        more = "another network" if len(others) == 1 else f"{len(others)} further networks"
        # True or False where it is on record
        plain = sum(other["training"].get("films") is False for other in others) if training.get("films") else 0
        without = f", {plain} of them without films" if plain else ""
        yield "its first volume", f"what its own and those of {more} of the same recipe agree on{long}{without}"
    if training.get("frozen"):
        yield "kept as they came", ", ".join(f"`{pattern}`" for pattern in training["frozen"])
    if training.get("vary", "off") != "off":
        yield "patients are varied", training["vary"].replace("-", " ")
    if training.get("films"):
        yield "radiographs are varied", "as films: `augmentation` or `render` of the recipe"
    if training.get("loss"):
        yield "loss", ", ".join(f"{weight} · {term}" for term, weight in training["loss"].items())
    for key, what in (("batch_size", "batch"), ("learning_rate", "learning rate")):
        if training.get(key) is not None:
            yield what, f"{training[key]:g}" if isinstance(training[key], float) else str(training[key])
    if about.get("interval"):
        yield "bounds calibrated on", _calibration_text(about["interval"])
    if about.get("metrics"):
        yield (
            "last validation in training",
            ", ".join(f"{name} {value:.4g}" for name, value in sorted(about["metrics"].items())),
        )


def _further_members(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of an ensemble, the trainings of all members but the first, which may have joined before the last training."""
    found = list(training.get("joined_with", []))
    for before in began_with(training):
        found += _further_members(before["training"])
    return found


def _calibration_text(calibration: Mapping[str, Any]) -> str:
    """Whom bounds are calibrated on, and what they covered of those without it and of each by the others'."""
    text = (
        f"{', '.join(calibration['patients'])}; meant to hold {calibration['level']:.0%} of a body's voxels, they held "
        f"{calibration['uncalibrated']['mean']:.1%} before"
    )
    left_out = calibration["left_out"]
    if left_out is not None:
        text += (
            f", and {left_out['mean']:.1%} of each ({left_out['least']:.1%} to {left_out['most']:.1%}) by the others'"
        )
    return text


def _figures_table(title: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    """One row per patient, their mean, and the baselines' means on the same patients."""
    figures = [name for name in KEPT_FIGURES if not math.isnan(mean_of(entries.values(), name))]
    rows = [
        [patient, *(_cell(entry["figures"].get(name), name) for name in figures)] for patient, entry in entries.items()
    ]
    if len(rows) > 1:
        rows.append(["**mean**", *(_cell(mean_of(entries.values(), name), name) for name in figures)])
    for baseline, words in BASELINES.items():
        if all(baseline in entry["baselines"] for entry in entries.values()):
            means = (_cell(mean_of(entries.values(), name, baseline), name) for name in figures)
            rows.append([f"*{words}*", *means])
    return _table(f"{title} ({len(entries)})", ("patient", *map(figure_name, figures)), rows)


def _robustness_table(name: str, robustness: Mapping[str, Any]) -> str:
    figures = ("psnr", "ssim", "mae_hu")
    rows = []
    for entry in robustness["conditions"]:
        value = "" if entry["value"] is None else f"{entry['value']:g} {entry['unit']}".strip().replace("-", "−")
        change = "" if entry["psnr_change"] is None else f"{entry['psnr_change']:+.2f}".replace("-", "−")
        means = [_cell(entry["means"].get(figure), figure) for figure in figures]
        rows.append([entry["condition"].replace("_", " "), value, *means, change])
    columns = ("condition", "value", *map(figure_name, figures), "change of PSNR (dB)")
    return _table(f"Robustness, {name}, mean over patients ({robustness['count']})", columns, rows)


def _cell(value: float | None, figure: str) -> str:
    return "" if value is None or math.isnan(value) else value_text(value, figure)
