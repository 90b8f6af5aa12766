"""Correction of the t statistic of a mean for the skewness of the clusters: Hall's transformation.

A sample of a skewed population often lacks the long tail. Its mean is then too far on the other side, and methods
that assume symmetry, such as sign flips, reject too often. The correction applies towards the long tail only, so an
extreme cluster on the side of the mean hides nothing.
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
VARYING_DEGREES: Final = 100.0
"""Where only some clusters vary, the transformed statistic has this number times the level (5 for a 95 % interval, but
at least 1) degrees of freedom for each of them. At small levels, samples with too small a spread decide.

These numbers were chosen by simulation (docs/statistics.md)."""


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


@dataclass(frozen=True)
class SkewedMean:
    """The t statistic of a mean, transformed so that its distribution is nearly symmetric.

    g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 = ((1 + a t / 3)^3 - 1) / a + a / 6

    (Hall 1992, On the removal of skewness by transformation), which is monotonic. `a` is the skewness divided by
    sqrt(n), with two corrections:

    - It is multiplied by s^2 / (s^2 + `NOISE`^2) and by 1 + `SMALL_SAMPLE` / n^2, where s is the skewness.
    - It is limited to 0.96 / t and to (0.9 + 0.75 / n) / t, where t is the quantile of a 95 % interval: the cubic is
      flat at t = -3 / a, and its inverse jumps near a = 1 / t. The second limit is enough above 12 clusters.

    Attributes:
        standard_error: NaN for fewer than two clusters; there is no correction then.
        clusters: how many.
        varying: degrees of freedom of the standard error, at most `clusters` - 1.
        a: the coefficient of the transformation; 0 without skewness.
    """

    mean: float
    standard_error: float
    clusters: int
    varying: int
    a: float

    @classmethod
    def of(cls, mean: float, standard_error: float, clusters: int, skewness: float, varying: int) -> SkewedMean:
        square = skewness**2
        if clusters < 3 or not standard_error > 0 or square == 0:
            return cls(mean, standard_error, clusters, varying, 0.0)
        a = skewness * square / (square + NOISE**2) * (1 + SMALL_SAMPLE / clusters**2) / math.sqrt(clusters)
        limit = min(0.96, 0.9 + 0.75 / clusters) / t_quantile(0.975, clusters - 1)
        a = min(limit, max(-limit, a))
        return cls(mean, standard_error, clusters, varying, a if abs(a) > 1e-6 else 0.0)

    def degrees(self, level: float) -> float:
        """Degrees of freedom of the transformed statistic, of a two-sided test at `level`."""
        return min(self.clusters - 1.0, max(1.0, VARYING_DEGREES * level) * self.varying)

    @property
    def p_value(self) -> float:
        """Two-sided p-value of "the true mean is 0", with the degrees of freedom of a test at 5 %.

        It is 0 where the long tail is not on the side of 0.
        """
        if self.mean * self.a >= 0:
            return 0.0
        from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]

        t = self.mean / self.standard_error
        transformed = ((1 + self.a * t / 3) ** 3 - 1) / self.a + self.a / 6
        return float(min(1.0, 2 * stdtr(self.degrees(0.05), transformed if self.mean < 0 else -transformed)))

    def interval(self, level: float) -> tuple[float, float]:
        """The confidence interval on the side of the long tail; the other end is the mean.

        Args:
            level: of the two-sided test, 0.05 for a 95 % interval.
        """
        if self.a == 0:
            return self.mean, self.mean
        quantile = math.copysign(t_quantile(1 - level / 2, self.degrees(level)), -self.a)
        end = self.mean - 3 / self.a * (math.cbrt(1 + self.a * (quantile - self.a / 6)) - 1) * self.standard_error
        return min(self.mean, end), max(self.mean, end)
