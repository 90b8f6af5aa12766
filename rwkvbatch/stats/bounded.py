"""Confidence intervals of a mean that can only be between two limits, such as a pass rate."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rwkvbatch.stats.clustered import clustered_mean, detectable_errors, t_quantile

_LARGEST_SIZE: Final = 1e9
"""An effective number whose interval is far shorter than that of the unseen share for any number of clusters."""


def bounded_interval(
    values: ArrayLike, clusters: ArrayLike, *, lowest: float = 0.0, highest: float = 1.0, level: float = 0.95
) -> tuple[float, float]:
    """The interval of Clopper and Pearson with an effective number of values (Korn and Graubard 1998).

    The effective number is that of independent yes/no values whose mean would be as precise as this one, which is
    large where all values are near their mean. Other clusters than these may be at a limit, at most `unseen_share` of
    all: the interval reaches as far as the mean would move, and no farther where all clusters agree. So a mean of 0 and
    a mean of 1 get intervals that mirror each other, and none leaves the limits.

    Args:
        values: `[n]` numbers in [lowest, highest].
        clusters: `[n]` labels; equal ones belong together.

    Raises:
        ValueError: a value is outside of the limits, there is none, or not one label for each.
    """
    from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs]

    numbers = (np.asarray(values, dtype=np.float64) - lowest) / (highest - lowest)
    if numbers.size and not (numbers.min() >= -1e-9 and numbers.max() <= 1 + 1e-9):
        raise ValueError(f"values must be in [{lowest:g}, {highest:g}]")
    estimate = clustered_mean(numbers, clusters)
    mean = min(1.0, max(0.0, estimate.mean))
    variance = estimate.standard_error**2 if estimate.num_clusters > 1 else 0.0
    unseen = unseen_share(estimate.num_clusters, 1 - level)
    low, high = mean - unseen * mean, mean + unseen * (1 - mean)
    if variance > 0 and 0 < mean < 1:
        adjustment = t_quantile(0.975, estimate.num_values - 1) / t_quantile(0.975, estimate.degrees)
        size = min(_LARGEST_SIZE, mean * (1 - mean) / variance * adjustment**2)
        passed, tail = mean * size, (1 - level) / 2
        low = min(low, float(betaincinv(passed, size - passed + 1, tail)))
        high = max(high, float(betaincinv(passed + 1, max(size - passed, 1e-300), 1 - tail)))
    return lowest + (highest - lowest) * low, lowest + (highest - lowest) * high


def unseen_share(clusters: int, level: float) -> float:
    """The largest share of clusters of some kind that `clusters` without one do not rule out, at `level` / 2.

    Clopper and Pearson (1934, The use of confidence or fiducial limits illustrated in the case of the binomial).
    """
    return 1 - min(1.0, level / 2) ** (1 / clusters)


def components(means: ArrayLike, within: ArrayLike, repeats: ArrayLike) -> tuple[float, float]:
    """Variance of conversations' true differences, and of one repetition around them (analysis of variance).

    Args:
        means: `[conversations]` the mean difference of each.
        within: `[conversations]` the variance between its repetitions; NaN where there is only one.
        repeats: `[conversations]` how many repetitions it has.

    Returns:
        (between, within), neither negative; `within` is 0 where no conversation has several repetitions, `between` NaN
        for fewer than two conversations.
    """
    mean, spread, count = (np.asarray(x, dtype=np.float64) for x in (means, within, repeats))
    known = np.isfinite(spread) & (count > 1)
    inner = float(np.average(spread[known], weights=count[known] - 1)) if known.any() else 0.0
    outer = float(mean.var(ddof=1)) if mean.size > 1 else math.nan
    # The maximum of Python would make 0 of NaN.
    return float(np.maximum(0.0, outer - inner * float((1 / count).mean()))), inner


def conversations_needed(
    difference: float, between: float, within: float, repeats: int, *, power: float = 0.8, level: float = 0.05,
    limited: bool = True, reach: float = 0.0,
) -> int:  # fmt: skip
    """How many conversations find a true mean difference with probability `power`.

    The usual sample size of a paired t test, with the variance `between + within / repeats` of one conversation, and
    with the error that the detectable difference of such a sample has (`standard_error`).

    Args:
        limited: see `detectable_errors`. reach: see `standard_error`.

    Raises:
        ValueError: the difference is not positive, or a share is not between 0 and 1.
    """
    if not difference > 0 or not 0 < power < 1 or not 0 < level < 1:
        raise ValueError("the difference must be positive, power and level between 0 and 1")
    variance = between + within / repeats

    def finds(number: int) -> bool:
        factor = detectable_errors(number, level=level, power=power, limited=limited)
        return factor * standard_error(number, variance, reach) <= difference

    # The exact test cannot find anything with fewer. More conversations find whatever fewer ones do.
    low = high = max(2, math.ceil(1 - math.log2(level)))
    while not finds(high):
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle + 1, high)
    return high


def smallest_detectable(
    conversations: int, between: float, within: float, repeats: int, *, power: float = 0.8, level: float = 0.05,
    limited: bool = True, reach: float = 0.0,
) -> float:  # fmt: skip
    """The smallest true mean difference that `conversations` find with probability `power`; see `conversations_needed`.

    NaN where so few conversations cannot find any.
    """
    if conversations < max(2, math.ceil(1 - math.log2(level))):
        return math.nan
    factor = detectable_errors(conversations, level=level, power=power, limited=limited)
    return factor * standard_error(conversations, between + within / repeats, reach)


def standard_error(number: int, variance: float, reach: float) -> float:
    """The error that a detectable mean difference has, expected of `number` conversations of this variance.

    That of their mean, or where conversations can agree by chance that of the enlarged sample (`spread.Spread`, for a
    mean of 0), if it is larger: few conversations that agree do not show that others do.

    Args:
        reach: `spread.Spread.reach`; 0 where conversations cannot agree by chance.
    """
    alone = variance / number
    enlarged = (number * variance + reach**2) / ((number + 1) * (number + 2)) if reach else 0.0
    return math.sqrt(max(alone, enlarged))
