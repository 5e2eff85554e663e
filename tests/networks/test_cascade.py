import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.utils import convert_to_onnx, convert_to_torchscript
from torch.utils.flop_counter import FlopCounterMode

from drr2ct.networks import (
    CascadeConfig,
    ProgressiveCascade,
    SkipConfig,
    StageConfig,
    create_network,
    list_networks,
    network_config,
)
from drr2ct.networks.blocks import OUTPUT_BIAS, Upsample
from drr2ct.networks.ensemble import agreed_and_spread
from drr2ct.transforms.geometry import BiplanarGeometry, VolumeGrid
from drr2ct.transforms.validation import InputError

NAMES = ["cascade128", "cascade256", "cascade64", "direct128", "direct256", "direct256_draft"]


def tiny(name: str = "cascade64", **overrides) -> ProgressiveCascade:
    torch.manual_seed(0)
    size = 8 if name == "direct128" else 16  # its 17 million weights take a while
    return create_network(name, **{"size": size, "detector_size": 32, **overrides})


def thin(**overrides) -> ProgressiveCascade:
    """Every option of ours in a network that takes milliseconds."""
    stages = (StageConfig(8, scale=1, growth=4, layers=2, lift_channels=4), StageConfig(8, growth=4, layers=2))
    return tiny(**{"stages": stages, "encoder_channels": (8,), "volume_channels": 4, **overrides})


def narrow_direct128(**overrides) -> ProgressiveCascade:
    """Every option of direct128 in a network that takes milliseconds, also where bfloat16 is emulated."""
    stage = StageConfig(16, norm_groups=4, growth=4, layers=4)
    narrow = {
        "stages": (stage, stage, replace(stage, blocks=2)),
        "encoder_channels": (8, 8, 16, 16),
        "encoder_norm_groups": (2, 2, 4, 4),
        "fuse_norm_groups": 4,
        "skips": tuple(SkipConfig(stage, 8, kernel=3, norm_groups=4) for stage in (0, 1)),
        "skip_fusion_channels": 16,
        "skip_fusion_norm_groups": 4,
        "refinement_blocks": 1,
        "refinement_growth": 4,
        "refinement": ((8, 4), (8, 4)),
    }
    return tiny("direct128", **narrow, **overrides)


def radiographs(network: ProgressiveCascade, batch: int = 1, seed: int = 1) -> torch.Tensor:
    geometry = network.config.geometry
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, len(geometry.views), *geometry.detector_size, generator=generator)


def on_meta(name: str) -> tuple[ProgressiveCascade, torch.Tensor]:
    with torch.device("meta"):
        network = create_network(name)
        return network, torch.zeros(1, 2, *network.config.geometry.detector_size)


def test_names() -> None:
    assert list_networks() == NAMES


@pytest.mark.parametrize(
    ("name", "parameters"), [("direct256_draft", 4_296_665), ("direct256", 2_675_489), ("direct128", 17_101_249)]
)
def test_direct_networks_have_the_parameters_of_their_originals(name: str, parameters: int) -> None:
    network, _ = on_meta(name)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_default_sizes(name: str) -> None:
    network, x = on_meta(name)
    size = int("".join(c for c in name.removesuffix("_draft") if c.isdigit()))
    assert network(x).shape == (1, 1, size, size, size)
    assert network.config.volume_size == 16
    assert network.config.geometry.detector_size == {"cascade64": (128, 128), "cascade128": (256, 256)}.get(
        name, (512, 512)
    )


@pytest.mark.parametrize(("name", "low", "high"), [("direct256", 29.5, 30.5), ("cascade256", 0, 2)])
def test_cost_of_a_forward_pass(name: str, low: float, high: float) -> None:
    network, x = on_meta(name)
    with FlopCounterMode(display=False) as counter:
        network(x)
    assert low < counter.get_total_flops() / 1e12 < high


def test_ours_grow_without_normalisation_but_where_a_volume_is_corrected() -> None:
    for name in NAMES:
        network, _ = on_meta(name)
        normalised = [any(isinstance(part, torch.nn.GroupNorm) for part in stage.modules()) for stage in network.stages]
        if name.startswith("direct"):
            assert all(normalised), name
        else:
            assert normalised == [stage.halvings > 0 for stage in network.config.stages], name


@pytest.mark.parametrize(
    ("name", "parameters"), [("cascade64", 327_600), ("cascade128", 935_640), ("cascade256", 953_636)]
)
def test_parameters_of_ours(name: str, parameters: int) -> None:
    assert sum(p.numel() for p in on_meta(name)[0].parameters()) == parameters


def test_ours_keeps_wide_maps_small() -> None:
    network, x = on_meta("cascade256")
    largest = {}
    for module in network.modules():
        module.register_forward_hook(
            lambda module, inputs, y: (
                largest.update({y.shape[-1]: max(largest.get(y.shape[-1], 0), y.shape[1])})
                if isinstance(y, torch.Tensor) and y.ndim == 5 and not module._get_name().endswith("Lift")
                else None
            )
        )
    network(x)
    assert largest[256] == 1
    assert largest[128] <= 64


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in NAMES),
        ("cascade64", {"transformer_layers": 1}),
        ("cascade64", {"confidence": True}),
    ],
)
def test_shape_and_gradients_scaled_down(name: str, options: dict) -> None:
    network = tiny(name, **options)
    with torch.no_grad():
        for output in network.outputs[
            1:
        ]:  # add nothing in the beginning, so nothing before them is moved by the first step
            for parameter in output.parameters():
                parameter.normal_(std=0.01)
    edges = 3 * (network.config.geometry.grid.size,)
    y = network(radiographs(network, batch=2))
    assert y.shape == (2, 1, *edges)
    assert network.eval()(radiographs(network)).shape == (1, 1, *edges)
    assert abs(y.mean().item() - OUTPUT_BIAS) < 0.1
    assert y.std().item() < 0.2
    (y - torch.rand(y.shape)).square().mean().backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not dead


def test_direct256_at_64_keeps_its_stages() -> None:
    config = network_config("direct256", size=64)
    assert (config.volume_size, *config.stage_sizes) == (4, 8, 16, 32, 64)
    assert config.stages == network_config("direct256").stages
    assert config.geometry.grid.fov_mm == network_config("direct256").geometry.grid.fov_mm


@pytest.mark.parametrize("name", ["cascade64", "direct256"])
@pytest.mark.parametrize("angles_deg", [(0.0,), (30.0, 95.0), (0.0, 60.0, 120.0)])
@pytest.mark.parametrize("detector", [(32, 32), (24, 45)])
def test_any_number_of_views_and_detectors_that_are_not_square(
    name: str, angles_deg: tuple[float, ...], detector: tuple[int, int]
) -> None:
    geometry = BiplanarGeometry.from_angles(VolumeGrid(16), angles_deg, detector_size=detector)
    network = create_network(name, geometry=geometry.to_dict())
    x = radiographs(network)
    assert x.shape == (1, len(angles_deg), *detector)
    assert network(x).shape == (1, 1, 16, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upsampling_is_trilinear_whatever_the_layout(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 4, 5, 6).to(dtype)
    expected = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)
    assert torch.equal(Upsample(2)(x), expected)


def test_every_view_is_used() -> None:
    for name in ("cascade64", "direct128"):
        network = tiny(name)
        x = radiographs(network).requires_grad_()
        network(x).square().sum().backward()
        assert x.grad is not None
        assert (x.grad[0].abs().amax(dim=(1, 2)) > 0).all()


def test_how_much_a_patient_attenuates_passes_the_normalisation() -> None:
    network = thin()
    for layer in network.encoder.down.modules():
        if isinstance(layer, torch.nn.GroupNorm):
            torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        flat = [network.encoder(torch.full((1, 2, 32, 32), value)) for value in (0.2, 0.4, 0.6)]
    for thin_patient, patient, thick_patient in zip(*flat, strict=True):
        inner = (..., slice(1, -1), slice(1, -1))  # the border is padded
        assert (patient - thin_patient)[inner].abs().amax() > 1e-3
        assert torch.allclose((patient - thin_patient)[inner], (thick_patient - patient)[inner], atol=1e-6)


def test_ours_depends_on_the_geometry_and_direct_does_not() -> None:
    grid = VolumeGrid(16)
    for name, differs in (("cascade64", True), ("direct256", False)):
        outputs = []
        for angles_deg in ((0.0, 90.0), (0.0, 60.0)):
            torch.manual_seed(0)
            network = create_network(
                name, geometry=BiplanarGeometry.from_angles(grid, angles_deg, detector_size=32, pixel_pitch_mm=20.0)
            )
            outputs.append(network(radiographs(network)))
        assert torch.allclose(*outputs, atol=1e-5) is not differs


def test_mirrored_radiographs_mirror_the_lift() -> None:
    """A patient mirrored left to right: the PA radiograph flips, the lateral one is seen from the other side."""
    sides = BiplanarGeometry.from_angles(VolumeGrid(16), (0.0, 90.0), detector_size=32)
    other = BiplanarGeometry.from_angles(VolumeGrid(16), (0.0, -90.0), detector_size=32)
    outputs = []
    for geometry in (sides, other):
        network = thin(geometry=geometry, detector_size=None, size=None)
        with torch.no_grad():
            for module in network.modules():
                # the same for a mirrored neighbourhood, so that only the lifting knows left from right
                if isinstance(module, torch.nn.Conv2d):
                    module.weight.add_(module.weight.flip(-1)).mul_(0.5)
                elif isinstance(module, torch.nn.Conv3d):
                    module.weight.add_(module.weight.flip(-3)).mul_(0.5)
            network.volume.add_(network.volume.flip(2))
            head = network.outputs[-1].conv_block
            head.weight.copy_(head.weight[:1].expand_as(head.weight))
        x = radiographs(network)
        outputs.append(network(x if geometry is sides else x.flip(3)))
    assert torch.allclose(outputs[0], outputs[1].flip(2), atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)


@pytest.mark.parametrize("name", ["cascade64", "direct256_draft"])
def test_checkpointing_changes_memory_only(name: str) -> None:
    results = []
    for checkpointing in (False, True):
        network = tiny(name, checkpointing=checkpointing, **({"transformer_layers": 1} if name == "cascade64" else {}))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            y = network(radiographs(network))
        y.square().sum().backward()
        results.append((y, [p.grad for p in network.parameters()], sum(saved)))
    assert torch.equal(results[0][0], results[1][0])
    for plain, recomputed in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-6)
    assert results[1][2] < results[0][2] / 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("make", [tiny, narrow_direct128], ids=["cascade64", "direct128"])
def test_bfloat16_autocast_trains(make: Callable[..., ProgressiveCascade], channels_last: bool) -> None:
    # of 2³ voxels oneDNN's kernels of bfloat16 (AVX512-bf16) give gradients of weights from memory that nobody has set
    network = make(channels_last=channels_last, size=16)
    x = radiographs(network)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert (y.float() - network(x)).abs().max() < 0.05


def test_channels_last_gives_the_same_and_stays_through_a_state_dict() -> None:
    plain, last = tiny(), tiny(channels_last=True)
    last.load_state_dict(plain.state_dict())
    x = radiographs(plain)
    assert torch.allclose(plain(x), last(x), atol=1e-5)
    weights = [m.weight for m in last.modules() if isinstance(m, torch.nn.Conv3d) and m.kernel_size[0] > 1]
    assert all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in weights)


def test_state_dict_holds_parameters_only() -> None:
    network = tiny()
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


EXPORTED = [
    ("cascade64", {}),
    ("cascade64", {"transformer_layers": 1, "checkpointing": True}),
    ("cascade128", {"members": 3, "interval": True}),
    ("direct128", {}),
    ("direct256", {}),
]


@pytest.mark.parametrize(("name", "options"), EXPORTED)
def test_traced_export(name: str, options: dict) -> None:
    network = tiny(name, **options)
    x = radiographs(network)
    file = io.BytesIO()
    torch.jit.save(convert_to_torchscript(network, inputs=[x], use_trace=True), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    # another image than the one it was traced with
    x = radiographs(network, seed=7)
    with torch.no_grad():
        assert torch.allclose(loaded(x), network.eval()(x), atol=1e-5)


@pytest.mark.slow
def test_scripted_export(tmp_path: Path) -> None:
    """In a process of its own: scripting reads the sources, which the tests' shape checker rewrites."""
    program = f"""
import torch
from drr2ct.networks import create_network
from monai.networks.utils import convert_to_torchscript
for name, options in {EXPORTED}:
    network = create_network(name, size=8 if name == "direct128" else 16, detector_size=32, **options)
    x = torch.rand(2, 2, 32, 32)
    convert_to_torchscript(network, "{tmp_path}/model.ts", verify=True, inputs=[x], atol=1e-5)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_onnx_export() -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = thin().eval()
    x = radiographs(network)
    model = convert_to_onnx(network, [x], opset_version=18, dynamo=False)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {model.graph.input[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(y), network(x), atol=1e-4)


def test_the_input_must_fit_the_geometry() -> None:
    network = tiny()
    for shape in ((1, 1, 32, 32), (1, 2, 32, 33), (2, 32, 32)):
        with pytest.raises(InputError, match=r"\(batch, 2, 32, 32\), the views pa, lat"):
            network(torch.zeros(shape))


def test_radiograph_metadata_does_not_reach_the_volume() -> None:
    network = tiny()
    y = network(MetaTensor(radiographs(network), affine=2 * torch.eye(4)))
    assert not isinstance(y, MetaTensor)


def test_fused_after_the_blocks_is_another_network() -> None:
    before, after = thin(), thin(fuse="after")
    assert len(list(before.parameters())) < len(list(after.parameters()))  # the first stage then needs its own layers
    assert after(radiographs(after)).shape == before(radiographs(before)).shape


@pytest.mark.parametrize("name", NAMES)
def test_configuration_round_trip_through_json(name: str) -> None:
    config = network_config(name)
    assert CascadeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_overrides() -> None:
    config = network_config("cascade64", stages=[{"channels": 24, "scale": 1}, {"channels": 16}], activation="silu")
    assert config.stages == (StageConfig(24, scale=1), StageConfig(16))
    assert config.activation == "silu"
    three = network_config(
        "cascade64", stages=[{"channels": 24, "scale": 1}, {"channels": 16}, {"channels": 8}], head_scale=1
    )
    assert three.stage_sizes == (16, 32, 64)
    geometry = BiplanarGeometry.from_angles(VolumeGrid(48), (10.0, 80.0), detector_size=96)
    assert network_config("cascade64", geometry=geometry).geometry == geometry
    assert network_config("cascade64", geometry=geometry, size=32).geometry == geometry.resized(32)
    assert network_config("cascade64", detector_size=(64, 64)).geometry.detector_size == (64, 64)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("cascade265", {}, "did you mean cascade256.*direct128"),
        ("unet", {}, "the networks are cascade128"),
        ("cascade64", {"chekpointing": True}, "did you mean checkpointing"),
        ("cascade64", {"size": 62}, "multiple of 4"),
        ("cascade64", {"activation": "tanh"}, "activation 'tanh' is unknown"),
        ("cascade64", {"lift": "magic"}, "lift 'magic' is unknown"),
        ("cascade64", {"fuse": "never"}, "before or after"),
        ("cascade64", {"stages": [{"width": 3}]}, "setting stages cannot be read"),
        ("cascade64", {"stages": [{"channels": 0}]}, "a stage's channels is 0"),
        ("cascade64", {"stages": []}, "at least one stage"),
        ("cascade64", {"geometry": {"grid": {}}}, "not a geometry"),
        ("cascade64", {"transformer_layers": 1, "transformer_heads": 7}, "attention heads"),
        ("direct256", {"skips": [{"stage": 3, "channels": 8}]}, "skip from stage 3"),
        ("direct256", {"encoder_channels": [8, 8]}, "one of each per layer"),
        ("cascade64", {"stages": [{"channels": 8, "halvings": 1}]}, "stage 1 has halvings, but no stage before it"),
        ("cascade128", {"fuse": "after"}, "stage 3 has halvings; then fuse must be before, not after"),
        (
            "cascade128",
            {"stages": [{"channels": 8, "scale": 1}, {"channels": 8}, {"channels": 8, "halvings": 7}]},
            "stage 3 has 64³ voxels, which cannot be halved 7 times",
        ),
    ],
)
def test_refused(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_network(name, **overrides)


@pytest.mark.slow
def test_learns_where_a_ball_is() -> None:
    """Two projections of a ball tell its place, and unseen ones must too after a short training."""
    from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
    from drr2ct.transforms.drr import project_volume

    torch.manual_seed(0)
    geometry = BiplanarGeometry.from_angles(VolumeGrid(32), detector_size=64)
    network = create_network("cascade64", geometry=geometry)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-4)
    places = 180 * (torch.rand(80, 1, 1, 1, 3) - 0.5)
    labels = 0.25 * ((geometry.grid.centres() - places).norm(dim=-1) < 60).float().unsqueeze(1)
    images = torch.cat([project_volume(label[None] * 4095 - 1024, geometry) for label in labels]) / LINE_INTEGRAL_SCALE

    for _ in range(120):
        chosen = torch.randint(0, 64, (2,))
        loss = (network(images[chosen]) - labels[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found, true = network(images[64:]) > 0.125, labels[64:] > 0.125
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.8


def test_a_grown_network_starts_from_what_it_was_grown_from() -> None:
    coarse = thin().eval()
    stages = (*coarse.config.stages, StageConfig(8, norm_groups=0, grow_kernel=1, growth=8, layers=2, lift_channels=4))
    size = 2 * coarse.config.geometry.grid.size
    pixels = 2 * coarse.config.geometry.detector_size[0]
    grown = thin(stages=stages, output_stages=2, size=size, detector_size=pixels).eval()
    taken = grown.state_dict()
    taken |= {name: value for name, value in coarse.state_dict().items() if taken[name].shape == value.shape}
    grown.load_state_dict(taken)
    x = radiographs(grown)
    coarse_x = torch.nn.functional.avg_pool2d(x, 2)
    given = coarse(coarse_x)
    upsampled = torch.nn.functional.interpolate(given, scale_factor=2.0, mode="trilinear", align_corners=False)
    assert torch.allclose(grown(x), upsampled, atol=1e-5)
    # the radiographs may also be halved by the coarse network itself
    halving = thin(detector_size=pixels, halve_radiographs=1).eval()
    halving.load_state_dict(coarse.state_dict())
    assert torch.allclose(halving(x), given, atol=1e-5)
    torch.nn.functional.l1_loss(grown(x), torch.rand(1, 1, size, size, size)).backward()
    assert grown.outputs[-1].conv_block.weight.grad.abs().max() > 0  # and what is added is learned
    with torch.no_grad():
        grown.outputs[-1].conv_block.bias.fill_(0.25)
    assert torch.allclose(grown(x), upsampled + 0.25, atol=1e-5)


@pytest.mark.parametrize("name", ["cascade64", "cascade128"])
def test_an_ensembles_first_volume_is_what_its_members_agree_on(name: str) -> None:
    joined = tiny(name, members=3, detector_size=64).eval()
    alone = tiny(name, detector_size=64).eval()
    assert all(torch.equal(value, joined.state_dict()[key]) for key, value in alone.state_dict().items())
    parameters = [sum(p.numel() for p in network.parameters()) for network in (joined, alone, *joined.members)]
    assert parameters[0] == sum(parameters[1:])
    x = radiographs(joined)
    first = ProgressiveCascade(alone.config.coarsest).eval()
    first.load_state_dict({key: alone.state_dict()[key] for key in first.state_dict()})
    volumes = [network(x) for network in (first, *joined.members)]
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(volumes))
    change = agreed_and_spread(volumes)[0] - volumes[0]
    scale = alone.config.geometry.grid.size // change.shape[-1]
    if scale > 1:
        change = torch.nn.functional.interpolate(change, scale_factor=float(scale), mode="trilinear")
    assert torch.allclose(joined(x), alone(x) + change, atol=1e-5)
    joined(x).square().mean().backward()
    assert all(p.grad is not None for p in joined.parameters())


def test_a_stage_that_corrects_sees_what_members_agree_on_and_what_its_radiographs_lack() -> None:
    network = tiny("cascade128", members=2, detector_size=64).eval()
    with torch.no_grad():
        for parameter in network.outputs[1].parameters():
            parameter.normal_(std=0.1)
    seen: list[torch.Tensor] = []
    network.stages[2].fusion.register_forward_hook(lambda module, inputs, y: seen.append(inputs[0].detach()))
    x = radiographs(network)
    with torch.no_grad():
        before = network(x)
        network.members[0].outputs[0].conv_block.bias.add_(0.5)
        after = network(x)
    grown = network.config.stages[2].channels
    (cells, lacking), (other_cells, other_lacking) = [(y[:, grown : grown + 8], y[:, grown + 8 :]) for y in seen]
    # two count alike: what they agree on is half as much larger, and attenuates more than the radiographs say
    torch.testing.assert_close(other_cells, cells + 0.25, rtol=1e-4, atol=1e-4)
    assert (other_lacking - lacking).max() <= 1e-4 and (other_lacking - lacking).min() < -0.1
    assert not torch.allclose(after, before + 0.25, atol=1e-3)


def test_first_stages_are_a_network_of_their_own() -> None:
    whole = network_config("cascade256")
    assert whole.coarsest.to_dict() == {
        **network_config("cascade64", detector_size=512).to_dict(),
        "halve_radiographs": 2,
    }
    assert whole.first_stages(4) == whole
    with pytest.raises(InputError, match="4 stages; 5"):
        whole.first_stages(5)
    with pytest.raises(InputError, match="members"):
        replace(whole, members=0)


def test_a_growing_convolution_of_one_voxel_commutes_with_the_upsampling() -> None:
    small, large = [Upsample(2), torch.nn.Conv3d(4, 3, 1)], torch.rand(1, 4, 5, 6, 7)
    network = thin(stages=(StageConfig(8, scale=2, grow_kernel=1, norm_groups=0, lift_channels=4),))
    grow = network.stages[0].grow
    assert isinstance(grow[0], torch.nn.Conv3d) and isinstance(grow[1], Upsample)
    assert torch.allclose(small[1](small[0](large)), small[0](small[1](large)), atol=1e-6)


@pytest.mark.parametrize("options", [{"output_stages": 0}, {"output_stages": 9}])
def test_stages_that_cannot_have_a_head(options: dict) -> None:
    with pytest.raises(InputError, match="output_stages"):
        thin(**options)


def test_a_growing_kernel_is_odd() -> None:
    with pytest.raises(InputError, match="grow_kernel"):
        StageConfig(8, grow_kernel=2)


def test_confidence_needs_lifted_views() -> None:
    with pytest.raises(InputError, match="backprojection"):
        thin(lift="broadcast", confidence=True, encoder_norm_groups=(4,))
