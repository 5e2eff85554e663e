"""Where the sample CT lies, and the CTs of a folder with it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from drr2ct.pipeline.data.patients import find_patients


def sample_ct() -> Path:
    """The real CT that ships with the package: LIDC-IDRI-0001 at 2.5 mm (see the README beside it)."""
    return Path(str(files("drr2ct.pipeline.data.sample"))) / "lidc-idri-0001" / "lidc-idri-0001.nii.gz"


def real_cts(cts_dir: str | Path) -> dict[str, Path]:
    """Patient → CT of a folder of patient folders, with the sample's as the last."""
    sample = sample_ct()
    return {item["patient"]: Path(item["label"]) for item in find_patients(cts_dir)} | {sample.parent.name: sample}
