"""Exported networks, run without this project's code where the format allows it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from drr2ct.networks import create_network
from drr2ct.pipeline.checkpoints import network_export
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.checkpoints.network_export import EXTRA_FILE, TOLERANCE, export_network
from drr2ct.transforms import write_radiograph
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=24)
STAGES = [
    {"channels": 8, "scale": 1, "growth": 4, "layers": 2, "lift_channels": 4},
    {"channels": 8, "growth": 4, "layers": 2, "lift_channels": 4},
]


def make_checkpoint(path: Path, geometry: BiplanarGeometry = GEOMETRY) -> Path:
    torch.manual_seed(0)
    small = {"stages": STAGES, "encoder_channels": (4, 8), "encoder_norm_groups": (2,)}
    network = create_network("cascade64", geometry=geometry, **small)
    description = describe(network, "cascade64", "cube", {"training": [{"patient": "secret-patient"}]})
    return write_checkpoint(path, {"network": network.state_dict(), "description": description})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("export") / "c.pt")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 2, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(checkpoint: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network_export.load_network(checkpoint)(images)


def check_note(note: str) -> None:
    content = json.loads(note)
    assert BiplanarGeometry.from_dict(content["geometry"]) == GEOMETRY
    assert content["output"]["shape"] == ["batch", 1, 16, 16, 16]
    assert "not for clinical use" in content["note"]


def test_torchscript_by_the_command(checkpoint: Path, images, expected, tmp_path: Path) -> None:
    """In a process of its own: scripting reads the sources, which the tests' shape checker rewrites."""
    path = tmp_path / "n.ts"
    command = [Path(sys.executable).with_name("drr2ct"), "export", "--checkpoint", checkpoint]
    done = subprocess.run([*command, "--output", path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "TorchScript" in done.stdout and "n.ts" in done.stdout
    extra = {EXTRA_FILE: ""}
    network = torch.jit.load(str(path), _extra_files=extra)
    with torch.inference_mode():
        assert (network(images) - expected).abs().max() <= 1e-5
    check_note(extra[EXTRA_FILE])
    check_deployed(path, tmp_path, expected)


def check_deployed(path: Path, folder: Path, expected: torch.Tensor) -> None:
    """As MONAI Deploy's MonaiBundleInferenceOperator sets itself up from a network's file alone."""
    parser = ConfigParser()
    with zipfile.ZipFile(path) as archive:
        parser.read_meta(json.loads(archive.read(f"{path.stem}/extra/metadata.json")))
        archive.extract(f"{path.stem}/extra/inference.json", folder)
    parser.read_config([folder / path.stem / "extra" / "inference.json"])
    parser.parse()
    formats = parser["_meta_"]["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [24, 24]
    assert formats["outputs"]["pred"]["spatial_shape"] == [16, 16, 16]
    assert isinstance(parser.get_parsed_content("device"), torch.device)
    inferer, preprocessing = (parser.get_parsed_content(name) for name in ("inferer", "preprocessing"))
    assert parser.get("postprocessing") is None
    # radiographs in, a volume out, for this network's geometry and not the named one's
    views = [folder / "pa.png", folder / "lat.png"]
    for view in views:
        write_radiograph(view, torch.rand(24, 24) + 1)
    sample = preprocessing({"image": [str(view) for view in views], "patient": "p"})
    assert sample["image"].shape == (2, 24, 24)
    network = torch.jit.load(str(path)).eval()
    with torch.inference_mode():
        assert inferer(sample["image"][None], network).shape == expected[:1].shape
    assert "secret-patient" not in json.dumps(parser.get())


def test_torch_export(checkpoint: Path, images, expected, tmp_path: Path) -> None:
    made = export_network(checkpoint, tmp_path / "n.pt2")
    extra = {EXTRA_FILE: ""}
    program = torch.export.load(made.path, extra_files=extra)
    with torch.inference_mode():
        for batch in (1, 3):
            assert (program.module()(images[:batch]) - expected[:batch]).abs().max() <= 1e-5
    check_note(extra[EXTRA_FILE])


def test_onnx_in_onnxruntime(checkpoint: Path, images, expected, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    made = export_network(checkpoint, tmp_path / "n.onnx")
    assert made.difference <= TOLERANCE
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        found = torch.from_numpy(session.run(["pred"], {"image": images[:batch].numpy()})[0])
        assert (found - expected[:batch]).abs().max() <= TOLERANCE
    check_note(session.get_modelmeta().custom_metadata_map["drr2ct"])
    onnx.checker.check_model(str(made.path))
    assert [p.name for p in tmp_path.iterdir()] == ["n.onnx"], "the weights are inside"


def test_a_result_that_differs_is_not_kept(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    network = network_export.load_network(checkpoint)
    wrong = (
        "TorchScript",
        lambda network, image, path, extra: path.write_text(extra[EXTRA_FILE]),
        lambda path, image: network(image) + 2 * TOLERANCE,
    )
    monkeypatch.setitem(network_export._FORMATS, ".ts", wrong)
    with pytest.raises(InputError, match="differs"):
        export_network(checkpoint, tmp_path / "n.ts")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match=r"must end in \.ts, \.pt2, \.onnx"):
        export_network(checkpoint, tmp_path / "n.trt")
    with pytest.raises(InputError, match="does not exist"):
        export_network(tmp_path / "none.pt", tmp_path / "n.ts")
    monkeypatch.setattr(network_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime; pip install 'drr2ct\[export\]'"):
        export_network(checkpoint, tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())
    (tmp_path / "n.ts").touch()
    with pytest.raises(InputError, match="exists"):
        export_network(checkpoint, tmp_path / "n.ts")
