"""Anytime-valid evidence: tests that may be looked at after every draw, and the elimination of cells that uses them.

If the mean of draws d in [-1, 1] is at most m, the wealth of a gambler who bets a fixed share on "above m" each time is
a non-negative supermartingale that starts at 1, so the probability that it ever reaches 1 / level is at most `level`
(Ville 1939). The wealth here is the average over several shares (Waudby-Smith and Ramdas 2024, Estimating means of
bounded random variables by betting). Averages of such wealths are valid too (Vovk and Wang 2021, E-values).
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
    return float(_log_mean(np.log1p(_SHARES[:, None] * gains[None, :]).sum(axis=1)))


def mean_exceeds(differences: ArrayLike, level: float, *, above: float = 0.0, widest: float = 1.0) -> bool:
    """Whether the draws so far show, at `level` over all looks, that the mean is above `above`."""
    return log_evidence(differences, above=above, widest=widest) >= -math.log(level)


def _log_mean(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of the mean of exp(logs) over the last axis."""
    most = logs.max(axis=-1, keepdims=True)
    return np.log(np.exp(logs - most).mean(axis=-1)) + most[..., 0]


class Elimination:
    """Drops cells for which there is evidence that another cell is truly better.

    At each draw a bet is made against cell i: that the mean score of the cells that led before the draw is above its
    own (for the leader: that of the runners-up). If the cell is one of the truly best, no such bet has a positive
    expectation, whoever leads, so its wealth e_i is a supermartingale. A cell is dropped when the average wealth of
    every set of cells in the race that contains it is at least 1 / level, which is equivalent to

        e_i >= 1 / level + sum over the other cells j in the race of max(0, 1 / level - e_j).

    This is the closed test of "these are the best cells" by averages (Vovk and Wang 2021): with probability
    1 - `level`, no truly best cell is dropped at any look, however many looks there are and however many are best.

    Args:
        num_cells: at least 2.
        level: the largest probability that a truly best cell is ever dropped.

    Attributes:
        left: numbers of the cells that are still in the race, ascending.
        num_draws: draws so far.
        log_wealth: `[cells]` of each cell; a dropped cell keeps its last one.
        played: `[cells]` number of draws that the cell took part in.
    """

    def __init__(self, num_cells: int, level: float) -> None:
        self.level = level
        self.left = np.arange(num_cells)
        self.num_draws = 0
        self.log_wealth = np.zeros(num_cells)
        self.played = np.zeros(num_cells, dtype=np.int64)
        self._totals = np.zeros(num_cells)
        self._logs = np.zeros((num_cells, _SHARES.size))
        self._scores: list[NDArray[np.float64]] = []

    @property
    def means(self) -> NDArray[np.float64]:
        """`[cells]` mean score over the draws that the cell took part in; NaN without any."""
        with np.errstate(invalid="ignore"):
            return self._totals / self.played

    @property
    def leader(self) -> int:
        """The cell in the race with the highest mean; of several with the same mean, the first."""
        return int(self.left[np.argmax(self._totals[self.left])])

    def mean_behind(self, leader: int, cell: int) -> float:
        """Mean score of `leader`, which is in the race, minus that of `cell`, over the draws that `cell` played."""
        played = np.array(self._scores[: self.played[cell]])
        return float((played[:, leader] - played[:, cell]).mean())

    def add(self, scores: ArrayLike) -> None:
        """Adds one draw.

        Args:
            scores: `[cells in the race]`, each in [0, 1], in the order of `left`.

        Raises:
            ValueError: a score is missing, not in [0, 1], or not a number.
        """
        draw = np.asarray(scores, dtype=np.float64)
        if draw.shape != self.left.shape or not ((draw >= 0) & (draw <= 1)).all():
            raise ValueError("a draw needs one score in [0, 1] for each cell in the race")
        if self.left.size > 1:
            bets = _score_of_leaders(self._totals[self.left], draw) - draw
            self._logs[self.left] += np.log1p(_SHARES[None, :] * bets[:, None])
        self._totals[self.left] += draw
        self.played[self.left] += 1
        self.num_draws += 1
        scores_of_all = np.full(self.played.size, np.nan)
        scores_of_all[self.left] = draw
        self._scores.append(scores_of_all)

    def drop(self) -> tuple[int, ...]:
        """Drops the cells that the draws so far show to be worse than another one, and returns their numbers."""
        self.log_wealth[self.left] = _log_mean(self._logs[self.left])
        wealth = np.exp(np.minimum(self.log_wealth[self.left], 700.0))
        lacking = np.maximum(0.0, 1 / self.level - wealth)
        worse = wealth >= 1 / self.level + (lacking.sum() - lacking)
        # Not every cell can be worse than another one. The evidence against the leader is false here.
        if worse.all():
            worse[np.argmax(self._totals[self.left])] = False
        dropped = self.left[worse]
        self.left = self.left[~worse]
        return tuple(map(int, dropped))

    def is_within(self, margin: float) -> bool:
        """Whether the draws show that no cell in the race is better than the leader by `margin` or more.

        If the leader is that far from a truly best cell that is in the race, its evidence against that one cell is
        false. Any of the m - 1 other cells may be such a leader, so the evidence must reach (m - 1) / level: with
        probability 1 - `level` this is never true of one, at any look.
        """
        needed = self.level / max(1, self.played.size - 1)
        scores, leader = np.array(self._scores), self.leader
        others = self.left[self.left != leader]
        return all(mean_exceeds(scores[:, leader] - scores[:, cell], needed, above=-margin) for cell in others)


def _score_of_leaders(totals: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each cell, the mean of `scores` over the others that have the highest of `totals`."""
    leads = totals == totals.max()
    count, total = int(leads.sum()), float(scores[leads].sum())
    if count > 1:
        return np.where(leads, (total - scores) / (count - 1), total / count)
    runners_up = totals == totals[~leads].max()
    return np.where(leads, scores[runners_up].mean(), total)
