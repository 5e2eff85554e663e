"""What is kept of a CT: everything that can be seen, on fewer voxels, where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.kept import KeepCT, Scan, kept_spacing_mm
from tests.files import chest, write_nifti

AFFINE = np.array([[4.0, 0, 0, -170], [0, 4, 0, -150], [0, 0, 5, -130], [0, 0, 0, 1]])


def ct(shape: tuple[int, int, int] = (72, 90, 56)) -> MetaTensor:
    """A chest with air around it."""
    volume = np.full(shape, -1000.0, dtype=np.float32)
    volume[:, 13:77] = chest((shape[0], 64, shape[2]))
    return MetaTensor(torch.from_numpy(volume)[None], affine=AFFINE)


def test_spacing_follows_grid_and_detector() -> None:
    def spacing(size: int, detector: int) -> float:
        return kept_spacing_mm(BiplanarGeometry.from_angles(VolumeGrid(size), detector_size=detector))

    assert spacing(256, 512) == pytest.approx(360 / 256), "the grid's own voxels"
    assert spacing(128, 256) == pytest.approx(360 / 128)
    assert 3 < spacing(64, 128) < 4, "its pixels"
    assert spacing(64, 512) == 3, "no finer than CTs are"
    assert spacing(32, 16) < 360 / 32 + 1e-9


def test_what_is_kept_casts_the_same_radiographs() -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=48)
    whole = ct()
    kept = KeepCT(6.0)(whole)
    assert kept.dtype == torch.int16 and kept.numel() < 0.4 * whole.numel()
    assert kept.shape[2] * 6 < 0.85 * 90 * 4, "the air in front and behind is gone"
    scan = Scan.of(kept)
    np.testing.assert_allclose(scan.extent, np.array([72, 90, 56]) * [4, 4, 5])
    np.testing.assert_allclose(scan.centre, [-28, 28, 7.5])
    before = render_drr(whole, geometry)
    after = render_drr(kept, geometry, isocentre=scan.isocentre)
    assert float((after - before).abs().mean() / before.mean()) < 0.03
    assert float((after - before).mean() / before.mean()) == pytest.approx(0, abs=0.01)


def test_fine_detail_does_not_alias() -> None:
    stripes = torch.full((1, 64, 64, 64), -1000.0)
    stripes[:, ::2] = 1000
    kept = KeepCT(16.0)(MetaTensor(stripes, affine=AFFINE))
    assert float(kept.float()[:, 2:-2].std()) < 30, "a plain grey, not another pattern"


def test_voxels_that_are_coarse_already_stay() -> None:
    kept = KeepCT(1.0)(ct())
    np.testing.assert_allclose(np.abs(np.diag(np.asarray(kept.affine))[:3]), [4, 4, 5])
    first = np.linalg.solve(AFFINE, np.asarray(kept.affine))[:3, 3].round().astype(int)
    there = ct()[(slice(None), *(slice(f, f + n) for f, n in zip(first, kept.shape[1:], strict=True)))]
    assert float((kept.float() - there.as_tensor()).abs().max()) <= 0.5


def test_air_alone_and_foreign_volumes(tmp_path: Path) -> None:
    air = MetaTensor(torch.full((1, 10, 10, 10), -1000.0), affine=AFFINE)
    assert KeepCT(4.0)(air).shape == (1, 10, 10, 10), "all of it"
    with pytest.raises(InputError, match="KeepCT"):
        Scan.of(air)
    path = write_nifti(tmp_path / "p" / "p.nii.gz", chest(), np.diag([-9.0, 9, 10, 1]))
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=48)
    item = files_to_kept(geometry)({"patient": "p", "label": str(path), "image": ["does not exist"]})
    assert set(item) == {"label", "patient"} and item["label"].affine[0, 0] > 0, "turned to RAS; no radiograph is read"
