"""Means of single variants, and rankings of three or more: which is best, and which others could be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.matching import Breakdown, conversation_values, groups_of, metrics_of, rows_of, weights_of
from rwkvbatch.comparison.metrics import Metric, is_majority, pass_value
from rwkvbatch.comparison.paired import LEVEL, Comparison
from rwkvbatch.comparison.pairing import Variant
from rwkvbatch.stats.bounded import bounded_interval
from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.signflip import largest_mean_p
from rwkvbatch.stats.spread import unlimited_interval

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false

MIN_VARIANTS: Final = 3
"""Two variants have one comparison, which needs no ranking."""


@dataclass(frozen=True)
class VariantMean:
    """A metric's mean over a variant's rows (of one `group`), with its 95 % interval within the metric's range.

    The interval is NaN where the spread is unknown.
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
    """The means of all metrics that `variant` has numbers for, of all its rows or group by group.

    `ks`: of pass@k and all-k, see `metrics_of`.
    """
    means: list[VariantMean] = []
    for group, rows in groups_of(rows_of(table, variant), by):
        for metric in metrics_of(rows, ks=ks):
            if metric.level == "turn":
                values = rows[metric.column].to_numpy(dtype=np.float64)
                weights = weights_of(rows, metric)
                means.append(mean_of(metric, values, rows["conversation_code"].to_numpy(), group, weights))
            elif by in (None, "tag"):
                values = conversation_values(rows, metric).to_numpy(dtype=np.float64)
                if values.size:
                    means.append(mean_of(metric, values, np.arange(values.size), group))
    return means


def mean_of(
    metric: Metric, values: NDArray[np.float64], conversations: NDArray[Any], group: str | None = None,
    weights: NDArray[np.float64] | None = None,
) -> VariantMean:  # fmt: skip
    """The mean of `values` `[n]` of `metric.column`, of which at least one is not NaN; `conversations` `[n]`."""
    known = ~np.isnan(values)
    numbers, labels = values[known], conversations[known]
    each = None if weights is None else weights[known]
    mean, (low, high) = clustered_mean(numbers, labels, each).mean, ends_of_mean(metric, numbers, labels, each)
    return VariantMean(metric, metric.shown(mean), metric.shown(low), metric.shown(high), numbers.size, group)


def ends_of_mean(
    metric: Metric, values: NDArray[np.float64], conversations: NDArray[Any],
    weights: NDArray[np.float64] | None = None, level: float = LEVEL,
) -> tuple[float, float]:  # fmt: skip
    """The interval of the mean of `values` `[n]` of `metric.column` within the metric's range, of 1 - `level`."""
    if math.isfinite(metric.widest) and not metric.log_of:
        return bounded_interval(values, conversations, lowest=metric.lowest, highest=metric.highest, level=1 - level)
    low, high = unlimited_interval(values, conversations, weights, level=1 - level)
    return float(np.clip(low, metric.lowest, metric.highest)), float(np.clip(high, metric.lowest, metric.highest))


@dataclass(frozen=True)
class Candidate:
    """A variant in a ranking.

    Attributes:
        mean: over the rows that it shares with the first baseline, and there relative to it.
        could_be_best: no other variant is significantly better.
        beaten_by: the label of one that is.
    """

    variant: Variant
    mean: float
    beaten_by: str | None = None

    @property
    def could_be_best(self) -> bool:
        return self.beaten_by is None


@dataclass(frozen=True)
class Ranking:
    """The variants by one metric.

    Attributes:
        candidates: first those that could be best, then the others, each by mean, the best first; ties in the order of
            the variants.
        num_values: rows (of `metric.level`) that all candidates have. num_left_out: rows that only some have; a test
            of two candidates uses all rows that both have.
        level: the chance that a truly best variant is not among those that could be best, at most.
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
        """The candidates that another one is significantly better than."""
        return tuple(candidate for candidate in self.candidates if not candidate.could_be_best)


def rank(
    variants: Sequence[Variant], metric: Metric, table: pd.DataFrame, comparisons: Iterable[Comparison]
) -> tuple[Ranking | None, str | None]:
    """The ranking by `metric`, or a note on why there is none. Fewer than three variants have neither.

    Args:
        table: see `comparable_rows`. comparisons: those of `metric` over all rows.
    """
    if len(variants) < MIN_VARIANTS or not metric.ranked or is_majority(metric):
        return None, None
    lines = [line for line in comparisons if line.group is None]
    return rank_values(variants, Values.of(variants, metric, table), lines)


def rank_values(
    variants: Sequence[Variant], values: Values, lines: Sequence[Comparison], *, level: float = LEVEL
) -> tuple[Ranking | None, str | None]:
    """As `rank`, of numbers.

    A variant could not be best where the table calls it worse than its baseline (or one of its variants better than
    it), or where the others, tested together at half the level, hold one that is better (Hsu 1984). What the table
    has tested is not tested again, so the two cannot disagree.
    """
    metric = values.metric
    reference = variants.index(lines[0].pair.baseline) if lines else 0
    size = [values.difference(reference, place) for place in range(len(variants))]
    if any(math.isnan(one) for one in size):
        return None, (
            f"no ranking by {metric.name}: {variants[[math.isnan(one) for one in size].index(True)].label} has no "
            f"{metric.level} in common with {variants[reference].label}"
        )
    beaten = _beaten_in(lines)
    tested = {frozenset((line.pair.baseline, line.pair.variant)) for line in lines}
    for place, variant in enumerate(variants):
        others = [
            other
            for other, rival in enumerate(variants)
            if other != place and frozenset((variant, rival)) not in tested
        ]
        if variant in beaten or not others:
            continue
        sums = np.stack([values.sums(place, other) for other in others], axis=1)
        p, best = largest_mean_p(sums * (-1 if metric.better == "lower" else 1))
        if p <= level / 2:
            beaten[variant] = variants[others[best]].label
    base = values.mean(reference)
    # The same number as in the table, to the last bit, where both are of the same rows.
    shown = {
        line.pair.variant: line.variant_mean
        for line in lines
        if line.pair.baseline == variants[reference] and math.isclose(line.baseline_mean, base, rel_tol=1e-12)
    }
    candidates = [
        Candidate(variant, shown.get(variant, base + difference), beaten.get(variant))
        for variant, difference in zip(variants, size, strict=True)
    ]
    if not any(candidate.could_be_best for candidate in candidates):
        return None, f"no ranking by {metric.name}: on the rows that they share, each variant is worse than another"
    sign = -1 if metric.better == "higher" else 1
    candidates.sort(key=lambda candidate: (not candidate.could_be_best, sign * candidate.mean))
    common, conversations, left_out = values.extent()
    return Ranking(metric, tuple(candidates), common, conversations, left_out, level), None


def _beaten_in(lines: Iterable[Comparison]) -> dict[Variant, str]:
    """Variants that the table calls worse than another, with its label."""
    beaten: dict[Variant, str] = {}
    for line in lines:
        pair = line.pair
        if line.verdict == "worse":
            beaten.setdefault(pair.variant, pair.baseline.label)
        elif line.verdict == "better":
            beaten.setdefault(pair.baseline, pair.variant.label)
    return beaten


@dataclass(frozen=True)
class Values:
    """One metric of all variants: `rows` `[n, variants]` with NaN for unknown, of `n` (conversation, turn, repeat).

    For metrics of conversations, `rows` says whether the turn passed. `weights` `[n]` say how much a row counts; NaN
    where the variants differ in it, None where all count equally.
    """

    metric: Metric
    rows: NDArray[np.float64]
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64]
    num_conversations: int
    weights: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, variants: Sequence[Variant], metric: Metric, table: pd.DataFrame) -> Values:
        import pandas as pd

        column = "passed" if metric.level == "conversation" else metric.column
        keys = ["conversation_code", "turn", "repeat", "question"]
        columns = [rows_of(table, variant, [*keys, column]).set_index(keys)[column] for variant in variants]
        wide = pd.concat(columns, axis=1, join="outer", keys=range(len(columns)))
        wide = wide.loc[wide.notna().any(axis=1)]
        codes = wide.index.get_level_values("conversation_code").to_numpy(dtype=np.int64)
        repeats = wide.index.get_level_values("repeat").to_numpy(dtype=np.int64)
        rows, weights = wide.to_numpy(dtype=np.float64), None
        if (weight := metric.weight_column) is not None and weight in table:
            each = [rows_of(table, variant, [*keys, weight]).set_index(keys)[weight] for variant in variants]
            all_weights = pd.concat(each, axis=1, join="outer").loc[wide.index].to_numpy(dtype=np.float64)
            weights = np.nanmax(all_weights, axis=1)
            weights[np.nanmin(all_weights, axis=1) != weights] = np.nan
            rows = np.where(np.isnan(weights)[:, None], np.nan, rows)
        return cls(metric, rows, codes, repeats, int(codes.max(initial=-1)) + 1, weights)

    def sums(self, one: int, other: int) -> NDArray[np.float64]:
        """`[conversations]` the differences of `other` minus `one`, added up."""
        differences, conversations, weights = self._differences(one, other)
        if weights is not None:
            differences = differences * weights
        sums = np.bincount(conversations, differences, minlength=self.num_conversations)
        return sums.astype(np.float64)

    def difference(self, one: int, other: int) -> float:
        """The mean of `other` minus `one`; NaN without common rows."""
        differences, _, weights = self._differences(one, other)
        return float(np.average(differences, weights=weights)) if differences.size else math.nan

    def mean(self, one: int) -> float:
        """The mean of one variant over all its rows."""
        known = ~np.isnan(self.rows[:, one])
        weights = None if self.weights is None else self.weights[known]
        return float(np.average(self._of(self.rows[:, one], known)[0], weights=weights))

    def extent(self) -> tuple[int, int, int]:
        """Rows (or conversations) that all have, conversations of these, and rows that only some have."""
        known = ~np.isnan(self.rows).any(axis=1)
        conversations = int(np.unique(self.conversations[known]).size)
        if self.metric.level == "conversation":
            return conversations, conversations, int(np.unique(self.conversations).size) - conversations
        return int(known.sum()), conversations, int((~known).sum())

    def _differences(
        self, one: int, other: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None]:
        a, b = self.rows[:, one], self.rows[:, other]
        known = ~(np.isnan(a) | np.isnan(b))
        first, conversations = self._of(a, known)
        return self._of(b, known)[0] - first, conversations, None if self.weights is None else self.weights[known]

    def _of(self, column: NDArray[np.float64], known: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """The known numbers and their conversations: of turns, or made of them conversation by conversation."""
        conversations = self.conversations[known]
        if self.metric.level == "turn":
            return column[known], conversations
        outcomes: dict[int, dict[int, bool]] = {}
        for code, repeat, passed in zip(conversations, self.repeats[known], column[known], strict=True):
            own = outcomes.setdefault(int(code), {})
            own[int(repeat)] = own.get(int(repeat), True) and passed == 1.0
        values: Mapping[int, float] = {
            code: pass_value(self.metric.name, list(own.values())) for code, own in outcomes.items()
        }
        some = {code: value for code, value in values.items() if not math.isnan(value)}
        return np.array(list(some.values()), dtype=np.float64), np.array(list(some), dtype=np.int64)
