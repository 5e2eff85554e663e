"""Pictures say what they show: sides as radiologists hang them, and too much in red."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from monai.data import MetaTensor
from monai.transforms import Orientation

from drr2ct.pipeline.pictures.planes import comparison_figure, doubt_figure, mid_planes
from drr2ct.pipeline.pictures.radiographs import radiographs_figure, with_reprojection
from drr2ct.pipeline.pictures.scales import DISPLAY_WINDOW, DOUBT_COLOURS, DOUBT_RANGE, ERROR_RANGE, grey
from drr2ct.transforms import BiplanarGeometry, VolumeGrid, render_drr

MIDDLE = 8


def volume_with(place: tuple[int, int, int], value: float = 1000.0) -> MetaTensor:
    """Air with one voxel (right to left, back to front, feet to head), in RAS+ on 16³ voxels."""
    values = torch.full((1, 16, 16, 16), -1000.0)
    values[(0, 15 - place[0], place[1], place[2])] = value
    affine = torch.eye(4, dtype=torch.float64)
    return MetaTensor(values, affine=affine)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize(
    ("plane", "place", "row", "column"),
    [
        # middle of one axis; towards right, front, head: left and up in the picture
        ("axial", (2, 13, 7), 2, 2),
        ("coronal", (2, 7, 13), 2, 2),
        ("sagittal", (8, 13, 13), 2, 2),
    ],
)
def test_planes_hang_as_radiologists_hang_them(
    plane: str, place: tuple[int, int, int], row: int, column: int, axes: str
) -> None:
    shown = mid_planes(Orientation(axes, labels=None)(volume_with(place)))[plane]
    assert np.unravel_index(shown.argmax(), shown.shape) == (row, column)


def images(figure) -> list[AxesImage]:
    return [image for axes in figure.axes for image in axes.get_images()]


def colour(image: AxesImage, value: float) -> tuple[float, float, float]:
    red, green, blue, _ = image.cmap(image.norm(value))
    return red, green, blue


def test_too_dense_is_red_and_too_thin_blue_on_one_scale() -> None:
    truth, prediction = volume_with((2, 13, 7), 0.0), volume_with((2, 13, 7), 500.0)
    *_, error = images(comparison_figure(truth, prediction))[:3]
    assert (error.norm.vmin, error.norm.vmax) == (-ERROR_RANGE, ERROR_RANGE)
    assert float(np.asarray(error.get_array()).max()) == 500.0, "prediction minus truth"
    red, _, blue = colour(error, ERROR_RANGE)
    assert red > 2 * blue
    red, _, blue = colour(error, -ERROR_RANGE)
    assert blue > 2 * red
    assert min(colour(error, 0.0)) > 0.9, "nothing wrong is white"


def test_radiographs_share_the_colours_on_their_own_scale() -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=8)
    given = torch.full((2, 8, 8), 2.0)
    seen, made, error = images(radiographs_figure(given, given + 1, geometry, top=8.0))[:3]
    assert (seen.norm.vmax, made.norm.vmax) == (8.0, 8.0)
    assert (error.norm.vmin, error.norm.vmax) == (-2.0, 2.0) and float(np.asarray(error.get_array()).max()) == 1.0
    red, _, blue = colour(error, 2.0)
    assert red > 2 * blue, "more than was given is red here too"


@pytest.mark.parametrize(("size", "shown"), [((512, 512), (256, 256)), ((1024, 768), (512, 384)), ((40, 24), (40, 24))])
def test_pictures_of_radiographs_have_no_more_pixels_than_they_show(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    grid = VolumeGrid(24)
    geometry = BiplanarGeometry.from_angles(grid, detector_size=size)
    hu = torch.full((1, 24, 24, 24), -1000.0)
    hu[:, 4:18, 6:20, 3:12] = 200.0
    volume = MetaTensor(hu, affine=grid.affine())
    fine = render_drr(volume, geometry)
    given, made = with_reprojection(fine, volume, geometry)
    assert given.shape == made.shape == (2, *shown)
    assert float((given - made).abs().mean()) < 0.01 * float(made.mean()), "the same rays"
    assert float(made.mean()) == pytest.approx(float(fine.mean()), rel=0.01)


def test_grey_runs_from_black_to_white() -> None:
    levels = grey(np.array([[-5000.0, *DISPLAY_WINDOW, 5000.0]]), *DISPLAY_WINDOW)
    assert levels.tolist() == [[0, 0, 255, 255]]


def test_doubt_in_colour_with_its_meaning() -> None:
    doubt = MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.eye(4))
    doubt[0, 3:5, 3:5, 3:5] = 900.0
    figure = doubt_figure(doubt)
    *planes, bar = figure.axes
    assert len(planes) == 3 and bar.get_ylabel() == "± HU"
    image = planes[0].images[0]
    assert image.get_clim() == (0, DOUBT_RANGE) and image.get_array().max() == 900.0
    assert to_hex(image.cmap(0.0)) == DOUBT_COLOURS[0] and to_hex(image.cmap(1.0)) == DOUBT_COLOURS[-1]
