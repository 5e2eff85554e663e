import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from drr2ct.transforms.radiographs.markers import fill, find_markers, marker_note
from tests.transforms.drawn_films import line_integrals, toned


def film(view=0):
    picture = toned(line_integrals()[view][36:92, 24:104], top=1.0) * 0.85
    return torch.nn.functional.interpolate(picture[None, None], scale_factor=8, mode="bilinear")[0, 0]


def test_a_film_without_marker_has_none():
    for view in (0, 1):
        picture = film(view)
        assert not find_markers(picture).any()
        assert marker_note(find_markers(picture), "pa.png") is None


def test_a_burned_in_letter_is_found_and_filled():
    clean = film()
    picture = Image.fromarray((clean * 255).round().byte().numpy())
    ImageDraw.Draw(picture).text((500, 40), "L", fill=255, font=ImageFont.load_default(60))
    written = torch.from_numpy(np.array(picture)).float() / 255
    letter = (written - clean).abs() > 0.2
    found = find_markers(written)
    assert letter.sum() > 200 and (found & letter).sum() > 0.95 * letter.sum()
    assert found.float().mean() < 0.02
    filled = fill(written, found)
    assert (filled - clean).abs()[found].mean() < 0.1 * (written - clean).abs()[letter].mean()
    torch.testing.assert_close(filled[~found], written[~found])
    assert marker_note(found, "pa.png").startswith("pa.png: 1 marker or label is burned in")


def test_a_box_over_a_name_is_found():
    clean = film()
    written = clean.clone()
    written[200:230, 300:400] = 0
    found = find_markers(written)
    assert found[200:230, 300:400].all() and found.float().mean() < 0.05
    assert (fill(written, found) - clean)[200:230, 300:400].abs().mean() < 0.06


def test_a_white_frame_is_no_marker():
    framed = film()
    framed[:30] = framed[-30:] = 1
    assert not find_markers(framed).any()


def test_a_mask_of_everything_or_nothing_changes_nothing():
    picture = film()
    for mask in (torch.zeros_like(picture, dtype=torch.bool), torch.ones_like(picture, dtype=torch.bool)):
        torch.testing.assert_close(fill(picture, mask), picture)
