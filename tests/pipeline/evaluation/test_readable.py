"""One patient that cannot be read does not cost the judgement of the others, and is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from drr2ct.pipeline.evaluation.baselines import evaluate_baselines
from drr2ct.pipeline.evaluation.readable import LEFT_OUT, readable
from drr2ct.transforms import files_to_samples
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.files import chest, read_rows, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=24)


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, str]]:
    """Three patients, the second of whom is cut off."""
    paths = [write_nifti(tmp_path / f"p{i}.nii.gz", chest((20, 18, 16), seed=i)) for i in range(3)]
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    return [{"patient": f"p{i}", "label": str(path)} for i, path in enumerate(paths)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_others_are_judged_and_it_is_named(items: list, tmp_path: Path, workers: int) -> None:
    load = files_to_samples(GEOMETRY)
    left = readable(items, load, tmp_path, num_workers=workers)
    assert [item["patient"] for item in left] == ["p0", "p2"]
    (row,) = read_rows(tmp_path / LEFT_OUT)
    assert row["patient"] == "p1" and "it may be truncated" in row["reason"]
    # what the next judgement, without it, writes does not speak of it
    assert readable(left, load, tmp_path) == left
    assert not (tmp_path / LEFT_OUT).exists()


def test_or_it_stops_and_none_is_an_error(items: list, tmp_path: Path) -> None:
    load = files_to_samples(GEOMETRY)
    with pytest.raises(InputError, match=r"^patient p1 cannot be read \(.*\); repair or remove it, or set on_bad"):
        readable(items, load, tmp_path, "stop")
    with pytest.raises(InputError, match=r"^none of 1 patients can be read; the first, p1: "):
        readable(items[1:2], load, tmp_path)
    with pytest.raises(InputError, match="on_bad_sample 'ignore' is unknown"):
        readable(items, load, tmp_path, "ignore")
    assert not (tmp_path / LEFT_OUT).exists()


def test_baselines_learn_from_those_that_can_be_read(items: list, caplog: pytest.LogCaptureFixture) -> None:
    load = files_to_samples(GEOMETRY)
    with_bad = evaluate_baselines(items[2:], items[:2], load, GEOMETRY, ("psnr",))
    assert with_bad == evaluate_baselines(items[2:], items[:1], load, GEOMETRY, ("psnr",))
    assert "patient p1 is left out of the baselines" in caplog.text
    # with nobody to learn from there is no mean of nobody
    assert set(evaluate_baselines(items[2:], items[1:2], load, GEOMETRY, ("psnr",))) == {"backprojection"}
