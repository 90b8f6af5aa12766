"""Sign flips of whole clusters: patterns, p-values, and the level of a single test of a family.

If there is no difference, each cluster's difference is as likely to have one sign as the other (Fisher 1935, The
Design of Experiments, section 21). The p-value of a sum is the share of the sign patterns whose sum is at least as far
from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The stubs of numpy do not know the types of rounded and divided arrays.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

EXACT_CLUSTERS = 13
"""Up to this many clusters all 2^n sign patterns are enumerated; beyond, `DRAWN_PATTERNS` are drawn."""
DRAWN_PATTERNS = 19_998
MAX_STEPS = 20_000
"""The largest number of steps of a distribution that is computed exactly."""
FEW_VALUES = 20
"""Averages of at most this many values are discrete (`spread.Spread`), and their smallest size is at most this many
units."""
_SEED = 0x5F1A65
_CHUNK = 1024
"""Sign patterns that are multiplied at once with many columns."""
_SMALL_PRODUCT = 2**19
"""Multiplications of a matrix product that fits into the cache and that BLAS computes in one thread."""
_KEPT_COLUMNS = 8
"""Largest number of variants of the families that share the normal numbers that they draw (6 MB together)."""
_MANY_COLUMNS = 128
"""With at least this many columns, their maximum is as fast without transposing them."""
_BLOCK = 64
"""Number of variants whose subset sums are in memory at once."""


@lru_cache(maxsize=8)
def sign_flips(clusters: int) -> SignFlips:
    return SignFlips(clusters)


class SignFlips:
    """Sign patterns of clusters, each with its opposite; the first one flips nothing.

    Every variant and every call with this number of clusters has the same patterns, so results are reproducible.
    """

    def __init__(self, clusters: int) -> None:
        self.exact = clusters <= EXACT_CLUSTERS
        if self.exact:
            codes = np.arange(max(1, 2**clusters // 2), dtype=np.int64)
            half: NDArray[np.int8] = ((codes[:, None] >> np.arange(clusters)) & 1).astype(np.int8)
        else:
            generator = np.random.Generator(np.random.Philox(key=_SEED))
            half = generator.integers(0, 2, size=(DRAWN_PATTERNS // 2, clusters), dtype=np.int8)
            half = np.concatenate([np.zeros((1, clusters), np.int8), half])
        self.flipped = half
        self.count: int = 2 * half.shape[0] if clusters else 1

    def subset_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`[patterns, columns]`: sums over the flipped clusters; the opposite patterns are the second half."""
        total = values.sum(axis=0, keepdims=True)
        # Small products take a fifth of the processor time. With many columns they would have too few rows.
        rows = _SMALL_PRODUCT // max(1, values.size)
        rows = rows if rows >= 32 else _CHUNK
        parts = [
            self.flipped[start : start + rows].astype(np.float64) @ values
            for start in range(0, self.flipped.shape[0], rows)
        ]
        half = np.concatenate(parts)
        return np.concatenate([half, total - half]) if self.count > 1 else half


def flipped_sums(values: NDArray[np.float64], subsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[patterns, ...]`: sums of `values` `[clusters, ...]` with the signs of the flipped clusters changed.

    Sums of the same values in another order must be equal numbers, because ties decide with few conversations.

    Args:
        subsets: `[patterns, ...]` the sums over the flipped clusters.
    """
    return _rounded(values.sum(axis=0) - 2 * subsets)


def _rounded(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    rounded: NDArray[np.float64] = np.round(sums, 11)
    return rounded


def two_sided_p(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each pattern, the share of patterns with a sum at least as far from 0.

    Args:
        sums: `[patterns]`; the second half has the patterns opposite to the first (`SignFlips`), and the same shares.
    """
    sizes = np.abs(sums[: max(1, sums.size // 2)])
    shares = (sizes.size - np.searchsorted(np.sort(sizes), sizes, side="left")) / sizes.size
    return np.concatenate([shares, shares]) if sums.size > 1 else shares


def exact_p(values: NDArray[np.float64]) -> float | None:
    """The share of all sign patterns with a sum at least as far from 0, for values that are multiples of one unit.

    The distribution is built up cluster by cluster. None if the values have no common unit or too many steps.
    """
    sizes = np.abs(values[values != 0])
    if not sizes.size:
        return 1.0
    steps = sizes / sizes.min()
    if steps.sum() > MAX_STEPS:
        return None
    whole = next((k for k in range(1, FEW_VALUES + 1) if is_whole(steps * k)), None)
    if whole is None:
        return None
    steps = np.round(steps * whole).astype(np.int64)
    total = int(steps.sum())
    if total > MAX_STEPS:
        return None
    shares = np.zeros(2 * total + 1)
    shares[total] = 1.0
    for step in steps:
        shares = (np.roll(shares, step) + np.roll(shares, -step)) / 2
    observed = abs(round(float(values.sum()) / float(sizes.min()) * whole))
    return float(min(1.0, shares[np.abs(np.arange(2 * total + 1) - total) >= observed].sum()))


def is_whole(numbers: NDArray[np.float64]) -> bool:
    """Whether all numbers are whole but for rounding."""
    return bool(np.allclose(numbers, np.round(numbers), rtol=1e-9, atol=1e-7))


def level_each(ascending: NDArray[np.float64], level: float) -> float:
    """The level of a single test for which at most a share `level` of the patterns has a smaller p-value.

    Args:
        ascending: the smallest p-value of each pattern.
    """
    allowed = math.floor(level * ascending.size + 1e-9)
    # The margin is larger than the rounding that the interval allows for.
    return float(min(level, (1 - 1e-6) * ascending[allowed]))


@dataclass(frozen=True)
class LargestSums:
    """The largest of several standardized sums that deviate together, for intervals that hold the true means together.

    It is the multiplier bootstrap with normal weights (Chernozhukov, Chetverikov and Kato 2013): the sums have the
    correlations of the columns, but not the few values that sums of yes/no outcomes have.

    Attributes:
        columns: how many sums.
        sizes: `[DRAWN_PATTERNS]` of the largest sum; empty for fewer than two columns.
    """

    columns: int
    sizes: NDArray[np.float64]

    @classmethod
    def of(cls, deviations: NDArray[np.float64]) -> LargestSums:
        """Of `[clusters, columns]`, the contribution of each cluster to the deviation of a mean, all in one unit.

        A column of zeros counts as independent of the others.
        """
        columns = deviations.shape[1]
        if columns < 2:
            return cls(columns, np.empty(0))
        size = np.sqrt((deviations**2).sum(axis=0))
        varies = size > 1e-9 * size.max()  # else it is 0 but for rounding
        values = np.round(np.where(varies, deviations / np.where(varies, size, 1.0), 0.0), 9)
        # The same columns in another order must have the same level, so that they are equal numbers in one order.
        order = np.lexsort(np.concatenate([values, np.sort(values, axis=0)]))
        values, varies = values[:, order], varies[order]
        if not varies.all():
            values = np.concatenate([values, np.diag(np.where(varies, 0.0, 1.0))])
        # The factor has the columns' correlations in the fewest rows.
        factor = np.asarray(np.linalg.qr(values, mode="r"))
        factor *= np.where(np.diagonal(factor) < 0, -1.0, 1.0)[:, None]
        largest = np.empty(DRAWN_PATTERNS)
        for start, weights in enumerate(_normal_weights(factor.shape[0])):
            sums = weights @ factor
            np.abs(sums, out=sums)
            # The maximum over rows is many times as fast as that over a few columns.
            of_patterns = sums.max(axis=1) if columns >= _MANY_COLUMNS else np.ascontiguousarray(sums.T).max(axis=0)
            largest[start * _CHUNK : start * _CHUNK + len(sums)] = of_patterns
        return cls(columns, largest)

    def level_each(self, level: float) -> float:
        """The level of each interval if all of them hold the true means with probability `1 - level`.

        It is between `level` and Bonferroni's `level / columns`.
        """
        if self.columns < 2:
            return level
        from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

        place = self.sizes.size - 1 - math.floor(level * self.sizes.size)
        bound = np.partition(self.sizes, place)[place]
        return float(min(level, max(level / self.columns, 2 * ndtr(-bound))))

    def adjusted(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """The p-values of all columns, corrected for their number: at most `level` where p is at most `level_each`."""
        if self.columns < 2:
            return p
        from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]

        shares = np.array([(self.sizes > bound).mean() for bound in -ndtri(p / 2)])
        return np.maximum(p, np.minimum(shares, self.columns * p))


def _normal_weights(size: int) -> Iterable[NDArray[np.float64]]:
    """`DRAWN_PATTERNS` rows of normal numbers, `[_CHUNK, size]` at a time; those of few columns are kept."""
    return _kept_weights(size) if size <= _KEPT_COLUMNS else _drawn_weights(size)


def _drawn_weights(size: int) -> Iterator[NDArray[np.float64]]:
    generator = np.random.Generator(np.random.Philox(key=_SEED))
    for start in range(0, DRAWN_PATTERNS, _CHUNK):
        yield generator.standard_normal((min(_CHUNK, DRAWN_PATTERNS - start), size))


@cache
def _kept_weights(size: int) -> tuple[NDArray[np.float64], ...]:
    return tuple(_drawn_weights(size))


def blocks(columns: NDArray[np.intp], patterns: int = DRAWN_PATTERNS) -> list[NDArray[np.intp]]:
    """`columns` in blocks; the sums of a block under this number of sign patterns fit into memory."""
    most = max(_BLOCK, _BLOCK * DRAWN_PATTERNS // max(1, patterns))
    if columns.size <= most:
        return [columns] if columns.size else []
    return np.array_split(columns, math.ceil(columns.size / most))


def better_column(sums: ArrayLike, level: float) -> int | None:
    """The column with the largest standardized sum, if it shows that a column has a mean above 0; else None.

    The statistic of this one-sided test at `level` is the largest of the columns' sums, each divided by the root of its
    sum of squares (which no flip changes), under common flips (Westfall and Young 1993, max T). Two bounds of the
    p-value decide most cases without flipping all columns: the p-value of this column alone, and Hoeffding's (1963),
    because flipped numbers whose squares add up to 1 have a sum of t or more with a probability of at most
    exp(-t^2 / 2).

    Args:
        sums: `[clusters, columns]` the sum of the paired differences of each conversation; 0 without pairs.
        level: less than a half.

    Raises:
        ValueError: there is no column, or a sum is not finite.
    """
    standardized, index = _standardized(sums)
    if not index.size:
        return None
    place = int(standardized.sum(axis=0).argmax())
    statistic = max(0.0, float(standardized[:, place].sum()))
    if index.size * math.exp(-(statistic**2) / 2) > level / 2:
        alone = _share_of_largest(standardized[:, place, None])
        if alone > level or _share_of_largest(standardized) > level:
            return None
    return int(index[place])


def _standardized(sums: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """`[clusters, columns]` columns that are not 0, in units of the root of their sum of squares, and their indices."""
    columns = np.asarray(sums, dtype=np.float64)
    if columns.ndim != 2 or not columns.shape[1]:
        raise ValueError(f"sums must be [clusters, columns] with a column or more; got shape {columns.shape}")
    if not np.isfinite(columns).all():
        raise ValueError("sums must be finite")
    columns = columns[(columns != 0).any(axis=1)]
    root_of_squares = np.sqrt((columns**2).sum(axis=0))
    nonzero = np.flatnonzero(root_of_squares > 0)
    return columns[:, nonzero] / root_of_squares[nonzero], nonzero


def _share_of_largest(standardized: NDArray[np.float64]) -> float:
    """The share of the sign patterns whose largest sum is at least that of `[clusters, columns]` as they are."""
    flips = sign_flips(standardized.shape[0])
    largest = np.full(flips.count, -np.inf)
    for block in blocks(np.arange(standardized.shape[1]), flips.count):
        values = standardized[:, block]
        flipped = values.sum(axis=0) - 2 * flips.subset_sums(values)
        np.maximum(largest, flipped.max(axis=1), out=largest)
    largest = _rounded(largest)  # as in `flipped_sums`: rounding keeps the order
    return float((largest >= largest[0]).mean())
