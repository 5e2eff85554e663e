"""``drr2ct reconstruct`` as it is used: every output, folders of patients, and what must never be lost or mixed up."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.reconstruction import reconstruct, writing
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.transforms import BiplanarGeometry, LoadCT, files_to_samples, render_drr, write_radiograph
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import to_hu
from tests.bundle.conftest import assert_one_sentence


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.pt"


@pytest.fixture(scope="module")
def geometry(checkpoint: Path) -> BiplanarGeometry:
    return load_network(checkpoint).config.geometry


@pytest.fixture(scope="module")
def label(dataset: Path) -> Path:
    return Path(load_datalist(dataset, "test")[0]["label"])


@pytest.fixture(scope="module")
def patients(dataset: Path, geometry: BiplanarGeometry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patient folders with pa.nii.gz and lat.nii.gz, without CTs."""
    root = tmp_path_factory.mktemp("patients")
    for number in range(3):
        images = render_drr(LoadCT()(dataset / f"p{number}" / f"p{number}.nii.gz"), geometry)
        for view, image in zip(geometry.views, images, strict=True):
            (root / f"p{number}").mkdir(exist_ok=True)
            write_radiograph(root / f"p{number}" / f"{view.name}.nii.gz", image, pitch_mm=view.pixel_pitch_mm)
    return root


@pytest.fixture(scope="module")
def pair(patients: Path) -> list[Path]:
    return [patients / "p0" / "pa.nii.gz", patients / "p0" / "lat.nii.gz"]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, pair: list[Path]) -> np.ndarray:
    """The volume by the network alone, (N, N, N) in HU on its own grid."""
    network = load_network(checkpoint)
    image = files_to_samples(network.config.geometry, with_ct=False)({"patient": "p", "image": pair})["image"]
    with torch.inference_mode():
        return to_hu(network(image[None])[0, 0]).numpy()


def options(pair: list[Path], checkpoint: Path, output: Path | str) -> list[Any]:
    more = ["--set", "precision=fp32", "--set", "device=$torch.device('cpu')"]
    return ["--pa", pair[0], "--lateral", pair[1], "--checkpoint", checkpoint, "--output", output, *more]


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.nrrd", "ct.mha", "ct_dicom"])
def test_every_format_holds_the_networks_volume(
    command, pair, checkpoint, geometry: BiplanarGeometry, expected, tmp_path: Path, name: str
) -> None:
    status, message = command("reconstruct", *options(pair, checkpoint, tmp_path / name), "--patient", "jane")
    assert status == 0, message
    stem = name.split(".")[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"{stem}.json"]), "the volume and its record"
    if name == "ct_dicom":
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / name)))
        image = reader.Execute()
        assert str(pydicom.dcmread(next((tmp_path / name).iterdir())).PatientName) == "jane"
    else:
        image = sitk.ReadImage(str(tmp_path / name))
    affine = geometry.grid.affine()
    for index in np.ndindex(4, 4, 4):
        voxel = tuple(1 + 4 * i for i in index)
        place = np.array([-1, -1, 1]) * (affine @ [*voxel, 1])[:3]
        found = image[image.TransformPhysicalPointToIndex(place.tolist())]
        assert found == pytest.approx(expected[voxel], abs=1.01)
    record = json.loads((tmp_path / f"{stem}.json").read_text())
    assert record["patient"] == "jane" and record["units"] == "HU" and "not for clinical use" in record["note"]
    assert BiplanarGeometry.from_dict(record["geometry"]) == geometry
    assert record["reprojection_mae"] > 0 and isinstance(record["warnings"], list)
    assert any("isocentre" in text for text in record["assumptions"])
    if "nii" in name:
        assert np.allclose(record["affine"], nib.load(tmp_path / name).affine)


def test_assumptions_and_errors_are_printed_as_they_are_recorded(capsys, pair, checkpoint, tmp_path: Path) -> None:
    (path,) = reconstruct(checkpoint, radiographs=pair, output=tmp_path / "ct.nii.gz", precision="fp32")
    said = capsys.readouterr().out
    record = json.loads(path.with_name("ct.json").read_text())
    for text in record["assumptions"]:
        assert f"assumed: {text}" in said
    for text in record["warnings"]:
        assert f"warning: {text}" in said
    assert f"differ from those given by {record['reprojection_mae']:.3f}" in said
    given = files_to_samples(load_network(checkpoint).config.geometry, with_ct=False)({"patient": "", "image": pair})
    made = nib.load(path)
    volume = torch.from_numpy(np.asarray(made.dataobj, dtype=np.float32))[None]
    again = render_drr(volume, load_network(checkpoint).config.geometry, made.affine)
    assert record["reprojection_mae"] == pytest.approx(float((again - 6 * given["image"]).abs().mean()), abs=2e-3)


def test_a_folder_gets_a_folder_for_the_patient(command, pair, checkpoint, tmp_path: Path) -> None:
    assert command("reconstruct", *options(pair, checkpoint, tmp_path / "out"), "--patient", "jane")[0] == 0
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [f"out/jane/jane_ct.{ending}" for ending in ("json", "nii.gz", "png")]


def test_another_size_and_another_cts_voxels(command, pair, checkpoint, label: Path, expected, tmp_path: Path) -> None:
    sized = options(pair, checkpoint, tmp_path / "sized.nii.gz")
    assert command("reconstruct", *sized, "--size", 32)[0] == 0
    image = nib.load(tmp_path / "sized.nii.gz")
    assert image.shape == (32, 32, 32) and np.allclose(np.abs(np.diag(image.affine)[:3]), 360 / 32)
    coarse = np.asarray(image.dataobj, dtype=float).reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
    finer = F.interpolate(torch.from_numpy(expected)[None, None], size=(32,) * 3, mode="trilinear")[0, 0]
    pooled = finer.numpy().reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(coarse.ravel(), pooled.ravel())[0, 1] > 0.999
    assert "no detail" in " ".join(json.loads((tmp_path / "sized.json").read_text())["assumptions"])

    liked = options(pair, checkpoint, tmp_path / "liked.nii.gz")
    assert command("reconstruct", *liked, "--like", label)[0] == 0
    made, ct = nib.load(tmp_path / "liked.nii.gz"), nib.load(label)
    assert made.shape == ct.shape and np.allclose(made.affine, ct.affine, atol=1e-4)
    assert "bounding box" in " ".join(json.loads((tmp_path / "liked.json").read_text())["assumptions"])
    both = options(pair, checkpoint, tmp_path / "both.nii.gz")
    assert_one_sentence(command("reconstruct", *both, "--like", label, "--size", 32), "not both")


def test_the_preview_page_needs_nothing_else(command, pair, checkpoint, tmp_path: Path) -> None:
    out = options(pair, checkpoint, tmp_path / "ct.nrrd")
    assert command("reconstruct", *out, "--preview", "--patient", "<b>jane")[0] == 0
    page = (tmp_path / "ct.html").read_text()
    assert "&lt;b&gt;jane" in page and "<b>jane" not in page
    head = page[: page.index('id="viewer-data"')]
    assert 'src="http' not in head and 'href="http' not in head and "not for clinical use" in head
    record = json.loads((tmp_path / "ct.json").read_text())
    for text in record["assumptions"]:
        assert text in html.unescape(page)
    assert (tmp_path / "ct.png").stat().st_size > 5000


def test_what_is_there_is_not_replaced_unless_asked(command, pair, patients, checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "ct.nii.gz"
    out.write_bytes(b"mine")
    assert_one_sentence(command("reconstruct", *options(pair, checkpoint, out)), "exists")
    assert out.read_bytes() == b"mine" and sorted(tmp_path.iterdir()) == [out]
    assert command("reconstruct", *options(pair, checkpoint, out), "--overwrite")[0] == 0
    first = out.stat().st_mtime_ns
    assert command("reconstruct", *options(pair, checkpoint, out))[0] == 0, "the same again is finished"
    assert out.stat().st_mtime_ns == first
    others = [patients / "p1" / "pa.nii.gz", patients / "p1" / "lat.nii.gz"]
    assert_one_sentence(command("reconstruct", *options(others, checkpoint, out)), "made with other radiographs")
    assert_one_sentence(command("reconstruct", *options(pair, checkpoint, out), "--size", 20), "other settings")
    assert out.stat().st_mtime_ns == first


def test_what_is_asked_for_later_is_made(command, pair, checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "ct.nii.gz"
    assert command("reconstruct", *options(pair, checkpoint, out))[0] == 0
    assert command("reconstruct", *options(pair, checkpoint, out), "--preview")[0] == 0
    assert (tmp_path / "ct.html").exists()
    out.unlink()
    assert command("reconstruct", *options(pair, checkpoint, out))[0] == 0
    assert out.exists()
    result = command("reconstruct", *options(pair, checkpoint, tmp_path / "ct.nrrd"))
    assert_one_sentence(result, "ct.json is the record of ct.nii.gz")


def test_a_dicom_series_keeps_its_patient(command, pair, checkpoint, tmp_path: Path) -> None:
    out = options(pair, checkpoint, tmp_path / "dicom")
    assert command("reconstruct", *out, "--patient", "jane")[0] == 0
    assert command("reconstruct", *out, "--patient", "jane", "--patient-id", "jane")[0] == 0, "the name by default"
    assert_one_sentence(command("reconstruct", *out, "--patient", "joan"), "made with other names")
    assert_one_sentence(command("reconstruct", *out, "--patient", "jane", "--patient-id", 7), "made with other names")


def test_one_picture_for_both_views(command, pair, checkpoint, tmp_path: Path) -> None:
    out = options([pair[0], pair[0]], checkpoint, tmp_path / "ct.nii.gz")
    assert_one_sentence(command("reconstruct", *out), "are the same picture")
    assert not list(tmp_path.iterdir())


def test_a_name_with_a_slash_at_its_end_is_a_folder(command, pair, checkpoint, tmp_path: Path) -> None:
    assert command("reconstruct", *options(pair, checkpoint, f"{tmp_path}/v1.2/"))[0] == 0
    assert (tmp_path / "v1.2" / "patient" / "patient_ct.nii.gz").exists()


def folder(patients: Path, checkpoint: Path, output: Path) -> list[Any]:
    return [patients, "--checkpoint", checkpoint, "--output", output, "--set", "precision=fp32"]


def made(output: Path) -> list[str]:
    return sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file())


def test_a_folder_of_patients_goes_on_where_it_was(command, patients: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = shutil.copytree(patients, tmp_path / "patients")
    lateral = broken / "p1" / "lat.nii.gz"
    lateral.write_bytes(lateral.read_bytes()[:50])
    (broken / "p2" / "lat.nii.gz").unlink()
    status, message = command("reconstruct", *folder(broken, checkpoint, out))
    assert status == 1, message
    assert message.strip().splitlines() == [message.strip()] and "p2, p1" in message and "2 of 3" in message
    assert made(out) == [f"p0/p0_ct.{ending}" for ending in ("json", "nii.gz", "png")]
    first = (out / "p0" / "p0_ct.nii.gz").stat().st_mtime_ns

    (out / "p1").mkdir()  # as a killed run leaves it: a volume without its record, and half of another
    (out / "p1" / "p1_ct.nii.gz").write_bytes(b"half")
    (out / "p1" / f".{'0' * 32}.p1_ct.nii.gz").write_bytes(b"half")
    assert command("reconstruct", *folder(patients, checkpoint, out))[0] == 0
    assert made(out) == [f"p{n}/p{n}_ct.{ending}" for n in range(3) for ending in ("json", "nii.gz", "png")]
    assert (out / "p0" / "p0_ct.nii.gz").stat().st_mtime_ns == first, "what was finished is kept"
    nib.load(out / "p1" / "p1_ct.nii.gz").get_fdata()
    before = {name: (out / name).stat().st_mtime_ns for name in made(out)}
    assert command("reconstruct", *folder(patients, checkpoint, out))[0] == 0
    assert before == {name: (out / name).stat().st_mtime_ns for name in made(out)}


def test_another_checkpoint_is_not_skipped_silently(command, patients, checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command("reconstruct", *folder(patients, checkpoint, out))[0] == 0
    content = read_checkpoint(checkpoint)
    content["network"] = {name: value + 0.01 for name, value in content["network"].items()}
    torch.save(content, tmp_path / "other.pt")
    renamed = shutil.copyfile(checkpoint, tmp_path / "renamed.pt")
    assert command("reconstruct", *folder(patients, renamed, out))[0] == 0, "the content counts, not the name"
    result = command("reconstruct", *folder(patients, tmp_path / "other.pt", out))
    assert_one_sentence(result, "made with other checkpoint")
    old = (out / "p0" / "p0_ct.nii.gz").read_bytes()
    assert command("reconstruct", *folder(patients, tmp_path / "other.pt", out), "--overwrite")[0] == 0
    assert (out / "p0" / "p0_ct.nii.gz").read_bytes() != old


def test_a_folder_in_which_nothing_can_be_read(command, patients, checkpoint, tmp_path: Path) -> None:
    broken = shutil.copytree(patients, tmp_path / "patients")
    for path in broken.rglob("*.nii.gz"):
        path.write_bytes(path.read_bytes()[:50])
    assert_one_sentence(command("reconstruct", *folder(broken, checkpoint, tmp_path / "out")), "3 of 3 patients")
    assert not made(tmp_path / "out")


def test_a_full_disk_keeps_what_is_complete(command, patients, checkpoint, tmp_path: Path, monkeypatch) -> None:
    write, calls = writing.write_volume, []

    def full(path, volume):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(path, volume)

    monkeypatch.setattr(writing, "write_volume", full)
    out = tmp_path / "out"
    status, message = command("reconstruct", *folder(patients, checkpoint, out))
    assert_one_sentence((status, message), "No space left on device")
    assert len(calls) == 2, "it stops at once"
    assert made(out) == [f"p0/p0_ct.{ending}" for ending in ("json", "nii.gz", "png")]
    monkeypatch.setattr(writing, "write_volume", write)
    assert command("reconstruct", *folder(patients, checkpoint, out))[0] == 0
    assert len(made(out)) == 9


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "size 4": (("--size", "4"), "from 8 to 1024"),
    "size 5000": (("--size", "5000"), "from 8 to 1024"),
    "like nothing": (("--like", "nowhere.nii.gz"), "does not exist"),
    "format": (("--format", "minc"), "format 'minc' is unknown"),
    "format against name": (("--format", "nrrd"), "the format is nrrd"),
    "intensity": (("--intensity", "bright"), "bright"),
    "pitch": (("--pixel-spacing-mm", "-1"), "-1"),
    "an unknown key": (("--set", "sizes=3"), "--sizes is no key"),
    "precision": (("--set", "precision=fp8"), "fp8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_leave_nothing_behind(command, pair, checkpoint, tmp_path: Path, case: str) -> None:
    more, says = WRONG[case]
    assert_one_sentence(command("reconstruct", *options(pair, checkpoint, tmp_path / "o" / "ct.nii.gz"), *more), says)
    assert not list(tmp_path.iterdir())


def test_half_of_the_inputs(command, pair, patients, checkpoint, tmp_path: Path) -> None:
    rest = ["--checkpoint", checkpoint, "--output", tmp_path / "ct.nii.gz"]
    for given in ([], ["--pa", pair[0]], [patients, "--pa", pair[0], "--lateral", pair[1]]):
        assert_one_sentence(command("reconstruct", *given, *rest), "give --pa and --lateral, or a folder")
    assert_one_sentence(command("reconstruct", tmp_path, *rest), "holds no")
    assert_one_sentence(command("reconstruct", *options(pair, checkpoint, tmp_path / "ct.dcm")), "no volume format")
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "ct.nii.gz"
    assert_one_sentence(command("reconstruct", *options(pair, checkpoint, below)), "cannot be written")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_from_python_in_three_lines(pair, checkpoint, expected, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text()
    code = page[page.index("```python") + len("```python") :]
    code = code[: code.index("```")]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 3, code
    for source, name in ((pair[0], "pa.dcm"), (pair[1], "lat.dcm")):
        assert name in code
        code = code.replace(f'"{name}"', repr(str(source)))
    assert "reconstruct(radiographs=" in code  # with a network that is shipped; here one that is known
    code = code.replace("reconstruct(radiographs=", f"reconstruct({str(checkpoint)!r}, radiographs=")
    code = code.replace('"ct.nii.gz")', '"ct.nii.gz", precision="fp32")')
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert np.abs(np.asarray(nib.load(tmp_path / "ct.nii.gz").dataobj) - expected).max() < 1.01
    assert [str(path) for path in namespace["paths"]] == ["ct.nii.gz"]


def test_a_user_of_python_gets_exceptions_not_exits(pair, checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no volume file"):
        reconstruct(checkpoint, radiographs=pair, output=tmp_path / "ct")


def test_the_command_line_starts_without_torch() -> None:
    """It prints its first line before torch and MONAI are there, which take seconds."""
    code = "import sys, drr2ct.pipeline.cli; print([m for m in ('torch', 'monai', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.slow
def test_the_same_through_monai_bundle_run(pair, checkpoint, expected, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", bundle_file("configs/inference.yaml")]
    files = ["--radiographs", str([str(path) for path in pair]), "--checkpoint", checkpoint, "--precision", "fp32"]
    out = tmp_path / "ct.nii.gz"
    done = subprocess.run(
        [*map(str, [*command, *files, "--output", out])], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert np.abs(np.asarray(nib.load(out).dataobj) - expected).max() < 1.01
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ct.json", "ct.nii.gz"]
    wrong = subprocess.run(
        [*map(str, [*command, *files, "--output", tmp_path / "ct.dcm"])],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert wrong.returncode != 0 and wrong.stderr.strip().splitlines()[-1].startswith("drr2ct: output")


@pytest.mark.slow
def test_monais_ckpt_export_serves(pair, checkpoint, expected, tmp_path: Path) -> None:
    path = tmp_path / "network.ts"
    command = [sys.executable, "-m", "monai.bundle", "ckpt_export", "network_def", "--filepath", path]
    files = ["--ckpt_file", checkpoint, "--checkpoint", checkpoint, "--key_in_ckpt", "network"]
    where = [
        "--config_file",
        bundle_file("configs/inference.yaml"),
        "--meta_file",
        bundle_file("configs/metadata.json"),
    ]
    done = subprocess.run(
        [*map(str, [*command, *files, *where])], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    extra = {"metadata.json": "", "inference.json": ""}
    network = torch.jit.load(str(path), _extra_files=extra)
    image = files_to_samples(load_network(checkpoint).config.geometry, with_ct=False)({"patient": "", "image": pair})
    with torch.inference_mode():
        assert np.abs(to_hu(network(image["image"][None])[0, 0]).numpy() - expected).max() < 0.5
    assert json.loads(extra["metadata.json"])["task"]


@pytest.mark.slow
def test_killed_at_any_moment_nothing_half_written_counts(patients: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [Path(sys.executable).with_name("drr2ct"), "reconstruct", *folder(patients, checkpoint, out)]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while not list(out.glob("p0/p0_ct.nii.gz")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for record in out.rglob("*.json"):
        nib.load(record.with_suffix(".nii.gz")).get_fdata()
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert made(out) == [f"p{n}/p{n}_ct.{ending}" for n in range(3) for ending in ("json", "nii.gz", "png")]
