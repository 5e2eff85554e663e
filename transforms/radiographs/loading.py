"""Stored radiographs: PNG, TIFF, DICOM and NIfTI files to line integrals on the detector.

Each file is a :class:`~drr2ct.transforms.radiographs.film.Film` that goes through the steps of
:class:`LoadRadiographsd`; what its numbers mean is :mod:`~drr2ct.transforms.radiographs.scale`'s subject, where it lies
:mod:`~drr2ct.transforms.radiographs.fit`'s.

Arrays are (rows, columns) with row 0 cranial. NIfTI files hold (columns, rows[, views]) with index 0 of the second
axis cranial, whatever their affine: it is the order in which ITK and 3D Slicer store an image.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from drr2ct.transforms.detector import Acquisition, extend_from_edge
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.files import decode
from drr2ct.transforms.radiographs.film import Film
from drr2ct.transforms.radiographs.fit import (
    leave_collimation_out,
    place_by_pitch,
    place_edge_to_edge,
    turn_as_stated,
    with_square_pixels,
)
from drr2ct.transforms.radiographs.identity import check_identity
from drr2ct.transforms.radiographs.looks import (
    ORIENTATIONS,
    bring_together,
    fill_burned_in,
    know_what_is_clipped,
    read_as_one_kind,
    turn_as_told,
    turn_by_looks,
)
from drr2ct.transforms.radiographs.pixels import Pixels, Reading
from drr2ct.transforms.radiographs.scale import match_with_usual, read_pixels, scale
from drr2ct.transforms.radiographs.views import check_view_order
from drr2ct.transforms.validation import InputError, existing_file

FITS = ("detector", "pitch")

FEWEST_PIXELS = 32
"""Rows and columns that a film must have: with fewer, a pixel is wider than a rib."""


class LoadRadiographsd(MapTransform):
    """Load the radiographs of a patient as line integrals (views, rows, columns), on the geometry's detector.

    The value under a key is a list of files in the order of ``geometry.views``, or one file: of a single view, or a
    NIfTI stack of all views (columns, rows, views). What was assumed about them is put into the sample under
    ``assumptions`` (one string, a sentence a line, so that it collates) and into the images' metadata (a list), and
    what they cover of the detector under ``covered`` (views, rows, columns). The rest holds the nearest pixel that is
    covered (:func:`~drr2ct.transforms.detector.extend_from_edge`), as in training.

    ``fit="detector"`` is for images made for the geometry, such as stored DRRs: they are taken to cover the detector
    from edge to edge, and resampled (anti-aliased) if they have another size of the same aspect ratio.
    ``fit="pitch"`` is for acquired radiographs, each of its own size: they are scaled by their pixel pitch and
    distances so that the isocentre's plane keeps its size
    (:func:`~drr2ct.transforms.detector.pixel_size_on_detector`), and centred on the detector. Without a pitch they are
    taken to be a whole cassette (:func:`~drr2ct.transforms.radiographs.size.cassette_pixel_mm`), line integrals to span
    the detector.

    Args:
        keys: keys of the file names.
        geometry: the views.
        intensity: what the files' numbers mean; see ``read_radiograph``. One word, or one for each view, as of
            ``window``, ``inverted`` and ``orientation``.
        unattenuated: I₀ for ``transmission``, a number or ``estimate``; see ``read_radiograph``.
        vertical_flip: the stored images come feet first; those that state their orientation are not turned by this.
        check_order: look at the images: refuse a PA and a lateral view that look exchanged
            (:func:`check_view_order`), turn them by their looks, leave frames and markers of pictures out, and compare
            the two views.
        allow_missing_keys: leave a sample without the key as it is.
        fit: ``detector`` or ``pitch``.
        pixel_spacing_mm: edge length of the files' pixels at the detector, for ``pitch``: one number, or one for each
            view. Like the distances, it takes precedence over the files' headers.
        source_to_detector_mm: distance from the source to the detector the files were taken with, likewise.
        source_to_isocentre_mm: distance from the source to the middle of the patient, likewise.
        crop_collimation: look for borders of a collimator (:mod:`~drr2ct.transforms.radiographs.collimation`) and leave
            them out; those in a DICOM header are found without this.
        opposite_side: accept AP for PA and a right for a left lateral.
        inverted: dense is dark (True) or bright (False) in a picture as the file shows it, and raw numbers are the
            other way round (True) or not (False) than the file says. By default looks decide.
        statistics: of the training set's radiographs
            (:func:`~drr2ct.transforms.radiographs.intensity.radiograph_statistics`): for ``display``, for
            ``transmission`` without air to estimate I₀ from, and to find out how images are turned.
        window: DICOM's window for ``display``; see :class:`~drr2ct.transforms.radiographs.pixels.Reading`.
        colour: ``refuse`` or ``ignore`` colours, likewise.
        check_header: refuse files whose headers speak of another view, body part, modality, or of two patients
            (:func:`~drr2ct.transforms.radiographs.identity.check_identity`); otherwise it is only said.
        orientation: ``auto``: as the header states it, else the turn that looks most like the training set's;
            ``as-is``: upright as stored, whatever the header states; or what has to be done to what is stored, one of
            :data:`~drr2ct.transforms.radiographs.looks.TURNS`.

    Raises:
        InputError: as ``read_radiograph``, and for a wrong number of files, a size with another aspect ratio,
            pixels that are not square, or a DICOM View Position or Patient Orientation that contradicts the view.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        intensity: str | Sequence[str] = "auto",
        unattenuated: float | str | None = None,
        vertical_flip: bool = False,
        check_order: bool = True,
        allow_missing_keys: bool = False,
        fit: str = "detector",
        pixel_spacing_mm: float | Sequence[float | None] | None = None,
        source_to_detector_mm: float | Sequence[float | None] | None = None,
        source_to_isocentre_mm: float | Sequence[float | None] | None = None,
        crop_collimation: bool = False,
        opposite_side: bool = False,
        inverted: bool | Sequence[bool | None] | None = None,
        statistics: Mapping[str, Any] | None = None,
        window: str | Sequence[str] = "auto",
        colour: str = "refuse",
        check_header: bool = True,
        orientation: str | Sequence[str] = "auto",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if fit not in FITS:
            raise InputError(f"radiographs are fitted by {' or '.join(FITS)}, not by {fit!r}.")
        count = len(geometry.views)
        self.orientations: list[str] = _for_views(orientation, count, "orientation")
        for word in self.orientations:
            if word not in ORIENTATIONS:
                raise InputError(f"radiographs cannot have the orientation {word!r}; give {', '.join(ORIENTATIONS)}.")
        if statistics is not None and len(statistics["views"]) != len(geometry.views):
            raise InputError(
                f"the training set's statistics are of {len(statistics['views'])} views, the geometry has "
                f"{len(geometry.views)}; take both from the same checkpoint."
            )
        self.stated = [
            Acquisition(*values)
            for values in zip(
                _for_views(pixel_spacing_mm, count, "pixel_spacing_mm"),
                _for_views(source_to_detector_mm, count, "source_to_detector_mm"),
                _for_views(source_to_isocentre_mm, count, "source_to_isocentre_mm"),
                strict=True,
            )
        ]
        self.geometry = geometry
        intensities: list[str] = _for_views(intensity, count, "intensity")
        windows: list[str] = _for_views(window, count, "window")
        self.readings = [Reading(*said, colour) for said in zip(intensities, windows, strict=True)]
        self.check_header = check_header
        self.unattenuated = unattenuated
        self.vertical_flip = vertical_flip
        self.check_order = check_order
        self.fit = fit
        self.crop_collimation = crop_collimation
        self.opposite_side = opposite_side
        self.inverted = _for_views(inverted, count, "inverted")
        self.usual = [None] * count if statistics is None else statistics["views"]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its radiographs."""
        sample = dict(data)
        for key in self.key_iterator(sample):
            sample[key], sample["covered"] = self._load(sample[key])
            for name in ("assumptions", "warnings"):
                sample[name] = "\n".join(sample[key].meta[name])
        return sample

    def _load(self, files: str | Path | Sequence[str | Path]) -> tuple[MetaTensor, Bool[Tensor, "views rows columns"]]:
        films = self._decoded([files] if isinstance(files, (str, Path)) else list(files))
        _check_pictures(films, self.fit == "pitch", self.check_order)
        films = check_identity(films, self.check_header)
        if self.check_order:
            films = read_as_one_kind(films, self.fit == "detector", self.inverted)
        # each film on its own pixels, as stored
        films = [
            self._upright(film, orientation, inverted)
            for film, orientation, inverted in zip(films, self.orientations, self.inverted, strict=True)
        ]
        # on the detector
        films = [place_by_pitch(film) for film in films] if self.fit == "pitch" else place_edge_to_edge(films)
        films = [match_with_usual(know_what_is_clipped(film)) for film in films]
        if self.check_order and self.fit == "pitch":
            films = bring_together(films)
        return _stacked(films, self.geometry, central=self.fit == "pitch", look=self.check_order)

    def _upright(self, decoded: Film, orientation: str, inverted: bool | None) -> Film:
        """In line integrals, or a picture in which dense is bright, head up."""
        decide = self.check_order and orientation == "auto"

        def scaled(film: Film) -> Film:
            if self.crop_collimation or (self.check_order and film.intensity != "line_integral"):
                film = leave_collimation_out(film, bright=self.crop_collimation or film.intensity == "display")
            film = scale(film, self.unattenuated)
            film = fill_burned_in(film) if self.check_order else film
            if orientation != "auto":
                film = turn_as_told(film, orientation, self.vertical_flip)
            else:
                film = turn_as_stated(film, self.vertical_flip, self.opposite_side, self.check_header)
            return with_square_pixels(film) if self.fit == "pitch" else film

        def the_other_way_round() -> Film:
            pixels = decoded.pixels
            if pixels.intensity == "transmission":
                return scaled(replace(decoded, pixels=replace(pixels, counts_fall=not pixels.counts_fall)))
            return scaled(replace(decoded, pixels=replace(pixels, dark_is_high=not pixels.dark_is_high)))

        known = zip(self.geometry.views, self.usual, strict=True)
        others = [(view, usual) for view, usual in known if usual is not None and view != decoded.view]
        return turn_by_looks(scaled(decoded), the_other_way_round, self.fit == "detector", inverted, decide, others)

    def _decoded(self, paths: list[str | Path]) -> list[Film]:
        """One film for each view."""
        views = self.geometry.views
        if len(paths) == 1 and len(views) > 1:
            decoded = _read_stack(paths[0], len(views), self.readings[0])
            paths = paths * len(views)
        elif len(paths) == len(views):
            decoded = [read_pixels(path, reading) for path, reading in zip(paths, self.readings, strict=True)]
        else:
            wanted = ", ".join(view.name for view in views)
            raise InputError(f"{len(paths)} radiographs ({_names(paths)}) for the {len(views)} views {wanted}.")
        everywhere = [torch.ones(pixels.values.shape, dtype=torch.bool) for pixels in decoded]
        return [
            Film(
                Path(path),
                view,
                stated,
                known,
                pixels,
                image=torch.from_numpy(pixels.values.astype(np.float32)),
                covered=whole if pixels.covered is None else torch.from_numpy(pixels.covered),
                pixel_pitch_mm=pixels.metadata.get("pixel_spacing_mm"),
            )
            for path, view, stated, known, pixels, whole in zip(
                paths, views, self.stated, self.usual, decoded, everywhere, strict=True
            )
        ]


def _stacked(
    films: Sequence[Film], geometry: BiplanarGeometry, central: bool, look: bool
) -> tuple[MetaTensor, Bool[Tensor, "views rows columns"]]:
    """All views on the detector, looked at together, with what was assumed; and what they cover of it."""
    paths = [str(film.path) for film in films]
    notes = [note for film in films for note in film.notes]
    if central:
        notes.append("The central ray is taken to meet the middle of each radiograph.")
    if look:
        seen = torch.stack([film.image for film in films])
        check_view_order(seen, geometry, _names(list(dict.fromkeys(paths))))
    warnings = list(dict.fromkeys(warning for film in films for warning in film.warnings))
    meta = {"filename_or_obj": paths, "assumptions": list(dict.fromkeys(notes)), "warnings": warnings}
    stack = torch.stack([extend_from_edge(film.image, film.covered) for film in films])
    return MetaTensor(stack, meta=meta), torch.stack([film.covered for film in films])


def _check_pictures(films: Sequence[Film], size: bool, different: bool) -> None:
    """Refuse pictures that are too small to be a radiograph, and one for two views, before anything else is said."""
    for film in films:
        if size and min(film.image.shape) < FEWEST_PIXELS and film.intensity != "line_integral":
            shape = "×".join(map(str, film.image.shape))
            raise InputError(
                f"radiograph {film.path} has {shape} pixels, too few for a chest (at least {FEWEST_PIXELS} each way); "
                "export it in full size."
            )
    for index, film in enumerate(films if different else []):
        for other in films[:index]:
            if film.image.shape == other.image.shape and torch.equal(film.image, other.image):
                raise InputError(
                    f"radiographs {other.path} and {film.path} are the same picture; give one file per view, or switch "
                    "this check off (--set check_order=false)."
                )


def _read_stack(path: str | Path, views: int, reading: Reading) -> list[Pixels]:
    pixels = decode(existing_file(path, "radiographs"), reading)
    if pixels.values.ndim != 3 or pixels.values.shape[0] != views:
        raise InputError(f"{path} is one file but not a NIfTI stack of {views} views; give one file for each view.")
    return [replace(pixels, values=values) for values in pixels.values]


def _for_views(value: Any, count: int, name: str) -> list[Any]:
    """One value for each view."""
    values = [value] * count if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} values for {count} views; give one, or one for each view.")
    return values


def _names(paths: Sequence[str | Path]) -> str:
    return ", ".join(str(path) for path in paths) or "none"
