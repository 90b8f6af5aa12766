"""The metrics that rows have values of, and those of a comparison: the primary one, which decides, and others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import KNOWN_NAMES, PAIR_METRICS, TURN_METRICS, Metric, metric_named
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.runs.data import Variant
from rwkvbatch.comparison.values.columns import array_of, rows_of
from rwkvbatch.comparison.values.conversations import conversation_values, judged_repeats
from rwkvbatch.errors import UsageError
from rwkvbatch.results.row import NOT_REACHED, is_prompt_error

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.comparison.values.columns import Columns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

PRIMARY_METRICS: Final = ("score", "nll")
"""The default primary metric is the first of these that has values."""

_NEEDS: Final = (
    "scores need checks in the script, nll and matched need reference replies, bits_per_byte plain texts, pass_at_K K "
    "repetitions"
)


@dataclass(frozen=True)
class ShownMetrics:
    """The metrics of the table, the primary one first if it is shown.

    Attributes:
        requested: the names of requested metrics that have values; None if none were requested.
        notes: on metrics without values.
    """

    metrics: Sequence[Metric]
    requested: tuple[str, ...] | None
    notes: Sequence[str]


@dataclass(frozen=True)
class MetricSelection:
    """The data whose metrics are selected from.

    Attributes:
        matched: the rows of the pairs that have any.
        table: the rows of all `variants`.
        requested: names of the requested metrics; None for the primary one.
        ks: the k of pass@k, all-k and majority@k; None for the default.
    """

    matched: Sequence[MatchedRows]
    variants: Sequence[Variant]
    table: pd.DataFrame
    requested: tuple[str, ...] | None
    ks: Sequence[int] | None

    def primary(self, name: str | None) -> Metric | None:
        """The metric that decides: the one called `name`, or the default; None for a single variant without a default.

        Raises:
            UsageError: `name` cannot decide, or there is no default.
        """
        if name is not None:
            metric = metric_named(name)
            if not metric.tested:
                alternative = f"; {metric.log_of} can" if metric.log_of else ""
                problem = f"differences in it are not tested, so it cannot decide{alternative}"
                raise UsageError(f"--primary {name}: {problem}")
            if not self._has_values(metric):
                raise UsageError(f"--primary {name}: no turn has a value of it on both sides", hint=_NEEDS)
            return metric
        defaults = [metric_named(default) for default in PRIMARY_METRICS]
        if (default := next(filter(self._has_values, defaults), None)) is not None:
            return default
        if len(self.variants) < 2:
            return None
        for metric in map(metric_named, self.requested or ()):
            if metric.tested and self._has_values(metric):
                return metric
        failed = [
            variant.label
            for variant in self.variants
            if (rows_of(self.table, variant, ["finish_reason"]) == "error").to_numpy().all()
        ]
        if failed:
            errors = set(self.table.loc[self.table["finish_reason"] == "error", "error"])
            reached = {error for error in map(str, errors) if not error.startswith(NOT_REACHED)}
            hint = "`rwkvbatch show RUN` has the errors"
            if not all(map(is_prompt_error, reached)):
                hint = f"the same `rwkvbatch run` with --retry-errors runs them again; {hint}"
            raise UsageError(f"no primary metric: every turn of {', '.join(failed)} ended in an error", hint=hint)
        if self._has_values(metric_named("bits_per_byte")):
            raise UsageError(
                "no primary metric: the variants cut the plain texts into different tokens, so nll is not compared",
                hint="choose what decides, such as --primary bits_per_byte",
            )
        if any(bool(self.table[metric.column].notna().any()) for metric in defaults):
            raise UsageError(
                "no primary metric: no turn that the variants share has a check (score) or a reference reply (nll)",
                hint="give the command of an interrupted run again, or choose what decides, such as --primary tokens",
            )
        raise UsageError(
            "no primary metric: the script has neither checks (score) nor reference replies (nll)",
            hint="choose what decides, such as --primary tokens",
        )

    def shown(self, primary: Metric | None, *, all_metrics: bool) -> ShownMetrics:
        """The metrics of the table that have values.

        Raises:
            UsageError: no requested metric has values.
        """
        requested = self.requested
        others = available_metrics(self.matched, self.ks) if all_metrics else list(map(metric_named, requested or ()))
        shows_primary = all_metrics or requested is None or (primary is not None and primary.name in requested)
        first = [primary] if primary is not None and shows_primary else []
        candidates = [*first, *(metric for metric in others if metric not in first)]
        without = [metric for metric in candidates if not self._has_values(metric)]
        names = {metric.name for metric in without}
        if without and requested is not None and names >= set(requested):
            raise UsageError(f"--metric: {self._no_values(without)}", hint=_NEEDS)
        # `repeat_notes` has those of `ks`.
        noted = [metric for metric in without if self.ks is None or metric.level != "conversation"]
        return ShownMetrics(
            [metric for metric in candidates if metric not in without],
            None if requested is None else tuple(name for name in requested if name not in names),
            [f"{self._no_values(noted)}: {_NEEDS}"] if noted else [],
        )

    def _has_values(self, metric: Metric) -> bool:
        """Whether any pair, or without pairs any variant, has a value of a metric."""
        if metric.level == "variant":
            return True
        if self.matched:
            return any(pair_rows.values(metric).baseline.size for pair_rows in self.matched)
        if metric.level == "turn":
            return bool(self.table[metric.column].notna().any())
        return metric.level == "conversation" and any(
            conversation_values(rows_of(self.table, variant), metric).size for variant in self.variants
        )

    def _no_values(self, metrics: Sequence[Metric]) -> str:
        names = ", ".join(metric.name for metric in metrics)
        return f"no turn has a value of {names}{' on both sides' if self.matched else ''}"


def available_metrics(matched: Sequence[MatchedRows], ks: Sequence[int] | None) -> list[Metric]:
    """The metrics of which both sides of a pair have values, in the order of `KNOWN_NAMES`."""
    available: dict[str, Metric] = {}
    for pair_rows in matched:
        found = metrics_of(pair_rows.columns, ("_a", "_b"), ks, known=available.keys())
        available |= {metric.name: metric for metric in found}
    order = {name: index for index, name in enumerate(KNOWN_NAMES.split(", "))}
    return sorted(available.values(), key=lambda metric: order.get(metric.name, len(order)))


def metrics_of(
    rows: Columns, sides: Sequence[str] = ("",), ks: Sequence[int] | None = None, known: Collection[str] = ()
) -> list[Metric]:
    """The metrics of which `rows` have values: `TURN_METRICS` without redundant ones, pass@k, all-k and majority@k.

    Args:
        sides: suffixes of the columns; each side must have values.
        ks: the k of pass@k, all-k and majority@k; None for the smallest number of repeats of a conversation, if that
            is at least 2.
        known: names of metrics of turns that are left out, because it is known that rows have them.
    """

    def columns_of(metric: Metric) -> list[NDArray[np.float64]]:
        return [array_of(rows, f"{metric.column}{side}") for side in sides]

    metrics = [
        metric
        for metric in TURN_METRICS
        if metric.name not in known
        and all(not np.isnan(column).all() for column in columns_of(metric))
        and not _redundant(metric, columns_of)
    ]
    if ks is None:
        fewest = min((repeats for side in sides for repeats in judged_repeats(rows, side).values()), default=0)
        ks = [fewest] if fewest > 1 else []
    metrics += [metric for metric in PAIR_METRICS if all(f"{metric.column}{side}" in rows for side in sides)]
    return metrics + [metric_named(f"{name}_{k}") for k in ks for name in ("pass_at", "all", "majority_at")]


def _redundant(metric: Metric, columns_of: Callable[[Metric], Sequence[NDArray[np.float64]]]) -> bool:
    """Whether `metric` adds nothing: `passed` equal to `score` in all rows, `failed` or `truncated` 0 in all rows."""
    if metric.name in ("error_rate", "truncated"):
        return not any(np.nan_to_num(column).any() for column in columns_of(metric))
    if metric.name == "passed":
        pairs = zip(columns_of(metric), columns_of(metric_named("score")), strict=True)
        return all(np.array_equal(passed, score, equal_nan=True) for passed, score in pairs)
    return False
