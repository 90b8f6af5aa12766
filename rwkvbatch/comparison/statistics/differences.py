"""Tests of the differences between variants and their baselines, corrected within families of tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.pairing.matching import Dropped, MatchedRows
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.pairing.preference import missing_in
from rwkvbatch.comparison.values.columns import array_of
from rwkvbatch.comparison.values.groups import Breakdown, groups_of
from rwkvbatch.comparison.values.metric_values import PairedValues, paired_values
from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.family import Difference, can_be_significant, compare_family

if TYPE_CHECKING:
    from rwkvbatch.comparison.values.columns import Columns

Verdict = Literal[
    "better", "worse", "differs", "equivalent", "no difference found", "unclear", "too little data", "identical",
    "equal values", "untested",
]  # fmt: skip
LEVEL: Final = 0.05
"""The family-wise error rate: the probability of at least one false alarm in a family of tests."""


@dataclass(frozen=True)
class Family:
    """Tests of one metric that are corrected together.

    Attributes:
        name: the metric's name, followed by ` by tag`, ` by turn` or ` by distance` for groups.
        exploratory: False only for the primary metric over all rows; an exploratory result is a lead, not a finding.
        size: number of tests that the correction counts: those of enough conversations for any outcome to be
            significant, whose pairs are not all equal.
        level: family-wise error rate.
        level_each: level of each single test by sign flips that keeps it.
        level_interval: level of each interval at which all hold together with probability `1 - level`, and of Hall's
            test of differences that are not discrete; at most `level_each`.
        exact: whether all sign patterns were enumerated.
    """

    name: str
    metric: Metric
    by: Breakdown | None
    exploratory: bool
    size: int
    level: float
    level_each: float
    level_interval: float
    exact: bool


@dataclass(frozen=True)
class Comparison:
    """One metric of one pair, over all matched rows or those of one `group`. Unknown numbers are NaN.

    Attributes:
        family: the name of the `Family` that corrects this test.
        difference: mean of variant minus baseline over matched rows.
        standard_error: its error, clustered by conversation.
        low, high: simultaneous interval of the difference within the family.
        low_alone, high_alone: the interval without correction.
        p, p_adjusted: two-sided p-value without and with the family's correction.
        p_rank: p-value of the signed-rank test, without correction.
        wins, ties, losses: number of conversations whose mean difference is better, zero or worse (positive, zero or
            negative for metrics without a better direction).
        detectable: the smallest true difference that this design finds 4 times in 5.
        num_values: number of matched pairs.
        num_conversations: number of conversations with pairs.
        decidable: whether this number of conversations can give a significant result in the family at all.
        identical: all pairs with values are equal.
        num_replies_differ: where `identical` holds, number of matched pairs whose replies differ all the same.
        num_without_preference: number of matched pairs that are left out because a judge gave no verdict on them.
        level: the family's level.
        level_each: this test's level within the family: `p` is at most `level_each` exactly where the difference is
            significant (`stats.family.Difference`).
        level_rank: the level of the signed-rank test: that of the family's flips, or `level_interval` where Hall's test
            does not reject 0.
        margin: differences up to this size are equivalent.
        exploratory: see `Family`.
    """

    pair: Pair
    metric: Metric
    group: str | None
    family: str
    baseline_mean: float
    variant_mean: float
    difference: float
    standard_error: float
    low: float
    high: float
    low_alone: float
    high_alone: float
    p: float
    p_adjusted: float
    p_rank: float
    wins: int
    ties: int
    losses: int
    detectable: float
    num_values: int
    num_conversations: int
    decidable: bool
    identical: bool
    level: float = LEVEL
    level_each: float = LEVEL
    level_rank: float = LEVEL
    margin: float | None = None
    exploratory: bool = False
    num_without_preference: int = 0
    num_replies_differ: int = 0

    @property
    def verdict(self) -> Verdict:
        """The conclusion, from the intervals alone."""
        if not self.metric.tested or self.pair.of_race:
            return "untested"
        if not self.decidable:
            return "too little data"
        if self.identical and not self.num_without_preference:
            return "equal values" if self.num_replies_differ else "identical"
        if self.significant:
            if self.metric.better == "none":
                return "differs"
            return "better" if (self.low > 0) == (self.metric.better == "higher") else "worse"
        if self.within_margin:
            return "equivalent"
        if self.low_alone > 0 or self.high_alone < 0:
            return "unclear"
        return "no difference found"

    @property
    def significant(self) -> bool:
        """Whether the simultaneous interval excludes 0, which is equivalent to `p_adjusted <= level`."""
        return self.low > 0 or self.high < 0

    @property
    def within_margin(self) -> bool:
        """Whether the whole simultaneous interval is within the margin; it may exclude 0."""
        return self.margin is not None and -self.margin <= self.low and self.high <= self.margin

    @property
    def rank_disagrees(self) -> bool:
        """Whether the metric has heavy tails and the signed-rank test at the same level concludes otherwise."""
        if not self.metric.heavy_tailed or math.isnan(self.p_rank) or not self.decidable or self.identical:
            return False
        return (self.p_rank <= self.level_rank) != self.significant


def compare_metric(
    metric: Metric,
    matched: Sequence[MatchedRows],
    *,
    by: Breakdown | None = None,
    level: float = LEVEL,
    margin: float | None = None,
    exploratory: bool = False,
) -> tuple[list[Comparison], Family]:
    """Compare one metric in all pairs (in all groups of all pairs with `by`), corrected together as one family.

    Pairs with a race (`Pair.of_race`) are not tested and do not count in the correction.
    """
    name = f"{metric.name} by {by}" if by else metric.name
    samples = [
        sample
        for pair_rows in matched
        for group, rows in ([(None, pair_rows.columns)] if by is None else groups_of(pair_rows.rows, by, "_a"))
        if (sample := _sample(pair_rows.pair, group, rows, metric)).size or by is None
    ]
    if not metric.tested:
        family = Family(name, metric, by, exploratory, 0, level, level, level, exact=False)
        return [_untested(sample, family, margin) for sample in samples], family
    in_test = [sample for sample in samples if not sample.pair.of_race]
    if samples and not in_test:
        family = Family(name, metric, by, exploratory, 0, level, level, level, exact=False)
        return [_untested(sample, family, margin) for sample in samples], family
    tests = compare_family(*_sums_and_counts(in_test), level=level, widest=metric.widest)
    size = sum(can_be_significant(test.clusters, level) and not test.identical for test in tests.differences)
    family = Family(name, metric, by, exploratory, size, level, tests.level_each, tests.level_interval, tests.exact)
    results = iter(tests.differences)
    comparisons = [
        _untested(sample, family, margin) if sample.pair.of_race else _comparison(sample, family, next(results), margin)
        for sample in samples
    ]
    return comparisons, family


@dataclass(frozen=True)
class _Sample:
    """The data of one test: the matched values of one pair, over all rows or those of one `group`."""

    pair: Pair
    group: str | None
    values: PairedValues
    num_without_preference: int = 0
    rows: Columns | None = None

    @property
    def num_replies_differ(self) -> int:
        if self.rows is None or "reply_a" not in self.rows:
            return 0
        return int(np.count_nonzero(array_of(self.rows, "reply_a") != array_of(self.rows, "reply_b")))

    @property
    def size(self) -> int:
        """Number of matched pairs."""
        return self.values.baseline.size

    @property
    def num_conversations(self) -> int:
        return int(np.count_nonzero(np.bincount(self.values.conversations)))


def _sample(pair: Pair, group: str | None, rows: Columns, metric: Metric) -> _Sample:
    without_preference = missing_in(rows) if metric.level == "pair" else 0
    return _Sample(pair, group, paired_values(rows, metric), without_preference, rows)


def _sums_and_counts(samples: Sequence[_Sample]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`[conversations, samples]` weighted sums of the differences, and sums of the weights."""
    size = 1 + max((int(sample.values.conversations.max(initial=-1)) for sample in samples), default=-1)
    sums, counts = np.zeros((size, len(samples))), np.zeros((size, len(samples)))
    for column, sample in enumerate(samples):
        values = sample.values
        sums[:, column] = np.bincount(values.conversations, values.weighted(values.differences), minlength=size)
        counts[:, column] = np.bincount(values.conversations, values.weights, minlength=size)
    return sums, counts


def _untested(sample: _Sample, family: Family, margin: float | None) -> Comparison:
    """The means, their difference and its standard error; everything that needs a test is NaN."""
    values, nan = sample.values, math.nan
    difference = standard_error = nan
    if sample.size:
        baseline_mean, variant_mean = _means(family.metric, values)
        difference = variant_mean - baseline_mean
        if not family.metric.log_of:
            standard_error = clustered_mean(values.differences, values.conversations, values.weights).standard_error
    test = Difference(
        mean=difference, low=nan, high=nan, low_alone=nan, high_alone=nan, p=nan, p_adjusted=nan, p_rank=nan,
        clusters=sample.num_conversations, pairs=sample.size, standard_error=standard_error, detectable=nan,
        decidable=False, identical=bool(sample.size) and np.array_equal(values.baseline, values.variant),
        level_each=family.level_each, level_rank=family.level_each,
    )  # fmt: skip
    return _comparison(sample, family, test, margin)


def _comparison(sample: _Sample, family: Family, test: Difference, margin: float | None) -> Comparison:
    metric = family.metric
    baseline_mean, variant_mean = _means(metric, sample.values)
    positive, zero, negative = _signs(sample.values)
    wins, losses = (negative, positive) if metric.better == "lower" else (positive, negative)
    return Comparison(
        pair=sample.pair, metric=metric, group=sample.group, family=family.name, baseline_mean=baseline_mean,
        variant_mean=variant_mean, difference=test.mean, standard_error=test.standard_error, low=test.low,
        high=test.high, low_alone=test.low_alone, high_alone=test.high_alone, p=test.p, p_adjusted=test.p_adjusted,
        p_rank=test.p_rank, wins=wins, ties=zero, losses=losses, detectable=test.detectable, num_values=sample.size,
        num_conversations=sample.num_conversations, decidable=test.decidable, identical=test.identical,
        level=family.level, level_each=test.level_each, level_rank=test.level_rank, margin=margin,
        exploratory=family.exploratory,
        num_without_preference=sample.num_without_preference,
        num_replies_differ=sample.num_replies_differ if test.identical and metric.tested else 0,
    )  # fmt: skip


def _means(metric: Metric, values: PairedValues) -> tuple[float, float]:
    """The means of baseline and variant as the metric shows them; NaN without values."""
    if not values.baseline.size:
        return math.nan, math.nan
    baseline_mean, variant_mean = (
        metric.shown(float(values.weighted(side).mean())) for side in (values.baseline, values.variant)
    )
    return baseline_mean, variant_mean


def compare_counts(metric: Metric, pairs: Sequence[Pair], dropped: Sequence[Dropped]) -> list[Comparison]:
    """Compare a metric of whole variants (`VARIANT_METRICS`) in each pair, untested."""
    counts = {variant_dropped.label: float(getattr(variant_dropped, metric.name)) for variant_dropped in dropped}
    family = Family(
        metric.name, metric, None, exploratory=True, size=0, level=LEVEL, level_each=LEVEL, level_interval=LEVEL,
        exact=False,
    )  # fmt: skip
    comparisons: list[Comparison] = []
    for pair in pairs:
        baseline, variant = (np.array([counts[side.label]]) for side in (pair.baseline, pair.variant))
        values = PairedValues(baseline, variant, np.zeros(1, dtype=np.int64))
        comparisons.append(_untested(_Sample(pair, None, values), family, margin=None))
    return comparisons


def _signs(values: PairedValues) -> tuple[int, int, int]:
    """The numbers of conversations whose weighted mean difference is positive, zero and negative."""
    differences = values.weighted(values.differences)
    if not differences.size:
        return 0, 0, 0
    has_pairs = np.bincount(values.conversations) > 0
    sums = np.bincount(values.conversations, weights=differences)[has_pairs]
    # Rounding errors of each conversation's values: one with huge values does not make ties of the others.
    sizes = values.weighted(np.abs(values.baseline) + np.abs(values.variant))
    rounding = 1e-12 * np.bincount(values.conversations, weights=sizes)[has_pairs]
    tolerance = np.minimum(rounding, 1e-9 * float(np.abs(differences).max()))
    positive, negative = int((sums > tolerance).sum()), int((sums < -tolerance).sum())
    return positive, int(sums.size) - positive - negative, negative
