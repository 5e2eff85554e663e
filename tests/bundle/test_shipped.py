"""Commands without a checkpoint, and the bundle with its weights as MONAI's tools and its model zoo see it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import verify_metadata, verify_net_in_out
from monai.data import load_net_with_metadata
from rich.console import Console

from drr2ct.pipeline.checkpoints import shipped
from drr2ct.pipeline.checkpoints.ensemble import join
from drr2ct.pipeline.checkpoints.files import read_checkpoint, weights_sha256
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.demo_unseen import reconstruct_unseen
from drr2ct.pipeline.evaluation.similarity import decibels
from drr2ct.pipeline.reconstruction import reconstruct
from drr2ct.pipeline.reports.release import LARGEST_BYTES, release
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.transforms import LoadCT, render_drr, write_radiograph
from drr2ct.transforms.validation import InputError
from tests.bundle.conftest import assert_one_sentence
from tests.bundle.test_bundle import SCHEMA
from tests.files import chest, write_nifti
from tests.shipping import make_bundle, make_run

INSTALLED = bundle_file("configs/train.yaml").parents[1]
FAST = ("--set", "num_workers=0", "--set", "precision=fp32", "--set", "with_baselines=false")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that ships a small cascade64."""
    folder = tmp_path_factory.mktemp("shipped")
    root = make_bundle(folder / "bundle")
    release(make_run(folder / "run"), "cascade64", root)
    return root


@pytest.fixture
def weights(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those of the bundle, as if it were the installed one."""
    monkeypatch.setattr(shipped, "models_folder", lambda root=None: bundle / "models")
    return bundle / "models" / "cascade64.safetensors"


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one patient to test on."""
    root = tmp_path_factory.mktemp("patient")
    write_nifti(root / "new" / "new.nii.gz", chest(seed=9))
    (root / "dataset.json").write_text('{"test": [{"patient": "new", "label": "new/new.nii.gz"}]}')
    return root


@pytest.fixture(scope="module")
def pair(bundle: Path, patient: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Its radiographs."""
    geometry = load_network(bundle / "models" / "cascade64.safetensors").config.geometry
    folder = tmp_path_factory.mktemp("pair")
    for view, image in zip(geometry.views, render_drr(LoadCT()(patient / "new" / "new.nii.gz"), geometry), strict=True):
        write_radiograph(folder / f"{view.name}.nii.gz", image, pitch_mm=view.pixel_pitch_mm)
    return [folder / f"{view.name}.nii.gz" for view in geometry.views]


def digest_of(weights: Path) -> str:
    return weights_sha256(read_checkpoint(weights)["network"])


def test_a_training_begins_with_a_shipped_network(
    caplog, command, dataset: Path, weights: Path, tmp_path: Path
) -> None:
    run = [f"--output={tmp_path / 'run'}", "--network=cascade64", "--model=cascade64", "--epochs=1"]
    still = ("learning_rate=0.0", "lr_scheduler#eta_min=0.0", "precision=fp32")
    status, said = command("train", dataset, *run, *(f"--set={key}" for key in still))
    assert status == 0, said
    begun = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    shipped_weights = read_checkpoint(weights)["network"]
    assert begun["network"].keys() == shipped_weights.keys()
    assert all(torch.equal(value, shipped_weights[name]) for name, value in begun["network"].items())
    assert {"p0", "p1", "p2"} <= set(begun["description"]["patients"]["training"]), "of the shipped network"
    assert begun["description"]["patients"]["validation"] == ["p0"]
    assert any("was trained on p0, now in validation" in message for message in caplog.messages)
    for other in ("--grow=1:1", "--set=transfer_from=a.pt"):
        assert_one_sentence(command("train", dataset, *run, other), "cannot be begun with besides --grow or")
    assert_one_sentence(command("train", dataset, *run[:2], "--model=cascade128"), "is not shipped here")


@pytest.mark.slow
def test_a_training_begins_with_all_members_of_a_shipped_ensemble(
    caplog, command, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_bundle(tmp_path / "bundle")
    paths = [make_run(tmp_path / f"{seed}", seed=seed) / "checkpoints" / "best_psnr.pt" for seed in (0, 1)]
    join(paths[0], paths[1:], tmp_path / "joined.pt")
    release(tmp_path / "joined.pt", "cascade64", root)
    monkeypatch.setattr(shipped, "models_folder", lambda root_=None: root / "models")
    before = read_checkpoint(root / "models" / "cascade64.safetensors")["network"]
    still = ("learning_rate=0.0", "lr_scheduler#eta_min=0.0", "precision=fp32")
    recipes = {"whole": (), "frozen": ("--recipe=freeze", "--set=freeze=[members.*]"), "bounds": ("--recipe=interval",)}
    for name, options in recipes.items():
        run = [f"--output={tmp_path / name}", "--network=cascade64", "--model=cascade64", "--epochs=1", *options]
        status, said = command("train", dataset, *run, *(f"--set={key}" for key in still))
        assert status == 0, said
        after = read_checkpoint(tmp_path / name / "checkpoints" / "last.pt")["network"]
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert {key.split(".")[0] for key in after.keys() - before.keys()} == (
            {"interval"} if name == "bounds" else set()
        )
    assert "first member alone" not in caplog.text


def test_reconstruct_takes_the_shipped_network_and_says_so(capsys, weights: Path, pair, tmp_path: Path) -> None:
    (path,) = reconstruct(radiographs=pair, output=tmp_path / "ct.nii.gz", precision="fp32")
    said = capsys.readouterr().out
    assert "cascade64, as shipped, epoch 2, trained on 3 patients, for 30 s: 64³ voxels" in said
    assert json.loads(path.with_name("ct.json").read_text())["checkpoint"] == str(weights)
    (named,) = reconstruct(radiographs=pair, output=tmp_path / "n.nii.gz", precision="fp32", model="cascade64")
    (given,) = reconstruct(weights, radiographs=pair, output=tmp_path / "g.nii.gz", precision="fp32")
    first, *others = (np.asarray(nib.load(file).dataobj) for file in (path, named, given))
    assert first.std() > 0 and all(np.array_equal(first, other) for other in others)


def test_commands_take_the_shipped_network(command, weights: Path, patient: Path, tmp_path: Path) -> None:
    status, message = command("evaluate", patient, "--output", tmp_path / "evaluation", *FAST)
    assert status == 0, message
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["model"]["weights_sha256"] == digest_of(weights)
    status, message = command("export", "--output", tmp_path / "n.pt2")
    assert status == 0, message
    image = torch.rand(2, 2, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        made = torch.export.load(tmp_path / "n.pt2").module()(image)
        assert torch.allclose(made, load_network(weights)(image), atol=1e-5)
    status, message = command("inspect", "--export", tmp_path / "copy.safetensors")
    assert status == 0, message
    assert digest_of(tmp_path / "copy.safetensors") == digest_of(weights)


@pytest.mark.slow
def test_robustness_takes_the_shipped_network(command, weights: Path, patient: Path, tmp_path: Path) -> None:
    status, message = command("robustness", patient, "--model", "cascade64", "--output", tmp_path)
    assert status == 0, message
    model = json.loads((tmp_path / "robustness.json").read_text())["model"]
    assert model["weights_sha256"] == digest_of(weights) and model["name"] == "cascade64"


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "{patient}", "--output", "{out}", *FAST),
        ("robustness", "{patient}", "--output", "{out}"),
        ("export", "--output", "{out}/n.ts"),
        ("inspect",),
        ("reconstruct", "--pa", "{pa}", "--lateral", "{lateral}", "--output", "{out}/ct.nii.gz"),
        ("demo", "--reconstruct-only", "--output", "{out}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_said_where_nothing_is_shipped(
    command, monkeypatch: pytest.MonkeyPatch, weights: Path, patient: Path, pair, tmp_path: Path, arguments
) -> None:
    names = {"patient": patient, "out": tmp_path / "out", "pa": pair[0], "lateral": pair[1]}
    given = [argument.format(**names) for argument in arguments]
    assert_one_sentence(command(*given, "--model", "cascade128"), "cascade128 is not shipped here (shipped: cascade64)")
    monkeypatch.setattr(shipped, "models_folder", lambda root=None: tmp_path)
    assert_one_sentence(command(*given), "no network is shipped with this installation; give a checkpoint")
    assert not list(tmp_path.rglob("*.*"))


def test_the_plan_compares_shipped_networks(command, weights: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    names = ("cascade64", "cascade128")
    assert command("plan", "--compare", *names, "--samples", 0, "--markdown", table)[0] == 0
    rows = [[cell.strip() for cell in line.split("|")] for line in table.read_text().splitlines() if "³" in line]
    assert {row[1]: row[-3] for row in rows} == {"cascade64": "20.000", "cascade128": "–"}


def checked_bundles() -> list[Any]:
    """The made one, and the installed one if it ships networks."""
    installed = shipped.shipped_networks(INSTALLED / "models")
    return [
        "made",
        pytest.param("installed", marks=[] if installed else pytest.mark.skip("no network is shipped here")),
    ]


def monai_exports(verb: str, root: Path, path: Path, *more: str) -> None:
    """MONAI's own export of the plain state dictionary.

    In a process of its own: scripting reads the sources, which the tests' shape checker rewrites.
    """
    job = [sys.executable, "-m", "monai.bundle", verb, "network_def", "--filepath", str(path), *more]
    job += ["--ckpt_file", str(root / "models" / "model.pt"), "--bundle_root", str(root), "--key_in_ckpt", ""]
    job += ["--meta_file", str(root / "configs" / "metadata.json")]
    job += ["--config_file", str(root / "configs" / "inference.yaml")]
    done = subprocess.run(job, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("which", checked_bundles())
def test_what_the_model_zoo_checks(which: str, bundle: Path, tmp_path: Path) -> None:
    """What ``ci/verify_bundle.py`` of MONAI's model zoo asks of a bundle, with our copy of the schema."""
    root = bundle if which == "made" else INSTALLED
    configs = root / "configs"
    # its folder: the metadata, weights, a licence, no file that is too large
    assert (configs / "metadata.json").is_file() and (root / "LICENSE").is_file()
    assert (root / "models" / "model.pt").is_file()
    assert all(path.stat().st_size <= LARGEST_BYTES for path in root.rglob("*") if path.is_file())
    metadata = json.loads((configs / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    # its metadata, with a schema that is there already, as nothing is downloaded in tests
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    verify_metadata(meta_file=str(configs / "metadata.json"), filepath=tmp_path / "schema.json")
    # input and output of the network that the configuration gives
    common = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.yaml")}
    verify_net_in_out(net_id="network_def", bundle_root=str(root), device="cpu", **common)
    # the plain state dictionary goes into it, and out as TorchScript
    exported = tmp_path / "model.ts"
    plain = root / "models" / "model.pt"
    monai_exports("ckpt_export", root, exported)
    script, *_ = load_net_with_metadata(str(exported))
    default = load_network(next(iter(shipped.shipped_networks(root / "models").values())))
    found, trained = script.state_dict(), torch.load(plain, weights_only=True)
    assert all(torch.equal(value, found[name]) for name, value in trained.items())
    views, (rows, columns) = len(default.config.geometry.views), default.config.geometry.detector_size
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["num_channels"] == views
    assert formats["inputs"]["image"]["spatial_shape"] == [rows, columns]
    image = torch.rand(1, views, rows, columns)
    with torch.inference_mode():
        expected = default(image)
        assert torch.allclose(script(image), expected, atol=1e-5)
    assert list(expected.shape[1:]) == [
        formats["outputs"]["pred"]["num_channels"], *formats["outputs"]["pred"]["spatial_shape"],
    ]  # fmt: skip


@pytest.mark.slow
def test_monai_exports_the_shipped_network_to_onnx(bundle: Path, tmp_path: Path) -> None:
    monai_exports(
        "onnx_export", bundle, tmp_path / "model.onnx", "--use_trace", "True", "--input_shape", "[1,2,128,128]"
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    image = torch.rand(1, 2, 128, 128)
    (made,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        expected = load_network(bundle / "models" / "cascade64.safetensors")(image)
    assert np.allclose(made, expected, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_elsewhere_runs_with_its_own_weights(bundle: Path, pair: list[Path], tmp_path: Path) -> None:
    job = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.yaml", "--model", "cascade64"]
    job += ["--radiographs", str(list(map(str, pair))), "--output", str(tmp_path / "ct.nii.gz"), "--precision", "fp32"]
    done = subprocess.run([sys.executable, *job], capture_output=True, text=True, timeout=300, cwd=bundle)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ct.json").read_text())["checkpoint"] == "models/cascade64.safetensors"
    job[job.index("cascade64")] = "cascade256"
    done = subprocess.run([sys.executable, *job], capture_output=True, text=True, timeout=300, cwd=bundle)
    assert done.returncode != 0 and "cascade256 is not shipped here (shipped: cascade64)" in done.stderr


@pytest.mark.slow
def test_the_demonstration_compares_an_unseen_patient_with_the_true_ct(
    capsys, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "unseen"
    figures = reconstruct_unseen(output, weights, Console())
    made, truth = (nib.load(output / name) for name in ("ct.nii.gz", "true_ct.nii.gz"))
    assert np.allclose(made.affine, truth.affine) and made.shape == truth.shape == (64, 64, 64)
    first, second = (np.clip(np.asarray(image.dataobj, np.float64), -1024, 1476) for image in (made, truth))
    assert figures["psnr"] == pytest.approx(decibels(float(((first - second) ** 2).mean()), 2500), abs=0.02)
    assert (output / "overview.png").stat().st_size > 10000 and (output / "ct.html").stat().st_size > 10000
    assert f"{figures['psnr']:.2f}" in capsys.readouterr().out
    monkeypatch.setattr("drr2ct.pipeline.demo_unseen._reconstruct", None)  # is not called again
    assert reconstruct_unseen(output, weights, Console()) == figures


def test_a_description_that_was_changed_is_refused_by_commands(command, weights: Path, pair, tmp_path: Path) -> None:
    damaged = tmp_path / "cascade64.safetensors"
    damaged.write_bytes(weights.read_bytes().replace(b'"epoch', b'"epocs', 1).replace(b'\\"epoch', b'\\"epocs', 1))
    assert damaged.read_bytes() != weights.read_bytes()
    with pytest.raises(InputError, match="the checksum does not fit"):
        read_checkpoint(damaged)
    assert_one_sentence(command("inspect", damaged), "are damaged: the checksum does not fit; copy them again")
