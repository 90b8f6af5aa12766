"""Everything that a comparison says, as one record that every output format is written from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rwkvbatch.comparison.gates import Column, Gate, GateResult, GateScope, judge, parse_gate
from rwkvbatch.comparison.loading import RunData, load_runs
from rwkvbatch.comparison.metrics import TURN_METRICS, pass_values
from rwkvbatch.comparison.paired import (
    Breakdown,
    Comparison,
    MatchedRows,
    Pair,
    Variant,
    check_pairs,
    check_runs,
    compare_pairs,
    match,
    outcomes_by_conversation,
    pair_up,
    refuse_parts,
    variants_of,
)
from rwkvbatch.comparison.ranking import Ranking, VariantMean, main_metrics, rank, variant_means
from rwkvbatch.errors import RunMismatchError, UsageError

if TYPE_CHECKING:
    import pandas as pd

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


@dataclass(frozen=True)
class Analysis:
    """A finished comparison.

    Attributes:
        runs: what was read. variants: all their cells. pairs: what is held against what.
        matched: the joined rows of each pair. comparisons: the table, Holm-corrected as a whole.
        gates: the outcome of every gate on every variant that is not a baseline.
        notes: what a reader must know: what did not match, what makes the comparison shaky.
        table: all rows of all runs, with a column `run`. metrics: names of those that were asked for, None for all.
        rankings: of three or more variants, which could be the best; by the metrics asked for, or the main one.
    """

    runs: tuple[RunData, ...] = field(repr=False)
    variants: tuple[Variant, ...]
    pairs: tuple[Pair, ...] = field(repr=False)
    matched: tuple[MatchedRows, ...] = field(repr=False)
    comparisons: tuple[Comparison, ...] = field(repr=False)
    gates: tuple[GateResult, ...]
    notes: tuple[str, ...]
    table: pd.DataFrame = field(repr=False)
    metrics: tuple[str, ...] | None = None
    rankings: tuple[Ranking, ...] = field(default=(), repr=False)

    def means(self, variant: Variant) -> list[VariantMean]:
        """The means of one variant by itself, in the metrics that were asked for."""
        return [
            mean
            for mean in variant_means(self.table, variant)
            if self.metrics is None or mean.metric.name in self.metrics
        ]

    @property
    def failed(self) -> bool:
        """Whether a gate failed."""
        return any(result.failed for result in self.gates)


def analyse(
    sources: str | Path | Iterable[str | Path],
    *,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    by: Breakdown | None = None,
    ks: Sequence[int] | None = None,
    fail_if: Sequence[str] = (),
    gate_significant: bool = False,
    force: bool = False,
) -> Analysis:
    """Compare runs, results files or cells (`PATH::CELL`).

    Args:
        baseline: a run or a cell; unasked, the first run, or with one run its first cell.
        metrics: names of the metrics to compare, None for all; the correction counts only these.
        by: break down by turn or tag. ks: the k of pass@k and all-k.
        fail_if: gates (`rwkvbatch.comparison.gate_parser`); with `gate_significant` all must hold
        significantly. force: compare runs of different scripts all the same.

    Raises:
        UsageError: nothing is called `baseline`, an unknown metric, a wrong gate.
        InputError: a run cannot be read, or runs have nothing in common.
    """
    import pandas as pd

    gates = [replace(gate, significantly=gate.significantly or gate_significant) for gate in map(parse_gate, fail_if)]
    _check_names(metrics)
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    runs = load_runs([str(source) for source in given])
    notes = check_runs(runs, force=force)
    variants = variants_of(runs)
    pairs, unpaired = pair_up(runs, variants, baseline)
    table = pd.concat([run.rows.assign(run=run.name) for run in runs], ignore_index=True)
    matched = [match(pair, table) for pair in pairs]
    notes.extend(unpaired)
    notes.extend(check_pairs(pairs, runs))
    for side_by_side in matched:
        notes.extend(_matching_notes(side_by_side))
    _check_common(runs, variants, matched, gates)
    compared = [side_by_side for side_by_side in matched if len(side_by_side.rows)]
    comparisons = compare_pairs(compared, by=by, ks=ks, metrics=metrics)
    rankings, unranked = rank(
        _taking_part(variants, compared), main_metrics([line.metric for line in comparisons], metrics), table
    )
    notes.extend(unranked)
    scopes = [_pair_scope(side_by_side) for side_by_side in compared] or [_lone_scope(variants[0], table)]
    return Analysis(
        tuple(runs), tuple(variants), tuple(pairs), tuple(compared), tuple(comparisons),
        tuple(judge(gates, scopes)), tuple(dict.fromkeys(notes)), table,
        None if metrics is None else tuple(metrics), tuple(rankings),
    )  # fmt: skip


def _check_common(
    runs: Sequence[RunData],
    variants: Sequence[Variant],
    matched: Sequence[MatchedRows],
    gates: Sequence[Gate],
) -> None:
    """Raise where there is nothing to say, or where a gate would pass for lack of anything to judge."""
    empty = [side_by_side for side_by_side in matched if not len(side_by_side.rows)]
    nothing = len(empty) == len(matched) and len(variants) > 1
    if nothing or (gates and empty):
        if empty:
            refuse_parts(empty[0].pair, runs)
        who = f"{empty[0].pair.variant.label} and {empty[0].pair.baseline.label}" if empty else "the runs"
        raise RunMismatchError(
            f"{who} have no (conversation, turn, repeat) in common",
            hint="were they runs of the same script, with cells of the same names? --baseline takes a run or a cell",
        )


def _taking_part(variants: Sequence[Variant], compared: Sequence[MatchedRows]) -> list[Variant]:
    sides = {side for each in compared for side in (each.pair.baseline, each.pair.variant)}
    return [variant for variant in variants if variant in sides]


def _check_names(metrics: Sequence[str] | None) -> None:
    known = [metric.name for metric in TURN_METRICS]
    for name in metrics or ():
        if name not in known and not name.startswith(("pass_at_", "all_")):
            raise UsageError(
                f"--metric must be one of {', '.join(known)}, pass_at_K, all_K; got {name!r}",
            )


def _matching_notes(matched: MatchedRows) -> list[str]:
    a, b = matched.pair.baseline.label, matched.pair.variant.label
    notes: list[str] = []
    if matched.only_baseline or matched.only_variant:
        notes.append(
            f"{b} against {a}: {len(matched.rows)} turns matched; {matched.only_baseline} only in {a}, "
            f"{matched.only_variant} only in {b} are left out"
        )
    if matched.other_prompts:
        notes.append(f"{b} against {a}: {matched.other_prompts} matched turns asked something else")
    return notes


def _pair_scope(matched: MatchedRows) -> GateScope:
    def column(metric: str, of_baseline: bool) -> Column:
        side = "_a" if of_baseline else "_b"
        repeats = _repeats_column(metric, matched.rows, side)
        if repeats is not None:
            return repeats
        values = matched.rows[f"{metric}{side}"].to_numpy(dtype=np.float64)
        return Column(values, matched.rows["conversation_code"].to_numpy())

    return GateScope(matched.pair.variant.label, matched.pair.baseline.label, column)


def _lone_scope(variant: Variant, table: pd.DataFrame) -> GateScope:
    rows = table.loc[(table["run"] == variant.run) & (table["cell"] == variant.cell)]

    def column(metric: str, of_baseline: bool) -> Column:
        repeats = _repeats_column(metric, rows, "")
        if repeats is not None:
            return repeats
        return Column(rows[metric].to_numpy(dtype=np.float64), rows["conversation"].factorize()[0])

    return GateScope(variant.label, None, column)


def _repeats_column(metric: str, rows: pd.DataFrame, side: str) -> Column | None:
    """`pass_at_K` and `all_K`: one number a conversation; NaN where it has fewer than K repeats."""
    family, _, k = metric.rpartition("_")
    if family not in ("pass_at", "all"):
        return None
    outcomes = outcomes_by_conversation(rows, side)
    values = pass_values(outcomes, int(k))[0 if family == "pass_at" else 1]
    numbers = np.array([values.get(name, np.nan) for name in outcomes], dtype=np.float64)
    return Column(numbers, np.arange(len(outcomes)))


__all__ = ["Analysis", "Gate", "analyse"]
