"""Memory of a process that smooths and resamples CTs of ever new shapes, as prepare, cohort and train without cache do.

    python benchmarks/shapes_memory.py --shapes 300

Prints resident memory after every 50 shapes; it must stay flat.
"""

from __future__ import annotations

import argparse

import numpy as np
import psutil
import torch
from monai.data import MetaTensor

from drr2ct.transforms.geometry import VolumeGrid
from drr2ct.transforms.volume import ResampleToGrid, bounding_box_centre


def main() -> None:
    """Resample random volumes onto the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    resample = ResampleToGrid(VolumeGrid(32))
    process = psutil.Process()
    for number in range(1, arguments.shapes + 1):
        shape = tuple(int(n) for n in draw.integers(40, 90, 3))
        ct = MetaTensor(torch.full((1, *shape), -1000.0), affine=np.diag([4.0, 4, 4, 1]))
        ct.meta["isocentre"] = bounding_box_centre(ct).tolist()
        resample(ct)
        if number == 1 or number % 50 == 0:
            print(f"{number:4d} shapes, {process.memory_info().rss / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
