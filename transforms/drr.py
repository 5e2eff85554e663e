"""Digitally reconstructed radiographs: line integrals through a CT, seen by a geometry's views.

One function, two engines. On the CPU: the Reconstruction Toolkit's ray caster (RTK; Joseph's method, IEEE Trans. Med.
Imaging 1:192, 1982). On CUDA, and wherever a gradient is needed: nanodrr (a fused kernel on the GPU, ``grid_sample``
elsewhere). In both, the attenuation falls linearly to zero over one voxel outside the scan: beyond it is air.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Real
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from drr2ct.transforms import nanodrr_parts, rtk
from drr2ct.transforms.attenuation import hu_to_attenuation
from drr2ct.transforms.geometry import BiplanarGeometry, View
from drr2ct.transforms.memory_order import slowest_first
from drr2ct.transforms.validation import InputError

SAMPLES_PER_CHUNK = 2**24
"""Samples along rays that nanodrr's ``grid_sample`` path holds at once: about half a gigabyte."""

_SLAB = 2**18  # voxels converted at a time: they stay in the cache

_PATIENT_TO_RTK = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # RTK turns about y: give it the patient's z there


def render_drr(
    volume: Real[Tensor, "channel i j k"],
    geometry: BiplanarGeometry | Sequence[View],
    affine: Float[np.ndarray, "4 4"] | Float[Tensor, "4 4"] | None = None,
    isocentre: Sequence[float] | None = None,
    engine: str = "auto",
    motions: Sequence[Float[np.ndarray, "4 4"]] | None = None,
    thick_planes: bool = False,
) -> Float[Tensor, "views rows columns"]:
    """Line integrals (dimensionless, float32) of a CT, at its own resolution and in its own orientation.

    Args:
        volume: Hounsfield units, one channel; any real type, axes in any order and direction (the affine says which).
        geometry: the views, or a geometry that has them; its grid is not used. All detectors have as many pixels.
        affine: voxel index → RAS+ mm. Taken from the volume if that is a ``MetaTensor``.
        isocentre: patient coordinates (mm) of the isocentre; the centre of the CT's bounding box if not given.
        engine: ``rtk``, ``nanodrr``, or ``auto``: RTK for CPU tensors without gradient, nanodrr for the rest, for
            sheared voxels, which RTK cannot hold, and where RTK is not installed.
        motions: for each view, the rigid motion (isocentric mm → isocentric mm) that brings the patient from where
            the affine has it to where it stood in that view; nobody moves if not given.
        thick_planes: RTK takes the mean of neighbouring voxels along each view's direction, as many as blur nothing by
            more than half a pixel: two to three times as fast, for samples that are rendered while training.

    Returns:
        Radiographs on the volume's device: views in the order of ``geometry.views``, row 0 cranial.

    Raises:
        InputError: for a volume that is not one channel, a missing or unusable affine or isocentre, an unknown
            engine, an engine that cannot do what is asked, or a CT that holds NaN or infinity.
    """
    if affine is None:
        if not isinstance(volume, MetaTensor):
            raise InputError("the CT has no affine; pass a MetaTensor or the affine argument.")
        affine = volume.affine
    hu = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    if hu.shape[0] != 1:
        raise InputError(f"a CT has one channel, this volume has {hu.shape[0]}; select one before rendering.")
    hu = hu[0]
    to_isocentric = _isocentric_affine(tuple(hu.shape), np.array(affine, dtype=np.float64), isocentre)
    differentiable = hu.requires_grad and torch.is_grad_enabled()
    sheared = _is_sheared(to_isocentric)
    if engine == "auto":
        no_rtk = importlib.util.find_spec("itk") is None
        engine = "nanodrr" if hu.device.type != "cpu" or differentiable or sheared or no_rtk else "rtk"
    elif engine == "rtk" and (hu.device.type != "cpu" or differentiable or sheared):
        raise InputError(
            "engine rtk renders CPU volumes with perpendicular voxel axes and without gradient; use nanodrr."
        )
    views = geometry.views if isinstance(geometry, BiplanarGeometry) else tuple(geometry)
    affines = [to_isocentric] * len(views) if motions is None else [motion @ to_isocentric for motion in motions]
    if engine == "rtk":
        radiographs = _render_rtk(hu, views, affines, thick_planes)
    elif engine == "nanodrr":
        radiographs = _render_nanodrr(hu, views, affines)
    else:
        raise InputError(f"unknown DRR engine {engine!r}; choose auto, rtk or nanodrr.")
    if not torch.isfinite(radiographs).all():
        raise InputError("the CT holds NaN or infinite values; replace them by air (−1000 HU) before rendering.")
    return radiographs


def project_volume(
    hu: Float[Tensor, "batch 1 n n n"], geometry: BiplanarGeometry
) -> Float[Tensor, "batch views rows columns"]:
    """Line integrals of volumes that lie on ``geometry.grid``; differentiable with respect to the volumes.

    Args:
        hu: Hounsfield units on the grid (its affine, with the vertical flip).
        geometry: grid and views. For another number of voxels or pixels, pass ``geometry.resized(…)``.

    Raises:
        InputError: if the volumes are not of the grid's size.
    """
    if hu.shape[-1] != geometry.grid.size:
        raise InputError(
            f"volumes of {hu.shape[-1]}³ voxels are not on the geometry's grid of {geometry.grid.size}³; "
            "pass geometry.resized(size)."
        )
    hu = hu.as_tensor() if isinstance(hu, MetaTensor) else hu
    affines = [geometry.grid.affine()] * len(geometry.views)
    return torch.stack([_render_nanodrr(volume[0], geometry.views, affines) for volume in hu])


class RenderDRR(Transform):
    """Render a CT (``MetaTensor`` in HU) with :func:`render_drr`.

    If the CT's metadata hold ``isocentre`` (three patient coordinates, mm), that is used.

    Args:
        geometry: the views.
        engine: see :func:`render_drr`.
        thick_planes: likewise.
    """

    def __init__(self, geometry: BiplanarGeometry, engine: str = "auto", thick_planes: bool = False) -> None:
        self.geometry = geometry
        self.engine = engine
        self.thick_planes = thick_planes

    def __call__(self, volume: MetaTensor) -> MetaTensor:
        """Line integrals (views, rows, columns) of a CT (1, I, J, K) in HU."""
        isocentre = volume.meta.get("isocentre") if isinstance(volume, MetaTensor) else None
        if isocentre is not None:
            isocentre = [float(x) for x in isocentre]
        options: dict[str, Any] = {"engine": self.engine, "thick_planes": self.thick_planes}
        return MetaTensor(render_drr(volume, self.geometry, isocentre=isocentre, **options))


class RenderDRRd(MapTransform):
    """Dictionary form of :class:`RenderDRR`: renders the CT under ``keys`` and stores it under ``output_key``.

    Args:
        keys: the key of the CT, in HU; one.
        geometry: the views.
        output_key: where the line integrals (views, rows, columns) go.
        engine: see :func:`render_drr`.
        overwrite: render even if the sample has radiographs (stored ones) under ``output_key`` already.
        allow_missing_keys: leave a sample without a CT as it is.
        thick_planes: see :func:`render_drr`.

    Raises:
        InputError: if more than one key is given.
    """

    def __init__(
        self,
        keys: KeysCollection,
        geometry: BiplanarGeometry,
        output_key: str = "image",
        engine: str = "auto",
        overwrite: bool = False,
        allow_missing_keys: bool = False,
        thick_planes: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise InputError(f"RenderDRRd renders one CT, it was given the keys {', '.join(map(str, self.keys))}.")
        self.render = RenderDRR(geometry, engine, thick_planes)
        self.output_key = output_key
        self.overwrite = overwrite

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The sample with its radiographs."""
        sample = dict(data)
        if self.overwrite or self.output_key not in sample:
            for key in self.key_iterator(sample):
                sample[self.output_key] = self.render(sample[key])
        return sample


def _isocentric_affine(
    shape: tuple[int, ...], affine: Float[np.ndarray, "4 4"], isocentre: Sequence[float] | None
) -> Float[np.ndarray, "4 4"]:
    """Voxel index → isocentric mm."""
    singular = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12
    if affine.shape != (4, 4) or singular:
        raise InputError("the CT's affine is not an invertible 4×4 matrix of finite numbers; repair its header.")
    if isocentre is None:
        centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    else:
        centre = np.array([float(x) for x in isocentre])
        if centre.shape != (3,) or not np.isfinite(centre).all():
            raise InputError(f"isocentre {list(isocentre)} is not three coordinates in mm.")
    result = affine.copy()
    result[:3, 3] -= centre
    return result


def _is_sheared(affine: Float[np.ndarray, "4 4"]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)


def _memory_order(
    hu: Real[Tensor, "i j k"], affines: Sequence[Float[np.ndarray, "4 4"]]
) -> tuple[Real[Tensor, "a b c"], list[Float[np.ndarray, "4 4"]]]:
    """The volume with its slowest axis first, and the affines of indices (fastest, middle, slowest), as ITK has them.

    Transposing a whole CT takes as long as rendering it; NIfTI readers differ in the order they leave.
    """
    order = slowest_first(hu)
    return hu.permute(order), [affine[:, [*order[::-1], 3]] for affine in affines]


def _render_rtk(
    hu: Real[Tensor, "i j k"],
    views: Sequence[View],
    affines: Sequence[Float[np.ndarray, "4 4"]],
    thick_planes: bool = False,
) -> Float[Tensor, "views rows columns"]:
    hu, affines = _memory_order(hu, affines)
    padded = _padded_attenuation(hu)
    axes = np.diag([-1.0, -1.0, 1.0])  # at 0° RTK's u is the patient's right and its v is up; ours run the other way
    radiographs = []
    for view, affine in zip(views, affines, strict=True):
        attenuation = padded.numpy()
        if thick_planes:
            planes, affine = _thick_planes(padded, affine, view)
            attenuation = planes.numpy()
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = affine[:3, :3] / spacing
        first_voxel = affine[:3, 3] - affine[:3, :3].sum(axis=1)  # the padding's
        volume = rtk.image(attenuation, spacing, _PATIENT_TO_RTK @ first_voxel, _PATIENT_TO_RTK @ direction)
        # neighbouring rays should read neighbouring memory: walk the detector along the volume's fastest axis
        # (3 × faster)
        by_columns = abs(direction[2, 0]) > 0.5
        rows, columns = view.detector_size
        pitch = view.pixel_pitch_mm
        length, across = (rows, columns) if by_columns else (columns, rows)  # of a row of rays, and their number
        threads = torch.get_num_threads()  # 1 in a data loader's worker
        distances = (view.source_to_isocentre_mm, view.source_to_detector_mm)
        layers = attenuation.shape[2 - int(np.abs(direction.T @ view.detector_axes[0 if by_columns else 1]).argmax())]
        width = rtk.strip_width(attenuation.nbytes / layers, length)
        strips = []
        for start in range(0, length, width):
            blank = np.zeros((1, across, min(width, length - start)), dtype=np.float32)
            corner = [(columns - 1) / 2 * pitch, (rows - 1) / 2 * pitch, 0.0]
            corner[int(by_columns)] -= start * pitch
            detector = rtk.image(blank, (pitch, pitch, 1.0), corner, axes[:, [1, 0, 2]] if by_columns else axes)
            strips.append(rtk.joseph_projection(volume, detector, *distances, view.gantry_angle_deg, threads))
        image = torch.from_numpy(np.concatenate(strips, axis=1))
        radiographs.append(image.T if by_columns else image)
    return torch.stack(radiographs)


def _padded_attenuation(hu: Real[Tensor, "a b c"]) -> Float[Tensor, "a+2 b+2 c+2"]:
    """Attenuation with a border of one voxel of air, which RTK needs to integrate to the edge of the last voxel."""
    padded = torch.empty([n + 2 for n in hu.shape])
    for axis in range(3):
        padded.select(axis, 0).zero_()
        padded.select(axis, -1).zero_()
    thickness = max(1, _SLAB // (hu.shape[1] * hu.shape[2]))
    inner = padded[1:-1, 1:-1, 1:-1]
    for target, source in zip(inner.split(thickness), hu.detach().split(thickness), strict=True):
        target.copy_(hu_to_attenuation(source))
    return padded


def _thick_planes(
    padded: Float[Tensor, "a b c"], affine: Float[np.ndarray, "4 4"], view: View
) -> tuple[Float[Tensor, "d e f"], Float[np.ndarray, "4 4"]]:
    """Attenuation with its border of air in fewer planes along a view's direction, and the affine of those.

    A ray leaves the centre line of a plane of thickness d by at most d/2 times the tangent of its angle to the voxel
    axis; the planes may be as thick as this is half a pixel.
    """
    beam = -view.source_position / view.source_to_isocentre_mm
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along = affine[:3, :3].T @ beam / spacing  # cosine to each voxel axis
    axis = int(np.abs(along).argmax())
    half = np.array(view.detector_size) * view.pixel_pitch_mm / 2
    opening = math.atan(float(np.linalg.norm(half)) / view.source_to_detector_mm)
    angle = math.acos(min(1.0, abs(float(along[axis])))) + opening
    pixel = view.pixel_pitch_mm * view.source_to_isocentre_mm / view.source_to_detector_mm
    count = int(pixel / math.tan(angle) / spacing[axis]) if angle < math.pi / 2 else 1
    if count < 2:
        return padded, affine
    array_axis = 2 - axis  # ITK's fastest axis is the array's last
    inner = padded.narrow(array_axis, 1, padded.shape[array_axis] - 2)
    shape = list(padded.shape)
    shape[array_axis] = -(-inner.shape[array_axis] // count) + 2
    planes = torch.zeros(shape)
    for offset in range(min(count, inner.shape[array_axis])):
        taken = inner[(slice(None),) * array_axis + (slice(offset, None, count),)]
        planes.narrow(array_axis, 1, taken.shape[array_axis]).add_(taken, alpha=1 / count)
    thick = affine.copy()
    thick[:3, 3] += affine[:3, axis] * (count - 1) / 2
    thick[:3, axis] *= count
    return planes, thick


def _render_nanodrr(
    hu: Real[Tensor, "i j k"], views: Sequence[View], affines: Sequence[Float[np.ndarray, "4 4"]]
) -> Float[Tensor, "views rows columns"]:
    Subject, render = nanodrr_parts.subject_and_render()  # noqa: N806
    hu, affines = _memory_order(hu, affines)
    device = hu.device
    size = np.array(hu.shape[::-1])  # of the affine's axes, fastest first
    spacing = np.linalg.norm(affines[0][:3, :3], axis=0)  # rigid motions keep it
    # nanodrr spreads its samples over each ray's part inside the volume, at most the diagonal
    samples = max(2, math.ceil(np.linalg.norm((size + 1) * spacing) / (spacing.min() / 2)))
    to_grid = np.diag([*(2 / size), 1.0])
    to_grid[:3, 3] = 1 / size - 1

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(np.array(array), dtype=torch.float32, device=device)

    def rows_of(attenuation: Tensor, view: View, affine: Float[np.ndarray, "4 4"], start: int, rows: int) -> Tensor:
        subject = Subject(
            attenuation[None, None],
            torch.zeros(1, 1, 1, 1, 1, device=device),  # a label map, unused with one class
            tensor(affine),
            tensor(np.linalg.inv(affine)),
            tensor(to_grid),
            torch.zeros(3, device=device),
            max_label=0,
            convert_to_mu=False,
        )
        to_world, to_ray = _camera(view, start)
        distance = tensor([view.source_to_detector_mm])
        columns = view.detector_size[1]
        return render(
            subject,
            k_inv=tensor(to_ray)[None],
            rt_inv=tensor(to_world)[None],
            sdd=distance,
            height=rows,
            width=columns,
            n_samples=samples,
        )[0, 0]

    # the fused kernels keep their samples in registers; with deterministic algorithms nanodrr avoids them
    kernel = device.type == "mps" or (device.type == "cuda" and importlib.util.find_spec("triton") is not None)
    fused = kernel and not torch.are_deterministic_algorithms_enabled()
    rows, columns = views[0].detector_size
    chunk = rows if fused else max(1, min(rows, SAMPLES_PER_CHUNK // (samples * columns)))
    with torch.autocast(device.type, enabled=False):  # half-precision rays would miss their voxels
        attenuation = hu_to_attenuation(hu).contiguous()
        again = attenuation.requires_grad and torch.is_grad_enabled() and not fused

        def image(view: View, affine: Float[np.ndarray, "4 4"]) -> Iterator[Tensor]:
            for start in range(0, rows, chunk):
                args = (attenuation, view, affine, start, min(chunk, rows - start))
                # samples are computed again in the backward pass: kept, they are twenty times the volume
                yield checkpoint(rows_of, *args, use_reentrant=False) if again else rows_of(*args)

        return torch.stack([torch.cat(list(image(view, affine))) for view, affine in zip(views, affines, strict=True)])


def _camera(view: View, first_row: int) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "3 3"]]:
    """Camera → isocentric matrix, and pixel → ray (inverse intrinsic) matrix of the detector from ``first_row`` on.

    The camera looks along its third axis from the source; nanodrr has pixel centres at half numbers.
    """
    u, v = view.detector_axes
    source = view.source_position
    to_world = np.eye(4)
    to_world[:3] = np.stack([u, v, -source / view.source_to_isocentre_mm, source], axis=1)
    rows, columns = view.detector_size
    step = view.pixel_pitch_mm / view.source_to_detector_mm
    to_ray = np.array([[step, 0, -columns / 2 * step], [0, step, (first_row - rows / 2) * step], [0, 0, 1]])
    return to_world, to_ray
