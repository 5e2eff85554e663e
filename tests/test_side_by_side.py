"""The physical limit that comparisons with other programs show."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.side_by_side import planes_crossed, processor_seconds
from drr2ct.transforms.geometry import View


def affine(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = -np.array(spacing) * (np.array(shape) - 1) / 2
    return matrix


@pytest.mark.parametrize(("angle", "axis"), [(0.0, 1), (90.0, 0)])
def test_parallel_rays_cross_each_plane_once(angle: float, axis: int) -> None:
    shape, spacing = (6, 10, 4), (2.0, 3.0, 5.0)
    view = View("far", angle, 1e7, 1e7 + 500, (40, 50), 1.0)
    wide = (shape[1 - axis] * spacing[1 - axis], shape[2] * spacing[2])
    meeting = min(wide[0], 50) * min(wide[1], 40)  # pixels of 1 mm
    assert planes_crossed(view, affine(spacing, shape), shape) == pytest.approx(meeting * shape[axis], rel=1e-3)


def test_rays_beside_the_volume_cross_nothing() -> None:
    shape = (4, 4, 4)
    aside = affine((1.0, 1.0, 1.0), shape)
    aside[0, 3] += 300
    assert planes_crossed(View("pa", 0.0, 1000, 1200, (20, 20), 1.0), aside, shape) == 0


def test_a_diagonal_ray_counts_the_axis_it_runs_most_along() -> None:
    shape = (101, 101, 101)
    view = View("oblique", 30.0, 1e7, 1e7 + 500, (1, 1), 1.0)
    # through the centre at 30° to y, it leaves through the faces of y
    assert planes_crossed(view, affine((1.0, 1.0, 1.0), shape), shape) == pytest.approx(101, rel=1e-3)


def test_commands_that_a_job_runs_count() -> None:
    program = "import time\nwhile time.process_time() < 0.3: pass"
    assert processor_seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True)) >= 0.3
