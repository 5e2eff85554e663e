import pytest

from drr2ct.transforms.radiographs.size import cassette, cassette_pixel_mm
from drr2ct.transforms.validation import InputError
from tests.transforms.drawn_films import GEOMETRY


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((3368, 2800), (35, 43)), ((2800, 3368), (35, 43)), ((954, 955), (43, 43)), ((2840, 2972), (43, 43))],
)
def test_the_cassette_is_the_one_of_the_nearest_aspect(shape, sides):
    assert cassette(shape) == sides
    edge, note, whole = cassette_pixel_mm(shape, GEOMETRY.views[0], "pa.png")
    assert edge * max(shape) == pytest.approx(430) and f"{sides[0]}×{sides[1]} cm" in note and whole


def test_a_part_is_no_cassette_and_a_strip_is_refused():
    _, note, whole = cassette_pixel_mm((1000, 600), GEOMETRY.views[0], "pa.png")
    assert "cannot be all of one" in note and not whole
    with pytest.raises(InputError, match=r"1000×300 pixels, a strip.*--pixel-spacing-mm"):
        cassette_pixel_mm((1000, 300), GEOMETRY.views[0], "pa.png")
