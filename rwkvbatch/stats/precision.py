"""Fixed-width stopping for adaptive repetitions: decides by an interval's width, never by its position."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rwkvbatch.stats.clustered import clustered_mean, t_quantile

LEVEL: Final = 0.95


def planning_width(differences: ArrayLike, conversations: ArrayLike, *, level: float = LEVEL) -> float:
    """Width (high minus low) of the confidence interval of a mean paired difference, for stopping decisions.

    The larger of the clustered interval's width and of the unclustered one's with the same degrees of freedom;
    infinite where the clustered interval is unknown.

    Args:
        differences: `[n]` cell minus baseline, one per matched (conversation, turn, repeat).
        conversations: `[n]` the conversation of each.

    Raises:
        ValueError: `differences` is empty, or the arguments differ in length.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    estimate = clustered_mean(numbers, conversations)
    low, high = estimate.interval(level)
    if math.isnan(low):
        return math.inf
    single = float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return max(high - low, 2 * t_quantile(0.5 + level / 2, estimate.degrees) * single)


def needs_more_repeats(differences: ArrayLike, conversations: ArrayLike, *, width: float, level: float = LEVEL) -> bool:
    """Whether `planning_width` exceeds `width`: that of `--until-ci`, in the metric's unit, from end to end.

    Raises:
        ValueError: `width` is not positive, or as `planning_width`.
    """
    if not width > 0:
        raise ValueError(f"the width of an interval must be positive; got {width}")
    return planning_width(differences, conversations, level=level) > width
