"""Networks that come with the package: which are there, and which is used where no checkpoint is given."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from drr2ct.networks import list_networks, network_config
from drr2ct.pipeline.checkpoints.files import NO_WEIGHTS, RELEASE_SUFFIX
from drr2ct.transforms.validation import InputError


def models_folder(bundle_root: str | Path | None = None) -> Path:
    """Where shipped networks lie: in the bundle at ``bundle_root`` if that ships any, else in the installed one."""
    if bundle_root is not None:
        root = Path(bundle_root)
        if (root / "configs" / "metadata.json").is_file() and shipped_networks(root / "models"):
            return root / "models"
    return Path(str(files("drr2ct.bundles"))) / "biplanar_ct" / "models"


def shipped_networks(folder: str | Path | None = None) -> dict[str, Path]:
    """Name → weights of the networks in a folder (by default the installed bundle's ``models``), finest grid first."""
    folder = models_folder() if folder is None else Path(folder)
    paths = {name: folder / f"{name}{RELEASE_SUFFIX}" for name in list_networks()}
    there = {name: path for name, path in paths.items() if path.is_file()}
    return dict(sorted(there.items(), key=lambda entry: (-network_config(entry[0]).geometry.grid.size, entry[0])))


def weights_file(
    checkpoint: str | Path | None = None, model: str | None = None, bundle_root: str | Path | None = None
) -> Path | None:
    """The weights to use: those of a checkpoint, those of a shipped network, or those of the finest that is shipped.

    Args:
        checkpoint: of a training, or released weights.
        model: name of a shipped network.
        bundle_root: of the bundle that is run; see :func:`models_folder`.

    Returns:
        Their file; None if neither is given and nothing is shipped.

    Raises:
        InputError: if both are given, or the network is not shipped.
    """
    if checkpoint is not None and model is not None:
        raise InputError(
            f"checkpoint {checkpoint} and the shipped network {model} cannot both be used; give one of them."
        )
    if checkpoint is not None:
        return Path(checkpoint)
    found = shipped_networks(models_folder(bundle_root))
    if model is None:
        return next(iter(found.values()), None)
    if model not in found:
        raise InputError(
            f"network {model} is not shipped here (shipped: {', '.join(found) or 'none'}); choose one that is, or give "
            "a checkpoint."
        )
    return found[model]


def chosen_weights(checkpoint: str | Path | None = None, model: str | None = None) -> Path:
    """:func:`weights_file`, where there must be one.

    Raises:
        InputError: as :func:`weights_file`, or if neither is given and nothing is shipped.
    """
    path = weights_file(checkpoint, model)
    if path is None:
        raise InputError(NO_WEIGHTS)
    return path
