"""What decides the result of a preparation, and how it names patients."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from typing import Any

from drr2ct.pipeline.data.patient_names import printable
from drr2ct.pipeline.data.splitting import check_fractions
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW

CENTRES = ("box", "lungs")
"""Where the isocentre can be: the centre of the scan's bounding box, or that of the lungs."""

_KEY_CHECK = b"drr2ct key check"


@dataclass(frozen=True)
class PrepareSettings:
    """What decides the result.

    Args:
        geometry: of the rendered DRRs.
        fractions: of training, validation and test patients.
        seed: of the split.
        png_bits: of the PNG copies of the DRRs, 8 or 16.
        per_study: one CT per study of a patient, instead of one per patient.
        patient_pattern: which part of a volume file's path names the patient; see ``patient_of_file``.
        key: patients are named by HMAC-SHA256 under this key.
        centre: where the views are aimed, one of ``CENTRES``: the centre of the scan's box, or that of the lungs.

    Raises:
        InputError: for an unknown centre, impossible fractions, another bit depth, a pattern that is no regular
            expression, a short key.
    """

    geometry: BiplanarGeometry
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    png_bits: int = 16
    per_study: bool = False
    patient_pattern: str | None = None
    key: bytes | None = None
    centre: str = "box"

    def __post_init__(self) -> None:
        check_fractions(self.fractions)
        if self.centre not in CENTRES:
            raise InputError(f"centre {self.centre!r} is unknown; choose from {', '.join(CENTRES)}.")
        if self.png_bits not in (8, 16):
            raise InputError(f"PNG has 8 or 16 bits per pixel, not {self.png_bits}.")
        if self.key is not None and len(self.key) < 16:
            raise InputError(
                "the key for patients' names is shorter than 16 bytes and can be guessed; make a longer one."
            )
        try:
            re.compile(self.patient_pattern or "")
        except re.error as error:
            raise InputError(
                f"patient pattern {self.patient_pattern!r} is no regular expression ({error}); repair or quote it."
            ) from error

    def describe(self) -> dict[str, Any]:
        """Plain types, without the key; what provenance holds and a resumed run must agree with."""
        return {
            "geometry": self.geometry.to_dict(),
            "fractions": list(self.fractions),
            "seed": self.seed,
            "png_bits": self.png_bits,
            "one_ct_per": "study" if self.per_study else "patient",
            "patient_pattern": self.patient_pattern,
            "names": "as found" if self.key is None else f"HMAC-SHA256, key {keyed(self.key, _KEY_CHECK.decode())}",
            "hu_window": list(HU_WINDOW),
            "centre": self.centre,
        }


def keyed(key: bytes, text: str) -> str:
    """HMAC-SHA256 of a name, shortened."""
    return hmac.new(key, os.fsencode(text), hashlib.sha256).hexdigest()[:16]


def folder_name(patient: str, key: bytes | None) -> str:
    """A name that is safe as a folder's; different patients keep different names."""
    if key is not None:
        return keyed(key, patient)
    safe = re.sub(r"[/\\\0-\x1f\x7f]", "_", printable(patient)).strip(" ").lstrip(".")[:60]
    return safe if safe == patient else f"{safe or 'patient'}-{hashlib.sha256(os.fsencode(patient)).hexdigest()[:6]}"
