"""Films as people have them, through the loader: what is decided, said, and can be overruled."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from drr2ct.transforms.films.field import Field, RandFilmFieldd
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.validation import InputError
from tests.transforms.drawn_films import FIELD, GEOMETRY, PITCH, line_integrals, statistics, toned
from tests.transforms.radiographs.test_loading import save_dicom

KNOWN = {"statistics": statistics(), "fit": "pitch"}


def load(pa, lateral, **options):
    return LoadRadiographsd("image", GEOMETRY, **{**KNOWN, **options})({"image": [pa, lateral]})


def saved(path: Path, picture: torch.Tensor) -> Path:
    Image.fromarray((picture * 255).round().byte().numpy()).save(path)
    return path


@pytest.fixture
def pair(tmp_path):
    return [saved(tmp_path / f"{name}.png", toned(line_integrals()[i][FIELD])) for i, name in enumerate(("pa", "lat"))]


def differ(a, b):
    return float((a["image"] - b["image"]).abs().mean())


def test_the_network_is_given_what_training_gave_where_the_field_ends(tmp_path):
    """A field is cut out of a film in training, and a film that shows only that is read: both are the same."""
    tags = {"ImagerPixelSpacing": [PITCH, PITCH], "DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500}
    counts = [np.rint(16000 * np.exp(-image[FIELD].numpy())) for image in line_integrals()]
    files = [save_dicom(tmp_path / f"{i}.dcm", count, 14, **tags) for i, count in enumerate(counts)]
    read = load(*files, intensity="transmission", unattenuated=16000)
    field = Field((PITCH * (FIELD[0].stop - FIELD[0].start), PITCH * (FIELD[1].stop - FIELD[1].start)))
    effect = RandFilmFieldd("image", GEOMETRY)
    for index, view in enumerate(GEOMETRY.views):
        trained_on = effect.apply(line_integrals()[index], view, field)
        torch.testing.assert_close(read["image"][index].as_tensor(), trained_on, rtol=0.01, atol=0.02)
        assert torch.equal(read["covered"][index], field.covered(view))
    assert read["image"][0, 0, 64] > 1  # not air, though nothing was seen there


def test_a_lateral_that_faces_right_is_mirrored_and_that_is_said(pair, tmp_path):
    right = load(*pair, pixel_spacing_mm=PITCH)
    picture = toned(line_integrals()[1][FIELD])
    facing = saved(tmp_path / "facing.png", picture.flip(1))
    found = load(pair[0], facing, pixel_spacing_mm=PITCH)
    assert differ(found, right) < 1e-3
    assert "facing.png faced right: mirrored" in found["assumptions"]
    assert "pa.png: the marker is not read: the patient's right is taken to be on the image's left." in (
        found["assumptions"].split("\n")
    )
    stated = load(pair[0], facing, pixel_spacing_mm=PITCH, orientation="as-is")
    assert differ(stated, right) > 0.1 and "faced right" not in stated["assumptions"]
    upside_down = saved(tmp_path / "turned.png", picture.flip((0, 1)))
    assert differ(load(pair[0], upside_down, pixel_spacing_mm=PITCH), right) < 1e-3


STORED = {  # what was done to a film that has to be undone by the word
    "mirrored": lambda x: x.flip(1),
    "upside-down": lambda x: x.flip(0),
    "half-turn": lambda x: x.flip((0, 1)),
    "clockwise": lambda x: torch.rot90(x, 1),
    "anticlockwise": lambda x: torch.rot90(x, -1),
}


@pytest.mark.parametrize("word", STORED)
def test_a_turn_that_is_stated_is_done_to_that_view_alone(pair, tmp_path, word):
    right = load(*pair, pixel_spacing_mm=PITCH)
    turned = saved(tmp_path / "turned.png", STORED[word](toned(line_integrals()[1][FIELD])))
    found = load(pair[0], turned, pixel_spacing_mm=PITCH, orientation=["as-is", word])
    assert differ(found, right) < 1e-3
    assert "turned.png was" in found["assumptions"] and "as stated" in found["assumptions"]


def test_each_view_can_be_read_in_its_own_way(pair, tmp_path):
    right = load(*pair, pixel_spacing_mm=PITCH)
    negative = saved(tmp_path / "negative.png", 1 - toned(line_integrals()[0][FIELD]))
    own = {"intensity": ["display", "auto"], "window": ["none", "auto"], "orientation": ["as-is", "auto"]}
    found = load(negative, pair[1], pixel_spacing_mm=PITCH, inverted=[True, None], **own)
    assert differ(found, right) < 0.02
    with pytest.raises(InputError, match="orientation has 3 values for 2 views"):
        load(*pair, orientation=["auto"] * 3)


def test_a_header_wins_over_looks_and_as_is_over_a_header(tmp_path):
    pa, lateral = (np.rint(12000 * np.exp(-image[FIELD].numpy())) for image in line_integrals())
    tags = {"ImagerPixelSpacing": [PITCH, PITCH], "PixelIntensityRelationship": "LIN"}
    tags |= {"DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500}
    front = save_dicom(tmp_path / "pa.dcm", pa, 14, PatientOrientation=["L", "F"], **tags)
    plain = save_dicom(tmp_path / "plain.dcm", lateral, 14, **tags)
    wrong = save_dicom(tmp_path / "wrong.dcm", lateral, 14, PatientOrientation=["A", "F"], **tags)
    options = {"intensity": "transmission", "unattenuated": 12000}
    right = load(front, plain, **options)
    believed = load(front, wrong, **options)
    torch.testing.assert_close(believed["image"][1], right["image"][1].flip(1), rtol=0, atol=0.02)
    torch.testing.assert_close(load(front, wrong, orientation="as-is", **options)["image"], right["image"])
    assert "marker" not in right["assumptions"]  # the header says where the right is


def test_inverted_raw_numbers_are_found_and_never_called_upside_down(tmp_path):
    """Numbers that fall with intensity, in a file that does not say so."""
    counts = [np.rint(4000 * np.exp(-image[FIELD].numpy())) for image in line_integrals()]
    tags = {"ImagerPixelSpacing": [PITCH, PITCH]}
    options = {"intensity": "transmission", "unattenuated": 4000}
    right = load(*(save_dicom(tmp_path / f"{i}.dcm", c, 12, **tags) for i, c in enumerate(counts)), **options)
    files = [save_dicom(tmp_path / f"falls{i}.dcm", 4095 - c, 12, **tags) for i, c in enumerate(counts)]
    found = load(*files, **options)
    assert found["assumptions"].count("was inverted") == 2 and "turned" not in found["assumptions"]
    assert differ(found, right) < 0.02


def test_a_white_frame_is_left_out(pair, tmp_path):
    framed = []
    for index, name in enumerate(("pa", "lat")):
        large = torch.nn.functional.interpolate(toned(line_integrals()[index][FIELD])[None, None], scale_factor=4)[0, 0]
        framed.append(saved(tmp_path / f"framed_{name}.png", torch.nn.functional.pad(large, (30,) * 4, value=1.0)))
    found = load(*framed, pixel_spacing_mm=PITCH / 4)
    assert found["assumptions"].count("is collimated") == 2 and "upside" not in found["assumptions"]
    assert differ(found, load(*pair, pixel_spacing_mm=PITCH)) < 0.25


@pytest.mark.parametrize(("leak", "sign"), [(0.0, 1), (100.0, 1), (0.0, -1)])
def test_a_black_border_of_raw_counts_is_left_out_and_air_is_not(tmp_path, leak, sign):
    tags = {"ImagerPixelSpacing": [PITCH, PITCH], "PixelIntensityRelationshipSign": sign}
    tags |= {"PixelIntensityRelationship": "LIN", "PresentationIntentType": "FOR PROCESSING"}
    random = np.random.default_rng(0)
    counts = [random.poisson(16000 * np.exp(-image.numpy())) for image in line_integrals()]
    read = {}
    for what in ("open", "collimated"):
        files = []
        for name, stored in zip(("pa", "lat"), counts, strict=True):
            shown = stored.copy()
            if what == "collimated":
                shown[:] = random.poisson(leak, stored.shape)
                shown[FIELD] = stored[FIELD]
            shown = shown.clip(0, 2**15)
            files.append(save_dicom(tmp_path / f"{what}_{name}.dcm", shown if sign > 0 else 65535 - shown, 16, **tags))
        read[what] = load(*files, unattenuated=16000)
    assert "is collimated" not in read["open"]["assumptions"]
    for covered in read["collimated"]["covered"]:
        assert not covered[: FIELD[0].start].any() and not covered[:, FIELD[1].stop :].any()
        assert covered[FIELD].float().mean() > 0.8
    apart = (read["open"]["image"] - read["collimated"]["image"]).as_tensor()[:, *FIELD][:, 5:-5, 5:-5]
    assert float(apart.abs().mean()) < 0.02


def test_a_slanted_border_is_not_covered_and_that_is_said(pair, tmp_path):
    film = torch.nn.functional.pad(toned(line_integrals()[0][FIELD]), (0, 0, 8, 0), value=0.6)
    film = torch.nn.functional.interpolate(film[None, None], scale_factor=6, mode="bilinear")[0, 0]
    rows, columns = (torch.arange(count)[:, None] / count for count in film.shape)
    film[rows < 0.14 - 0.07 * columns.T] = 0
    askew = saved(tmp_path / "askew.png", film)
    found = load(askew, pair[1], pixel_spacing_mm=[PITCH / 6, PITCH])
    assert "askew.png has a slanted border on its upper side, which was left out." in found["assumptions"]
    left, right = (found["covered"][0][:, column].sum() for column in (26, 101))
    assert 3 <= right - left <= 6
    assert "slanted" not in load(*pair, pixel_spacing_mm=PITCH)["assumptions"]


def test_a_picture_without_pitch_is_a_cassette(pair):
    found = load(*pair)
    assert found["assumptions"].count("taken to be a cassette of 35×43 cm") == 2
    columns = found["covered"][0].any(dim=0).nonzero()
    assert (columns[-1] - columns[0] + 1) * PITCH == pytest.approx(430, abs=3 * PITCH)  # the sample's field is wide


def test_the_laterals_height_is_found_and_another_patient_warned_of(tmp_path):
    tags = {"ImagerPixelSpacing": [PITCH, PITCH]}
    tags |= {"DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500}
    options = {"intensity": "transmission", "unattenuated": 12000}

    def raw(name, image):
        return save_dicom(tmp_path / name, np.rint(12000 * np.exp(-image.numpy())), 14, **tags)

    pa = raw("pa.dcm", line_integrals()[0][FIELD])
    higher = load(pa, raw("higher.dcm", line_integrals(30.0)[1][FIELD]), **options)
    assert "higher.dcm is aligned by −" in higher["assumptions"] and not higher["warnings"]
    other = load(pa, raw("other.dcm", 1.3 * line_integrals()[1][FIELD]), **options)
    assert "same patient" in other["warnings"]


def test_an_exposure_beyond_full_scale_is_made_up_for(tmp_path):
    """The open field and part of the lungs are at full scale, which nobody may take for the unattenuated intensity."""
    tags = {"ImagerPixelSpacing": [PITCH, PITCH]}
    errors = []
    for statistics_known in (True, False):
        files = [
            save_dicom(
                tmp_path / f"{i}.dcm", np.clip(np.rint(150000 * np.exp(-image[FIELD].numpy())), 0, 16383), 14, **tags
            )
            for i, image in enumerate(line_integrals())
        ]
        options = {"intensity": "transmission", "unattenuated": None, "orientation": "as-is"}
        options |= {} if statistics_known else {"statistics": None}
        found = load(*files, **options)
        assert found["assumptions"].count("is at full scale, so its exposure is not known") == 2
        inner = line_integrals()[:, FIELD[0], FIELD[1]]
        body = inner > 1.5
        errors.append(abs(float((found["image"][:, FIELD[0], FIELD[1]] - inner)[body].mean())))
    assert errors[0] < 0.5 * errors[1] and errors[1] > 1


def test_noise_is_refused_with_its_scores(pair, tmp_path):
    noise = saved(tmp_path / "noise.png", torch.rand(80, 70, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match=r"noise\.png.*\d\.\d\d.*--orientation as-is"):
        load(noise, pair[1])


def test_a_film_of_another_view_is_named(pair, tmp_path):
    again = saved(tmp_path / "again.png", toned(line_integrals()[0][FIELD], 0.9))
    for files in (pair[::-1], (pair[1], pair[1]), (pair[0], again)):
        with pytest.raises(InputError, match=r"looks like view|the same picture"):
            load(*files)
    assert differ(load(*pair, orientation="as-is"), load(*pair)) == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_picture_that_holds_both_views_is_refused_whichever_it_is_given_for(pair, tmp_path, order):
    films = [toned(line_integrals()[i][FIELD[0], 32:96]) for i in order]
    both = saved(tmp_path / "both.png", torch.hstack(films))
    pa_half = ("left", "right")[order.index(0)]
    for files in ((both, pair[1]), (pair[0], both)):
        with pytest.raises(
            InputError, match=rf"both\.png holds two: .*{pa_half} half (looks )?like view pa .*cut it in two"
        ):
            load(*files)
    load(both, pair[1], orientation=["as-is", "auto"])
    wide = saved(tmp_path / "wide.png", toned(line_integrals()[0][46:90, 24:104]))
    assert "cannot be all of one" in load(wide, pair[1])["warnings"]


def test_a_picture_much_coarser_than_the_detector_is_warned_of(pair):
    assert "full size" not in load(*pair, pixel_spacing_mm=1.9 * PITCH, orientation="as-is")["warnings"]
    warned = load(*pair, pixel_spacing_mm=2.2 * PITCH, orientation="as-is")["warnings"]
    assert "pa.png has pixels of 9.3 mm on view pa's detector, 2.2 times as large as in training (4.2 mm)" in warned


def test_icons_and_strips_are_refused(pair, tmp_path):
    icon = saved(tmp_path / "icon.png", toned(line_integrals()[0][FIELD])[::2, ::2])
    with pytest.raises(InputError, match=r"28×40 pixels, too few for a chest"):
        load(icon, pair[1])
    part = saved(tmp_path / "part.png", toned(line_integrals()[0][FIELD])[:, :35])
    assert "cannot be all of one" in load(part, pair[1], orientation="as-is")["warnings"]


def test_as_is_wins_over_a_wrong_patient_orientation(pair, tmp_path):
    """In every direction a header can be wrong: mirrored, upside down, transposed, of another view."""
    tags = {"ImagerPixelSpacing": [PITCH, PITCH], "DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500}
    pictures = [(toned(line_integrals()[i][FIELD]) * 4095).round().numpy() for i in (0, 1)]
    plain = [save_dicom(tmp_path / f"{i}.dcm", picture, 12, **tags) for i, picture in enumerate(pictures)]
    right = load(*plain, orientation="as-is")
    for name, orientation in (("a", ["R", "F"]), ("b", ["L", "H"]), ("c", ["F", "L"]), ("d", ["A", "F"])):
        wrong = save_dicom(tmp_path / f"{name}.dcm", pictures[0], 12, PatientOrientation=orientation, **tags)
        stated = load(wrong, plain[1], orientation="as-is")
        assert differ(stated, right) == 0
        assert f"{name}.dcm is upright as it is stored, as stated." in stated["assumptions"].split("\n")


def test_a_header_that_looks_wrong_is_followed_and_doubted(tmp_path):
    tags = {"ImagerPixelSpacing": [PITCH, PITCH], "DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500}
    pa, lateral = ((toned(line_integrals()[i][FIELD]) * 4095).round().numpy() for i in (0, 1))
    for orientations, warned in (((["L", "F"], ["P", "F"]), ""), ((["L", "H"], ["P", "F"]), "pa"),
                                 ((["L", "F"], ["A", "F"]), "lat")):  # fmt: skip
        files = [
            save_dicom(tmp_path / f"{name}.dcm", picture, 12, PatientOrientation=orientation, **tags)
            for name, picture, orientation in zip(("pa", "lat"), (pa, lateral), orientations, strict=True)
        ]
        warnings = load(*files)["warnings"]
        assert warnings.count("if the header is wrong") == bool(warned)
        assert f"{warned}.dcm lies as its Patient Orientation says, but looks more like" in warnings or not warned
        assert "whatever its header says" not in warnings and "sides may be exchanged" not in warnings
    exchanged = save_dicom(tmp_path / "exchanged.dcm", pa, 12, PatientOrientation=["R", "F"], **tags)
    assert "exchanged.dcm lies as its Patient Orientation says, but" in load(exchanged, files[1])["warnings"]
    second = save_dicom(tmp_path / "second.dcm", pa * 0.999, 12, PatientOrientation=["P", "F"], **tags)
    said = load(files[0], second)["warnings"]
    assert "second.dcm was given for view lat and looks like view pa" in said and "whatever its header says" in said


def floating(path: Path, values: torch.Tensor) -> Path:
    tifffile.imwrite(path, values.float().numpy())
    return path


def test_logarithms_of_counts_are_no_line_integrals_though_their_range_is(tmp_path):
    """The lateral's reach below zero, so that its range alone makes a picture of it, and the other's does not."""
    logs = [6.5 - image[FIELD] for image in line_integrals()]
    assert logs[0].min() > 0 > logs[1].min() + 0.05 * logs[1].max()
    found = load(*(floating(tmp_path / f"{i}.tif", x) for i, x in enumerate(logs)), pixel_spacing_mm=PITCH)
    said = found["assumptions"]
    assert "0.tif was read as a picture" in said and "and not as line integrals: " in said
    assert "0.tif was inverted" in said and "1.tif was inverted" in said
    assert "was read as line_integral" not in said and "from -1024" not in said
    for index, image in enumerate(line_integrals()):
        assert np.corrcoef(found["image"][index].numpy()[FIELD].ravel(), image[FIELD].numpy().ravel())[0, 1] > 0.5


def test_one_inverted_view_makes_pictures_of_both(tmp_path):
    pa, lateral = (image[FIELD] for image in line_integrals())
    files = [floating(tmp_path / "pa.tif", 10 - pa), floating(tmp_path / "lat.tif", lateral)]
    said = load(*files, pixel_spacing_mm=PITCH)["assumptions"]
    assert "lat.tif was read as a picture" in said and "pa.tif is low where the patient is dense" in said
    assert "pa.tif was inverted" in said and "lat.tif was inverted" not in said
    declared = load(*files, pixel_spacing_mm=PITCH, intensity="line_integral")
    assert "read as a picture" not in declared["assumptions"]
    told = load(*files, pixel_spacing_mm=PITCH, inverted=False)  # dense is bright, says the user
    assert "read as a picture" not in told["assumptions"]


def test_line_integrals_without_a_mark_stay_what_they_are_and_their_side_is_said(tmp_path):
    files = [floating(tmp_path / f"{i}.tif", image[FIELD]) for i, image in enumerate(line_integrals())]
    found = load(*files, pixel_spacing_mm=PITCH)
    torch.testing.assert_close(found["image"][0].as_tensor()[FIELD], line_integrals()[0][FIELD], atol=1e-4, rtol=0)
    said = "the patient's right is taken to be on the image's left"
    assert f"0.tif: the marker is not read: {said}." in found["assumptions"]
    assert f"1.tif: the marker is not read: {said}." not in found["assumptions"]
