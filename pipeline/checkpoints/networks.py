"""From a checkpoint to a network with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from drr2ct.networks import CascadeConfig, ProgressiveCascade, create_network
from drr2ct.pipeline.checkpoints.files import NO_WEIGHTS, read_checkpoint
from drr2ct.transforms.validation import InputError


def network_of(content: Mapping[str, Any] | None, name: str, **overrides: Any) -> ProgressiveCascade:
    """The network that a checkpoint's weights are for, still with random weights (see :func:`load_weights`).

    Args:
        content: of the checkpoint. Without one, the network of that name is built, so that a bundle without weights
            can be inspected.
        name: one of ``list_networks``.
        **overrides: of its configuration.
    """
    if content is None:
        return create_network(name, **overrides)
    return ProgressiveCascade(CascadeConfig.from_dict(content["description"]["config"]))


def load_network(
    path: str | Path, device: torch.device | str = "cpu", content: Mapping[str, Any] | None = None
) -> ProgressiveCascade:
    """The network of a checkpoint with its weights, in evaluation mode.

    Args:
        path: of the checkpoint.
        device: where the network is to be.
        content: of the checkpoint, if it was read already.

    Raises:
        InputError: as :func:`read_checkpoint`, or if the weights do not fit the configuration beside them.
    """
    content = read_checkpoint(path, device) if content is None else content
    network = ProgressiveCascade(CascadeConfig.from_dict(content["description"]["config"])).to(device)
    load_weights(network, path, content)
    return network.eval()


def load_weights(network: torch.nn.Module, path: str | Path | None, content: Mapping[str, Any] | None = None) -> None:
    """Put a checkpoint's weights into a network of the same configuration.

    Args:
        network: of the configuration that the checkpoint describes.
        path: of the checkpoint; None if none was given and none is shipped.
        content: of the checkpoint, if it was read already.

    Raises:
        InputError: as :func:`read_checkpoint`, without a path, or if the checkpoint is of another network.
    """
    if path is None:
        raise InputError(NO_WEIGHTS)
    content = read_checkpoint(path) if content is None else content
    try:
        network.load_state_dict(content["network"])
    except RuntimeError as error:
        name = content["description"].get("name")
        raise InputError(
            f"checkpoint {path} is of another network ({name}); use the network and overrides it was trained with."
        ) from error
