import copy
import math

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
)
from drr2ct.networks.losses import IntervalLoss, L1Loss, WeightedLoss
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
    for mode in (net.train(), net.eval()):
        output = mode(sample(batch=2)[0])
        assert output.shape == (2, 3, 16, 16, 16) and has_bounds(output) and has_bounds(output[0])
        estimate, low, high = output.unbind(1)
        assert (low < estimate).all() and (estimate < high).all()
        assert (high - low).mean().item() == pytest.approx(2 * 0.05 * math.log(2), rel=0.2)
    assert not has_bounds(network(False)(sample()[0]))


def test_the_loss_is_least_at_the_quantiles() -> None:
    """Of voxels that are anything from 0 to 1, alike, 90 % lie between 0.05 and 0.95."""
    truth = torch.linspace(0, 1, 20**3).reshape(1, 1, 20, 20, 20)

    def loss(low: float, high: float) -> float:
        return IntervalLoss()(torch.cat([truth, 0 * truth + low, 0 * truth + high], dim=1), truth).item()

    best = loss(0.05, 0.95)
    assert best == pytest.approx(0.05 * 0.9 + 2 * 0.05**2 / 2, rel=1e-3)
    assert all(loss(low, high) > best for low, high in ((0.04, 0.95), (0.06, 0.95), (0.05, 0.94), (0.05, 0.96)))


def test_the_losss_gradient_is_that_of_its_formula() -> None:
    _, truth = sample()
    output = torch.rand(1, 3, 16, 16, 16, requires_grad=True)
    low, high = output[:, 1:2], output[:, 2:]
    by_hand = (0.05 * (high - low) + (low - truth).relu() + (truth - high).relu()).mean()
    (expected,) = torch.autograd.grad(by_hand, output)
    value = IntervalLoss()(output, truth)
    (3 * value).backward()
    assert torch.allclose(value, by_hand) and torch.allclose(output.grad, 3 * expected)


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
    for _ in range(150):
        features = (torch.rand(1, 2, 8, 8, 8) > 0.5).float()
        spread = torch.nn.functional.interpolate(0.005 + 0.045 * features[:, :1], scale_factor=2.0)
        estimate = torch.full((1, 1, 16, 16, 16), 0.25)
        output = head(estimate, [features])
        optimizer.zero_grad()
        IntervalLoss()(output, estimate + spread * (2 * torch.rand_like(estimate) - 1)).backward()
        optimizer.step()
    low, high = output[:, 1:2], output[:, 2:]
    for level in (0.005, 0.05):
        there = (spread - level).abs() < 1e-6
        assert (high - low)[there].mean().item() == pytest.approx(2 * 0.9 * level, rel=0.15)
    assert torch.equal(output[:, :1], estimate)


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
    calibrated = head(estimate, [features])
    as_trained = head.train()(estimate, [features])
    head.reset_calibration()
    assert torch.equal(head.eval()(estimate, [features]), as_trained)
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


def test_one_head_or_none() -> None:
    assert len(interval_heads(network(True))) == 1 and not interval_heads(network(False))
    assert not interval_parameters(network(False))
