"""What looking at a film can decide, measured on films made of CTs, each judged by statistics of the other patients.

::

    python benchmarks/film_looks.py --cts FOLDER

FOLDER holds ``<patient>/<patient>.nii.gz``. Each CT becomes a PA and a lateral film: a field within the scan, a
console's tone curve, 8 bits, tilted by up to 6°, off the middle by up to 15 mm. Printed are

- how often each of the sixteen states (turns, mirrors, polarity) is recovered, refused, or wrong; of PA films the
  turn, as their sides are not decided by looks, and how often a mirrored one is warned of;
- how much they look like their own view and like the other one, and how many are refused as the other one's;
- by how much the row sums of two views differ: of one patient, 30 mm higher, of two patients; as line integrals and
  as pictures with 35 cm fields; and how well the lateral's height is found.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.agreement import compare_views
from drr2ct.transforms.radiographs.intensity import match_quantiles, quantiles_for_field, radiograph_statistics
from drr2ct.transforms.radiographs.orientation import (
    LIKENESS,
    OTHER_VIEW,
    STATES,
    SURE,
    Orientation,
    choose_orientation,
    orientation_scores,
)
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import LoadCT

GEOMETRY = BiplanarGeometry.from_angles(detector_size=256)
PITCH = GEOMETRY.views[0].pixel_pitch_mm
MAGNIFICATION = GEOMETRY.views[0].source_to_detector_mm / GEOMETRY.views[0].source_to_isocentre_mm
WITHIN_SCAN = 0.86
WIDTH_MM = 350.0


def rendered(path: Path) -> tuple[Tensor, Tensor, float]:
    """Line integrals of both views, the lateral 30 mm higher, and the scan's height on the detector in pixels."""
    ct = LoadCT()(path)
    affine = np.asarray(ct.affine, dtype=float)
    centre = affine[:3, :3] @ ((np.array(ct.shape[1:]) - 1) / 2) + affine[:3, 3]
    higher = render_drr(ct, GEOMETRY, isocentre=(centre + np.array([0.0, 0.0, 30.0])).tolist())[1]
    height = ct.shape[3] * float(np.linalg.norm(affine[:3, 2])) * MAGNIFICATION / PITCH
    return render_drr(ct, GEOMETRY), higher, height


def toned(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A console's picture, 0 to 1."""
    top = float(np.quantile(image.numpy(), 0.999)) * rng.uniform(0.9, 1.1)
    return ((image / top).clamp(0, 1) ** rng.uniform(0.5, 1.1) * 255).round() / 255


def film(image: Tensor, height: float, rng: np.random.Generator) -> Tensor:
    """One view as a picture: tilted, off the middle, a field within the scan."""
    tilted = torch.from_numpy(ndimage.rotate(image.numpy(), rng.uniform(-6, 6), reshape=False, order=1))
    across = round(128 + rng.uniform(-15, 15) / PITCH)
    half_rows, half_columns = int(height * 0.95 / 2), int(WIDTH_MM * 1.1 / 2 / PITCH)
    field = tilted[128 - half_rows : 128 + half_rows, max(0, across - half_columns) : across + half_columns]
    return toned(field, rng)


def stored_so_that(picture: Tensor, state: Orientation) -> Tensor:
    """The picture that ``state`` makes upright."""
    flips = [axis for axis, done in ((0, state.upside_down), (1, state.mirrored)) if done]
    turned = picture.flip(flips) if flips else picture
    turned = turned.T if state.transposed else turned
    return 1 - turned if state.inverted else turned


def orientations(scans: dict[str, tuple[Tensor, Tensor, float]], rng: np.random.Generator) -> None:
    """Print how often each state is recovered."""
    states = [Orientation(s.transposed, s.upside_down, s.mirrored, i) for i in (False, True) for s in STATES]
    results = {(view, state): Counter[str]() for view in (0, 1) for state in states}
    warned = Counter[tuple[str, bool]]()
    likeness = []
    for left_out, (images, _, height) in scans.items():
        statistics = radiograph_statistics([{"image": x[0] / 6} for name, x in scans.items() if name != left_out])
        for view in (0, 1):
            picture = film(images[view], height, rng)
            templates = [np.asarray(of["thumbnail"], dtype=np.float32) for of in statistics["views"]]
            template = templates[view]
            likeness.append(
                [max(orientation_scores(picture, t, 256 * PITCH).values()) for t in templates[:: 1 - 2 * view]]
            )
            for state in states:
                stored = stored_so_that(picture, state)
                scores = orientation_scores(stored, template, 256 * PITCH)
                try:
                    found, notes = choose_orientation(scores, GEOMETRY.views[view], left_out)
                except InputError:
                    results[view, state]["refused"] += 1
                    continue
                upright = found.turn(1 - stored if found.inverted else stored)
                right = [picture] if view else [picture, picture.flip(1)]
                good = any(x.shape == upright.shape and torch.allclose(x, upright, atol=1e-3) for x in right)
                results[view, state]["recovered" if good else "wrong"] += 1
                if view == 0 and good:
                    kind = "as it is" if torch.allclose(upright, picture, atol=1e-3) else "mirror image"
                    warned[kind, any("mirrored (by" in note for note in notes)] += 1
    print(f"| state of the file ({len(scans)} patients left out one by one) | PA | lateral |\n|---|---|---|")
    for state in states:
        cells = [
            ", ".join(f"{count} {what}" for what, count in sorted(results[view, state].items())) for view in (0, 1)
        ]
        print(f"| {'as it should be' if state == Orientation() else f'must be {state}'} | {cells[0]} | {cells[1]} |")
    own, other = np.array(likeness).T
    spans = [f"{x.min():.2f} to {x.max():.2f}" for x in (own, other)]
    print(f"likeness to the own view {spans[0]}, to the other {spans[1]}")
    for kind, given, elsewhere in (("the right", own, other), ("the other", other, own)):
        refused = (given <= SURE) & (elsewhere > np.maximum(given + OTHER_VIEW, LIKENESS))
        print(f"given for {kind} view: {refused.sum()} of {len(refused)} refused as of the other one")
    for kind in ("as it is", "mirror image"):
        flagged, quiet = (warned[kind, answer] for answer in (True, False))
        print(f"PA, {kind}: warned of exchanged sides in {flagged} of {flagged + quiet}")


def covered_field(height: float, width_mm: float) -> Tensor:
    """What a field within the scan covers, in the middle of the detector."""
    covered = torch.zeros(256, 256, dtype=torch.bool)
    half, across = height * WITHIN_SCAN / 2, width_mm * 1.1 / 2 / PITCH
    covered[round(128 - half) : round(128 + half), max(0, round(128 - across)) : round(128 + across)] = True
    return covered


def seen(
    image: Tensor, number: int, height: float, statistics: Mapping[str, Any] | None, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """What a field within the scan shows on the detector, and where; with statistics, of a picture."""
    covered = covered_field(height, WIDTH_MM if statistics else 540.0)
    if statistics is None:
        return image * covered, covered
    box = image[covered].reshape(int(covered.any(dim=1).sum()), -1)
    quantiles = quantiles_for_field(statistics["views"][number], float(covered.float().mean()))
    everywhere = torch.ones_like(box, dtype=torch.bool)
    result = torch.zeros_like(image)
    result[covered] = 6 * match_quantiles(toned(box, rng), quantiles, everywhere).flatten()
    return result, covered


def agreements(scans: dict[str, tuple[Tensor, Tensor, float]], rng: np.random.Generator) -> None:
    """Print how row sums agree."""
    print("\n| row sums | one patient | lateral 30 mm higher | another patient's lateral | height found, error |")
    print("|---|---|---|---|---|")
    names = list(scans)
    for pictures in (False, True):
        differences: dict[str, list[float]] = {"same": [], "higher": [], "other": []}
        errors = []
        for index, (name, (images, raised, height)) in enumerate(scans.items()):
            others = [{"image": x[0] / 6} for other, x in scans.items() if other != name]
            statistics = radiograph_statistics(others) if pictures else None
            pa = seen(images[0], 0, height, statistics, rng)
            stranger = scans[names[(index + 7) % len(names)]]
            for kind, image, tall in (
                ("same", images[1], height),
                ("higher", raised, height),
                ("other", stranger[0][1], stranger[2]),
            ):
                pair = zip(pa, seen(image, 1, tall, statistics, rng), strict=True)
                stack, covered = (torch.stack(both) for both in pair)
                found = compare_views(stack, covered, GEOMETRY.views, exposures_known=not pictures)
                if found is None:
                    continue
                differences[kind].append(found.stored if kind == "higher" else found.difference)
                if kind == "higher":
                    errors.append(abs(found.shift_mm + 30.0) if found.moved else math.nan)
        cells = [f"median {np.median(x):.1%}, {min(x):.1%} to {max(x):.1%}" for x in differences.values()]
        cells.append(
            f"median {np.nanmedian(errors):.0f} mm, at most {np.nanmax(errors):.0f} mm; not moved: "
            f"{sum(map(math.isnan, errors))} of {len(errors)}"
        )
        print(f"| {'pictures, 35 cm wide' if pictures else 'line integrals'} | {' | '.join(cells)} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cts", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    paths = sorted(arguments.cts.glob("*/*.nii.gz"))
    scans = {path.parent.name: rendered(path) for path in paths}
    orientations(scans, np.random.default_rng(arguments.seed))
    agreements(scans, np.random.default_rng(arguments.seed))


if __name__ == "__main__":
    main()
