import pytest

from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.radiographs.size import cassette, cassette_pixel_mm
from drr2ct.transforms.validation import InputError
from tests.transforms.drawn_films import FIELD, GEOMETRY, PITCH, line_integrals, statistics, toned
from tests.transforms.radiographs.test_loading import save_dicom


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((3368, 2800), (35, 43)), ((2800, 3368), (35, 43)), ((954, 955), (43, 43)), ((2840, 2972), (43, 43))],
)
def test_the_cassette_is_the_one_of_the_nearest_aspect(shape, sides):
    assert cassette(shape) == sides
    edge, note, whole = cassette_pixel_mm(shape, GEOMETRY.views[0], "pa.png")
    assert edge * max(shape) == pytest.approx(430) and f"{sides[0]}×{sides[1]} cm" in note and whole


@pytest.mark.parametrize(("shape", "said"), [((512, 512), True), ((954, 955), False), ((3028, 3028), False)])
def test_a_square_of_few_pixels_may_have_been_squeezed_into_it(shape, said):
    assert ("give it in its own shape" in cassette_pixel_mm(shape, GEOMETRY.views[0], "pa.png")[1]) == said


def test_a_part_is_no_cassette_and_a_strip_is_refused():
    _, note, whole = cassette_pixel_mm((1000, 600), GEOMETRY.views[0], "pa.png")
    assert "cannot be all of one" in note and not whole
    with pytest.raises(InputError, match=r"1000×300 pixels, a strip.*--pixel-spacing-mm"):
        cassette_pixel_mm((1000, 300), GEOMETRY.views[0], "pa.png")


def files(folder, factor, **tags):
    """DICOM pictures whose header has ``factor`` times the pitch that they have."""
    made = []
    for name, image in zip(("pa", "lat"), line_integrals(), strict=True):
        stored = (toned(image[FIELD]) * 4095).round().numpy()
        pitch = [PITCH * factor] * 2
        made.append(save_dicom(folder / f"{name}.dcm", stored, 12, ImagerPixelSpacing=pitch, **tags))
    return made


@pytest.mark.parametrize(
    ("factor", "refused", "says"),
    [
        (0.5, True, r"pa.dcm shows 118×169 mm by its pitch of 2.11 mm, too small for a chest; if .* \(--pixel-spacing"),
        (0.75, False, "pa.dcm shows 177×253 mm by its pitch of 3.16 mm, and looks more like view pa at another size"),
        (1.0, False, ""),
        (
            1.7,
            True,
            "pa.dcm shows 402×574 mm by its pitch of 7.17 mm, and looks more like view pa at another size; if ",
        ),
        (
            2.5,
            True,
            "pa.dcm shows 591×844 mm .* and looks more like view pa at another size; if .* the pitch that it has",
        ),
    ],
)
def test_the_pitch_of_a_picture_that_was_made_smaller_or_larger_is_found(tmp_path, factor, refused, says):
    def load(**options):
        options = {"statistics": statistics(), "fit": "pitch", **options}
        return LoadRadiographsd("image", GEOMETRY, **options)({"image": files(tmp_path, factor)})

    if refused:
        with pytest.raises(InputError, match=says):
            load()
        assert "pitch of" not in load(pixel_spacing_mm=PITCH)["warnings"]
    else:
        said = load()["warnings"]
        assert says in said and ("pitch of" in said) == bool(says)


def test_a_stated_pitch_that_leaves_no_room_for_a_chest_is_refused_as_the_users(tmp_path):
    loader = LoadRadiographsd("image", GEOMETRY, fit="pitch", pixel_spacing_mm=PITCH / 2)
    with pytest.raises(InputError, match=r"by the stated pitch of 2.11 mm, too small for a chest; correct it"):
        loader({"image": files(tmp_path, 1.0)})
