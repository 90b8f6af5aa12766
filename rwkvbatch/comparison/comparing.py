"""`compare`: from runs to an `Analysis`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rwkvbatch.comparison.analysis import Analysis, available_metrics
from rwkvbatch.comparison.blame import blame as find_blame
from rwkvbatch.comparison.gates import parse_gate
from rwkvbatch.comparison.judging import judge as judge_gates
from rwkvbatch.comparison.loading import RunData, Source, load_runs
from rwkvbatch.comparison.matching import (
    Breakdown,
    MatchedRows,
    comparable_rows,
    count_dropped,
    match,
    most_repeats,
    rows_of,
)
from rwkvbatch.comparison.metrics import Metric, metric_named
from rwkvbatch.comparison.paired import Comparison, Family, compare_counts, compare_metric
from rwkvbatch.comparison.pairing import Pair, Variant, check_pairs, check_runs, pair_up, refuse_parts, variants_of
from rwkvbatch.comparison.preference import (
    PREFERENCE,
    JudgesPairs,
    Preferences,
    judge_notes,
    refuse_without_judge,
    with_preference,
)
from rwkvbatch.comparison.ranking import Ranking, rank
from rwkvbatch.comparison.scopes import scopes_of
from rwkvbatch.comparison.trend import Trend, positions_over, trend_over
from rwkvbatch.errors import RunMismatchError, UsageError, counted

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

PRIMARY_METRICS: Final = ("score", "nll")
"""The primary metric where none is chosen: the first of these that has numbers."""


def compare(
    runs: Source | Iterable[Source],
    *,
    baseline: str | None = None,
    primary: str | None = None,
    metrics: Sequence[str] | None = None,
    all_metrics: bool = False,
    margin: float | None = None,
    over: str | None = None,
    by: Breakdown | None = None,
    ks: Sequence[int] | None = None,
    fail_if: Sequence[str] = (),
    fail_unless: Sequence[str] = (),
    gate_significant: bool = False,
    allow_missing: bool = False,
    partial: bool = False,
    force: bool = False,
    blame: bool = False,
    judge: JudgesPairs | None = None,
) -> Analysis:
    """Compare runs: directories, results files, cells (`PATH::CELL`) or results of `rwkvbatch.run` in memory.

    Results in memory are named `result-1`, `result-2`, ... by their positions.

    Args:
        baseline: a run or a cell; None for the first run, or the first cell of a single run.
        primary: the metric that decides; None for `score` where the script has checks, else `nll`.
        metrics: names of the metrics to show instead of the primary one; each is corrected by itself, and all but the
            primary one are exploratory. all_metrics: show the primary metric and all others.
        margin: differences of the primary metric up to this size count as equivalent.
        over: test the trend of the primary metric, and of `metrics`, over checkpoints, which are compared with the
            earliest one: the word before the number in their names, such as `step`, or a number for each in their
            order, such as `100,200`.
        by: show also each turn, tag, or distance of probes from what they ask about (exploratory).
        ks: the k of pass@k and all-k.
        fail_if: gates (`rwkvbatch.comparison.gates`) that fail where they hold. fail_unless: gates that fail where they
            do not. gate_significant: add `significantly` to all gates.
        allow_missing: judge gates on what is there where rows are missing or ended in an error. partial: judge gates on
            unfinished runs. Otherwise gates fail there.
        force: compare runs of different scripts: the turns whose questions are equal.
        blame: find the turns at which dialogues went wrong; needs cells with `history` own and gold that are otherwise
            the same.
        judge: asked which of each pair of replies is better: the metric `preference`, which is then the primary one
            where none is named.

    Raises:
        UsageError: an unknown baseline or metric, no primary metric, or an invalid gate.
        InputError: a run cannot be read, or runs have no turn in common.
    """
    gates = [parse_gate(text, "--fail-if", significantly=gate_significant) for text in fail_if]
    gates += [parse_gate(text, "--fail-unless", significantly=gate_significant) for text in fail_unless]
    asked = None if metrics is None else tuple(dict.fromkeys(metric_named(name).name for name in metrics))
    if margin is not None and not (math.isfinite(margin) and margin > 0):
        raise UsageError(f"--margin must be a positive number, in the unit of the primary metric; got {margin}")
    if judge is None:
        refuse_without_judge([primary, *(metrics or ())], gates)
    loaded = load_runs(runs)
    notes = check_runs(loaded, force=force)
    variants = variants_of(loaded)
    positions = {} if over is None else positions_over(over, variants, loaded)
    if positions:
        variants = sorted(variants, key=positions.__getitem__)
        baseline = variants[0].label if baseline is None else baseline
    pairs, unpaired = pair_up(loaded, variants, baseline)
    table = comparable_rows(loaded)
    is_text = table["bits_per_byte"].notna()
    if bool(is_text.any()) and bool((table["nll"].notna() & ~is_text).any()):
        notes += [
            "nll is of plain texts, which count by their tokens, and of reference replies, which count equally; "
            "compare them apart, in runs of their own or with --by tag"
        ]
    if by == "distance" and not bool(table["probe_turns"].notna().any()):
        raise UsageError("--by distance: no run has probes", hint="see docs/scripts.md for `probes`")
    every = [match(pair, table) for pair in pairs]
    notes += unpaired + check_pairs(pairs, loaded)
    for side_by_side in every:
        notes += _matching_notes(side_by_side)
    matched = [side_by_side for side_by_side in every if len(side_by_side.rows)]
    empty = [side_by_side.pair for side_by_side in every if not len(side_by_side.rows)]
    if not matched and len(variants) > 1:
        raise _no_common_turn(empty, loaded)
    dropped = count_dropped(variants, every, table, loaded)
    preferences: list[Preferences] = []
    if judge is not None:
        if not matched:
            raise UsageError(
                "--judge compares replies of two variants, and only one is given", hint="give a second run"
            )
        matched, preferences = with_preference(matched, judge, table, loaded)
        judged = {each.pair: each for each in matched}
        every = [judged.get(each.pair, each) for each in every]
        notes += [each.sentence for each in preferences]
    notes += judge_notes(pairs, table)
    notes += _repeat_notes(ks, matched, variants, table)
    if judge is not None and primary is None:
        primary = PREFERENCE
    decisive = _primary(primary, asked, matched, variants, table)
    shown = _shown(decisive, asked, matched, ks, all_metrics=all_metrics)
    trends: list[Trend] = []
    if over is not None and decisive is not None:
        others = [] if asked is None else [metric for metric in shown if metric != decisive]
        trends, without = _trends(over, positions, decisive, others, table)
        notes += without
    tested = _Tested()
    sides = {side for each in matched for side in (each.pair.baseline, each.pair.variant)}
    ranked = [variant for variant in variants if variant in sides]
    for metric in shown if matched else ():
        if metric.level == "variant":
            tested.comparisons += compare_counts(metric, [each.pair for each in matched], dropped)
            continue
        is_primary = metric == decisive
        lines = tested.add(metric, matched, margin=margin if is_primary else None, exploratory=not is_primary)
        if is_primary or asked is not None:
            ranking, why_not = rank(ranked, metric, table, lines)
            tested.rankings += [] if ranking is None else [ranking]
            notes += [] if why_not is None else [why_not]
        if by is not None and not (by != "tag" and metric.level == "conversation"):
            tested.add(metric, matched, by=by, exploratory=True)
    scopes = scopes_of(every, variants, table, dropped, loaded)
    return Analysis(
        runs=tuple(loaded),
        variants=tuple(variants),
        pairs=tuple(pairs),
        matched=tuple(matched),
        primary=decisive,
        comparisons=tuple(tested.comparisons),
        families=tuple(tested.families),
        gates=tuple(judge_gates(gates, scopes, allow_missing=allow_missing, partial=partial)),
        notes=tuple(dict.fromkeys(notes)),
        table=table,
        metrics=asked,
        rankings=tuple(tested.rankings),
        dropped=dropped,
        by=by,
        ks=None if ks is None else tuple(ks),
        margin=margin,
        trends=tuple(trends),
        blame=find_blame(variants, loaded, table) if blame else (),
        preferences=tuple(preferences),
    )


@dataclass
class _Tested:
    """Collects the lines of the table, how they are corrected, and the rankings."""

    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    families: list[Family] = field(default_factory=list[Family])
    rankings: list[Ranking] = field(default_factory=list[Ranking])

    def add(
        self, metric: Metric, matched: Sequence[MatchedRows], *, by: Breakdown | None = None,
        margin: float | None = None, exploratory: bool,
    ) -> list[Comparison]:  # fmt: skip
        """Tests one family; its lines."""
        lines, family = compare_metric(metric, matched, by=by, margin=margin, exploratory=exploratory)
        self.comparisons += lines
        self.families.append(family)
        return lines


def _trends(
    over: str, positions: Mapping[Variant, float], decisive: Metric, others: Iterable[Metric], table: pd.DataFrame
) -> tuple[list[Trend], list[str]]:
    """The trends of the primary metric and of `others`; notes on those that have none.

    Raises:
        UsageError: the primary metric is of pairs.
        RunMismatchError: no row with a number of the primary metric is in all variants.
    """
    if decisive.level == "pair":
        raise UsageError(f"--over has no trend of {decisive.name}: it is of pairs", hint="--primary names another")
    trends, notes = [trend_over(over, positions, decisive, table)], list[str]()
    for metric in others:
        try:
            has_trend = metric.tested and metric.level != "pair"
            trends += [trend_over(over, positions, metric, table)] if has_trend else []
            notes += [] if metric.tested else [f"{metric.name} has no trend: it is not tested"]
        except RunMismatchError as error:
            notes.append(f"{metric.name} has no trend: {error.message}")
    return trends, notes


def _primary(
    name: str | None,
    asked: Sequence[str] | None,
    matched: Sequence[MatchedRows],
    variants: Sequence[Variant],
    table: pd.DataFrame,
) -> Metric | None:
    """The metric that decides; None for a single variant without one.

    Raises:
        UsageError: `name` cannot decide, or no default has numbers.
    """

    def has_numbers(metric: Metric) -> bool:
        if not matched:
            return bool(table[metric.column].notna().any()) if metric.level == "turn" else metric.level != "pair"
        return any(each.values(metric).baseline.size for each in matched)

    if name is not None:
        metric = metric_named(name)
        if not metric.tested:
            other = f"; {metric.log_of} can" if metric.log_of else ""
            raise UsageError(f"--primary {name}: differences in it are not tested, so it cannot decide{other}")
        if not has_numbers(metric):
            raise UsageError(
                f"--primary {name}: no turn that both sides have has a number of it",
                hint="scores need checks in the script, nll and matched need reference replies, pass_at_K K repeats",
            )
        return metric
    for default in PRIMARY_METRICS:
        if has_numbers(metric_named(default)):
            return metric_named(default)
    if len(variants) < 2:
        return None
    tested = [metric for metric in map(metric_named, asked or ()) if metric.tested and has_numbers(metric)]
    if tested:
        return tested[0]
    failed = [each.label for each in variants if (rows_of(table, each, ["finish_reason"]) == "error").to_numpy().all()]
    if failed:
        raise UsageError(
            f"no primary metric: every turn of {', '.join(failed)} ended in an error",
            hint="the same `rwkvbatch run` with --retry-errors runs them again; `rwkvbatch show RUN` has the errors",
        )
    raise UsageError(
        "no primary metric: the script has neither checks (score) nor reference replies (nll)",
        hint="choose what decides, such as --primary tokens",
    )


def _shown(
    primary: Metric | None,
    asked: Sequence[str] | None,
    matched: Sequence[MatchedRows],
    ks: Sequence[int] | None,
    *,
    all_metrics: bool,
) -> list[Metric]:
    others = available_metrics(matched, ks) if all_metrics else [metric_named(name) for name in asked or ()]
    wanted = all_metrics or asked is None or (primary is not None and primary.name in asked)
    first = [primary] if primary is not None and wanted else []
    return [*first, *(metric for metric in others if metric not in first)]


def _repeat_notes(
    ks: Sequence[int] | None, matched: Sequence[MatchedRows], variants: Sequence[Variant], table: pd.DataFrame
) -> list[str]:
    """Notes on each k that is larger than the number of repetitions.

    Raises:
        UsageError: every k is.
    """
    if not ks:
        return []
    most = max(
        (min(most_repeats(each.rows, side) for side in ("_a", "_b")) for each in matched),
        default=most_repeats(rows_of(table, variants[0])),
    )
    above = [k for k in ks if k > most]
    text = ", ".join(f"pass_at_{k}" for k in above)
    why = f"conversations with checks have at most {most} repetition{'' if most == 1 else 's'}"
    if len(above) == len(ks):
        raise UsageError(f"--k: {text} cannot be estimated: {why}", hint="run again with more --repeats")
    return [f"{text} cannot be estimated: {why}"] if above else []


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
            f"{b} against {a}: {counted(len(matched.rows), 'turn')} matched; left out: "
            f"{matched.only_baseline} only in {a}, {matched.only_variant} only in {b}"
        )
    if matched.num_different:
        notes.append(
            f"{b} against {a}: {counted(matched.num_different, 'turn')} left out: "
            "their prompts, references or checks differ"
        )
    return notes
