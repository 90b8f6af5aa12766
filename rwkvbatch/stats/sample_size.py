"""How many conversations it takes to find a difference, and the difference that a number of them finds."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkvbatch.stats.clustered import t_quantile
from rwkvbatch.stats.skewness import ORDINARY

_ENUMERATED: Final = 20_000
"""The most conversations whose power is enumerated. With more, one conversation changes it by less than 0.1 %."""


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
    discrete: bool = True, reach: float = 0.0, step: float = 0.0, margin: bool = False,
) -> int:  # fmt: skip
    """The number of conversations that finds a true mean difference with probability `power`.

    One conversation has the variance `between + within / repeats`. Discrete differences with a `reach` are tested by
    sign flips (`flips_find`). For others it is the usual sample size of a paired t test, with the standard error
    `planned_error`.

    Args:
        difference: in the metric's unit.
        between, within: see `components`.
        repeats: repetitions per conversation.
        discrete: see `detectable_errors`.
        reach: see `planned_error`.
        step: between two possible differences of a conversation without repetitions; 0 for `reach`.
        margin: whether an interval shall exclude a margin that is `difference` away from the true mean. Sign flips test
            a difference of 0 alone; at another one the t interval of discrete differences decides.

    Raises:
        ValueError: the difference is not positive, or `power` or `level` is not between 0 and 1.
    """
    if not difference > 0 or not 0 < power < 1 or not 0 < level < 1:
        raise ValueError("the difference must be positive, power and level between 0 and 1")
    variance = between + within / repeats

    def finds(conversations: int) -> bool:
        if discrete and reach and not margin:
            size = _step(reach, step, within, repeats)
            return flips_find(difference, conversations, variance, reach, size, level=level, power=power)
        errors = detectable_errors(conversations, level=level, power=power, discrete=discrete)
        return errors * planned_error(conversations, variance, reach) <= difference

    # More conversations find whatever fewer find (but for steps of the exact test), so a bisection is enough.
    low = high = _fewest_testable(level)
    while not finds(high):
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if finds(middle) else (middle + 1, high)
    return high


def smallest_detectable(
    conversations: int, between: float, within: float, repeats: int, *, power: float = 0.8, level: float = 0.05,
    discrete: bool = True, reach: float = 0.0, step: float = 0.0,
) -> float:  # fmt: skip
    """The smallest true mean difference that `conversations` find with probability `power`.

    NaN if the exact test cannot find anything with so few. The arguments are those of `conversations_needed`.
    """
    if conversations < _fewest_testable(level):
        return math.nan
    variance = between + within / repeats
    if discrete and reach:
        size = _step(reach, step, within, repeats)
        return detectable_by_flips(conversations, variance, reach, size, level=level, power=power)
    errors = detectable_errors(conversations, level=level, power=power, discrete=discrete)
    return errors * planned_error(conversations, variance, reach)


def _step(reach: float, step: float, within: float, repeats: int) -> float:
    """Between two possible differences of a conversation with `repeats` repetitions."""
    return reach / repeats if within else step or reach


def detectable_by_flips(
    conversations: int, variance: float, reach: float, step: float, *, level: float = 0.05, power: float = 0.8
) -> float:
    """The smallest true mean of discrete differences that sign flips find with probability `power`.

    It is `reach` if not even a mean of this size is found with that probability. The arguments are those of
    `flips_find`.
    """
    low, high = 0.0, reach
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        if flips_find(middle, conversations, variance, reach, step, level=level, power=power):
            high = middle
        else:
            low = middle
    return high


def flips_find(
    difference: float, conversations: int, variance: float, reach: float, step: float, *, level: float, power: float
) -> bool:
    """Whether sign flips find a true mean of discrete differences with probability `power`.

    Sign flips keep the size of each difference, so the sum of n differences with the mean d varies by `n (V + d^2)`
    under flips, and by `n V` in samples (Miettinen 1968, The matched pairs design in the case of all-or-none responses;
    Connor 1987, Sample size for testing differences in proportions for the paired-sample design). The exact test
    attains a smaller level: on average by half of the `step` between the sums. Differences of one outcome each (`step`
    equal to `reach`) are gains and losses of the size `reach`, whose power is enumerated (`sign_test_power`).

    Args:
        difference: the true mean, above 0 and at most `reach`.
        conversations: how many.
        variance: of a conversation's difference. With gains and losses up to `reach`, a mean of d leaves at most
            `reach^2 - d^2` of it. It is at least that of `planned_error`, as far as gains of the size `reach` alone can
            have it, because a few conversations that agree do not show that others do. Differences of one outcome each
            have at least that of gains alone, d (`reach` - d), whatever the sample has.
        reach: the largest difference of a conversation.
        step: between two possible differences of a conversation.
    """
    d, n = difference, conversations
    of_gains = d * (reach - d)
    least = of_gains if step >= reach else min(n * planned_error(n, variance, reach) ** 2, of_gains)
    variance = min(max(variance, least), reach**2 - d**2)
    square = variance + d**2
    if step >= reach and n <= _ENUMERATED:
        gains = min(1.0, (square / reach**2 + d / reach) / 2)
        losses = max(0.0, (square / reach**2 - d / reach) / 2)
        return sign_test_power(n, gains, min(losses, 1 - gains), level) >= power
    from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]

    errors = -ndtri(level / 2) * math.sqrt(square) + ndtri(power) * math.sqrt(max(0.0, variance))
    return n * d - step / 2 >= math.sqrt(n) * errors


def sign_test_power(conversations: int, gains: float, losses: float, level: float) -> float:
    """The probability that the exact two-sided sign test finds more gains than losses, at `level`.

    Args:
        conversations: how many.
        gains, losses: probabilities that a conversation is one; their sum is above 0 and at most 1.
    """
    from scipy.special import bdtr, bdtrc  # pyright: ignore[reportMissingTypeStubs]

    share = min(1.0, gains + losses)
    spread = 8 * math.sqrt(conversations * share * (1 - share)) + 8
    mean = conversations * share
    numbers = np.arange(max(0, math.floor(mean - spread)), min(conversations, math.ceil(mean + spread)) + 1)
    below = bdtr(numbers, conversations, share)
    weights = np.diff(below, prepend=0.0 if numbers[0] == 0 else float(bdtr(numbers[0] - 1, conversations, share)))
    fewest = _fewest_gains(level, 1 << conversations.bit_length())[numbers]
    possible = fewest <= numbers
    found = bdtrc(fewest[possible] - 1, numbers[possible], min(1.0, gains / share))
    return float(weights[possible] @ found)


@lru_cache(maxsize=16)
def _fewest_gains(level: float, most: int) -> NDArray[np.int64]:
    """`[most + 1]` the fewest gains of n conversations that differ with a two-sided p of at most `level`.

    It is n + 1 where no number of gains is enough.
    """
    from scipy.special import bdtrc  # pyright: ignore[reportMissingTypeStubs]

    numbers = np.arange(most + 1)
    fewest = numbers // 2 + 1

    def p_value(gains: NDArray[np.int64]) -> NDArray[np.float64]:
        return 2 * bdtrc(np.minimum(gains, numbers) - 1, numbers, 0.5)

    jump = 1 << (most.bit_length() - 1)
    while jump:  # a bisection: the largest number of gains that is not enough, plus 1
        further = fewest + jump
        enough = (further - 1 > numbers) | (p_value(further - 1) <= level * (1 + 1e-9))
        fewest = np.where(enough, fewest, further)
        jump //= 2
    return np.where((fewest <= numbers) & (p_value(fewest) > level * (1 + 1e-9)), numbers + 1, fewest)


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
