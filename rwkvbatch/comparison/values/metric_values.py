"""The values and weights of a metric in rows, and in matched rows side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.values.columns import array_of
from rwkvbatch.comparison.values.conversations import conversation_values

if TYPE_CHECKING:
    from rwkvbatch.comparison.values.columns import Columns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class PairedValues:
    """Matched values of a metric.

    Attributes:
        baseline, variant: `[n]` the values of both sides.
        conversations: `[n]` integer codes of the conversations.
        weights: `[n]` weights of the pairs in means, 1 on average; None where all weights are equal.
    """

    baseline: NDArray[np.float64]
    variant: NDArray[np.float64]
    conversations: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    @property
    def differences(self) -> NDArray[np.float64]:
        """`[n]` variant minus baseline."""
        return self.variant - self.baseline

    def weighted(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`values` `[n]` times the weights."""
        return values if self.weights is None else values * self.weights


def paired_values(rows: Columns, metric: Metric) -> PairedValues:
    """The values of a metric of turns or conversations in matched rows, where both sides have one."""
    if metric.level == "conversation":
        sides = (conversation_values(rows, metric, "_a"), conversation_values(rows, metric, "_b"))
        baseline_series, variant_series = sides[0].align(sides[1], join="inner")
        codes = dict(zip(rows["conversation"], rows["conversation_code"], strict=True))
        conversations = np.array([codes[name] for name in baseline_series.index], dtype=np.int64)
        baseline, variant = (series.to_numpy(dtype=np.float64) for series in (baseline_series, variant_series))
        return PairedValues(baseline, variant, conversations)
    baseline, variant, weights = _sides(rows, metric)
    known = _known(baseline, variant, weights)
    if weights is not None:
        weights = weights[known]
        weights = weights / weights.mean() if weights.size else weights
    return PairedValues(baseline[known], variant[known], array_of(rows, "conversation_code")[known], weights)


def has_both_values(rows: Columns, metric: Metric) -> NDArray[np.bool_]:
    """`[rows]` whether both sides of a matched row have a value of a metric of turns, and of equal weight."""
    return _known(*_sides(rows, metric))


def _sides(
    rows: Columns, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """`[rows]` the values of both sides of matched rows, and their weights as in `weights_of`."""
    baseline, variant = (array_of(rows, f"{metric.column}{side}", np.float64) for side in ("_a", "_b"))
    return baseline, variant, weights_of(rows, metric, ("_a", "_b"))


def _known(
    baseline: NDArray[np.float64], variant: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    known = ~(np.isnan(baseline) | np.isnan(variant))
    return known if weights is None else known & ~np.isnan(weights)


def weights_of(rows: Columns, metric: Metric, sides: Sequence[str] = ("",)) -> NDArray[np.float64] | None:
    """`[rows]` the weights of a metric; None if all rows have equal weight.

    NaN in rows without a weight, and in matched rows whose two sides have different weights: two vocabularies split a
    text into different numbers of tokens, so values per token are not comparable.
    """
    if metric.weight_column is None or f"{metric.weight_column}{sides[0]}" not in rows:
        return None  # tables from other programs have no weights
    first, *others = [array_of(rows, f"{metric.weight_column}{side}", np.float64) for side in sides]
    for other in others:
        first = np.where(first == other, first, np.nan)
    return first
