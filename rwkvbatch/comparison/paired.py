"""Tests of the differences between a baseline and its variants, corrected in families."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from rwkvbatch.comparison.matching import Breakdown, Dropped, MatchedRows, Paired, groups_of, paired_values
from rwkvbatch.comparison.metrics import Metric
from rwkvbatch.comparison.pairing import Pair
from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.family import Difference, compare_family

Verdict = Literal[
    "better", "worse", "differs", "equivalent", "no difference found", "unclear", "too little data", "identical",
    "untested",
]  # fmt: skip
LEVEL: Final = 0.05
"""The chance of any false alarm in a family of tests."""


@dataclass(frozen=True)
class Family:
    """Tests of one metric that are corrected together.

    Attributes:
        name: the metric's name, with ` by tag` or ` by turn` for groups.
        exploratory: not of the primary metric over all rows: a lead to follow up, not a finding.
        size: tests that count in the correction: those whose pairs are not all equal.
        level: the chance of any false alarm among them. level_each: the level of a single test that keeps it.
        exact: whether all sign patterns were enumerated.
    """

    name: str
    metric: Metric
    by: Breakdown | None
    exploratory: bool
    size: int
    level: float
    level_each: float
    exact: bool


@dataclass(frozen=True)
class Comparison:
    """One metric of one pair, over all matched rows or those of one `group`. Unknown numbers are NaN.

    Attributes:
        family: the name of the family that it is corrected in.
        difference: the mean of variant minus baseline over matched rows. standard_error: by conversation.
        low, high: the simultaneous interval within the family. low_alone, high_alone: without correction.
        p, p_adjusted: the two-sided p-value by itself and corrected within the family.
        p_rank: of the signed-rank test, by itself.
        wins, ties, losses: conversations whose mean difference is better, zero or worse (of metrics without a better
            direction: positive, zero, negative).
        detectable: the smallest true difference that this design finds 4 times in 5.
        num_values: matched pairs. num_conversations: conversations with pairs.
        decidable: whether any outcome of so few conversations could be significant in the family. identical: all pairs
            are equal.
        level: of the family. level_each: of this test within it. margin: differences up to this size are equivalent.
        exploratory: not of the primary metric over all rows.
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
    margin: float | None = None
    exploratory: bool = False

    @property
    def verdict(self) -> Verdict:
        """The conclusion; it follows from the intervals alone."""
        if not self.metric.tested:
            return "untested"
        if not self.decidable:
            return "too little data"
        if self.identical:
            return "identical"
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
        """The simultaneous interval excludes 0; the same as `p_adjusted` at most `level`."""
        return self.low > 0 or self.high < 0

    @property
    def within_margin(self) -> bool:
        """The whole interval is within the margin, whether or not it excludes 0."""
        return self.margin is not None and -self.margin <= self.low and self.high <= self.margin

    @property
    def rank_disagrees(self) -> bool:
        """The metric has heavy tails, and the signed-rank test at the same level comes to another conclusion."""
        if not self.metric.heavy_tailed or math.isnan(self.p_rank) or not self.decidable or self.identical:
            return False
        return (self.p_rank <= self.level_each) != self.significant


def compare_metric(
    metric: Metric,
    matched: Sequence[MatchedRows],
    *,
    by: Breakdown | None = None,
    level: float = LEVEL,
    margin: float | None = None,
    exploratory: bool = False,
) -> tuple[list[Comparison], Family]:
    """One metric of all pairs, and of all groups with `by`, corrected together as one family."""
    name = f"{metric.name} by {by}" if by else metric.name
    lines: list[tuple[Pair, str | None, Paired]] = []
    for each in matched:
        for group, rows in groups_of(each.rows, by, "_a"):
            values = paired_values(rows, metric)
            if values.baseline.size or by is None:
                lines.append((each.pair, group, values))
    size = 1 + max((int(values.conversations.max(initial=-1)) for *_, values in lines), default=-1)
    sums, counts = np.zeros((size, len(lines))), np.zeros((size, len(lines)))
    for column, (_, _, values) in enumerate(lines):
        differences = values.variant - values.baseline
        sums[:, column] = np.bincount(values.conversations, values.weighted(differences), minlength=size)
        counts[:, column] = np.bincount(values.conversations, values.weights, minlength=size)
    if not metric.tested:
        found = [_line(metric, name, *line, None, level, level, margin, exploratory) for line in lines]
        return found, Family(name, metric, by, exploratory, 0, level, level, exact=False)
    tests = compare_family(sums, counts, level=level, widest=metric.widest)
    found = [
        _line(metric, name, *line, test, level, tests.level_each, margin, exploratory)
        for line, test in zip(lines, tests.differences, strict=True)
    ]
    counted = sum(bool(test.pairs) and not test.identical for test in tests.differences)
    return found, Family(name, metric, by, exploratory, counted, level, tests.level_each, tests.exact)


def _line(
    metric: Metric, family: str, pair: Pair, group: str | None, values: Paired, test: Difference | None,
    level: float, level_each: float, margin: float | None, exploratory: bool,
) -> Comparison:  # fmt: skip
    """One line of the table; without a `test`, only what needs none."""
    unknown = math.nan
    num_values, conversations = values.baseline.size, int(np.unique(values.conversations).size)
    baseline = metric.shown(float(values.weighted(values.baseline).mean())) if num_values else unknown
    variant = metric.shown(float(values.weighted(values.variant).mean())) if num_values else unknown
    up, same, down = _directions(values)
    wins, losses = (down, up) if metric.better == "lower" else (up, down)
    if test is None:
        error = unknown
        if num_values and not metric.log_of:
            error = clustered_mean(
                values.variant - values.baseline, values.conversations, values.weights
            ).standard_error
        test = Difference(
            mean=variant - baseline, low=unknown, high=unknown, low_alone=unknown, high_alone=unknown, p=unknown,
            p_adjusted=unknown, p_rank=unknown, clusters=conversations, pairs=num_values, standard_error=error,
            detectable=unknown, decidable=False,
            identical=bool(num_values) and np.array_equal(values.baseline, values.variant),
        )  # fmt: skip
    return Comparison(
        pair=pair, metric=metric, group=group, family=family, baseline_mean=baseline, variant_mean=variant,
        difference=test.mean, standard_error=test.standard_error, low=test.low, high=test.high,
        low_alone=test.low_alone, high_alone=test.high_alone, p=test.p, p_adjusted=test.p_adjusted,
        p_rank=test.p_rank, wins=wins, ties=same, losses=losses, detectable=test.detectable, num_values=num_values,
        num_conversations=conversations, decidable=test.decidable, identical=test.identical, level=level,
        level_each=level_each, margin=margin, exploratory=exploratory,
    )  # fmt: skip


def compare_counts(metric: Metric, pairs: Sequence[Pair], dropped: Sequence[Dropped]) -> list[Comparison]:
    """A metric of whole variants (`VARIANT_METRICS`), of each pair; untested."""
    counts = {each.label: float(getattr(each, metric.name)) for each in dropped}
    lines: list[Comparison] = []
    for pair in pairs:
        a, b = (np.array([counts[side.label]]) for side in (pair.baseline, pair.variant))
        values = Paired(a, b, np.zeros(1, dtype=np.int64))
        lines.append(_line(metric, metric.name, pair, None, values, None, LEVEL, LEVEL, None, exploratory=True))
    return lines


def _directions(values: Paired) -> tuple[int, int, int]:
    """The numbers of conversations whose mean difference is positive, zero and negative."""
    differences = values.variant - values.baseline
    if not differences.size:
        return 0, 0, 0
    sums = np.bincount(values.conversations, weights=differences)[np.unique(values.conversations)]
    scale = float(np.abs(differences).max(initial=0.0))
    up, down = int((sums > 1e-9 * scale).sum()), int((sums < -1e-9 * scale).sum())
    return up, int(sums.size) - up - down, down
