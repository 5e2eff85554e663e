"""Space, CT volumes, radiographs and DRR rendering, as functions and MONAI transforms."""

from drr2ct.transforms.drr import RenderDRR, RenderDRRd, project_volume, render_drr
from drr2ct.transforms.geometry import BiplanarGeometry, View, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.radiograph import LoadRadiographsd, read_radiograph, write_radiograph
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
