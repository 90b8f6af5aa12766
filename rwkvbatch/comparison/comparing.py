"""`compare`: compares runs and returns an `Analysis`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, get_args

from rwkvbatch.arguments import NUMBER, SWITCH, TEXT, checks, instance_of, list_of, one_of, optional, whole_number
from rwkvbatch.comparison.analysis import Analysis
from rwkvbatch.comparison.dialogues.blame import blame as find_blame
from rwkvbatch.comparison.gates.evaluation import judge as judge_gates
from rwkvbatch.comparison.gates.expressions import Gate
from rwkvbatch.comparison.gates.margins import margin_notes
from rwkvbatch.comparison.gates.parsing import parse_gate
from rwkvbatch.comparison.gates.scopes import scopes_of
from rwkvbatch.comparison.metrics.declarations import Metric, metric_named
from rwkvbatch.comparison.pairing.matching import Dropped, MatchedRows, comparable_rows, count_dropped, match
from rwkvbatch.comparison.pairing.notes import (
    check_pairs,
    check_runs,
    few_conversations_note,
    few_tokens_notes,
    judge_notes,
    matching_notes,
    mixed_nll_notes,
    no_common_turn,
    order_note,
    repeat_notes,
)
from rwkvbatch.comparison.pairing.pairs import Pair, pair_up
from rwkvbatch.comparison.pairing.preference import PREFERENCE, JudgesPairs, Preferences, with_preference
from rwkvbatch.comparison.pairing.settings import differing_settings
from rwkvbatch.comparison.runs.data import RunData, Variant, variants_of
from rwkvbatch.comparison.runs.loading import SOURCES, Sources, load_runs
from rwkvbatch.comparison.runs.restriction import Restriction, restricted
from rwkvbatch.comparison.statistics.differences import Comparison, Family, compare_counts, compare_metric
from rwkvbatch.comparison.statistics.metric_selection import MetricSelection
from rwkvbatch.comparison.statistics.ranking import Ranking, rank
from rwkvbatch.comparison.statistics.trend import Trend, positions_over, trend_over
from rwkvbatch.comparison.values.groups import Breakdown
from rwkvbatch.errors import RunMismatchError, UsageError

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

_TEXTS = list_of(TEXT, "a list of texts", "one text needs brackets too: ['nll']")


@checks(
    runs=SOURCES,
    baseline=optional(TEXT),
    primary=optional(TEXT),
    metrics=optional(_TEXTS),
    all_metrics=SWITCH,
    margin=optional(NUMBER),
    over=optional(TEXT),
    only=_TEXTS,
    by=optional(one_of(get_args(Breakdown))),
    ks=optional(list_of(whole_number(1), "a list of whole numbers, each at least 1")),
    fail_if=_TEXTS,
    fail_unless=_TEXTS,
    gate_significant=SWITCH,
    allow_missing=SWITCH,
    partial=SWITCH,
    force=SWITCH,
    blame=SWITCH,
    judge=optional(instance_of(JudgesPairs, "a judge of pairs of replies")),
)
def compare(
    runs: Sources,
    *,
    baseline: str | None = None,
    primary: str | None = None,
    metrics: Sequence[str] | None = None,
    all_metrics: bool = False,
    margin: float | None = None,
    over: str | None = None,
    only: Sequence[str] = (),
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

    A mapping names the runs: `compare({"before": a, "after": b})`. In a list, results in memory are named `result-1`,
    `result-2`, ... by their positions.

    Args:
        baseline: a run or a cell; None for the first run, or the first cell of a single run.
        primary: the metric that decides; None for `score` if the script has checks, else `nll`.
        metrics: names of the metrics to show instead of the primary one. Each is corrected as a separate family, and
            all but the primary one are exploratory.
        all_metrics: show the primary metric and all others.
        margin: differences of the primary metric up to this size count as equivalent.
        over: test the trend of the primary metric and of `metrics` over checkpoints, which are compared with the
            earliest one. It is the word before the number in their names, such as `step`, or one number for each in
            their order, such as `100,200`.
        only: compare only conversations with these ids or tags, or patterns of them (`memory-*`), as `run --only` does.
            Gates are judged on these, too.
        by: also show each turn, each tag, or each distance of probes from the message that they ask about
            (exploratory).
        ks: the k of pass@k, all-k and majority@k.
        fail_if: gates (`rwkvbatch.comparison.gates.parsing`) that fail if their condition holds.
        fail_unless: gates that fail if it does not.
        gate_significant: add `significantly` to all gates.
        allow_missing: judge gates even if rows are missing or ended in an error.
        partial: judge gates even if a run is unfinished. Without these, such gates fail.
        force: compare runs of different scripts, in the turns whose questions are equal.
        blame: find the turns at which dialogues went wrong; needs cells with `history` own and gold that are otherwise
            the same.
        judge: a judge of pairs of replies. Its verdicts are the metric `preference`, which is then the default primary
            metric.

    Raises:
        UsageError: an unknown baseline, metric, id or tag, no primary metric, or an invalid gate.
        InputError: a run cannot be read, or runs have no turn in common.
    """
    gates = [parse_gate(text, "--fail-if", significantly=gate_significant) for text in fail_if]
    gates += [parse_gate(text, "--fail-unless", significantly=gate_significant) for text in fail_unless]
    requested = None if metrics is None else tuple(dict.fromkeys(metric_named(name).name for name in metrics))
    if primary is not None:
        metric_named(primary, option="--primary")
    if margin is not None and not (math.isfinite(margin) and margin > 0):
        raise UsageError(f"--margin must be a positive number, in the unit of the primary metric; got {margin}")
    if judge is None:
        refuse_without_judge([primary, *(metrics or ())], gates)
    matching = _Matching.of(runs, baseline, over, only, force=force)
    table = matching.table
    if by == "distance" and not bool(table["probe_turns"].notna().any()):
        raise UsageError("--by distance: no run has probes", hint="see docs/scripts.md for `probes`")
    if judge is not None:
        matching.ask(judge)
        primary = PREFERENCE if primary is None else primary
    matched, variants, notes = matching.with_common_turns, matching.variants, matching.notes
    notes += judge_notes(matching.pairs, table)
    if ks is None and not only and (note := few_conversations_note(matching.runs)) is not None:
        ks = ()
        notes.append(note)
    notes += repeat_notes(ks, matched, variants, table)
    selection = MetricSelection(matched, variants, table, requested, ks)
    primary_metric = selection.primary(primary)
    if margin is not None and primary_metric is not None and margin >= primary_metric.widest:
        limit = f"{primary_metric.widest:g}, the range of {primary_metric.name}"
        raise UsageError(f"--margin must be below {limit}: no difference is larger; got {margin:g}")
    shown = selection.shown(primary_metric, all_metrics=all_metrics)
    requested = shown.requested
    notes += shown.notes
    others = [] if requested is None else [metric for metric in shown.metrics if metric != primary_metric]
    trends: list[Trend] = []
    if over is not None and primary_metric is not None:
        trends, trend_notes = _trends(over, matching.positions, primary_metric, others, table)
        notes += trend_notes
    tests = _Tests(matching, by, margin)
    for metric in shown.metrics if matched else ():
        tests.add(metric, is_primary=metric == primary_metric, is_ranked=requested is not None)
    identical = [line.pair for line in tests.comparisons if line.group is None and line.verdict == "identical"]
    notes += few_tokens_notes(dict.fromkeys(identical), matching.runs)
    scopes = scopes_of(matching.all_pairs, variants, table, matching.dropped, matching.runs)
    notes += margin_notes(gates, scopes, tests.comparisons)
    return Analysis(
        runs=tuple(matching.runs),
        variants=tuple(variants),
        all_pairs=tuple(matching.all_pairs),
        primary=primary_metric,
        comparisons=tuple(tests.comparisons),
        families=tuple(tests.families),
        gates=tuple(
            judge_gates(gates, scopes, allow_missing=allow_missing, partial=partial, only=matching.restriction)
        ),
        notes=tuple(dict.fromkeys(notes)),
        table=table,
        metrics=requested,
        rankings=tuple(tests.rankings),
        dropped=matching.dropped,
        by=by,
        ks=None if ks is None else tuple(ks),
        margin=margin,
        trends=tuple(trends),
        blame=find_blame(variants, matching.runs, table) if blame else (),
        preferences=tuple(matching.preferences),
        restriction=matching.restriction,
        settings_differ=tuple(differing_settings(matching.pairs, matching.runs)),
    )


@dataclass
class _Matching:
    """Runs, their variants, and the rows of each pair of variants that have the same conversation, turn and repeat.

    Attributes:
        positions: of the variants, by `over`; empty without it.
        all_pairs: the matched rows of each pair, which may be none.
        notes: for the reader, in the order of their causes.
        restriction: the conversations that are compared; None for all.
        preferences: what a judge said of each pair.
    """

    runs: list[RunData]
    variants: list[Variant]
    positions: Mapping[Variant, float]
    pairs: list[Pair]
    table: pd.DataFrame
    all_pairs: list[MatchedRows]
    dropped: tuple[Dropped, ...]
    notes: list[str]
    restriction: Restriction | None = None
    preferences: list[Preferences] = field(default_factory=list[Preferences])

    @classmethod
    def of(
        cls, sources: Sources, baseline: str | None, over: str | None, only: Sequence[str], *, force: bool
    ) -> _Matching:
        """Load the runs and match their rows.

        Raises:
            UsageError: an unknown baseline, or an unknown id or tag in `only`.
            InputError: a run cannot be read, or runs have no turn in common.
        """
        runs, restriction = restricted(load_runs(sources), only)
        notes = check_runs(runs, force=force)
        if baseline is None and over is None and (note := order_note(runs)) is not None:
            notes.append(note)
        variants = variants_of(runs)
        if over is not None and (races := [variant.label for variant in variants if variant.race]):
            raise UsageError(
                f"--over tests a trend, and {races[0]} is of a race: how many rows it has depends on the scores",
                hint="run the checkpoints without --race",
            )
        positions = {} if over is None else positions_over(over, variants, runs)
        if positions:
            variants = sorted(variants, key=positions.__getitem__)
            baseline = variants[0].label if baseline is None else baseline
        pairs, unpaired_notes = pair_up(runs, variants, baseline)
        table = comparable_rows(runs)
        notes += mixed_nll_notes(table)
        all_pairs = [match(pair, table) for pair in pairs]
        notes += unpaired_notes + check_pairs(pairs, runs) + matching_notes(all_pairs)
        dropped = count_dropped(variants, all_pairs, table, runs)
        matching = cls(runs, variants, positions, pairs, table, all_pairs, dropped, notes, restriction)
        if not matching.with_common_turns and len(variants) > 1:
            raise no_common_turn(all_pairs, runs)
        return matching

    @property
    def with_common_turns(self) -> list[MatchedRows]:
        """The rows of the pairs that have any."""
        return [pair_rows for pair_rows in self.all_pairs if len(pair_rows)]

    @property
    def paired_variants(self) -> list[Variant]:
        """The variants of pairs with common turns, in their order."""
        paired = {side for rows in self.with_common_turns for side in (rows.pair.baseline, rows.pair.variant)}
        return [variant for variant in self.variants if variant in paired]

    def ask(self, judge: JudgesPairs) -> None:
        """Add the verdicts of a judge to the matched rows.

        Raises:
            UsageError: there is no pair.
        """
        matched = self.with_common_turns
        if not matched:
            raise UsageError(
                "--judge compares replies of two variants, and only one is given", hint="give a second run"
            )
        judged, self.preferences = with_preference(matched, judge, self.table, self.runs)
        judged_rows = {pair_rows.pair: pair_rows for pair_rows in judged}
        self.all_pairs = [judged_rows.get(pair_rows.pair, pair_rows) for pair_rows in self.all_pairs]
        self.notes += [counts.sentence for counts in self.preferences]
        missing = {counts.variant: counts.missing for counts in self.preferences}
        self.dropped = tuple(replace(own, without_preference=missing.get(own.label, 0)) for own in self.dropped)


@dataclass
class _Tests:
    """Collects the lines of the table, the families that correct them, and the rankings."""

    matching: _Matching
    by: Breakdown | None
    margin: float | None
    comparisons: list[Comparison] = field(default_factory=list[Comparison])
    families: list[Family] = field(default_factory=list[Family])
    rankings: list[Ranking] = field(default_factory=list[Ranking])

    def add(self, metric: Metric, *, is_primary: bool, is_ranked: bool) -> None:
        """Test a metric over all rows and in the groups of `by`, each a family; rank the variants by the primary one.

        Args:
            is_ranked: rank by any other metric, too.
        """
        matching = self.matching
        if metric.level == "variant":
            pairs = [pair_rows.pair for pair_rows in matching.with_common_turns]
            self.comparisons += compare_counts(metric, pairs, matching.dropped)
            return
        lines = self._family(metric, None, self.margin if is_primary else None, exploratory=not is_primary)
        if (is_primary or is_ranked) and not any(variant.race for variant in matching.paired_variants):
            ranking, note = rank(matching.paired_variants, metric, matching.table, lines)
            self.rankings += [] if ranking is None else [ranking]
            matching.notes += [] if note is None else [note]
        if self.by is not None and (self.by == "tag" or metric.level != "conversation"):
            self._family(metric, self.by, None, exploratory=True)

    def _family(
        self, metric: Metric, by: Breakdown | None, margin: float | None, *, exploratory: bool
    ) -> list[Comparison]:
        matched = self.matching.with_common_turns
        lines, family = compare_metric(metric, matched, by=by, margin=margin, exploratory=exploratory)
        self.comparisons += lines
        self.families.append(family)
        return lines


def _trends(
    over: str, positions: Mapping[Variant, float], primary: Metric, others: Iterable[Metric], table: pd.DataFrame
) -> tuple[list[Trend], list[str]]:
    """The trends of the primary metric and of `others`, and notes on metrics without a trend.

    Raises:
        UsageError: the primary metric is one of pairs, which has no trend.
        RunMismatchError: no row with a value of the primary metric is in all variants.
    """
    if primary.level == "pair":
        raise UsageError(f"--over has no trend of {primary.name}: it is of pairs", hint="--primary names another")
    trends, notes = [trend_over(over, positions, primary, table)], list[str]()
    for metric in others:
        if not metric.tested:
            notes.append(f"{metric.name} has no trend: it is not tested")
        elif metric.level != "pair":
            try:
                trends.append(trend_over(over, positions, metric, table))
            except RunMismatchError as error:
                notes.append(f"{metric.name} has no trend: {error.message}")
    return trends, notes


def refuse_without_judge(names: Iterable[str | None], gates: Sequence[Gate]) -> None:
    """Raise `UsageError` if a metric or a gate needs a judge, for a comparison without one."""
    metrics = [name for name in names if name is not None] + [value.metric for gate in gates for value in gate.values]
    if any(metric_named(name).level == "pair" for name in metrics):
        raise UsageError(
            f"{PREFERENCE} is what a judge says about pairs of replies, and none is given",
            hint="add --judge FILE, or --judge-url URL",
        )
