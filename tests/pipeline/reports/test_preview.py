"""The page of one reconstruction: what a network with bounds adds to it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from drr2ct.pipeline.pictures.scales import DOUBT_COLOURS
from drr2ct.pipeline.reports.preview import write_preview
from drr2ct.pipeline.volumes.placing import half_width, place_bounds, place_on_grid
from drr2ct.transforms import BiplanarGeometry, VolumeGrid, render_drr

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16, 320.0), detector_size=24)
RECORD = {
    **{"patient": "jane", "network": "cascade64", "checkpoint": "last.pt", "epoch": 3, "date": "today"},
    **{"warnings": [], "assumptions": [], "radiographs": ["pa.png", "lat.png"], "radiographs_mean": 1.0},
    **{"reprojection_mae": 0.1, "reprojection_bias": 0.0, "interval": {"calibrated_on": 5}},
}


def test_doubt_over_the_picture_with_a_legend_and_a_number_at_the_cross_hair(tmp_path: Path) -> None:
    def place(scaled: torch.Tensor):
        return place_on_grid(scaled, GEOMETRY)

    prediction = torch.zeros(1, 16, 16, 16)
    prediction[:, 3:13, 3:13, 3:13] = 0.25
    output = torch.cat([prediction, prediction - 0.02, prediction + 0.05])
    volume, doubt = place(prediction), half_width(place_bounds(place, output))
    given = render_drr(volume, GEOMETRY)
    with_doubt = write_preview(tmp_path / "a.html", volume, given, GEOMETRY, RECORD, doubt=doubt).read_text()
    without = write_preview(tmp_path / "b.html", volume, given, GEOMETRY, RECORD).read_text()
    body = with_doubt.split("<script")[0]
    assert 'id="doubt-opacity"' in body and 'id="doubt-value"' in body and ",".join(DOUBT_COLOURS) in body
    assert "± 400 HU and more" in body and "the 5 on which they are calibrated" in body
    assert "doubt-opacity" not in without.split("<script")[0]
    (data,) = json.loads(re.search(r'id="viewer-data">(.*?)</script>', with_doubt, re.S)[1])
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(data["doubt"])))
    assert np.allclose(image.affine, volume.affine)
    assert abs(image.get_fdata()[5, 6, 7] - 0.035 * 4095) <= 2.5, "half of what lies between, in steps of 5 HU"
