"""What fits, and how sizes and rates are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drr2ct.pipeline.planning import fitting
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


LINES = st.lists(st.tuples(st.integers(0, 10**9), st.integers(10**5, 10**8)), min_size=1, max_size=4)


@given(LINES, st.integers(10**7, 10**11))
def test_largest_batch_is_found_in_a_few_plans(lines: list[tuple[int, int]], memory: int) -> None:
    planned: list[int] = []

    def needed(settings: Settings) -> int:  # a peak: a maximum of straight lines
        planned.append(settings.batch)
        return max(start + each * settings.batch for start, each in lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "plan_network", lambda settings: settings)
        patch.setattr(fitting, "needed_bytes", needed)
        found = largest_batch(SMALL, memory)
    expected = [b for b in range(1, fitting.MOST_BATCH + 1) if max(s + e * b for s, e in lines) <= memory]
    assert found == max(expected, default=0)
    assert len(planned) <= 14, "each takes seconds"


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
