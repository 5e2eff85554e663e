"""Samples from a cache on disk, by this package's and by MONAI's PersistentDataset: processor time, bytes, equality.

python benchmarks/against_loading.py [--size 128] [--detector 256] [--repetitions 5] [--folder DIR]

Both are given the same transforms and the sample CT. First the samples of a training without variation, which are
cached whole; then those that are varied anew each time, of which the CT is cached, cut and coarsened. The first epoch
fills the cache; of later ones the smallest counts. They take turns. The limit is the entry read once from memory, and
what it holds written once in the precision of its tensors, at the bandwidth of a copy; for a varied sample that is the
cached part alone. The difference from MONAI's sample is the largest, as a share of the largest value.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.transforms import Compose
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from side_by_side import copied_bytes_per_second, least_seconds, processor_seconds

from drr2ct.pipeline.data.cache import CachedDataset
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept, files_to_samples, kept_to_samples

OURS, MONAI = "this package", "MONAI"


def sample_of(dataset: PersistentDataset) -> dict[str, Any]:
    """The one patient's, by the same variation each time."""
    dataset.transform.set_random_state(0)
    return dataset[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="voxels of the grid along an axis")
    parser.add_argument("--detector", type=int, default=256, help="rows and columns")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the caches; a temporary one by default")
    arguments = parser.parse_args()
    geometry = BiplanarGeometry.from_angles(VolumeGrid(arguments.size), detector_size=arguments.detector)
    item = {"patient": "patient", "label": str(sample_ct())}
    bandwidth = copied_bytes_per_second()
    table = Table("sample", "by", "first, s", "later, ms", "ratio", "MiB", "difference", "limit, ms", box=MARKDOWN)
    table.title = f"{arguments.size}³, {arguments.detector}², smallest of {arguments.repetitions}"
    chains: dict[str, Callable[[], Compose]] = {
        "as it is": lambda: files_to_samples(geometry, keep_metadata=False),
        "varied": lambda: Compose([files_to_kept(geometry), kept_to_samples(geometry)]).flatten(),
    }
    for kind, chain in chains.items():
        sample_of(PersistentDataset([item], chain(), None))  # loads libraries
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            places = {name: Path(folder) / name for name in (OURS, MONAI)}
            # a varied sample's CT needs its metadata
            options = {"track_meta": kind == "varied", "weights_only": kind != "varied"}
            datasets = {
                OURS: CachedDataset([item], chain(), places[OURS]),
                MONAI: PersistentDataset([item], chain(), places[MONAI], **options),
            }
            first = {name: processor_seconds(partial(sample_of, dataset)) for name, dataset in datasets.items()}
            jobs = {name: partial(sample_of, dataset) for name, dataset in datasets.items()}
            later = least_seconds(jobs, arguments.repetitions)
            samples = {name: job() for name, job in jobs.items()}
            entries = {name: next(place.glob("*.pt")).stat().st_size for name, place in places.items()}
        exact = samples[MONAI]
        for name, sample in samples.items():
            differs = max(
                float((sample[key] - exact[key]).abs().max() / exact[key].abs().max()) for key in ("image", "label")
            )
            limit = 1e3 * (entries[name] + entries[MONAI]) / bandwidth
            row = (f"{first[name]:.2f}", f"{1e3 * later[name]:.1f}", f"{later[name] / later[OURS]:.1f}")
            table.add_row(kind, name, *row, f"{entries[name] / 2**20:.1f}", f"{differs:.1e}", f"{limit:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"threads: {torch.get_num_threads()}, load {os.getloadavg()[0]:.1f}", highlight=False)


if __name__ == "__main__":
    main()
