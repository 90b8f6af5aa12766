"""Paired comparisons: baseline and variant cells, matched rows, and clustered tests of their differences."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.loading import RunData, RunFacts
from rwkvbatch.comparison.metrics import TURN_METRICS, Metric, exponential, metric_named, pass_value
from rwkvbatch.errors import RunMismatchError, UsageError
from rwkvbatch.stats.clustered import clustered_mean, holm

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

Breakdown = Literal["turn", "tag"]
Verdict = Literal["better", "worse", "differs", "noise", "untested"]


@dataclass(frozen=True)
class Variant:
    """One cell of one run; `label` is the shortest name that is unique in the comparison."""

    run: str
    cell: str
    label: str


@dataclass(frozen=True)
class Pair:
    """A variant and its baseline."""

    baseline: Variant
    variant: Variant


@dataclass(frozen=True)
class MatchedRows:
    """The rows of a pair with equal (conversation, turn, repeat), side by side.

    Attributes:
        rows: the columns of both, with the suffixes `_a` (baseline) and `_b` (variant).
        only_baseline, only_variant: the number of rows without a counterpart.
        different_prompts: the number of matched rows whose prompts differ.
    """

    pair: Pair
    rows: pd.DataFrame
    only_baseline: int
    only_variant: int
    different_prompts: int

    def values(self, metric: str) -> Paired:
        """The numbers of one turn metric, in rows where both sides have one."""
        a = self.rows[f"{metric}_a"].to_numpy(dtype=np.float64)
        b = self.rows[f"{metric}_b"].to_numpy(dtype=np.float64)
        known = ~(np.isnan(a) | np.isnan(b))
        return Paired(a[known], b[known], self.rows["conversation_code"].to_numpy()[known])


@dataclass(frozen=True)
class Paired:
    """Matched numbers: `baseline` and `variant` `[n]`, `conversations` `[n]` integer codes."""

    baseline: NDArray[np.float64]
    variant: NDArray[np.float64]
    conversations: NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """One metric of one pair, over all matched rows or those of one `group`. Unknown numbers are NaN.

    Attributes:
        difference: the mean of variant minus baseline over matched rows.
        low, high: its 95 % confidence interval.
        p, p_holm: the two-sided p-value, and the one corrected for all tests of the table.
        wins, ties, losses: conversations whose mean difference is better, zero or worse (of metrics without a better
            direction: positive, zero, negative).
        detectable: the minimum detectable effect at a power of 80 %.
        verdict: the conclusion from `p_holm` at level `alpha`.
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

    @property
    def significant(self) -> bool:
        return self.verdict in ("better", "worse", "differs")


def variants_of(runs: Sequence[RunData]) -> list[Variant]:
    """All cells of all runs: in the manifest's order, then in the order of their first rows."""
    several = len(runs) > 1
    short = all(len(run.cells) == 1 for run in runs)
    variants: list[Variant] = []
    for run in runs:
        present = run.cells
        for cell in dict.fromkeys((*(name for name in run.facts.cells if name in present), *present)):
            label = run.name if short else f"{run.name}::{cell}" if several else cell
            variants.append(Variant(run.name, cell, label))
    return variants


def pair_up(runs: Sequence[RunData], variants: Sequence[Variant], baseline: str | None) -> tuple[list[Pair], list[str]]:
    """Every variant that is not a baseline with its baseline; and notes on those without one.

    Args:
        baseline: a variant's label, a run (its path or name) or a cell; None for the first run, or the first cell of a
            single run. A run with several cells is the baseline cell by cell; a cell is the baseline within each run.

    Raises:
        UsageError: nothing is called `baseline`.
    """
    if not variants:
        return [], []
    if baseline is None:
        return _against_run(variants, runs[0].name) if len(runs) > 1 else (_against_one(variants, variants[0]), [])
    for variant in variants:
        if baseline in (variant.label, f"{variant.run}::{variant.cell}"):
            return _against_one(variants, variant), []
    for run in runs:
        if baseline.rstrip("/") in (run.name, run.source.rstrip("/")):
            return _against_run(variants, run.name)
        cell = baseline.partition("::")[2]
        if baseline == f"{run.source}::{cell}":
            return pair_up(runs, variants, f"{run.name}::{cell}")
    if any(variant.cell == baseline for variant in variants):
        baselines = {variant.run: variant for variant in variants if variant.cell == baseline}
        others = [variant for variant in variants if variant.cell != baseline]
        pairs = [Pair(baselines[variant.run], variant) for variant in others if variant.run in baselines]
        alone = [variant.label for variant in others if variant.run not in baselines]
        return pairs, [f"{', '.join(alone)}: not compared, the run has no cell {baseline}"] if alone else []
    raise UsageError(
        f"--baseline must be one of the compared runs or cells; got {baseline!r}",
        hint=f"they are: {', '.join(variant.label for variant in variants)}",
    )


def _against_one(variants: Sequence[Variant], baseline: Variant) -> list[Pair]:
    return [Pair(baseline, variant) for variant in variants if variant != baseline]


def _against_run(variants: Sequence[Variant], run: str) -> tuple[list[Pair], list[str]]:
    own = {variant.cell: variant for variant in variants if variant.run == run}
    others = [variant for variant in variants if variant.run != run]
    if len(own) == 1 or not others:
        return _against_one(variants, next(iter(own.values()))), []
    pairs = [Pair(own[variant.cell], variant) for variant in others if variant.cell in own]
    alone = [variant.label for variant in others if variant.cell not in own]
    return pairs, [f"{', '.join(alone)}: not compared, the baseline {run} has no such cell"] if alone else []


def check_runs(runs: Sequence[RunData], *, force: bool) -> list[str]:
    """Notes on differences between runs other than those that are compared.

    Raises:
        RunMismatchError: two runs replayed different scripts, and `force` is false.
    """
    notes = [note for run in runs for note in run.notes]
    known = [run for run in runs if run.facts != RunFacts()]
    for run in known[1:]:
        first = known[0]
        expected, found = first.facts, run.facts
        if expected.script_sha256 and found.script_sha256 and expected.script_sha256 != found.script_sha256:
            problem = f"{run.source} and {first.source} replayed different scripts"
            if not force:
                raise RunMismatchError(
                    f"{problem} (hash {found.script_sha256[:12]}, expected {expected.script_sha256[:12]})",
                    hint="--force compares the turns that have the same conversation id, turn and repeat",
                )
            notes.append(problem)
        if expected.seed != found.seed:
            notes.append(
                f"different seeds ({first.name} {expected.seed}, {run.name} {found.seed}): the runs do not use common "
                "random numbers, so differences are noisier than with equal seeds"
            )
        if expected.version != found.version:
            notes.append(
                f"different versions of rwkvbatch ({first.name} {expected.version}, {run.name} {found.version})"
            )
        if expected.identity and expected.identity == found.identity:
            notes.append(
                f"{first.name} and {run.name} have the same weights, script, settings and seed: a difference in "
                "anything but timings is a fault of the program"
            )
    return notes


_PROMPT_SETTINGS = (
    ("history", "different history modes: later turns did not follow the same conversation"),
    ("think", "different thinking modes: the prompts are not the same"),
    ("template_sha256", "different templates: the prompts are not the same"),
    ("prelude_sha256", "different preludes: the prompts are not the same"),
    ("template", "different templates: the prompts are not the same"),
    ("prelude", "different preludes: the prompts are not the same"),
)


def check_pairs(pairs: Sequence[Pair], runs: Sequence[RunData]) -> list[str]:
    """Notes on pairs whose prompts were made in different ways."""
    cells = {run.name: run.facts.cells for run in runs}
    notes: list[str] = []
    for pair in pairs:
        a, b = (cells[side.run].get(side.cell, {}) for side in (pair.baseline, pair.variant))
        notes.extend(
            f"{warning} ({pair.baseline.label}: {str(a[key])[:24]}, {pair.variant.label}: {str(b[key])[:24]})"
            for key, warning in _PROMPT_SETTINGS
            if key in a and key in b and a[key] != b[key]
        )
    return notes


def refuse_parts(pair: Pair, runs: Sequence[RunData]) -> None:
    """Explain why a pair has no common turn, if its runs are parts (`--shard`).

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
            hint="merge the parts of each run with `rwkvbatch merge PART... --out DIR`, and compare those",
        )
    of_same = [run.source for run in runs if run.facts.part is not None and run.facts.identity == identity]
    raise RunMismatchError(
        f"{one} and {other} of the same run: parts have no conversation in common",
        hint=f"merge all parts first: rwkvbatch merge {shlex.join(of_same)} --out DIR",
    )


def rows_of(table: pd.DataFrame, variant: Variant) -> pd.DataFrame:
    """The rows of one cell of one run."""
    return table.loc[(table["run"] == variant.run) & (table["cell"] == variant.cell)]


def match(pair: Pair, table: pd.DataFrame) -> MatchedRows:
    """Join both cells of `pair` on (conversation, turn, repeat). `table` has the rows of all runs."""
    sides = [rows_of(table, side) for side in (pair.baseline, pair.variant)]
    both = sides[0].merge(sides[1], on=["conversation", "turn", "repeat"], how="inner", suffixes=("_a", "_b"))
    both["conversation_code"] = both["conversation"].factorize()[0]
    different_prompts = int(np.count_nonzero(both["prompt_a"] != both["prompt_b"]))
    return MatchedRows(pair, both, len(sides[0]) - len(both), len(sides[1]) - len(both), different_prompts)


def compare_pairs(
    matched: Sequence[MatchedRows],
    *,
    by: Breakdown | None = None,
    ks: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
) -> list[Comparison]:
    """All metrics of all pairs, Holm-corrected over the whole table.

    Args:
        by: groups of rows, by turn number or by tag; None for all rows together.
        ks: the k of pass@k and all-k; None for the smallest number of repeats of a conversation, if at least 2.
        metrics: names of metrics, None for all.
    """
    found: list[Comparison] = []
    for side_by_side in matched:
        for group, rows in _groups(side_by_side, by):
            found.extend(_compare_turns(rows, group))
            if group is None:
                found.extend(_compare_repeats(rows, ks))
    if metrics is not None:
        found = [item for item in found if item.metric.name in metrics]
    adjusted = holm([item.p if item.metric.tested else math.nan for item in found])
    return [replace(item, p_holm=float(p)) for item, p in zip(found, adjusted, strict=True)]


def _compare(pair: Pair, metric: Metric, values: Paired, group: str | None = None) -> Comparison:
    """One line of the table, not corrected for the others; `values` is not empty."""
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
    unknown = dict.fromkeys(("standard_error", "degrees", "low", "high", "p", "detectable"), math.nan)
    return replace(line, baseline_mean=baseline, variant_mean=variant, difference=variant - baseline, **unknown)


def _groups(side_by_side: MatchedRows, by: Breakdown | None) -> Iterator[tuple[str | None, MatchedRows]]:
    rows = side_by_side.rows
    if by is None:
        yield None, side_by_side
    elif by == "turn":
        for turn in sorted(rows["turn"].unique()):
            yield f"turn {turn}", replace(side_by_side, rows=rows.loc[rows["turn"] == turn])
    else:
        for tag in sorted({tag for tags in rows["tags_a"] for tag in tags}):
            yield tag, replace(side_by_side, rows=rows.loc[[tag in tags for tags in rows["tags_a"]]])


def _compare_turns(side_by_side: MatchedRows, group: str | None) -> Iterator[Comparison]:
    values = {metric.name: side_by_side.values(metric.name) for metric in TURN_METRICS}
    for metric in TURN_METRICS:
        paired = values[metric.name]
        if paired.baseline.size and not _redundant(metric, values):
            yield _compare(side_by_side.pair, metric, paired, group)


def _redundant(metric: Metric, values: dict[str, Paired]) -> bool:
    """`passed` where it equals `score` in all rows, and `failed` where nothing failed."""
    own = values[metric.name]
    if metric.name == "failed":
        return not (own.baseline.any() or own.variant.any())
    if metric.name == "passed":
        score = values["score"]
        return np.array_equal(own.baseline, score.baseline) and np.array_equal(own.variant, score.variant)
    return False


def _compare_repeats(side_by_side: MatchedRows, ks: Sequence[int] | None) -> Iterator[Comparison]:
    rows = side_by_side.rows
    if ks is None:
        fewest = min((len(passed) for side in ("_a", "_b") for passed in _outcomes(rows, side).values()), default=0)
        ks = [fewest] if fewest > 1 else []
    for name in (f"{family}_{k}" for k in ks for family in ("pass_at", "all")):
        metric = metric_named(name)
        sides = (conversation_values(rows, metric, "_a"), conversation_values(rows, metric, "_b"))
        a, b = sides[0].align(sides[1], join="inner")
        if len(a):
            values = Paired(a.to_numpy(dtype=np.float64), b.to_numpy(dtype=np.float64), np.arange(len(a)))
            yield _compare(side_by_side.pair, metric, values)


def conversation_values(rows: pd.DataFrame, metric: Metric, side: str = "") -> pd.Series:
    """A metric of conversations (`pass_at_K`, `all_K`), indexed by conversation; only known values.

    Args:
        side: the suffix of the columns of one side of matched rows.
    """
    import pandas as pd

    values = {name: pass_value(metric.name, passed) for name, passed in _outcomes(rows, side).items()}
    return pd.Series(values, dtype=np.float64).rename_axis("conversation").dropna()


def _outcomes(rows: pd.DataFrame, side: str) -> dict[str, list[bool]]:
    """By conversation with checks, whether all checks of all turns passed in each repeat."""
    column = f"passed{side}"
    judged = rows.loc[rows[column].notna(), ["conversation", "repeat", column]]
    passed = judged.groupby(["conversation", "repeat"], sort=False)[column].min() == 1.0
    outcomes: dict[str, list[bool]] = {}
    for key, value in passed.items():
        outcomes.setdefault(key[0], []).append(bool(value))  # pyright: ignore[reportIndexIssue]
    return outcomes


def _directions(differences: NDArray[np.float64], conversations: NDArray[np.int64]) -> tuple[int, int, int]:
    """The numbers of conversations whose mean difference is positive, zero and negative."""
    sums = np.bincount(conversations, weights=differences)[np.unique(conversations)]
    scale = float(np.abs(differences).max(initial=0.0))
    up, down = int((sums > 1e-9 * scale).sum()), int((sums < -1e-9 * scale).sum())
    return up, int(sums.size) - up - down, down
