"""The bundle as MONAI and its tools see it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

import drr2ct.networks
from drr2ct.pipeline.checkpoints.shipped import shipped_networks
from drr2ct.pipeline.running.bundle import begin, bundle_file, command_line, merged_config
from drr2ct.transforms.validation import InputError

CONFIGS = bundle_file("configs/train.yaml").parent

# What meta_schema_20240725 and the model zoo ask for, written down here because tests run without a network.
SCHEMA = {
    "type": "object",
    "required": [
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
        "required_packages_version", "task", "description", "authors", "copyright", "network_data_format", "name",
    ],
    "properties": {
        "schema": {"type": "string", "pattern": "meta_schema_20240725.json$"},
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object", "additionalProperties": {"type": "string"}},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "additionalProperties": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": [
                        "type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
                        "channel_def",
                    ],
                    "properties": {
                        "num_channels": {"type": "integer"},
                        "spatial_shape": {"type": "array"},
                        "value_range": {"type": "array", "minItems": 2, "maxItems": 2},
                        "is_patch_data": {"type": "boolean"},
                    },
                },
            },
        },
    },
}  # fmt: skip


def test_metadata_is_valid_and_true() -> None:
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    jsonschema.validate(metadata, SCHEMA)
    assert metadata["version"] in metadata["changelog"]
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    # those of the network that is used where none is named
    geometry = drr2ct.networks.network_config(next(iter(shipped_networks()), "cascade256")).geometry
    assert image["num_channels"] == len(geometry.views) and tuple(image["spatial_shape"]) == geometry.detector_size
    assert pred["num_channels"] == len(pred["channel_def"]) and pred["spatial_shape"] == [geometry.grid.size] * 3
    assert (CONFIGS.parent / "LICENSE").exists() and (CONFIGS.parent / "docs" / "README.md").exists()
    pins = dict(
        re.findall(
            r"^([\w.-]+)==([^\s;]+)", (Path(__file__).parents[2] / "constraints.txt").read_text().lower(), re.MULTILINE
        )
    )
    for package, version in metadata["required_packages_version"].items():
        if package != "drr2ct":
            assert pins[package.lower()] == version, package
    assert pins["monai"] == metadata["monai_version"] and pins["torch"] == metadata["pytorch_version"]
    assert pins["numpy"] == metadata["numpy_version"]


@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("evaluate", "evaluation"), ("inference", "inference")])
def test_each_configuration_opens_alone_with_monais_properties(
    name: str, kind: str, dataset: Path, run: Path, tmp_path: Path
) -> None:
    needs = {
        "train": {"dataset_dir": str(dataset), "network_name": "cascade64", "size": 16, "detector_size": 32},
        "evaluate": {"dataset_dir": str(dataset), "checkpoint": str(run / "checkpoints" / "last.pt")},
        "inference": {"radiographs": ["pa.png", "lat.png"], "checkpoint": str(run / "checkpoints" / "last.pt")},
    }
    settings = {"output_dir": str(tmp_path), **needs[name]}
    workflow = ConfigWorkflow(str(CONFIGS / f"{name}.yaml"), workflow_type=kind, logging_file=False, **settings)
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, drr2ct.networks.ProgressiveCascade)


def test_inference_opens_without_weights_to_be_inspected() -> None:
    parser = ConfigParser(ConfigParser.load_config_files(str(CONFIGS / "inference.yaml")))
    parser["network_name"] = "cascade64"
    assert isinstance(parser.get_parsed_content("network_def"), drr2ct.networks.ProgressiveCascade)


@pytest.mark.slow
def test_monai_verifies_the_networks_input_and_output() -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.yaml"),
        device="cpu",
    )


def test_every_network_has_an_overlay_of_its_own_size() -> None:
    overlays = {path.stem: ConfigParser.load_config_file(str(path)) for path in (CONFIGS / "networks").glob("*.yaml")}
    assert sorted(overlays) == drr2ct.networks.list_networks()
    for name, overlay in overlays.items():
        geometry = drr2ct.networks.network_config(name).geometry
        assert overlay["network_name"] == name
        assert (overlay["size"], overlay["detector_size"]) == (geometry.grid.size, geometry.detector_size[0])


def test_misspelt_overrides_are_refused() -> None:
    train = [bundle_file("configs/train.yaml")]
    assert merged_config(train, {"train#trainer#max_epochs": 3})["train"]["trainer"]["max_epochs"] == 3
    with pytest.raises(InputError, match="--epohcs is no key of train"):
        merged_config(train, {"epohcs": 2})
    with pytest.raises(InputError, match="the bundle has no configs/nothing"):
        bundle_file("configs/nothing.yaml")


def test_the_command_line_is_read_as_monai_reads_it() -> None:
    arguments = [
        "run",
        "--config_file",
        "['a.yaml','b.yaml']",
        "--train#trainer#max_epochs",
        "10",
        "--seed=3",
        "--learning_rate=1e-3",
        "--max_gradient_norm",
        "2E+1",
        "--logging_file",
        "l",
    ]
    found = command_line(arguments)
    assert (found.config_files, found.overrides) == (
        ["a.yaml", "b.yaml"],
        {"train#trainer#max_epochs": 10, "seed": 3, "learning_rate": 0.001, "max_gradient_norm": 20.0},
    )


def test_an_arguments_file_and_tracking_are_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Path
) -> None:
    """As MONAI merges them: the file, then the command line; whatever is run stands in config.yaml."""
    arguments = tmp_path / "arguments.yaml"
    train = str(bundle_file("configs/train.yaml"))
    content = {"config_file": train, "seed": 5, "learning_rate": 2.0e-4, "train#trainer#max_epochs": 3}
    arguments.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"

    def start(*more: str, verb: str = "run") -> dict[str, Any]:
        words = [verb, "--args_file", str(arguments), "--seed", "7", "--output_dir", str(out), *more]
        monkeypatch.setattr("sys.argv", ["/somewhere/monai/bundle/__main__.py", *words])
        monkeypatch.setattr("sys.excepthook", sys.excepthook)
        begin(7, out)
        return yaml.safe_load((out / "config.yaml").read_text())

    kept = start()
    assert (kept["seed"], kept["learning_rate"], kept["train"]["trainer"]["max_epochs"]) == (7, 2.0e-4, 3)
    assert kept["output_dir"] == str(out)
    for verb in ("run", "run_workflow"):
        more = ["--workflow_name", "ConfigWorkflow"] if verb == "run_workflow" else ["--run_id", "run"]
        tracking = (
            "--tracking mlflow --tracking_uri file:///x --experiment_name e --run_name n --save_execute_config False"
        )
        kept = start(*more, *tracking.split(), verb=verb)
        assert (kept["tracking_uri"], kept["experiment_name"], kept["run_name"]) == ("file:///x", "e", "n")
        assert kept["save_execute_config"] is False and "workflow_name" not in kept and "tracking" not in kept
        # it is MONAI's to take them from there
        ConfigWorkflow(config_file=str(out / "config.yaml"), logging_file=False)
    with pytest.raises(InputError, match="--run_name is of experiment tracking, which is off"):
        start("--run_name", "n")
    arguments.write_text(yaml.safe_dump({**content, "epohcs": 2}))
    with pytest.raises(InputError, match="--epohcs is no key of train"):
        start()
    arguments.write_text("a: [1")
    with pytest.raises(InputError, match=r"arguments' file .* cannot be read"):
        start()
    arguments.unlink()
    with pytest.raises(InputError, match=r"arguments' file .* cannot be read"):
        start()


def test_arguments_are_those_of_monais_verbs() -> None:
    """Hyphens are Fire's way to write them."""
    given = command_line(["run", "--config-file", "a.yaml", "--meta-file=m", "--args_file", "", "--tracking", "mlflow"])
    assert (given.config_files, given.overrides, given.tracking) == (["a.yaml"], {}, "mlflow")


def test_inference_opens_without_its_checkpoint(tmp_path: Path) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.yaml"))
    parser["checkpoint"] = str(tmp_path / "none.pt")
    parser["network_name"] = "cascade64"
    assert parser.get_parsed_content("preprocessing").transforms
    assert parser.get_parsed_content("inferer") is not None
