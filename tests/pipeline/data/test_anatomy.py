"""One scan stored twice has one anatomy; another patient's differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Spacing

from drr2ct.pipeline.data.anatomy import SAME_ANATOMY, anatomy_of, decode_anatomy, encode_anatomy, twins
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.varied.kept import KeepCTd
from drr2ct.transforms.varied.scan import RandVaryd
from tests.files import chest

AFFINE = np.array([[8.0, 0, 0, -140], [0, 8, 0, -120], [0, 0, 8, 900], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def ct() -> MetaTensor:
    return MetaTensor(torch.from_numpy(chest((40, 36, 36)))[None], affine=AFFINE)


def another(ct: MetaTensor, seed: int) -> MetaTensor:
    """Another body, as trainings vary them."""
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=32)
    vary = Compose([KeepCTd("label", 8.0), RandVaryd("label", geometry)]).set_random_state(seed)
    return vary({"label": ct, "patient": "p"})["label"]


def likeness(a: MetaTensor, b: MetaTensor) -> float:
    return float(anatomy_of(a) @ anatomy_of(b))


def test_a_scan_stored_otherwise_is_the_same(ct: MetaTensor) -> None:
    thick = Spacing(pixdim=(9.0, 9.0, 16.0), mode="bilinear")(ct)
    turned = Orientation("LPS", labels=None)(ct)
    moved = MetaTensor(ct.as_tensor(), affine=AFFINE + np.array([[0, 0, 0, 70.0]] * 3 + [[0.0] * 4]))
    coarse = MetaTensor((ct.as_tensor() / 16).round() * 16, affine=AFFINE)
    for other in (thick, turned, moved, coarse):
        assert likeness(ct, other) > SAME_ANATOMY  # type: ignore[arg-type]


def test_another_body_is_not(ct: MetaTensor) -> None:
    for seed in range(3):
        assert likeness(ct, another(ct, seed)) < SAME_ANATOMY


def test_twins_are_found_through_their_text(ct: MetaTensor) -> None:
    texts = {
        "a": encode_anatomy(anatomy_of(ct)),
        "b": encode_anatomy(anatomy_of(another(ct, 1))),
        "c": encode_anatomy(anatomy_of(ct)),
    }
    assert twins({name: decode_anatomy(text) for name, text in texts.items()}) == {"c": "a"}
    assert twins({}) == {}
    with pytest.raises(ValueError):
        decode_anatomy("0" * 10)
