"""Files, folders and patients whose names hold signs of MONAI's own, and names that must not be written to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.reconstruction import reconstruct
from drr2ct.transforms import LoadCT, render_drr, write_radiograph
from tests.bundle.conftest import SMALL, assert_one_sentence
from tests.files import chest, write_nifti

CPU = ("--set", "precision=fp32", "--set", "device=$torch.device('cpu')")


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.pt"


@pytest.fixture(scope="module")
def films(dataset: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pa.nii.gz and lat.nii.gz of one patient."""
    geometry = load_network(checkpoint).config.geometry
    folder = tmp_path_factory.mktemp("films")
    images = render_drr(LoadCT()(dataset / "p0" / "p0.nii.gz"), geometry)
    for view, image in zip(geometry.views, images, strict=True):
        write_radiograph(folder / f"{view.name}.nii.gz", image, pitch_mm=view.pixel_pitch_mm)
    return folder


@pytest.fixture
def here(films: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pa.nii.gz, lat.nii.gz and net.pt."""
    for path in films.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(checkpoint, tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["a#b.nii.gz", "$pa.nii.gz", "%pa.nii.gz", "@pa.nii.gz", "./$pa.nii.gz"])
def test_the_radiograph_that_was_named_is_read(command, here: Path, name: str) -> None:
    (here / "pa.nii.gz").rename(here / name)
    (here / "a::b.nii.gz").write_bytes(b"another file")
    result = command(
        *("reconstruct", "--pa", name, "--lateral", "lat.nii.gz", "--checkpoint", "net.pt"),
        *("--output", "ct.nii.gz", *CPU),
    )
    assert result[0] == 0, result
    assert json.loads((here / "ct.json").read_text())["radiographs"] == [str(Path(name)), "lat.nii.gz"]


@pytest.mark.parametrize(
    ("output", "made"),
    [
        ("out #3/ct.nii.gz", "out #3/ct.nii.gz"),
        ("$o.nii.gz", "$o.nii.gz"),
        ("%o.nrrd", "%o.nrrd"),
        ("#_dicom", "#_dicom"),
        ("$HOME/", "$HOME/j #3/j #3_ct.nii.gz"),
        ("@patient", "@patient/j #3/j #3_ct.nii.gz"),
    ],
)
def test_the_output_is_where_it_was_asked_for(command, here: Path, output: str, made: str) -> None:
    before = set(here.iterdir())
    films = ("--pa", "pa.nii.gz", "--lateral", "lat.nii.gz", "--checkpoint", "net.pt")
    assert command("reconstruct", *films, "--output", output, "--patient", "j #3", *CPU) == (0, "")
    assert (here / made).exists()
    stem = made.split("/")[0].split(".")[0]
    assert {path.name.split(".")[0] for path in set(here.iterdir()) - before} == {stem}, "nothing elsewhere"


def test_names_are_no_code(command, here: Path) -> None:
    patient = '$open("executed","w")or"x"'
    films = ("--pa", "pa.nii.gz", "--lateral", "lat.nii.gz", "--checkpoint", "net.pt")
    names = ("--patient", patient, "--patient-id", "$1/0")
    result = command("reconstruct", *films, "--output", "out", "--format", "dicom", *names, "--preview", *CPU)
    assert result == (0, "")
    assert json.loads((here / "out.json").read_text())["patient"] == patient
    words = ("--intensity", "--window", "--orientation", "--format", "--model")
    for word in words:
        result = command("reconstruct", *films, "--output", "o", word, '$open("executed","w")')
        assert result[0] == 2 and "Traceback" not in result[1], result
    result = command("evaluate", here, "--output", "judged", "--model", '$open("executed","w")')
    assert result[0] == 2 and "Traceback" not in result[1], result
    assert not (here / "executed").exists()


def test_from_python_paths_and_names_are_data_and_overrides_are_monais(here: Path) -> None:
    (here / "pa.nii.gz").rename(here / "$pa.nii.gz")
    (path,) = reconstruct(
        "net.pt",
        {"size": "$2 * 8", "device": "$torch.device('cpu')"},
        radiographs=["$pa.nii.gz", Path("lat.nii.gz")],
        output="a#b.nii.gz",
        patient="@seed",
    )
    assert path == Path("a#b.nii.gz") and nib.load(path).shape == (16, 16, 16)
    assert json.loads((here / "a#b.json").read_text())["patient"] == "@seed"


def test_folders_and_patients_of_any_name_from_training_to_reconstruction(
    command, tmp_path: Path, checkpoint: Path
) -> None:
    data, run, judged = tmp_path / "set #1", tmp_path / "$run", tmp_path / "judged @x #2"
    for index, name in enumerate(["p#0", "$p1", "@p2", "%p3", "p$4", "p 5"]):
        write_nifti(data / name / f"{name}.nii.gz", chest((34, 30, 26), seed=index))
    small = [
        text
        for key, value in {**SMALL, "device": "$torch.device('cpu')"}.items()
        if key != "network_name"
        for text in ("--set", f"{key}={json.dumps(value)}")
    ]
    output = run / "r#0"
    options = ["train", data, "--output", output, "--network", "cascade64", "--epochs", 1, *small]
    status, message = command(*options)
    assert status == 0, message
    last = output / "checkpoints" / "last.pt"
    assert yaml.safe_load((output / "config.yaml").read_text())["output_dir"].startswith("$'"), "it runs again as it is"
    options = ["--set", "num_workers=0", *CPU]
    status, message = command("evaluate", data, "--output", judged, "--checkpoint", last, *options)
    assert status == 0, message
    (patient,) = (path.name for path in (judged / "predictions").iterdir() if path.is_dir())
    assert (data / patient).is_dir()
    status, message = command("report", run / "r#0", "--evaluation", judged)
    assert status == 0, message
    geometry = load_network(last).config.geometry
    for name in ("p#0", "$p1"):
        images = render_drr(LoadCT()(data / name / f"{name}.nii.gz"), geometry)
        for view, image in zip(geometry.views, images, strict=True):
            (tmp_path / "F #1" / name).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "F #1" / name / f"{view.name}.nii.gz"
            write_radiograph(path, image, pitch_mm=view.pixel_pitch_mm)
    output = tmp_path / "%out"
    status, message = command("reconstruct", tmp_path / "F #1", "--checkpoint", last, "--output", output, *CPU)
    assert status == 0, message
    assert sorted(path.name for path in output.iterdir()) == ["$p1", "p#0"]


def refused(command, *arguments: object) -> None:
    """It is refused, also with --overwrite, and every file is as it was."""
    here = Path.cwd()
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for more in ((), ("--overwrite",)):
        status, message = command(*arguments, *more)
        assert status == 2 and len(message.splitlines()) == 1, message
    assert "which it is made of; give another output" in message
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "output", ["pa.nii.gz", "./lat.nii.gz", "link.nii.gz", "ct.nii.gz", "films/a_dicom", "pa.nrrd"]
)
def test_what_is_read_is_never_replaced(command, here: Path, output: str) -> None:
    (here / "link.nii.gz").symlink_to("pa.nii.gz")
    (here / "films" / "a_dicom").mkdir(parents=True)
    shutil.copy(here / "pa.nii.gz", here / "films" / "a_dicom" / "pa.nii.gz")
    write_nifti(here / "ct.nii.gz", chest())
    pa = "films/a_dicom/pa.nii.gz" if output.startswith("films") else "pa.nii.gz"
    checkpoint = "net.pt"
    if output == "pa.nrrd":  # the record beside it
        checkpoint = "pa.json"
        (here / "net.pt").rename(here / checkpoint)
    films = ("--pa", pa, "--lateral", "lat.nii.gz", "--checkpoint", checkpoint, "--like", "ct.nii.gz")
    refused(command, "reconstruct", *films, "--output", output)


def test_a_picture_is_only_in_the_way_if_one_is_written(command, here: Path) -> None:
    (here / "net.pt").rename(here / "a.png")
    films = ("reconstruct", "--pa", "pa.nii.gz", "--lateral", "lat.nii.gz", "--checkpoint", "a.png")
    refused(command, *films, "--output", "a.nii.gz", "--preview")
    assert command(*films, "--output", "a.nii.gz", *CPU) == (0, "")


def test_a_ct_beside_the_films_is_not_taken_for_a_volume_that_was_left_half_done(command, here: Path) -> None:
    patient = here / "set" / "jane"
    patient.mkdir(parents=True)
    for name in ("pa.nii.gz", "lat.nii.gz"):
        (here / name).rename(patient / name)
    write_nifti(patient / "jane_ct.nii.gz", chest())
    before = (patient / "jane_ct.nii.gz").read_bytes()
    result = command("reconstruct", here / "set", "--output", here / "set", "--checkpoint", "net.pt", *CPU)
    assert_one_sentence(result, "jane_ct.nii.gz exists; give another output, or overwrite")
    assert (patient / "jane_ct.nii.gz").read_bytes() == before


def test_no_other_command_replaces_what_it_reads(command, here: Path) -> None:
    (here / "net.pt").rename(here / "net.ts")
    refused(command, "export", "--checkpoint", "net.ts", "--output", "net.ts")
    (here / "net.ts").rename(here / "net.safetensors")
    refused(command, "inspect", "net.safetensors", "--export", "net.safetensors")
    (here / "net.safetensors").rename(here / "net.pt")
    refused(command, "calibrate", here, "--checkpoint", "net.pt", "--output", "net.pt")
    before = (here / "net.pt").read_bytes()
    result = command("plan", "--compare", "cascade64", "--checkpoint", "net.pt", "--json", "net.pt", "--samples", 0)
    assert_one_sentence(result, "which it is made of")
    assert (here / "net.pt").read_bytes() == before
    for folder in ("made", "true"):
        write_nifti(here / folder / "jane" / "lung.nii.gz", (chest() > 0).astype(np.uint8))
    before = (here / "true" / "jane" / "lung.nii.gz").read_bytes()
    assert_one_sentence(
        command("segmentations", "made", "true", "--output", "true/jane/lung.nii.gz"), "which it is made of"
    )
    assert (here / "true" / "jane" / "lung.nii.gz").read_bytes() == before
    write_nifti(here / "source" / "p" / "p.nii.gz", chest())
    before = (here / "source" / "p" / "p.nii.gz").read_bytes()
    result = command("prepare", "source", "set", "--workers", 1, "--report", "source/p/p.nii.gz")
    assert_one_sentence(result, "which it is made of")
    assert (here / "source" / "p" / "p.nii.gz").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["n" * 250 + ".nii.gz", "n" * 240 + ".nii.gz", "n" * 300 + "/a.nii.gz", "n" * 300 + "/"]
)
def test_a_name_that_is_too_long_is_refused_before_anything_is_computed(command, here: Path, name: str) -> None:
    before = set(here.iterdir())
    films = ("--pa", "pa.nii.gz", "--lateral", "lat.nii.gz", "--checkpoint", "net.pt")
    result = command("reconstruct", *films, "--output", name)
    assert_one_sentence(result, "too long")
    assert "shorter" in result[1] and set(here.iterdir()) == before


def test_a_name_that_is_too_long_for_another_command(command, here: Path) -> None:
    long = "n" * 260
    for arguments in (
        ("export", "--checkpoint", "net.pt", "--output", f"{long}.pt2"),
        ("inspect", "net.pt", "--export", f"{long}.safetensors"),
        ("reconstruct", "--pa", f"{long}.nii.gz", "--lateral", "lat.nii.gz", "--output", "o.nii"),
        ("train", here, "--output", long * 2),
    ):
        assert_one_sentence(command(*arguments), "shorter")
