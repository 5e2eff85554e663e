r"""CT volumes: reading them, checking them, and putting them on the grid, with the affine true at every step.

The chain is files → :class:`LoadCTd` → MONAI's ``Orientationd("RAS")`` → :class:`ResampleToGridd` →
:class:`WindowHUd` → MONAI's ``Flipd`` (head first). All of it is invertible: ``Invertd`` brings a prediction back to
HU on the CT's own grid.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import InvertibleTransform, MapTransform, ScaleIntensityRange, Transform
from monai.utils import TraceKeys
from scipy import ndimage
from torch import Tensor

from drr2ct.transforms.dicom_slices import read_slices
from drr2ct.transforms.geometry import VolumeGrid
from drr2ct.transforms.hounsfield import AIR_HU as AIR_HU
from drr2ct.transforms.hounsfield import HU_WINDOW as HU_WINDOW
from drr2ct.transforms.hounsfield import filled_corners, wrong_numbers
from drr2ct.transforms.itk_files import itk_affine, nrrd_problem
from drr2ct.transforms.lost_slices import lost_slices
from drr2ct.transforms.memory_order import in_memory_order, value_range
from drr2ct.transforms.nifti import DAMAGED, is_nifti, nifti_geometry, open_nifti, unknown_space
from drr2ct.transforms.resampling import resampled
from drr2ct.transforms.validation import InputError, existing_file

if TYPE_CHECKING:
    import SimpleITK as sitk

GRID_MODES = ("cube", "resize")

_KEPT_META = ("affine", "original_affine", "space", "spatial_shape", "original_channel_dim")
_MIN_SLICES = 8
_MIN_SPACING_MM, _MAX_SPACING_MM = 0.02, 20.0


class LoadCT(Transform):
    """Read one CT in HU: NIfTI, NRRD, MHA/MHD, or a folder with one DICOM series.

    MONAI's reader reads NIfTI, SimpleITK the rest (MONAI's ITK reader takes many seconds to load); this
    adds the checks of :func:`check_ct`, and records the isocentre.
    """

    def __call__(
        self, path: str | Path, isocentre: Sequence[float] | None = None, slices: Sequence[str] = ()
    ) -> MetaTensor:
        """Read ``path``.

        Args:
            path: the file or the DICOM folder.
            isocentre: (x, y, z) in patient coordinates, mm; the centre of the scan's bounding box by default.
            slices: which DICOM files of the folder to read, in order; without, it must hold one series.

        Returns:
            (1, I, J, K) in HU, float32, with the RAS+ affine and the isocentre in ``meta["isocentre"]``.

        Raises:
            InputError: if there is no such file, it cannot be read, or it is not a CT in HU.
        """
        path = existing_file(path, "CT")
        try:
            if slices:
                array, meta = _from_tensor(read_slices(slices))
            elif path.is_file() and is_nifti(path):
                array, meta = _from_nifti(path)
            else:
                array, meta = _from_itk(_read_series(path) if path.is_dir() else _read_file(path))
                problem = "" if path.is_dir() else nrrd_problem(path)
                if problem := problem or unknown_space(meta["affine"]):
                    raise InputError(f"CT {path} has {problem}.")
        except InputError:
            raise
        except (RuntimeError, *DAMAGED) as error:
            raise InputError(
                f"CT {path} cannot be read ({_reason(error)}); it may be truncated or of another type; "
                "copy or export it again."
            ) from error
        if array.ndim != 3:
            shape = "×".join(map(str, array.shape))
            raise InputError(f"CT {path} has {array.ndim} dimensions ({shape}); a CT volume has three; extract one.")
        image = MetaTensor.ensure_torch_and_prune_meta(array.astype(np.float32, copy=False), meta)[None]
        # geometry only: headers of different formats do not stack in a batch, and may name the patient
        image.meta = {key: image.meta[key] for key in _KEPT_META if key in image.meta}
        image.meta["filename_or_obj"] = str(path)
        check_ct(image, f"CT {path}")
        image.meta["isocentre"] = [float(c) for c in (bounding_box_centre(image) if isocentre is None else isocentre)]
        return image


class LoadCTd(MapTransform):
    """Dictionary version of :class:`LoadCT`; isocentre and DICOM files come from their keys if the item has them."""

    def __init__(
        self,
        keys: KeysCollection = "label",
        isocentre_key: str = "isocentre",
        slices_key: str = "slices",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.isocentre_key = isocentre_key
        self.slices_key = slices_key
        self._load = LoadCT()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by its volume."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._load(item[key], item.get(self.isocentre_key), item.pop(self.slices_key, ()))
        return item


def _from_nifti(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    image = open_nifti(path)
    geometry = nifti_geometry(image)
    if geometry.problem:
        raise InputError(f"CT {path} has {geometry.problem}.")
    array = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(geometry.shape)
    return array, _meta(geometry.affine, array)


def _from_tensor(image: MetaTensor) -> tuple[np.ndarray, dict[str, Any]]:
    array = image.as_tensor()[0].numpy()
    return array, _meta(np.asarray(image.affine), array)


def _meta(affine: np.ndarray, array: np.ndarray) -> dict[str, Any]:
    shape = np.asarray(array.shape)
    return {"affine": affine, "original_affine": affine.copy(), "space": "RAS", "spatial_shape": shape}


def _read_file(path: Path) -> sitk.Image:
    import SimpleITK as sitk  # not at the top: who trains on NIfTI files needs none

    return sitk.ReadImage(str(path))


def _from_itk(image: sitk.Image) -> tuple[np.ndarray, dict[str, Any]]:
    """Array with axes x, y, z and metadata as MONAI's readers give them; ITK's space is LPS."""
    import SimpleITK as sitk  # loaded by what read the image

    array = sitk.GetArrayFromImage(image).transpose()
    return array, _meta(orientation_ras_lps(itk_affine(image)), array)


def _read_series(folder: Path) -> sitk.Image:
    import SimpleITK as sitk  # as in _read_file

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK prints to stderr what the sentences below say
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise InputError(f"CT folder {folder} holds no DICOM series; give the folder that contains the slices.")
    if len(series) > 1:
        raise InputError(
            f"CT folder {folder} holds {len(series)} DICOM series; keep the one to use in a folder of its own."
        )
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    image = sitk.ReadImage(names)
    header = sitk.ImageFileReader()
    for k, name in enumerate(names):
        header.SetFileName(name)
        header.ReadImageInformation()
        off = np.subtract(header.GetOrigin(), image.TransformIndexToPhysicalPoint((0, 0, k)))
        if np.abs(off).max() > 0.1 * image.GetSpacing()[2]:
            raise InputError(
                f"CT folder {folder} is no straight and even stack (see slice {Path(name).name}), slices may be "
                "missing or tilted; drr2ct prepare says which."
            )
    return image


def _reason(error: BaseException) -> str:
    """Last line of an error's message: ITK's first lines name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def check_ct(image: MetaTensor, what: str) -> None:
    """Refuse what cannot be a CT in HU.

    Args:
        image: (1, I, J, K) with an affine.
        what: how to name it in messages.

    Raises:
        InputError: naming the first thing that is wrong.
    """
    shape = "×".join(map(str, image.shape[1:]))
    if min(image.shape[1:]) < _MIN_SLICES:
        count = min(image.shape[1:])
        raise InputError(
            f"{what} has only {count} slice{'s' * (count != 1)} ({shape}); a CT volume needs {_MIN_SLICES} or more."
        )
    values = image.as_tensor()
    low, high = value_range(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{what} contains NaN or infinite values; clean it or leave the patient out.")
    if low == high:
        raise InputError(f"{what} has the same value {low:g} everywhere; leave the patient out or export it again.")
    if problem := wrong_numbers(in_memory_order(values)):
        raise InputError(f"{what} {problem}.")
    affine = np.asarray(image.affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    finite = np.isfinite(affine).all()
    if not finite or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * spacing.prod():
        raise InputError(
            f"{what} has an affine that maps no volume (spacing {spacing.round(3)} mm); repair its header."
        )
    if max(spacing) > _MAX_SPACING_MM or min(spacing) < _MIN_SPACING_MM:
        edges = "×".join(f"{edge:.3g}" for edge in spacing)
        raise InputError(f"{what} has voxels of {edges} mm; no CT has that; check the units of its header.")
    stack = slices_last(image)
    if problem := filled_corners(stack) or lost_slices(stack):
        raise InputError(f"{what} {problem}.")


def slices_last(image: MetaTensor) -> Float[Tensor, "i j slices"]:
    """A CT (1, I, J, K) with that of its axes last that runs along the patient; a view."""
    axes = np.asarray(image.affine, dtype=np.float64)[:3, :3]
    return image.as_tensor()[0].movedim(int(np.abs(axes[2] / np.linalg.norm(axes, axis=0)).argmax()), -1)


def bounding_box_centre(image: MetaTensor) -> Float[np.ndarray, 3]:
    """Patient coordinates (mm) of the centre of the box spanned by voxel edges."""
    middle = (np.asarray(image.shape[1:], dtype=np.float64) - 1) / 2
    return (np.asarray(image.affine, dtype=np.float64) @ np.array([*middle, 1.0]))[:3]


def smooth_for_spacing(
    volume: Float[Tensor, "c i j k"], spacing: Sequence[float], target: Sequence[float]
) -> Float[Tensor, "c i j k"]:
    r"""Gaussian low pass along the axes that will be sampled more coarsely.

    :math:`\sigma = (f - 1) / 2` voxels for a downsampling factor :math:`f > 1`, as scikit-image's ``rescale`` and
    MONAI's ``Resize(anti_aliasing=True)``; edges are replicated, so that a body cut by the scan does not darken.
    """
    sigmas = [max(0.0, (t / s - 1) / 2) for s, t in zip(spacing, target, strict=True)]
    if not any(sigmas):
        return volume
    kernels = [gaussian_1d(torch.tensor(s), truncated=3.0, normalize=True) if s > 0 else torch.ones(1) for s in sigmas]
    if volume.device.type != "cpu":
        return separable_filtering(volume[None], [k.to(volume) for k in kernels], mode="replicate")[0]
    # as convolutions, oneDNN would keep a compiled primitive for the shape of every CT, and PyTorch's own would unfold
    # the volume once for each of the kernel's voxels
    values = volume.numpy()
    for axis, kernel in enumerate(kernels, start=1):
        if len(kernel) > 1:
            values = ndimage.correlate1d(values, kernel.numpy(), axis=axis, mode="nearest")
    return torch.from_numpy(values)


def onto_voxels(
    hu: Float[Tensor, "c i j k"],
    affine: Float[np.ndarray, "4 4"],
    target: Float[np.ndarray, "4 4"],
    shape: Sequence[int],
) -> Float[Tensor, "c x y z"]:
    """A volume in HU on other voxels: anti-aliased, trilinear, air outside. Arguments: :func:`resampled`."""
    # spacing of the target along the source's own axes
    step = np.abs(np.linalg.solve(affine[:3, :3], target[:3, :3])).max(axis=1)
    return resampled(smooth_for_spacing(hu, (1.0, 1.0, 1.0), step.tolist()), affine, target, shape, AIR_HU)


class ResampleToGrid(InvertibleTransform):
    """Anti-aliased trilinear resampling of a CT onto the grid; −1024 HU outside the scan.

    Args:
        grid: where to. Its ``vertical_flip`` is not applied here: the result runs from feet to head
            (``Flipd`` follows in the chain).
        mode: ``cube`` puts the physical cube of ``grid`` around ``meta["isocentre"]``; ``resize`` stretches the
            scan's own box to ``size``³ voxels, which then differ in size by axis, as the affine says.

    The input must be oriented RAS (``Orientationd``). The inverse resamples onto the grid it came from; it does not
    restore detail.
    """

    def __init__(self, grid: VolumeGrid, mode: str = "cube") -> None:
        if mode not in GRID_MODES:
            raise InputError(f"grid mode {mode!r} is unknown; choose from {', '.join(GRID_MODES)}.")
        self.grid = grid
        self.mode = mode

    def target_affine(self, image: MetaTensor) -> Float[np.ndarray, "4 4"]:
        """Affine (unflipped) of the result for this scan."""
        source = np.asarray(image.affine, dtype=np.float64)
        if self.mode == "cube":
            upright = VolumeGrid(self.grid.size, self.grid.fov_mm, vertical_flip=False)
            return upright.affine(image.meta.get("isocentre") or bounding_box_centre(image).tolist())
        factor = np.asarray(image.shape[1:], dtype=np.float64) / self.grid.size
        step = np.diag([*factor, 1.0])
        step[:3, 3] = (factor - 1) / 2  # voxel edges, not centres, coincide
        return source @ step

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """(1, I, J, K) in HU → (1, size, size, size) in HU."""
        target = self.target_affine(image)
        source = np.asarray(image.affine, dtype=np.float64)
        values = onto_voxels(image.as_tensor(), source, target, (self.grid.size,) * 3)
        result = MetaTensor(values, meta=image.meta, applied_operations=image.applied_operations)
        result.affine = torch.from_numpy(target)
        self.push_transform(result, orig_size=image.shape[1:], extra_info={"affine": source.tolist()})
        return result

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Back onto the scan's own voxels, −1024 HU outside the grid."""
        done = self.pop_transform(data)
        source = np.asarray(done[TraceKeys.EXTRA_INFO]["affine"])
        values = resampled(data.as_tensor(), np.asarray(data.affine), source, done[TraceKeys.ORIG_SIZE], AIR_HU)
        restored = MetaTensor(values, meta=data.meta, applied_operations=data.applied_operations)
        restored.affine = torch.from_numpy(source)
        return restored


class ResampleToGridd(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`ResampleToGrid`."""

    def __init__(
        self, keys: KeysCollection, grid: VolumeGrid, mode: str = "cube", allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self._resample = ResampleToGrid(grid, mode)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample each key."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._resample(item[key])
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo each key's resampling."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._resample.inverse(item[key])
        return item


class WindowHUd(MapTransform, InvertibleTransform):
    """HU → [0, 1] over :data:`HU_WINDOW`, clipped; the inverse gives HU again (MONAI's own scaling has none)."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self._forward = ScaleIntensityRange(*HU_WINDOW, 0.0, 1.0, clip=True)
        self._inverse = ScaleIntensityRange(0.0, 1.0, *HU_WINDOW, clip=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale each key."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._forward(item[key])
            self.push_transform(item[key])
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Back to HU, within the window."""
        item = dict(data)
        for key in self.key_iterator(item):
            self.pop_transform(item[key])
            item[key] = self._inverse(item[key])
        return item


def to_hu(scaled: Tensor) -> Tensor:
    """[0, 1] → HU over :data:`HU_WINDOW`, clipped. Any shape."""
    low, high = HU_WINDOW
    return scaled.clamp(0, 1) * (high - low) + low
