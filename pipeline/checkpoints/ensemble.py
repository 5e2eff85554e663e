"""Several trainings' networks in one, whose first volumes are joined: where they err differently, errors cancel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drr2ct.networks import CascadeConfig, ProgressiveCascade
from drr2ct.networks.interval import interval_heads
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import RELEASE_SUFFIX, read_checkpoint, weights_sha256, write_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.transforms.files import refuse_to_replace
from drr2ct.transforms.validation import InputError


def join(first: str | Path, others: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> CascadeConfig:
    """Write a network with others as its members (``CascadeConfig.members``).

    Of each of the others, what gives its first volume is taken: of ``cascade128`` or ``cascade256`` the stages of the
    ``cascade64`` in it. Stages of ``first`` that are finer stay, and add to what all agree on. Its bounds stay as
    trained; a calibration was of another estimate and is dropped. The checkpoint holds weights and description, and a
    training may begin with it (``transfer_from``).

    Args:
        first: checkpoint of any network.
        others: checkpoints of networks with the same first stages.
        output: the checkpoint to write, ``.pt``.
        overwrite: replace a file that is there.

    Returns:
        What the network is built from.

    Raises:
        InputError: without others, for one with other first stages or another mode, or the same weights twice, or files
            that cannot be used.
    """
    output = Path(output)
    if output.suffix == RELEASE_SUFFIX or not output.suffix:
        raise InputError(f"an ensemble is written to a .pt file, not {output}; drr2ct release ships it as safetensors.")
    paths = [Path(path) for path in (first, *others)]
    if not others:
        raise InputError("an ensemble is of two networks or more; give a second checkpoint.")
    refuse_to_replace(output, overwrite, paths)
    network, before = _read(paths[0])
    alike = {weights_sha256(part): paths[0] for part in (_of_coarsest(network), *map(_of_coarsest, network.members))}
    further = []
    for path in paths[1:]:
        other, about_other = _read(path)
        if (mode := about_other["mode"]) != before["mode"]:
            raise InputError(
                f"checkpoint {path} was trained with mode={mode}, {paths[0]} with mode={before['mode']}: their volumes "
                "are of different scales; join networks of one mode."
            )
        if other.config.members > 1:
            raise InputError(f"checkpoint {path} is an ensemble itself; give the networks that it was joined of.")
        if _seen_alike(other.config.coarsest) != _seen_alike(network.config.coarsest):
            raise InputError(
                f"checkpoint {path} makes its first volume by other layers, or of another geometry, than {paths[0]}; "
                "an ensemble's networks differ in their weights alone, such as by --set seed=1."
            )
        if (twin := alike.setdefault(weights_sha256(_of_coarsest(other)), path)) != path:
            raise InputError(f"checkpoints {twin} and {path} hold the same first stages; an ensemble gains nothing so.")
        further.append(other)
    joined = with_members(network, further)
    for head in interval_heads(joined):
        head.reset_calibration()
    about = {key: value for key, value in before.items() if key not in ("interval", "training", "released")}
    about |= describe(joined, before["name"], before["mode"], {}, paths)
    seen = set(about["patients"]["training"])
    for part in before["patients"].keys() - {"training"}:
        about["patients"][part] = [patient for patient in before["patients"][part] if patient not in seen]
    about["joined"] = [str(path.resolve()) for path in paths]
    write_checkpoint(output, {"network": joined.state_dict(), "description": about})
    return joined.config


def with_members(network: ProgressiveCascade, others: Sequence[ProgressiveCascade]) -> ProgressiveCascade:
    """A network with what gives others' first volumes as further members; its bounds do not look at these yet.

    Args:
        network: of any number of members; it stays as it is.
        others: with its first stages, whatever theirs have learned.
    """
    weights, members = dict(network.state_dict()), network.config.members
    for number, other in enumerate(others, start=members - 1):
        weights |= {f"members.{number}.{name}": value for name, value in _of_coarsest(other).items()}
    joined = ProgressiveCascade(replace(network.config, members=members + len(others)))
    joined.load_state_dict(weights | _bounds_blind_to_spread(joined, weights))
    return joined


def _read(path: Path) -> tuple[ProgressiveCascade, dict[str, Any]]:
    """A checkpoint's network with its weights, and what it says of itself."""
    content = read_checkpoint(path)
    return load_network(path, content=content), content["description"]


def _of_coarsest(network: nn.Module) -> dict[str, Tensor]:
    """The weights that make a network's first volume, by the names that they have in a network of their own."""
    assert isinstance(network, ProgressiveCascade)  # a list of modules does not say so
    with torch.device("meta"):
        names = ProgressiveCascade(network.config.coarsest).state_dict().keys()
    return {name: value for name, value in network.state_dict().items() if name in names}


def _bounds_blind_to_spread(joined: ProgressiveCascade, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first convolution of bounds that have not seen how much members disagree: it does not look at that yet."""
    name = "interval.heads.0.0.weight"
    if name not in weights:
        return {}
    padded = torch.zeros_like(joined.state_dict()[name])
    padded[:, : weights[name].shape[1]] = weights[name]
    return {name: padded}


def _seen_alike(config: CascadeConfig) -> CascadeConfig:
    """A configuration as if it took radiographs as small as it halves them, and trained as all do."""
    rows, columns = (pixels >> config.halve_radiographs for pixels in config.geometry.detector_size)
    geometry = config.geometry.resized(detector_size=(rows, columns))
    views = tuple(replace(view, pixel_pitch_mm=round(view.pixel_pitch_mm, 6)) for view in geometry.views)
    geometry = replace(geometry, views=views)  # a pitch that was divided is not to the last digit one that was not
    return replace(config, geometry=geometry, halve_radiographs=0, checkpointing=False, channels_last=False)
