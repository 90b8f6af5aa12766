"""Skewed differences: Hall's transformation at the end of the long tail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import skew, t

from rwkvbatch.stats.signflip import Difference, compare_family
from rwkvbatch.stats.spread import Spread

SKEWED = np.array([-0.9, -0.7, -0.65, -0.6, -0.5, -0.4, -0.35, -0.2, 0.1, 2.4])


def spread(values: np.ndarray, widest: float = math.inf) -> Spread:
    return Spread.of(values, np.ones_like(values), widest)


def one(values: np.ndarray, widest: float = math.inf) -> Difference:
    column = values[:, None]
    return compare_family(column, np.ones_like(column), widest=widest).differences[0]


def test_the_p_value_is_that_of_halls_formula() -> None:
    found, n = spread(SKEWED), SKEWED.size
    gamma = float(skew(SKEWED, bias=False))
    statistic = SKEWED.mean() / (SKEWED.std(ddof=1) / math.sqrt(n))
    transformed = (
        statistic + gamma * statistic**2 / (3 * math.sqrt(n)) + gamma**2 * statistic**3 / (27 * n)
        + gamma / (6 * math.sqrt(n))
    )  # fmt: skip
    assert found.tail_p == pytest.approx(2 * t.cdf(transformed, n - 1))


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_end_of_the_long_tail_is_the_mean_that_has_just_this_p_value(level: float, sign: int) -> None:
    low, high = spread(sign * SKEWED).tail(level)
    end = high if sign > 0 else low
    assert (low if sign > 0 else high) == pytest.approx(sign * SKEWED.mean())
    assert spread(sign * SKEWED - end).tail_p == pytest.approx(level)


def test_only_the_end_of_the_long_tail_moves_out() -> None:
    skewed, flipped = one(SKEWED), one(SKEWED / 10, widest=1.0)
    flips = np.sort(np.array([SKEWED[np.array(list(f"{code:010b}")) == "1"].mean() for code in range(1, 1024)]))
    skipped = math.floor(0.05 * 1024 / 2) - 1
    assert skewed.low == pytest.approx(flips[skipped])
    assert skewed.high > flips[-1 - skipped] + 0.1
    assert flipped.p < skewed.p


def test_an_extreme_conversation_on_the_side_of_the_mean_does_not_hide_a_difference() -> None:
    values = np.array([0.1, 0.11, 0.12, 0.13, 0.14, 40.0])
    assert spread(values).tail_p == 0.0
    assert one(values).p == pytest.approx(2 / 64)


def test_metrics_with_limits_keep_the_exact_test() -> None:
    assert spread(SKEWED / 10, widest=1.0).skewness == 0.0
    assert spread(SKEWED / 10, widest=1.0).tail_p == 0.0


def test_equal_clusters_have_no_skewness() -> None:
    found = spread(np.full(9, 0.3))
    assert (found.skewness, found.ties, found.tail(0.05)) == (0.0, True, (found.mean, found.mean))


def test_clusters_that_cannot_agree_by_chance_have_the_interval_of_the_flips_alone() -> None:
    values = np.array([-0.5, -0.31, -0.1, -0.02, 0.04, 0.13, 0.29, 0.47])
    assert one(values).high < one(values, widest=1.0).high
    assert one(np.append(values, 0.47)).high >= spread(np.append(values, 0.47)).around(0.05)[1]
