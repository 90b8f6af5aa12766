"""Fixed-width stopping for adaptive repetitions. Decisions depend on an interval's width, never on its position."""

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
    infinite if the clustered interval is unknown.

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
    unclustered_error = float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return max(high - low, 2 * t_quantile(0.5 + level / 2, estimate.degrees) * unclustered_error)


def needs_more_repeats(differences: ArrayLike, conversations: ArrayLike, *, width: float, level: float = LEVEL) -> bool:
    """Whether `planning_width` exceeds `width`.

    Args:
        differences, conversations: as in `planning_width`.
        width: of `--until-ci`: high minus low, in the metric's unit.

    Raises:
        ValueError: `width` is not positive, or `planning_width` raises it.
    """
    if not width > 0:
        raise ValueError(f"the width of an interval must be positive; got {width}")
    return planning_width(differences, conversations, level=level) > width
