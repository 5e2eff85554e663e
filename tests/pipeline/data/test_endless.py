"""Between patients: only the training's, registered once, kept by what they are."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from drr2ct.pipeline.data import endless
from drr2ct.pipeline.data.cache import CachedDataset
from drr2ct.pipeline.data.datalist import load_parts
from drr2ct.pipeline.data.endless import endless_variations, registered_patients
from drr2ct.pipeline.data.splitting import PARTS
from drr2ct.transforms import volume
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.varied.registration import RegisteredPatients, RegistrationSettings
from drr2ct.transforms.varied.scan import RandVaryd
from tests.files import chest, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=24)
QUICK = RegistrationSettings(spacing_mm=14.0, iterations=(4, 2), smoothing_mm=28.0, field_mm=40.0)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for i in range(6):
        affine = np.diag([10.0 - 0.2 * i, 10, 10 + 0.3 * i, 1])
        write_nifti(tmp_path / "data" / f"p{i}" / f"p{i}.nii.gz", chest(seed=i), affine)
    return tmp_path / "data"


def kept(dataset: Path, cache: Path, part: str = "training") -> CachedDataset:
    return CachedDataset(load_parts(dataset)[part], files_to_kept(GEOMETRY), cache)


def fields_of(patients: RegisteredPatients) -> dict[str, torch.Tensor]:
    return {name: entry.to_patient.added for name, entry in patients.patients.items()}


class Registrations:
    """Counts them, and may stop one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> None:
        self.count = 0
        self.stop_at = stop_at
        real: Callable[..., object] = endless.register

        def counted(*arguments: object) -> object:
            self.count += 1
            if self.count == self.stop_at:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(endless, "register", counted)


def test_patients_of_other_parts_are_never_read_nor_led_to(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part: {item["patient"] for item in items} for part, items in load_parts(dataset).items()}
    read: set[str] = set()
    real = volume.LoadCT.__call__

    def noted(self: volume.LoadCT, path: str | Path, *more: object) -> object:
        read.add(Path(path).parent.name)
        return real(self, path, *more)

    monkeypatch.setattr(volume.LoadCT, "__call__", noted)
    steps = endless_variations(
        kept(dataset, tmp_path / "cache"), GEOMETRY, "between-patients", tmp_path / "reg", variation={"towards": 0.9}
    )
    anatomies = next(step for step in steps.flatten().transforms if isinstance(step, RandVaryd))._vary.anatomies
    assert isinstance(anatomies, RegisteredPatients)
    assert anatomies.patients.keys() == parts["training"] == read
    for patient in parts["training"]:
        assert set(anatomies.others(patient)) == parts["training"] - {patient}
    for part in PARTS[1:]:
        for patient in parts[part]:
            assert anatomies.others(patient) == []
            with pytest.raises(KeyError):
                anatomies.way(next(iter(parts["training"])), patient, 0.5)
    # with other patients in those parts the same comes out
    for part in PARTS[1:]:
        for patient in parts[part]:
            write_nifti(dataset / patient / f"{patient}.nii.gz", -chest(seed=99), np.diag([5.0, 5, 5, 1]))
    again = registered_patients(kept(dataset, tmp_path / "other"), tmp_path / "elsewhere")
    for name, field in fields_of(again).items():
        assert torch.equal(field, anatomies.patients[name].to_patient.added)


def test_what_was_registered_is_kept_and_an_interruption_loses_one_at_most(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = kept(dataset, tmp_path / "cache"), tmp_path / "reg"
    count = len(data) - 1
    stopped = Registrations(monkeypatch, stop_at=3)
    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        registered_patients(data, folder, QUICK, Console(file=said))
    assert f"registering {count} CTs" in said.getvalue()
    assert len(list(folder.glob("*.pt"))) == 2 == len(list(folder.iterdir()))
    stopped.stop_at = 0
    first = registered_patients(data, folder, QUICK)
    assert stopped.count == 3 + count - 2
    quiet = io.StringIO()
    second = registered_patients(data, folder, QUICK, Console(file=quiet))
    assert stopped.count == 3 + count - 2 and quiet.getvalue() == ""
    for name, field in fields_of(first).items():
        assert torch.equal(field, fields_of(second)[name])
    # a damaged one is made again; so are those of other settings, and of a CT that was exchanged
    next(folder.glob("*.pt")).write_bytes(b"half")
    registered_patients(data, folder, QUICK)
    assert stopped.count == 4 + count - 2
    registered_patients(data, folder, RegistrationSettings(14.0, (4, 3), 28.0, 40.0))
    assert stopped.count == 4 + 2 * count - 2


def test_stored_radiographs_are_left_aside_and_it_is_said(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = kept(dataset, tmp_path / "cache")
    data.data[0]["image"] = ["pa.png", "lat.png"]  # not even looked for
    with caplog.at_level(logging.WARNING):
        steps = endless_variations(data, GEOMETRY, "within-patients", tmp_path)
    assert "1 training patients have stored radiographs" in caplog.text and "rendered" in caplog.text
    assert steps(data[0])["image"].shape == (2, 24, 24)


def test_parts_of_other_patients_come_from_their_kept_cts(dataset: Path, tmp_path: Path) -> None:
    data = kept(dataset, tmp_path / "cache")

    def made(graft: float) -> torch.Tensor:
        variation = {"graft": graft}
        steps = endless_variations(data, GEOMETRY, "between-patients", tmp_path / "reg", variation=variation)
        steps = pickle.loads(pickle.dumps(steps))  # as a loading process gets it
        steps.set_random_state(5)
        sample = steps(data[0])
        return torch.cat([sample["label"].flatten(), sample["image"].flatten()])

    without, with_graft = made(0.0), made(1.0)
    assert torch.equal(with_graft, made(1.0)) and not torch.allclose(with_graft, without, atol=1e-2)


def test_mistakes_are_one_sentence(dataset: Path, tmp_path: Path) -> None:
    data = kept(dataset, tmp_path / "cache")
    with pytest.raises(InputError, match=r"vary is 'between'; choose .*between-patients"):
        endless_variations(data, GEOMETRY, "between", tmp_path)
    with pytest.raises(InputError, match="variation has no scael; choose from rotation_deg"):
        endless_variations(data, GEOMETRY, "within-patients", tmp_path, variation={"scael": 0.1})
    with pytest.raises(InputError, match="graft is 7; give how often"):
        endless_variations(data, GEOMETRY, "between-patients", tmp_path, variation={"graft": 7})
    with pytest.raises(InputError, match="a variation by other patients needs their registration"):
        endless_variations(data, GEOMETRY, "within-patients", tmp_path, variation={"graft": 0.5})
    one = CachedDataset(data.data[:1], files_to_kept(GEOMETRY), tmp_path / "cache")
    with pytest.raises(InputError, match="two or more"):
        endless_variations(one, GEOMETRY, "between-patients", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"registration folder .* cannot be written"):
        registered_patients(data, tmp_path / "file" / "registration", QUICK)


def test_a_ct_that_cannot_be_read_is_left_out_and_named(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = kept(dataset, tmp_path / "cache")
    bad = data.data[0]["patient"]
    Path(data.data[0]["label"]).write_bytes(b"no CT")  # after the list was made
    fresh = CachedDataset(data.data, files_to_kept(GEOMETRY), tmp_path / "fresh")
    found = registered_patients(fresh, tmp_path / "reg", QUICK)
    assert bad not in found.patients and len(found.patients) == len(data) - 1
    assert f"patient {bad} is left out" in caplog.text
