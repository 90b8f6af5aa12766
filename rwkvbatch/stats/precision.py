"""When to stop adding repeats: on precision, never on significance.

The rule looks only at how wide the paired interval is, not at where it lies: a rule that stopped when the
interval leaves zero would find a difference between equal cells if only it looked often enough.

Width alone is not quite enough. With few conversations the clustered standard error is itself uncertain, and
a rule that looks after every repeat stops when it happens to be too small, which makes the final test a
little too eager (6.3 false alarms in 100 instead of 5, with 16 conversations). The spread of the single
differences is known far better. So a cell stops only when *both* widths are small enough, the clustered one
and the one from single differences; `tests/stats/test_precision.py` simulates that this keeps the false
alarms at their nominal rate.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from rwkvbatch.stats.clustered import clustered_mean, t_quantile

LEVEL: Final = 0.95


def planning_width(differences: ArrayLike, conversations: ArrayLike, *, level: float = LEVEL) -> float:
    """Width (high minus low) of the mean paired difference's interval, for deciding whether to go on.

    The wider of the clustered interval and of the one that single differences give with the same degrees of
    freedom; infinite when the clustered one cannot be known.

    Args:
        differences: `[n]` cell minus baseline, one a matched (conversation, turn, repeat).
        conversations: `[n]` which conversation each belongs to.

    Raises:
        ValueError: there is no difference, or the arguments differ in length.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    estimate = clustered_mean(numbers, conversations)
    low, high = estimate.interval(level)
    if math.isnan(low):
        return math.inf
    single = float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return max(high - low, 2 * t_quantile(0.5 + level / 2, estimate.degrees) * single)


def needs_more_repeats(
    differences: ArrayLike, conversations: ArrayLike, *, width: float, level: float = LEVEL
) -> bool:
    """Whether a cell's paired interval against the baseline is still wider than `width`.

    Args:
        differences: as in `planning_width`; in the metric's own unit.
        conversations: as in `planning_width`.
        width: what `--until-ci` asks for, in the metric's unit, end to end.

    Raises:
        ValueError: `width` is not positive, or there is no difference yet.
    """
    if not width > 0:
        raise ValueError(f"the width of an interval must be positive; got {width}")
    return planning_width(differences, conversations, level=level) > width
