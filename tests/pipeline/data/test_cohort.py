"""The cohort: seeded, plausible, consistent, and the same whatever made it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.transforms import LoadCT, files_to_samples, render_drr
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.files import chest, write_nifti

AFFINE = np.array([[10.0, 0, 0, -170], [0, 10, 0, -150], [0, 0, 10, -130], [0, 0, 0, 1]])


@pytest.mark.slow
def test_the_written_cohort_is_a_data_set_whatever_the_workers(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "source" / "source.nii.gz", chest(), AFFINE)
    geometry = BiplanarGeometry.from_angles(VolumeGrid(20), detector_size=32)
    plan = CohortPlan((source,), geometry, training=2, validation=1, test=1, seed=3)
    one, two = tmp_path / "one", tmp_path / "two"
    made: list[int] = []
    write_cohort(one, plan, workers=1, on_patient=lambda: made.append(1))
    write_cohort(two, plan, workers=2)
    assert len(made) == 4
    for item, twin in zip(load_datalist(one, "training"), load_datalist(two, "training"), strict=True):
        for path, other in zip([item["label"], *item["image"]], [twin["label"], *twin["image"]], strict=True):
            np.testing.assert_array_equal(nib.load(path).get_fdata(), nib.load(other).get_fdata())
    # the stored radiographs are those of the varied CT, around the same isocentre
    item = load_datalist(one, "test")[0]
    sample = files_to_samples(geometry)(item)
    rendered = render_drr(LoadCT()(item["label"]), geometry)
    stored = sample["image"] * LINE_INTEGRAL_SCALE
    assert (rendered - stored).abs().mean() / stored.mean() < 0.2  # the CT on 20³ is coarse
    for path, view in zip(item["image"], geometry.views, strict=True):
        assert nib.load(path).header.get_zooms()[:2] == pytest.approx([view.pixel_pitch_mm] * 2)
    # a second run keeps what is there
    stamp = Path(item["label"]).stat().st_mtime_ns
    time.sleep(0.01)
    write_cohort(one, plan, workers=1)
    assert Path(item["label"]).stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="other settings"):
        write_cohort(one, CohortPlan((source,), geometry, training=2, validation=1, test=1, seed=4))


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    plan = CohortPlan((tmp_path / "none.nii.gz",), BiplanarGeometry.from_angles(VolumeGrid(8), detector_size=16))
    with pytest.raises(InputError, match="not empty"):
        write_cohort(tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    source = write_nifti(tmp_path / "ct.nii.gz", chest((96, 96, 80)), np.diag([3.5, 3.5, 4, 1]))
    program = (
        "from pathlib import Path\n"
        "from drr2ct.pipeline.data.cohort import CohortPlan, write_cohort\n"
        "from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid\n"
        "if __name__ == '__main__':\n"
        "    geometry = BiplanarGeometry.from_angles(VolumeGrid(64), detector_size=64)\n"
        f"    write_cohort({str(tmp_path / 'set')!r}, CohortPlan((Path({str(source)!r}),), geometry), 2)\n"
    )
    (tmp_path / "run.py").write_text(program)
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py")])
    deadline = time.time() + 120
    while not list((tmp_path / "set").glob("patient-*/*_drr.nii.gz")) and time.time() < deadline:
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
