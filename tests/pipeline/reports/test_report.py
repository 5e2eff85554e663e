"""The report of a small run of our own: what it says, that it needs nothing else, and that its viewer moves."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from rich.console import Console

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.evaluation.figures import FIGURES, REPROJECTION_FIGURES
from drr2ct.pipeline.evaluation.protocol import FORMAT, patient_records, write_table
from drr2ct.pipeline.reports.cases import choose_patients, load_cases
from drr2ct.pipeline.reports.curves import curve_figure
from drr2ct.pipeline.reports.page import encode_volume
from drr2ct.pipeline.reports.report import write_report
from drr2ct.pipeline.reports.runs import open_run
from drr2ct.pipeline.reports.tables import comparison_table, decision_table, milestones_table, robustness_table
from drr2ct.pipeline.reports.wording import NOT_MEASURED, figure_name
from drr2ct.transforms.files import write_json
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError
from tests.browsers import open_browser, picture_of, pixels_of
from tests.files import chest, write_nifti

SIZE = 32
GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(SIZE), detector_size=32)
SCORES = {"p-high": 26.0, "p-middle": 24.0, "p-low": 21.0}


def make_run(root: Path, name: str = "run", epochs: int = 12, gain: float = 0.0, memory: bool = False) -> Path:
    """A data set, an untrained checkpoint and made-up tables."""
    for seed, patient in enumerate(SCORES):
        path = root / "data" / patient / f"{patient}.nii.gz"
        if not path.exists():
            write_nifti(path, chest(seed=seed))
    items = [{"patient": p, "label": f"{p}/{p}.nii.gz"} for p in SCORES]
    (root / "data" / "dataset.json").write_text(json.dumps({"training": [], "validation": [], "test": items}))
    run = root / name
    network = create_network("cascade64", geometry=GEOMETRY)
    description = describe(network, "cascade64", "cube", {"training": [{"patient": "<b>t1</b>"}], "validation": []})
    write_checkpoint(
        run / "checkpoints" / "best_psnr.pt", {"network": network.state_dict(), "description": description}
    )
    (run / "config.yaml").write_text(f"dataset_dir: {root / 'data'}\nmetric_window: [-1024.0, 1476.0]\n")
    with (run / "epochs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "phase", "loss", "psnr", "ssim", "lr", "seconds"])
        for epoch in range(1, epochs + 1):
            writer.writerow([epoch, "training", 1 / epoch, 15 + epoch / 2, 0.3 + epoch / 50, 1e-3, 100])
            writer.writerow([epoch, "validation", 1.1 / epoch, 14 + epoch / 2, 0.25 + epoch / 50, 1e-3, 20])
    figures = {
        patient: {
            "psnr": psnr + gain,
            "ssim": psnr / 40,
            "mae_hu": 100 - psnr,
            "bias_hu_lung": -12.5,
            "legacy_x2ct_psnr": psnr + 5,
        }
        for patient, psnr in SCORES.items()
    }
    write_table(run / "evaluation" / "patients.csv", figures)
    records = {"format": FORMAT, "patients": patient_records(figures)}
    write_json(run / "evaluation" / "patients.json", records)
    if memory:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(run / "tensorboard") as events:
            events.add_scalar("training/peak_memory_gib", 3.5, 1)
            events.add_scalar("training/loss_l1", 0.5, 1)
    return run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    return write_report([make_run(root, memory=True)], console=Console(quiet=True))


def test_page_says_what_it_must(report: Path):
    page = report.read_text()
    assert "not for clinical use" in page
    assert "Two views cannot determine a volume" in page
    assert "23.67 dB" in page  # the mean of SCORES
    assert "−1024 … 1476 HU (range 2500)" in page
    assert "−12.5" in page  # bias of lung
    assert "3.5" in page  # GiB
    assert page.count(NOT_MEASURED) > 3  # baselines, other tissues, robustness, epochs 50 and 100


def words(page: Path) -> str:
    """The page without scripts and pictures."""
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.S)
    return re.sub(r"base64,[^\"]*", "", text)


def test_page_says_how_it_was_made(report: Path):
    page = words(report)
    details = page[page.index('<section id="details">') :]
    for fact in ("metric_window", "dataset_dir", "1500 mm", "1800 mm", "0°", "90°", "32 × 32", "11.25 mm", "360 mm"):
        assert fact in details, fact  # configuration and geometry
    run = open_run(report.parents[1])
    for package, version in run.description["versions"].items():
        assert f"<td>{package}</td>" in details.replace(' class="text"', "") and f">{version}</td>" in details, package
    assert {"torch", "monai"} <= run.description["versions"].keys()
    listed = re.findall(r"<summary>(\w+): (\d+) patients</summary><ul class=\"names\">(.*?)</ul>", details)
    assert {part: re.findall("<li>(.*?)</li>", names) for part, _, names in listed} == {
        "training": ["&lt;b&gt;t1&lt;/b&gt;"],
        "validation": [],
        "test": list(SCORES),
    }


def test_the_older_protocol_is_called_that_wherever_it_is_shown(report: Path):
    page = words(report)
    name = "PSNR as older tables have it (X2CT, not comparable; dB)"
    assert figure_name("legacy_x2ct_psnr") == name and "legacy" not in page  # in words:
    row = re.search(r"<tr>((?:(?!<tr>).)*28\.67.*?)</tr>", page, flags=re.S)
    assert row is not None and name in row[1]
    assert page.count("28.67") == 1, "its mean stands beside its name only, never as a headline"
    header = (report.parents[1] / "evaluation" / "patients.csv").read_text().splitlines()[0].split(",")
    assert [column for column in (*header, *FIGURES) if "x2ct" in column.lower()] == ["legacy_x2ct_psnr"] * 2
    documents = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text().splitlines()
    told = [line for line in documents if "x2ct" in line.lower()]
    assert told and all("`legacy_x2ct_psnr`" in line and "older tables" in line for line in told)


def test_page_needs_nothing_else(report: Path):
    page = report.read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", markup)
    assert "@import" not in markup and "url(" not in markup
    assert "http" not in (Path(report).parents[0] / "report.html").read_text().split("<script")[0]


def test_names_are_escaped(report: Path):
    page = report.read_text()
    assert "&lt;b&gt;t1&lt;/b&gt;" in page
    assert "<b>t1</b>" not in page


def test_figures_are_written_as_png_and_embedded(report: Path):
    files = sorted((report.parent / "figures").glob("*.png"))
    names = {file.stem for file in files}
    assert {"loss", "psnr", "memory", "best_planes", "median_planes", "worst_radiographs"} <= names
    page = report.read_text()
    assert all(base64.b64encode(file.read_bytes()).decode() in page for file in files)
    assert not list(report.parent.rglob(".*"))  # no temporary file left


def test_names_and_level_lines_lie_within_a_figure():
    falling = curve_figure({"training": ([1, 2, 3], [1e-3, 7e-4, 5.01e-4])}, "epoch", "learning rate", logarithmic=True)
    falling.draw_without_rendering()
    assert falling.axes[0].yaxis.label.get_window_extent().x0 > 0
    level = curve_figure({"peak": ([1, 2], [11.3, 11.3])}, "epoch", "GiB", from_zero=True)
    low, high = level.axes[0].get_ylim()
    assert low == 0 and high > 12


def test_viewer_leaves_out_what_would_be_too_large(report: Path, monkeypatch):
    def patients(page: Path) -> list[str]:
        return re.findall(r"<option value=\"\d\">(.*?)</option>", page.read_text())

    assert sorted(patients(report)) == ["p-high (best)", "p-low (worst)", "p-middle (median)"]
    assert "more would be too large" not in report.read_text()
    monkeypatch.setattr("drr2ct.pipeline.reports.report.VIEWER_BYTES", 1)
    small = write_report([report.parents[1]], report.parents[1] / "small", console=Console(quiet=True))
    assert patients(small) == ["p-middle (median)"]
    assert "Only 1 of 3 patients" in small.read_text()


def test_best_median_worst():
    figures = {p: {"psnr": v} for p, v in SCORES.items()}
    assert choose_patients(figures) == {"Best": "p-high", "Median": "p-middle", "Worst": "p-low"}
    assert choose_patients({"one": {"psnr": 20.0}}) == {"Median": "one"}
    assert sorted(choose_patients({"a": {"psnr": 1.0}, "b": {"psnr": 2.0}}).values()) == ["a", "b"]
    assert choose_patients({"undefined": {"psnr": float("nan")}}) == {}


def test_milestones_beside_expectations(tmp_path: Path):
    rows = {row[0]: row[1:] for row in milestones_table(open_run(make_run(tmp_path))).rows}
    # epoch 10: 14 + 5 dB after 10 × (100 + 20) s
    assert rows["epoch 10"] == ("19.00", "22–23", "0.450", "0.35", "20 min")
    assert rows["epoch 50"][0] == NOT_MEASURED
    assert rows["last (epoch 12)"] == ("20.00", "27–28", "0.490", "0.65–0.70", "24 min")


def test_decision_table_prefers_the_better_run(tmp_path: Path):
    worse, better = open_run(make_run(tmp_path, "a"), label="a"), open_run(make_run(tmp_path, "b", 6, 1.0), label="b")
    rows = {row[0]: row for row in decision_table([worse, better]).rows}
    assert rows["Closest voxel by voxel"][1] == "b"
    assert "3 shared patients" in rows["Closest voxel by voxel"][2]
    assert rows["Closest in structure"][1] == "no difference"
    assert rows["Shortest training"][1] == "b"
    assert rows["Least memory in training"][1] == NOT_MEASURED


def test_robustness_is_read_where_it_lies(tmp_path: Path):
    run = make_run(tmp_path)
    assert robustness_table(open_run(run)).rows == [("all conditions", NOT_MEASURED)]
    (run / "robustness").mkdir()
    (run / "robustness" / "robustness.csv").write_text("condition,value,unit,patients,psnr\nangle,5,degree,3,20.123\n")
    assert robustness_table(open_run(run)).rows == [("angle 5 degree", "3", "20.12")]
    (run / "robustness" / "robustness.csv").write_text(
        "condition,value,unit,patients,psnr,psnr_change\nclean,,,3,20,0\nview_angle,-5,deg,3,19,-1\n"
        "photons,10000,per pixel,3,20.5,0.5\ngrid,16,voxels,3,23,\n"
    )
    assert robustness_table(open_run(run)).rows == [
        ("X-rays as rendered", "3", "20.00", "0.00"),
        ("last view turned by −5°", "3", "19.00", "−1.00"),
        ("noise of 10\u202f000 photons per pixel", "3", "20.50", "+0.50"),
        ("judged on 16³ voxels", "3", "23.00", "another task"),
    ]


def test_every_figure_has_a_name_in_words():
    names = {figure: figure_name(figure) for figure in (*FIGURES, *REPROJECTION_FIGURES)}
    assert len(set(names.values())) == len(names)
    assert not [name for name in names.values() if "_" in name]
    assert names["psnr"] == "PSNR (dB)" and names["psnr_narrow_body"] == "PSNR, −1024 … 1024 HU, body (dB)"
    assert names["mae_hu_bone"] == "Mean absolute error, bone (HU)"


def test_comparison_counts_voxels_and_parameters(tmp_path: Path):
    table = comparison_table([open_run(make_run(tmp_path))])
    row = dict(table.rows)
    network = create_network("cascade64", geometry=GEOMETRY)
    assert row["parameters"] == f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} million"
    assert row["grid"].startswith("32³") and row["voxel (mm)"] == "11.25" and row["epochs"] == "12"


def test_runs_on_two_grids_are_compared(tmp_path: Path):
    coarse, fine = make_run(tmp_path, "coarse"), make_run(tmp_path, "fine", epochs=20, gain=1.0, memory=True)
    network = create_network("cascade64", geometry=GEOMETRY.resized(size=16))
    description = describe(network, "cascade64", "cube", {"training": [], "validation": []})
    write_checkpoint(
        coarse / "checkpoints" / "best_psnr.pt", {"network": network.state_dict(), "description": description}
    )
    runs = [open_run(coarse, label="16³"), open_run(fine, label="32³")]
    table = comparison_table(runs)
    row = {name: values for name, *values in table.rows}
    assert table.columns == ("", "16³", "32³")
    assert [value.split(" ")[0] for value in row["grid"]] == ["16³", "32³"]
    assert row["voxel (mm)"] == ["22.50", "11.25"] and row["epochs"] == ["12", "20"]
    assert row["peak memory (GiB)"] == [NOT_MEASURED, "3.5"] and row["training time"] == ["24 min", "40 min"]
    assert row["parameters"][0] != row["parameters"][1]  # the learned volume is smaller
    assert [float(value) for value in row["test PSNR (dB)"]] == pytest.approx([23.67, 24.67], abs=0.01)
    assert "16³" in write_report([fine, coarse], console=Console(quiet=True)).read_text()


def test_a_stored_prediction_on_the_grid_is_taken_as_it_is(tmp_path: Path):
    folder = make_run(tmp_path)
    run = open_run(folder)
    truth = load_cases(run, {"Median": "p-middle"})[0].truth
    path = folder / "evaluation" / "predictions" / "p-middle" / "p-middle_ct.nii.gz"
    path.parent.mkdir(parents=True)
    stored = np.random.default_rng(0).integers(-900, 900, (SIZE,) * 3).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, np.asarray(truth.affine)), path)
    shown = load_cases(run, {"Median": "p-middle"})[0].prediction
    np.testing.assert_array_equal(shown.as_tensor()[0].numpy(), stored)


def test_viewer_volume_keeps_hu_and_place():
    hu = torch.linspace(-1500, 2000, 8**3).reshape(1, 8, 8, 8)
    affine = torch.from_numpy(VolumeGrid(8).affine())
    image = nib.Nifti1Image.from_stream(
        io.BytesIO(gzip.decompress(base64.b64decode(encode_volume(MetaTensor(hu, affine)))))
    )
    np.testing.assert_allclose(image.affine, affine.numpy(), atol=1e-4)
    np.testing.assert_allclose(image.get_fdata(), hu[0].clamp(-1000, 1550).numpy(), atol=5.01)


def test_bad_input_is_one_sentence(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        write_report([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no checkpoints"):
        write_report([tmp_path / "empty"])
    run = make_run(tmp_path)
    with pytest.raises(InputError, match="given twice"):
        write_report([run, run])
    with pytest.raises(InputError, match=r"patients\.csv"):
        write_report([run], evaluations=[tmp_path])
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(InputError, match="--dataset"):
        write_report([run], console=Console(quiet=True))


def rendered_share(screenshot: str) -> float:
    """Share of the volume rendering's tile, at the bottom right, that is grey: neither background nor crosshair."""
    pixels = pixels_of(screenshot)
    tile = pixels[pixels.shape[0] // 2 :, pixels.shape[1] // 2 :]
    return float(((np.ptp(tile, axis=-1) < 12) & (tile.mean(axis=-1) > 40)).mean())


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_viewer_moves_in_a_browser(report: Path, tmp_path: Path, width: int):
    browser = open_browser(width, tmp_path / "profile")
    try:
        from selenium.webdriver.support.ui import WebDriverWait

        browser.get(report.as_uri())
        state = WebDriverWait(browser, 120).until(
            lambda b: b.execute_script("return document.body.dataset.viewer || null")
        )
        assert state == "ready", browser.find_element("id", "viewer-status").text
        # nothing sticks out to the side
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")

        def pictures() -> list[str]:
            time.sleep(0.5)  # until the next frame is on the screen; software rendering is slow
            return [picture_of(browser, f"#canvas-{name}") for name in ("truth", "prediction")]

        before = pictures()
        assert pictures() == before  # it changes only when it is told to

        def changed(what: str) -> list[str]:
            nonlocal before
            last, before = before, pictures()
            assert all(a != b for a, b in zip(last, before, strict=True)), what
            return before

        for axis in "zyx":
            browser.execute_script(
                "const s = document.getElementById(arguments[0]); s.value = 0.75; s.dispatchEvent(new Event('input'));",
                f"slide-{axis}",
            )
            moved = changed(axis)
            # a quarter of 360 mm from the middle, and the others where they were left
            texts = [browser.find_element("id", f"value-{a}").text for a in "zyx"]
            assert texts == ["90 mm" if a in "zyx"[: "zyx".index(axis) + 1] else "0 mm" for a in "zyx"]
        for low, high in ((-450, 1050), (-160, 240), (-1000, 200)):  # bone, soft tissue, and back to lung
            browser.execute_script(f"document.querySelector('button[data-window=\"{low},{high}\"]').click()")
            shown = changed(f"{low} … {high} HU")
            if low == -450:
                body, nothing = map(rendered_share, shown)
                assert body > 0.1, "the volume rendering is blank"
                assert nothing < 0.01, "an untrained network makes air, so its rendering holds the crosshair only"
        assert shown == moved
        addresses = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert not [name for name in addresses if not name.startswith(("data:", "blob:"))]
    finally:
        browser.quit()
