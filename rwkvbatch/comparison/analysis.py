"""`compare`, and `Analysis`: the comparison that every output format is written from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rwkvbatch.comparison.gates import Column, GateResult, GateScope, judge, parse_gate
from rwkvbatch.comparison.loading import RunData, Source, joined, load_runs
from rwkvbatch.comparison.metrics import metric_named
from rwkvbatch.comparison.paired import (
    Breakdown,
    Comparison,
    MatchedRows,
    Pair,
    Variant,
    check_pairs,
    check_runs,
    compare_pairs,
    conversation_values,
    match,
    pair_up,
    refuse_parts,
    rows_of,
    variants_of,
)
from rwkvbatch.comparison.ranking import Ranking, VariantMean, main_metrics, rank, variant_means
from rwkvbatch.comparison.wording import conclusion, heading, interval, number, p_value, signed, standing
from rwkvbatch.errors import RunMismatchError
from rwkvbatch.prompt.escaping import printable

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

COLUMNS: Final[Mapping[str, Callable[[Comparison], Any]]] = {
    "baseline": lambda line: line.pair.baseline.label,
    "variant": lambda line: line.pair.variant.label,
    "group": lambda line: line.group,
    "metric": lambda line: line.metric.name,
    "unit": lambda line: line.metric.unit,
    "better": lambda line: line.metric.better,
    **{
        name: lambda line, name=name: getattr(line, name)
        for name in (
            "baseline_mean", "variant_mean", "difference", "standard_error", "degrees", "low", "high", "p", "p_holm",
            "verdict", "wins", "ties", "losses", "detectable", "num_values", "num_conversations",
        )
    },
}  # fmt: skip
"""The columns of `Analysis.to_pandas`, of CSV and of JSON, with the value of each."""

_MAX_REPR_LINES = 12


@dataclass(frozen=True, repr=False)
class Analysis:
    """A finished comparison.

    Attributes:
        runs: the runs. variants: all their cells. pairs: each variant with its baseline.
        matched: the joined rows of each pair. comparisons: the table, Holm-corrected as a whole.
        gates: the outcome of every gate on every variant that is not a baseline.
        notes: warnings: what did not match, and what makes the comparison less reliable.
        table: all rows of all runs, with a column `run`. metrics: names of the requested metrics, None for all.
        rankings: of three or more variants, by the requested metrics or the main one.
    """

    runs: tuple[RunData, ...]
    variants: tuple[Variant, ...]
    pairs: tuple[Pair, ...]
    matched: tuple[MatchedRows, ...]
    comparisons: tuple[Comparison, ...]
    gates: tuple[GateResult, ...]
    notes: tuple[str, ...]
    table: pd.DataFrame
    metrics: tuple[str, ...] | None = None
    rankings: tuple[Ranking, ...] = ()

    def means(self, variant: Variant) -> list[VariantMean]:
        """The means of one variant by itself, in the requested metrics."""
        return [
            mean
            for mean in variant_means(self.table, variant)
            if self.metrics is None or mean.metric.name in self.metrics
        ]

    def records(self) -> list[dict[str, Any]]:
        """The table, a record per comparison with the keys of `COLUMNS`.

        Without comparisons (a single variant), a record per mean: what needs a baseline is None.
        """
        if self.comparisons:
            return [{name: of(line) for name, of in COLUMNS.items()} for line in self.comparisons]
        return [
            dict.fromkeys(COLUMNS)
            | {"variant": variant.label, "metric": mean.metric.name, "unit": mean.metric.unit}
            | {"better": mean.metric.better, "variant_mean": mean.mean, "num_values": mean.num_values}
            for variant in self.variants
            for mean in self.means(variant)
        ]

    def to_pandas(self) -> pd.DataFrame:
        """The table as a `DataFrame`, a row per comparison (or per mean, see `records`)."""
        import pandas as pd

        return pd.DataFrame(self.records(), columns=list(COLUMNS))

    @property
    def failed(self) -> bool:
        """Whether a gate failed."""
        return any(result.failed for result in self.gates)

    def __repr__(self) -> str:
        lines = [
            f"{heading(line)}: {line.metric.name} {number(line.baseline_mean, line.metric.digits)} -> "
            f"{number(line.variant_mean, line.metric.digits)}, {signed(line.difference, line.metric.digits)} "
            f"{interval(line)}, p {p_value(line.p_holm)}, {line.verdict}"
            for line in self.comparisons
        ] or [
            f"{variant.label}: {mean.metric.name} {number(mean.mean, mean.metric.digits)} {interval(mean)}"
            for variant in self.variants
            for mean in self.means(variant)
        ]
        if len(lines) > _MAX_REPR_LINES:
            lines[_MAX_REPR_LINES:] = [f"... {len(lines) - _MAX_REPR_LINES} more lines, see to_pandas()"]
        lines = [conclusion(self.comparisons), *lines, *(standing(ranking, max_named=5) for ranking in self.rankings)]
        lines += [gate.line for gate in self.gates]
        variants = f"{len(self.variants)} variant{'' if len(self.variants) == 1 else 's'}"
        return f"<Analysis: {variants}, {len(self.table):,} rows>\n" + "\n".join(
            f"  {printable(line, keep_newlines=False)[:160]}" for line in lines
        )


def compare(
    runs: Source | Iterable[Source],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    by: Breakdown | None = None,
    ks: Sequence[int] | None = None,
    fail_if: Sequence[str] = (),
    gate_significant: bool = False,
    force: bool = False,
) -> Analysis:
    """Compare runs: directories, results files, cells (`PATH::CELL`) or results of `rwkvbatch.run` in memory.

    Results in memory are named `result-1`, `result-2`, ... by their positions.

    Args:
        baseline: a run or a cell; None for the first run, or the first cell of a single run.
        metrics: names of the metrics to compare, None for all; the correction for multiple tests counts only these.
        by: break the table down by turn or tag. ks: the k of pass@k and all-k.
        fail_if: gates (`rwkvbatch.comparison.gates`). gate_significant: gates fail only on significant differences.
        force: compare runs of different scripts.

    Raises:
        UsageError: an unknown baseline or metric, or an invalid gate.
        InputError: a run cannot be read, or runs have no turn in common.
    """
    gates = [replace(gate, significantly=gate.significantly or gate_significant) for gate in map(parse_gate, fail_if)]
    for name in metrics or ():
        metric_named(name)
    loaded = load_runs(runs)
    notes = check_runs(loaded, force=force)
    variants = variants_of(loaded)
    pairs, unpaired = pair_up(loaded, variants, baseline)
    table = joined(loaded)
    every = [match(pair, table) for pair in pairs]
    notes += unpaired + check_pairs(pairs, loaded)
    for side_by_side in every:
        notes += _matching_notes(side_by_side)
    matched = [side_by_side for side_by_side in every if len(side_by_side.rows)]
    empty = [side_by_side.pair for side_by_side in every if not len(side_by_side.rows)]
    # Without matched rows there is nothing to compare, and a gate would pass without having judged anything.
    if (not matched and len(variants) > 1) or (gates and empty):
        raise _no_common_turn(empty, loaded)
    comparisons = compare_pairs(matched, by=by, ks=ks, metrics=metrics)
    sides = {side for each in matched for side in (each.pair.baseline, each.pair.variant)}
    ranked = [variant for variant in variants if variant in sides]
    rankings, unranked = rank(ranked, main_metrics([line.metric for line in comparisons], metrics), table)
    notes += unranked
    return Analysis(
        tuple(loaded), tuple(variants), tuple(pairs), tuple(matched), tuple(comparisons),
        tuple(judge(gates, _scopes(matched, variants, table))), tuple(dict.fromkeys(notes)), table,
        None if metrics is None else tuple(metrics), tuple(rankings),
    )  # fmt: skip


def _no_common_turn(empty: Sequence[Pair], runs: Sequence[RunData]) -> RunMismatchError:
    if empty:
        refuse_parts(empty[0], runs)
    names = f"{empty[0].variant.label} and {empty[0].baseline.label}" if empty else "the runs"
    return RunMismatchError(
        f"{names} have no (conversation, turn, repeat) in common",
        hint="compare runs of the same script with cells of the same names, or give --baseline a run or a cell",
    )


def _matching_notes(matched: MatchedRows) -> list[str]:
    a, b = matched.pair.baseline.label, matched.pair.variant.label
    notes: list[str] = []
    if matched.only_baseline or matched.only_variant:
        notes.append(
            f"{b} against {a}: {len(matched.rows)} turns matched; left out: {matched.only_baseline} only in {a}, "
            f"{matched.only_variant} only in {b}"
        )
    if matched.different_prompts:
        notes.append(f"{b} against {a}: {matched.different_prompts} matched turns have different prompts")
    return notes


def _scopes(matched: Sequence[MatchedRows], variants: Sequence[Variant], table: pd.DataFrame) -> list[GateScope]:
    """Each pair, or the only variant."""
    if not matched:
        alone = partial(_column, rows_of(table, variants[0]), ("", ""))
        return [GateScope(variants[0].label, None, alone)]
    return [
        GateScope(each.pair.variant.label, each.pair.baseline.label, partial(_column, each.rows, ("_b", "_a")))
        for each in matched
    ]


def _column(rows: pd.DataFrame, sides: tuple[str, str], name: str, of_baseline: bool) -> Column:
    """The numbers of a metric by row, or by conversation; `sides` are the suffixes of variant and baseline."""
    metric, side = metric_named(name), sides[of_baseline]
    if metric.level == "conversation":
        conversations = rows["conversation"].unique()
        values = conversation_values(rows, metric, side).reindex(conversations)
        return Column(values.to_numpy(dtype=np.float64), np.arange(len(conversations)))
    return Column(rows[f"{name}{side}"].to_numpy(dtype=np.float64), rows["conversation"].factorize()[0])
