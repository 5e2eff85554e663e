import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from drr2ct.transforms.radiographs.intensity import (
    FIELDS,
    QUANTILES,
    WARNING_DISTANCE,
    distribution_warning,
    match_quantiles,
    quantiles_for_field,
    radiograph_quantiles,
    radiograph_statistics,
)
from drr2ct.transforms.validation import InputError
from tests.transforms.phantoms import phantom_radiographs

TRAINED = 12


@pytest.fixture(scope="module")
def statistics():
    return radiograph_statistics([{"image": image} for image in phantom_radiographs(TRAINED)])


def processed(image, gamma, low, high):
    """As a console shows it: a window on the line integrals, then a curve; dense is bright."""
    shown = ((image - low * image.max()) / ((high - low) * image.max())).clamp(0, 1)
    return shown**gamma


@settings(max_examples=12, deadline=None)
@given(gamma=st.floats(0.5, 2.0), scale=st.floats(0.1, 5000), offset=st.floats(-100, 100), seed=st.integers(0, 5))
def test_a_processed_picture_gets_its_line_integrals_back(gamma, scale, offset, seed):
    """Any monotone processing is undone if the target is the image's own distribution."""
    image = phantom_radiographs(TRAINED)[seed, seed % 2]
    picture = (image / image.max()) ** gamma * scale + offset
    matched = match_quantiles(picture, radiograph_quantiles([image]))
    # between two quantiles the curve is straight, and what little the body's outline holds depends on its level
    assert float((matched - image).abs().mean()) < 0.03
    assert np.corrcoef(matched.flatten(), image.flatten())[0, 1] > 0.98


@settings(max_examples=40, deadline=None)
@given(
    picture=st.lists(st.integers(0, 20), min_size=36, max_size=36),
    target=st.lists(st.floats(0, 3), min_size=QUANTILES, max_size=QUANTILES),
)
def test_matching_is_monotone_and_stays_within_the_target(picture, target):
    image = torch.tensor(picture, dtype=torch.float32).reshape(6, 6)
    matched = match_quantiles(image, sorted(target))
    assert torch.isfinite(matched).all() and matched.min() >= 0 and matched.max() <= max(target) + 1e-6
    order = image.flatten().argsort()
    assert (matched.flatten()[order].diff() >= -1e-6).all()


def test_matching_leaves_what_the_picture_does_not_cover_and_ignores_it():
    image = phantom_radiographs(TRAINED)[0, 0]
    quantiles = radiograph_quantiles([image])
    mask = torch.ones_like(image, dtype=torch.bool)
    mask[:8] = False
    spoilt = image.clone()
    spoilt[:8] = 1e6
    matched = match_quantiles(spoilt, quantiles, mask)
    torch.testing.assert_close(matched, match_quantiles(image, quantiles, mask))
    assert matched[:8].abs().max() == 0
    assert match_quantiles(image, quantiles, torch.zeros_like(mask)).abs().max() == 0


def test_quantiles_of_several_images_are_the_mean_of_their_own():
    first, second = phantom_radiographs(TRAINED)[:2, 1]
    both = np.mean([radiograph_quantiles([first]), radiograph_quantiles([second])], axis=0)
    np.testing.assert_allclose(radiograph_quantiles(x for x in (first, second)), both)
    assert len(both) == QUANTILES and (np.diff(both) >= 0).all()
    large = torch.kron(first, torch.ones(40, 40))  # 6.5 million pixels
    np.testing.assert_allclose(radiograph_quantiles([large]), radiograph_quantiles([first]), atol=0.02)


def test_statistics_are_plain_and_are_what_the_images_have(statistics):
    assert json.loads(json.dumps(statistics)) == statistics
    images = phantom_radiographs(TRAINED)
    assert statistics["samples"] == TRAINED and len(statistics["views"]) == 2
    for index, view in enumerate(statistics["views"]):
        np.testing.assert_allclose(view["quantiles"][-1], radiograph_quantiles(images[:, index]), atol=1e-6)
        np.testing.assert_allclose(
            quantiles_for_field(view, FIELDS[1] ** 2), radiograph_quantiles(images[:, index], FIELDS[1]), atol=1e-6
        )
        means = F.interpolate(images[:, index : index + 1], size=(32, 32), mode="area").mean(dim=0)[0]
        np.testing.assert_allclose(view["thumbnail"], means, atol=1e-6)


def test_statistics_read_a_stated_number_of_samples_over_the_whole_set():
    read: list[int] = []
    broken: set[int] = set()

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return TRAINED

        def __getitem__(self, index):
            read.append(index)
            if index in broken:
                raise RuntimeError("applying transform")
            return {"image": phantom_radiographs(TRAINED)[index]}

    assert radiograph_statistics(Samples(), limit=4)["samples"] == 4
    assert read == [0, 4, 7, 11]
    broken.add(4)
    assert radiograph_statistics(Samples(), limit=4)["samples"] == 3
    broken.update(range(TRAINED))
    with pytest.raises(InputError, match="none of the training set's"):
        radiograph_statistics(Samples())


def test_patients_like_the_training_set_pass(statistics):
    """Others, shifted and scaled as a patient is placed by hand."""
    generator = np.random.default_rng(0)
    warned = 0
    for image in phantom_radiographs(40, TRAINED):
        scale, (dy, dx) = generator.uniform(0.93, 1.07), generator.uniform(-0.06, 0.06, 2)
        theta = torch.tensor([[[scale, 0, dx], [0, scale, dy]]] * 2).float()
        moved = F.grid_sample(image[:, None], F.affine_grid(theta, (2, 1, 64, 64), align_corners=False))[:, 0]
        warned += distribution_warning(moved * generator.uniform(0.9, 1.1), statistics) is not None
    assert warned <= 2


def other_pictures():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    generator = torch.Generator().manual_seed(0)
    hand = (((columns / 0.35) ** 2 + ((rows - 0.4) / 0.4) ** 2) < 1).float() * 0.6
    for angle in (-0.55, -0.2, 0.05, 0.3, 0.9):
        along = columns * np.sin(angle) - (rows - 0.3) * np.cos(angle)
        across = columns * np.cos(angle) + (rows - 0.3) * np.sin(angle)
        finger = (across.abs() < 0.07) & (along > 0.2) & (along < 0.95)
        bone = (across.abs() < 0.035) & (along > 0.2) & (along < 0.9)
        hand = torch.maximum(hand, finger * 0.5 + bone * 0.45)
    return {
        "blank": torch.zeros(64, 64),
        "noise": torch.rand(64, 64, generator=generator),
        "ramp": (columns + 1) / 2,
        "disc": ((rows**2 + columns**2) < 0.6).float(),
        "stripes": (torch.sin(columns * 40) > 0).float(),
        "hand": hand,
    }


@pytest.mark.parametrize("name", list(other_pictures()))
@pytest.mark.parametrize("matched", [False, True])
def test_other_pictures_are_pointed_out(statistics, name, matched):
    picture = other_pictures()[name]
    if matched:
        images = torch.stack([match_quantiles(picture, view["quantiles"][-1]) for view in statistics["views"]])
    else:
        images = torch.stack([picture, picture]) * 8 / 6
    warning = distribution_warning(images, statistics)
    assert warning and "\n" not in warning and warning.startswith("Radiograph ") and f"{WARNING_DISTANCE:g}" in warning


def test_photographs_are_pointed_out(statistics):
    data = pytest.importorskip("skimage.data")
    for photo in (data.camera(), data.coins(), data.moon(), data.brick()):
        picture = F.interpolate(torch.from_numpy(photo)[None, None].float() / 255, size=(64, 64), mode="area")[0, 0]
        images = torch.stack([match_quantiles(picture, view["quantiles"][-1]) for view in statistics["views"]])
        assert distribution_warning(images, statistics)


def test_the_view_and_the_feature_are_named(statistics):
    images = phantom_radiographs(1, TRAINED)[0].clone()
    images[1] = images[1].max() - images[1]
    assert distribution_warning(images, statistics).startswith("Radiograph 2 ")
    assert distribution_warning(images, None) is None


def test_one_training_patient_is_enough_for_statistics():
    statistics = radiograph_statistics([{"image": phantom_radiographs(1)[0]}])
    assert distribution_warning(phantom_radiographs(1)[0], statistics) is None
    assert distribution_warning(torch.rand(2, 64, 64), statistics)
