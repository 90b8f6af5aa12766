"""The comparison itself: paired differences by metric, with clustered errors, corrected for how many there are."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.loading import RunData
from rwkvbatch.comparison.metrics import TURN_METRICS, Metric, exponential, pass_metrics, pass_values
from rwkvbatch.errors import RunMismatchError, UsageError
from rwkvbatch.stats.clustered import clustered_mean, holm

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Variant:
    """One cell of one run. `label` is what a reader sees: as short as tells it from the others."""

    run: str
    cell: str
    label: str


@dataclass(frozen=True)
class Pair:
    """A variant and what it is held against."""

    baseline: Variant
    variant: Variant


def variants_of(runs: Sequence[RunData]) -> list[Variant]:
    """All cells of all runs, in the order of the manifests (where those name them), else of the rows."""
    cells = {run.name: _cells(run) for run in runs}
    if len(runs) == 1:
        name = runs[0].name
        several = len(cells[name]) > 1
        return [Variant(name, cell, cell if several else name) for cell in cells[name]]
    short = all(len(names) == 1 for names in cells.values())
    return [
        Variant(name, cell, name if short else f"{name}::{cell}") for name, names in cells.items() for cell in names
    ]


def pair_up(runs: Sequence[RunData], variants: Sequence[Variant], asked: str | None) -> tuple[list[Pair], list[str]]:
    """Every variant but the baselines with its baseline; and what has none.

    `asked` (`--baseline`) is a variant's label, a run (its path or name) or a cell. A run with several cells
    is the baseline cell by cell; a cell is the baseline of all others of its run. Unasked, it is the first
    run, or with one run its first cell.

    Raises:
        UsageError: nothing is called `asked`.
    """
    if not variants:
        return [], []
    if asked is None:
        if len(runs) > 1:
            return _against_run(variants, runs[0].name)
        return _against_one(variants, variants[0]), []
    for variant in variants:
        if asked in (variant.label, f"{variant.run}::{variant.cell}"):
            return _against_one(variants, variant), []
    for run in runs:
        if asked.rstrip("/") in (run.name, run.source.rstrip("/")):
            return _against_run(variants, run.name)
        if asked == f"{run.source}::{asked.partition('::')[2]}":
            return pair_up(runs, variants, f"{run.name}::{asked.partition('::')[2]}")
    if any(variant.cell == asked for variant in variants):
        return _against_cell(variants, asked)
    raise UsageError(
        f"--baseline must be one of the runs or cells that are compared; got {asked!r}",
        hint=f"they are: {', '.join(variant.label for variant in variants)}",
    )


def _cells(run: RunData) -> list[str]:
    present = run.cells
    ordered = [name for name in run.facts.cells if name in present]
    return ordered + [name for name in present if name not in ordered]


def _against_one(variants: Sequence[Variant], baseline: Variant) -> list[Pair]:
    return [Pair(baseline, variant) for variant in variants if variant != baseline]


def _against_run(variants: Sequence[Variant], run: str) -> tuple[list[Pair], list[str]]:
    own = {variant.cell: variant for variant in variants if variant.run == run}
    others = [variant for variant in variants if variant.run != run]
    if len(own) == 1 or not others:
        return _against_one(variants, next(iter(own.values()))), []
    pairs = [Pair(own[variant.cell], variant) for variant in others if variant.cell in own]
    alone = [variant.label for variant in others if variant.cell not in own]
    notes = [f"{', '.join(alone)}: the baseline {run} has no cell of that name"] if alone else []
    return pairs, notes


def _against_cell(variants: Sequence[Variant], cell: str) -> tuple[list[Pair], list[str]]:
    baselines = {variant.run: variant for variant in variants if variant.cell == cell}
    others = [variant for variant in variants if variant.cell != cell]
    pairs = [Pair(baselines[variant.run], variant) for variant in others if variant.run in baselines]
    alone = [variant.label for variant in others if variant.run not in baselines]
    notes = [f"{', '.join(alone)}: its run has no cell {cell}"] if alone else []
    return pairs, notes


_PAIR_WARNINGS = (
    ("history", "other history modes: later turns did not see the same conversation"),
    ("think", "other thinking modes: the prompts are not the same"),
    ("template_sha256", "other templates: the prompts are not the same"),
    ("prelude_sha256", "other preludes: the prompts are not the same"),
)


def check_runs(runs: Sequence[RunData], *, force: bool) -> list[str]:
    """Warnings about runs that differ in more than what is compared.

    Raises:
        RunMismatchError: two runs replayed different scripts, and `force` is off.
    """
    notes = [note for run in runs for note in run.notes]
    known = [run for run in runs if run.manifest]
    for run in known[1:]:
        first = known[0]
        expected, found = first.facts.script_sha256, run.facts.script_sha256
        if expected and found and expected != found:
            problem = f"{run.source} replayed another script than {first.source}"
            if not force:
                raise RunMismatchError(
                    f"{problem} (hash {found[:12]}, not {expected[:12]})",
                    hint="--force compares the turns that have the same conversation id, turn and repeat",
                )
            notes.append(problem)
        if first.facts.seed != run.facts.seed:
            notes.append(
                "other seeds: the runs do not share their luck, so differences are noisier than they need be "
                f"({first.name} {first.facts.seed}, {run.name} {run.facts.seed})"
            )
        if first.facts.version != run.facts.version:
            notes.append(
                f"other versions of rwkvbatch ({first.name} {first.facts.version}, {run.name} {run.facts.version})"
            )
        if first.facts.identity and first.facts.identity == run.facts.identity:
            notes.append(
                f"{first.name} and {run.name} ran the very same thing (weights, script, settings, seed): every "
                "difference but in timings would be a fault"
            )
    return notes


def refuse_parts(pair: Pair, runs: Sequence[RunData]) -> None:
    """Say why a pair without a common turn has none, where its runs are parts.

    Raises:
        RunMismatchError: both are parts of a run, and not the same part.
    """
    named = {run.name: run for run in runs}
    sides = [named[side.run] for side in (pair.baseline, pair.variant)]
    parts = [run.facts.part for run in sides]
    if None in parts or parts[0] == parts[1]:
        return
    one, other = (f"{run.source} is part {part}" for run, part in zip(sides, parts, strict=True))
    identity = sides[0].facts.identity
    if identity != sides[1].facts.identity:
        raise RunMismatchError(
            f"{one} of a run and {other} of another: they have no conversation in common",
            hint="put the parts of each run together with `rwkvbatch merge PART... --out DIR`, and compare those",
        )
    of_same = [run.source for run in runs if run.facts.part is not None and run.facts.identity == identity]
    raise RunMismatchError(
        f"{one} and {other} of the same run: parts have no conversation in common",
        hint=f"put all parts together first: rwkvbatch merge {shlex.join(of_same)} --out DIR",
    )


def check_pairs(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Warnings about pairs whose prompts were not made in the same way."""
    facts = {run.name: run.facts for run in runs}
    notes: list[str] = []
    for pair in pairs:
        for key, warning in _PAIR_WARNINGS:
            a = facts[pair.baseline.run].setting(pair.baseline.cell, key)
            b = facts[pair.variant.run].setting(pair.variant.cell, key)
            if a != b:
                notes.append(f"{warning} ({pair.baseline.label}: {str(a)[:24]}, {pair.variant.label}: {str(b)[:24]})")
    return notes


# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false


Breakdown = Literal["turn", "tag"]
Verdict = Literal["better", "worse", "differs", "noise", "untested"]


@dataclass(frozen=True)
class Comparison:
    """One metric of one pair, over all matched rows or (with `group`) some of them.

    Attributes:
        difference: mean of variant minus baseline over matched rows.
        low, high: its 95 % interval.
        p, p_holm: two-sided p-value; corrected for all tests of the table.
        wins, ties, losses: conversations whose mean difference is for the better, nil, or for the worse (for
            metrics that know no better: up, same, down).
        detectable: the smallest true difference that this design finds 4 times in 5.
        verdict: what the corrected p-value at 0.05 says.

    Numbers that cannot be known are NaN.
    """

    pair: Pair
    metric: Metric
    group: str | None
    baseline_mean: float
    variant_mean: float
    difference: float
    standard_error: float
    degrees: float
    low: float
    high: float
    p: float
    p_holm: float
    wins: int
    ties: int
    losses: int
    detectable: float
    num_values: int
    num_conversations: int
    alpha: float = 0.05

    @property
    def verdict(self) -> Verdict:
        if not self.metric.tested or math.isnan(self.p_holm):
            return "untested"
        if self.p_holm >= self.alpha:
            return "noise"
        if self.metric.better == "none":
            return "differs"
        return "better" if (self.difference > 0) == (self.metric.better == "higher") else "worse"


@dataclass(frozen=True)
class MatchedRows:
    """The rows of a pair that have the same (conversation, turn, repeat), side by side.

    Attributes:
        rows: the columns of both, with the suffixes `_a` (baseline) and `_b` (variant).
        only_baseline, only_variant: rows that only one of the two has.
        other_prompts: matched rows whose prompts are not the same text.
    """

    pair: Pair
    rows: pd.DataFrame
    only_baseline: int
    only_variant: int
    other_prompts: int

    def values(self, metric: str) -> Paired:
        """The numbers of one turn metric, where both sides have one."""
        a = self.rows[f"{metric}_a"].to_numpy(dtype=np.float64)
        b = self.rows[f"{metric}_b"].to_numpy(dtype=np.float64)
        known = ~(np.isnan(a) | np.isnan(b))
        return Paired(a[known], b[known], self.rows["conversation_code"].to_numpy()[known])


@dataclass(frozen=True)
class Paired:
    """Numbers side by side: `baseline` and `variant` `[n]`, `conversations` `[n]` codes."""

    baseline: NDArray[np.float64]
    variant: NDArray[np.float64]
    conversations: NDArray[np.int64]


def match(pair: Pair, table: pd.DataFrame) -> MatchedRows:
    """Join the two cells of `pair` on (conversation, turn, repeat). `table` has the rows of all runs."""
    key = ["conversation", "turn", "repeat"]
    sides = [
        table.loc[(table["run"] == side.run) & (table["cell"] == side.cell)] for side in (pair.baseline, pair.variant)
    ]
    both = sides[0].merge(sides[1], on=key, how="inner", suffixes=("_a", "_b"))
    both["conversation_code"] = both["conversation"].factorize()[0]
    other_prompts = int((both["prompt_a"] != both["prompt_b"]).sum())
    return MatchedRows(pair, both, len(sides[0]) - len(both), len(sides[1]) - len(both), other_prompts)


def compare_pairs(
    matched: Sequence[MatchedRows],
    *,
    by: Breakdown | None = None,
    ks: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
) -> list[Comparison]:
    """All metrics of all pairs, Holm-corrected over the whole table.

    Args:
        by: break every pair down by turn number or by tag, instead of taking all rows together.
        ks: the k of pass@k and all-k; None takes the number of repeats when there are at least 2.
        metrics: names of those wanted, None for all.
    """
    found: list[Comparison] = []
    for side_by_side in matched:
        for group, rows in _groups(side_by_side, by):
            found.extend(_compare(rows, group))
            if group is None:
                found.extend(_compare_repeats(rows, ks))
    if metrics is not None:
        found = [item for item in found if item.metric.name in metrics]
    adjusted = holm([item.p if item.metric.tested else math.nan for item in found])
    return [replace(item, p_holm=float(p)) for item, p in zip(found, adjusted, strict=True)]


def compare_values(pair: Pair, metric: Metric, values: Paired, group: str | None = None) -> Comparison:
    """One line of the table, not yet corrected for the others; `values` must not be empty."""
    differences = values.variant - values.baseline
    estimate = clustered_mean(differences, values.conversations)
    low, high = estimate.interval()
    up, same, down = _directions(differences, values.conversations)
    wins, losses = (down, up) if metric.better == "lower" else (up, down)
    baseline, variant = float(values.baseline.mean()), float(values.variant.mean())
    line = Comparison(
        pair, metric, group, baseline, variant, estimate.mean, estimate.standard_error, estimate.degrees, low,
        high, estimate.p_value(), math.nan, wins, same, losses, estimate.detectable(), estimate.num_values,
        estimate.num_clusters,
    )  # fmt: skip
    if not metric.exponential:
        return line
    baseline, variant = exponential(baseline), exponential(variant)
    unknown = {"standard_error": math.nan, "degrees": math.nan, "low": math.nan, "high": math.nan}
    return replace(
        line, baseline_mean=baseline, variant_mean=variant, difference=variant - baseline, p=math.nan,
        detectable=math.nan, **unknown,
    )  # fmt: skip


def outcomes_by_conversation(rows: pd.DataFrame, side: str) -> dict[str, list[bool]]:
    """For each conversation, whether all its checks passed in each repeat; without those that have no checks."""
    column = f"passed{side}"
    judged = rows.loc[rows[column].notna(), ["conversation", "repeat", column]]
    passed = judged.groupby(["conversation", "repeat"], sort=False)[column].min() == 1.0
    outcomes: dict[str, list[bool]] = {}
    for key, value in passed.items():
        outcomes.setdefault(key[0], []).append(bool(value))  # pyright: ignore[reportIndexIssue]
    return outcomes


def _groups(side_by_side: MatchedRows, by: Breakdown | None) -> Iterator[tuple[str | None, MatchedRows]]:
    rows = side_by_side.rows
    if by is None:
        yield None, side_by_side
    elif by == "turn":
        for turn in sorted(rows["turn"].unique()):
            yield f"turn {turn}", replace(side_by_side, rows=rows.loc[rows["turn"] == turn])
    else:
        tags = sorted({tag for some in rows["tags_a"] for tag in some})
        for tag in tags:
            yield tag, replace(side_by_side, rows=rows.loc[[tag in some for some in rows["tags_a"]]])


def _compare(side_by_side: MatchedRows, group: str | None) -> Iterator[Comparison]:
    values = {metric.name: side_by_side.values(metric.name) for metric in TURN_METRICS}
    for metric in TURN_METRICS:
        paired = values[metric.name]
        if not paired.baseline.size or _says_nothing(metric, values):
            continue
        yield compare_values(side_by_side.pair, metric, paired, group)


def _says_nothing(metric: Metric, values: dict[str, Paired]) -> bool:
    """`passed` where it equals `score` throughout, and `failed` where nothing failed."""
    own = values[metric.name]
    if metric.name == "failed":
        return not (own.baseline.any() or own.variant.any())
    if metric.name == "passed":
        score = values["score"]
        return np.array_equal(own.baseline, score.baseline) and np.array_equal(own.variant, score.variant)
    return False


def _compare_repeats(side_by_side: MatchedRows, ks: Sequence[int] | None) -> Iterator[Comparison]:
    rows = side_by_side.rows
    baseline, variant = outcomes_by_conversation(rows, "_a"), outcomes_by_conversation(rows, "_b")
    most = min((len(passed) for passed in (*baseline.values(), *variant.values())), default=0)
    chosen = ks if ks is not None else [most] if most > 1 else []
    for k in chosen:
        sides = zip(pass_values(baseline, k), pass_values(variant, k), strict=True)
        for metric, (a, b) in zip(pass_metrics(k), sides, strict=True):
            common = [name for name in a if name in b]
            if common:
                values = Paired(
                    np.array([a[name] for name in common]),
                    np.array([b[name] for name in common]),
                    np.arange(len(common)),
                )
                yield compare_values(side_by_side.pair, metric, values)


def _directions(differences: NDArray[np.float64], conversations: NDArray[np.int64]) -> tuple[int, int, int]:
    sums = np.bincount(conversations, weights=differences)[np.unique(conversations)]
    scale = float(np.abs(differences).max(initial=0.0))
    up, down = int((sums > 1e-9 * scale).sum()), int((sums < -1e-9 * scale).sum())
    return up, int(sums.size) - up - down, down
