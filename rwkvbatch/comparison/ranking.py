"""Which of three or more variants is best in a metric, and which others could be, as far as the data tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics import TURN_METRICS, Metric, exponential, pass_values
from rwkvbatch.comparison.paired import Variant, outcomes_by_conversation
from rwkvbatch.stats.best import best_p_values
from rwkvbatch.stats.clustered import clustered_mean, holm

if TYPE_CHECKING:
    import pandas as pd

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class VariantMean:
    """A metric's mean over all rows of a variant, and its 95 % interval within what is possible (NaN where unknown)."""

    metric: Metric
    mean: float
    low: float
    high: float
    num_values: int


def variant_means(table: pd.DataFrame, variant: Variant) -> list[VariantMean]:
    """All metrics that `variant` has numbers for."""
    rows = rows_of(table, variant)
    conversations = rows["conversation"].factorize()[0]
    means: list[VariantMean] = []
    for metric in TURN_METRICS:
        values = rows[metric.name].to_numpy(dtype=np.float64)
        if np.isnan(values).all() or (metric.name == "failed" and not values.any()):
            continue
        means.append(mean_of(metric, values, conversations))
    return means


def mean_of(metric: Metric, values: NDArray[np.float64], conversations: NDArray[Any]) -> VariantMean:
    """The mean of `values` `[n]` of `metric`, NaN where unknown and one at least known; `conversations` `[n]`."""
    known = ~np.isnan(values)
    estimate = clustered_mean(values[known], conversations[known])
    mean = estimate.mean
    low, high = (float(np.clip(end, metric.lowest, metric.highest)) for end in estimate.interval())
    if metric.exponential:
        mean, low, high = exponential(mean), exponential(low), exponential(high)
    return VariantMean(metric, mean, low, high, num_values=int(known.sum()))


def rows_of(table: pd.DataFrame, variant: Variant) -> pd.DataFrame:
    """The rows of one cell of one run."""
    return table.loc[(table["run"] == variant.run) & (table["cell"] == variant.cell)]


# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false


FEWEST_VARIANTS: Final = 3
"""Two variants need no ranking: their one comparison says all."""
MAIN_METRICS: Final = ("score", "nll")
"""What is ranked by when no metric was asked for: the first of these that there are numbers of."""


@dataclass(frozen=True)
class Candidate:
    """A variant that could be the best one, or not.

    Attributes:
        mean: over the rows that all candidates have.
        p_holm: of "no other variant is truly better", corrected for the other variants and for all candidates of
            all rankings; NaN where there is only one conversation.
    """

    variant: Variant
    mean: float
    p_holm: float
    alpha: float = 0.05

    @property
    def could_be_best(self) -> bool:
        """Whether nothing says beyond noise that another variant is better."""
        return not self.p_holm < self.alpha


@dataclass(frozen=True)
class Ranking:
    """The variants by one metric.

    Attributes:
        candidates: the best mean first; equal ones in the order of the variants.
        num_values: rows (of `metric.level`) that all of them have, which is what everything here is made of.
        num_left_out: rows that only some have.
    """

    metric: Metric
    candidates: tuple[Candidate, ...]
    num_values: int
    num_conversations: int
    num_left_out: int

    @property
    def best(self) -> Candidate:
        """The one with the best mean. It is never told to be worse: nothing else has a better mean."""
        return self.candidates[0]

    @property
    def not_told_apart(self) -> tuple[Candidate, ...]:
        """Those that could be the best as well."""
        return tuple(candidate for candidate in self.candidates[1:] if candidate.could_be_best)

    @property
    def worse(self) -> tuple[Candidate, ...]:
        """Those that another variant beats beyond noise."""
        return tuple(candidate for candidate in self.candidates[1:] if not candidate.could_be_best)


def rank(
    variants: Sequence[Variant], metrics: Sequence[Metric], table: pd.DataFrame
) -> tuple[list[Ranking], list[str]]:
    """A ranking for each of `metrics` that knows what is better and is tested, and notes on those without one.

    All rankings are corrected together. There are none of fewer than three variants.

    Args:
        table: the rows of all runs, with a column `run`.
    """
    wanted = [metric for metric in metrics if metric.tested and metric.better != "none"]
    if len(variants) < FEWEST_VARIANTS or not wanted:
        return [], []
    joined = {metric: _side_by_side(variants, metric, table) for metric in wanted}
    notes = [
        f"which is best by {metric.title} is not said: there is no {metric.level} that all {len(variants)} have"
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


def main_metrics(metrics: Sequence[Metric], asked: Sequence[str] | None) -> list[Metric]:
    """Of the table's `metrics`, each once, those to rank by: all that were asked for, or unasked the main one."""
    by_name = {metric.name: metric for metric in metrics}
    if asked is not None:
        return [metric for name, metric in by_name.items() if name in asked]
    return [by_name[name] for name in MAIN_METRICS if name in by_name][:1]


def _ranking(
    variants: Sequence[Variant], metric: Metric, common: pd.DataFrame, left_out: int, p_values: list[float]
) -> Ranking:
    means = common.to_numpy().mean(axis=0).tolist()
    candidates = [
        Candidate(variant, mean, p_holm) for variant, mean, p_holm in zip(variants, means, p_values, strict=True)
    ]
    candidates.sort(key=lambda candidate: candidate.mean, reverse=metric.better == "higher")
    num_conversations = common.index.get_level_values("conversation").nunique()
    return Ranking(metric, tuple(candidates), len(common), int(num_conversations), left_out)


def _side_by_side(variants: Sequence[Variant], metric: Metric, table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The numbers of the rows that all variants have, a column a variant; and how many rows any of them has."""
    import pandas as pd

    columns = [_numbers(rows_of(table, variant), metric) for variant in variants]
    everything = pd.concat(columns, axis=1, join="outer", keys=range(len(columns)))
    return everything.dropna(), len(everything)


def _numbers(rows: pd.DataFrame, metric: Metric) -> pd.Series:
    """The known numbers of one variant, by (conversation, turn, repeat) or by conversation."""
    import pandas as pd

    if metric.level == "turn":
        key = ["conversation", "turn", "repeat"]
        places = pd.MultiIndex.from_arrays([rows[name] for name in key], names=key)
        return pd.Series(rows[metric.name].to_numpy(dtype=np.float64), index=places).dropna()
    family, _, k = metric.name.rpartition("_")
    values = pass_values(outcomes_by_conversation(rows, ""), int(k))[0 if family == "pass_at" else 1]
    return pd.Series(values, dtype=np.float64).rename_axis("conversation")
