from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from drr2ct.networks import create_network
from drr2ct.pipeline.planning.plan import Settings, plan_config, plan_network
from drr2ct.pipeline.planning.tracing import bundle_optimizer
from drr2ct.pipeline.training.muon import Muon, is_kernel
from drr2ct.transforms.validation import InputError

SMALL = Settings("cascade64", size=32, detector=64)


def test_a_configuration_is_planned_without_a_name():
    plan = plan_config(SMALL.config(), SMALL.batch, SMALL.precision)
    named = plan_network(SMALL)
    assert (plan.step_peak_bytes, plan.stages) == (named.step_peak_bytes, named.stages)
    assert (named.settings.network, named.settings.size, named.settings.checkpointing) == ("cascade64", 32, False)


def test_plan_agrees_with_the_real_network():
    plan = plan_network(SMALL)
    network = create_network("cascade64", size=32, detector_size=64)
    parameters = sum(p.numel() for p in network.parameters())
    assert plan.parameters == parameters
    assert sum(s.parameters for s in plan.stages) == parameters - network.volume.numel()
    assert sum(s.forward_flops for s in plan.stages) == plan.forward_flops
    assert sum(s.step_flops for s in plan.stages) == plan.step_flops
    assert plan.step_peak_bytes == max(s.peak_bytes for s in plan.stages)
    # four bytes for each number of a kernel; of all else two moments of as many, and a step count
    kernels = [p.numel() for p in network.parameters() if is_kernel(p)]
    others = [p.numel() for p in network.parameters() if not is_kernel(p)]
    assert plan.optimizer_state_bytes == 4 * sum(kernels) + 8 * sum(others) + 4 * len(others)
    # weights, gradients and momenta at least
    assert plan.step_peak_bytes > 12 * parameters
    assert plan.forward_peak_bytes < plan.step_peak_bytes
    stage = next(s for s in plan.stages if s.name.startswith("stage 2"))
    assert (stage.channels, stage.blocks, stage.growth, stage.output) == (16, 1, 8, (16, 16, 16, 16))


def test_the_first_designs_are_planned_with_their_own_optimiser():
    assert bundle_optimizer() is bundle_optimizer("cascade256") is Muon
    assert bundle_optimizer("direct256") is torch.optim.AdamW


def test_the_members_of_an_ensemble_are_a_part_of_their_own():
    alone, joined = (plan_network(replace(SMALL, network="cascade128", members=members)) for members in (1, 3))
    parts = [stage.name for stage in joined.stages]
    assert parts[parts.index("further members") - 1] == "head of stage 2"
    (members,) = (stage for stage in joined.stages if stage.name == "further members")
    coarsest = plan_config(replace(SMALL, network="cascade128").config().coarsest, SMALL.batch, SMALL.precision)
    assert members.parameters == 2 * coarsest.parameters == joined.parameters - alone.parameters
    assert members.forward_flops == 2 * coarsest.forward_flops == joined.forward_flops - alone.forward_flops
    assert members.output[-3:] == (16, 16, 16)


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


def test_mistakes_are_refused():
    with pytest.raises(InputError, match="did you mean direct256"):
        plan_network(Settings("direct265"))
    with pytest.raises(InputError, match="precision 'int8' is unknown"):
        Settings("direct256", precision="int8")
    with pytest.raises(InputError, match="batch is 0"):
        Settings("direct256", batch=0)
