"""The mean of clusters of unequal size, its precision, and the intervals of means that can be equal by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkvbatch.stats.bounded import unseen_share
from rwkvbatch.stats.clustered import cluster_codes, clustered_mean, t_quantile
from rwkvbatch.stats.sample_size import detectable_by_flips, detectable_errors
from rwkvbatch.stats.signflip import FEW_VALUES, is_whole
from rwkvbatch.stats.skewness import LACKED_ALONE, SkewedMean, lacked_skewness, sample_skewness

FEWEST_SIZES: Final = 6
"""Means of clusters are discrete if fewer than this many differ from 0."""
NEWCOMBE_SHARE = 0.5
"""Where the end of Newcombe's interval is farther out, how much of the way to it an end of `tie_interval` moves.

The farther of the two ends holds too many true means, the nearer one too few. Chosen by simulation
(docs/design/statistics-measurements.md)."""
ABSENT = 4.0
"""`tie_interval` allows for clusters at the ends of the range that a sample lacks with a probability of `level` / 2
times this number. Chosen by simulation (docs/design/statistics-measurements.md)."""


def unlimited_interval(
    values: ArrayLike, clusters: ArrayLike, weights: ArrayLike | None = None, *, level: float = 0.95
) -> tuple[float, float]:
    """The confidence interval of a mean of numbers without limits.

    It is the t interval, extended on the side of the long tail by `SkewedMean`. Its degrees of freedom are at most
    `Spread.degrees`: where most clusters have one mean, the others alone show the spread.

    Args:
        values, clusters, weights: as in `clustered_mean`.
        level: of confidence.

    Returns:
        The lower and the upper end. Both are NaN with one cluster, and where all cluster means are equal: the spread is
        unknown then.
    """
    estimate = clustered_mean(values, clusters, weights)
    if not estimate.standard_error > 0:
        return math.nan, math.nan
    codes = cluster_codes(np.asarray(clusters))
    numbers = np.asarray(values, dtype=np.float64)
    sizes = np.ones(numbers.size) if weights is None else np.asarray(weights, dtype=np.float64)
    sums = np.bincount(codes, sizes * numbers).astype(np.float64)
    counts = np.bincount(codes, sizes).astype(np.float64)
    spread = Spread.of(sums, counts, math.inf)
    low, high = replace(estimate, degrees=min(estimate.degrees, spread.degrees)).interval(level)
    tail_low, tail_high = spread.skewed.interval(1 - level)
    return min(low, tail_low), max(high, tail_high)


@dataclass(frozen=True)
class Share:
    """A mean between 0 and 1 that is as precise as the share of `size` independent yes/no values."""

    mean: float
    size: float

    @classmethod
    def of(cls, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Share:
        """Of clusters `[n]` with these sums and numbers of values, each value between 0 and 1."""
        total, num_clusters = float(counts.sum()), sums.size
        mean = min(1.0, max(0.0, float(sums.sum()) / total))
        if num_clusters < 2:
            return cls(mean, float(num_clusters))
        variance = float(((sums - mean * counts) ** 2 / (1 - counts / total)).sum()) / total**2
        return cls(mean, mean * (1 - mean) / variance if variance > 0 and 0 < mean < 1 else float(num_clusters))

    def wilson(self, level: float) -> tuple[float, float]:
        """The score interval (Wilson 1927)."""
        z2 = t_quantile(1 - level / 2, math.inf) ** 2
        center = (self.mean + z2 / (2 * self.size)) / (1 + z2 / self.size)
        half = math.sqrt(z2 * (self.mean * (1 - self.mean) + z2 / (4 * self.size)) / self.size) / (1 + z2 / self.size)
        return center - half, center + half


@dataclass(frozen=True)
class Spread:
    """The mean of clusters of unequal size, and its precision.

    The adjusted sample contains two more clusters of average size: half a cluster at the root mean square of the
    cluster means that are not 0, half a cluster at its opposite, and one cluster at 0 (Agresti and Min 2005, Simple
    improved confidence intervals for comparing matched proportions). It has a spread even where all clusters agree.

    Attributes:
        mean: of all values.
        standard_error: of the mean; NaN with fewer than two clusters.
        clusters: how many.
        adjusted_mean, adjusted_error: mean and standard error of the adjusted sample.
        planning_error: the same error with the two half clusters at the ends of the metric's range, or of the cluster
            means if those are not `discrete`. A small difference of a few clusters does not make small differences
            detectable.
        widest: the largest possible mean; infinite for metrics without limits.
        discrete: the cluster means take few values between limits, as yes/no outcomes and averages of a few do. True if
            the metric has limits, and either two cluster means other than 0 have the same size, or fewer than
            `FEWEST_SIZES` are not 0, or all of them are averages of at most `FEW_VALUES` outcomes.
        ties: two clusters can have the same mean by chance: they are `discrete`, or two are equal.
        varying: clusters that do not have the most common mean; all of them where no two means are equal.
        skewness: of the clusters' deviations from the mean (`sample_skewness`); 0 for discrete means.
        lacked: what the sample may lack of it towards either end (`lacked_skewness`).
        gains, losses: the means of the positive and of the negative parts of discrete cluster means, as shares of
            `largest`; else None.
        largest: the largest absolute cluster mean.
        step: between two means that a cluster of discrete values can have: `widest` if all means are at the ends of the
            range or 0, else that divided by the average number of values of a cluster, or the smallest mean other than
            0 if that is less.
        smallest_step: the smallest absolute mean that the sample would have if only one cluster were not 0.
    """

    mean: float
    standard_error: float
    clusters: int
    adjusted_mean: float
    adjusted_error: float
    planning_error: float
    widest: float
    discrete: bool
    ties: bool
    varying: int
    skewness: float
    gains: Share | None = None
    losses: Share | None = None
    largest: float = math.inf
    smallest_step: float = 0.0
    step: float = 0.0
    lacked: tuple[float, float] = (LACKED_ALONE, LACKED_ALONE)

    @classmethod
    def of(cls, sums: NDArray[np.float64], counts: NDArray[np.float64], widest: float) -> Spread:
        """Of clusters `[n]` with these sums and numbers of values. No count is 0."""
        size, num_clusters = float(counts.sum()), sums.size
        mean = float(sums.sum()) / size
        deviations = sums - mean * counts
        error = math.nan
        if num_clusters > 1:
            error = math.sqrt(float((deviations**2 / (1 - counts / size)).sum())) / size
        cluster_means = sums / counts
        largest = float(np.abs(cluster_means).max())
        relative_means = np.round(cluster_means / largest, 11)
        differing = relative_means != 0
        sizes = np.abs(relative_means[differing])
        discrete = math.isfinite(widest) and (
            sizes.size < FEWEST_SIZES
            or np.unique(sizes).size < sizes.size
            or _are_averages_of_few(sums / widest, counts)
        )
        most_common = int(np.unique(relative_means, return_counts=True)[1].max())
        varies = float(np.abs(deviations).max()) > 1e-12 * float(np.abs(sums).max())
        average_size = size / num_clusters
        adjusted_size = size + 2 * average_size
        adjusted_mean = float(sums.sum()) / adjusted_size
        squares = float(((sums - adjusted_mean * counts) ** 2).sum())

        def error_with(half_cluster: float) -> float:
            added = average_size**2 * (half_cluster**2 + 2 * adjusted_mean**2)
            return math.sqrt((squares + added) * (num_clusters + 2) / (num_clusters + 1)) / adjusted_size

        return cls(
            mean=mean,
            standard_error=error,
            clusters=num_clusters,
            adjusted_mean=adjusted_mean,
            adjusted_error=error_with(largest * math.sqrt(float((sizes**2).mean()))),
            planning_error=error_with(widest if discrete else largest),
            widest=widest,
            discrete=discrete,
            ties=discrete or most_common > 1,
            varying=num_clusters - most_common if most_common > 1 else num_clusters,
            skewness=sample_skewness(deviations) if varies and not discrete else 0.0,
            gains=Share.of(np.maximum(sums, 0.0) / largest, counts) if discrete else None,
            losses=Share.of(np.maximum(-sums, 0.0) / largest, counts) if discrete else None,
            largest=largest,
            step=widest
            if np.allclose(sizes * largest, widest)
            else min(widest / max(1.0, average_size), largest * float(sizes.min())),
            smallest_step=min(abs(mean), float(np.abs(sums[differing]).min()) / size),
        )

    @property
    def reach(self) -> float:
        """Where the half clusters of `planning_error` are; 0 where clusters cannot have the same mean by chance."""
        if not self.ties:
            return 0.0
        return self.widest if self.discrete else self.largest

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the standard error, at least 1.

        The clusters that have the most common mean show nothing of how far others are from it. The standard error of k
        others is as uncertain as that of k numbers: the probability that it is small by chance is a power of k.
        """
        return max(1, min(self.clusters - 1, self.varying))

    @property
    def skewed(self) -> SkewedMean:
        """The correction for skewness; of discrete means there is none."""
        error = math.nan if self.discrete else self.standard_error
        corrected = self.clusters >= 3 and error > 0
        return SkewedMean(
            self.mean, error if corrected else math.nan, self.clusters, self.skewness, self.degrees, self.lacked
        )

    def t_interval(self, level: float) -> tuple[float, float]:
        """The t interval with the cluster-robust standard error and `degrees`; without a standard error unlimited."""
        if not self.standard_error >= 0:
            return -math.inf, math.inf
        half = t_quantile(1 - level / 2, self.degrees) * self.standard_error
        return self.mean - half, self.mean + half

    def tie_interval(self, level: float) -> tuple[float, float]:
        """The confidence interval of means that clusters can share by chance (`ties`).

        It is the t interval of the adjusted sample. For discrete means there is a second interval: the mean gain less
        the mean loss, from the score interval of each (Newcombe 1998, Improved confidence intervals for the difference
        between binomial proportions based on paired data). It is longer on the side of rare losses or gains, which a
        sample may lack. An end that is farther out in the second interval is half-way between the two
        (`NEWCOMBE_SHARE`).

        A sample may also lack clusters at the ends of the metric's range. The interval contains the means that such
        clusters could make if they are so rare that a sample lacks them with a probability of 2 `level` (`ABSENT`).
        """
        half = t_quantile(1 - level / 2, self.clusters + 1) * self.adjusted_error
        low, high = self.adjusted_mean - half, self.adjusted_mean + half
        if self.gains is None or self.losses is None:
            return low, high
        (gain_low, gain_high), (loss_low, loss_high) = self.gains.wilson(level), self.losses.wilson(level)
        gain, loss = self.gains.mean, self.losses.mean
        newcombe_low = self.mean - self.largest * math.hypot(gain - gain_low, loss_high - loss)
        newcombe_high = self.mean + self.largest * math.hypot(gain_high - gain, loss - loss_low)
        low -= NEWCOMBE_SHARE * max(0.0, low - newcombe_low)
        high += NEWCOMBE_SHARE * max(0.0, newcombe_high - high)
        absent = unseen_share(self.clusters, ABSENT * level)
        return (
            min(low, self.mean - absent * (self.widest + self.mean)),
            max(high, self.mean + absent * (self.widest - self.mean)),
        )

    def detectable(self, level: float) -> float:
        """The smallest true mean that a test at `level` finds 4 times in 5; NaN where unknown.

        Bloom (1995), and for discrete means `detectable_by_flips`.
        """
        if self.clusters < 2 or not self.standard_error > 0 or not level > 0:
            return math.nan
        if self.discrete:
            variance = self.clusters * self.standard_error**2
            return detectable_by_flips(self.clusters, variance, self.widest, self.step, level=level)
        error = max(self.standard_error, self.planning_error) if self.ties else self.standard_error
        return detectable_errors(self.clusters, level=level, discrete=False) * error


def _are_averages_of_few(shares: NDArray[np.float64], counts: NDArray[np.float64]) -> bool:
    """Whether each cluster is the average of at most `FEW_VALUES` outcomes between -1 and 1 that are whole.

    Each of the `counts` values can itself be the average of the same number of outcomes. A cluster other
    than 0 has at least one outcome other than 0: a value that is too small for that is not such an average.

    Args:
        shares: `[n]` sums of the values of each cluster, in units of the largest possible value.
    """
    most = int(FEW_VALUES / float(counts.max()))
    sizes = np.abs(shares)
    smallest = float(sizes[np.round(sizes / sizes.max(), 11) != 0].min())
    return is_whole(counts) and any(
        round(smallest * outcomes) > 0 and is_whole(shares * outcomes) for outcomes in range(1, most + 1)
    )


def with_lacked_skewness(family: Sequence[Spread]) -> tuple[Spread, ...]:
    """The spreads of a family, each with the skewness that its sample may lack, estimated from all of them."""
    skewed = [spread for spread in family if spread.skewed.standard_error > 0]
    skewnesses = np.array([spread.skewness for spread in skewed])
    lacked = lacked_skewness(skewnesses, np.array([spread.clusters for spread in skewed]))
    return tuple(replace(spread, lacked=lacked) for spread in family)
