"""Means of single variants, and rankings of three or more variants with the candidates for the best."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.columns import CellColumns, array_of, rows_of, same_keys
from rwkvbatch.comparison.metrics import Metric, is_majority, pass_value
from rwkvbatch.comparison.paired import LEVEL, Comparison
from rwkvbatch.comparison.pairing import Variant
from rwkvbatch.comparison.values import Breakdown, conversation_values, groups_of, metrics_of, weights_of
from rwkvbatch.stats.bounded import bounded_interval
from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.signflip import largest_mean_p
from rwkvbatch.stats.spread import unlimited_interval

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.comparison.columns import Columns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false

MIN_VARIANTS: Final = 3
"""The fewest variants that are ranked; the comparison of two says which is better."""


@dataclass(frozen=True)
class VariantMean:
    """A metric's mean over a variant's rows (of one `group`), with its 95 % interval within the metric's range.

    The interval is NaN if the spread between conversations is unknown.
    """

    metric: Metric
    mean: float
    low: float
    high: float
    num_values: int
    group: str | None = None


def variant_means(
    table: pd.DataFrame, variant: Variant, *, by: Breakdown | None = None, ks: Sequence[int] | None = None
) -> list[VariantMean]:
    """The means of all metrics of which `variant` has values, over all its rows or (with `by`) those of each group.

    `ks`: the k of pass@k, all-k and majority@k, see `metrics_of`.
    """
    means: list[VariantMean] = []
    all_rows: list[tuple[str | None, Columns]] = [(None, CellColumns.of(table, variant))]
    for group, rows in all_rows if by is None else groups_of(rows_of(table, variant), by):
        for metric in metrics_of(rows, ks=ks):
            if metric.level == "turn":
                values = array_of(rows, metric.column, np.float64)
                weights = weights_of(rows, metric)
                means.append(mean_of(metric, values, array_of(rows, "conversation_code"), group, weights))
            elif by in (None, "tag"):
                values = conversation_values(rows, metric).to_numpy(dtype=np.float64)
                if values.size:
                    means.append(mean_of(metric, values, np.arange(values.size), group))
    return means


def mean_of(
    metric: Metric, values: NDArray[np.float64], conversations: NDArray[Any], group: str | None = None,
    weights: NDArray[np.float64] | None = None,
) -> VariantMean:  # fmt: skip
    """The mean of `values` with its interval.

    Args:
        values: `[n]` values of `metric.column`; NaNs are left out, and at least one is not NaN.
        conversations: `[n]` labels.
        weights: `[n]`; None for equal weights.
    """
    known = ~np.isnan(values)
    values, conversations = values[known], conversations[known]
    weights = None if weights is None else weights[known]
    mean = clustered_mean(values, conversations, weights).mean
    low, high = ends_of_mean(metric, values, conversations, weights)
    return VariantMean(metric, metric.shown(mean), metric.shown(low), metric.shown(high), values.size, group)


def ends_of_mean(
    metric: Metric, values: NDArray[np.float64], conversations: NDArray[Any],
    weights: NDArray[np.float64] | None = None, level: float = LEVEL,
) -> tuple[float, float]:  # fmt: skip
    """The `1 - level` interval of the mean of `values` `[n]` of `metric.column`, clipped to the metric's range."""
    if math.isfinite(metric.widest) and not metric.log_of:
        return bounded_interval(values, conversations, lowest=metric.lowest, highest=metric.highest, level=1 - level)
    low, high = unlimited_interval(values, conversations, weights, level=1 - level)
    return float(np.clip(low, metric.lowest, metric.highest)), float(np.clip(high, metric.lowest, metric.highest))


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
    """Names the first variant that shares no value with the baseline, of which one or more of `differences` is NaN."""
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
    """The variants that one of all others, tested together, is significantly better than, with that one's label."""
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
        p, best = largest_mean_p(values.sums(index, rivals) * sign)
        if p <= level:
            beaten[variant] = variants[rivals[best]].label
    return beaten


@dataclass(frozen=True)
class VariantValues:
    """The values of one metric of all variants in the same rows.

    Attributes:
        rows: `[n, variants]` values of `n` (conversation, turn, repeat), NaN where unknown; for a metric of
            conversations, whether the turn passed.
        conversations, repeats: `[n]` integer codes.
        num_conversations: the largest code of a conversation plus 1.
        weights: `[n]` weights of the rows, NaN where the variants differ in them; None for equal weights.
    """

    metric: Metric
    rows: NDArray[np.float64]
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64]
    num_conversations: int
    weights: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, variants: Sequence[Variant], metric: Metric, table: pd.DataFrame) -> VariantValues:
        """The values in all rows of `table` that have one in any variant. `table`: see `comparable_rows`."""
        values = side_by_side(variants, "passed" if metric.level == "conversation" else metric.column, table)
        values = values.loc[values.notna().any(axis=1)]
        codes = values.index.get_level_values("conversation_code").to_numpy(dtype=np.int64)
        repeats = values.index.get_level_values("repeat").to_numpy(dtype=np.int64)
        rows, weights = values.to_numpy(dtype=np.float64), None
        if (weight_column := metric.weight_column) is not None and weight_column in table:
            weights = common_weights(side_by_side(variants, weight_column, table).loc[values.index])
            rows = np.where(np.isnan(weights)[:, None], np.nan, rows)
        return cls(metric, rows, codes, repeats, int(codes.max(initial=-1)) + 1, weights)

    def sums(self, baseline: int, variants: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[num_conversations, variants]` each conversation's weighted sum of the differences to `baseline`."""
        if self.metric.level == "turn" and variants.size > self.conversations.size:
            return self._sums_by_row(baseline, variants)
        return np.stack([self._sums_of(baseline, int(variant)) for variant in variants], axis=1)

    def _sums_of(self, baseline: int, variant: int) -> NDArray[np.float64]:
        """`[num_conversations]` each conversation's weighted sum of the differences `variant` minus `baseline`."""
        differences, conversations, weights = self._differences(baseline, variant)
        if weights is not None:
            differences = differences * weights
        sums = np.bincount(conversations, differences, minlength=self.num_conversations)
        return sums.astype(np.float64)

    def _sums_by_row(self, baseline: int, variants: NDArray[np.int64]) -> NDArray[np.float64]:
        """As `sums` for a metric of turns, for all variants at once.

        The rows are added in the order of `np.bincount`, so that the sums are the same to the last bit.
        """
        differences = self.rows[:, variants] - self.rows[:, baseline, None]
        if self.weights is not None:
            differences *= self.weights[:, None]
        differences = np.where(np.isnan(differences), 0.0, differences)
        sums = np.zeros((self.num_conversations, variants.size))
        for conversation, row in zip(self.conversations.tolist(), differences, strict=True):
            sums[conversation] += row
        return sums

    def difference(self, baseline: int, variant: int) -> float:
        """The mean difference `variant` minus `baseline` over the rows that both have; NaN without such rows."""
        differences, _, weights = self._differences(baseline, variant)
        return float(np.average(differences, weights=weights)) if differences.size else math.nan

    def mean(self, variant: int) -> float:
        """The mean of one variant over all its rows."""
        known = ~np.isnan(self.rows[:, variant])
        weights = None if self.weights is None else self.weights[known]
        return float(np.average(self._values(variant, known)[0], weights=weights))

    def extent(self) -> tuple[int, int, int]:
        """The numbers of rows (or conversations) that all variants have, their conversations, and all other rows."""
        known = ~np.isnan(self.rows).any(axis=1)
        conversations = int(np.unique(self.conversations[known]).size)
        if self.metric.level == "conversation":
            return conversations, conversations, int(np.unique(self.conversations).size) - conversations
        return int(known.sum()), conversations, int((~known).sum())

    def _differences(
        self, baseline: int, variant: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None]:
        """The differences `variant` minus `baseline`, their conversations and their weights."""
        known = ~(np.isnan(self.rows[:, baseline]) | np.isnan(self.rows[:, variant]))
        baseline_values, conversations = self._values(baseline, known)
        differences = self._values(variant, known)[0] - baseline_values
        return differences, conversations, None if self.weights is None else self.weights[known]

    def _values(self, variant: int, known: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """The metric's values and their conversations, from the `known` `[n]` rows of a variant.

        A metric of turns has one value per row, a metric of conversations one per conversation with enough repeats.
        """
        column, conversations = self.rows[known, variant], self.conversations[known]
        if self.metric.level == "turn":
            return column, conversations
        outcomes: dict[int, dict[int, bool]] = {}  # by conversation and repeat, whether all turns passed
        for code, repeat, passed in zip(conversations, self.repeats[known], column, strict=True):
            by_repeat = outcomes.setdefault(int(code), {})
            by_repeat[int(repeat)] = by_repeat.get(int(repeat), True) and passed == 1.0
        values = {
            code: value
            for code, by_repeat in outcomes.items()
            if not math.isnan(value := pass_value(self.metric.name, list(by_repeat.values())))
        }
        return np.array(list(values.values()), dtype=np.float64), np.array(list(values), dtype=np.int64)


def side_by_side(
    variants: Sequence[Variant], column: str, table: pd.DataFrame, conversation: str = "conversation_code"
) -> pd.DataFrame:
    """One `column` of all variants, a column each in their order, indexed by conversation, turn, repeat and question.

    NaN where a variant lacks a row that another one has.

    Args:
        table: see `comparable_rows`.
        conversation: its column that the index has for conversations.
    """
    import pandas as pd

    keys = [conversation, "turn", "repeat", "question"]
    positions = same_keys(table, variants, ("conversation_code", *keys[1:]))
    if positions is not None:
        index = pd.MultiIndex.from_frame(rows_of(table, variants[0], keys))
        return pd.DataFrame(table[column].to_numpy()[positions].T, index=index, columns=range(len(variants)))
    columns = [rows_of(table, variant, [*keys, column]).set_index(keys)[column] for variant in variants]
    return pd.concat(columns, axis=1, join="outer", keys=range(len(columns)))


def common_weights(weights: pd.DataFrame) -> NDArray[np.float64]:
    """`[rows]` the weight that all variants give a row; NaN where they differ. `weights`: see `side_by_side`."""
    values = weights.to_numpy(dtype=np.float64)
    common = np.nanmax(values, axis=1)
    common[np.nanmin(values, axis=1) != common] = np.nan
    return common
