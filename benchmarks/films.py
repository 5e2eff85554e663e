"""Real films through the command as a user gives it: a table of what was decided, and a contact sheet to look at.

::

    python benchmarks/films.py --films FOLDER --output SOMEWHERE

FOLDER holds ``<patient>/pa.*`` and ``<patient>/lat.*``; the network is the one that the command takes by itself, or
that of ``--checkpoint``. SOMEWHERE gets the volumes, their records, ``films.md`` and
``films.png``: for each patient both radiographs as the network was given them, and a coronal, a sagittal and an axial
plane of the volume. It must lie outside the repository, into which no picture of a patient's film belongs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from scipy import ndimage

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.shipped import chosen_weights
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.validation import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
LUNG_HU = -500.0


def reconstructed(folder: Path, checkpoint: Path | None, output: Path) -> tuple[dict[str, Any] | None, str]:
    """The record of a patient's reconstruction, or None and what the command said."""
    pa, lateral = (next(iter(sorted(folder.glob(f"{view}.*")))) for view in ("pa", "lat"))
    volume = output / f"{folder.name}.nii.gz"
    command = [str(Path(sys.executable).with_name("drr2ct")), "reconstruct", "--pa", str(pa), "--lateral", str(lateral)]
    command += ["--output", str(volume), "--patient", folder.name, "--overwrite"]
    command += [] if checkpoint is None else ["--checkpoint", str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None, (done.stderr or done.stdout).strip().splitlines()[-1]
    return json.loads(volume.with_name(f"{folder.name}.json").read_text(encoding="utf-8")), done.stdout


def lungs(volume: np.ndarray) -> np.ndarray:
    """Air that is enclosed by the body in an axial plane."""
    air = volume < LUNG_HU
    found = np.zeros_like(air)
    for k in range(air.shape[2]):
        labels, _ = ndimage.label(air[:, :, k])
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        found[:, :, k] = (labels > 0) & ~np.isin(labels, border)
    return found


def row(folder: Path, checkpoint: Path | None, output: Path) -> tuple[list[str], np.ndarray | None]:
    """One line of the table, and the volume in RAS+."""
    record, said = reconstructed(folder, checkpoint, output)
    if record is None:
        return [folder.name, "refused", said, "", "", "", ""], None
    image: Any = nib.as_closest_canonical(nib.load(output / f"{folder.name}.nii.gz"))  # type: ignore[attr-defined]
    volume, spacing = np.asarray(image.dataobj, dtype=float), np.array(image.header.get_zooms()[:3])
    air = lungs(volume)
    sentences = [*record["assumptions"], *record["warnings"]]
    decided = [
        short
        for pattern, short in (
            (r"^pa.*(was turned|was mirrored|was inverted)", "PA turned or inverted"),
            (r"^lat.*faced right", "lateral faced right: mirrored"),
            (r"^lat.*(was turned|was inverted)", "lateral turned or inverted"),
            (r"burned in", "markers filled"),
            (r"is collimated|slanted border", "borders left out"),
            (r"is clipped", "clipped"),
            (r"check the marker", "sides doubtful"),
        )
        if any(re.search(pattern, sentence) for sentence in sentences)
    ]
    rows = next((s for s in sentences if "along rows" in s), "")
    match = re.search(r"differ by ([\d.]+%)(?: once \S+ is ([^.(]+))?", rows)
    agreement = match.groups() if match else ()
    verdict = next((s for s in sentences if "own radiographs differ from" in s), "")
    times = re.search(r"([\d.]+) times", verdict)
    return [
        folder.name,
        "; ".join(decided),
        " ".join(part for part in agreement if part),
        f"{record['reprojection_relative']:.0%}" + (f" ({times[1]} × usual)" if times else ""),
        f"{record['consistency']['difference']:.0%}",
        f"{air.sum() * spacing.prod() / 1e6:.1f} l",
        {0: "none", 1: "1 warning"}.get(len(record["warnings"]), f"{len(record['warnings'])} warnings"),
    ], volume


def sheet(rows: list[tuple[str, np.ndarray | None, np.ndarray | None]], path: Path) -> None:
    """Radiographs as given to the network, and three planes as radiologists hang them, a row a patient."""
    figure, axes = plt.subplots(len(rows), 5, figsize=(12, 2.5 * len(rows)), squeeze=False, facecolor="black")
    for line, (name, given, volume) in zip(axes, rows, strict=True):
        pictures: list[tuple[np.ndarray, float, float]] = []
        if given is not None:
            pictures += [(view, 0.0, 7.0) for view in given]
        if volume is not None:
            middle = [n // 2 for n in volume.shape]
            planes = volume[::-1, middle[1]].T[::-1], volume[middle[0], ::-1].T[::-1], volume[::-1, ::-1, middle[2]].T
            pictures += [(plane, -1024.0, 500.0) for plane in planes]
        for axis, (picture, low, high) in zip(line, pictures, strict=False):
            axis.imshow(picture, cmap="gray", vmin=low, vmax=high)
        for axis in line:
            axis.set_axis_off()
        line[0].set_title(name, color="white", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110, facecolor="black")
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    if output.is_relative_to(REPOSITORY):
        parser.error("--output lies inside the repository; pictures of patients' films do not belong there.")
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.checkpoint and arguments.checkpoint.resolve()
    description = read_checkpoint(chosen_weights(checkpoint))["description"]
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    load = LoadRadiographsd("image", geometry, fit="pitch", statistics=description.get("radiographs"))
    lines, pictures = [], []
    for folder in sorted(p for p in arguments.films.iterdir() if p.is_dir()):
        cells, volume = row(folder, checkpoint, output)
        lines.append(cells)
        try:
            given = load({"image": [next(iter(sorted(folder.glob(f"{view}.*")))) for view in ("pa", "lat")]})["image"]
        except InputError:
            given = None
        pictures.append((folder.name, None if given is None else given.numpy(), volume))
        print("| " + " | ".join(cells) + " |", flush=True)
    head = ["patient", "decided", "row sums", "reprojection", "structures", "lungs", "warnings"]
    table = [head, ["---"] * len(head), *lines]
    (output / "films.md").write_text("\n".join("| " + " | ".join(cells) + " |" for cells in table) + "\n")
    sheet(pictures, output / "films.png")
    print(output / "films.md", output / "films.png", sep="\n")


if __name__ == "__main__":
    main()
