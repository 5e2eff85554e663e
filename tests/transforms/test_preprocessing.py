import numpy as np
import pytest
import torch
from monai.data import list_data_collate

from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.radiographs.loading import LoadRadiographsd
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.validation import InputError

GEOMETRY = BiplanarGeometry.from_angles(VolumeGrid(16), detector_size=24)


@pytest.fixture
def item(tmp_path):
    images = torch.rand(2, 48, 40, generator=torch.Generator().manual_seed(0)) * 4
    for image, name in zip(images, ("pa", "lat"), strict=True):
        write_radiograph(tmp_path / f"{name}.nii.gz", image, pitch_mm=9.0)
    return {"patient": "p", "image": [str(tmp_path / f"{name}.nii.gz") for name in ("pa", "lat")]}


def test_options_reach_the_loader_and_assumptions_the_sample(item):
    chain = files_to_samples(GEOMETRY, with_ct=False, fit="pitch", check_order=False, source_to_detector_mm=1500.0)
    sample = chain(item)
    assert set(sample) == {"image", "covered", "patient", "assumptions", "warnings"} and bool(sample["covered"].any())
    assert sample["image"].shape == (2, 24, 24) and type(sample["image"]) is torch.Tensor
    sentences = sample["assumptions"].split("\n")
    assert any("pa.nii.gz does not state where the patient stood" in sentence for sentence in sentences)
    # samples with different numbers of sentences are batched
    batch = list_data_collate([sample, {**sample, "assumptions": ""}])
    assert batch["assumptions"] == [sample["assumptions"], ""]
    with pytest.raises(TypeError):
        files_to_samples(GEOMETRY, with_ct=False, pitch_mm=1.0)


def test_stored_drrs_are_the_numbers_in_the_file(tmp_path, item):
    with pytest.raises(InputError, match="48×40"):
        LoadRadiographsd("image", GEOMETRY, "line_integral")(item)
    images = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(1)) * 4
    for image, path in zip(images, item["image"], strict=True):
        write_radiograph(path, image)  # with no pitch worth the name
    for options in ({}, {"fit": "pitch"}):
        sample = files_to_samples(GEOMETRY, with_ct=False, check_order=False, **options)(item)
        np.testing.assert_array_equal(sample["image"], images * np.float32(1 / LINE_INTEGRAL_SCALE))
