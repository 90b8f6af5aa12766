"""Confidence intervals of a mean that can only be between two limits, such as a pass rate."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rwkvbatch.stats.clustered import clustered_mean, t_quantile

_LARGEST_SIZE: Final = 1e9
"""A larger effective number would not change the interval: the unseen share decides it long before."""


def bounded_interval(
    values: ArrayLike, clusters: ArrayLike, *, lowest: float = 0.0, highest: float = 1.0, level: float = 0.95
) -> tuple[float, float]:
    """The interval of Clopper and Pearson with an effective number of values (Korn and Graubard 1998).

    The effective number is that of independent yes/no values whose mean would be as precise as this one. It is large
    if all values are near their mean. A share of the population that the sample lacks, at most `unseen_share`, may be
    at a limit: the interval contains the means that such clusters could make. If all clusters agree, it is exactly
    that. The intervals of a mean of 0 and of a mean of 1 mirror each other, and no interval leaves the limits.

    Args:
        values: `[n]` numbers in [lowest, highest].
        clusters: `[n]` labels; equal ones belong together.
        lowest, highest: the limits of a value.
        level: of confidence.

    Raises:
        ValueError: a value is outside of the limits, there is no value, or the arguments differ in length.
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
    """The largest population share of a kind of cluster that a sample of `clusters` without one does not rule out.

    The sample lacks the kind with a probability of `level` / 2.

    Clopper and Pearson (1934, The use of confidence or fiducial limits illustrated in the case of the binomial).
    """
    return 1 - min(1.0, level / 2) ** (1 / clusters)
