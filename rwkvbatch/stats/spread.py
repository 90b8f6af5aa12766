"""The mean of clusters of unequal size, how precise it is, and how skewed the clusters are around it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkvbatch.stats.bounded import unseen_share
from rwkvbatch.stats.clustered import cluster_codes, clustered_mean, detectable_errors, t_quantile

_FEWEST_SIZES: Final = 6
_SMALL_SAMPLE: Final = 140.0
_SKEWNESS_OF_NOISE: Final = 0.5
"""Chosen by simulation, see `Spread._asymmetry` and docs/statistics.md."""
ABSENT = 4.0
"""Clusters at the ends of the range may be absent from a sample with a probability of `level` / 2 times this number.

Chosen by simulation, see docs/statistics.md."""


def unlimited_interval(
    values: ArrayLike, clusters: ArrayLike, weights: ArrayLike | None = None, *, level: float = 0.95
) -> tuple[float, float]:
    """The interval of a mean of numbers without limits: by t, and at the end of the long tail by Hall's transformation.

    Args:
        values, clusters, weights: as in `clustered_mean`.

    Returns:
        The ends; NaNs where the spread is unknown: of one cluster, and where all are equal.
    """
    estimate = clustered_mean(values, clusters, weights)
    if not estimate.standard_error > 0:
        return math.nan, math.nan
    low, high = estimate.interval(level)
    codes = cluster_codes(np.asarray(clusters))
    numbers = np.asarray(values, dtype=np.float64)
    each = np.ones(numbers.size) if weights is None else np.asarray(weights, dtype=np.float64)
    sums, counts = (np.bincount(codes, of).astype(np.float64) for of in (each * numbers, each))
    tail = Spread.of(sums, counts, math.inf).tail(1 - level)
    return min(low, tail[0]), max(high, tail[1])


@dataclass(frozen=True)
class Share:
    """A mean between 0 and 1 that is as precise as the share of `size` yes/no values."""

    mean: float
    size: float

    @classmethod
    def of(cls, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Share:
        """Of clusters `[n]` with these sums and numbers of values, each between 0 and 1."""
        total, num = float(counts.sum()), sums.size
        mean = min(1.0, max(0.0, float(sums.sum()) / total))
        if num < 2:
            return cls(mean, float(num))
        variance = float(((sums - mean * counts) ** 2 / (1 - counts / total)).sum()) / total**2
        return cls(mean, mean * (1 - mean) / variance if variance > 0 and 0 < mean < 1 else float(num))

    def wilson(self, level: float) -> tuple[float, float]:
        """The score interval (Wilson 1927)."""
        z2 = t_quantile(1 - level / 2, math.inf) ** 2
        center = (self.mean + z2 / (2 * self.size)) / (1 + z2 / self.size)
        half = math.sqrt(z2 * (self.mean * (1 - self.mean) + z2 / (4 * self.size)) / self.size) / (1 + z2 / self.size)
        return center - half, center + half


@dataclass(frozen=True)
class Spread:
    """The mean of clusters of unequal size, and how precise it is.

    Attributes:
        mean, standard_error: of all values; the error is NaN with fewer than two clusters.
        clusters: how many.
        shrunk, shrunk_error: of the sample with two more average clusters: half of one at the usual size of those that
            are not 0 (their root mean square), half of one at its opposite, and one at 0 (Agresti and Min 2005, Simple
            improved confidence intervals for comparing matched proportions). They know a spread even where all
            clusters agree.
        cautious_error: as `shrunk_error`, with clusters at the ends of the range (of the means, where they are not
            `discrete`) instead of the usual size: a difference is not detectable because few clusters differ so far.
        widest: the largest mean that is possible; infinite for metrics without limits.
        discrete: the clusters' means are steps between limits, as those of yes/no outcomes are: there are limits, and
            two means other than 0 have the same size, or fewer than 6 are not 0.
        ties: clusters can agree by chance: their means are discrete, or two are equal.
        skewness: of the clusters' deviations from the mean, with the correction for small samples (Joanes and Gill
            1998, Comparing measures of sample skewness and kurtosis); 0 for discrete means and below 3 clusters.
        gains, losses: of discrete means, the mean of the clusters' positive differences and that of their negative
            ones, as shares of `farthest`; else None.
        farthest: the largest size of a cluster's mean.
        least: the smallest mean, in size, that the sample would have if only one of the clusters differed.
    """

    mean: float
    standard_error: float
    clusters: int
    shrunk: float
    shrunk_error: float
    cautious_error: float
    widest: float
    discrete: bool
    ties: bool
    skewness: float
    gains: Share | None = None
    losses: Share | None = None
    farthest: float = math.inf
    least: float = 0.0

    @classmethod
    def of(cls, sums: NDArray[np.float64], counts: NDArray[np.float64], widest: float) -> Spread:
        """Of clusters `[n]` with these sums and numbers of values, none of which is 0."""
        size, num = float(counts.sum()), sums.size
        mean = float(sums.sum()) / size
        deviations = sums - mean * counts
        error, skewness = math.nan, 0.0
        if num > 1:
            error = math.sqrt(float((deviations**2 / (1 - counts / size)).sum())) / size
        means = sums / counts
        farthest = float(np.abs(means).max())
        steps = np.round(means / farthest, 11)
        sizes = np.abs(steps[steps != 0])
        discrete = math.isfinite(widest) and (sizes.size < _FEWEST_SIZES or np.unique(sizes).size < sizes.size)
        largest = float(np.abs(deviations).max())
        if num > 2 and not discrete and largest > 1e-12 * float(np.abs(sums).max()):
            scaled = deviations / largest
            skewness = float((scaled**3).mean() / (scaled**2).mean() ** 1.5) * math.sqrt(num * (num - 1)) / (num - 2)
        ties = discrete or np.unique(steps).size < num
        average = size / num
        more = size + 2 * average
        shrunk = float(sums.sum()) / more
        squares = float(((sums - shrunk * counts) ** 2).sum())
        shrunk_error, cautious_error = (
            math.sqrt((squares + average**2 * (reach**2 + 2 * shrunk**2)) * (num + 2) / (num + 1)) / more
            for reach in (farthest * math.sqrt(float((sizes**2).mean())), widest if discrete else farthest)
        )
        gains, losses = (
            Share.of(np.maximum(side, 0.0) / farthest, counts) if discrete else None for side in (sums, -sums)
        )
        least = min(abs(mean), float(np.abs(sums[steps != 0]).min()) / size)
        return cls(
            mean, error, num, shrunk, shrunk_error, cautious_error, widest, discrete, ties, skewness, gains, losses,
            farthest, least,
        )  # fmt: skip

    @property
    def reach(self) -> float:
        """The ends of the range that the sample of `cautious_error` has; 0 where clusters cannot agree by chance."""
        return 0.0 if not self.ties else self.widest if self.discrete else self.farthest

    def around(self, level: float) -> tuple[float, float]:
        """The interval where clusters can agree by chance.

        That of the enlarged sample; of discrete means at least that of gains less losses, from the score intervals
        of both (Newcombe 1998, Improved confidence intervals for the difference between binomial proportions based on
        paired data), which knows that a sample can lack all losses. Clusters at the ends of the metric's range can be
        absent altogether: the interval reaches as far as they move the mean where their share is such that a sample
        has none of them with a probability of 2 `level`.
        """
        half = t_quantile(1 - level / 2, self.clusters + 1) * self.shrunk_error
        low, high = self.shrunk - half, self.shrunk + half
        if self.gains is None or self.losses is None:
            return low, high
        (gain_low, gain_high), (loss_low, loss_high) = self.gains.wilson(level), self.losses.wilson(level)
        gain, loss = self.gains.mean, self.losses.mean
        below, above = math.hypot(gain - gain_low, loss_high - loss), math.hypot(gain_high - gain, loss - loss_low)
        absent = unseen_share(self.clusters, ABSENT * level)
        return (
            min(low, self.mean - self.farthest * below, self.mean - absent * (self.widest + self.mean)),
            max(high, self.mean + self.farthest * above, self.mean + absent * (self.widest - self.mean)),
        )

    @property
    def tail_p(self) -> float:
        """Two-sided p-value of "the true mean is 0" by Hall's transformation, where the long tail is on the side of 0.

        0 where it is not, and where there is no skewness.
        """
        if not self._is_skewed or self.mean * self.skewness >= 0:
            return 0.0
        from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]

        a, t = self._asymmetry, self.mean / self.standard_error
        transformed = ((1 + a * t / 3) ** 3 - 1) / a + a / 6
        return float(min(1.0, 2 * stdtr(self.clusters - 1, transformed if self.mean < 0 else -transformed)))

    def tail(self, level: float) -> tuple[float, float]:
        """The interval by Hall's transformation at the end of the long tail; the other end is the mean."""
        if not self._is_skewed:
            return self.mean, self.mean
        a, sign = self._asymmetry, math.copysign(1.0, self.skewness)
        quantile = -sign * t_quantile(1 - level / 2, self.clusters - 1)
        end = self.mean - 3 / a * (math.cbrt(1 + a * (quantile - a / 6)) - 1) * self.standard_error
        return min(self.mean, end), max(self.mean, end)

    @property
    def _is_skewed(self) -> bool:
        return self.standard_error > 0 and abs(self._asymmetry) > 1e-6

    @property
    def _asymmetry(self) -> float:
        """`a` in the transformation of the t statistic by Hall (1992, On the removal of skewness by transformation).

        g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = ((1 + a t / 3)^3 - 1) / a + a / 6, which is monotonic.

        A skewness of up to about 0.5 is mostly noise: it is multiplied by the share of its square in itself and 0.25.
        Small samples of skewed populations show too little of the skewness: it is multiplied by 1 + 140 / n^2. The
        cubic flattens at t = -3 / a and its inverse jumps near a = 1 / t, so a stays below 0.96 / t at a level of 5 %,
        and below (0.9 + 0.75 / n) / t, which is enough for more than 12 clusters.
        """
        n, square = self.clusters, self.skewness**2
        a = self.skewness * square / (square + _SKEWNESS_OF_NOISE**2) * (1 + _SMALL_SAMPLE / n**2) / math.sqrt(n)
        most = min(0.96, 0.9 + 0.75 / n) / t_quantile(0.975, n - 1)
        return min(most, max(-most, a))

    def detectable(self, level: float) -> float:
        """A true mean that is found 4 times in 5 (Bloom 1995), at least: with the larger one of two errors."""
        if self.clusters < 2 or not self.standard_error > 0 or not level > 0:
            return math.nan
        error = max(self.standard_error, self.cautious_error) if self.ties else self.standard_error
        return detectable_errors(self.clusters, level=level, limited=self.discrete) * error
