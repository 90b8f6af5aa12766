"""Variance components of a metric's values, from which sample sizes follow."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats.sample_size import components
from rwkvbatch.stats.spread import Spread

Floats = NDArray[np.float64]


class Variances(NamedTuple):
    """Variances of values of several conversations and repetitions.

    Attributes:
        between: variance of the conversations' true means; NaN for fewer than two conversations.
        within: variance of one repetition around its conversation's true mean.
        repetitions: the rounded mean number of repetitions of a conversation.
    """

    between: float
    within: float
    repetitions: int


def variances(values: Floats, conversations: NDArray[np.int64], repeats: NDArray[np.int64]) -> Variances:
    """The variance components of `values`; values of the same conversation and repetition are averaged first.

    Args:
        values: `[n]`.
        conversations, repeats: `[n]` integer codes.
    """
    num_repeats = int(repeats.max(initial=0)) + 1
    keys, key_index = np.unique(conversations * num_repeats + repeats, return_inverse=True)
    repetition_means = np.bincount(key_index, values) / np.bincount(key_index)
    _, codes = np.unique(keys // num_repeats, return_inverse=True)
    counts = np.bincount(codes)
    means = np.bincount(codes, repetition_means) / np.maximum(counts, 1)
    squares = np.bincount(codes, (repetition_means - means[codes]) ** 2)
    sample_variances = np.divide(squares, counts - 1, out=np.full(counts.size, math.nan), where=counts > 1)
    between, within = components(means, sample_variances, counts)
    return Variances(between, within, max(1, round(float(counts.mean()))) if counts.size else 1)


def weighted_deviations(values: Floats, weights: Floats | None) -> Floats:
    """`[n]` deviations whose unweighted mean varies as much as the weighted mean of `values` `[n]`.

    Args:
        weights: `[n]`, 1 on average; None for equal weights, which returns `values`.
    """
    return values if weights is None else weights * (values - np.average(values, weights=weights))


class Discreteness(NamedTuple):
    """How `stats.spread` treats the conversations' means: `Spread.discrete`, `Spread.reach` and `Spread.step`."""

    discrete: bool
    reach: float
    step: float


def discreteness(
    values: Floats, conversations: NDArray[np.int64], widest: float, weights: Floats | None = None
) -> Discreteness:
    """The discreteness of the conversations' means of `values` `[n]`.

    Means that are all 0 count as discrete if the metric has limits, because they show no other kind of value.
    """
    _, codes = np.unique(conversations, return_inverse=True)
    sums = np.bincount(codes, values if weights is None else weights * values).astype(np.float64)
    counts = np.bincount(codes, weights).astype(np.float64)
    if not sums.any():
        limit = widest if math.isfinite(widest) else 0.0
        return Discreteness(math.isfinite(widest), limit, limit)
    spread = Spread.of(sums, counts, widest)
    return Discreteness(spread.discrete, spread.reach, spread.step)
