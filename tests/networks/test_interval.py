import copy
import math
import subprocess
import sys

import pytest
import torch
from monai.networks.utils import convert_to_torchscript

from drr2ct.networks import ProgressiveCascade, StageConfig, create_network
from drr2ct.networks.interval import (
    KNOTS,
    IntervalHead,
    estimate_of,
    has_bounds,
    interval_heads,
    interval_parameters,
    surroundings,
)
from drr2ct.networks.losses import IntervalLoss, L1Loss, WeightedLoss, body_weights
from drr2ct.pipeline.running.precision import clip_gradients
from drr2ct.transforms.validation import InputError


def network(interval: bool, name: str = "cascade64", **options) -> ProgressiveCascade:
    if name == "cascade64":
        stages = (StageConfig(8, scale=1, growth=4, layers=2, lift_channels=4), StageConfig(8, growth=4, layers=2))
        options = {"stages": stages, "encoder_channels": (8,), "volume_channels": 4, **options}
    torch.manual_seed(0)
    return create_network(name, size=16, detector_size=32, interval=interval, **options)


def sample(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 2, 32, 32, generator=generator), torch.rand(batch, 1, 16, 16, 16, generator=generator)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cascade64", {}),
        ("cascade64", {"checkpointing": True, "output_stages": 2, "channels_last": True}),
        ("cascade64", {"members": 2}),
        ("direct256", {}),
    ],
)
def test_the_estimate_and_its_training_do_not_change(name: str, options: dict) -> None:
    """Bit by bit, over steps with clipped gradients, where the bounds' gradient must not count."""
    without, with_bounds = network(False, name, **options), network(True, name, **options)
    x, truth = sample(batch=2)
    optimizers = [
        clip_gradients(torch.optim.AdamW(net.parameters(), lr=1e-2), 0.05, interval_parameters(net))
        for net in (without, with_bounds)
    ]
    for _ in range(3):
        for net, optimizer in zip((without, with_bounds), optimizers, strict=True):
            optimizer.zero_grad()
            WeightedLoss({"l1": 1.0, "l2": 1.0})(net(x), truth).backward()
        plain, doubting = (dict(net.named_parameters()) for net in (without, with_bounds))
        assert all(torch.equal(plain[key].grad, doubting[key].grad) for key in plain)
        assert all(doubting[key].grad is not None for key in doubting.keys() - plain.keys())
        for optimizer in optimizers:
            optimizer.step()
    dead = [p for p in interval_parameters(with_bounds) if not p.grad.abs().max() > 0]
    assert not dead, "later stages add nothing to begin with, and something after a step"
    assert torch.equal(without.eval()(x), estimate_of(with_bounds.eval()(x)))


def test_bounds_enclose_the_estimate_from_the_start() -> None:
    net = network(True)
    output = net.eval()(sample(batch=2)[0])
    assert output.shape == (2, 3, 16, 16, 16) and has_bounds(output) and has_bounds(output[0])
    taught = net.train()(sample(batch=2)[0])
    assert has_bounds(taught) and torch.equal(estimate_of(taught), estimate_of(output))
    for estimate, low, high in (output.unbind(1), (taught.cut(taught.estimate)[:, 0], *taught.bounds.unbind(1))):
        assert (low < estimate).all() and (estimate < high).all()
        assert (high - low).mean().item() == pytest.approx(2 * 0.05 * math.log(2), rel=0.2)
    assert not has_bounds(network(False)(sample()[0]))


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(
    ("features", "upscale", "size", "planes"),
    [
        ([32], 2, 64, [8 * k + i for k in range(8) for i in (2, 3)]),
        ([32, 64], 2, 128, [16 * k + i for k in range(8) for i in (5, 6)]),
        ([16, 32, 64], 2, 128, [32 * k + i for k in range(4) for i in (11, 12)]),
        ([8, 8], 2, 16, list(range(16))),
        ([8], 2, 16, [2, 3, 10, 11]),
        ([8, 32], 4, 128, [24 - 1, 24, 64 + 24 - 1, 64 + 24]),
        ([8], 1, 8, [1, 5]),
        ([2], 2, 4, [2, 3]),
        ([1], 2, 2, [0, 1]),
        ([8, 16], 1, 16, list(range(16))),
    ],
)
def test_a_training_sees_planes_of_what_the_whole_volume_has(
    features: list[int], upscale: int, size: int, planes: list[int], members: int
) -> None:
    torch.manual_seed(0)
    head = IntervalHead([3] * len(features), upscale, spread=members > 1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    volumes = [torch.rand(2, 3, n, n, n) for n in features]
    first, estimate = torch.rand(2, 1, *[upscale * features[0]] * 3), torch.rand(2, 1, size, size, size)
    spread = None if members == 1 else torch.rand_like(first) / 25
    taught = head.train()(estimate, first, volumes, spread)
    assert taught.planes.tolist() == [planes, planes] and taught.estimate is estimate
    whole = head.eval()(estimate, first, volumes, spread)
    assert torch.allclose(taught.bounds, taught.cut(whole)[:, 1:], atol=1e-6)
    truth = torch.rand(2, 1, size, size, size)
    on_planes = IntervalLoss()(torch.cat([taught.cut(whole)[:, :1], taught.bounds], dim=1), taught.cut(truth))
    assert torch.allclose(IntervalLoss()(taught, truth), on_planes)


def test_the_loss_is_least_at_the_quantiles() -> None:
    """Of voxels anywhere from 0 to a tenth, 90 % lie between 0.05 and 0.95 tenths; none is tissue, so all count."""
    truth = torch.linspace(0, 0.1, 20**3).reshape(1, 1, 20, 20, 20)

    def loss(low: float, high: float) -> float:
        output = torch.cat([truth, 0 * truth + 0.1 * low, 0 * truth + 0.1 * high], dim=1)
        return 10 * IntervalLoss()(output, truth).item()

    best = loss(0.05, 0.95)
    assert best == pytest.approx(0.05 * 0.9 + 2 * 0.05**2 / 2, rel=1e-3)
    assert all(loss(low, high) > best for low, high in ((0.04, 0.95), (0.06, 0.95), (0.05, 0.94), (0.05, 0.96)))


def test_the_losss_gradient_is_that_of_its_formula() -> None:
    _, truth = sample()
    output = torch.rand(1, 3, 16, 16, 16, requires_grad=True)
    low, high = output[:, 1:2], output[:, 2:]
    weights = body_weights(truth)
    by_hand = weights * (0.05 * (high - low) + (low - truth).relu() + (truth - high).relu())
    by_hand = by_hand.sum() / weights.sum()
    (expected,) = torch.autograd.grad(by_hand, output)
    value = IntervalLoss()(output, truth)
    (3 * value).backward()
    assert torch.allclose(value, by_hand) and torch.allclose(output.grad, 3 * expected)


def test_the_body_counts_more_than_the_air() -> None:
    """A box of tissue with a lung in it, whatever the grid; a couch beneath is no body."""
    for size in (16, 128):
        truth = torch.zeros(2, 1, size, size, size)
        quarter = size // 4
        truth[0, :, quarter:-quarter, quarter:-quarter, : size // 2] = 0.25
        truth[0, :, 2 * quarter - 2 : 2 * quarter + 2, 2 * quarter - 2 : 2 * quarter + 2] = 0.04
        truth[0, :, :, -2:] = 0.2
        weights = body_weights(truth)
        step = size // weights.shape[-2]
        here = weights[0, 0, :, : (size - 2) // step]
        body = here == 1
        quarter //= step
        assert body[2 * quarter, 2 * quarter, 0] and body[quarter, quarter, size // 2 - 1]
        assert not body[quarter - 1].any() and not body[:, quarter - 1].any() and not body[..., size // 2 :].any()
        assert torch.equal(here[~body], torch.full_like(here[~body], 0.3))
        assert (weights[1] == 1).all(), "of a volume without tissue everything counts"


def test_the_surroundings_are_of_the_right_place() -> None:
    """A ramp along y, by which every channel is known; and one voxel in each octant."""
    ramp = torch.arange(16.0).reshape(1, 1, 1, 16, 1).expand(1, 1, 16, 16, 16) / 16
    found = surroundings(ramp, 2, [2, 4, 8])
    assert found.shape == (1, 22, 8, 8, 8)
    values, slopes = found[0, :8].reshape(2, 2, 2, 8, 8, 8), found[0, 8:16].reshape(2, 2, 2, 8, 8, 8)
    for y in range(16):
        assert torch.allclose(values[:, y % 2, :, :, y // 2], torch.tensor(y / 16))
    assert torch.allclose(slopes[..., 1:-1, :], torch.tensor(10 / 16)), "ten times the slope per voxel"
    assert torch.allclose(found[0, 16, :, 3:5].mean(), torch.tensor(7.5 / 16)) and found[0, 20, 0, 0, 0] == 7.5 / 16
    for x, y, z in ((3, 4, 5), (12, 4, 5), (3, 12, 5), (3, 4, 12), (12, 11, 5), (12, 4, 13), (2, 12, 13), (12, 12, 13)):
        point = torch.zeros(1, 1, 16, 16, 16)
        point[0, 0, x, y, z] = 1
        cells = surroundings(point, 2, [2])[0, :8]
        assert cells.sum() == 1 and cells[x % 2 * 4 + y % 2 * 2 + z % 2, x // 2, y // 2, z // 2] == 1
    at = torch.tensor([1, 5])
    assert torch.equal(surroundings(ramp, 2, [2, 4, 8], at), found[..., at])
    assert surroundings(ramp[..., :3, :3, :3], 1, [2, 4, 8]).shape == (1, 8, 3, 3, 3)
    spread = torch.zeros(1, 1, 16, 16, 16)
    spread[0, 0, 3, 12, 5] = 0.02
    more = surroundings(ramp, 2, [2, 4, 8], None, spread)
    assert torch.equal(more[:, :22], found) and more.shape == (1, 33, 8, 8, 8)
    assert more[0, 22:30].nonzero().tolist() == [[1 * 4 + 0 * 2 + 1, 1, 6, 2]]
    assert more[0, 27, 1, 6, 2].item() == pytest.approx(25 * 0.02)
    assert more[0, 32, 0, 0, 0].item() == pytest.approx(25 * 0.02 / 16**1.5), "root of the mean square over all"


def test_bounds_see_where_the_members_of_an_ensemble_disagree() -> None:
    net, x = network(True, members=2).eval(), sample()[0]
    member = net.members[0]
    member.load_state_dict({key: value for key, value in net.state_dict().items() if key in member.state_dict()})

    def looking(weight: float) -> torch.Tensor:
        """Bounds by a head whose first convolution looks so at the members' spread."""
        with torch.no_grad():
            net.interval.heads[0][0].weight[:, -11:] = weight
            return net(x)

    alike = looking(0.0)
    assert torch.allclose(estimate_of(alike), member(x), atol=1e-6)
    assert torch.allclose(looking(1.0), alike, atol=1e-5), "they do not disagree"
    with torch.no_grad():
        member.outputs[0].conv_block.bias.add_(0.04)
    apart = looking(0.0)
    assert torch.allclose(estimate_of(apart), estimate_of(alike) + 0.02, atol=1e-5)
    widths = [output[:, 2] - output[:, 1] for output in (apart, looking(1.0))]
    assert (widths[0] - widths[1]).abs().max() > 1e-3


def test_other_terms_see_the_estimate_alone() -> None:
    _, truth = sample()
    output = torch.rand(1, 3, 16, 16, 16)
    loss = WeightedLoss({"l1": 2.0})
    expected = 2 * L1Loss()(output[:, :1], truth) + IntervalLoss()(output, truth)
    assert torch.allclose(loss(output, truth), expected) and set(loss.last_terms) == {"l1", "interval"}
    alone = WeightedLoss({"interval": 0.5})
    assert torch.allclose(alone(output, truth), 0.5 * IntervalLoss()(output, truth))
    assert "interval" not in (loss(output[:, :1], truth), loss.last_terms)[1]
    with pytest.raises(InputError, match="network_def#interval=true"):
        IntervalLoss()(output[:, :1], truth)
    with pytest.raises(InputError, match="one grid"):
        L1Loss()(output, truth)


def test_training_the_head_finds_how_wrong_an_estimate_is() -> None:
    """Errors are ten times larger where a feature is on; the estimate is not touched."""
    torch.manual_seed(0)
    head = IntervalHead([2], 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(200):
        features = (torch.rand(1, 2, 8, 8, 8) > 0.5).float()
        spread = torch.nn.functional.interpolate(0.005 + 0.045 * features[:, :1], scale_factor=2.0)
        estimate = torch.full((1, 1, 16, 16, 16), 0.25)
        output = head(estimate, estimate, [features])
        optimizer.zero_grad()
        IntervalLoss()(output, estimate + spread * (2 * torch.rand_like(estimate) - 1)).backward()
        optimizer.step()
    estimated, low, high = head.eval()(estimate, estimate, [features]).split(1, dim=1)
    for level in (0.005, 0.05):
        there = (spread - level).abs() < 1e-6
        assert (high - low)[there].mean().item() == pytest.approx(2 * 0.9 * level, rel=0.15)
    assert torch.equal(estimated, estimate)


def test_factors_follow_the_predicted_width() -> None:
    head = IntervalHead([2], 1).eval()
    knots = [math.log(0.01) + k for k in range(KNOTS)]
    head.calibrate(knots, [[2.0] * KNOTS, [1.0, 3.0, *[5.0] * (KNOTS - 2)]])
    widths = torch.tensor([0.001, 0.01, 0.01 * math.exp(0.5), 0.01 * math.e, 90.0]).reshape(1, 1, 5, 1, 1)
    factors = head.factor(widths.expand(1, 2, 5, 1, 1))
    assert torch.allclose(factors[0, 0].flatten(), torch.full((5,), 2.0))
    assert torch.allclose(factors[0, 1].flatten(), torch.tensor([1.0, 1.0, 2.0, 3.0, 5.0]), atol=1e-4)
    steep = widths[:, :, 2:3].expand(1, 2, 1, 1, 1).clone().requires_grad_()
    head.factor(steep).sum().backward()
    assert torch.allclose(steep.grad.flatten(), 2 / steep.detach().flatten() * torch.tensor([0.0, 1.0]), atol=1e-3)
    features, estimate = torch.rand(1, 2, 4, 4, 4), torch.rand(1, 1, 4, 4, 4)
    calibrated = head(estimate, estimate, [features])
    taught = head.train()(estimate, estimate, [features])
    head.reset_calibration()
    as_trained = head.eval()(estimate, estimate, [features])
    assert torch.allclose(taught.cut(as_trained)[:, 1:], taught.bounds), "a training leaves the calibration out"
    assert torch.allclose((estimate - calibrated[:, 1:2]), 2 * (estimate - as_trained[:, 1:2]), atol=1e-5)


def test_exported_networks_give_calibrated_bounds() -> None:
    net = network(True).eval()
    x = sample(batch=2)[0]
    plain = net(x)
    net.interval.calibrate([-4.0 + 0.2 * k for k in range(KNOTS)], [[1.0 + k for k in range(KNOTS)], [0.5] * KNOTS])
    expected = net(x)
    assert not torch.allclose(plain, expected)
    with torch.no_grad():
        traced = convert_to_torchscript(copy.deepcopy(net), inputs=[x], use_trace=True)
        assert torch.allclose(traced(x), expected, atol=1e-6)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    other = network(True).eval()
    other.load_state_dict(state)
    assert torch.equal(other(x), expected), "the calibration is in the weights"


SCRIPTED = """
import torch
from drr2ct.networks import create_network
for name in ("cascade64", "cascade128"):
    network, x = create_network(name, size=16, detector_size=32, interval=True).eval(), torch.rand(1, 2, 32, 32)
    assert torch.allclose(torch.jit.script(network)(x), network(x), atol=1e-6), name
"""


@pytest.mark.slow
def test_scripted_networks_give_bounds() -> None:
    """Also with several stages that give a volume; in a process of its own, as checked types cannot be scripted."""
    subprocess.run([sys.executable, "-c", SCRIPTED], check=True)


def test_one_head_or_none() -> None:
    assert len(interval_heads(network(True))) == 1 and not interval_heads(network(False))
    assert not interval_parameters(network(False))
