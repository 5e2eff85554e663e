import pytest

from drr2ct.transforms.radiograph_size import cassette, cassette_pixel_mm
from tests.transforms.films import GEOMETRY


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((3368, 2800), (35, 43)), ((2800, 3368), (35, 43)), ((954, 955), (43, 43)), ((2840, 2972), (43, 43))],
)
def test_the_cassette_is_the_one_of_the_nearest_aspect(shape, sides):
    assert cassette(shape) == sides
    edge, note = cassette_pixel_mm(shape, GEOMETRY.views[0], "pa.png")
    assert edge * max(shape) == pytest.approx(430) and f"{sides[0]}×{sides[1]} cm" in note


def test_a_strip_is_no_cassette_and_that_is_said():
    assert "cannot be all of one" in cassette_pixel_mm((1000, 600), GEOMETRY.views[0], "pa.png")[1]
