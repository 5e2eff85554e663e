"""From a CT in scanner orientation to the network's lifted features: nothing may be mirrored on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drr2ct.networks.lifting import BackprojectionLift
from drr2ct.transforms import files_to_samples
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from tests.files import write_nifti


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("angles", [(0.0, 90.0), (-30.0, 75.0)])
def test_a_bright_ball_is_lifted_to_where_the_ct_has_it(
    tmp_path: Path, flip: bool, angles: tuple[float, float]
) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(24, 240, flip), angles, detector_size=64)
    affine = np.array([[-8.0, 0, 0, 120], [0, -8, 0, 130], [0, 0, 8, -300], [0, 0, 0, 1]])  # LPS, as scanners store
    index = np.stack(np.meshgrid(*[np.arange(30)] * 3, indexing="ij"), -1)
    lift = BackprojectionLift(geometry, 24, level=0)
    for octant in np.ndindex(2, 2, 2):
        centre = [8 if low == 0 else 21 for low in octant]
        ball = ((index - centre) ** 2).sum(-1) < 6
        path = write_nifti(tmp_path / "ct" / "ct.nii.gz", np.where(ball, 40, -1000).astype(np.float32), affine)
        sample = files_to_samples(geometry)({"patient": "ct", "label": str(path)})
        lifted = lift(sample["image"][None, :, None])[0]
        product = lifted.clamp(min=0).prod(dim=0)  # views along channels, one feature each
        found, wanted = (
            np.array(np.unravel_index(int(volume.argmax()), (24, 24, 24))) for volume in (product, sample["label"][0])
        )
        assert np.abs(found - wanted).max() <= 1, (octant, found, wanted)
        np.testing.assert_array_equal(found > 11.5, wanted > 11.5)
