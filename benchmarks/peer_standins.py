"""What other projects' generators need and a CPU does not have: written anew from the published descriptions.

Put in the place of a compiled package only where that is not installed. None of it is those packages' code.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drr2ct.transforms.geometry import BiplanarGeometry


class Mamba(nn.Module):
    """Selective state space layer (Gu & Dao 2023, https://arxiv.org/abs/2312.00752, sections 3.2 to 3.4), step by step.

    Args:
        d_model: channels.
        d_state: states of each channel.
        d_conv: width of the causal convolution.
        expand: inner channels are so many times as many.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, self.rank, self.states = expand * d_model, -(-d_model // 16), d_state
        self.into = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.select = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
        self.step = nn.Linear(self.rank, inner)
        self.decay = nn.Parameter(torch.arange(1, d_state + 1).float().log().repeat(inner, 1))
        self.past = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, channels) → the same."""
        inner, gate = self.into(x).chunk(2, dim=-1)
        u = F.silu(self.conv(inner.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, write, read = self.select(u).split([self.rank, self.states, self.states], dim=-1)
        step = F.softplus(self.step(step))
        kept = torch.exp(-step[..., None] * self.decay.exp())
        written = (step * u)[..., None] * write[:, :, None]
        state = torch.zeros_like(kept[:, 0])
        outputs = []
        for t in range(x.shape[1]):
            state = kept[:, t] * state + written[:, t]
            outputs.append((state * read[:, t, None]).sum(-1))
        return self.out((torch.stack(outputs, dim=1) + self.past * u) * F.silu(gate))


def knn_points(points: Tensor, others: Tensor, K: int = 1, chunk: int = 8192) -> Any:  # noqa: N803, their name
    """The K nearest ``others`` (b, m, 3) to each of ``points`` (b, n, 3): squared distances and indices (b, n, K)."""
    found = [torch.cdist(part, others).topk(K, largest=False) for part in points.split(chunk, dim=1)]
    distances = torch.cat([f.values for f in found], dim=1)
    return distances**2, torch.cat([f.indices for f in found], dim=1), None


def knn_gather(values: Tensor, index: Tensor) -> Tensor:
    """(b, m, c) at ``index`` (b, n, K) → (b, n, K, c)."""
    return torch.stack([value[at] for value, at in zip(values, index, strict=True)])


class OnCPU:
    """PyTorch's module, whose ``zeros`` does not insist on a CUDA device."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(self, *size: Any, device: Any = None, **others: Any) -> Tensor:
        """On the CPU, whatever the device."""
        return torch.zeros(*size, **others)


def plane_axes(geometry: BiplanarGeometry, size: int, view: int) -> tuple[float, float, float, float]:
    """Where a view shows the ``size``³ grid's plane through the isocentre that faces it.

    Returns:
        Column of the first voxel of the plane's horizontal axis (x for PA, y for lateral) and columns per voxel, row of
        the first voxel of z and rows per voxel.
    """
    affine = geometry.grid.resized(size).affine()
    across = [affine[view, 3] + affine[view, view] * i for i in (0, size - 1)]
    along = [affine[2, 3] + affine[2, 2] * i for i in (0, size - 1)]
    points = torch.zeros(2, 3, dtype=torch.float64)
    points[:, view], points[:, 2] = torch.tensor(across), torch.tensor(along)
    (column, row), (last_column, last_row) = geometry.views[view].project(points.numpy())
    return column, (last_column - column) / (size - 1), row, (last_row - row) / (size - 1)


class PlaneBackprojector(nn.Module):
    """Both views' maps, laid out as ``peer_adapters.CentralPlane`` gives them, along their rays: the mean of the two.

    Args:
        geometry: grid and views.
        size: edge of the volume and of the maps.
    """

    places: Tensor

    def __init__(self, geometry: BiplanarGeometry, size: int) -> None:
        super().__init__()
        centres = geometry.grid.resized(size).centres().reshape(-1, 3).double().numpy()
        places = []
        for number, view in enumerate(geometry.views):
            column, columns, row, rows = plane_axes(geometry, size, number)
            pixels = torch.from_numpy(view.project(centres)).float()
            index = torch.stack([(pixels[:, 0] - column) / columns, (pixels[:, 1] - row) / rows], dim=-1)
            places.append(((index + 0.5) * (2 / size) - 1).reshape(size, size, size, 2))
        # (x, y, z) → (z, y, x): the order of these projects' volumes
        self.register_buffer("places", torch.stack(places).permute(0, 3, 2, 1, 4), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Twice (batch, channels, size, size) → (batch, channels, z, y, x)."""
        total = 0
        for maps, places in zip((first, second), self.places, strict=True):
            n = places.shape[0]
            flat = places.reshape(1, n, n * n, 2).expand(len(maps), -1, -1, -1)
            sampled = F.grid_sample(maps, flat, mode="bilinear", padding_mode="zeros", align_corners=False)
            total = total + sampled.reshape(*maps.shape[:2], n, n, n)
        return total / 2


def module(name: str, **names: Any) -> None:
    """Let ``import name`` find these names."""
    made = ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made


def missing(name: str) -> bool:
    """Whether a package is neither installed nor already stood in for."""
    return name not in sys.modules and importlib.util.find_spec(name) is None


def package_without_init(name: str, folder: str) -> None:
    """A package whose modules can be imported, but whose own ``__init__`` is not run."""
    module(name, __path__=[folder])


def namespace(values: Any) -> Any:
    """Nested mappings, read by attribute."""
    if isinstance(values, dict):
        return SimpleNamespace(**{key: namespace(value) for key, value in values.items()})
    return values
