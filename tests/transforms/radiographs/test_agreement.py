from dataclasses import replace

import pytest
import torch

from drr2ct.transforms.radiographs.agreement import (
    CALIBRATED_LIMIT,
    Agreement,
    agreement_note,
    agreement_warning,
    compare_views,
    missing_exposure,
    moved_view,
)
from tests.transforms.drawn_films import GEOMETRY, PITCH, line_integrals, toned

AT_ISOCENTRE = PITCH * GEOMETRY.views[0].source_to_isocentre_mm / GEOMETRY.views[0].source_to_detector_mm


def covering(rows):
    covered = torch.zeros(2, 128, 128, dtype=torch.bool)
    for view, (first, last) in enumerate(rows):
        covered[view, first:last] = True
    return covered


def test_two_views_of_one_patient_agree():
    found = compare_views(line_integrals(), None, GEOMETRY.views, exposures_known=True)
    assert not found.moved and found.difference < 0.04 and found.gain == 1
    assert agreement_warning(found, True) is None
    assert "differ by" in agreement_note(found, "lat.png") and "aligned" not in agreement_note(found, "lat.png")


@pytest.mark.parametrize("raised", [30.0, -20.0])
@pytest.mark.parametrize("picture", [False, True])
def test_the_laterals_height_is_found(raised, picture):
    """The lateral is taken higher: what it shows lies lower on the film. Both fields end within the scan."""
    images = torch.stack([line_integrals()[0], line_integrals(raised)[1]])
    covered = covering([(38, 90), (38, 90)])
    if picture:
        images = torch.stack([toned(image) * 7 for image in images])
    images = images * covered
    found = compare_views(images, covered, GEOMETRY.views, exposures_known=not picture)
    assert found.shift_mm == pytest.approx(-raised, abs=6) and found.difference < 0.5 * found.stored
    assert f"aligned by {found.shift_mm:+.0f} mm".replace("-", "−") in agreement_note(found, "lat.png")
    moved = moved_view(images[1], GEOMETRY.views[1], found)
    inner = slice(50, 78)  # what both show
    right = toned(line_integrals()[1]) * 7 if picture else line_integrals()[1]
    assert (moved - right)[inner].abs().mean() < 0.5 * (images[1] - right)[inner].abs().mean()


def test_another_size_is_found_where_the_pitch_is_not_known():
    from torch.nn.functional import affine_grid, grid_sample

    matrix = torch.tensor([[[1.06, 0, 0], [0, 1.06, 0]]])
    lateral = line_integrals()[1]
    smaller = grid_sample(lateral[None, None], affine_grid(matrix, [1, 1, 128, 128], False), align_corners=False)[0, 0]
    images = torch.stack([line_integrals()[0], smaller])
    found = compare_views(images, None, GEOMETRY.views, exposures_known=True, scalable=True)
    assert found.scale == pytest.approx(1.06, abs=0.02)
    assert compare_views(images, None, GEOMETRY.views, exposures_known=True).scale == 1


def test_another_patient_is_warned_of():
    images = line_integrals().clone()
    images[1] *= 1.25
    found = compare_views(images, None, GEOMETRY.views, exposures_known=True)
    assert found.difference > CALIBRATED_LIMIT
    assert "same patient" in agreement_warning(found, True)
    # a picture's exposure is free
    assert agreement_warning(compare_views(images, None, GEOMETRY.views, exposures_known=False), False) is None


def test_an_unknown_exposure_follows_from_the_other_view():
    pa, lateral = line_integrals()
    body = lateral > 0.3
    missing = missing_exposure(pa, lateral - 1.2 * body, body, GEOMETRY.views)
    assert missing == pytest.approx(1.2, abs=0.1)


def test_fields_that_share_too_little_are_not_compared():
    covered = covering([(30, 50), (80, 100)])
    assert compare_views(line_integrals() * covered, covered, GEOMETRY.views, True, movable=False) is None


def test_pictures_that_disagree_more_than_matching_leaves_are_doubted():
    found = Agreement(0.0, 1.0, 1.0, stored=0.16, difference=0.16, overlap=1.0)
    assert "do not trust HU and sizes" in (agreement_warning(found, exposures_known=False) or "")
    assert "HU" not in (agreement_warning(found, exposures_known=True) or "HU")
    close = replace(found, difference=0.1)
    assert agreement_warning(close, exposures_known=False) is None and agreement_warning(close, exposures_known=True)
