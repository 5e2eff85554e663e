"""What every page of ours is made of: a template with our style, and a viewer that carries its data and its script."""

from __future__ import annotations

import base64
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from markupsafe import Markup
from monai.data import MetaTensor

from drr2ct.pipeline.pictures.scales import DOUBT_COLOURS, DOUBT_RANGE
from drr2ct.pipeline.reports.parts import VIEWER_WINDOWS, read_asset, templates, viewer_module
from drr2ct.pipeline.volumes.files import in_file_order
from drr2ct.transforms.files import replacing
from drr2ct.transforms.nifti import compressed

VIEWER_STEP_HU = 10.0
"""The viewer holds 8 bits per voxel, from air on in steps of this."""
DOUBT_STEP_HU = 5.0
"""The same of a doubt, from 0 on; the largest it can show is above what differs in colour."""


def write_page(path: str | Path, template: str, **values: Any) -> Path:
    """Write a page from a template of ``assets``; values are escaped unless they are ``Markup``.

    Args:
        path: of the page.
        template: name of its file.
        **values: for the template, which also has ``css`` and ``version``.
    """
    page = (
        templates()
        .get_template(template)
        .render(css=Markup(read_asset("style.css")), version=importlib.metadata.version("drr2ct"), **values)
    )
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def viewer_values(pairs: Sequence[Mapping[str, Any]], grid_size: int) -> dict[str, Any]:
    """What a template's viewer needs: its data and script, windows, slider step, and NiiVue's ``niivue`` version.

    Args:
        pairs: of each patient, ``prediction`` and perhaps ``truth`` (:func:`encode_volume`) and ``doubt``
            (:func:`encode_doubt`), and ``fov_mm``.
        grid_size: voxels along each axis.

    Raises:
        InputError: see :func:`~drr2ct.pipeline.reports.parts.viewer_module`.
    """
    return {
        "data": Markup(json.dumps(pairs).replace("<", "\\u003c")),
        "script": Markup(viewer_module()),
        "windows": VIEWER_WINDOWS,
        "doubt": {"range": DOUBT_RANGE, "colours": DOUBT_COLOURS} if any("doubt" in pair for pair in pairs) else None,
        "step": 1 / grid_size,
        "niivue": importlib.metadata.version("ipyniivue"),
    }


def encode_volume(volume: MetaTensor) -> str:
    """A volume for the viewer: gzipped 8-bit NIfTI, base64.

    Args:
        volume: (1, N, N, N) in HU with an affine.
    """
    return _encoded(volume, -1000.0, VIEWER_STEP_HU, VIEWER_WINDOWS[0][1:])


def encode_doubt(doubt: MetaTensor) -> str:
    """The same of half of what lies between bounds, (1, N, N, N) in HU."""
    return _encoded(doubt, 0.0, DOUBT_STEP_HU, (0.0, DOUBT_RANGE))


def _encoded(volume: MetaTensor, low: float, step: float, window: tuple[float, float]) -> str:
    levels = in_file_order(volume.as_tensor(), lambda hu: ((hu - low) / step).round_().clamp_(0, 255).to(torch.uint8))
    image = nib.Nifti1Image(levels[..., 0], np.asarray(volume.affine, dtype=np.float64))
    image.header.set_slope_inter(step, low)
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = window
    return base64.b64encode(compressed(image.to_bytes())).decode()
