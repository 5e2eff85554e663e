"""Start a network from the matching layers of another one's checkpoint: fine-tuning, and growing to a finer grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from drr2ct.networks.interval import interval_heads
from drr2ct.pipeline.checkpoints.files import read_checkpoint
from drr2ct.pipeline.running.distributed import is_main_process
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)

_SHOWN = 12


@dataclass(frozen=True)
class Transfer:
    """What a transfer of weights took, and what it did not.

    Args:
        taken: names of the network's tensors that the source had with the same shape.
        reshaped: (name, the network's shape, the source's shape) where the shapes differ.
        missing: (name, shape) that the source does not have.
        unused: names that only the source has.
        weights: number of values taken.
        of_weights: number of values of the network.
    """

    taken: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    missing: tuple[tuple[str, tuple[int, ...]], ...]
    unused: tuple[str, ...]
    weights: int
    of_weights: int

    def summary(self) -> list[str]:
        """Lines for the terminal; long lists are cut."""
        tensors = len(self.taken) + len(self.reshaped) + len(self.missing)
        share = 100 * self.weights / self.of_weights
        weights = f"{self.weights:,} of {self.of_weights:,} weights ({share:.1f} %)"
        lines = [f"took {len(self.taken)} of {tensors} tensors, {weights}"]
        lines += _cut("other shape", [f"{name} {_shape(new)}, was {_shape(old)}" for name, new, old in self.reshaped])
        lines += _cut("not there", [f"{name} {_shape(new)}" for name, new in self.missing])
        return lines + _cut("left over", list(self.unused))


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _cut(what: str, entries: Sequence[str]) -> list[str]:
    lines = [f"  {what}: {entry}" for entry in entries[:_SHOWN]]
    return [*lines, f"  {what}: {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else lines


def transfer_matching(network: nn.Module, source: Mapping[str, Tensor]) -> Transfer:
    """Copy into ``network`` every tensor of ``source`` that has the same name and shape; leave the rest as it is."""
    own = network.state_dict()
    taken = tuple(name for name, value in own.items() if name in source and source[name].shape == value.shape)
    network.load_state_dict({name: source[name] for name in taken}, strict=False)
    differing = [name for name in own if name in source and source[name].shape != own[name].shape]
    return Transfer(
        taken=taken,
        reshaped=tuple((name, tuple(own[name].shape), tuple(source[name].shape)) for name in differing),
        missing=tuple((name, tuple(value.shape)) for name, value in own.items() if name not in source),
        unused=tuple(name for name in source if name not in own),
        weights=sum(own[name].numel() for name in taken),
        of_weights=sum(value.numel() for value in own.values()),
    )


def transfer_weights(
    network: nn.Module, path: str | Path | None, ckpt_dir: str | Path | None = None
) -> Transfer | None:
    """Initialise the matching layers of a network from a checkpoint of another, and print what was taken.

    Args:
        network: of this project, on any grid.
        path: of the checkpoint; None to do nothing.
        ckpt_dir: if it holds a ``last.pt``, the training goes on from that, and nothing is done either.

    Raises:
        InputError: as ``read_checkpoint``, or if nothing matches.
    """
    if path is None or (ckpt_dir is not None and (Path(ckpt_dir) / "last.pt").exists()):
        return None
    content = read_checkpoint(path)
    transfer = transfer_matching(network, content["network"])
    for head in interval_heads(network):  # what was calibrated is about to change
        head.reset_calibration()
    if not transfer.taken:
        raise InputError(
            f"checkpoint {path} ({content['description'].get('name')}) has no layer in common with this network; "
            "transfer from one of the same family, or leave transfer_from null."
        )
    if is_main_process():
        print("\n".join([f"weights from {path}:", *transfer.summary()]))
    return transfer
