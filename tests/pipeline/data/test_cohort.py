"""The cohort: seeded, plausible, consistent, and the same whatever made it."""

from __future__ import annotations

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from drr2ct.pipeline.data.cohort import CohortPlan, Variation, vary, write_cohort
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.transforms import LoadCT, files_to_samples, render_drr
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.files import chest, write_nifti

AFFINE = np.array([[10.0, 0, 0, -170], [0, 10, 0, -150], [0, 0, 10, -130], [0, 0, 0, 1]])


def ct() -> MetaTensor:
    return MetaTensor(torch.from_numpy(chest())[None], affine=AFFINE)


def test_a_seed_is_a_patient() -> None:
    first, again, other = vary(ct(), 1), vary(ct(), 1), vary(ct(), 2)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 20
    np.testing.assert_array_equal(first.affine, AFFINE)
    assert first.min() >= -1024 and first.max() <= 3071


def test_without_variation_the_ct_stays() -> None:
    still = Variation(rotation_deg=0, scale=0, shift_mm=0, deformation=0, tissue=0)
    np.testing.assert_allclose(vary(ct(), 5, still), ct(), atol=0.5)


def test_cut_off_ends_leave_the_rest_where_it_was() -> None:
    cut = Variation(rotation_deg=0, scale=0, shift_mm=0, deformation=0, tissue=0, coverage=0.2)
    missing = []
    for seed in range(6):
        varied = vary(ct(), seed, cut)
        first = np.linalg.solve(AFFINE, varied.affine.numpy())[:3, 3]
        start = np.round(first).astype(int)
        np.testing.assert_allclose(first, start, atol=1e-6)
        end = start + varied.shape[1:]
        size = np.array(ct().shape[1:])
        assert (start >= 0).all() and (end <= size).all()
        assert (np.concatenate([start, size - end]) <= 0.2 * np.tile(size, 2) + 0.5).all()
        there = ct()[(slice(None), *map(slice, start, end))]
        np.testing.assert_allclose(varied.numpy(), there.numpy(), atol=0.5)
        missing.append((*start, *(size - end)))
    assert (np.std(missing, axis=0) > 0).all(), "every end of every axis is cut, differently"
    for wrong in (-0.1, 0.5, float("nan")):
        with pytest.raises(InputError, match="coverage is"):
            Variation(coverage=wrong)


def test_anatomy_stays_plausible() -> None:
    heart_left = 0
    for seed in range(8):
        varied = vary(ct(), seed)[0].numpy()
        lung = (varied < -600) & (varied > -950)
        assert 0.5 < lung.sum() / ((chest() < -600) & (chest() > -950)).sum() < 2
        assert (varied[:3] < -900).mean() > 0.5, "air beside the body"
        soft = np.argwhere((varied > 20) & (varied < 100))
        heart_left += soft[:, 0].mean() < (varied.shape[0] - 1) / 2
    assert heart_left >= 6, "the heart stays on the left"


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
    np.testing.assert_allclose(sample["label"].affine, geometry.grid.affine([5.0, 5, 5]), atol=1e-3)
    rendered = render_drr(LoadCT()(item["label"]), geometry)
    stored = sample["image"] * LINE_INTEGRAL_SCALE
    assert (rendered - stored).abs().mean() / stored.mean() < 0.2  # the CT on 20³ is coarse
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
