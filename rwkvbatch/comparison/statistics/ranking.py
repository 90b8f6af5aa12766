"""Rankings of three or more variants, with the candidates for the best."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rwkvbatch.comparison.metrics.declarations import Metric, is_majority
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.statistics.differences import LEVEL, Comparison
from rwkvbatch.comparison.values.all_variants import VariantValues
from rwkvbatch.stats.signflip import better_column

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

MIN_VARIANTS: Final = 3
"""The fewest variants that are ranked; the comparison of two says which is better."""


@dataclass(frozen=True)
class Candidate:
    """A variant in a ranking.

    Attributes:
        mean: the baseline's mean plus the mean difference over the rows that both have.
        beaten_by: label of a variant that is significantly better; None if there is none.
    """

    variant: Variant
    mean: float
    beaten_by: str | None = None

    @property
    def could_be_best(self) -> bool:
        """Whether no other variant is significantly better."""
        return self.beaten_by is None


@dataclass(frozen=True)
class Ranking:
    """The variants by one metric.

    Attributes:
        candidates: those that could be best, then the others, each sorted from the best mean to the worst; candidates
            with equal means are in the order of the variants.
        num_values: number of rows (of `metric.level`) that all candidates have.
        num_conversations: their conversations.
        num_left_out: number of rows that only some candidates have. A test of two candidates uses all rows that both
            have.
        level: upper bound on the probability that a truly best variant is not among those that could be best.
    """

    metric: Metric
    candidates: tuple[Candidate, ...]
    num_values: int
    num_conversations: int
    num_left_out: int
    level: float = LEVEL

    @property
    def best(self) -> Candidate:
        """The candidate with the best mean among those that could be best."""
        return self.candidates[0]

    @property
    def indistinguishable(self) -> tuple[Candidate, ...]:
        """The other candidates that could be best."""
        return tuple(candidate for candidate in self.candidates[1:] if candidate.could_be_best)

    @property
    def worse(self) -> tuple[Candidate, ...]:
        """The candidates that cannot be best, because another one is significantly better."""
        return tuple(candidate for candidate in self.candidates if not candidate.could_be_best)


def rank(
    variants: Sequence[Variant], metric: Metric, table: pd.DataFrame, comparisons: Iterable[Comparison]
) -> tuple[Ranking | None, str | None]:
    """The ranking by `metric`, or a note on why there is none. Fewer than three variants have neither.

    Args:
        table: see `comparable_rows`.
        comparisons: the comparisons by `metric`; those of groups are ignored.
    """
    if len(variants) < MIN_VARIANTS or not metric.ranked or is_majority(metric):
        return None, None
    ungrouped = [comparison for comparison in comparisons if comparison.group is None]
    return rank_values(variants, VariantValues.of(variants, metric, table), ungrouped)


def rank_values(
    variants: Sequence[Variant], values: VariantValues, comparisons: Sequence[Comparison], *, level: float = LEVEL
) -> tuple[Ranking | None, str | None]:
    """The ranking of `values`, or a note on why there is none.

    A variant cannot be best if `comparisons` call it worse than its baseline (or one of its own variants better), or
    if a test of all other variants together at half the level finds a better one (Hsu 1984). That test leaves out the
    pairs in `comparisons`, so the ranking and the table cannot disagree.
    """
    metric = values.metric
    baseline = variants.index(comparisons[0].pair.baseline) if comparisons else 0
    differences = [values.difference(baseline, index) for index in range(len(variants))]
    if any(map(math.isnan, differences)):
        return None, f"no ranking by {metric.name}: {_why_apart(variants, baseline, differences, metric, comparisons)}"
    beaten = _beaten_in(comparisons)
    beaten |= _beaten_by_others(variants, values, comparisons, already_beaten=beaten.keys(), level=level / 2)
    baseline_mean = values.mean(baseline)
    # If the table has the mean of the same rows, the ranking shows the table's number to the last bit.
    table_means = {
        comparison.pair.variant: comparison.variant_mean
        for comparison in comparisons
        if comparison.pair.baseline == variants[baseline]
        and math.isclose(comparison.baseline_mean, baseline_mean, rel_tol=1e-12)
    }
    candidates = [
        Candidate(variant, table_means.get(variant, baseline_mean + difference), beaten.get(variant))
        for variant, difference in zip(variants, differences, strict=True)
    ]
    if not any(candidate.could_be_best for candidate in candidates):
        return None, f"no ranking by {metric.name}: on the rows that they share, each variant is worse than another"
    sign = -1 if metric.better == "higher" else 1
    candidates.sort(key=lambda candidate: (not candidate.could_be_best, sign * candidate.mean))
    num_values, num_conversations, num_left_out = values.extent()
    return Ranking(metric, tuple(candidates), num_values, num_conversations, num_left_out, level), None


def _why_apart(
    variants: Sequence[Variant],
    baseline: int,
    differences: Sequence[float],
    metric: Metric,
    comparisons: Iterable[Comparison],
) -> str:
    """A note on the first variant that shares no value with the baseline; one or more of `differences` is NaN."""
    apart = next(index for index, difference in enumerate(differences) if math.isnan(difference))
    if apart != baseline:
        return f"{variants[apart].label} has no {metric.level} in common with {variants[baseline].label}"
    # No row has a weight (a number of tokens) that all variants share; each comparison has the rows of two.
    for comparison in comparisons:
        if math.isnan(comparison.difference):
            pair = comparison.pair
            return f"{pair.variant.label} has no {metric.level} of the same tokens in common with {pair.baseline.label}"
    return f"no {metric.level} has the same tokens in all variants"


def _beaten_in(comparisons: Iterable[Comparison]) -> dict[Variant, str]:
    """The variants that a comparison calls worse than another, each with the other's label."""
    beaten: dict[Variant, str] = {}
    for comparison in comparisons:
        pair = comparison.pair
        if comparison.verdict == "worse":
            beaten.setdefault(pair.variant, pair.baseline.label)
        elif comparison.verdict == "better":
            beaten.setdefault(pair.baseline, pair.variant.label)
    return beaten


def _beaten_by_others(
    variants: Sequence[Variant],
    values: VariantValues,
    comparisons: Iterable[Comparison],
    *,
    already_beaten: Collection[Variant],
    level: float,
) -> dict[Variant, str]:
    """By variant that one of the others, tested together, is significantly better than: the label of that other one."""
    beaten: dict[Variant, str] = {}
    index_of = {variant: index for index, variant in enumerate(variants)}
    tested_with: dict[int, set[int]] = {}  # by index of a variant, those with which a comparison tests it
    for comparison in comparisons:
        sides = index_of.get(comparison.pair.baseline), index_of.get(comparison.pair.variant)
        for side, other in (sides, sides[::-1]):
            if side is not None and other is not None:
                tested_with.setdefault(side, set()).add(other)
    sign = -1 if values.metric.better == "lower" else 1
    for index, variant in enumerate(variants):
        is_rival = np.ones(len(variants), dtype=bool)
        is_rival[[index, *tested_with.get(index, ())]] = False
        rivals = np.flatnonzero(is_rival)
        if variant in already_beaten or not rivals.size:
            continue
        better = better_column(values.sums(index, rivals) * sign, level)
        if better is not None:
            beaten[variant] = variants[rivals[better]].label
    return beaten
