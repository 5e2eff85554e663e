"""Named networks."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from drr2ct.networks.cascade import ProgressiveCascade
from drr2ct.networks.config import CascadeConfig, SkipConfig, StageConfig
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError


def _geometry(size: int, detector_size: int) -> BiplanarGeometry:
    return BiplanarGeometry.from_angles(VolumeGrid(size), detector_size=detector_size)


def _direct256(draft: bool) -> CascadeConfig:
    return CascadeConfig(
        geometry=_geometry(256, 512),
        lift="broadcast",
        fuse="after",
        encoder_channels=(64, 128, 256, 512 if draft else 128),
        encoder_norm_groups=(8, 16, 32, 32 if draft else 16),
        volume_channels=16,
        stages=(
            StageConfig(32, norm_groups=8, growth=16, layers=4),
            StageConfig(64, norm_groups=8, growth=24, layers=4),
            StageConfig(128, norm_groups=16, blocks=2, growth=16, layers=3),
            StageConfig(128, norm_groups=16, blocks=2 if draft else 0, growth=8, layers=3),
        ),
        skips=(SkipConfig(0, 64), SkipConfig(1, 64), SkipConfig(2, 64)),
        skip_fusion_channels=128,
        skip_fusion_norm_groups=16,
        refinement_blocks=1 if draft else 0,
        refinement_growth=8,
        refinement_layers=3,
        refinement=((96, 16), (64, 8), (32, 8)) if draft else ((64, 8), (32, 8)),
        activation="relu",
        block_activation="gelu",
    )


def _direct128() -> CascadeConfig:
    return CascadeConfig(
        geometry=_geometry(128, 512),
        lift="broadcast",
        fuse="after",
        fuse_norm_groups=32,
        depth_weight=0.3,
        encoder_channels=(64, 128, 256, 512),
        encoder_norm_groups=(16, 32, 64, 64),
        volume_channels=1,
        stages=(
            StageConfig(64, norm_groups=16, growth=24, layers=4),
            StageConfig(128, norm_groups=32, growth=32, layers=4),
            StageConfig(320, norm_groups=64, blocks=5, growth=32, layers=4),
        ),
        skips=(SkipConfig(0, 64, kernel=3, norm_groups=16), SkipConfig(1, 128, kernel=3, norm_groups=32)),
        skip_fusion_channels=320,
        skip_fusion_norm_groups=64,
        refinement_blocks=2,
        refinement_growth=32,
        refinement_layers=4,
        refinement=((192, 48), (96, 24), (48, 12)),
        activation="gelu",
        block_activation="gelu",
    )


def _ours(size: int, detector_size: int, stages: tuple[StageConfig, ...]) -> CascadeConfig:
    return CascadeConfig(
        geometry=_geometry(size, detector_size),
        lift="backprojection",
        fuse="before",
        encoder_channels=(8, 16, 24, 32),
        volume_channels=32,
        stages=stages,
        output_stages=len(stages) - len(_COARSE) + 1,
        head_scale=2,
    )


# Wide where voxels are few, narrow where the time goes, and each contained in the next: a finer network adds detail to
# what the coarser one gives. Shallow enough to train without normalisation, which takes away how much a patient
# attenuates.
_COARSE = (
    StageConfig(32, scale=1, norm_groups=0, growth=16, layers=3, blocks=2, lift_channels=16),
    StageConfig(16, norm_groups=0, growth=8, layers=2, lift_channels=8),
)
# Sees what the coarser ones agree on, and corrects it: this is where the volume's own radiographs are looked at.
_MIDDLE = StageConfig(24, norm_groups=4, grow_kernel=1, blocks=0, lift_channels=8, halvings=2)
_FINE = StageConfig(8, norm_groups=0, grow_kernel=1, growth=8, layers=1, lift_channels=4)

_NETWORKS: dict[str, Callable[[], CascadeConfig]] = {
    "cascade64": lambda: _ours(64, 128, _COARSE),
    "cascade128": lambda: _ours(128, 256, (*_COARSE, _MIDDLE)),
    "cascade256": lambda: _ours(256, 512, (*_COARSE, _MIDDLE, _FINE)),
    "direct128": _direct128,
    "direct256": lambda: _direct256(draft=False),
    "direct256_draft": lambda: _direct256(draft=True),
}


def list_networks() -> list[str]:
    """Names that :func:`create_network` knows."""
    return sorted(_NETWORKS)


def network_config(name: str, **overrides: Any) -> CascadeConfig:
    """The configuration that :func:`create_network` builds; arguments and errors are the same."""
    if name not in _NETWORKS:
        near = difflib.get_close_matches(name, _NETWORKS, 1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"network {name!r} is unknown; {hint}the networks are {', '.join(list_networks())}.")
    config = _NETWORKS[name]()
    size, detector_size = overrides.pop("size", None), overrides.pop("detector_size", None)
    geometry = overrides.pop("geometry", config.geometry)
    if not isinstance(geometry, BiplanarGeometry):
        geometry = BiplanarGeometry.from_dict(geometry)
    if isinstance(detector_size, int):
        detector_size = (detector_size, detector_size)
    if detector_size is not None:
        detector_size = tuple(detector_size)
    return config.with_overrides({**overrides, "geometry": geometry.resized(size, detector_size)})


def create_network(name: str, **overrides: Any) -> ProgressiveCascade:
    """Build a named network, with random weights.

    The names' numbers are the default grid's size. On another grid the number of stages stays, and every volume, from
    the learned one on, scales with the grid: ``create_network("direct256", size=64)`` goes 4³ → 8³ → 16³ → 32³ → 64³,
    with the layers of ``direct256``. So the grid must be a multiple of what the stages refine by: 4 for ``cascade64``,
    8 for ``cascade128`` and ``direct128``, 16 for the others.

    Args:
        name: one of :func:`list_networks`.
        **overrides: any field of :class:`CascadeConfig`, as its type or as plain values (what YAML holds). Besides:
            ``geometry``, a :class:`BiplanarGeometry` or its dictionary; ``size`` and ``detector_size``, which cut the
            same cube and detectors into other numbers of voxels and pixels.

    Raises:
        InputError: for an unknown name or field, or a geometry that the stages cannot reach.
    """
    return ProgressiveCascade(network_config(name, **overrides))
