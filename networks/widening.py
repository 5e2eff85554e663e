"""A narrower network's weights in a wider or deeper one, which then gives the same and goes on learning from there.

After Chen et al., *Net2Net: accelerating learning via knowledge transfer*, ICLR 2016. Channels are not doubled and
halved as there: new ones begin with weights of their own, and nothing that was there reads them yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from drr2ct.networks.cascade import ProgressiveCascade
from drr2ct.networks.config import CascadeConfig


class Reads(NamedTuple):
    """What one convolution reads.

    Args:
        name: of the convolution within the network.
        parts: channels of each of the parts that are concatenated to its input.
    """

    name: str
    parts: tuple[int, ...]


def can_widen(narrow: CascadeConfig, wide: CascadeConfig) -> bool:
    """Whether each stage of one network is in another, at least as wide and as deep.

    What normalises is excluded: more channels in a group change its mean. So are parts that no named network of such
    stages has (the transformer, skips, refinement, confidence), and the members of ensembles.
    """
    pairs = list(zip(narrow.stages, wide.stages, strict=False))
    same = ("lift", "encoder_channels", "encoder_norm_groups", "volume_channels", "fuse", "head_scale", "activation")
    none = ("fuse_norm_groups", "confidence", "transformer_layers", "refinement_blocks", "refinement", "skips")
    return (
        len(pairs) == len(narrow.stages)
        and narrow.members == wide.members == 1
        and narrow.lift == "backprojection"
        and narrow.fuse == "before"
        and len(narrow.stages) - narrow.output_stages == len(wide.stages) - wide.output_stages
        and all(getattr(narrow, name) == getattr(wide, name) for name in (*same, "block_activation"))
        and not any(getattr(config, name) for config in (narrow, wide) for name in none)
        and not any(stage.norm_groups or stage.halvings for pair in pairs for stage in pair)
        and all(
            (old.scale, old.layers, old.grow_kernel) == (new.scale, new.layers, new.grow_kernel)
            and all(
                getattr(old, name) <= getattr(new, name) for name in ("channels", "growth", "blocks", "lift_channels")
            )
            for old, new in pairs
        )
    )


def _convolutions(config: CascadeConfig) -> Iterator[Reads]:
    """Those of stages and heads, whose inputs' channels depend on the stages' widths."""
    views, width, first = len(config.geometry.views), config.volume_channels, len(config.stages) - config.output_stages
    for i, stage in enumerate(config.stages):
        at = f"stages.{i}"
        if stage.scale > 1:
            yield Reads(f"{at}.grow.{0 if stage.grow_kernel == 1 else 1}", (width,))
            width = stage.channels
        yield Reads(f"{at}.fusion.mix", (width, *[stage.lift_channels] * views))
        width = stage.channels
        for block in range(stage.blocks):
            for layer in range(stage.layers):
                yield Reads(f"{at}.blocks.{block}.layers.{layer}.0", (width, *[stage.growth] * layer))
            yield Reads(f"{at}.blocks.{block}.fuse", (width, *[stage.growth] * stage.layers))
        if i >= first:
            head = f"outputs.{i - first}"
            yield Reads(head if config.head_scale == 1 else f"{head}.conv_block", (width,))


def widened(network: ProgressiveCascade, narrow: CascadeConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A narrower network's weights in the shapes of a wider one.

    Args:
        network: the wider one, with the weights that new channels are to begin with; :func:`can_widen`.
        narrow: configuration of the narrower one.
        weights: the narrower one's.

    Returns:
        Of every tensor of ``weights`` that grows, the wider one, and zeros for what a further dense block adds. The
        network that loads them beside the tensors that do not grow gives what the narrower one gave.
    """
    own = network.state_dict()
    old_parts = {reads.name: reads.parts for reads in _convolutions(narrow)}
    result: dict[str, Tensor] = {}
    for name, parts in _convolutions(network.config):
        weight, bias = f"{name}.weight", f"{name}.bias"
        if weight in weights:
            result[weight] = _placed(own[weight], weights[weight], _positions(old_parts[name], parts))
            result[bias] = _first(own[bias], weights[bias])
        elif name.endswith(".fuse") and name.split(".")[1] in {str(i) for i in range(len(narrow.stages))}:
            result |= {weight: torch.zeros_like(own[weight]), bias: torch.zeros_like(own[bias])}
    for name, value in weights.items():
        # what an encoder gives a stage; on another grid it may read other levels, and fits no longer
        if ".output." in name and name in own and own[name].shape[1:] == value.shape[1:]:
            result[name] = _first(own[name], value)
    return result


def _positions(old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Where the channels of old parts lie within wider ones."""
    starts = [sum(new[:i]) for i in range(len(new))]
    return torch.cat([start + torch.arange(width) for start, width in zip(starts, old, strict=True)])


def _placed(own: Tensor, old: Tensor, inputs: Tensor) -> Tensor:
    """(out, in, …): old outputs read what they read, and nothing new; new ones read everything."""
    grown = own.clone()
    grown[: len(old)] = 0.0
    grown[: len(old), inputs.to(own.device)] = old.to(own)
    return grown


def _first(own: Tensor, old: Tensor) -> Tensor:
    grown = own.clone()
    grown[: len(old)] = old.to(own)
    return grown
