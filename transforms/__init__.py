"""Space, CT volumes, radiographs and DRR rendering, as functions and MONAI transforms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drr2ct.transforms.drr import RenderDRR, RenderDRRd, project_volume, render_drr
    from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
    from drr2ct.transforms.preprocessing import files_to_samples
    from drr2ct.transforms.radiographs.loading import LoadRadiographsd
    from drr2ct.transforms.radiographs.scale import read_radiograph
    from drr2ct.transforms.radiographs.write import write_radiograph
    from drr2ct.transforms.validation import InputError
    from drr2ct.transforms.volume import LoadCT, LoadCTd, ResampleToGrid, ResampleToGridd, WindowHUd

__all__ = [
    "BiplanarGeometry",
    "InputError",
    "LoadCT",
    "LoadCTd",
    "LoadRadiographsd",
    "RenderDRR",
    "RenderDRRd",
    "ResampleToGrid",
    "ResampleToGridd",
    "View",
    "VolumeGrid",
    "WindowHUd",
    "files_to_samples",
    "project_volume",
    "read_radiograph",
    "render_drr",
    "write_radiograph",
]

_MODULES = (
    "validation",
    "geometry",
    "drr",
    "radiographs.loading",
    "radiographs.scale",
    "radiographs.write",
    "volume",
    "preprocessing",
)


def __getattr__(name: str) -> Any:
    """Names are imported when they are used: torch and MONAI take seconds, and a command line should not wait."""
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"drr2ct.transforms.{module}")
            if name in vars(found):
                return vars(found)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
