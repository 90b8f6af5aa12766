"""Means of single variants, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.statistics.differences import LEVEL
from rwkvbatch.comparison.statistics.metric_selection import metrics_of
from rwkvbatch.comparison.values.columns import CellColumns, array_of, rows_of
from rwkvbatch.comparison.values.conversations import conversation_values
from rwkvbatch.comparison.values.groups import Breakdown, groups_of
from rwkvbatch.comparison.values.metric_values import weights_of
from rwkvbatch.stats.bounded import bounded_interval
from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.spread import unlimited_interval

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.comparison.values.columns import Columns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false


@dataclass(frozen=True)
class VariantMean:
    """A metric's mean over a variant's rows (of one `group`), with its 95 % interval within the metric's range.

    The interval is NaN if the spread between conversations is unknown. `num_values` values of `num_conversations`
    conversations are known.
    """

    metric: Metric
    mean: float
    low: float
    high: float
    num_values: int
    num_conversations: int
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
    estimate = clustered_mean(values, conversations, weights)
    mean, low, high = map(metric.shown, (estimate.mean, *ends_of_mean(metric, values, conversations, weights)))
    return VariantMean(metric, mean, low, high, values.size, estimate.num_clusters, group)


def ends_of_mean(
    metric: Metric, values: NDArray[np.float64], conversations: NDArray[Any],
    weights: NDArray[np.float64] | None = None, level: float = LEVEL,
) -> tuple[float, float]:  # fmt: skip
    """The `1 - level` interval of the mean of `values` `[n]` of `metric.column`, clipped to the metric's range."""
    if math.isfinite(metric.widest) and not metric.log_of:
        return bounded_interval(values, conversations, lowest=metric.lowest, highest=metric.highest, level=1 - level)
    low, high = unlimited_interval(values, conversations, weights, level=1 - level)
    return float(np.clip(low, metric.lowest, metric.highest)), float(np.clip(high, metric.lowest, metric.highest))
