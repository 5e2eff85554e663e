"""A data set whose radiographs are feet first, mirrored, of someone else or wrongly scaled is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from drr2ct.pipeline.data.dataset_check import check_dataset, conclusions, detail_correlation, write_check
from drr2ct.transforms.drr import render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.volume import LoadCT
from tests.files import chest, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=128)


def make(root: Path, axes: tuple[int, ...] = (), factor: float = 1.0, png: bool = False) -> Path:
    root.mkdir(parents=True)
    GEOMETRY.save(root / "geometry.json")
    for i in range(2):
        values = chest(seed=i)
        # a liver and a breastbone: the crude chest is too much alike from all sides
        values[18:30, 8:20, 2:10] = 60
        values[17:20, 25:28, 8:22] = 700
        path = write_nifti(root / f"p{i}" / f"p{i}.nii.gz", values)
        for view, image in zip(GEOMETRY.views, render_drr(LoadCT()(path), GEOMETRY), strict=True):
            stem = path.parent / f"p{i}_{view.name}_drr"
            stored = (image * factor).flip(axes)
            if png:
                write_radiograph(stem.with_suffix(".png"), stored.clamp(max=8), bits=8)
            else:
                write_radiograph(Path(f"{stem}.nii.gz"), stored)
    return root


def test_a_sound_set_passes_and_is_drawn(tmp_path: Path) -> None:
    checks = check_dataset(make(tmp_path / "set"))
    assert conclusions(checks) == []
    assert all(c.turns == ("upright", "upright") and min(c.correlation) > 0.99 for c in checks)
    table, sheet = write_check(checks, tmp_path / "out", ["pa", "lat"])
    assert len(table.read_text().splitlines()) == 3
    assert min(Image.open(sheet).size) > 200


@pytest.mark.parametrize("png", [False, True])
@pytest.mark.parametrize(("axes", "turn"), [((0,), "feet first"), ((1,), "mirrored"), ((0, 1), "turned by 180°")])
def test_turned_radiographs_are_named(tmp_path: Path, axes: tuple[int, ...], turn: str, png: bool) -> None:
    root = make(tmp_path / "set", axes, png=png)
    checks = check_dataset(root, "display" if png else "line_integral")
    assert all(check.turns == (turn, turn) for check in checks)
    assert f"2 of 2 patients have radiographs that are stored {turn}" in conclusions(checks)[0]
    if turn == "feet first":  # declared, it is right
        assert conclusions(check_dataset(root, "display" if png else "line_integral", feet_first=True)) == []


def test_8_bit_pictures_pass_as_display_only(tmp_path: Path) -> None:
    root = make(tmp_path / "set", png=True)
    assert conclusions(check_dataset(root, "display")) == []
    assert "declare display" in check_dataset(root)[0].problems[0]


def test_another_scale_is_named(tmp_path: Path) -> None:
    assert "is 2.00 times" in check_dataset(make(tmp_path / "set", factor=2.0))[0].problems[0]


def test_radiographs_of_something_else_are_named(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    noise = torch.rand(128, 128, generator=torch.Generator().manual_seed(0))
    write_radiograph(root / "p1" / "p1_pa_drr.nii.gz", noise)
    first, second = check_dataset(root)
    assert first.problems == () and "pa does not show this CT" in second.problems[0]


def test_an_unreadable_ct_is_named(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    (root / "p0" / "p0.nii.gz").write_bytes(b"nothing of the kind")
    first, second = check_dataset(root)
    assert "cannot be read" in first.problems[0] and second.problems == ()


def test_detail_correlation_allows_a_shift_but_no_mirror() -> None:
    image = torch.zeros(128, 128)
    image[40:60, 30:50] = 1
    image[70:75, 60:100] = 2
    assert detail_correlation(image, 3 * image.roll((5, -7), (0, 1))) > 0.95
    assert detail_correlation(image, image.flip(1)) < 0.9
