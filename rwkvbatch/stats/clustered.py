"""Cluster-robust means.

Formulas, sources and assumptions are in `docs/statistics.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class MeanEstimate:
    """A mean, its standard error and the degrees of freedom of its t distribution.

    `standard_error` and `degrees` are NaN with fewer than two clusters.
    """

    mean: float
    standard_error: float
    degrees: float
    num_values: int
    num_clusters: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided confidence interval; NaNs where `spread_known` is false."""
        if not self.spread_known:
            return math.nan, math.nan
        half = t_quantile(0.5 + level / 2, self.degrees) * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def spread_known(self) -> bool:
        """Whether the standard error is an estimate: false with one cluster, and with equal cluster means other than 0.

        In the second case a standard error of 0 would claim certainty after as few as two conversations.
        """
        if not math.isfinite(self.standard_error):
            return False
        return self.standard_error > 0 or self.mean == 0

    def p_value(self) -> float:
        """Two-sided p-value of "the true mean is 0": a t test; NaN with fewer than two clusters.

        With equal cluster means other than 0 it is that of the exact sign-flip test: 2^(1 - clusters).
        """
        if self.num_clusters < 2:
            return math.nan
        if self.standard_error == 0:
            return 1.0 if self.mean == 0 else 2.0 ** (1 - self.num_clusters)
        from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]

        return float(2 * stdtr(self.degrees, -abs(self.mean) / self.standard_error))


def t_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t distribution with `degrees` (any positive real) degrees of freedom."""
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

    return float(stdtrit(degrees, probability))


def clustered_mean(values: ArrayLike, clusters: ArrayLike, weights: ArrayLike | None = None) -> MeanEstimate:
    """The mean of `values` with a standard error (CR2) that is robust to dependence within clusters.

    Args:
        values: `[n]` finite numbers.
        clusters: `[n]` labels or codes; equal ones belong together.
        weights: `[n]` positive numbers, such as the tokens of each text; None for equal weights. A weighted mean is a
            ratio of two sums; its error is that of the linearised ratio (Cochran 1977, section 6.3).

    Raises:
        ValueError: the arguments differ in length, or `values` is empty.
    """
    numbers = np.asarray(values, dtype=np.float64)
    labels = np.asarray(clusters)
    if numbers.shape != labels.shape or numbers.ndim != 1:
        raise ValueError(f"values and clusters must be 1-D and of equal length; got {numbers.shape} and {labels.shape}")
    if numbers.size == 0:
        raise ValueError("no values")
    codes = cluster_codes(labels)
    value_weights = np.ones(numbers.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if value_weights.shape != numbers.shape:
        raise ValueError(f"values and weights must be of equal length; got {numbers.shape} and {value_weights.shape}")
    total = float(value_weights.sum())
    sizes = np.bincount(codes, weights=value_weights)
    mean = float(numbers.mean()) if weights is None else float((value_weights * numbers).sum()) / total
    if sizes.size < 2:
        return MeanEstimate(mean, math.nan, math.nan, numbers.size, int(sizes.size))
    residual_sums = np.bincount(codes, weights=value_weights * (numbers - mean))
    share = sizes / total
    variance = float((residual_sums**2 / (1 - share)).sum()) / total**2
    standard_error = math.sqrt(variance)
    # The rounding errors of equal numbers are not a spread.
    if standard_error < 1e-12 * max(1e-300, float(np.abs(numbers).max())):
        standard_error = 0.0
    return MeanEstimate(mean, standard_error, _satterthwaite(share), numbers.size, int(sizes.size))


def cluster_codes(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers each distinct label from 0, in the order of the labels."""
    if labels.dtype.kind == "i" and labels.min() >= 0 and labels.max() <= 4 * labels.size:
        # The result of `np.unique`, without sorting.
        is_used = np.bincount(labels) > 0
        return (np.cumsum(is_used) - 1)[labels]
    return np.unique(labels, return_inverse=True)[1]


def _satterthwaite(share: NDArray[np.float64]) -> float:
    """Degrees of freedom of the CR2 variance of a mean, for perfect correlation within each cluster.

    trace(M)^2 / trace(M M), with M[g, h] = b_g b_h ([g = h] - s_g - s_h + sum s^2) and b_g^2 = s_g^2 / (1 - s_g),
    where s is each cluster's share of the values. Both traces are computed as sums, without the matrix M.
    """
    b2 = share**2 / (1 - share)
    q = float((share**2).sum())
    trace = float((b2 * (1 + q - 2 * share)).sum())
    b2_sum, b2_share, b2_share2 = float(b2.sum()), float((b2 * share).sum()), float((b2 * share**2).sum())
    # The sum over all g, h of b_g^2 b_h^2 (q - s_g - s_h)^2, plus the correction of its diagonal.
    everywhere = q * q * b2_sum**2 + 2 * b2_sum * b2_share2 + 2 * b2_share**2 - 4 * q * b2_sum * b2_share
    diagonal = float((b2**2 * ((1 + q - 2 * share) ** 2 - (q - 2 * share) ** 2)).sum())
    return trace**2 / (everywhere + diagonal)
