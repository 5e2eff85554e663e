"""One radiograph on its way from a file to the detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from drr2ct.transforms.detector import Acquisition
from drr2ct.transforms.geometry import View
from drr2ct.transforms.radiographs.pixels import Pixels


@dataclass(frozen=True)
class Film:
    """The state of one radiograph; each step of loading maps it to a new one and says in a sentence what it decided.

    Args:
        path: of its file.
        view: that it was given for.
        stated: how the user says that it was taken.
        usual: what the training set's radiographs of this view look like, one of the views of
            :func:`~drr2ct.transforms.radiographs.intensity.radiograph_statistics`; None if that is not known.
        pixels: as decoded, rows and columns as stored, with what the numbers mean.
        image: line integrals, (rows, columns); of ``display``, before it is matched with the usual ones, the range of
            the picture on 0…:data:`~drr2ct.transforms.radiographs.scale.DISPLAY_MAXIMUM`. Dense is high.
        covered: where ``image`` shows the patient or air, and not a frame, a collimator or nothing at all.
        pixel_pitch_mm: (rows, columns) of ``image``, as the file states it; None where it does not.
        air_seen: False if the intensity without a patient could not be told, so that line integrals are too low.
        oriented: the file states how the patient lies in it, and ``image`` was turned by that.
        exposure_known: False if it was exposed beyond its detector's full scale, so that line integrals are too low.
        body: where the patient is, with what is clipped there; None before that was looked for.
        notes: sentences on what was decided and assumed.
        warnings: sentences on what makes a volume doubtful.
    """

    path: Path
    view: View
    stated: Acquisition
    usual: Mapping[str, Any] | None
    pixels: Pixels
    image: Float[Tensor, "rows columns"]
    covered: Bool[Tensor, "rows columns"]
    pixel_pitch_mm: tuple[float, float] | None = None
    air_seen: bool = True
    oriented: bool = False
    exposure_known: bool = True
    body: Bool[Tensor, "rows columns"] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's, for sentences."""
        return self.path.name

    @property
    def intensity(self) -> str:
        """What its numbers mean, as decided."""
        return self.pixels.intensity

    @property
    def facts(self) -> dict[str, Any]:
        """What the file says about itself, and its name."""
        return {**self.pixels.metadata, "filename_or_obj": str(self.path)}

    def saying(self, *notes: str, **changes: Any) -> Film:
        """The same film with changed fields and more sentences."""
        return replace(self, notes=(*self.notes, *notes), **changes)

    def doubting(self, *warnings: str) -> Film:
        """The same film with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))
