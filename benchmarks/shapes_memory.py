"""Memory of a process that meets CTs of ever new shapes, which must not grow with their number.

    python benchmarks/shapes_memory.py --shapes 300
    python benchmarks/shapes_memory.py --through prepare --shapes 40
    python benchmarks/shapes_memory.py --through train --shapes 40

Prints resident memory after the first shape and after every so many. The CTs are made up, of 40 to 90 voxels along each
axis. ``resample`` puts each on the grid; ``prepare`` makes each a patient's folder, in the process that measures;
``train`` reads each from its file, without a cache, renders it, and takes a training step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import psutil
import torch
from monai.data import Dataset, MetaTensor

from drr2ct.networks import create_network
from drr2ct.pipeline.data.candidates import find_candidates
from drr2ct.pipeline.data.loading import PatientLoader
from drr2ct.pipeline.data.patient_job import make_patient, plan_jobs
from drr2ct.pipeline.data.settings import PrepareSettings
from drr2ct.transforms import files_to_samples
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.volume import ResampleToGrid, bounding_box_centre

SPACING_MM = 4.0
GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(64), detector_size=128)


def shapes(count: int) -> Iterator[tuple[int, int, int]]:
    """Shapes of CTs, seldom one twice."""
    draw = np.random.default_rng(0)
    for _ in range(count):
        i, j, k = (int(n) for n in draw.integers(40, 90, 3))
        yield i, j, k


def body(shape: tuple[int, int, int]) -> np.ndarray:
    """An elliptic trunk with two lungs, HU."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    values = np.where((x / 0.9) ** 2 + (y / 0.8) ** 2 < 1, 40, -1000)
    for side in (-0.4, 0.4):
        values[((x - side) / 0.3) ** 2 + (y / 0.55) ** 2 + (z / 0.8) ** 2 < 1] = -850
    return values.astype(np.int16)


def write_cts(folder: Path, count: int) -> list[Path]:
    """One file for each shape."""
    paths = []
    for number, shape in enumerate(shapes(count)):
        paths.append(folder / f"p{number:03d}.nii.gz")
        nib.save(nib.Nifti1Image(body(shape), np.diag([SPACING_MM] * 3 + [1])), paths[-1])
    return paths


def resample(count: int, folder: Path) -> Iterator[None]:
    """Onto a grid, without files."""
    onto = ResampleToGrid(VolumeGrid(32))
    for shape in shapes(count):
        ct = MetaTensor(torch.full((1, *shape), -1000.0), affine=np.diag([SPACING_MM] * 3 + [1]))
        ct.meta["isocentre"] = bounding_box_centre(ct).tolist()
        onto(ct)
        yield


def prepare(count: int, folder: Path) -> Iterator[None]:
    """What a process of ``drr2ct prepare`` does."""
    source = folder / "source"
    source.mkdir()
    write_cts(source, count)
    settings = PrepareSettings(GEOMETRY)
    for job in plan_jobs(find_candidates(source), source, settings):
        if error := make_patient(job, folder / "set", settings).error:
            raise SystemExit(error)
        yield


def train(count: int, folder: Path) -> Iterator[None]:
    """What a training does whose samples are not kept."""
    items = [{"patient": path.name, "label": str(path)} for path in write_cts(folder, count)]
    samples = Dataset(items, files_to_samples(GEOMETRY, keep_metadata=False))
    network = create_network("cascade64", geometry=GEOMETRY)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for batch in PatientLoader(samples):
        made = network(batch["image"])
        made = made if isinstance(made, torch.Tensor) else made[-1]
        (made - batch["label"]).abs().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def main() -> None:
    """Print the memory."""
    ways = {"resample": resample, "prepare": prepare, "train": train}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--through", choices=ways, default="resample")
    parser.add_argument("--shapes", type=int, default=300)
    parser.add_argument("--every", type=int, default=0, help="print after so many; a sixth of all by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every = arguments.every or max(1, arguments.shapes // 6)
    process = psutil.Process()
    with TemporaryDirectory() as folder:
        for number, _ in enumerate(ways[arguments.through](arguments.shapes, Path(folder)), 1):
            if number == 1 or number % every == 0:
                print(f"{number:4d} shapes, {process.memory_info().rss / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
