"""Many tests at once: Holm's step-down correction (Holm 1979), which keeps the chance of any false alarm."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values, in the order given; below alpha exactly where Holm's procedure at level alpha
    rejects.

    The i-th smallest of m is multiplied by m - i (i from 0), made non-decreasing and cut at 1. NaNs stay NaN
    and do not count among the m.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted
