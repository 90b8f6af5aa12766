"""Means of single variants, and rankings of three or more: which is best, and which others could be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics import TURN_METRICS, Metric, exponential
from rwkvbatch.comparison.paired import Variant, conversation_values, rows_of
from rwkvbatch.stats.clustered import best_p_values, clustered_mean, holm

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false

MIN_VARIANTS: Final = 3
"""Two variants have one comparison, which needs no ranking."""
MAIN_METRICS: Final = ("score", "nll")
"""The default metric of a ranking: the first of these that has numbers."""


@dataclass(frozen=True)
class VariantMean:
    """A metric's mean over all rows of a variant, and its 95 % interval, clipped to the metric's range (or NaN)."""

    metric: Metric
    mean: float
    low: float
    high: float
    num_values: int


def variant_means(table: pd.DataFrame, variant: Variant) -> list[VariantMean]:
    """The means of all turn metrics that `variant` has numbers for."""
    rows = rows_of(table, variant)
    conversations = rows["conversation"].factorize()[0]
    means: list[VariantMean] = []
    for metric in TURN_METRICS:
        values = rows[metric.name].to_numpy(dtype=np.float64)
        if not np.isnan(values).all() and (metric.name != "failed" or values.any()):
            means.append(mean_of(metric, values, conversations))
    return means


def mean_of(metric: Metric, values: NDArray[np.float64], conversations: NDArray[Any]) -> VariantMean:
    """The mean of `values` `[n]` of `metric`, of which at least one is not NaN; `conversations` `[n]`."""
    known = ~np.isnan(values)
    estimate = clustered_mean(values[known], conversations[known])
    mean = estimate.mean
    low, high = (float(np.clip(end, metric.lowest, metric.highest)) for end in estimate.interval())
    if metric.exponential:
        mean, low, high = exponential(mean), exponential(low), exponential(high)
    return VariantMean(metric, mean, low, high, num_values=int(known.sum()))


@dataclass(frozen=True)
class Candidate:
    """A variant in a ranking.

    Attributes:
        mean: over the rows that all candidates have.
        p_holm: of "no other variant has a better true mean", corrected for the other variants and for all candidates
            of all rankings; NaN where there is only one conversation.
    """

    variant: Variant
    mean: float
    p_holm: float
    alpha: float = 0.05

    @property
    def could_be_best(self) -> bool:
        """Whether no other variant is significantly better."""
        return not self.p_holm < self.alpha


@dataclass(frozen=True)
class Ranking:
    """The variants by one metric.

    Attributes:
        candidates: by mean, the best first; ties in the order of the variants.
        num_values: rows (of `metric.level`) that all candidates have; the means and tests use only these.
        num_left_out: rows that only some have.
    """

    metric: Metric
    candidates: tuple[Candidate, ...]
    num_values: int
    num_conversations: int
    num_left_out: int

    @property
    def best(self) -> Candidate:
        """The candidate with the best mean."""
        return self.candidates[0]

    @property
    def indistinguishable(self) -> tuple[Candidate, ...]:
        """The other candidates that could be best."""
        return tuple(candidate for candidate in self.candidates[1:] if candidate.could_be_best)

    @property
    def worse(self) -> tuple[Candidate, ...]:
        """The candidates that another one is significantly better than."""
        return tuple(candidate for candidate in self.candidates[1:] if not candidate.could_be_best)


def rank(
    variants: Sequence[Variant], metrics: Sequence[Metric], table: pd.DataFrame
) -> tuple[list[Ranking], list[str]]:
    """A ranking by each of `metrics` that is tested and has a better direction, and notes on those without one.

    All rankings are corrected together. Fewer than three variants have none.

    Args:
        table: the rows of all runs, with a column `run`.
    """
    wanted = [metric for metric in metrics if metric.tested and metric.better != "none"]
    if len(variants) < MIN_VARIANTS or not wanted:
        return [], []
    joined = {metric: _side_by_side(variants, metric, table) for metric in wanted}
    notes = [
        f"no ranking by {metric.title}: there is no {metric.level} that all {len(variants)} variants have"
        for metric, (common, _) in joined.items()
        if not len(common)
    ]
    joined = {metric: both for metric, both in joined.items() if len(both[0])}
    raw = [
        best_p_values(
            common.to_numpy() * (-1 if metric.better == "lower" else 1),
            common.index.get_level_values("conversation").to_numpy(),
        )
        for metric, (common, _) in joined.items()
    ]
    if not raw:
        return [], notes
    ends = list(accumulate(map(len, raw)))
    adjusted = np.split(holm(np.concatenate(raw)), ends[:-1])
    rankings = [
        _ranking(variants, metric, common, num_all - len(common), p_values.tolist())
        for (metric, (common, num_all)), p_values in zip(joined.items(), adjusted, strict=True)
    ]
    return rankings, notes


def main_metrics(metrics: Sequence[Metric], wanted: Sequence[str] | None) -> list[Metric]:
    """The distinct metrics among `metrics` to rank by: those in `wanted`, or by default the first of `MAIN_METRICS`."""
    by_name = {metric.name: metric for metric in metrics}
    if wanted is not None:
        return [metric for name, metric in by_name.items() if name in wanted]
    return [by_name[name] for name in MAIN_METRICS if name in by_name][:1]


def _ranking(
    variants: Sequence[Variant], metric: Metric, common: pd.DataFrame, left_out: int, p_values: list[float]
) -> Ranking:
    means = common.to_numpy().mean(axis=0).tolist()
    candidates = [Candidate(*fields) for fields in zip(variants, means, p_values, strict=True)]
    candidates.sort(key=lambda candidate: candidate.mean, reverse=metric.better == "higher")
    num_conversations = common.index.get_level_values("conversation").nunique()
    return Ranking(metric, tuple(candidates), len(common), int(num_conversations), left_out)


def _side_by_side(variants: Sequence[Variant], metric: Metric, table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The numbers of the rows that all variants have, a column per variant; and the number of rows that any has."""
    import pandas as pd

    columns = [_values(rows_of(table, variant), metric) for variant in variants]
    joined = pd.concat(columns, axis=1, join="outer", keys=range(len(columns)))
    return joined.dropna(), len(joined)


def _values(rows: pd.DataFrame, metric: Metric) -> pd.Series:
    """The known numbers of one variant, by (conversation, turn, repeat) or by conversation."""
    if metric.level == "conversation":
        return conversation_values(rows, metric)
    values: pd.Series = rows.set_index(["conversation", "turn", "repeat"])[metric.name]  # pyright: ignore[reportAssignmentType]
    return values.dropna()
