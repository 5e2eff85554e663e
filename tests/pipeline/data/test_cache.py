from __future__ import annotations

import itertools
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, Invertd, RandShiftIntensityd

from drr2ct.pipeline.data import cache
from drr2ct.pipeline.data.cache import AugmentedDataset, CachedDataset, decoded, encoded, fingerprint
from drr2ct.pipeline.data.loading import PatientLoader, SeededSamples
from drr2ct.transforms.films.noise import RandQuantumNoised
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_kept, files_to_samples, kept_to_samples
from drr2ct.transforms.validation import InputError
from drr2ct.transforms.volume import HU_WINDOW
from tests.files import chest, write_nifti

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=24)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    root = tmp_path_factory.mktemp("cts")
    paths = [write_nifti(root / f"p{i}.nii.gz", chest(seed=i)) for i in range(2)]
    return [{"patient": path.name, "label": str(path)} for path in paths]


class Counting:
    """A transform of the files that counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        real = CachedDataset._pre_transform

        def counted(dataset: CachedDataset, item: object) -> object:
            self.calls += 1
            return real(dataset, item)

        monkeypatch.setattr(CachedDataset, "_pre_transform", counted)


def test_a_cached_sample_is_the_one_that_was_computed(items, tmp_path, monkeypatch) -> None:
    counting = Counting(monkeypatch)
    transform = files_to_samples(GEOMETRY)
    first = CachedDataset(items, transform, tmp_path)[0]
    second = CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)[0]
    assert counting.calls == 1
    assert torch.equal(first["label"], second["label"]) and torch.equal(first["image"], second["image"])
    exact = transform(items[0])
    assert second["label"].dtype == torch.float32
    width = HU_WINDOW[1] - HU_WINDOW[0]
    assert float((second["label"] - exact["label"]).abs().max()) * width <= 0.0626, "HU"
    assert float((second["image"] - exact["image"]).abs().max()) <= 1.53e-5 * float(exact["image"].max())
    assert torch.equal(second["label"] == 0, exact["label"] == 0), "air stays exact"


def test_metadata_still_lead_back_to_the_ct(items, tmp_path) -> None:
    for _ in range(2):
        transform = files_to_samples(GEOMETRY)
        sample = CachedDataset(items, transform, tmp_path)[0]
        exact = transform(items[0])
        assert torch.equal(sample["label"].affine, exact["label"].affine)
        assert sample["label"].meta["isocentre"] == exact["label"].meta["isocentre"]
        restored, wanted = (
            Invertd("pred", transform, orig_keys="label", nearest_interp=False)(
                {"pred": MetaTensor(s["label"].as_tensor(), affine=s["label"].affine), "label": s["label"]}
            )["pred"]
            for s in (sample, exact)
        )
        assert restored.shape == wanted.shape == (1, 36, 32, 28)
        assert torch.allclose(restored.affine, wanted.affine)
        assert float((restored - wanted).abs().max()) < 0.1


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_sixteen_bits_err_by_half_a_step(values: np.ndarray) -> None:
    tensor = torch.from_numpy(values)
    found = decoded(encoded({"x": tensor, "n": 3}))
    assert found["n"] == 3 and found["x"].shape == tensor.shape
    assert float((found["x"] - tensor).abs().max()) <= float(tensor.abs().max()) * (0.5 / 32767 + 2e-7) + 1e-35


def test_every_file_and_setting_is_in_the_key(items, tmp_path, monkeypatch) -> None:
    def entries() -> int:
        return len(list(tmp_path.glob("*.pt")))

    CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)[0]
    others = [
        files_to_samples(BiplanarGeometry.from_angles(VolumeGrid(16, 300.0), detector_size=24)),
        files_to_samples(BiplanarGeometry.from_angles(VolumeGrid(16), (0.0, 80.0), detector_size=24)),
        files_to_samples(GEOMETRY, mode="resize"),
        files_to_samples(GEOMETRY, keep_metadata=False),
        files_to_samples(GEOMETRY, intensity="transmission"),
        files_to_samples(GEOMETRY, feet_first=True),
    ]
    for i, transform in enumerate(others):
        CachedDataset(items, transform, tmp_path)[0]
        assert entries() == i + 2
    os.utime(items[0]["label"], (0, 0))
    CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)[0]
    assert entries() == len(others) + 2
    monkeypatch.setattr(cache, "_code", lambda: "changed")
    CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)[0]
    assert entries() == len(others) + 3


def test_a_fingerprint_does_not_change_between_processes() -> None:
    about = str(fingerprint(files_to_samples(GEOMETRY).transforms))
    assert "0x" not in about, "an address would make every process start a cache of its own"
    assert "fov_mm" in about and "BiplanarGeometry" in about


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped", "other", "code"])
def test_a_damaged_entry_is_computed_again(items, tmp_path, caplog, damage) -> None:
    dataset = CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)
    wanted = dataset[0]
    (entry,) = tmp_path.glob("*.pt")
    good = entry.read_bytes()
    if damage == "flipped":  # one bit of the CT, which the container does not notice
        stored = torch.load(entry, weights_only=True)
        levels = stored["entries"]["label"]["levels"].numpy().tobytes()
        at = good.index(levels) + len(levels) // 2
        entry.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
    elif damage == "other":
        torch.save([1, 2], entry)
    elif damage == "code":
        torch.save({"entries": {"label": Path}}, entry)
    else:
        entry.write_bytes({"empty": b"", "cut": good[: len(good) // 2], "garbage": b"x" * 5000}[damage])
    found = dataset[0]
    assert "is damaged" in caplog.text
    assert torch.equal(found["label"], wanted["label"])
    assert entry.read_bytes() == good


def test_writers_do_not_disturb_each_other(items, tmp_path) -> None:
    wanted = files_to_samples(GEOMETRY)(items[0])["image"]
    found: list[torch.Tensor] = []

    def read() -> None:
        found.append(CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)[0]["image"])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(image, found[0]) for image in found)
    assert torch.allclose(found[0], wanted, atol=1e-4)
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"], "one entry, and nothing half written"


def test_a_full_disk_is_one_sentence(items, tmp_path) -> None:
    dataset = CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(InputError, match=r"is full .* a sample takes 0\.0 MiB, all 2 take .*set cache_dir") as full:
            dataset[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(full.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(items, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        CachedDataset(items, files_to_samples(GEOMETRY), tmp_path / "file" / "cache")


def augmentation() -> Compose:
    return Compose(
        [
            kept_to_samples(GEOMETRY, prob=0.7),
            RandShiftIntensityd("image", 0.03, prob=0.5, channel_wise=True),
            RandQuantumNoised("image", prob=0.5),
        ]
    )


def test_a_variation_follows_from_seed_epoch_and_index_alone(items, tmp_path) -> None:
    cached = CachedDataset(items, files_to_kept(GEOMETRY), tmp_path)

    def varied(seed: int, epoch: int, index: int, detours: int = 0) -> torch.Tensor:
        samples = SeededSamples(AugmentedDataset(cached, augmentation()), seed, "stop")
        for i in range(detours):
            samples[i, i % 2]
        sample = samples[epoch, index]
        assert not any(isinstance(value, MetaTensor) for value in sample.values())
        return torch.cat([sample["label"].flatten(), sample["image"].flatten()])

    reference = varied(3, 5, 1)
    assert torch.equal(reference, varied(3, 5, 1, detours=5))
    assert not torch.equal(reference, varied(4, 5, 1))
    assert not torch.equal(reference, varied(3, 6, 1))
    assert not torch.equal(varied(3, 5, 0) - varied(3, 6, 0), varied(3, 5, 1) - varied(3, 6, 1))


def test_workers_vary_alike_and_follow_the_epoch(items, tmp_path) -> None:
    dataset = AugmentedDataset(CachedDataset(items, files_to_kept(GEOMETRY), tmp_path), augmentation())
    loader = PatientLoader(dataset, seed=1, num_workers=1, persistent_workers=True)
    alone = SeededSamples(dataset, 1, "stop")
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        for index, batch in enumerate(loader):
            assert torch.equal(batch["label"][0], alone[epoch, index]["label"])
            assert torch.equal(batch["image"][0], alone[epoch, index]["image"])


def test_an_epoch_may_have_several_variations_of_each(items, tmp_path) -> None:
    cached = CachedDataset(items, files_to_kept(GEOMETRY), tmp_path)
    dataset = AugmentedDataset(cached, kept_to_samples(GEOMETRY), repeats=3)
    samples = SeededSamples(dataset, 0, "stop")
    assert len(samples) == 6
    three = [samples[1, index] for index in (0, 2, 4)]
    assert {sample["patient"] for sample in three} == {items[0]["patient"]}
    for one, other in itertools.pairwise(three):
        assert not torch.equal(one["label"], other["label"])
    assert samples._patient(5) == items[1]["patient"]
    with pytest.raises(InputError, match="at least 1"):
        AugmentedDataset(cached, repeats=0)


def test_what_varies_takes_no_more_memory(items, tmp_path) -> None:
    """Every sample has other shapes; nothing may be kept for each."""
    samples = SeededSamples(
        AugmentedDataset(CachedDataset(items, files_to_kept(GEOMETRY), tmp_path), augmentation()), 0, "stop"
    )
    for epoch in range(40):
        samples[epoch, epoch % 2]
    before = resident_bytes()
    for epoch in range(40, 160):
        samples[epoch, epoch % 2]
    assert resident_bytes() - before < 8 * 2**20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_without_augmentation_samples_stay_as_they_are(items, tmp_path) -> None:
    cached = CachedDataset(items, files_to_samples(GEOMETRY), tmp_path)
    plain = AugmentedDataset(cached)
    assert len(plain) == 2
    assert torch.equal(plain[1]["label"], cached[1]["label"].as_tensor())
    assert not isinstance(plain[1]["label"], MetaTensor)
    with pytest.raises(InputError, match="cannot be seeded"):
        AugmentedDataset(cached, lambda sample: sample)


def test_patients_that_are_left_out_have_others_in_their_place() -> None:
    items = [{"patient": name, "image": torch.full((1,), float(i))} for i, name in enumerate("abcd")]
    loader = PatientLoader(Dataset(items), shuffle=True, seed=3)
    before = [float(batch["image"]) for batch in loader]
    loader.leave_out(["b", "c"])
    after = [float(batch["image"]) for batch in loader]
    assert sorted(before) == [0, 1, 2, 3]
    assert after == [3.0 if value in (1, 2) else value for value in before]
