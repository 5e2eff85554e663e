"""Other programs that render radiographs, each given the CT and the views in its own words.

Each function prepares what its program starts from, and returns what renders the views; with its ``ImportError`` it
says what is missing. CTs here have voxel axes along the patient's, as NIfTI's usual order has them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from jaxtyping import Float
from monai.data import MetaTensor
from skimage.measure import marching_cubes

from drr2ct.transforms import rtk
from drr2ct.transforms.attenuation import hu_to_attenuation
from drr2ct.transforms.geometry import BiplanarGeometry, View

Render = Callable[[BiplanarGeometry], Float[np.ndarray, "views rows columns"]]

LAYERS = 12
"""Surfaces of equal attenuation that a CT is cut into, for a program that knows no voxels."""

RAYS_PER_PATCH = 64**2
"""That DiffDRR traces at a time: more take gigabytes."""

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


def isocentric_affine(ct: MetaTensor) -> Float[np.ndarray, "4 4"]:
    """Voxel index → mm from the centre of the CT's box.

    Raises:
        ValueError: for voxel axes that are not along x, y and z.
    """
    affine = np.array(ct.affine, dtype=np.float64)
    spacing = np.diag(affine)[:3]
    if np.abs(affine[:3, :3] - np.diag(spacing)).max() > 1e-4 or spacing.min() <= 0:
        raise ValueError("this benchmark takes CTs in RAS order only")
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(ct.shape[1:]) - 1) / 2)
    return affine


def plain_rtk(ct: MetaTensor) -> Render:
    """RTK's Joseph filter as ``rtkforwardprojections`` runs it: detector row by row, the scan as it is, no border."""
    affine = isocentric_affine(ct)
    spacing = np.diag(affine)[:3]
    to_rtk = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # RTK turns about y
    hu = ct.as_tensor()[0].permute(2, 1, 0).contiguous()  # as ITK's readers leave it

    def view_of(attenuation: Any, view: View) -> Float[np.ndarray, "rows columns"]:
        pitch, (rows, columns) = view.pixel_pitch_mm, view.detector_size
        volume = rtk.image(attenuation, spacing, to_rtk @ affine[:3, 3], to_rtk)
        corner = (-(columns - 1) / 2 * pitch, -(rows - 1) / 2 * pitch, 0.0)
        detector = rtk.image(np.zeros((1, rows, columns), np.float32), (pitch, pitch, 1.0), corner, np.eye(3))
        distances = (view.source_to_isocentre_mm, view.source_to_detector_mm)
        found = rtk.joseph_projection(volume, detector, *distances, view.gantry_angle_deg, torch.get_num_threads())
        return found[::-1, ::-1]  # its columns are towards the patient's right, its rows upwards

    def render(geometry: BiplanarGeometry) -> Float[np.ndarray, "views rows columns"]:
        attenuation = hu_to_attenuation(hu).numpy()
        return np.stack([view_of(attenuation, view) for view in geometry.views])

    return render


def diffdrr(ct: MetaTensor, renderer: str) -> Render:
    """DiffDRR's module, made anew for each view, from a scan in HU.

    Args:
        ct: the scan.
        renderer: ``siddon``, or ``trilinear`` with its default of 500 samples a ray.
    """
    from diffdrr.drr import DRR
    from diffdrr.pose import RigidTransform
    from torchio import ScalarImage, Subject

    affine = isocentric_affine(ct)

    def view_of(subject: Any, view: View) -> Float[np.ndarray, "rows columns"]:
        rows, columns = view.detector_size
        u, v = view.detector_axes
        source = view.source_position
        pose = np.eye(4)
        pose[:3] = np.stack([u, -v, -source / view.source_to_isocentre_mm, source], axis=1)
        size = {"height": rows, "width": columns, "patch_size": int(RAYS_PER_PATCH**0.5)}
        module = DRR(
            subject,
            sdd=view.source_to_detector_mm,
            delx=view.pixel_pitch_mm,
            reverse_x_axis=False,
            renderer=renderer,
            **size,
        )
        return module(RigidTransform(torch.tensor(pose, dtype=torch.float32)[None]))[0, 0].numpy()

    def render(geometry: BiplanarGeometry) -> Float[np.ndarray, "views rows columns"]:
        image = ScalarImage(tensor=hu_to_attenuation(ct.as_tensor()), affine=affine)
        subject = Subject(volume=image, density=image, mask=None, reorient=torch.eye(4))
        with torch.no_grad():
            return np.stack([view_of(subject, view) for view in geometry.views])

    return render


def plastimatch(ct: MetaTensor, folder: Path, algorithm: str) -> Render:
    """``plastimatch drr``, one command a view, from a file of attenuations.

    Args:
        ct: the scan.
        folder: for its files.
        algorithm: ``exact`` (Siddon's) or ``uniform`` (samples on the ray).
    """
    found = importlib.util.find_spec("plastimatch")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'plastimatch'")
    program = Path(found.origin).parent / "bin/plastimatch"
    affine = isocentric_affine(ct)
    spacing = np.diag(affine)[:3]
    # it does not look at directions: the axes have to run along the file's x and y
    attenuation = hu_to_attenuation(ct.as_tensor()[0].flip(0, 1)).permute(2, 1, 0).contiguous().numpy()
    image = sitk.GetImageFromArray(attenuation)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())  # the box is centred, so a flip has its first voxel in the same place
    scan = folder / "attenuation.mha"
    sitk.WriteImage(image, scan)

    def words(values: Any) -> str:
        return " ".join(f"{value:.9g}" for value in values)

    def view_of(view: View) -> Float[np.ndarray, "rows columns"]:
        distances = ["--sad", str(view.source_to_isocentre_mm), "--sid", str(view.source_to_detector_mm)]
        size = np.array(view.detector_size)
        normal = _RAS_TO_LPS * view.source_position / view.source_to_isocentre_mm
        where = ["--isocenter", "0 0 0", "--nrm", words(normal), "--vup", "0 0 1"]
        panel = ["--dim", words(size), "--detector-size", words(size * view.pixel_pitch_mm)]
        output = ["--input", str(scan), "--output", str(folder / view.name), "--output-format", "pfm"]
        method = ["--threading", "cpu", "--algorithm", algorithm, "--hu-conversion", "none"]
        command = [str(program), "drr", *method, *distances, *where, *panel, *output]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        (picture,) = folder.glob(f"{view.name}*.pfm")
        values = np.frombuffer(picture.read_bytes().split(b"\n", 3)[3], dtype="<f4").reshape(view.detector_size)
        return 10 * values[:, ::-1]  # lengths in cm; seen from the source's side

    return lambda geometry: np.stack([view_of(view) for view in geometry.views])


def gvxr(ct: MetaTensor) -> Render:
    """gVirtualXray, which knows surfaces: those around all that attenuates more than each of some levels.

    Between two levels attenuation is taken to be constant, so that the sum over surfaces of the step between levels
    times a ray's length inside is the line integral. They are made once, before the views.
    """
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's renderer on a CPU
    from gvxrPython3 import gvxr as program

    affine = isocentric_affine(ct)
    program.createNewContext("EGL", 4, 5)
    attenuation = hu_to_attenuation(ct.as_tensor()[0]).numpy()
    step = float(np.percentile(attenuation[attenuation > 0], 99.9)) / LAYERS
    padded = np.pad(attenuation, 1)  # closed surfaces
    for layer in range(LAYERS):
        voxels, faces, _, _ = marching_cubes(padded, (layer + 0.5) * step, gradient_direction="ascent")
        points = (voxels - 1) * np.diag(affine)[:3] + affine[:3, 3]
        name = f"layer {layer}"
        program.makeTriangularMesh(name, points.ravel().tolist(), faces.ravel().tolist(), "mm")
        program.addPolygonMeshAsInnerSurface(name)
        program.setLinearAttenuationCoefficient(name, 10 * step, "cm-1")
    program.usePointSource()
    program.setMonoChromaticPerPixelAtSDD(70, "keV", 1)

    def view_of(view: View) -> Float[np.ndarray, "rows columns"]:
        rows, columns = view.detector_size
        source = view.source_position
        centre = source * (1 - view.source_to_detector_mm / view.source_to_isocentre_mm)
        program.setDetectorNumberOfPixels(columns, rows)
        program.enableArtefactFilteringOnCPU()  # without, rays leak through edges of triangles
        program.setDetectorPixelSize(view.pixel_pitch_mm, view.pixel_pitch_mm, "mm")
        program.setSourcePosition(*source.tolist(), "mm")
        program.setDetectorPosition(*centre.tolist(), "mm")
        program.setDetectorUpVector(0.0, 0.0, 1.0)
        energy = np.array(program.computeXRayImage(), dtype=np.float32)
        return -np.log(energy / energy.max())[::-1, ::-1]

    view_of(BiplanarGeometry.from_angles(detector_size=16).views[0])  # its renderer starts with it, without the filter
    return lambda geometry: np.stack([view_of(view) for view in geometry.views])
