"""Commands as users type them: what they say when the input is wrong, and that nothing half-written stays."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.datalist import load_datalist
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.transforms import LoadCT, render_drr, write_radiograph
from tests.bundle.conftest import assert_one_sentence
from tests.files import chest, write_nifti


@pytest.fixture
def radiographs(dataset: Path, run: Path, tmp_path: Path) -> list[Path]:
    """The two views of a test patient, as 16-bit PNG."""
    geometry = load_network(run / "checkpoints" / "last.pt").config.geometry
    images = render_drr(LoadCT()(load_datalist(dataset, "test")[0]["label"]), geometry)
    paths = [tmp_path / f"{view.name}.png" for view in geometry.views]
    for path, image in zip(paths, images, strict=True):
        write_radiograph(path, image)
    return paths


def make_patients(root: Path, count: int) -> Path:
    for i in range(count):
        write_nifti(root / f"p{i}" / f"p{i}.nii.gz", chest(seed=i))
    return root


BAD_SETS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no folder": (lambda p: p / "nowhere", "does not exist"),
    "no patients": (lambda p: p, "holds no patient"),
    "too few": (lambda p: make_patients(p, 2), "too few to split"),
    "list without parts": (lambda p: (p / "dataset.json").write_text("{}") and p, "no patients under 'training'"),
    "list not JSON": (lambda p: (p / "dataset.json").write_text("{") and p, "not a MONAI data list"),
    "list of other shape": (lambda p: (p / "dataset.json").write_text("[1]") and p, "not a MONAI data list"),
    "list with missing file": (
        lambda p: (p / "dataset.json").write_text('{"training": [{"label": "a/a.nii.gz"}]}') and p,
        "does not exist",
    ),
    "list that leads outside": (
        lambda p: (p / "dataset.json").write_text('{"training": [{"label": "../x/a.nii.gz"}]}') and p,
        "outside the data set",
    ),
    "patient name that leads outside": (
        lambda p: (p / "dataset.json").write_text('{"training": [{"label": "a", "patient": "../a"}]}') and p,
        "cannot be a file name",
    ),
    "patient in two parts": (
        lambda p: (
            (make_patients(p, 1) / "dataset.json").write_text(
                '{"training": [{"label": "p0/p0.nii.gz"}], "test": [{"label": "p0/p0.nii.gz"}]}'
            )
            and p
        ),
        "is in 'training' and in 'test'",
    ),
    "geometry not JSON": (lambda p: (make_patients(p, 3) / "geometry.json").write_text("{") and p, "is not JSON"),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_a_data_set_that_cannot_be_used(command, tmp_path: Path, case: str) -> None:
    make, says = BAD_SETS[case]
    root = tmp_path / "set"
    root.mkdir()
    result = command("train", make(root), "--output", tmp_path / "out", "--network", "cascade64")
    assert_one_sentence(result, says)
    assert not list((tmp_path / "out").glob("**/*.pt"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read"),
        (lambda path: write_nifti(path, np.zeros((9, 9, 9, 2), np.float32)), "4 dimensions"),
        (lambda path: write_nifti(path, np.zeros((9, 9), np.float32)), "2 dimensions"),
        (lambda path: write_nifti(path, (chest() + 1000) / 8), "no air in Hounsfield units"),
        (lambda path: write_nifti(path, np.where(chest() > 400, np.nan, chest())), "NaN"),
        (lambda path: write_nifti(path, chest()[:, :, :1]), "only 1 slice"),
    ],
)
def test_a_ct_that_cannot_be_used_is_named(command, tmp_path: Path, spoil, says: str) -> None:
    root = make_patients(tmp_path / "set", 3)
    for i in range(3):
        spoil(root / f"p{i}" / f"p{i}.nii.gz")
    result = command(
        "train",
        root,
        "--output",
        tmp_path / "out",
        "--network",
        "cascade64",
        "--set",
        "size=16",
        "--set",
        "num_workers=0",
    )
    assert_one_sentence(result, says)
    assert "/p" in result[1]
    assert not list((tmp_path / "out" / "cache").glob("*")), "no sample of a broken file is kept"


def test_networks_and_keys_that_do_not_exist(command, dataset: Path, tmp_path: Path) -> None:
    assert_one_sentence(
        command("train", dataset, "--output", tmp_path, "--network", "cascade65"), "did you mean cascade64"
    )
    assert_one_sentence(command("train", dataset, "--output", tmp_path, "--set", "epohcs=2"), "--epohcs is no key")
    assert_one_sentence(command("train", dataset, "--output", tmp_path, "--set", "epochs"), "is not KEY=VALUE")
    assert_one_sentence(
        command("train", dataset, "--output", tmp_path, "--network", "cascade64", "--set", "size=18"), "multiple of 4"
    )
    assert_one_sentence(
        command("train", dataset, "--output", tmp_path, "--network", "cascade64", "--set", "precision=fp8"), "fp8"
    )
    for wrong, says in (
        ("detector_size=abc", "--detector_size takes a number"),
        ("resume=3", "--resume takes true or false"),
        ("train#trainr#max_epochs=3", "trainr"),
        ("train#trainer#max_epochs=many", "takes a number"),
        ("train#trainer#max_epoch=3", "did you mean max_epochs"),
        ("split_seed=[1", "not YAML"),
        ("device=cpu", "give '$torch.device(\"cpu\")'"),
        ("batch_size=0", "batch_size is 0"),
        ("num_workers=-1", "num_workers is -1"),
        ("learning_rate=-1.0", "learning rate -1.0, weight decay 0.0001 and eps 1e-08 must not be below 0"),
        ("val_interval=0", "val_interval is 0; it must be a whole number, 1 or more"),
        ("optimizer#eps=-1.0", "must not be below 0"),
        ("optimizer#_target_=torch.optim.Adamm", "there is no class or function torch.optim.Adamm"),
        ("max_gradient_norm=-1", "max_gradient_norm is -1"),
    ):
        assert_one_sentence(command("train", dataset, "--output", tmp_path / "out", "--set", wrong), says)
    adam = ("--set", "optimizer#_target_=torch.optim.AdamW", "--set", "optimizer#eps=-1.0")
    refused = command("train", dataset, "--output", tmp_path / "out", *adam)
    assert_one_sentence(refused, "torch.optim.AdamW cannot be made from the configuration")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_leaves_the_configuration_that_was_there(command, dataset, run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    before = (out / "config.yaml").read_bytes()
    result = command("train", dataset, "--output", out, "--network", "cascade64")
    assert_one_sentence(result, "of another network")
    assert (out / "config.yaml").read_bytes() == before
    checkpoint = run / "checkpoints" / "last.pt"
    result = command("evaluate", tmp_path / "none", "--checkpoint", checkpoint, "--output", tmp_path / "a" / "b")
    assert_one_sentence(result, "does not exist")
    assert not (tmp_path / "a").exists()


def test_a_place_where_nothing_can_be_written(command, run: Path, radiographs: list[Path], tmp_path: Path) -> None:
    checkpoint, taken = run / "checkpoints" / "last.pt", tmp_path / "taken"
    taken.write_text("a file")
    pair = ("--pa", radiographs[0], "--lateral", radiographs[1], "--checkpoint", checkpoint)
    for arguments in (
        ("reconstruct", *pair, "--output", taken / "ct.nii.gz"),
        ("evaluate", tmp_path, "--checkpoint", checkpoint, "--output", taken),
    ):
        assert_one_sentence(command(*arguments), str(taken))
    assert taken.read_text() == "a file" and sorted(tmp_path.iterdir()) == sorted([taken, *radiographs])


def test_a_loss_that_is_not_finite(command, dataset: Path, tmp_path: Path) -> None:
    overrides = ("size=16", "detector_size=24", "precision=fp32", "learning_rate=1.0e+30", "max_gradient_norm=1.0e+30")
    options = [part for override in overrides for part in ("--set", override)]
    result = command("train", dataset, "--output", tmp_path, "--network", "cascade64", *options)
    assert_one_sentence(result, "in the batch of p")


def _other_network(run: Path, path: Path) -> None:
    content = read_checkpoint(run / "checkpoints" / "last.pt")
    content["description"]["config"]["volume_channels"] += 1
    torch.save(content, path)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/drr2ct-was-here"),))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda run, path: None, "does not exist"),
        (lambda run, path: path.touch(), "empty file"),
        (lambda run, path: path.write_text("weights"), "checkpoint"),
        (lambda run, path: path.write_bytes((run / "checkpoints" / "last.pt").read_bytes()[:20000]), "cannot be read"),
        (lambda run, path: torch.save({"state_dict": {}}, path), "was not written by drr2ct"),
        (lambda run, path: path.write_bytes(pickle.dumps(_Bomb())), "was not loaded"),
        (lambda run, path: torch.save({"network": _Bomb(), "description": {}}, path), "was not loaded"),
        (_other_network, "of another network (cascade64)"),
    ],
)
def test_a_checkpoint_that_cannot_be_used(
    command, run: Path, radiographs: list[Path], tmp_path: Path, make, says
) -> None:
    path = tmp_path / "c.pt"
    make(run, path)
    out = tmp_path / "out"
    pa, lateral = radiographs
    result = command("reconstruct", "--pa", pa, "--lateral", lateral, "--checkpoint", path, "--output", out)
    assert_one_sentence(result, says)
    assert not list(out.glob("**/*.nii.gz"))
    assert not Path("/tmp/drr2ct-was-here").exists(), "a checkpoint must never run code"


def test_radiographs_that_cannot_be_used(command, run: Path, radiographs: list[Path], tmp_path: Path) -> None:
    pa, lateral = radiographs
    checkpoint = run / "checkpoints" / "best_psnr.pt"

    def reconstruct(first: Path, second: Path, *more: object) -> tuple[int, str]:
        out = tmp_path / "out"
        result = command(
            "reconstruct", "--pa", first, "--lateral", second, "--checkpoint", checkpoint, "--output", out, *more
        )
        assert not list(out.glob("**/*.nii.gz"))
        return result

    assert_one_sentence(reconstruct(tmp_path / "none.png", lateral), "does not exist")
    assert_one_sentence(reconstruct(lateral, pa), "exchange")
    assert_one_sentence(reconstruct(pa, lateral, "--intensity", "bright"), "bright")
    assert_one_sentence(reconstruct(pa, lateral, "--patient", "../evil"), "cannot be a file name")
    small = tmp_path / "small.png"
    write_radiograph(small, torch.rand(12, 12))
    assert_one_sentence(reconstruct(pa, small, "--set", "fit=detector"), "same size")
    wide = tmp_path / "wide.png"
    write_radiograph(wide, torch.rand(12, 24))
    other = tmp_path / "other.png"
    write_radiograph(other, torch.rand(12, 24))
    assert_one_sentence(reconstruct(wide, other, "--set", "fit=detector"), "12×24")
    cut = tmp_path / "cut.png"
    cut.write_bytes(pa.read_bytes()[:100])
    assert_one_sentence(reconstruct(cut, lateral), "cut.png")


def test_the_one_patient_of_a_folder_lacks_a_radiograph(
    command, run: Path, radiographs: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "films" / "p1"
    folder.mkdir(parents=True)
    shutil.copy(radiographs[1], folder / "lat.png")
    checkpoint = run / "checkpoints" / "best_psnr.pt"
    options = ["reconstruct", folder.parent, "--checkpoint", checkpoint, "--output", tmp_path / "out"]
    assert_one_sentence(command(*options), "does not exist")
    (folder / "pa.png").touch()
    assert_one_sentence(command(*options), "is an empty file")
    named = ["--set", f"radiographs=[{tmp_path / 'none.png'},{radiographs[1]}]"]
    assert_one_sentence(
        command("reconstruct", *named, "--checkpoint", checkpoint, "--output", tmp_path / "o.nii"), "does not exist"
    )


@pytest.mark.slow
def test_the_job_runs_as_monai_bundle_run(dataset: Path, radiographs: list[Path], tmp_path: Path) -> None:
    def monai(config: str, *arguments: object, overlay: str | None = None) -> subprocess.CompletedProcess[str]:
        files = [str(bundle_file(f"configs/{name}.yaml")) for name in (config, overlay) if name]
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)

    small = ["--size", 16, "--detector_size", 24]
    out = tmp_path / "run"
    done = monai(
        "train", "--dataset_dir", dataset, "--output_dir", out, *small, "--train#trainer#max_epochs", 1,
        overlay="networks/cascade64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "epochs.csv").exists() and "max_epochs: 1" in (out / "config.yaml").read_text()
    checkpoint = out / "checkpoints" / "last.pt"
    done = monai(
        "evaluate", "--dataset_dir", dataset, "--checkpoint", checkpoint, "--output_dir", tmp_path / "evaluation"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "evaluation" / "patients.csv").exists()
    files = str([str(path) for path in radiographs])
    done = monai("inference", "--checkpoint", checkpoint, "--radiographs", files, "--output_dir", tmp_path / "volumes")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "volumes" / "patient" / "patient_ct.nii.gz").exists()

    # in a process of its own, where libraries log as they please
    command = [Path(sys.executable).with_name("drr2ct"), "reconstruct", "--pa", tmp_path / "none.png"]
    options = ["--lateral", radiographs[1], "--checkpoint", checkpoint, "--output", tmp_path / "wrong"]
    refused = subprocess.run([*map(str, [*command, *options])], capture_output=True, text=True, timeout=300)
    assert_one_sentence((refused.returncode, refused.stderr), "does not exist")

    shutil.rmtree(out)
    wrong = monai("train", "--dataset_dir", tmp_path / "nowhere", "--output_dir", out, overlay="networks/cascade64")
    assert wrong.returncode != 0
    last = wrong.stderr.strip().splitlines()[-1]
    assert last.startswith("drr2ct: data set folder") and "Traceback" not in wrong.stderr
    assert not out.exists()
    wrong = monai("train", "--dataset_dir", dataset, "--output_dir", out, "--epohcs", 2, overlay="networks/cascade64")
    assert wrong.returncode != 0 and "--epohcs is no key" in wrong.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "missing argument 'dataset' (drr2ct train --help"),
        (["trian"], "no such command 'trian'. Did you mean 'train'? (drr2ct --help"),
        (["train", "x", "--output", "y", "--epochs", "abc"], "invalid value for '--epochs'"),
        (["train", "x"], "missing option '--output'"),
        (["--nope"], "no such option: --nope"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    command: Callable[..., tuple[int, str]], arguments: list[str], says: str
) -> None:
    assert_one_sentence(command(*arguments), says)


def test_no_arguments_print_the_help(command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command() == (0, "")


@pytest.mark.parametrize(
    "setting",
    ["on_bad_sample=stop", "on_oom=nonsense", "device=$torch.device('cuda:7')", "transfer_from=/nowhere.pt"],
)
@pytest.mark.skipif(torch.cuda.device_count() > 7, reason="there is such a GPU")
def test_a_refused_training_leaves_nothing(
    command: Callable[..., tuple[int, str]], tmp_path: Path, setting: str
) -> None:
    for name in ("a", "b", "c"):
        path = tmp_path / "cts" / name / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no CT")
    output = tmp_path / "runs" / "run"
    arguments = ["--output", output, "--network", "cascade64", "--set", "size=16", "--set", "detector_size=24"]
    status, message = command("train", tmp_path / "cts", *arguments, "--set", setting)
    assert status == 2 and len(message.strip().splitlines()) == 1
    assert not output.parent.exists()
