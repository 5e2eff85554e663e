from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from drr2ct.networks import create_network
from drr2ct.networks.ssim import gaussian_window, mean_ssim
from drr2ct.pipeline.planning.plan import (
    Settings,
    StorageTracker,
    cheapest_change,
    largest_batch,
    needed_bytes,
    parse_bytes,
    parse_rate,
    plan_config,
    plan_network,
    run_plan,
)
from drr2ct.transforms.validation import InputError

SMALL = Settings("cascade64", size=32, detector=64)
KB = 1024


def test_storage_is_counted_once_and_until_its_last_reference_goes():
    with FakeTensorMode(), StorageTracker() as tracker:
        a = torch.empty(256)
        assert tracker.live == KB
        view = a.view(16, 16)[:2]
        a.add_(1)
        assert tracker.live == KB
        b = a + a
        assert (tracker.live, tracker.peak) == (2 * KB, 2 * KB)
        del a
        assert tracker.live == 2 * KB, "the view still holds it"
        del view
        assert tracker.live == KB
        del b
        assert (tracker.live, tracker.peak) == (0, 2 * KB)


def test_backward_of_a_small_graph():
    with FakeTensorMode(), StorageTracker() as tracker:
        x = torch.empty(256, requires_grad=True)
        y = x.exp()  # keeps its result
        z = y.sin()  # keeps y
        del y
        assert tracker.live == 3 * KB  # x, y, z
        z.backward(torch.empty(256))
        # x, z and x's gradient; y went with the graph
        assert tracker.live == 3 * KB


def test_what_operations_allocate_inside_counts_while_they_run():
    def inside(func, args, kwargs):
        return 5 * KB if func.overloadpacket is torch.ops.aten.exp else 0

    with FakeTensorMode(), StorageTracker(inside) as tracker:
        a = torch.empty(256)
        tracker.section = "exp"
        b = a.exp()
        tracker.section = "after"
        c = b + a
    assert (tracker.live, tracker.peak) == (3 * KB, 6 * KB)
    assert tracker.section_peak == {"": KB, "exp": 6 * KB, "after": 3 * KB}
    assert c.shape == a.shape


def test_a_configuration_is_planned_without_a_name():
    plan = plan_config(SMALL.config(), SMALL.batch, SMALL.precision)
    named = plan_network(SMALL)
    assert (plan.step_peak_bytes, plan.stages) == (named.step_peak_bytes, named.stages)
    assert (named.settings.network, named.settings.size, named.settings.checkpointing) == ("cascade64", 32, False)


def test_flops_of_a_product():
    with FakeTensorMode(), StorageTracker() as tracker:
        tracker.section = "product"
        torch.empty(3, 4) @ torch.empty(4, 5)
    assert tracker.section_flops["product"] == tracker.flops == 2 * 3 * 4 * 5


def test_recomputation_and_custom_functions_are_seen():
    def chain(x):
        for _ in range(8):
            x = x.exp()
        return x

    kept = {}
    for recompute in (False, True):
        with FakeTensorMode(), StorageTracker() as tracker:
            x = torch.empty(256, requires_grad=True)
            y = checkpoint(chain, x, use_reentrant=False) if recompute else chain(x)
            kept[recompute] = tracker.live
            tracker.peak = tracker.live
            y.sum().backward()
            assert tracker.peak >= 9 * KB
    assert kept == {False: 9 * KB, True: 2 * KB}

    window = gaussian_window(5, 1.0)
    with FakeTensorMode(), StorageTracker() as tracker:
        first, second = torch.empty(1, 1, 16, 16, requires_grad=True), torch.empty(1, 1, 16, 16)
        value = mean_ssim(first, second, [window] * 2)
        # the images, and at least what SSIM saves of each window position (12²): three maps
        assert tracker.live >= 2 * KB + 3 * 12 * 12 * 4
        assert tracker.peak > tracker.live
        value.sum().backward()


def test_plan_agrees_with_the_real_network():
    plan = plan_network(SMALL)
    network = create_network("cascade64", size=32, detector_size=64)
    parameters = sum(p.numel() for p in network.parameters())
    assert plan.parameters == parameters
    assert sum(s.parameters for s in plan.stages) == parameters - network.volume.numel()
    assert sum(s.forward_flops for s in plan.stages) == plan.forward_flops
    assert sum(s.step_flops for s in plan.stages) == plan.step_flops
    assert plan.step_peak_bytes == max(s.peak_bytes for s in plan.stages)
    # two moments of four bytes, and a step count, for each
    assert plan.optimizer_state_bytes == 8 * parameters + 4 * len(list(network.parameters()))
    # weights, gradients and moments at least
    assert plan.step_peak_bytes > 16 * parameters
    assert plan.forward_peak_bytes < plan.step_peak_bytes
    stage = next(s for s in plan.stages if s.name.startswith("stage 2"))
    assert (stage.channels, stage.blocks, stage.growth, stage.output) == (16, 1, 8, (16, 16, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"), [("direct256", 2_675_489), ("direct256_draft", 4_296_665), ("direct128", 17_101_249)]
)
def test_parameters_of_the_first_designs(name, parameters):
    assert plan_network(Settings(name)).parameters == parameters


def test_checkpointing_and_bf16_lower_the_peak_and_checkpointing_costs_flops():
    plain, half, lean = (
        plan_network(Settings("cascade64", 8, precision, 2, 32, 64, checkpointing))
        for precision, checkpointing in (("fp32", False), ("bf16", False), ("fp32", True))
    )
    assert half.step_peak_bytes < 0.8 * plain.step_peak_bytes
    assert lean.step_peak_bytes < 0.8 * plain.step_peak_bytes
    assert plain.step_flops < lean.step_flops <= plain.step_flops + plain.forward_flops
    assert lean.forward_flops == plain.forward_flops == half.forward_flops


def test_views_are_planned():
    assert plan_network(Settings("cascade64", views=3, size=32, detector=64)).forward_flops > (
        plan_network(SMALL).forward_flops
    )


@pytest.mark.slow
def test_largest_batch_is_the_last_that_fits():
    memory = needed_bytes(plan_network(Settings("cascade64", batch=5, size=32, detector=64)))
    assert largest_batch(SMALL, memory) == 5
    assert largest_batch(SMALL, memory - 1) == 4
    assert largest_batch(SMALL, needed_bytes(plan_network(SMALL)) - 1) == 0


@pytest.mark.slow
def test_cheapest_change_is_one_that_fits():
    settings = Settings("cascade64", 8, "fp32", 2, 32, 64)
    plain = plan_network(settings)
    what, plan = cheapest_change(settings, needed_bytes(plain) - 1)
    assert what == "bf16"
    assert plan.settings.precision == "bf16"
    assert needed_bytes(plan) < needed_bytes(plain)
    assert cheapest_change(settings, 1) is None


def test_files(tmp_path):
    markdown, figures = tmp_path / "a/plan.md", tmp_path / "a/plan.json"
    with (tmp_path / "out").open("w") as file:
        run_plan([SMALL], Console(file=file, width=200), "1 GiB", 100, "1 TFLOP/s", markdown=markdown, json=figures)
    content = json.loads(figures.read_text())
    assert {"parameters", "forward_flops", "forward_peak_bytes", "step_peak_bytes", "stages"} <= set(content)
    assert content["parameters"] == plan_network(SMALL).parameters
    assert content["stages"][0]["name"] == "encoder"
    printed = (tmp_path / "out").read_text()
    assert "largest batch that fits" in printed
    assert "per epoch of 100 samples" in printed
    assert markdown.read_text().count("|") > 50

    with (tmp_path / "out").open("w") as file:
        other = Settings("cascade128", size=32, detector=64)
        run_plan([SMALL, other], Console(file=file, width=250), json=figures, compare=True)
    assert set(json.loads(figures.read_text())) == {"cascade64", "cascade128"}


@pytest.mark.parametrize(("text", "value"), [("80 GiB", 80 * 2**30), ("24GB", 24 * 10**9), ("0.5 tib", 2**39)])
def test_memory_is_read(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["80", "GiB", "-3 GiB", "0 GiB", "80 giraffes", ""])
def test_bad_memory_is_refused(text):
    with pytest.raises(InputError, match="such as 80 GiB"):
        parse_bytes(text)


def test_throughput():
    assert parse_rate("1.5 PFLOP/s") == 1.5e15
    with pytest.raises(InputError, match="such as 50 TFLOP/s"):
        parse_rate("fast")


def test_mistakes_are_refused():
    with pytest.raises(InputError, match="did you mean direct256"):
        plan_network(Settings("direct265"))
    with pytest.raises(InputError, match="precision 'int8' is unknown"):
        Settings("direct256", precision="int8")
    with pytest.raises(InputError, match="batch is 0"):
        Settings("direct256", batch=0)
