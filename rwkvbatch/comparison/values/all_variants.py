"""The values of one metric of all variants in the same rows, and the differences between any two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import Metric, pass_value
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.values.columns import rows_of, same_keys

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false


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
