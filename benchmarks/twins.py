"""How far the anatomies of different patients differ, and those of one CT stored otherwise do not.

    python benchmarks/twins.py FOLDER

FOLDER holds patients' CTs. Every CT is compared with every other, and with itself resampled to thicker slices, to
other pixels, cropped at the sides, rounded, with noise, and stored in another orientation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing

from drr2ct.pipeline.data.anatomy import SAME_ANATOMY, anatomy_of
from drr2ct.pipeline.data.patients import find_patients
from drr2ct.transforms.volume import LoadCT


def stored_otherwise(ct: MetaTensor) -> dict[str, MetaTensor]:
    """The CT as copies of data sets have it."""
    noise = torch.randn(ct.shape, generator=torch.Generator().manual_seed(0)) * 20
    spacing = np.linalg.norm(np.asarray(ct.affine)[:3, :3], axis=0)
    return {
        "twice as thick slices": Spacing(pixdim=(*spacing[:2], 2 * spacing[2]), mode="bilinear")(ct),
        "other pixels": Spacing(pixdim=(1.3 * spacing[0], 1.3 * spacing[1], spacing[2]), mode="bilinear")(ct),
        "noise of 20 HU": ct + noise,
        "steps of 16 HU": (ct / 16).round() * 16,
        "another orientation": Orientation("LPS", labels=None)(ct),
    }  # type: ignore[dict-item]


def main() -> None:
    """Print the most alike of different patients, and the least alike copy of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=100, help="store so many of them otherwise")
    arguments = parser.parse_args()
    found: dict[str, np.ndarray] = {}
    least: dict[str, float] = {}
    for item in find_patients(arguments.folder):
        ct = LoadCT()(item["label"], None, item.get("slices", ()))
        found[item["patient"]] = anatomy_of(ct)
        copies = stored_otherwise(ct) if len(found) <= arguments.copies else {}
        for kind, copy in copies.items():
            least[kind] = min(least.get(kind, 1.0), float(anatomy_of(copy) @ found[item["patient"]]))
    names = sorted(found)
    table = np.stack([found[name] for name in names])
    likeness = table @ table.T - 2 * np.eye(len(names))
    row, column = np.unravel_index(likeness.argmax(), likeness.shape)
    print(f"threshold {SAME_ANATOMY:g}")
    print(f"{len(names)} patients; the most alike, {names[row]} and {names[column]}: {likeness.max():.3f}")
    for kind, value in least.items():
        print(f"least alike copy, {kind}: {value:.3f}")


if __name__ == "__main__":
    main()
