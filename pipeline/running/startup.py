"""A process of our own: what MONAI, ignite and PyTorch import for others waits, and memory comes in large pages.

``import monai`` imports all of MONAI and whatever of its optional dependencies is installed, and ignite the optimisers
of distributed training with their compiler passes: three quarters of the time until the first line of a command's own
work. :func:`start_lightly` is for a process that is ours, the command line; in a user's Python everything stays as it
is. Nothing is missing afterwards: a module that waits is imported at the first look into it.

Linux gives memory a page at a time, when it is first touched. In pages of 4 KiB that takes longer than what is computed
with a volume, see :func:`use_large_pages`.
"""

from __future__ import annotations

import gc
import importlib
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from types import ModuleType
from typing import Any

WAITING: dict[str, tuple[str, ...]] = {
    "bs4": ("BeautifulSoup",),  # MONAI's downloads
    "jinja2": ("Environment", "FunctionLoader", "StrictUndefined"),  # ours: pages and pictures are not always wanted
    "jsonschema": ("validate",),  # MONAI's check of a bundle's metadata
    "jsonschema.exceptions": ("ValidationError",),
    "matplotlib": (),
    "matplotlib.axes": ("Axes",),
    "matplotlib.figure": ("Figure",),
    "matplotlib.image": ("AxesImage",),
    "matplotlib.pyplot": (),  # MONAI's plots of an engine's progress
    "monai.data.ultrasound_confidence_map": ("UltrasoundConfidenceMap",),
    "requests": ("get",),
    "scipy.ndimage": ("shift", "binary_erosion", "distance_transform_edt", "distance_transform_cdt"),
    "scipy.signal": ("iirnotch",),  # MONAI's transforms of electrocardiograms
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.sparse": ("csr_matrix",),
    "scipy.sparse.csgraph": ("dijkstra",),
    "scipy.spatial": ("KDTree",),
    "scipy.spatial.transform": ("Rotation",),
    "scipy.stats": ("bootstrap", "rankdata"),
    "skimage.exposure": (),  # MONAI's transforms of masks and histograms
    "skimage.measure": (),
    "skimage.morphology": (),
    "tensorboard.compat.proto.summary_pb2": ("Summary",),
    "tifffile": ("TiffFile",),  # MONAI's slides
    "torch.distributed.optim": ("ZeroRedundancyOptimizer",),  # ignite asks of what it saves whether it is one
    "torch.utils.tensorboard": ("SummaryWriter",),
}
"""Modules that wait, and the names that are imported from them by those who do not use them at once."""


def start_lightly() -> None:
    """Let the modules of :data:`WAITING` wait, MONAI import only what it is asked for, and tensors lie in large pages.

    Does nothing in a process that has imported PyTorch already: it is somebody's own.
    """
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Finder())
        use_large_pages()


def use_large_pages() -> None:
    """Let PyTorch ask Linux for pages of 2 MiB for its tensors on a CPU; to be called before the first of them is made.

    NumPy does so by itself. What the environment says already, or another system's memory, is left as it is.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextmanager
def importing() -> Iterator[None]:
    """Import many modules: without looking for garbage, of which there is none; what is there stays for good."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


class _Finder:
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in WAITING and name != "monai":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Sparing(spec.loader) if name == "monai" else _Waiting(spec.loader)
        return spec


class _Sparing(Loader):
    """Runs ``monai/__init__.py`` without the walk through all of its modules, which are found when they are used."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        walk = pkgutil.walk_packages
        pkgutil.walk_packages = lambda *_, **__: iter(())
        try:
            self.loader.exec_module(module)
        finally:
            pkgutil.walk_packages = walk
        sys.modules["monai.utils.module"].walk_packages = walk  # type: ignore[attr-defined]

        def part(name: str) -> Any:
            if not name.startswith("_") and importlib.util.find_spec(f"monai.{name}") is not None:
                return importlib.import_module(f"monai.{name}")
            raise AttributeError(f"module 'monai' has no attribute {name!r}")

        module.__getattr__ = part  # type: ignore[method-assign]
        importlib.import_module("monai.apps")  # MONAI's own first: begun elsewhere, its imports run in circles


class _Waiting(Loader):
    """Makes a module that is empty until somebody looks into it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _WaitingModule


class _WaitingModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's own questions
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        spec = self.__spec__
        with _LOCK:
            waits = spec is not None and isinstance(spec.loader, _Waiting)
            if waits and name in WAITING[self.__name__]:
                return _StandIn(self, name)
            if waits:
                _import(self)
                return getattr(self, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")  # in a circle of imports


_LOCK = threading.RLock()


def _import(module: ModuleType) -> None:
    """Run a module that waits."""
    spec = module.__spec__
    assert spec is not None and isinstance(spec.loader, _Waiting)
    module.__loader__ = spec.loader = spec.loader.loader
    spec.loader.exec_module(module)
    module.__class__ = ModuleType


class _StandIn:
    """A class or function of a module that waits: called, subclassed and compared like itself, then imported."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module = module
        self._name = name

    def _itself(self) -> Any:
        with _LOCK:
            if self._name not in vars(self._module) and isinstance(self._module, _WaitingModule):
                _import(self._module)
        return getattr(self._module, self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._itself()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._itself(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._itself(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._itself())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._itself())
