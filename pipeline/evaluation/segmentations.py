"""Segmentations of a prediction against those of its CT, mask by mask, as files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from drr2ct.pipeline.evaluation.protocol import number_text
from drr2ct.pipeline.evaluation.structures import SURFACE_TOLERANCE_MM, overlap_figures
from drr2ct.transforms.files import refuse_to_lose, refuse_unwritable, write_csv
from drr2ct.transforms.nifti import DAMAGED, open_nifti
from drr2ct.transforms.quiet import quiet_libraries
from drr2ct.transforms.validation import InputError

logger = logging.getLogger(__name__)


def compare_segmentations(
    predicted: str | Path, true: str | Path, output: str | Path, tolerance_mm: float = SURFACE_TOLERANCE_MM
) -> list[dict[str, Any]]:
    """Dice, NSD and HD95 of every ``<patient>/<structure>.nii.gz`` that the second folder holds.

    Args:
        predicted: folder of masks found in predictions; one that is missing counts as empty, and is named in a warning,
            as is one that the second folder lacks.
        true: folder of masks found in the CTs. Where one lies on other voxels than the prediction's, it is resampled
            onto these, nearest neighbour in patient space.
        output: CSV file to write: patient, structure, dice, nsd, hd95.
        tolerance_mm: of the NSD.

    Returns:
        The rows.

    Raises:
        InputError: if there are no masks, none of the predictions' is of a patient and structure of the others, one
            cannot be read or is no mask, two do not overlap in patient space, or the table would replace one or cannot
            be written.
    """
    refuse_unwritable([output])
    folders = Path(predicted), Path(true)
    made_of, true_of = ({path.relative_to(folder) for path in folder.glob("*/*.nii.gz")} for folder in folders)
    refuse_to_lose([output], [*(folders[0] / name for name in made_of), *(folders[1] / name for name in true_of)])
    if true_of and not made_of & true_of:
        raise InputError(
            f"folder {predicted} holds none of the masks of {true}; both need <patient>/<structure>.nii.gz by the same "
            "names."
        )
    for what, names in (("no prediction, counted as empty", true_of - made_of), ("left out", made_of - true_of)):
        if names:
            logger.warning("%s: %s", what, ", ".join(sorted(map(str, names))))
    rows = []
    for name in sorted(true_of):
        patient, structure = name.parent.name, name.name.removesuffix(".nii.gz")
        other, path = (folder / name for folder in folders)
        truth = _read_mask(path)
        made = _read_mask(other) if other.exists() else MetaTensor(torch.zeros_like(truth), affine=truth.affine)
        truth = _on_voxels_of(made, truth, f"masks {other} and {path}")
        figures = overlap_figures(made.as_tensor(), truth.as_tensor(), made.pixdim.tolist(), tolerance_mm)
        rows.append({"patient": patient, "structure": structure, **figures})
    if not rows:
        raise InputError(f"folder {true} holds no <patient>/<structure>.nii.gz.")
    header = list(rows[0])
    write_csv(
        Path(output), header, [[number_text(v) if isinstance(v, float) else v for v in row.values()] for row in rows]
    )
    return rows


def _on_voxels_of(made: MetaTensor, truth: MetaTensor, what: str) -> MetaTensor:
    """The true mask on the prediction's voxels, nearest neighbour in patient space.

    Raises:
        InputError: if the two do not overlap in patient space.
    """
    if made.shape == truth.shape and np.allclose(np.asarray(made.affine), np.asarray(truth.affine), atol=1e-2):
        return truth
    resample = SpatialResample(mode="nearest", padding_mode="zeros", align_corners=True, dtype=np.float32)
    moved = resample(
        MetaTensor(truth.as_tensor().float(), affine=truth.affine), dst_affine=made.affine, spatial_size=made.shape[1:]
    )
    found = MetaTensor(moved.as_subclass(torch.Tensor) > 0.5, affine=made.affine)
    if truth.any() and not found.any():
        raise InputError(f"{what} do not overlap in patient space; check the affines of their headers.")
    return found


def _read_mask(path: Path) -> MetaTensor:
    try:
        with quiet_libraries():
            image: Any = open_nifti(path)
        values = np.asanyarray(image.dataobj)
    except DAMAGED as error:
        reason = " ".join(str(error).split())  # nibabel's has lines
        raise InputError(f"mask {path} cannot be read ({reason}); export it again.") from error
    if values.dtype.kind not in "biuf":
        raise InputError(f"mask {path} holds colours or pairs of numbers; 0 and one other number are needed.")
    if values.ndim != 3:
        raise InputError(f"mask {path} has {values.ndim} dimensions; one volume per structure is needed.")
    low, high = values.min(), values.max()
    if not np.isfinite(high) or (low != high and (low != 0 or not np.isin(values, (low, high)).all())):
        found = np.unique(values)
        raise InputError(
            f"mask {path} holds {len(found)} values from {found[0]:g} to {found[-1]:g}; 0 and one other are needed, a "
            "file for each structure."
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise InputError(f"mask {path} has an affine that maps no volume; repair its header.")
    return MetaTensor(torch.from_numpy(values > 0)[None], affine=torch.from_numpy(affine))
