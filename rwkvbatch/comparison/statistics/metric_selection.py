"""Selects the metrics of a comparison: the primary metric, which decides, and the others that are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rwkvbatch.comparison.analysis import available_metrics
from rwkvbatch.comparison.metrics.declarations import Metric, metric_named
from rwkvbatch.comparison.pairing.matching import MatchedRows
from rwkvbatch.comparison.pairing.pairs import Variant
from rwkvbatch.comparison.values.columns import rows_of
from rwkvbatch.comparison.values.metric_values import conversation_values
from rwkvbatch.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

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
    """The data among whose metrics is selected.

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
            hint = "the same `rwkvbatch run` with --retry-errors runs them again; `rwkvbatch show RUN` has the errors"
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
