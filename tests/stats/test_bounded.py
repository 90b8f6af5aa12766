"""Intervals of means between two limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from rwkvbatch.stats.bounded import bounded_interval


@pytest.mark.parametrize("passed", [0, 10])
def test_a_mean_at_a_limit_has_the_exact_binomial_interval(passed: int) -> None:
    values = [1.0] * passed + [0.0] * (10 - passed)
    exact = binomtest(passed, 10).proportion_ci()
    assert bounded_interval(values, range(10)) == pytest.approx((exact.low, exact.high))


def test_both_limits_are_treated_alike() -> None:
    values, clusters = [0.0, 0.25, 0.0, 0.0, 0.5, 0.0], [0, 0, 1, 1, 2, 2]
    low, high = bounded_interval(values, clusters)
    mirrored = bounded_interval([1 - value for value in values], clusters)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    assert low > 0


def test_repetitions_of_one_conversation_are_not_more_conversations() -> None:
    once = bounded_interval([1, 0, 1, 1, 0, 1], range(6))
    often = bounded_interval([1, 0, 1, 1, 0, 1] * 10, list(range(6)) * 10)
    assert often[1] - often[0] >= once[1] - once[0]


@pytest.mark.parametrize("mean", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("clusters", [1, 6, 40])
def test_equal_clusters_leave_room_for_a_share_of_others_at_a_limit(mean: float, clusters: int) -> None:
    """`binomtest` has the largest share of those that none of `clusters` is."""
    others = binomtest(0, clusters).proportion_ci().high
    low, high = bounded_interval([mean] * clusters, range(clusters))
    assert (low, high) == pytest.approx((mean * (1 - others), mean + (1 - mean) * others))


def test_clusters_that_nearly_agree_have_no_shorter_interval_than_clusters_that_agree() -> None:
    equal = bounded_interval([0.5] * 12, range(12))
    low, high = bounded_interval([0.5] * 11 + [0.51], range(12))
    assert (low, high) == pytest.approx(equal, abs=0.002)
    one_failure = bounded_interval([1.0] * 59 + [0.0], [n % 3 for n in range(60)])
    assert one_failure[0] < bounded_interval([1.0] * 60, [n % 3 for n in range(60)])[0]


@pytest.mark.parametrize(
    ("kind", "truth", "width"), [("averages of 4", 0.5, 0.31), ("narrow", 0.8, 0.18), ("a tenth fails", 0.72, 0.27)]
)
def test_intervals_of_averages_hold_the_mean_and_are_shorter_than_those_of_as_many_yes_no_values(
    kind: str, truth: float, width: float
) -> None:
    """Those of 20 yes/no values are 0.38 to 0.45 wide."""
    rng = np.random.default_rng(9)
    ends: list[tuple[float, float]] = []
    for _ in range(400):
        values = rng.beta(40, 10, 20)
        if kind == "averages of 4":
            values = rng.binomial(4, rng.beta(2, 2, 20)) / 4
        elif kind == "a tenth fails":
            values = np.where(rng.random(20) < 0.1, 0.0, values)
        ends.append(bounded_interval(values, range(20)))
    low, high = np.array(ends).T
    assert ((low <= truth) & (truth <= high)).mean() >= 0.94
    assert (high - low).mean() < width


def test_coverage_of_a_pass_rate_near_one() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(20), 5)
    hits = 0
    for _ in range(300):
        rates = rng.beta(19, 1, size=20)
        low, high = bounded_interval(rng.binomial(1, rates[clusters]), clusters)
        hits += low <= 0.95 <= high
    assert hits >= 0.93 * 300


def test_values_outside_of_the_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        bounded_interval([0.5, 1.5], [0, 1])
