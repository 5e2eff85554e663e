"""Other projects' networks, imported from checkouts that the user has; and what their licence files say.

To be imported in a process of its own for each: several name their packages ``lib``, ``models`` or ``utils``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import yaml
from cascades import GEOMETRY
from peer_adapters import SIZE, PointNetwork, ShapeNetwork, VolumeGenerator
from peer_standins import (
    Mamba,
    OnCPU,
    PlaneBackprojector,
    knn_gather,
    knn_points,
    missing,
    module,
    namespace,
    package_without_init,
)
from torch import nn


def generator_of(size: int, kind: str, norms: tuple[str, str]) -> nn.Module:
    """From the factory that X2CT and PSCT-Net share, with the settings of their configurations."""
    from lib.model.nets import factory  # the checkout's

    orders = SimpleNamespace(CTOrder_Xray1=[0, 1, 3, 2, 4], CTOrder_Xray2=[0, 1, 4, 2, 3], dblu=[0.0, 1.0, 1.0])
    return factory.define_3DG(
        noise_len=1000,
        input_shape=[4, 4, 4],
        output_shape=[size] * 3,
        input_nc=512,
        output_nc=1,
        ngf=64,
        which_model_netG=kind,
        n_downsampling=4,
        norm=norms[1],
        n_blocks=1,
        encoder_input_shape=[size, size],
        encoder_input_nc=1,
        encoder_norm=norms[0],
        encoder_blocks=3,
        activation_type="relu",
        opt=orders,
    )


def load_x2ct() -> nn.Module:
    norms = ("instance", "instance3d")
    return VolumeGenerator(generator_of(SIZE, "multiview_network_denseUNetFuse_transposed", norms), SIZE, F.mse_loss)


class Backprojector(PlaneBackprojector):
    """PSCT-Net's, by its name and arguments, in our geometry and without CUDA."""

    def __init__(self, interp: str = "nearest", input_hw: int = 128, output_hw: int = 128) -> None:
        super().__init__(GEOMETRY, output_hw)


def load_psct() -> nn.Module:
    # its back-projection is a CUDA extension, for a geometry that is not ours
    module("lib.model.nets.generator.back_pro", Backprojector=Backprojector, Backprojector_single=None)
    if missing("mamba_ssm"):
        module("mamba_ssm", Mamba=Mamba)
    generator = generator_of(128, "multiview_network_x2ct_bp_gan", ("batch", "batch3d"))  # it is built for 128 alone
    return VolumeGenerator(generator, 128, F.l1_loss)


def load_shape(name: str, checkout: Path) -> nn.Module:
    # their __init__ imports what training and plotting need
    package_without_init("XrayTo3DShape", str(checkout / "XrayTo3DShape"))
    package_without_init("XrayTo3DShape.utils", str(checkout / "XrayTo3DShape" / "utils"))
    from XrayTo3DShape.architectures.get_model import get_model  # the checkout's

    return ShapeNetwork(get_model(name, SIZE), spread=name != "MultiScale2DPermuteConcat")


def load_dif_net() -> nn.Module:
    from models.model import DIF_Net  # the checkout's

    return PointNetwork(DIF_Net(num_views=2, combine="mlp"))


def load_dif_gaussian(checkout: Path) -> nn.Module:
    if missing("pytorch3d"):
        module("pytorch3d", __path__=[])
        module("pytorch3d.ops", __path__=[])
        module("pytorch3d.ops.knn", knn_points=knn_points, knn_gather=knn_gather)
    from models import gs_utils  # the checkout's
    from models.model import DIF_Gaussian

    gs_utils.torch = OnCPU()  # it makes its matrices on "cuda"
    settings = yaml.safe_load((checkout / "configs" / "default.yaml").read_text(encoding="utf-8"))["model"]
    return PointNetwork(DIF_Gaussian(namespace(settings)), gaussians=settings["gs"]["res"])


Parameters = Iterable[nn.Parameter]


def adam(parameters: Parameters, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, rate)


def gan_adam(parameters: Parameters, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, rate, betas=(0.5, 0.99))


def momentum(parameters: Parameters, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.98, weight_decay=1e-3)


def decayed(parameters: Parameters, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, rate, weight_decay=1e-4)


@dataclass(frozen=True)
class Peer:
    """One network of another project.

    Args:
        option: the argument that gives its checkout.
        repository: where the checkout is from.
        root: folder of the checkout that its imports begin at.
        source: folder below it whose modules make the network.
        about: what is trained, and what of it is not theirs.
        rate: its own learning rate.
        optimizer: parameters and rate → its own optimiser.
        load: the checkout → adapter; its ``root`` can be imported from.
        settings: files of the checkout that ``load`` reads besides.
    """

    option: str
    repository: str
    root: str
    source: str
    about: str
    rate: float
    optimizer: Callable[[Parameters, float], torch.optim.Optimizer]
    load: Callable[[Path], nn.Module]
    settings: tuple[str, ...] = ()


def _shape(name: str, about: str) -> Peer:
    repository = "github.com/naamiinepal/xrayto3D-benchmark"
    about = f"{about}; its segmentation losses replaced by this project's loss"
    return Peer("xrayto3d", repository, ".", "XrayTo3DShape", about, 2e-3, adam, partial(load_shape, name))


PEERS = {
    "x2ct": Peer(
        "x2ct",
        "github.com/kylekma/X2CT",
        "3DGAN",
        "lib/model/nets",
        "X2CT-GAN's generator at 64 instead of 128, without its discriminator",
        2e-4,
        gan_adam,
        lambda checkout: load_x2ct(),
    ),
    "xrayto3d-unet": _shape("UNet", "a 3-D U-Net over pictures that are spread along their rays"),
    "xrayto3d-attention": _shape("AttentionUnet", "the same with attention gates"),
    "xrayto3d-multiscale": _shape(
        "MultiScale2DPermuteConcat", "2-D encoders whose channels become depth, fused in 3-D"
    ),
    "psct": Peer(
        "psct",
        "github.com/DYDevelop/PSCT-Net",
        ".",
        "lib/model/nets",
        "PSCT-Net's generator at 128, averaged to 64, without its discriminator; its CUDA back-projection "
        "(and Mamba, where mamba_ssm is not installed) written anew for CPUs",
        2e-4,
        gan_adam,
        lambda checkout: load_psct(),
    ),
    "dif-net": Peer(
        "dif-net",
        "github.com/xmed-lab/DIF-Net",
        "code",
        "models",
        "DIF-Net, whose views are mixed by an MLP",
        1e-2,
        momentum,
        lambda checkout: load_dif_net(),
    ),
    "dif-gaussian": Peer(
        "dif-gaussian",
        "github.com/xmed-lab/DIF-Gaussian",
        "code",
        "models",
        "DIF-Gaussian; where pytorch3d is not installed its search for neighbours is written anew",
        1e-2,
        momentum,
        load_dif_gaussian,
        ("configs/default.yaml",),
    ),
}


class UnusableError(Exception):
    """A checkout that cannot be used, and why, in one sentence."""


@contextlib.contextmanager
def importing(root: Path) -> Iterator[None]:
    """A checkout's modules come first, and what they print on import is not shown."""
    sys.path.insert(0, str(root))
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def load(peer: Peer, checkout: Path) -> nn.Module:
    """Import a network from its checkout, with random weights.

    Raises:
        UnusableError: if there is none, or if it does not work with what is installed.
    """
    root = checkout / peer.root
    if not (root / peer.source).is_dir():
        raise UnusableError(
            f"{checkout} has no folder {Path(peer.root) / peer.source}; give a checkout of {peer.repository}"
        )
    try:
        with importing(root):
            return peer.load(checkout)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UnusableError(
            f"{checkout} cannot be used with what is installed ({type(error).__name__}: {reason})"
        ) from error


_LICENCES = {
    "MIT License": r"mit license",
    "Apache License 2.0": r"apache license,?( version)? 2\.0|apache license.{0,40}version 2",
    "GNU Affero GPL 3": r"gnu affero general public license.{0,40}(version 3|v3)",
    "GNU LGPL 3": r"gnu lesser general public license.{0,40}(version 3|v3)",
    "GNU GPL 3": r"gnu general public license.{0,40}(version 3|v3)",
    "GNU GPL 2": r"gnu general public license.{0,40}(version 2|v2)",
}


def _known_licence(text: str) -> str | None:
    head = " ".join(text.split())[:400].lower()
    return next((name for name, words in _LICENCES.items() if re.search(words, head)), None)


def licence(checkout: Path, sources: Path | None = None) -> str:
    """The name of a checkout's licence, from its licence file: a known name, or the file's first line.

    Args:
        checkout: its root.
        sources: folder of modules, whose heads may name another licence; both are told then.
    """
    names = ("license", "licence", "copying")
    files = sorted(p for p in checkout.iterdir() if p.is_file() and p.name.lower().startswith(names))
    named = "no licence file"
    if files:
        text = files[0].read_text(encoding="utf-8", errors="replace")
        first_line = next((line.strip()[:80] for line in text.splitlines() if line.strip()), "an empty licence file")
        named = _known_licence(text) or first_line
    heads = {_known_licence(path.read_text(encoding="utf-8", errors="replace")) for path in _modules(sources)}
    others = sorted(head for head in heads if head not in (None, named))
    return f"{named}; its sources say {', '.join(others)}" if others else named


def _modules(folder: Path | None) -> list[Path]:
    return [] if folder is None else sorted(folder.rglob("*.py"))


def digest(peer: Peer, checkout: Path) -> str:
    """Of the checkout's modules, of what they are set to, and of how they are trained here."""
    found = hashlib.sha256(repr((peer.about, peer.rate, peer.optimizer.__name__)).encode())
    for path in [*_modules(checkout / peer.root / peer.source), *(checkout / name for name in peer.settings)]:
        found.update(str(path.relative_to(checkout)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
