"""Correction of the t statistic of a mean for the skewness of the clusters: Hall's transformation.

A sample of a skewed population often lacks the long tail. Its mean is then too far on the other side, and methods
that assume symmetry, such as sign flips, reject too often. In a test at 5 % the correction applies towards the long
tail only, so an extreme cluster on the side of the mean hides nothing. At smaller levels it allows for tails that the
sample lacks, by the skewness of the other variants of the family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.stats.clustered import t_quantile

SMALL_SAMPLE: Final = 140.0
"""The skewness of n clusters is multiplied by 1 + SMALL_SAMPLE / n^2: small samples show too little of it."""
NOISE: Final = 0.5
"""Skewness that a sample of a symmetric population has by chance."""
ORDINARY: Final = 0.05
"""The level of a single interval, for which `SMALL_SAMPLE` and `NOISE` were chosen."""
LACKED: Final = 0.65
"""At levels far below the ordinary one, samples can lack this number times the power of 1.5 of the skewness of their
family, divided by sqrt(n)."""
LACKED_ALONE: Final = 1.7
"""The same of a sample without a family, towards either end."""
MOST: Final = 0.985
"""How near to 1, where its inverse jumps, the transformation comes at small levels."""
LEAST_P: Final = 1e-14
"""Smaller p-values are 0: this test is always combined with another one."""
VARYING_DEGREES: Final = 100.0
"""Where only some clusters vary, the transformed statistic has this number times the level (5 for a 95 % interval, but
at least 1) degrees of freedom for each of them. At small levels, samples with too small a spread decide.

These numbers were chosen by simulation (docs/design/statistics-measurements.md)."""


def sample_skewness(deviations: NDArray[np.float64]) -> float:
    """The skewness of clusters, corrected for small samples; 0 below 3 clusters and where all are equal.

    G1 of Joanes and Gill (1998, Comparing measures of sample skewness and kurtosis).

    Args:
        deviations: `[n]` from the mean.
    """
    n = deviations.size
    largest = float(np.abs(deviations).max(initial=0.0))
    if n < 3 or largest == 0:
        return 0.0
    scaled = deviations / largest
    return float((scaled**3).mean() / (scaled**2).mean() ** 1.5) * math.sqrt(n * (n - 1)) / (n - 2)


def lacked_skewness(skewnesses: NDArray[np.float64], clusters: NDArray[np.int_]) -> tuple[float, float]:
    """The skewness that samples of a family can lack towards their low and high ends, times sqrt(n), at small levels.

    It is `LACKED` times the power of 1.5 of the family's skewness: the root of the mean square of the skewness towards
    that end, less the mean square 6 / n of normal samples (0 if that is larger), corrected for small samples. Several
    variants together show whether differences are skewed, also where the samples that decide do not.

    Args:
        skewnesses: `[variants]` of their samples.
        clusters: `[variants]` the sizes n of the samples, at least 1.
    """
    if skewnesses.size < 2:
        return LACKED_ALONE, LACKED_ALONE
    # Sorted, because the same variants in another order must have the same sums.
    skewnesses, clusters = np.sort(skewnesses), np.sort(clusters)
    n = float(clusters.mean())
    noise = float((6 / clusters).mean())
    low, high = (
        LACKED * (math.sqrt(max(0.0, float((towards**2).mean()) - noise)) * (1 + SMALL_SAMPLE / n**2)) ** 1.5
        for towards in (np.minimum(skewnesses, 0.0), np.maximum(skewnesses, 0.0))
    )
    return low, high


@dataclass(frozen=True)
class SkewedMean:
    """The t statistic of a mean, transformed so that its distribution is nearly symmetric.

    g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = ((1 + a t / 3)^3 - 1) / a + a / 6

    (Hall 1992, On the removal of skewness by transformation), which is monotonic. `a` is the skewness divided by
    sqrt(n), with these corrections:

    - Below a level of 5 %, (1 - level / 5 %) `lacked` / sqrt(n) is added to the skewness towards an end. At small
      levels, samples that show too little of the skewness decide. The sum is no less than 0. Where only some clusters
      vary, the degrees of freedom allow for such samples, and level / 5 % is raised to the power of their share.
    - It is multiplied by s^2 / (s^2 + `NOISE`^2) and by 1 + `SMALL_SAMPLE` / n^2, where s is the skewness.
    - It is at most c / t, where t is the quantile of the test, or from 5 % on that of a 95 % interval with n - 1
      degrees of freedom: the cubic is flat at t = -3 / a, and its inverse jumps near a = 1 / t. c is the smaller one of
      0.96 and 0.9 + 0.75 / n, and goes up to `MOST` at small levels.

    Attributes:
        standard_error: NaN for means without a correction: of discrete clusters, and of fewer than three.
        clusters: how many.
        skewness: of their deviations (`sample_skewness`).
        varying: degrees of freedom of the standard error, at most `clusters` - 1.
        lacked: towards the low and the high end, see `lacked_skewness`.
    """

    mean: float
    standard_error: float
    clusters: int
    skewness: float
    varying: int
    lacked: tuple[float, float] = (LACKED_ALONE, LACKED_ALONE)

    def degrees(self, level: float) -> float:
        """Degrees of freedom of the transformed statistic, of a two-sided test at `level`."""
        return min(self.clusters - 1.0, max(1.0, VARYING_DEGREES * level) * self.varying)

    def coefficient(self, level: float, side: int) -> float:
        """The coefficient `a` of a two-sided test at `level`, where the tail is on this side (1 or -1); at least 0."""
        n = self.clusters
        small = min(1.0, level / ORDINARY) ** (self.varying / (n - 1))
        s = max(0.0, side * self.skewness + (1 - small) * self.lacked[side > 0] / math.sqrt(n))
        a = s * s**2 / (s**2 + NOISE**2) * (1 + SMALL_SAMPLE / n**2) / math.sqrt(n)
        most = MOST - (MOST - min(0.96, 0.9 + 0.75 / n)) * small
        at, degrees = (level, self.degrees(level)) if level < ORDINARY else (ORDINARY, n - 1)
        return min(a, most / t_quantile(1 - at / 2, degrees)) if a > 1e-6 else 0.0

    def errors(self, level: float, side: int) -> float:
        """How many standard errors the end on this side (1 or -1) is from the mean; 0 without a tail on this side."""
        a = self.coefficient(level, side)
        quantile = t_quantile(1 - level / 2, self.degrees(level))
        if a * quantile < 1e-9:  # the quotient would be 0 but for rounding
            found = quantile if a else 0.0
        else:
            found = max(0.0, 3 / a * (1 - math.cbrt(1 - a * (quantile + a / 6))))
        return max(found, self.errors(ORDINARY, side)) if level < ORDINARY else found

    @property
    def p_value(self) -> float:
        """Two-sided p-value of "the true mean is 0": the level at which an end of `interval` is 0.

        It is 0 where the long tail is not on the side of 0, and not computed below `LEAST_P`.
        """
        if not self.standard_error > 0 or self.mean == 0:
            return 0.0
        side = -1 if self.mean > 0 else 1
        t = abs(self.mean) / self.standard_error
        if t > self.errors(ORDINARY, side):
            return self._level_of(t, side)
        from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]

        a = self.coefficient(ORDINARY, side)
        transformed = (1 - (1 - a * t / 3) ** 3) / a - a / 6
        return float(min(1.0, 2 * stdtr(self.degrees(ORDINARY), -transformed)))

    def level_as(self, other: SkewedMean, level: float) -> float:
        """The level at which the interval ends as far towards 0 as that of `other` does at `level`, at most 5 %.

        Args:
            other: the same sample, which lacks other skewness.
        """
        side = -1 if self.mean > 0 else 1
        return self._level_of(other.errors(level, side), side) if level < ORDINARY else level

    def _level_of(self, errors: float, side: int) -> float:
        """The level below `ORDINARY` at which the end on this side is `errors` standard errors from the mean."""
        low, high = math.log(LEAST_P), math.log(ORDINARY)
        if self.errors(LEAST_P, side) < errors:
            return 0.0
        while high - low > 1e-12:
            middle = (low + high) / 2
            low, high = (middle, high) if self.errors(math.exp(middle), side) > errors else (low, middle)
        return math.exp(high)

    def interval(self, level: float) -> tuple[float, float]:
        """The confidence interval on the sides of long tails; an end without one is the mean.

        Args:
            level: of the two-sided test, 0.05 for a 95 % interval.
        """
        if not self.standard_error > 0:
            return self.mean, self.mean
        below, above = (self.errors(level, side) * self.standard_error for side in (-1, 1))
        return self.mean - below, self.mean + above
