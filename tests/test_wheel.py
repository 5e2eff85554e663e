"""What an installation gets: the distribution carries the bundle with its networks, byte for byte."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("transforms", "networks", "pipeline", "bundles", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.mark.slow
def test_wheel_and_source_distribution_carry_the_networks(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    models = tree / "bundles" / "biplanar_ct" / "models"
    for name in ("cascade64.safetensors", "cascade64.json", "model.pt"):
        (models / name).write_bytes(f"stands in for {name}".encode())
    out.mkdir()
    build = f"from setuptools import build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True, timeout=500)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel, tarfile.open(next(out.glob("*.tar.gz"))) as sdist:
        names = {Path(name).relative_to(Path(name).parts[0]).as_posix(): name for name in sdist.getnames()}
        for path in (*models.iterdir(), tree / "bundles" / "biplanar_ct" / "configs" / "metadata.json"):
            inner = path.relative_to(tree).as_posix()
            assert wheel.read(f"drr2ct/{inner}") == path.read_bytes(), inner
            content = sdist.extractfile(names[inner])
            assert content is not None and content.read() == path.read_bytes(), inner
        assert "drr2ct/pipeline/data/sample/dataset.json" in wheel.namelist()
        assert "drr2ct/pipeline/reports/assets/model_card.md.j2" in wheel.namelist()
