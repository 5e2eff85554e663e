"""RTK's projector of float32 images, loaded without the rest of RTK.

RTK's wrappers are one library of 148 modules. Importing it initialises them all, and SWIG then compares the name of
each of their types with all those that it knows: seconds, where a radiograph takes a few tenths. Each module has an
initialiser of its own, so they are loaded one by one, as the projector's own imports ask for them.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import math
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

_LIBRARY = "itk._RTKPython"

_CACHED = 2**19
"""Bytes of a volume that a row of rays may cross, for the next row to find them in a core's own cache."""
_LEAST_STRIP = 16  # pixels


def image(
    array: Float[np.ndarray, "a b c"],
    spacing: Sequence[float] | Float[np.ndarray, " 3"],
    origin: Sequence[float] | Float[np.ndarray, " 3"],
    direction: Float[np.ndarray, "3 3"],
) -> Any:
    """An ITK image that shows a float32 array, whose last axis is the image's first.

    Args:
        array: contiguous.
        spacing: mm along the image's axes.
        origin: of the first voxel, mm.
        direction: unit vectors of the image's axes, in columns.
    """
    classes = load()
    made = classes.buffer.GetImageViewFromArray(array)
    made.SetSpacing([float(x) for x in spacing])
    made.SetOrigin([float(x) for x in origin])
    # given an array, SetDirection would load ITK's matrices of every kind
    made.SetDirection(classes.matrix(classes.vnl.GetVnlMatrixFromArray(np.ascontiguousarray(direction, dtype=float))))
    return made


def joseph_projection(
    volume: Any,
    detector: Any,
    source_to_isocentre_mm: float,
    source_to_detector_mm: float,
    angle_deg: float,
    threads: int,
) -> Float[np.ndarray, "rows columns"]:
    """Line integrals through a volume by Joseph's method.

    Args:
        volume: :func:`image` of what is integrated.
        detector: :func:`image` of the detector, of one slice, in RTK's axes.
        source_to_isocentre_mm: distance.
        source_to_detector_mm: distance.
        angle_deg: of the gantry.
        threads: that it may use.
    """
    classes = load()
    circle = classes.circle.New()
    angle = angle_deg if abs(angle_deg) > 1e-12 else 0.0  # a subnormal one crashes RTK
    circle.AddProjection(source_to_isocentre_mm, source_to_detector_mm, angle)
    caster = classes.joseph.New()
    caster.SetInput(0, detector)
    caster.SetInput(1, volume)
    caster.SetGeometry(circle)
    caster.SetNumberOfWorkUnits(threads)
    caster.Update()
    output = caster.GetOutput()
    # RTK's library and ITK's count modifications apart, so that looking at the output may ask for it once more; its
    # input is gone by then, since the filter works in place
    output.DisconnectPipeline()
    columns, rows, _ = output.GetBufferedRegion().GetSize()
    # GetArrayFromImage would load ITK's images of vectors, to ask whether this is one
    seen = np.frombuffer(classes.buffer._GetArrayViewFromImage(output), dtype=np.float32)
    return seen.reshape(int(rows), int(columns)).copy()


def strip_width(layer_bytes: float, length: int) -> int:
    """Pixels of a row of rays that are better rendered before the next row is, as a strip of the detector.

    A row crosses two layers of voxels, and the next one mostly the same.

    Args:
        layer_bytes: of the volume's voxels that lie in one layer, across the step from row to row.
        length: pixels in a row.
    """
    return max(_LEAST_STRIP, math.ceil(length / math.ceil(2 * layer_bytes / _CACHED)))


class _Classes(NamedTuple):
    joseph: Any
    circle: Any
    buffer: Any
    matrix: Any
    vnl: Any


@functools.cache
def load() -> _Classes:
    """What is used of ITK and RTK, imported at the first call, which is that of the first projection or earlier."""
    import itk  # one of three projectors that a process may need

    collects = gc.isenabled()
    gc.disable()  # thousands of classes, all to stay: looking for some to free is a fifth of the time
    try:
        _one_by_one(itk)
        # `from itk import RTK` would load every RTK class, 11 s of processor time
        joseph, circle, buffer, matrix = (
            importlib.import_module(f"itk.{name}Python")
            for name in (
                "rtkJosephForwardProjectionImageFilter",
                "rtkThreeDCircularProjectionGeometry",
                "itkPyBuffer",
                "itkMatrix",
            )
        )
    finally:
        if collects:
            gc.enable()
    return _Classes(
        joseph.rtkJosephForwardProjectionImageFilterIF3IF3,
        circle.rtkThreeDCircularProjectionGeometry,
        buffer.itkPyBufferIF3,
        matrix.itkMatrixD33,
        buffer.itkPyVnlD,
    )


class _ModulesOfLibrary:
    """Finds ``itk._<name>`` in RTK's library, if no other finder has found it in a file of its own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's initialiser in the library."""
        if not name.startswith("itk._"):
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, self.path)
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def _one_by_one(itk: ModuleType) -> None:
    """Let RTK's modules be found one by one, unless all of them are loaded already."""
    found = importlib.machinery.PathFinder.find_spec(_LIBRARY, itk.__path__)
    if _LIBRARY in sys.modules or found is None or found.origin is None:
        return
    # the modules import the library only so that it initialises them all
    sys.modules[_LIBRARY] = itk._RTKPython = ModuleType(_LIBRARY)  # type: ignore[attr-defined]
    sys.meta_path.append(_ModulesOfLibrary(found.origin))
