"""Variants against a baseline: paired differences, tested by sign flips and corrected as a family.

Several variants are compared with one baseline on the same conversations. If a variant does not differ from the
baseline, each conversation's difference is as likely to have one sign as the other, so flipping the signs of whole
conversations gives the distribution of the mean difference under that hypothesis (Fisher 1935, The Design of
Experiments, section 21). Nothing else is assumed: the test is exact for yes/no outcomes, for few conversations and
for any dependence within a conversation.

The interval is the set of differences that the same test does not reject. Its ends are means over subsets of the
conversations (Hartigan 1969, Using subsample values as typical values). Sign flips assume that differences are
symmetric. On the side of a long tail the difference must therefore also be significant by Hall's transformation
(`stats.skewness`). Yes/no outcomes and averages of a few have an interval of their own (`stats.spread`). Every
interval excludes 0 exactly when its test rejects: where necessary an end moves to 0, or to the other side of 0.

A family is corrected by the smallest p-value under common flips (Westfall and Young 1993, Resampling-based multiple
testing): `Family.level_each` is the level of a single test. Flips test differences of 0 alone, and where variants
differ much, the flipped sums of all of them are alike, or take few values, so that tests need little correction.
Intervals hold the true differences, around which the variants' deviations may be independent. Their level is
`Family.level_interval`, which also corrects the p-values of Hall's transformation. An interval still excludes 0 exactly
where the test is significant, and `Difference.level_each` is the level of the test that decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkvbatch.stats.bounded import unseen_share
from rwkvbatch.stats.signflip import (
    LargestSums,
    SignFlips,
    blocks,
    exact_p,
    flipped_sums,
    level_each,
    sign_flips,
    two_sided_p,
)
from rwkvbatch.stats.spread import Spread, with_lacked_skewness

# The stubs of numpy do not know the types of rounded and divided arrays.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false


@dataclass(frozen=True)
class Difference:
    """One variant against the baseline.

    Attributes:
        mean: of the paired differences, each pair counting once; NaN without pairs.
        low, high: the simultaneous interval within the family; infinite if the test cannot exclude any difference.
        low_alone, high_alone: the interval of this comparison alone, without correction.
        p: two-sided p-value of this comparison alone, the larger one of sign flips and Hall's transformation.
        p_adjusted: corrected for the family, whose skewness Hall's transformation then allows for (`lacked_skewness`);
            at least `p`.
        p_rank: two-sided p-value of the signed-rank test (Wilcoxon 1945) by the same flips, without correction. It
            does not depend on how extreme single conversations are.
        clusters: conversations with pairs.
        pairs: matched pairs.
        standard_error: of the mean, from the spread of the clusters; NaN with fewer than two clusters.
        detectable: the smallest true difference that this design finds 4 times in 5, at `Family.level_each` if it is
            discrete, else at `Family.level_interval`; NaN if it is unknown or if no outcome is significant.
        decidable: False if there are too few conversations for any outcome to be significant in this family.
        identical: every pair is equal.
        level_each: `p` is at most this level exactly where the difference is significant. It is the level of the test
            that decides: of one that does not reject 0, else of the one with the larger p-value. That of sign flips is
            `Family.level_each` (less where the drawn patterns have a larger p-value than all of them), and that of
            Hall's transformation is stated as the p-value, in this comparison alone, of the least mean that it rejects.
        level_rank: the level of the signed-rank test, which is reported too: that of the intervals where Hall's
            transformation does not reject 0, else that of sign flips.
        level_interval: the level of `low` and `high`: the family's, or Bonferroni's if every pair is equal.
    """

    mean: float
    low: float
    high: float
    low_alone: float
    high_alone: float
    p: float
    p_adjusted: float
    p_rank: float
    clusters: int
    pairs: int
    standard_error: float
    detectable: float
    decidable: bool
    identical: bool
    level_each: float
    level_rank: float
    level_interval: float = math.nan

    @property
    def significant(self) -> bool:
        """Whether the simultaneous interval excludes 0, which is equivalent to `p_adjusted` <= the family's level."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Family:
    """Comparisons that are corrected together.

    Attributes:
        level: the probability of any false alarm among them.
        level_each: the level of a single test by sign flips that keeps `level`. It is `level` for one comparison, and
            at least `level` divided by the number of comparisons with pairs that differ.
        level_interval: the level of a single interval, and of Hall's transformation (`signflip.LargestSums`), at most
            `level_each`.
        exact: whether all sign patterns were enumerated.
    """

    level: float
    level_each: float
    level_interval: float
    exact: bool
    differences: tuple[Difference, ...]


def compare_family(sums: ArrayLike, counts: ArrayLike, *, level: float = 0.05, widest: float = math.inf) -> Family:
    """Compare variants with their baselines, corrected as one family.

    Args:
        sums: `[clusters, variants]` the sum of the paired differences of each conversation; 0 without pairs.
        counts: `[clusters, variants]` the number of pairs of each conversation.
        level: of the family.
        widest: the largest difference that the metric allows (1 for scores in [0, 1]); no interval exceeds it.

    Variants whose pairs are all equal are reported, but do not count in the correction. Nor do those of too few
    clusters for any outcome to be significant (`can_be_significant`): their intervals have no ends.

    Raises:
        ValueError: the shapes differ, a count is negative, or a sum is not finite.
    """
    paired_sums, num_pairs = _used_clusters(sums, counts)
    scale = np.abs(paired_sums).sum(axis=0)
    tested = np.flatnonzero(scale > 0)
    variants = _Variants.of(paired_sums[:, tested], num_pairs[:, tested], widest, level)
    tests = variants.test(sign_flips(paired_sums.shape[0]), level)
    differences = dict(zip(tested.tolist(), variants.differences(tests), strict=True))
    counted = max(1, sum(can_be_significant(clusters, level) for clusters in (num_pairs > 0).sum(axis=0).tolist()))
    for column in np.flatnonzero(scale == 0).tolist():
        differences[column] = _equal_pairs(num_pairs[:, column], tests, widest, level / counted)
    return Family(
        level,
        tests.level_each,
        tests.level_interval,
        tests.flips.exact,
        tuple(differences[column] for column in range(scale.size)),
    )


def _used_clusters(sums: ArrayLike, counts: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Checked sums and counts, `[clusters, variants]`, of the clusters that have pairs of any variant."""
    paired_sums = np.atleast_2d(np.asarray(sums, dtype=np.float64))
    num_pairs = np.atleast_2d(np.asarray(counts, dtype=np.float64))
    if paired_sums.shape != num_pairs.shape or paired_sums.ndim != 2:
        raise ValueError(
            f"sums and counts must have one shape, [clusters, variants]; got {paired_sums.shape} and {num_pairs.shape}"
        )
    if not np.isfinite(paired_sums).all() or not (num_pairs >= 0).all():
        raise ValueError("sums must be finite, and counts must not be negative")
    used = (num_pairs > 0).any(axis=1)
    return np.where(num_pairs > 0, paired_sums, 0.0)[used], num_pairs[used]


def _equal_pairs(num_pairs: NDArray[np.float64], tests: _Tests, widest: float, level_interval: float) -> Difference:
    """The difference of a variant whose pairs are all equal, or that has no pairs.

    Equal pairs do not show how others differ: a share of the conversations that a sample may lack (`unseen_share`) can
    differ as far as the metric allows.
    """
    clusters, level = int((num_pairs > 0).sum()), tests.level
    decidable = can_be_significant(clusters, level)

    def end(at: float) -> float:
        if not clusters:
            return math.nan
        return widest * unseen_share(clusters, at) if decidable else widest

    mean, together, alone = 0.0 if clusters else math.nan, end(level_interval), end(level)
    return Difference(
        mean=mean, low=-together, high=together, low_alone=-alone, high_alone=alone, p=1.0, p_adjusted=1.0, p_rank=1.0,
        clusters=clusters, pairs=round(float(num_pairs.sum())), standard_error=mean, detectable=math.nan,
        decidable=decidable, identical=clusters > 0, level_each=tests.level_each, level_rank=tests.level_each,
        level_interval=level_interval,
    )  # fmt: skip


def can_be_significant(clusters: int, level: float) -> bool:
    """Whether this number of clusters has an outcome that is significant at `level`."""
    return clusters > 0 and _smallest_p(clusters) <= level


def _smallest_p(clusters: int) -> float:
    """The two-sided p-value of the clearest outcome: all differences have one sign."""
    return 2.0 ** (1 - clusters)


@dataclass(frozen=True)
class _Tests:
    """The tests of a family.

    Attributes:
        p: `[variants]` of each variant by itself.
        p_adjusted: `[variants]` corrected for the family.
        levels, rank_levels: `[variants]` `Difference.level_each` and `Difference.level_rank`.
        subsets: the sums of all variants, if there are few; else None, because they take too much memory to be kept.
    """

    flips: SignFlips
    level: float
    level_each: float
    level_interval: float
    p: NDArray[np.float64]
    p_adjusted: NDArray[np.float64]
    levels: NDArray[np.float64]
    rank_levels: NDArray[np.float64]
    subsets: _SubsetSums | None


@dataclass(frozen=True)
class _Variants:
    """Variants that have pairs that differ.

    Attributes:
        scaled: `[clusters, variants]` paired differences of each cluster, as shares of `scale`: sums of any metric are
            then rounded alike.
        counts: `[clusters, variants]` pairs of each cluster.
        scale: `[variants]` the sum of the absolute differences.
        ranks: `[clusters, variants]` signed ranks of the clusters' means.
        spreads: of each variant, with the skewness that samples may lack by that of all that are `counted`.
        alone: the same without the other variants.
        counted: `[variants]` whether the variant has enough clusters to be significant. Others do not count.
    """

    scaled: NDArray[np.float64]
    counts: NDArray[np.float64]
    scale: NDArray[np.float64]
    ranks: NDArray[np.float64]
    spreads: tuple[Spread, ...]
    alone: tuple[Spread, ...]
    counted: NDArray[np.bool_]

    @classmethod
    def of(cls, sums: NDArray[np.float64], num_pairs: NDArray[np.float64], widest: float, level: float) -> _Variants:
        scale = np.abs(sums).sum(axis=0)
        scaled = sums / scale
        spreads: list[Spread] = []
        for column in range(scale.size):
            has_pairs = num_pairs[:, column] > 0
            spreads.append(Spread.of(scaled[has_pairs, column] * scale[column], num_pairs[has_pairs, column], widest))
        counted = np.array([can_be_significant(spread.clusters, level) for spread in spreads], dtype=bool)
        family = iter(with_lacked_skewness([spread for spread, counts in zip(spreads, counted, strict=True) if counts]))
        together = tuple(next(family) if counts else spread for spread, counts in zip(spreads, counted, strict=True))
        return cls(scaled, num_pairs, scale, _signed_ranks(scaled, num_pairs), together, tuple(spreads), counted)

    @property
    def blocks(self) -> list[NDArray[np.intp]]:
        return blocks(np.arange(self.scale.size))

    def subset_sums(self, flips: SignFlips, block: NDArray[np.intp]) -> _SubsetSums:
        columns = np.concatenate([self.scaled[:, block], self.counts[:, block], self.ranks[:, block]], axis=1)
        return _SubsetSums(*np.split(flips.subset_sums(columns), 3, axis=1))

    def test(self, flips: SignFlips, level: float) -> _Tests:
        p_flips, p_of_patterns = np.ones(self.scale.size), np.ones(self.scale.size)
        p_skewed = np.array([spread.skewed.p_value for spread in self.spreads])
        p_skewed_alone = np.array([spread.skewed.p_value for spread in self.alone])
        smallest = np.ones(flips.count)
        subsets = None
        for block in self.blocks:
            subsets = self.subset_sums(flips, block)
            for place, column in enumerate(block):
                tails = two_sided_p(flipped_sums(self.scaled[:, column], subsets.differences[:, place]))
                exact = None if flips.exact else exact_p(self.scaled[:, column])
                p_of_patterns[column] = tails[0]
                p_flips[column] = tails[0] if exact is None else exact
                np.minimum(smallest, tails, out=smallest)
        kept = subsets if len(self.blocks) == 1 else None
        p = np.maximum(p_flips, p_skewed_alone)
        if self.scale.size < 2:
            levels = np.full(p.size, level)
            return _Tests(flips, level, level, level, p, p, levels, levels, kept)
        smallest.sort()
        # `smallest` is of the drawn patterns. Adjusting the larger one of both p-values keeps the level for either.
        found = np.searchsorted(smallest, np.maximum(p_flips, p_of_patterns), side="right")
        # p-values of skewed means take any value, so that the few values of those of flips do not correct them.
        largest = LargestSums.of(self.deviations()[:, self.counted])
        p_skewed_adjusted = p_skewed.copy()
        p_skewed_adjusted[self.counted] = largest.adjusted(p_skewed[self.counted])
        # `p` can be larger than the others where the family is less skewed than one sample alone may be. Both are at
        # most 5 % in the same cases, so that this changes no verdict.
        p_adjusted = np.maximum.reduce([p, found / flips.count, p_skewed_adjusted])
        each, of_sums = level_each(smallest, level), largest.level_each(level)
        interval = min(each, of_sums)
        rejected = p_skewed_adjusted <= level
        # On the scale of the exact p-value, where that of the drawn patterns is larger.
        levels = each * np.minimum(1.0, p_flips / p_of_patterns)
        for column in np.flatnonzero(~rejected | ((p_skewed_alone > p_flips) & (p_flips <= each))).tolist():
            levels[column] = self.alone[column].skewed.level_as(self.spreads[column].skewed, of_sums)
        return _Tests(flips, level, each, interval, p, p_adjusted, levels, np.where(rejected, each, interval), kept)

    def deviations(self) -> NDArray[np.float64]:
        """`[clusters, variants]`: of the differences from their means, as `scaled`; 0 if all pairs are the same."""
        deviations = self.scaled - self.counts * (self.scaled.sum(axis=0) / self.counts.sum(axis=0))
        return np.where(np.abs(deviations).max(axis=0) > 1e-11, deviations, 0.0)

    def differences(self, tests: _Tests) -> list[Difference]:
        """The differences, with intervals that agree with the tests."""
        found: list[Difference] = []
        for block in self.blocks:
            subsets = tests.subsets or self.subset_sums(tests.flips, block)
            found += [self._difference(column, tests, subsets.of(place)) for place, column in enumerate(block.tolist())]
        return found

    def _difference(self, column: int, tests: _Tests, subsets: _SubsetSums) -> Difference:
        spread, p, p_adjusted = self.spreads[column], float(tests.p[column]), float(tests.p_adjusted[column])
        means = _SubsetMeans.of(subsets, float(self.scale[column]))
        alone = means.interval(tests.level, tests.level, self.alone[column], significant=p <= tests.level)
        together = means.interval(tests.level_each, tests.level_interval, spread, significant=p_adjusted <= tests.level)
        rank_sums = np.abs(np.round(self.ranks[:, column].sum() - 2 * subsets.ranks, 6))
        decidable = _smallest_p(spread.clusters) <= tests.level_each
        planning_level = tests.level_each if spread.discrete else tests.level_interval
        return Difference(
            mean=spread.mean,
            low=min(together[0], alone[0]),
            high=max(together[1], alone[1]),
            low_alone=alone[0],
            high_alone=alone[1],
            p=p,
            p_adjusted=p_adjusted,
            p_rank=float((rank_sums >= rank_sums[0]).mean()),
            clusters=spread.clusters,
            pairs=round(float(self.counts[:, column].sum())),
            standard_error=spread.standard_error,
            detectable=spread.detectable(planning_level) if decidable else math.nan,
            decidable=decidable,
            identical=False,
            level_each=float(tests.levels[column]),
            level_rank=float(tests.rank_levels[column]),
            level_interval=tests.level_interval,
        )


@dataclass(frozen=True)
class _SubsetSums:
    """Sums over the flipped clusters, `[patterns, variants]`: of scaled differences, of pairs and of signed ranks."""

    differences: NDArray[np.float64]
    pairs: NDArray[np.float64]
    ranks: NDArray[np.float64]

    def of(self, variant: int) -> _SubsetSums:
        return _SubsetSums(self.differences[:, variant], self.pairs[:, variant], self.ranks[:, variant])


@dataclass(frozen=True)
class _SubsetMeans:
    """Mean differences of the flipped clusters of each pattern, ascending.

    Attributes:
        num_empty: patterns whose flipped clusters have no pairs, and so no mean.
        count: of all patterns.
    """

    means: NDArray[np.float64]
    num_empty: int
    count: int

    @classmethod
    def of(cls, subsets: _SubsetSums, scale: float) -> _SubsetMeans:
        has_pairs = subsets.pairs > 0.5
        # As in the test, the mean of differences that cancel is 0 exactly.
        sums = np.where(np.abs(subsets.differences) < 0.6e-11, 0.0, subsets.differences)[has_pairs]
        means = np.sort(sums / subsets.pairs[has_pairs]) * scale
        return cls(means, has_pairs.size - means.size, has_pairs.size)

    def interval(self, test_level: float, level: float, spread: Spread, *, significant: bool) -> tuple[float, float]:
        """The interval at `level` that agrees with a test: it excludes 0 exactly if the test is `significant`.

        Its ends are those of the differences that sign flips do not reject, moved out to those of
        `Spread.tie_interval` and of the correction for skewness. Discrete means have the first of these alone: they are
        not spread evenly around a difference other than 0. Nor are numbers of which some are equal, and with few
        clusters no flip is significant at a level below that of the test; then the interval contains a t interval.
        Where all differences are one number of a metric without limits, nothing shows how far others are from it.

        Args:
            test_level: level of the test, at least `level`.
        """
        decidable = self._num_outside(test_level) >= 0
        low, high = -math.inf, math.inf
        if decidable and level > 0 and (spread.discrete or spread.varying):
            ends = [spread.tie_interval(level)] if spread.ties else []
            if not spread.discrete:
                num_outside = self._num_outside(level)
                if num_outside < 0 or spread.varying < spread.clusters:
                    ends.append(spread.t_interval(level))
                num_outside = min(max(num_outside, 0), (self.means.size - 1) // 2)
                ends.append((float(self.means[num_outside]), float(self.means[-1 - num_outside])))
                ends.append(spread.skewed.interval(level))
            low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        low, high = max(low, -spread.widest), min(high, spread.widest)
        if not significant:
            return min(low, 0.0), max(high, 0.0)
        # An interval that is wider than that of the test can contain 0 although the test is significant.
        if spread.mean > 0:
            return (low if low > 0 else spread.smallest_step), high
        return low, (high if high < 0 else -spread.smallest_step)

    def _num_outside(self, level: float) -> int:
        """Number of means outside of each end of an interval at `level`; negative if there are too few patterns."""
        return math.floor(level * self.count / 2 + 1e-9) - self.num_empty


def _signed_ranks(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """`[clusters, variants]`: ranks of the sizes of the clusters' means, with their signs; 0 for no difference.

    Equal sizes share the mean of their ranks.
    """
    means = np.round(np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0), 12)
    ranks = np.zeros_like(means)
    for column in range(means.shape[1]):
        some = means[:, column] != 0
        _, place, same = np.unique(np.abs(means[some, column]), return_inverse=True, return_counts=True)
        ranks[some, column] = (np.cumsum(same) - (same - 1) / 2)[place] * np.sign(means[some, column])
    return np.asarray(ranks, dtype=np.float64)
