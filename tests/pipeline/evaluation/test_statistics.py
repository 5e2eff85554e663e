import math

import numpy as np
import pytest
from scipy.stats import norm

from drr2ct.pipeline.evaluation.statistics import bootstrap_interval, compare_paired, summarise
from drr2ct.transforms.validation import InputError


def test_summary_by_hand_and_worst_by_direction():
    values = {"a": 20.0, "b": 26.0, "c": 23.0, "d": math.nan}
    got = summarise("psnr", values)
    assert (got.count, got.mean, got.median, got.std) == (3, 23.0, 23.0, 3.0)
    assert (got.worst, got.worst_patient) == (20.0, "a")
    assert summarise("mae_hu", values).worst_patient == "b"
    assert summarise("bias_hu_bone", {"a": -90.0, "b": 40.0}).worst == -90.0
    assert summarise("psnr", {"a": math.nan}) is None


def test_interval_is_near_the_normal_one_and_reproducible():
    values = np.random.default_rng(1).normal(25, 2, 200).tolist()
    low, high = bootstrap_interval(values)
    half = norm.ppf(0.975) * np.std(values) / math.sqrt(200)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.04)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([1.0]) == (None, None)


def test_pairing_sees_what_means_hide():
    second = {f"p{i}": 20.0 + i for i in range(10)}
    first = {p: v + 0.5 + 0.1 * (i % 2) for i, (p, v) in enumerate(second.items())}
    got = compare_paired("psnr", first, {**second, "other": 99.0})
    assert got.difference == pytest.approx(0.55) and got.low > 0.4 and got.count == 10 and got.better == 1.0
    assert compare_paired("mae_hu", first, second).better == 0.0
    with pytest.raises(InputError, match="no patient in common"):
        compare_paired("psnr", {"a": 1.0}, {"b": 1.0})
