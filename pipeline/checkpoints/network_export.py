"""A checkpoint's network as one file for other runtimes, TorchScript, ``torch.export`` or ONNX, checked at once.

What the numbers mean travels inside the file, as JSON (see :func:`facts`): TorchScript and ``torch.export`` have it
as the extra file ``drr2ct.json``, ONNX as the metadata property ``drr2ct``. TorchScript also has what MONAI Deploy
reads from a bundle's network, ``metadata.json`` and ``inference.json``, which need no checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from drr2ct.networks import ProgressiveCascade
from drr2ct.pipeline.checkpoints.description import network_sentence
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.running.bundle import bundle_file
from drr2ct.pipeline.running.provenance import DISCLAIMER, versions
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.files import refuse_to_replace
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW

EXTRA_FILE = "drr2ct.json"
TOLERANCE = 1e-3
"""Largest difference from the network itself, in its output's unit (1 is the HU window)."""
_NEEDED = ("name", "config", "mode", "hu_window", "line_integral_scale", "radiographs", "reprojection")
"""Of a checkpoint's description, what reading radiographs and running the network take; no patients."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written, of which network (in a sentence), and the largest difference from it on one random input."""

    path: Path
    kind: str
    network: str
    difference: float


def facts(checkpoint: str | Path, description: Mapping[str, Any], network: ProgressiveCascade) -> dict[str, Any]:
    """What a user of the exported file must know, in plain types."""
    geometry = network.config.geometry
    rows, columns = geometry.detector_size
    channels = 3 if network.config.interval else 1
    return {
        "note": f"{DISCLAIMER}; two views cannot determine a volume, what they do not show is inferred",
        "name": description["name"],
        "input": {"name": "image", "shape": ["batch", len(geometry.views), rows, columns], "type": "float32"},
        "input_unit": f"line integrals divided by {LINE_INTEGRAL_SCALE:g}",
        "output": {"name": "pred", "shape": ["batch", channels, *[geometry.grid.size] * 3], "type": "float32"},
        **({"output_channels": ["estimate", "lower bound", "upper bound"]} if channels > 1 else {}),
        "output_unit": f"0 to 1 over {HU_WINDOW[0]:g} to {HU_WINDOW[1]:g} HU, not clipped",
        "affine": geometry.grid.affine().tolist(),
        "geometry": geometry.to_dict(),
        "checkpoint": str(checkpoint),
        "versions": versions(),
    }


def bundle_files(description: Mapping[str, Any], network: ProgressiveCascade) -> dict[str, str]:
    """The bundle's ``metadata.json`` and ``inference.json`` as they are for this network, without its checkpoint.

    MONAI Deploy takes ``preprocessing`` and ``inferer`` from them; radiographs are read as ``reconstruct`` reads them.
    """
    geometry = network.config.geometry
    metadata = ConfigParser.load_config_file(bundle_file("configs/metadata.json"))
    image = metadata["network_data_format"]["inputs"]["image"]
    image["num_channels"], image["spatial_shape"] = len(geometry.views), list(geometry.detector_size)
    metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"] = [geometry.grid.size] * 3
    config = ConfigParser.load_config_file(bundle_file("configs/inference.yaml"))
    config["content"] = {"description": {name: description[name] for name in _NEEDED if name in description}}
    config["description"] = "$@content['description']"
    return {"metadata.json": json.dumps(metadata), "inference.json": json.dumps(config, ensure_ascii=False)}


def export_network(checkpoint: str | Path, output: str | Path, overwrite: bool = False) -> Exported:
    """Write the network of a checkpoint, in float32 and with a free batch size.

    The file is read back and run on a random input; if the result is further than :data:`TOLERANCE` from the
    network's own, nothing stays.

    Args:
        checkpoint: of a training.
        output: ``.ts`` (TorchScript), ``.pt2`` (``torch.export``) or ``.onnx``.
        overwrite: replace a file that is there.

    Raises:
        InputError: for another ending, an unusable checkpoint, missing packages, a file that exists, or a result that
            differs.
    """
    output = Path(output)
    if output.suffix not in _FORMATS:
        raise InputError(f"network file {output} must end in {', '.join(_FORMATS)}.")
    refuse_to_replace(output, overwrite, [checkpoint])
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if output.suffix == ".onnx" and missing:
        raise InputError(f"ONNX export needs {', '.join(missing)}; pip install 'drr2ct[export]'.")
    content = read_checkpoint(checkpoint)
    network, description = load_network(checkpoint, content=content), content["description"]
    extra = {
        EXTRA_FILE: json.dumps(facts(checkpoint, description, network), ensure_ascii=False),
        **bundle_files(description, network),
    }
    kind, write, read = _FORMATS[output.suffix]
    views, (rows, columns) = len(network.config.geometry.views), network.config.geometry.detector_size
    image = torch.rand(1, views, rows, columns, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(image)
    output.parent.mkdir(parents=True, exist_ok=True)
    # under its own name: the archive has a folder of that name inside, where MONAI Deploy looks
    with TemporaryDirectory(dir=output.parent, prefix=".") as folder, warnings.catch_warnings():
        temporary = Path(folder) / output.name
        warnings.simplefilter("ignore")  # both exporters warn of their own future
        write(network, image, temporary, extra)
        with torch.inference_mode():
            difference = float((read(temporary, image) - expected).abs().max())
        if not difference <= TOLERANCE:
            raise InputError(
                f"the exported network differs from checkpoint {checkpoint} by {difference:.3g}, more than "
                f"{TOLERANCE:g}; it was not kept: export it in another format."
            )
        temporary.replace(output)
    return Exported(output, kind, network_sentence(description), difference)


def _example(image: Tensor) -> tuple[tuple[Tensor], tuple[dict[int, Any]]]:
    """Input to trace with, and which of its dimensions stay free: a batch of one would be taken for a constant."""
    return (image.expand(2, -1, -1, -1),), ({0: torch.export.Dim("batch", min=1, max=1024)},)


def _write_torchscript(network: ProgressiveCascade, image: Tensor, path: Path, extra: Mapping[str, str]) -> None:
    torch.jit.save(torch.jit.script(network), str(path), _extra_files=dict(extra))


def _read_torchscript(path: Path, image: Tensor) -> Tensor:
    return torch.jit.load(str(path))(image)


def _write_exported_program(network: ProgressiveCascade, image: Tensor, path: Path, extra: Mapping[str, str]) -> None:
    inputs, free = _example(image)
    program = torch.export.export(network, inputs, dynamic_shapes=free)
    torch.export.save(program, path, extra_files={EXTRA_FILE: extra[EXTRA_FILE]})


def _read_exported_program(path: Path, image: Tensor) -> Tensor:
    return torch.export.load(path).module()(image)


def _write_onnx(network: ProgressiveCascade, image: Tensor, path: Path, extra: Mapping[str, str]) -> None:
    for name in ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    inputs, free = _example(image)
    program = torch.onnx.export(
        network,
        inputs,
        dynamo=True,
        dynamic_shapes=free,
        verbose=False,
        input_names=["image"],
        output_names=["pred"],
    )
    assert program is not None
    program.model.metadata_props["drr2ct"] = extra[EXTRA_FILE]
    program.save(path)


def _read_onnx(path: Path, image: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(["pred"], {"image": image.numpy()})[0]))


_Writer = Callable[[ProgressiveCascade, Tensor, Path, Mapping[str, str]], None]
_Reader = Callable[[Path, Tensor], Tensor]
_FORMATS: dict[str, tuple[str, _Writer, _Reader]] = {
    ".ts": ("TorchScript", _write_torchscript, _read_torchscript),
    ".pt2": ("torch.export", _write_exported_program, _read_exported_program),
    ".onnx": ("ONNX", _write_onnx, _read_onnx),
}
