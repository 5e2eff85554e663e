"""The one chain from files to samples, shared by training, evaluation and inference; and that of varied samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.transforms import (
    Compose,
    EnsureTyped,
    Flipd,
    Orientationd,
    ScaleIntensityd,
    SelectItemsd,
)

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import RenderDRRd
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.varied.kept import KeepCTd, kept_spacing_mm
from drr2ct.transforms.varied.onto_grid import OntoGridd
from drr2ct.transforms.varied.scan import Anatomies, RandVaryd
from drr2ct.transforms.varied.variation import WIDE, Variation
from drr2ct.transforms.volume import LoadCTd, ResampleToGridd, WindowHUd


def files_to_samples(
    geometry: BiplanarGeometry,
    mode: str = "cube",
    intensity: str | Sequence[str] = "line_integral",
    feet_first: bool = False,
    with_ct: bool = True,
    keep_metadata: bool = True,
    **radiographs: Any,
) -> Compose:
    """Files to network input.

    Items hold ``label`` (path of a CT) and, where radiographs are stored, ``image`` (paths, one per view); without
    ``image`` the radiographs are rendered from the CT at its own resolution.

    Args:
        geometry: grid and views.
        mode: how the CT is put on the grid, ``cube`` or ``resize`` (see ``ResampleToGrid``).
        intensity: what stored radiographs hold (see ``read_radiograph``).
        feet_first: stored radiographs have the feet in row 0.
        with_ct: False for inference, where there is none.
        keep_metadata: give ``label`` as a ``MetaTensor``; the inverse needs it, training does not.
        **radiographs: further arguments of ``LoadRadiographsd``, such as ``fit``, ``pixel_spacing_mm``,
            ``crop_collimation``, ``statistics``, ``orientation``; ``check_order`` is on where there is no CT.

    Returns:
        Transform to samples of ``patient``, ``image`` (V, H, W), line integrals / :data:`LINE_INTEGRAL_SCALE`, and
        ``label`` (1, N, N, N) in [0, 1] over the HU window, whose inverse leads back to the CT's voxels in HU. For
        inference, ``covered`` (V, H, W), ``assumptions`` and ``warnings`` instead of ``label``: where the radiographs
        show something, what was decided about them and what makes them doubtful, one sentence a line.
    """
    # with a CT there is a better judge (drr2ct prepare --check): the cue alone was wrong on 1 of 336 deformed CTs
    radiographs.setdefault("check_order", not with_ct)
    load = LoadRadiographsd(
        "image", geometry, intensity, vertical_flip=feet_first, allow_missing_keys=with_ct, **radiographs
    )
    scale = [
        ScaleIntensityd("image", minv=None, maxv=None, factor=1 / LINE_INTEGRAL_SCALE - 1),
        # plain: a MetaTensor's metadata would travel through the network onto the volume
        EnsureTyped("image", dtype="float32", track_meta=False),
    ]
    if not with_ct:
        return Compose([load, *scale, SelectItemsd(["image", "covered", "patient", "assumptions", "warnings"])])
    ct = [
        LoadCTd("label"),
        RenderDRRd("label", geometry, output_key="image"),
        Orientationd("label", axcodes="RAS", labels=None),
        ResampleToGridd("label", geometry.grid, mode),
        WindowHUd("label"),
    ]
    if geometry.grid.vertical_flip:
        ct.append(Flipd("label", spatial_axis=2))
    return Compose(
        [
            load,
            *ct,
            *scale,
            EnsureTyped("label", track_meta=keep_metadata),
            SelectItemsd(["image", "label", "patient"]),
        ]
    )


def files_to_kept(geometry: BiplanarGeometry) -> Compose:
    """What is done once for each patient: read the CT (``label``), and keep what variations are made of.

    Stored radiographs are not read: those of a varied patient are rendered.
    """
    return Compose(
        [
            LoadCTd("label"),
            Orientationd("label", axcodes="RAS", labels=None),
            KeepCTd("label", kept_spacing_mm(geometry)),
            SelectItemsd(["label", "patient"]),
        ]
    )


def kept_to_samples(
    geometry: BiplanarGeometry,
    variation: Variation = WIDE,
    mode: str = "cube",
    anatomies: Anatomies | None = None,
    prob: float = 1.0,
    render: Any | None = None,
    pathology: Any | None = None,
) -> Compose:
    """What is done each time: vary, render, put on the grid. Samples are those of :func:`files_to_samples`.

    Args:
        geometry: grid and views.
        variation: how far patients may differ.
        mode: how the CT is put on the grid.
        anatomies: ways towards other patients.
        prob: of varying a sample.
        render: another dictionary transform from the scan under ``label`` (HU, with affine and isocentre) to line
            integrals (V, H, W) under ``image``, for example one in which the patient moves between the views.
        pathology: a dictionary transform of the varied scan under ``label``, before it is rendered.
    """
    return Compose(
        [
            RandVaryd("label", geometry, variation, mode, anatomies, prob),
            *([] if pathology is None else [pathology]),
            render or RenderDRRd("label", geometry, output_key="image", thick_planes=True, overwrite=True),
            ScaleIntensityd("image", minv=None, maxv=None, factor=1 / LINE_INTEGRAL_SCALE - 1),
            OntoGridd("label", geometry.grid.size),
            SelectItemsd(["image", "label", "patient"]),
        ]
    )
