"""pass@k and all-k-pass: what k of n repeats would have shown.

Both are unbiased estimates over all choices of k out of n repeats of which c passed: pass@k = 1 - C(n-c, k) /
C(n, k) (Chen et al. 2021, "Evaluating Large Language Models Trained on Code", section 2.1), all-k = C(c, k) /
C(n, k).
"""

from __future__ import annotations

import math
from math import comb
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


def needs_more_repeats(differences: ArrayLike, conversations: ArrayLike, *, width: float, level: float = LEVEL) -> bool:
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


def pass_at_k(num_repeats: int, num_passed: int, k: int) -> float:
    """The probability that at least one of `k` repeats passes.

    Raises:
        ValueError: not 1 <= k <= num_repeats, or not 0 <= num_passed <= num_repeats.
    """
    _check(num_repeats, num_passed, k)
    return 1.0 - comb(num_repeats - num_passed, k) / comb(num_repeats, k)


def all_k_pass(num_repeats: int, num_passed: int, k: int) -> float:
    """The probability that `k` repeats all pass.

    Raises:
        ValueError: as `pass_at_k`.
    """
    _check(num_repeats, num_passed, k)
    return comb(num_passed, k) / comb(num_repeats, k)


def _check(num_repeats: int, num_passed: int, k: int) -> None:
    if not 1 <= k <= num_repeats:
        raise ValueError(f"k must be in [1, {num_repeats}], the number of repeats; got {k}")
    if not 0 <= num_passed <= num_repeats:
        raise ValueError(f"passed repeats must be in [0, {num_repeats}]; got {num_passed}")
