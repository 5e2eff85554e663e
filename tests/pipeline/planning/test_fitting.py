"""What fits, and how sizes and rates are read."""

from __future__ import annotations

import pytest

from drr2ct.pipeline.planning.fitting import cheapest_change, largest_batch, needed_bytes, parse_bytes, parse_rate
from drr2ct.pipeline.planning.plan import Settings, plan_network
from drr2ct.transforms.validation import InputError

SMALL = Settings("cascade64", size=32, detector=64)


@pytest.mark.slow
def test_largest_batch_is_the_last_that_fits():
    memory = needed_bytes(plan_network(Settings("cascade64", batch=5, size=32, detector=64)))
    assert largest_batch(SMALL, memory) == 5
    assert largest_batch(SMALL, memory - 1) == 4
    assert largest_batch(SMALL, needed_bytes(plan_network(SMALL)) - 1) == 0


@pytest.mark.slow
def test_cheapest_change_is_one_that_fits():
    settings = Settings("cascade64", 3, "fp32", 2, 32, 64)
    plain = plan_network(settings)
    what, plan = cheapest_change(settings, needed_bytes(plain) - 1)
    assert what == "bf16"
    assert plan.settings.precision == "bf16"
    assert needed_bytes(plan) < needed_bytes(plain)
    assert cheapest_change(settings, 1) is None


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
