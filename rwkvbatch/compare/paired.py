"""The comparison itself: paired differences by metric, with clustered errors, corrected for how many there are."""

# pandas ships no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.compare.metrics import TURN_METRICS, Metric, pass_metrics, pass_values
from rwkvbatch.compare.metrics.base import exponential
from rwkvbatch.compare.pairing import Pair
from rwkvbatch.stats.clustered import clustered_mean
from rwkvbatch.stats.multiple import holm

if TYPE_CHECKING:
    import pandas as pd

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
        table.loc[(table["run"] == side.run) & (table["cell"] == side.cell)]
        for side in (pair.baseline, pair.variant)
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
