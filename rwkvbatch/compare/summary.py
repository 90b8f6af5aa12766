"""The means of one variant by itself, with clustered intervals."""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.compare.metrics import TURN_METRICS, Metric
from rwkvbatch.compare.metrics.base import exponential
from rwkvbatch.compare.pairing import Variant
from rwkvbatch.stats.clustered import clustered_mean

if TYPE_CHECKING:
    import pandas as pd


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
