"""The scopes that gates are judged on: each pair of a comparison, and each variant outside all pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.gates.expressions import Floats, Value
from rwkvbatch.comparison.metrics.declarations import metric_named
from rwkvbatch.comparison.pairing.matching import Dropped, MatchedRows
from rwkvbatch.comparison.pairing.preference import missing_in
from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.comparison.values.columns import JoinedColumns, rows_of
from rwkvbatch.comparison.values.conversations import conversation_values
from rwkvbatch.comparison.values.groups import tags_of, with_tag
from rwkvbatch.comparison.values.metric_values import weights_of
from rwkvbatch.errors import counted

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class Column:
    """One metric of one side.

    Attributes:
        values: `[n]`, NaN where unknown.
        conversations, repeats: `[n]` integer codes.
        weights: `[n]` weights of the values in the mean; None for equal weights.
    """

    values: Floats
    conversations: NDArray[np.int64]
    repeats: NDArray[np.int64]
    weights: Floats | None = None


@dataclass(frozen=True)
class GateScope:
    """A variant that gates are judged on, with its baseline if it has one.

    Attributes:
        baseline_label: None for a variant without a baseline.
        column: maps a metric's name, `of_baseline` and a tag (None for all turns) to the values of that side; both
            sides have the same pairs in the same order.
        tags: the tags of its turns, in order of appearance.
        dropped: the rows that the variant, and then the baseline, lacks; `missing` counts rows that only the other
            side of the pair has.
        unfinished: a sentence on each run that is unfinished or only a part.
        unpaired: why there is no pair to judge; empty otherwise.
        unpreferred: number of pairs of replies without a verdict of the judge.
    """

    label: str
    baseline_label: str | None
    column: Callable[[str, bool, str | None], Column]
    tags: Callable[[], Sequence[str]] = tuple
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
    """A scope for every pair, then one for every variant outside all pairs."""
    dropped_of = {variant_dropped.label: variant_dropped for variant_dropped in dropped}
    sentences = {run.name: sentence for run in runs if (sentence := _unfinished_sentence(run)) is not None}

    def unfinished(*sides: Variant) -> tuple[str, ...]:
        return tuple(sentences[name] for name in dict.fromkeys(side.run for side in sides) if name in sentences)

    scopes: list[GateScope] = []
    for pair_rows in matched:
        rows, baseline, variant = pair_rows.columns, pair_rows.pair.baseline, pair_rows.pair.variant
        scopes.append(
            GateScope(
                variant.label,
                baseline.label,
                partial(_column, rows, ("_b", "_a")),
                partial(tags_of, rows, "_a"),
                dropped=(
                    replace(
                        dropped_of[variant.label], missing=pair_rows.only_baseline, different=pair_rows.num_different
                    ),
                    replace(dropped_of[baseline.label], missing=pair_rows.only_variant, different=0),
                ),
                unfinished=unfinished(baseline, variant),
                unpaired="" if len(rows) else f"{variant.label} and {baseline.label} have no turn in common",
                unpreferred=missing_in(rows),
            )
        )
    paired = {side for pair_rows in matched for side in (pair_rows.pair.baseline, pair_rows.pair.variant)}
    for variant in variants:
        if variant not in paired:
            rows = rows_of(table, variant)
            column, tags = partial(_column, rows, ("", "")), partial(tags_of, rows)
            dropped_rows = (dropped_of[variant.label],)
            scopes.append(GateScope(variant.label, None, column, tags, dropped_rows, unfinished(variant)))
    return scopes


def _unfinished_sentence(run: RunData) -> str | None:
    """Why gates fail on a run; None if it is whole."""
    if not run.unfinished:
        if run.facts.part in (None, "1/1"):
            return None
        return f"{run.source} is part {run.facts.part} of a run; `rwkvbatch merge` combines the parts"
    at_least = "at least " if len(run.unfinished) > 1 or run.unfinished_at_least else ""
    missing = max(run.unfinished.values())
    verb = "is" if missing == 1 else "are"
    return f"{run.source} is not finished: {at_least}{counted(missing, 'planned turn')} {verb} missing"


def _column(
    rows: pd.DataFrame | JoinedColumns, sides: tuple[str, str], name: str, of_baseline: bool, tag: str | None
) -> Column:
    """The values of a metric, by row or by conversation; `sides` are the column suffixes of variant and baseline."""
    metric, side = metric_named(name), sides[of_baseline]
    if tag is not None:
        rows = with_tag(rows.table() if isinstance(rows, JoinedColumns) else rows, tag, sides[1])
    if metric.level == "conversation":
        code_of = dict(zip(rows["conversation"], rows["conversation_code"], strict=True))
        series = conversation_values(rows, metric, side).reindex(list(code_of))
        codes = np.array(list(code_of.values()), dtype=np.int64)
        return Column(series.to_numpy(dtype=np.float64), codes, np.zeros_like(codes))
    values = rows[f"{metric.column}{side}"].to_numpy(dtype=np.float64)
    weights = weights_of(rows, metric, tuple(dict.fromkeys(sides)))
    return Column(
        values if weights is None else np.where(np.isnan(weights), np.nan, values),
        rows["conversation_code"].to_numpy(dtype=np.int64),
        rows["repeat"].to_numpy(dtype=np.int64),
        weights,
    )
