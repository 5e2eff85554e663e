import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.transforms.body import within_tissue
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept, kept_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.pathology import RandPathologyd, lungs_of

SPACING = (4.0, 5.0, 3.0)


def thorax() -> MetaTensor:
    """Two lungs side by side in a body of 0 HU, which air surrounds; a rib crosses the first lung."""
    hu = torch.full((1, 60, 48, 70), -1000.0)
    hu[0, 8:52, 8:40] = 0
    hu[0, 12:28, 12:36, 10:] = -800
    hu[0, 32:48, 12:36, 10:] = -800
    hu[0, 18:20, :36, 30:32] = 700
    return MetaTensor(hu, affine=torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64)))


def changed(seed: int, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    transform = RandPathologyd("label", **settings)
    transform.set_random_state(seed)
    scan = thorax()
    return scan.as_tensor()[0], transform({"label": scan})["label"].as_tensor()[0]


def test_the_body_holds_its_lungs_and_no_air_beside_it() -> None:
    scan = thorax()[0].as_tensor()
    body = within_tissue(scan >= -500)
    expected = torch.zeros(scan.shape, dtype=torch.bool)
    expected[8:52, 8:40] = True
    assert torch.equal(body, expected | (scan >= -500))
    lungs = lungs_of(scan)
    assert torch.equal(lungs, scan == -800)


def test_only_lungs_change_and_towards_tissue() -> None:
    for seed in range(20):
        before, after = changed(seed, mass_prob=1.0, effusion_prob=1.0)
        different = before != after
        assert different.any() and (before[different] == -800).all()
        assert (after[different] > -800).all() and (after[different] <= 60).all()


def test_a_mass_is_as_large_as_it_should_be() -> None:
    for seed in range(20):
        before, after = changed(seed, mass_prob=1.0, effusion_prob=0.0, mass_mm=(40.0, 40.0))
        dense = (after - before > 400).nonzero()
        low, high = dense.min(dim=0).values, dense.max(dim=0).values
        extent = (high - low + 1).numpy() * np.array(SPACING)
        assert (extent <= 40 + 2 * np.array(SPACING)).all(), "a ribcage may cut it off, but it is no larger"
    assert extent.max() > 15


def test_fluid_lies_at_the_base_of_one_lung_up_to_its_level() -> None:
    sides = set()
    for seed in range(20):
        before, after = changed(seed, mass_prob=0.0, effusion_prob=1.0, level_mm=(60.0, 60.0))
        wet = after - before > 400
        filled = [wet[part].any() for part in (slice(0, 30), slice(30, 60))]
        assert sum(map(int, filled)) == 1
        sides.add(bool(filled[0]))
        heights = wet.any(dim=0).any(dim=0).nonzero()[:, 0]
        assert heights.min() == 10 and 10 + 60 / 3 - 1 <= heights.max() <= 10 + (60 + 15) / 3 + 1
        assert wet[..., 10].sum() == (before[..., 10] == -800).sum() // 2
    assert sides == {True, False}


def test_it_is_drawn_as_often_as_asked_and_alike_for_a_seed() -> None:
    transform = RandPathologyd("label", 0.3, 0.3).set_random_state(0)
    scan = thorax()
    count = sum(not torch.equal(transform({"label": scan})["label"].as_tensor(), scan.as_tensor()) for _ in range(200))
    assert 200 * 0.51 - 30 < count < 200 * 0.51 + 30  # one or the other
    assert torch.equal(changed(3, mass_prob=1.0)[1], changed(3, mass_prob=1.0)[1])
    assert torch.equal(*changed(3, mass_prob=0.0, effusion_prob=0.0))


def test_what_has_no_lungs_stays() -> None:
    solid = MetaTensor(torch.zeros(1, 20, 20, 20), affine=torch.eye(4, dtype=torch.float64))
    found = RandPathologyd("label", 1.0, 1.0)({"label": solid})["label"]
    assert torch.equal(found.as_tensor(), solid.as_tensor())


def test_radiographs_see_it(tmp_path) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=64)
    kept = files_to_kept(geometry)({"patient": "sample", "label": str(sample_ct())})
    found = []
    for pathology in (None, RandPathologyd("label", 1.0, 1.0)):
        steps = kept_to_samples(geometry, prob=0.0, pathology=pathology)
        found.append(steps.set_random_state(1)(kept))
    plain, ill = found
    change = ill["image"] - plain["image"]
    assert change.max() > 0.02 and change.min() > -0.005, "it only adds"
    assert (ill["label"] - plain["label"]).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"mass_mm": (0.0, 5.0)}, "mass_mm"), ({"level_mm": (9.0, 5.0)}, "level_mm"), ({"mass_prob": 2.0}, "mass_prob")],
)
def test_impossible_settings_are_refused(settings: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        RandPathologyd("label", **settings)
