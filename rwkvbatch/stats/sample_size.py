"""How many conversations it takes to find a difference, and the difference that a number of them finds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from rwkvbatch.stats.clustered import t_quantile
from rwkvbatch.stats.skewness import ORDINARY


def detectable_errors(clusters: int, *, level: float = 0.05, power: float = 0.8, discrete: bool = True) -> float:
    """The true mean that a test finds with probability `power`, as a multiple of its standard error (Bloom 1995).

    Args:
        clusters: at least 2.
        level: of the test.
        power: the probability.
        discrete: whether the cluster means are discrete (`stats.spread.Spread.discrete`). For others the correction for
            skewness costs power, as if the mean were divided by 1 + (21 + 9 log(5 % / level)) / n^2, with log(1) for
            levels above 5 % (by simulation, docs/design/statistics-measurements.md).
    """
    errors = t_quantile(1 - level / 2, clusters - 1) + t_quantile(power, clusters - 1)
    return errors if discrete else errors * (1 + (21 + 9 * max(0.0, math.log(ORDINARY / level))) / clusters**2)


def components(means: ArrayLike, within: ArrayLike, repeats: ArrayLike) -> tuple[float, float]:
    """The variance between conversations' true differences, and that of one repetition around them.

    By analysis of variance.

    Args:
        means: `[conversations]` the mean difference of each.
        within: `[conversations]` the variance between the repetitions of each; NaN where there is only one.
        repeats: `[conversations]` the number of repetitions of each.

    Returns:
        (between, within), neither negative. `within` is 0 if no conversation has several repetitions; `between` is NaN
        for fewer than two conversations.
    """
    mean, spread, count = (np.asarray(x, dtype=np.float64) for x in (means, within, repeats))
    known = np.isfinite(spread) & (count > 1)
    inner = float(np.average(spread[known], weights=count[known] - 1)) if known.any() else 0.0
    outer = float(mean.var(ddof=1)) if mean.size > 1 else math.nan
    # numpy's maximum keeps NaN; Python's would return 0.
    return float(np.maximum(0.0, outer - inner * float((1 / count).mean()))), inner


def conversations_needed(
    difference: float, between: float, within: float, repeats: int, *, power: float = 0.8, level: float = 0.05,
    discrete: bool = True, reach: float = 0.0,
) -> int:  # fmt: skip
    """The number of conversations that finds a true mean difference with probability `power`.

    It is the usual sample size of a paired t test. One conversation has the variance `between + within / repeats`; the
    standard error is `planned_error`.

    Args:
        difference: in the metric's unit.
        between, within: see `components`.
        repeats: repetitions per conversation.
        discrete: see `detectable_errors`.
        reach: see `planned_error`.

    Raises:
        ValueError: the difference is not positive, or `power` or `level` is not between 0 and 1.
    """
    if not difference > 0 or not 0 < power < 1 or not 0 < level < 1:
        raise ValueError("the difference must be positive, power and level between 0 and 1")
    variance = between + within / repeats

    def finds(conversations: int) -> bool:
        errors = detectable_errors(conversations, level=level, power=power, discrete=discrete)
        return errors * planned_error(conversations, variance, reach) <= difference

    # More conversations find whatever fewer find, so a bisection is enough.
    low = high = _fewest_testable(level)
    while not finds(high):
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle + 1, high)
    return high


def smallest_detectable(
    conversations: int, between: float, within: float, repeats: int, *, power: float = 0.8, level: float = 0.05,
    discrete: bool = True, reach: float = 0.0,
) -> float:  # fmt: skip
    """The smallest true mean difference that `conversations` find with probability `power`.

    NaN if the exact test cannot find anything with so few. The arguments are those of `conversations_needed`.
    """
    if conversations < _fewest_testable(level):
        return math.nan
    errors = detectable_errors(conversations, level=level, power=power, discrete=discrete)
    return errors * planned_error(conversations, between + within / repeats, reach)


def planned_error(conversations: int, variance: float, reach: float) -> float:
    """The expected standard error of the mean of `conversations`, for the differences that they can detect.

    It is the larger one of two: the error of the plain mean, and where conversations can have the same mean by chance
    the expected `Spread.planning_error` of a true mean of 0. A few conversations that agree do not show that others do.

    Args:
        variance: of one conversation's mean difference.
        reach: `Spread.reach`; 0 where conversations cannot have the same mean by chance.
    """
    plain = variance / conversations
    adjusted = (conversations * variance + reach**2) / ((conversations + 1) * (conversations + 2)) if reach else 0.0
    return math.sqrt(max(plain, adjusted))


def _fewest_testable(level: float) -> int:
    """The fewest conversations whose exact sign-flip test can be significant: 2^(1 - n) is at most `level`."""
    return max(2, math.ceil(1 - math.log2(level)))
