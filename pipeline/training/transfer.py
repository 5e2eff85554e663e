"""Start a network from another one's checkpoint: fine-tuning, and growing to a finer grid, wider or deeper."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from drr2ct.networks.cascade import ProgressiveCascade
from drr2ct.networks.config import CascadeConfig
from drr2ct.networks.interval import interval_heads
from drr2ct.networks.widening import can_widen, widened
from drr2ct.pipeline.checkpoints.description import members_of
from drr2ct.pipeline.checkpoints.files import as_paths, read_checkpoint
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)

_SHOWN = 12


@dataclass(frozen=True)
class Transfer:
    """What a transfer of weights took, and what it did not.

    Args:
        taken: names of the network's tensors that the source had with the same shape.
        widened: names of those that the source had narrower, and that were filled up (``networks.widening``).
        reshaped: (name, the network's shape, the source's shape) where the shapes differ.
        missing: (name, shape) that the source does not have.
        unused: names that only the source has.
        weights: number of values taken.
        of_weights: number of values of the network.
    """

    taken: tuple[str, ...]
    widened: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[tuple[str, tuple[int, ...]], ...]
    unused: tuple[str, ...]
    weights: int
    of_weights: int

    def summary(self) -> list[str]:
        """Lines for the terminal; long lists are cut."""
        tensors = len(self.taken) + len(self.widened) + len(self.reshaped) + len(self.missing)
        share = 100 * self.weights / self.of_weights
        weights = f"{self.weights:,} of {self.of_weights:,} weights ({share:.1f} %)"
        lines = [f"took {len(self.taken)} of {tensors} tensors, {weights}"]
        lines += _cut("widened", list(self.widened))
        lines += _cut("other shape", [f"{name} {_shape(new)}, was {_shape(old)}" for name, new, old in self.reshaped])
        lines += _cut("not there", [f"{name} {_shape(new)}" for name, new in self.missing])
        return lines + _cut("left over", list(self.unused))


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _cut(what: str, entries: Sequence[str]) -> list[str]:
    lines = [f"  {what}: {entry}" for entry in entries[:_SHOWN]]
    return [*lines, f"  {what}: {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else lines


def transfer_matching(
    network: nn.Module, source: Mapping[str, Tensor], wider: Mapping[str, Tensor] | None = None
) -> Transfer:
    """Copy into ``network`` every tensor of ``source`` that has the same name and shape; leave the rest as it is.

    Args:
        network: to be changed.
        source: another network's tensors.
        wider: what to take where shapes differ, or ``source`` has nothing (``networks.widening``).
    """
    own, wider = network.state_dict(), wider or {}
    taken = tuple(name for name, value in own.items() if name in source and source[name].shape == value.shape)
    other = [name for name in own if name in source and name not in taken]
    grown = tuple(name for name in other if name in wider)
    network.load_state_dict({**wider, **{name: source[name] for name in taken}}, strict=False)
    return Transfer(
        taken=taken,
        widened=grown,
        reshaped=tuple(
            (name, tuple(own[name].shape), tuple(source[name].shape)) for name in other if name not in wider
        ),
        missing=tuple((name, tuple(value.shape)) for name, value in own.items() if name not in source),
        unused=tuple(name for name in source if name not in own),
        weights=sum(source[name].numel() for name in (*taken, *grown)),
        of_weights=sum(value.numel() for value in own.values()),
    )


def transfer_weights(
    network: nn.Module, paths: str | Path | Sequence[str | Path] | None, ckpt_dir: str | Path | None = None
) -> list[Transfer]:
    """Initialise the matching layers of a network from checkpoints of others, and print what was taken.

    Of a network that is the same but for its stages' widths and depths, all layers: the wider one begins with what the
    narrower gives.

    Args:
        network: of this project, on any grid.
        paths: of the checkpoint, or of several, of which later ones win where they share layers; None to do nothing.
        ckpt_dir: if it holds a ``last.pt``, the training goes on from that, and nothing is done either.

    Returns:
        What was taken of each.

    Raises:
        InputError: as ``read_checkpoint``, or if nothing of one matches.
    """
    if ckpt_dir is not None and (Path(ckpt_dir) / "last.pt").exists():
        return []
    return [_transfer_from(network, path) for path in as_paths(paths)]


def _transfer_from(network: nn.Module, path: Path) -> Transfer:
    content = read_checkpoint(path)
    transfer = transfer_matching(network, content["network"], _wider(network, content))
    for head in interval_heads(network):  # what was calibrated is about to change
        head.reset_calibration()
    if not transfer.taken:
        raise InputError(
            f"checkpoint {path} ({content['description'].get('name')}) has no layer in common with this network; "
            "transfer from one of the same family, or leave transfer_from null."
        )
    if is_main_process():
        print("\n".join([f"weights from {path}:", *transfer.summary()]))
        if any(name.startswith("members.") for name in transfer.unused):
            logger.warning(
                "%s is an ensemble, of which this network takes the first member alone; "
                "network_def#members=%d takes all",
                *(path, members_of(content["description"])),
            )
    return transfer


def _wider(network: nn.Module, content: Mapping[str, Any]) -> dict[str, Tensor]:
    if not isinstance(network, ProgressiveCascade):
        return {}
    narrow = CascadeConfig.from_dict(content["description"]["config"])
    return widened(network, narrow, content["network"]) if can_widen(narrow, network.config) else {}
