"""Looking again and again: evidence that stays valid however often, and whenever, somebody looks.

The paired differences d of two cells, each in [-widest, widest], are drawn one after the other. If their mean is at
most m, the wealth of a gambler who bets a fixed share on "above m" every time is a non-negative supermartingale that
starts at 1, so the chance that it ever reaches 1 / level is at most `level` (Ville 1939). The wealth here is the
average over several shares (Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting).
It does not depend on the order of the draws.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SHARES: NDArray[np.float64] = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97])


def log_evidence(differences: ArrayLike, *, above: float = 0.0, widest: float = 1.0) -> float:
    """The logarithm of the wealth against "the mean is at most `above`".

    Args:
        differences: `[n]` draws, each in [-widest, widest].
        above: in the same unit.

    Raises:
        ValueError: a draw is out of range.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size == 0:
        return 0.0
    if float(np.abs(d).max()) > widest * (1 + 1e-9):
        raise ValueError(f"differences must be in [{-widest:g}, {widest:g}]")
    # The most that a draw can lose against `above` is widest + above: shares are of that.
    gains = (d - above) / (widest + max(above, -widest * 0.999))
    logs = np.log1p(_SHARES[:, None] * gains[None, :]).sum(axis=1)
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).mean()))


def mean_exceeds(differences: ArrayLike, level: float, *, above: float = 0.0, widest: float = 1.0) -> bool:
    """Whether the draws so far show, at `level` over all looks, that the mean is above `above`."""
    return log_evidence(differences, above=above, widest=widest) >= -math.log(level)
