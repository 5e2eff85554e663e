"""From a training to what is shipped: weights, what was measured of them, the model card and the bundle's metadata.

A bundle's ``models`` folder holds for each shipped network ``NAME.safetensors``, weights and description, and
``NAME.json``, what evaluations found. Card, ``model.pt`` and ``metadata.json`` are made of these alone, so they can be
written anew at any time; no figure in them is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from drr2ct.networks import network_config
from drr2ct.pipeline.checkpoints.description import training_runs
from drr2ct.pipeline.checkpoints.files import RELEASE_SUFFIX, as_paths, read_checkpoint, weights_sha256, write_weights
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.checkpoints.shipped import shipped_networks
from drr2ct.pipeline.data.identity import trained_on
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.reports.measured import (
    add_evaluation,
    add_left_out,
    add_robustness,
    left_out_checkpoint,
    read_measured,
)
from drr2ct.pipeline.reports.model_card import ShippedNetwork, Sources, card, data_line, read_sources
from drr2ct.pipeline.reports.runs import Run
from drr2ct.pipeline.running.console import duration_text
from drr2ct.transforms.files import refuse_unwritable, replacing, write_json
from drr2ct.transforms.validation import InputError, existing_file

LARGEST_BYTES = 25_000_000
"""Of a file: what MONAI's model zoo takes."""
_CHANNELS = ("HU: value * 4095 - 1024", "lower bound, likewise", "upper bound, likewise")
METADATA_FIGURES = ("psnr", "ssim", "mae_hu")


def release(
    source: str | Path,
    name: str,
    bundle: str | Path,
    evaluations: Sequence[str | Path] = (),
    left_out: Sequence[str | Path] = (),
    robustness: str | Path | None = None,
    same_recipe: bool = False,
) -> list[Path]:
    """Ship a training's weights as one of a bundle's networks, with what was measured of them.

    What was measured of the very same weights before stays; of others under that name it goes.

    Args:
        source: folder of a training, whose ``best_psnr.pt`` is taken, or a file of weights; also a shipped one, to add
            what was measured of it.
        name: under which it is shipped, one of ``list_networks``; the training must have been of that network.
        bundle: root of the bundle, with ``configs`` and ``models``.
        evaluations: folders of ``drr2ct evaluate`` of these weights.
        left_out: such folders of networks that the same recipe made of other patients, to be judged on those left out.
        robustness: folder of ``drr2ct robustness`` of these weights.
        same_recipe: it is that of the weights shipped so far, so the evaluations of patients left out, which are of the
            recipe, stay.

    Returns:
        What was written.

    Raises:
        InputError: for weights of another network, of patients without attribution or of the demonstration's unseen
            patient, for a file that is too large, or measurements of other weights. Nothing is changed then.
    """
    models = _models_of(bundle)
    path = models / f"{name}{RELEASE_SUFFIX}"
    refuse_unwritable([path])
    checkpoint = _checkpoint_of(Path(source))
    content = read_checkpoint(checkpoint)
    description = content["description"]
    _check(checkpoint, description, name, read_sources(models))
    load_network(checkpoint, content=content)  # the weights fit what is said of them
    digest = weights_sha256(content["network"])
    measured = read_measured(models / f"{name}.json", digest, same_recipe)
    for folder in evaluations:
        add_evaluation(measured, folder, description)
    for folder in left_out:
        add_left_out(measured, folder, description, _time_of(left_out_checkpoint(folder)))
    if robustness is not None:
        add_robustness(measured, robustness)
    description = {**description, "released": name, "training": training_facts(checkpoint, description)}
    if not (path.is_file() and _same(read_checkpoint(path), digest, description)):  # a file's bytes are not repeatable
        with replacing(path) as temporary:
            write_weights(temporary, content["network"], description)
            if temporary.stat().st_size > LARGEST_BYTES:
                size = temporary.stat().st_size / 1e6
                raise InputError(f"the weights of {checkpoint} are {size:.1f} MB; a shipped file may have 25 MB.")
            if not _same(read_checkpoint(temporary), digest, description):
                raise InputError(f"what was written of {checkpoint} is not what was meant; the disk may be faulty.")
    write_json(measured.path, measured.to_dict())
    return [path, measured.path, *refresh(bundle)]


def refresh(bundle: str | Path) -> list[Path]:
    """Write what follows from the shipped weights and their records: ``model.pt``, ``metadata.json`` and the card.

    Args:
        bundle: root of the bundle.

    Returns:
        What was written.

    Raises:
        InputError: if nothing is shipped, or a file of it is damaged.
    """
    models = _models_of(bundle)
    networks = [_shipped(name, path) for name, path in shipped_networks(models).items()]
    if not networks:
        raise InputError(f"{models} holds no network; release one first.")
    sources = read_sources(models)
    default = networks[0]
    model_pt, metadata, readme = models / "model.pt", models.parent / "configs" / "metadata.json", models / "README.md"
    # as MONAI's own tools load it; through an open file, since torch writes a file's name into it
    with replacing(model_pt) as temporary, temporary.open("wb") as file:
        torch.save(read_checkpoint(default.path)["network"], file)
    content = json.loads(metadata.read_text(encoding="utf-8"))
    content.pop("eval_metrics", None)
    if means := default.measured.means(METADATA_FIGURES):
        content["eval_metrics"] = means
    content["data_source"] = data_line(sources, networks)
    formats = content["network_data_format"]
    formats["inputs"]["image"]["spatial_shape"] = list(default.geometry.detector_size)
    channels = _CHANNELS[: 3 if default.description["config"].get("interval") else 1]
    formats["outputs"]["pred"] |= {
        "num_channels": len(channels),
        "spatial_shape": [default.geometry.grid.size] * 3,
        "channel_def": {str(number): text for number, text in enumerate(channels)},
    }
    with replacing(metadata) as temporary:
        temporary.write_text(_json_text(content), encoding="utf-8")
    with replacing(readme) as temporary:
        temporary.write_text(card(networks, sources), encoding="utf-8")
    return [model_pt, metadata, readme]


def _json_text(content: Mapping[str, Any]) -> str:
    """JSON with lists of numbers in one line each, as people write them."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return re.sub(r"\[\s+([\s\d.,-]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def training_facts(checkpoint: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    """How weights were trained, from the records of their run: ``epochs.csv`` and ``config.yaml`` beside them.

    Args:
        checkpoint: in a run's ``checkpoints``; released weights say it themselves.
        description: that it holds.

    Returns:
        Plain types. ``seconds`` of the training up to the checkpoint's epoch, None without a record;
        ``began_with`` the same facts of the networks whose weights it began with, none if those were random; of an
        ensemble ``joined_with`` those of its further members.
    """
    if "training" in description:
        found: dict[str, Any] = description["training"]
        return found
    if "joined" in description:
        first, *others = (_network_before(Path(path)) for path in description["joined"])
        return {**first["training"], "joined_with": others}
    folder = checkpoint.resolve().parent.parent  # it may be a link
    run = Run(folder, folder / "evaluation", checkpoint, dict(description), folder.name)
    rows = [row for row in run.phase("training") if row["epoch"] <= description.get("epoch", 0)]
    config = run.config
    terms, workers = config.get("loss", {}).get("terms", {}), config.get("num_workers")  # an expression by default
    return {
        "seconds": sum(row["seconds"] for row in rows) if rows else None,
        "processor": description.get("processor"),
        "workers": workers if isinstance(workers, int) else None,
        "seed": config.get("seed"),
        "vary": config.get("vary", "off"),
        "films": config.get("render") is not None or config.get("augmentation") is not None,
        "frozen": config.get("freeze") or [],
        "batch_size": config.get("batch_size"),
        "learning_rate": config.get("learning_rate"),
        "loss": {term: weight[0] if isinstance(weight, list) else weight for term, weight in terms.items()},
        "began_with": [_network_before(path) for path in as_paths(config.get("transfer_from"))],
    }


def _time_of(checkpoint: Path | None) -> str | None:
    """How long weights were trained, with those that they grew from; None if they or their run are gone."""
    if checkpoint is None:
        return None
    facts = training_facts(checkpoint, read_checkpoint(checkpoint)["description"])
    seconds = training_runs({"training": facts}).values()
    total = sum(known for known in seconds if known is not None)
    if not total:
        return None
    return duration_text(total) + (", after weights whose time is not on record" if None in seconds else "")


def _network_before(checkpoint: Path) -> dict[str, Any]:
    if not checkpoint.is_file():
        return {"name": None, "training": {"seconds": None}}
    description = read_checkpoint(checkpoint)["description"]
    known = {key: description.get(key) for key in ("name", "epoch", "iteration")}
    return {**known, "training": training_facts(checkpoint, description)}


def _same(content: Mapping[str, Any], digest: str, description: Mapping[str, Any]) -> bool:
    plain = json.loads(json.dumps(description))
    return bool(weights_sha256(content["network"]) == digest and content["description"] == plain)


def _models_of(bundle: str | Path) -> Path:
    bundle = Path(bundle)
    if not (bundle / "configs" / "metadata.json").is_file():
        raise InputError(
            f"{bundle} is no bundle (it holds no configs/metadata.json); give bundles/biplanar_ct of a checkout."
        )
    return bundle / "models"


def _checkpoint_of(source: Path) -> Path:
    if not source.is_dir():
        return existing_file(source, "checkpoint")
    path = source / "checkpoints" / "best_psnr.pt"
    if not path.is_file():
        raise InputError(f"folder {source} holds no checkpoints/best_psnr.pt; give a run's folder, or a checkpoint.")
    return path


def _check(checkpoint: Path, description: Mapping[str, Any], name: str, sources: Sources) -> None:
    if description["name"] != name:
        raise InputError(f"checkpoint {checkpoint} is of {description['name']}; it cannot be shipped as {name}.")
    size, wanted = description["config"]["geometry"]["grid"]["size"], network_config(name).geometry.grid.size
    if size != wanted:
        raise InputError(f"checkpoint {checkpoint} gives {size}³ voxels; {name} is shipped with {wanted}³.")
    sample = sample_ct()
    if trained_on(description, [{"patient": sample.parent.name, "label": str(sample)}]):
        raise InputError(
            f"checkpoint {checkpoint} was trained on {sample.parent.name}, the demonstration's patient that no "
            "network may have seen; train without it."
        )
    patients = {p for part in ("training", "validation") for p in description["patients"].get(part, [])}
    if strangers := sorted(patients - set(sources.patients)):
        raise InputError(
            f"nothing is said of where {', '.join(strangers[:5])} come from, of {len(strangers)} patients in all; "
            f"add them to {sources.path}, with collection and licence."
        )


def _shipped(name: str, path: Path) -> ShippedNetwork:
    content = read_checkpoint(path)
    measured = read_measured(path.with_suffix(".json"), weights_sha256(content["network"]))
    parameters = sum(value.numel() for value in content["network"].values())
    return ShippedNetwork(name, path, content["description"], parameters, measured)
