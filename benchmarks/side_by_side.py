"""What comparisons share: processor time of jobs that take turns, and what the machine cannot be faster than."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from drr2ct.transforms.geometry import View

JOSEPH_FLOPS = 8
"""Of a ray in a plane of voxels: four are interpolated, each a product and a sum."""


def processor_seconds(job: Callable[[], object]) -> float:
    """Of all threads, and of the commands that it runs, once."""

    def spent() -> float:
        usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    began = spent()
    job()
    return spent() - began


def least_seconds(jobs: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """The smallest processor time of each; they take turns, so that all meet the same machine."""
    rounds = [{name: processor_seconds(job) for name, job in jobs.items()} for _ in range(repetitions)]
    return {name: min(seconds[name] for seconds in rounds) for name in jobs}


def copied_bytes_per_second() -> float:
    """What memory gives a copy of 64 MiB, which reads and writes each byte, on one thread."""
    copied = torch.empty(64 * 2**20, dtype=torch.uint8)
    source = torch.ones_like(copied)
    return 2 * copied.numel() / min(processor_seconds(lambda: copied.copy_(source)) for _ in range(5))


def product_flops_per_second(size: int = 1024) -> float:
    """What a product of float32 matrices reaches, a product and a sum counted as two."""
    one, other = torch.rand(size, size), torch.rand(size, size)
    return 2 * size**3 / min(processor_seconds(lambda: one @ other) for _ in range(5))


def planes_crossed(view: View, to_isocentric: Float[np.ndarray, "4 4"], shape: tuple[int, int, int]) -> float:
    """Planes of voxels that all rays of a view cross, each ray those along the axis that it runs most along.

    So many interpolations Joseph's method needs. A ray's count is its length in the volume in voxels of that axis, a
    fraction.

    Args:
        view: source and detector.
        to_isocentric: voxel index → isocentric mm.
        shape: of the volume, in voxels.
    """
    rows, columns = view.detector_size
    u, v = view.detector_axes
    source = view.source_position
    centre = source * (1 - view.source_to_detector_mm / view.source_to_isocentre_mm)
    across = (np.arange(columns) - (columns - 1) / 2) * view.pixel_pitch_mm
    along = (np.arange(rows) - (rows - 1) / 2) * view.pixel_pitch_mm
    pixels = centre + across[None, :, None] * u + along[:, None, None] * v
    to_voxel = np.linalg.inv(to_isocentric)
    start = to_voxel[:3, :3] @ source + to_voxel[:3, 3]
    steps: Any = (pixels - source) @ to_voxel[:3, :3].T
    steps = np.where(np.abs(steps) < 1e-9, 1e-9, steps)  # a ray within a plane meets its borders far away
    borders = np.stack([(-0.5 - start) / steps, (np.array(shape) - 0.5 - start) / steps])
    entry = borders.min(axis=0).max(axis=-1)
    leave = borders.max(axis=0).min(axis=-1)
    return float((np.clip(leave - entry, 0, None) * np.abs(steps).max(axis=-1)).sum())
