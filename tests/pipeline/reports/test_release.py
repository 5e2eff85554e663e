"""What is shipped of a training: the very weights, all that is said of them, and figures that were measured of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from drr2ct.networks import network_config
from drr2ct.pipeline.checkpoints.description import network_sentence, training_seconds
from drr2ct.pipeline.checkpoints.ensemble import join
from drr2ct.pipeline.checkpoints.files import DamagedCheckpointError, read_checkpoint, weights_sha256, write_checkpoint
from drr2ct.pipeline.checkpoints.networks import load_network
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.reports import release as module
from drr2ct.pipeline.reports.release import refresh, release
from drr2ct.transforms.validation import InputError
from tests.shipping import PATIENTS, make_bundle, make_evaluation, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", vary="between-patients")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metadata_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text())


def model_of(weights: Path) -> dict[str, Any]:
    content = read_checkpoint(weights)
    about = content["description"]
    digest = weights_sha256(content["network"])
    return {
        "name": about["name"],
        "geometry": about["config"]["geometry"],
        "weights_sha256": digest,
        "checkpoint": str(weights),
    }


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def test_weights_are_shipped_bit_for_bit_with_all_that_is_said_of_them(run: Path, bundle: Path) -> None:
    written = release(run, "cascade64", bundle)
    trained = read_checkpoint(run / "checkpoints" / "best_psnr.pt")
    shipped = read_checkpoint(bundle / "models" / "cascade64.safetensors")
    ours = {key: value for key, value in shipped["description"].items() if key not in ("released", "training")}
    assert ours == json.loads(json.dumps(trained["description"])), "calibration and all"
    network = load_network(bundle / "models" / "cascade64.safetensors").state_dict()
    plain = torch.load(bundle / "models" / "model.pt", weights_only=True)
    for found in (network, plain):
        assert found.keys() == trained["network"].keys()
        assert all(torch.equal(value, found[name]) for name, value in trained["network"].items())
    assert {path.name for path in written} == {
        "cascade64.safetensors", "cascade64.json", "model.pt", "README.md", "metadata.json",
    }  # fmt: skip
    card = (bundle / "models" / "README.md").read_text()
    digest = hashlib.sha256((bundle / "models" / "cascade64.safetensors").read_bytes()).hexdigest()
    assert f"{digest}  cascade64.safetensors" in card and "Made up, doi" in card and "CC BY 4.0" in card
    assert "kept as they came: `encoder.*`" in card and "time of its own training: 30 s" in card
    assert "psnr 20" in card and "Robustness" not in card and "eval_metrics" not in metadata_of(bundle)
    before = contents(bundle)
    release(run, "cascade64", bundle)
    assert contents(bundle) == before


def test_voxels_finer_than_the_cts_are_told(run: Path, bundle: Path) -> None:
    sources = bundle / "models" / "data.yaml"
    release(run, "cascade64", bundle)
    assert "it could learn nothing" not in (bundle / "models" / "README.md").read_text()
    sources.write_text(sources.read_text().replace("spacing_mm: 2.0", "spacing_mm: 100.0"))
    release(run, "cascade64", bundle)
    assert "smaller than twice 100 mm it could learn nothing" in (bundle / "models" / "README.md").read_text()
    sources.write_text(sources.read_text().replace("spacing_mm: 100.0", "spacing_mm: fine"))
    with pytest.raises(InputError, match="it needs source, changes, spacing_mm"):
        release(run, "cascade64", bundle)


def test_a_changed_description_is_refused(run: Path, bundle: Path) -> None:
    release(run, "cascade64", bundle)
    path = bundle / "models" / "cascade64.safetensors"
    raw = path.read_bytes()
    assert raw.count(b"between-patients") == 1
    path.write_bytes(raw.replace(b"between-patients", b"between-impatien"))
    with pytest.raises(DamagedCheckpointError, match="checksum"):
        refresh(bundle)


def test_how_long_it_was_trained_is_added_up_from_the_records(run: Path, bundle: Path, tmp_path: Path) -> None:
    release(run, "cascade64", bundle)
    about = read_checkpoint(bundle / "models" / "cascade64.safetensors")["description"]
    assert training_seconds(about) == 30, "two epochs of three, without validation"
    assert about["training"]["loss"] == {"l1": 1.0, "reprojection": 0.1}
    assert "as shipped" in network_sentence(about) and "for 30 s" in network_sentence(about)
    link = tmp_path / "begin" / "0.pt"
    link.parent.mkdir()
    link.symlink_to(run / "checkpoints" / "best_psnr.pt")
    begun = ((run / "checkpoints" / "best_psnr.pt", 60), (tmp_path / "gone.pt", None), (link, 60))
    for number, (before, known) in enumerate(begun):
        finer = make_run(tmp_path / f"finer{number}", "cascade128", transfer_from=str(before))
        release(finer, "cascade128", bundle)
        about = read_checkpoint(bundle / "models" / "cascade128.safetensors")["description"]
        assert training_seconds(about) == known
    # two that began alike: what they share counts once
    finer = make_run(
        tmp_path / "joined", "cascade128", transfer_from=[str(bundle / "models" / "cascade128.safetensors"), str(link)]
    )
    release(finer, "cascade128", bundle)
    about = read_checkpoint(bundle / "models" / "cascade128.safetensors")["description"]
    assert training_seconds(about) == 90
    card = (bundle / "models" / "README.md").read_text()
    assert (
        "began with the weights of: cascade128, after 60 s" in card
        and "began with the weights of: cascade64, after 30 s" in card
    )
    # from the shipped file, after its run is gone
    last = make_run(tmp_path / "last", transfer_from=str(bundle / "models" / "cascade64.safetensors"), seed=1)
    release(last, "cascade64", bundle)
    assert training_seconds(read_checkpoint(bundle / "models" / "cascade64.safetensors")["description"]) == 60


def test_the_members_of_an_ensemble_are_told_with_their_time(run: Path, bundle: Path, tmp_path: Path) -> None:
    runs = [run, *(make_run(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2))]
    first, *others = (folder / "checkpoints" / "best_psnr.pt" for folder in runs)
    joined = tmp_path / "joined.pt"
    join(first, others, joined)
    left_out = make_evaluation(tmp_path / "left_out", model_of(others[0]), {"new": {"psnr": 21.0}})
    release(run, "cascade64", bundle, left_out=[left_out])
    assert "1 network of the recipe of cascade64, each judged" in (bundle / "models" / "README.md").read_text()
    release(joined, "cascade64", bundle, same_recipe=True)
    about = read_checkpoint(bundle / "models" / "cascade64.safetensors")["description"]
    assert training_seconds(about) == 90
    card = (bundle / "models" / "README.md").read_text()
    assert (
        "what its own and those of 2 further networks of the same recipe agree on, trained for 30 s and 30 s\n" in card
    )
    assert "patients are varied: between patients" in card, "the first one's recipe"
    assert ", beside 1 process that made samples" in card
    assert "1 network of the recipe of cascade64, of 1 instead of 3 members, each judged" in card
    # a finer network that begins with them
    finer = make_run(tmp_path / "finer", "cascade128", transfer_from=str(joined))
    release(finer, "cascade128", bundle)
    assert training_seconds(read_checkpoint(bundle / "models" / "cascade128.safetensors")["description"]) == 120
    card = (bundle / "models" / "README.md").read_text()
    assert card.count("those of 2 further networks of the same recipe agree on, trained for 30 s and 30 s\n") == 2
    # on films, where the further ones saw none
    release(
        make_run(tmp_path / "films", "cascade128", transfer_from=str(joined), augmentation={}), "cascade128", bundle
    )
    assert "trained for 30 s and 30 s, 2 of them without films\n" in (bundle / "models" / "README.md").read_text()


def test_the_finest_network_is_monais(run: Path, bundle: Path, tmp_path: Path) -> None:
    release(make_run(tmp_path / "finer", "cascade128"), "cascade128", bundle)
    release(run, "cascade64", bundle)
    finer = read_checkpoint(bundle / "models" / "cascade128.safetensors")["network"]
    assert same(finer, torch.load(bundle / "models" / "model.pt", weights_only=True))
    formats = metadata_of(bundle)["network_data_format"]
    geometry = network_config("cascade128").geometry
    assert formats["inputs"]["image"]["spatial_shape"] == list(geometry.detector_size)
    assert formats["outputs"]["pred"]["spatial_shape"] == [128] * 3
    assert formats["outputs"]["pred"]["num_channels"] == 1
    card = (bundle / "models" / "README.md").read_text()
    assert card.index("## cascade128") < card.index("## cascade64") and "**cascade128**" in card


def test_calibrated_bounds_are_shipped_with_whom_they_rest_on(bundle: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "bounds", interval=True)
    content = read_checkpoint(run / "checkpoints" / "best_psnr.pt")
    calibration = {
        "level": 0.9,
        "patients": ["p3", "p4"],
        "uncalibrated": {"mean": 0.825, "least": 0.8, "most": 0.85},
        "left_out": {"mean": 0.859, "least": 0.82, "most": 0.898},
    }
    content["description"]["interval"] = calibration
    calibrated = run / "checkpoints" / "calibrated.pt"
    write_checkpoint(calibrated, content)
    release(calibrated, "cascade64", bundle)
    card = (bundle / "models" / "README.md").read_text()
    line = next(line for line in card.splitlines() if "bounds calibrated on" in line)
    for part in ("p3, p4", "90% of a body", "82.5% before", "85.9% of each (82.0% to 89.8%)"):
        assert part in line
    assert "time of its own training: 30 s" in card  # its run is found from the file
    assert metadata_of(bundle)["network_data_format"]["outputs"]["pred"]["num_channels"] == 3


def test_figures_are_those_of_evaluations_of_these_weights(run: Path, bundle: Path, tmp_path: Path) -> None:
    release(run, "cascade64", bundle)
    shipped = bundle / "models" / "cascade64.safetensors"
    found = {
        PATIENTS[-1]: {"psnr": 24.25, "ssim": 0.5, "mae_hu": 80.0, "dice_bone": None},
        "new": {"psnr": 21.0, "ssim": 0.25, "mae_hu": 100.0, "dice_bone": None},
        "newer": {"psnr": 22.0, "ssim": 0.75, "mae_hu": 110.0, "dice_bone": None},
    }
    good = make_evaluation(tmp_path / "good", model_of(shipped), found)
    other = make_evaluation(
        tmp_path / "other", model_of(make_run(tmp_path / "o", seed=5) / "checkpoints/best_psnr.pt"), found
    )
    before = contents(bundle)
    with pytest.raises(InputError, match="not of the weights that are released"):
        release(shipped, "cascade64", bundle, [good, other])
    assert contents(bundle) == before
    release(shipped, "cascade64", bundle, [good])
    assert metadata_of(bundle)["eval_metrics"] == {
        "validation_patients": 1, "validation_psnr": 24.25, "validation_ssim": 0.5, "validation_mae_hu": 80.0,
        "unseen_patients": 2, "unseen_psnr": 21.5, "unseen_ssim": 0.5, "unseen_mae_hu": 105.0,
    }  # fmt: skip
    card = (bundle / "models" / "README.md").read_text()
    assert f"| {PATIENTS[-1]} | 24.25 | 0.500 | 80.0 |" in card and "| **mean** | 21.50 | 0.500 | 105.0 |" in card
    assert "| *baseline: mean of the training CTs* | 10.00 |  |  |" in card
    assert "Dice" not in card, "nobody has it"
    assert read_checkpoint(shipped)["description"]["training"]["seconds"] == 30, "still known"
    # patients left out, by a network of the same kind
    release(shipped, "cascade64", bundle, left_out=[other])
    card = (bundle / "models" / "README.md").read_text()
    assert "| new | 21.00 |" in card and "Left out: 1 network of the recipe" in card
    assert "each judged on others' patients; trained for 30 s (the shipped one: 30 s)" in card
    with pytest.raises(InputError, match="is not of another cascade64"):
        release(shipped, "cascade64", bundle, left_out=[good])
    # other weights under the name: what was measured of those before does not hold, but who was left out of the recipe
    release(make_run(tmp_path / "longer", seed=4), "cascade64", bundle, same_recipe=True)
    card = (bundle / "models" / "README.md").read_text()
    assert "| new | 21.00 |" in card and "eval_metrics" not in metadata_of(bundle)
    release(make_run(tmp_path / "more", seed=3), "cascade64", bundle)
    assert not any(figure in (bundle / "models" / "README.md").read_text() for figure in ("21.50", "21.00"))
    assert "eval_metrics" not in metadata_of(bundle)


def test_robustness_is_that_of_these_weights(run: Path, bundle: Path, tmp_path: Path) -> None:
    release(run, "cascade64", bundle)
    model = model_of(bundle / "models" / "cascade64.safetensors")
    means = {"psnr": 20.0, "ssim": 0.5, "mae_hu": 90.0}
    entries = [
        {"condition": "clean", "value": None, "unit": "", "patients": [{}, {}], "means": means, "psnr_change": None},
        {"condition": "view_angle", "value": -5, "unit": "deg", "patients": [{}, {}], "means": means,
         "psnr_change": {"difference": -0.5}},
    ]  # fmt: skip
    (tmp_path / "rob").mkdir()
    path = tmp_path / "rob" / "robustness.json"
    path.write_text(json.dumps({"format": 1, "model": {**model, "weights_sha256": "other"}, "conditions": entries}))
    with pytest.raises(InputError, match="not of the weights"):
        release(run, "cascade64", bundle, robustness=tmp_path / "rob")
    path.write_text(json.dumps({"format": 1, "conditions": entries}))
    with pytest.raises(InputError, match="does not say of which weights"):
        release(run, "cascade64", bundle, robustness=tmp_path / "rob")
    path.write_text(json.dumps({"format": 1, "model": model, "conditions": entries}))
    release(run, "cascade64", bundle, robustness=tmp_path / "rob")
    assert "| view angle | −5 deg | 20.00 | 0.500 | 90.0 | −0.50 |" in (bundle / "models" / "README.md").read_text()


def test_what_cannot_be_shipped(run: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(bundle)
    content = read_checkpoint(run / "checkpoints" / "best_psnr.pt")

    def refused(says: str, source: Path = run, name: str = "cascade64", root: Path = bundle) -> None:
        with pytest.raises(InputError, match=says):
            release(source, name, root)
        assert contents(bundle) == before

    def variant(**description: Any) -> Path:
        path = tmp_path / "variant.pt"
        torch.save({**content, "description": {**content["description"], **description}}, path)
        return path

    refused("is of cascade64; it cannot be shipped as cascade128", name="cascade128")
    refused("gives 64³ voxels; cascade128 is shipped with 128³", variant(name="cascade128"), "cascade128")
    refused("nothing is said of where p9 come from", variant(patients={"training": ["p0", "p9"], "validation": []}))
    sample = {"training": [sample_ct().parent.name], "validation": []}
    refused("the demonstration's patient", variant(patients=sample))
    refused(r"holds no checkpoints/best_psnr\.pt", tmp_path)
    refused("is no bundle", root=tmp_path)
    monkeypatch.setattr(module, "LARGEST_BYTES", 1000)
    refused("a shipped file may have")
