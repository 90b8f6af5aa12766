"""The mean of clusters of unequal size, how precise it is, and how skewed the clusters are around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats.clustered import t_quantile


@dataclass(frozen=True)
class Spread:
    """The mean of clusters of unequal size, and how precise it is.

    Attributes:
        mean, standard_error: of all values; the error is NaN with fewer than two clusters.
        clusters: how many.
        shrunk, shrunk_error: of the sample with two more average clusters: half of one at each end of the range and
            one at 0 (Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions).
            They know a spread even where all clusters agree.
        widest: the largest mean that is possible; infinite for metrics without limits.
        ties: clusters can agree by chance: the metric has limits, or two clusters have equal means.
        skewness: of the clusters' deviations from the mean, with the correction for small samples (Joanes and Gill
            1998, Comparing measures of sample skewness and kurtosis); 0 for metrics with limits and below 3 clusters.
    """

    mean: float
    standard_error: float
    clusters: int
    shrunk: float
    shrunk_error: float
    widest: float
    ties: bool
    skewness: float

    @classmethod
    def of(cls, sums: NDArray[np.float64], counts: NDArray[np.float64], widest: float) -> Spread:
        """Of clusters `[n]` with these sums and numbers of values, none of which is 0."""
        size, num = float(counts.sum()), sums.size
        mean = float(sums.sum()) / size
        deviations = sums - mean * counts
        error, skewness = math.nan, 0.0
        if num > 1:
            error = math.sqrt(float((deviations**2 / (1 - counts / size)).sum())) / size
        limited = math.isfinite(widest)
        means = sums / counts
        largest = float(np.abs(deviations).max())
        if num > 2 and not limited and largest > 1e-12 * float(np.abs(sums).max()):
            scaled = deviations / largest
            skewness = float((scaled**3).mean() / (scaled**2).mean() ** 1.5) * math.sqrt(num * (num - 1)) / (num - 2)
        farthest = float(np.abs(means).max())
        ties = limited or len(set(np.round(means / farthest, 11).tolist())) < num
        reach = widest if limited else farthest
        average = size / num
        more = size + 2 * average
        shrunk = float(sums.sum()) / more
        squares = float(((sums - shrunk * counts) ** 2).sum())
        squares += average**2 * ((reach - shrunk) ** 2 + (reach + shrunk) ** 2) / 2 + average**2 * shrunk**2
        shrunk_error = math.sqrt(squares * (num + 2) / (num + 1)) / more
        return cls(mean, error, num, shrunk, shrunk_error, widest, ties, skewness)

    def around(self, level: float) -> tuple[float, float]:
        """The interval of the enlarged sample."""
        half = t_quantile(1 - level / 2, self.clusters + 1) * self.shrunk_error
        return self.shrunk - half, self.shrunk + half

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
        """
        return self.skewness / math.sqrt(self.clusters)

    def detectable(self, level: float) -> float:
        """A true mean that is found 4 times in 5 (Bloom 1995), at least: with the error that the interval uses."""
        if self.clusters < 2 or not self.standard_error > 0 or not level > 0:
            return math.nan
        degrees = self.clusters - 1
        error = max(self.standard_error, self.shrunk_error) if self.ties else self.standard_error
        return (t_quantile(1 - level / 2, degrees) + t_quantile(0.8, degrees)) * error
