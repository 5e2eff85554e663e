"""Body, lungs and bones found by thresholds, and how well those of two volumes overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import KDTree
from torch import Tensor

from drr2ct.pipeline.evaluation.similarity import Volume
from drr2ct.transforms.volume import HU_WINDOW

BODY_THRESHOLD_HU = -500.0

TISSUES = {"lung": (-950.0, -500.0), "fat": (-150.0, -30.0), "soft": (0.0, 100.0), "bone": (300.0, HU_WINDOW[1])}
"""Tissues of the truth, inside the body; HU, both ends included."""

STRUCTURES = ("body", "lung", "bone")
"""Found by thresholds in the truth and in the prediction, each on its own."""

SURFACE_TOLERANCE_MM = 3.0
"""Distance within which a surface counts as found."""

Mask = Bool[Tensor, "1 n m k"]


def body_mask(hu: Volume) -> Mask:
    """The patient: the largest connected component above −500 HU, with its holes filled axial slice by slice.

    Slice by slice, because the windpipe opens the lungs to the outside at the end of a scan. The last axis is z.
    """
    body = np.zeros(hu.shape[1:], dtype=bool)
    labels, count = ndimage.label((hu[0] > BODY_THRESHOLD_HU).cpu().numpy())
    if not count:
        return torch.from_numpy(body)[None].to(hu.device)
    # plane by plane: bincount would make 8-byte numbers of the whole volume
    sizes = np.sum([np.bincount(plane.ravel(), minlength=count + 1) for plane in labels], axis=0)
    largest = 1 + int(sizes[1:].argmax())
    inside = labels == largest
    filled = [np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(along[0]), int(along[-1]) + 1) for along in filled)
    inside = inside[box]
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[1, 1, ::2] = False
    # air that reaches no side of its slice is inside; where it reaches the box's, it also reaches the slice's
    regions, count = ndimage.label(~inside, structure=in_plane)
    outside = np.zeros(count + 1, dtype=bool)
    for face in (regions[0], regions[-1], regions[:, 0], regions[:, -1]):
        outside[np.unique(face)] = True
    outside[0] = False  # the body itself
    body[box] = ~outside[regions]
    return torch.from_numpy(body)[None].to(hu.device)


def structure_masks(hu: Volume, body: Mask) -> dict[str, Mask]:
    """The masks of :data:`STRUCTURES`: the body, air in it (lungs and airways, up to −500 HU), and bone (> 300 HU)."""
    return {"body": body, "lung": (hu < BODY_THRESHOLD_HU) & body, "bone": (hu > TISSUES["bone"][0]) & body}


def surface(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Voxels of the mask with one of their six neighbours, or the volume's end, outside it."""
    inner = mask.copy()
    for axis in range(3):
        here, there = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[[0, -1]] = False
    return mask & ~inner


def surface_distances(
    first: Bool[np.ndarray, "i j k"], second: Bool[np.ndarray, "i j k"], spacing_mm: Sequence[float]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Distance (mm) of each voxel of one mask's surface to the nearest of the other's, both ways; neither is empty.

    Values are those of MONAI's ``get_edge_surface_distance``.
    """
    edges = surface(first), surface(second)
    # NumPy looks for what is set many times as fast along one axis as along three
    points = [np.stack(np.unravel_index(np.flatnonzero(edge), edge.shape), axis=1) for edge in edges]
    trees = [KDTree(p * np.asarray(spacing_mm), leafsize=32, balanced_tree=False) for p in points]
    found = []
    for here, edge, tree in zip(points, edges[::-1], trees[::-1], strict=True):
        distances = np.zeros(len(here))
        apart = ~edge[tuple(here.T)]  # where surfaces coincide there is nothing to look for
        distances[apart] = tree.query(here[apart] * np.asarray(spacing_mm), workers=torch.get_num_threads())[0]
        found.append(distances)
    return found[0], found[1]


def overlap_figures(
    pred: Mask, truth: Mask, spacing_mm: Sequence[float], tolerance_mm: float = SURFACE_TOLERANCE_MM
) -> dict[str, float]:
    """Dice, normalised surface Dice and 95th percentile of the symmetric surface distance of two masks.

    Surfaces are MONAI's: mask voxels with a neighbour outside the mask, distances between their centres.

    Args:
        pred: the predicted mask.
        truth: the true one.
        spacing_mm: size of a voxel along each axis.
        tolerance_mm: a surface voxel within this distance of the other surface counts as found.

    Returns:
        ``dice`` and ``nsd`` in [0, 1] and ``hd95`` in mm. Without the structure in the truth, all are NaN; missing
        from the prediction alone, Dice and NSD are 0 and HD95 is NaN.
    """
    nan = float("nan")
    made, there = pred[0].cpu().numpy(), truth[0].cpu().numpy()
    counts = int(np.count_nonzero(made)), int(np.count_nonzero(there))
    if not counts[1]:
        return {"dice": nan, "nsd": nan, "hd95": nan}
    if not counts[0]:
        return {"dice": 0.0, "nsd": 0.0, "hd95": nan}
    distances = surface_distances(made, there, spacing_mm)
    near = sum(int(np.count_nonzero(d <= tolerance_mm + 1e-6)) for d in distances)
    return {
        "dice": 2 * int(np.count_nonzero(made & there)) / sum(counts),
        "nsd": near / sum(d.size for d in distances),
        "hd95": max(float(np.percentile(d, 95)) for d in distances),
    }
