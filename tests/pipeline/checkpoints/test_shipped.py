"""Which weights a command takes: given ones, a shipped network by name, or the finest that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from drr2ct.pipeline.checkpoints import shipped
from drr2ct.pipeline.checkpoints.shipped import chosen_weights, models_folder, shipped_networks, weights_file
from drr2ct.transforms.validation import InputError


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the installed bundle ships, for these tests."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setattr(shipped, "models_folder", lambda root=None: folder)
    return folder


def test_the_finest_that_is_there_is_the_default(models: Path) -> None:
    for name in ("cascade64", "stranger", "cascade256", "cascade128"):
        (models / f"{name}.safetensors").touch()
    assert list(shipped_networks(models)) == ["cascade256", "cascade128", "cascade64"]
    assert weights_file() == models / "cascade256.safetensors"
    (models / "cascade256.safetensors").unlink()
    assert chosen_weights() == models / "cascade128.safetensors"
    assert chosen_weights(model="cascade64") == models / "cascade64.safetensors"
    assert chosen_weights("last.pt") == Path("last.pt")


def test_what_cannot_be_chosen_is_said(models: Path) -> None:
    assert weights_file() is None, "a bundle without weights opens"
    with pytest.raises(InputError, match=r"no network is shipped .* give a checkpoint"):
        chosen_weights()
    with pytest.raises(InputError, match=r"cascade64 is not shipped here \(shipped: none\)"):
        weights_file(model="cascade64")
    (models / "cascade128.safetensors").touch()
    with pytest.raises(InputError, match=r"cascade64 is not shipped here \(shipped: cascade128\)"):
        weights_file(model="cascade64")
    with pytest.raises(InputError, match=r"last\.pt and the shipped network cascade128 cannot both"):
        weights_file("last.pt", "cascade128")


def test_a_bundle_elsewhere_ships_its_own(tmp_path: Path) -> None:
    installed = models_folder()
    assert installed.parts[-3:] == ("bundles", "biplanar_ct", "models")
    assert models_folder(tmp_path) == installed, "no bundle"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").touch()
    assert models_folder(tmp_path) == installed, "a bundle that ships nothing"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cascade64.safetensors").touch()
    assert models_folder(tmp_path) == tmp_path / "models"
    assert weights_file(bundle_root=tmp_path) == tmp_path / "models" / "cascade64.safetensors"
