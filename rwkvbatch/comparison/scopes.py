"""What gates are judged on: the pairs of a comparison, and variants without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial as bound
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gates import Floats, Value
from rwkvbatch.comparison.loading import RunData
from rwkvbatch.comparison.matching import Dropped, MatchedRows, conversation_values, rows_of, weights_of
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.comparison.pairing import Variant
from rwkvbatch.comparison.preference import missing_in

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class Column:
    """One metric of one side: `values` `[n]`, NaN where unknown; `conversations` and `repeats` `[n]` integer codes.

    `weights` `[n]`: how much each counts in the mean; None where all count equally.
    """

    values: Floats
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64]
    weights: Floats | None = None


@dataclass(frozen=True)
class GateScope:
    """A variant that gates are judged on.

    Attributes:
        baseline_label: None for a variant without a baseline.
        column: the numbers of a metric, of the variant or of the baseline; both have the same pairs in the same order.
        dropped: what variant and baseline lack; `missing` is what this side lacks of the other.
        unfinished: a sentence on each run that is not finished.
        unpaired: why there is no pair to judge, else empty.
        unpreferred: pairs of replies of which the judge gave no verdict.
    """

    label: str
    baseline_label: str | None
    column: Callable[[str, bool], Column]
    dropped: tuple[Dropped, ...] = ()
    unfinished: tuple[str, ...] = ()
    unpaired: str = ""
    unpreferred: int = 0

    def count(self, value: Value) -> float:
        """A count of the variant or of its baseline, such as `errors`."""
        return float(getattr(self.dropped[value.of_baseline], value.metric))


def scopes_of(
    matched: Sequence[MatchedRows],
    variants: Sequence[Variant],
    table: pd.DataFrame,
    dropped: Sequence[Dropped],
    runs: Sequence[RunData],
) -> list[GateScope]:
    """Every pair, and every variant without one."""
    lacks = {each.label: each for each in dropped}
    unfinished = {
        run.name: f"{run.source} is not finished: {'' if len(run.unfinished) == 1 else 'at least '}"
        f"{max(run.unfinished.values()):,} planned turns are not there"
        for run in runs
        if run.unfinished
    }

    def sentences(*sides: Variant) -> tuple[str, ...]:
        return tuple(unfinished[name] for name in dict.fromkeys(side.run for side in sides) if name in unfinished)

    scopes: list[GateScope] = []
    for each in matched:
        baseline, variant = each.pair.baseline, each.pair.variant
        scopes.append(
            GateScope(
                variant.label,
                baseline.label,
                bound(_column, each.rows, ("_b", "_a")),
                (
                    replace(lacks[variant.label], missing=each.only_baseline, different=each.num_different),
                    replace(lacks[baseline.label], missing=each.only_variant, different=0),
                ),
                sentences(baseline, variant),
                "" if len(each.rows) else f"{variant.label} and {baseline.label} have no turn in common",
                missing_in(each.rows),
            )
        )
    paired = {side for each in matched for side in (each.pair.baseline, each.pair.variant)}
    for variant in variants:
        if variant not in paired:
            alone = bound(_column, rows_of(table, variant), ("", ""))
            scopes.append(GateScope(variant.label, None, alone, (lacks[variant.label],), sentences(variant)))
    return scopes


def _column(rows: pd.DataFrame, sides: tuple[str, str], name: str, of_baseline: bool) -> Column:
    """The numbers of a metric by row, or by conversation; `sides` are the suffixes of variant and baseline."""
    metric, side = metric_named(name), sides[of_baseline]
    if metric.level == "conversation":
        codes = dict(zip(rows["conversation"], rows["conversation_code"], strict=True))
        values = conversation_values(rows, metric, side).reindex(list(codes))
        numbers = np.array(list(codes.values()), dtype=np.int64)
        return Column(values.to_numpy(dtype=np.float64), numbers, np.zeros_like(numbers))
    numbers = rows[f"{metric.column}{side}"].to_numpy(dtype=np.float64)
    weights = weights_of(rows, metric, tuple(dict.fromkeys(sides)))
    return Column(
        numbers if weights is None else np.where(np.isnan(weights), np.nan, numbers),
        rows["conversation_code"].to_numpy(dtype=np.int64),
        rows["repeat"].to_numpy(dtype=np.int64),
        weights,
    )
