"""The values of metrics in rows and in matched rows: of turns, of conversations (pass@k, majority votes), by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import (
    PAIR_METRICS,
    TURN_METRICS,
    Metric,
    is_majority,
    metric_named,
    pass_value,
)
from rwkvbatch.comparison.values.columns import array_of
from rwkvbatch.comparison.values.groups import distance_groups
from rwkvbatch.comparison.values.votes import majority_at_k, vote_of

if TYPE_CHECKING:
    import pandas as pd

    from rwkvbatch.comparison.values.columns import Columns

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

Breakdown = Literal["turn", "tag", "distance"]


@dataclass(frozen=True)
class PairedValues:
    """Matched values of a metric.

    Attributes:
        baseline, variant: `[n]` the values of both sides.
        conversations: `[n]` integer codes of the conversations.
        weights: `[n]` weights of the pairs in means, 1 on average; None where all weights are equal.
    """

    baseline: NDArray[np.float64]
    variant: NDArray[np.float64]
    conversations: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    @property
    def differences(self) -> NDArray[np.float64]:
        """`[n]` variant minus baseline."""
        return self.variant - self.baseline

    def weighted(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`values` `[n]` times the weights."""
        return values if self.weights is None else values * self.weights


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
        fewest = min((len(passed) for side in sides for passed in _outcomes(rows, side).values()), default=0)
        ks = [fewest] if fewest > 1 else []
    metrics += [metric for metric in PAIR_METRICS if all(f"{metric.column}{side}" in rows for side in sides)]
    return metrics + [metric_named(f"{name}_{k}") for k in ks for name in ("pass_at", "all", "majority_at")]


def _redundant(metric: Metric, columns_of: Callable[[Metric], Sequence[NDArray[np.float64]]]) -> bool:
    """Whether `metric` adds nothing: `passed` equal to `score` in all rows, `failed` or `truncated` 0 in all rows."""
    if metric.name in ("failed", "truncated"):
        return not any(np.nan_to_num(column).any() for column in columns_of(metric))
    if metric.name == "passed":
        pairs = zip(columns_of(metric), columns_of(metric_named("score")), strict=True)
        return all(np.array_equal(passed, score, equal_nan=True) for passed, score in pairs)
    return False


def groups_of(rows: pd.DataFrame, by: Breakdown | None, side: str = "") -> Iterator[tuple[str | None, pd.DataFrame]]:
    """The groups of `rows` by turn, tag or distance of probes, each with its name; all rows for `by=None`.

    Args:
        side: suffix of the columns: `_a` or `_b` in matched rows.
    """
    if by is None:
        yield None, rows
    elif by == "turn":
        dialogue = rows.loc[rows[f"probe_turns{side}"].isna()] if f"probe_turns{side}" in rows else rows
        for turn in sorted(dialogue["turn"].unique()):
            yield f"turn {turn}", dialogue.loc[dialogue["turn"] == turn]
    elif by == "distance":
        for group in distance_groups(rows, side):
            yield group.label, rows.loc[group.rows]
    else:
        for tag in sorted({tag for tags in rows[f"tags{side}"] for tag in tags}):
            yield tag, rows.loc[[tag in tags for tags in rows[f"tags{side}"]]]


def paired_values(rows: Columns, metric: Metric) -> PairedValues:
    """The values of a metric of turns or conversations in matched rows, where both sides have one."""
    if metric.level == "conversation":
        sides = (conversation_values(rows, metric, "_a"), conversation_values(rows, metric, "_b"))
        baseline_series, variant_series = sides[0].align(sides[1], join="inner")
        codes = dict(zip(rows["conversation"], rows["conversation_code"], strict=True))
        conversations = np.array([codes[name] for name in baseline_series.index], dtype=np.int64)
        baseline, variant = (series.to_numpy(dtype=np.float64) for series in (baseline_series, variant_series))
        return PairedValues(baseline, variant, conversations)
    baseline, variant, weights = _sides(rows, metric)
    known = _known(baseline, variant, weights)
    if weights is not None:
        weights = weights[known]
        weights = weights / weights.mean() if weights.size else weights
    return PairedValues(baseline[known], variant[known], array_of(rows, "conversation_code")[known], weights)


def has_both_values(rows: Columns, metric: Metric) -> NDArray[np.bool_]:
    """`[rows]` whether both sides of a matched row have a value of a metric of turns, and of equal weight."""
    return _known(*_sides(rows, metric))


def _sides(
    rows: Columns, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """`[rows]` the values of both sides of matched rows, and their weights as in `weights_of`."""
    baseline, variant = (array_of(rows, f"{metric.column}{side}", np.float64) for side in ("_a", "_b"))
    return baseline, variant, weights_of(rows, metric, ("_a", "_b"))


def _known(
    baseline: NDArray[np.float64], variant: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    known = ~(np.isnan(baseline) | np.isnan(variant))
    return known if weights is None else known & ~np.isnan(weights)


def weights_of(rows: Columns, metric: Metric, sides: Sequence[str] = ("",)) -> NDArray[np.float64] | None:
    """`[rows]` the weights of a metric; None if all rows have equal weight.

    NaN in rows without a weight, and in matched rows whose two sides have different weights: two vocabularies split a
    text into different numbers of tokens, so values per token are not comparable.
    """
    if metric.weight_column is None or f"{metric.weight_column}{sides[0]}" not in rows:
        return None  # tables from other programs have no weights
    first, *others = [array_of(rows, f"{metric.weight_column}{side}", np.float64) for side in sides]
    for other in others:
        first = np.where(first == other, first, np.nan)
    return first


def conversation_values(rows: Columns, metric: Metric, side: str = "") -> pd.Series:
    """A metric of conversations (`pass_at_K`, `all_K`, `majority_at_K`), indexed by conversation, without NaNs.

    Args:
        side: suffix of the columns of one side of matched rows.
    """
    import pandas as pd

    if is_majority(metric):
        k = int(metric.name.rpartition("_")[2])
        values = {
            name: majority_at_k(votes, k) if len(votes) >= k else math.nan for name, votes in _votes(rows, side).items()
        }
    else:
        values = {name: pass_value(metric.name, passed) for name, passed in _outcomes(rows, side).items()}
    return pd.Series(values, dtype=np.float64).rename_axis("conversation").dropna()


def judged_repeats(rows: Columns, side: str = "") -> dict[str, int]:
    """The number of judged repeats of each conversation with checks."""
    return {name: len(passed) for name, passed in _outcomes(rows, side).items()}


def _outcomes(rows: Columns, side: str) -> dict[str, list[bool]]:
    """For each conversation with checks, whether all checks of all turns passed, one bool per repeat."""
    judged = _judged(rows, side)
    repeats = _repeats_of(rows, judged)
    failed = _failed_repeats(rows, side, judged, repeats)
    outcomes: dict[str, list[bool]] = {}
    for name, has_failed in zip(array_of(rows, "conversation")[repeats.firsts], failed.tolist(), strict=True):
        outcomes.setdefault(name, []).append(not has_failed)
    return outcomes


def _judged(rows: Columns, side: str) -> NDArray[np.int64]:
    """Positions of the rows with a verdict, without repeats of conversations that have an unjudged row."""
    judged = np.flatnonzero(~np.isnan(array_of(rows, f"passed{side}", np.float64)))
    unjudged = np.flatnonzero(array_of(rows, f"unjudged{side}", bool))
    if not unjudged.size:
        return judged
    codes = _repeats_of(rows, np.concatenate([judged, unjudged])).codes
    return judged[~np.isin(codes[: judged.size], codes[judged.size :])]


@dataclass(frozen=True)
class _Repeats:
    """The repeats of conversations that some rows belong to, in the order of their first rows.

    Attributes:
        codes: `[rows]` the number of each row's repeat, from 0.
        firsts: `[repeats]` the position in the table of each repeat's first row.
    """

    codes: NDArray[np.int64]
    firsts: NDArray[np.int64]


def _repeats_of(rows: Columns, positions: NDArray[np.int64]) -> _Repeats:
    """The repeats of the rows at `positions` `[n]`."""
    import pandas as pd

    conversations = pd.factorize(array_of(rows, "conversation")[positions])[0].astype(np.int64)
    repeat_codes, distinct_repeats = pd.factorize(array_of(rows, "repeat")[positions])
    codes, distinct_codes = pd.factorize(conversations * max(1, len(distinct_repeats)) + repeat_codes)
    firsts = np.full(len(distinct_codes), positions.size, dtype=np.int64)
    np.minimum.at(firsts, codes, np.arange(positions.size))
    return _Repeats(codes.astype(np.int64), positions[firsts])


def _failed_repeats(rows: Columns, side: str, positions: NDArray[np.int64], repeats: _Repeats) -> NDArray[np.bool_]:
    """`[repeats]` whether a check failed in any of the rows at `positions`, whose repeats are `repeats`."""
    failed_rows = array_of(rows, f"passed{side}", np.float64)[positions] < 1.0
    return np.bincount(repeats.codes, weights=failed_rows, minlength=repeats.firsts.size) > 0


def _votes(rows: Columns, side: str) -> dict[str, list[tuple[tuple[str, ...], bool]]]:
    """For each conversation with checks, one vote per repeat in their order: its answers, and whether all passed.

    A repeat's answers are those to all its turns with checks. Repeats that passed have no answers, because all passing
    answers count as the same answer.
    """
    judged = _judged(rows, side)
    judged = judged[np.lexsort((array_of(rows, "turn")[judged], array_of(rows, "repeat")[judged]))]
    repeats = _repeats_of(rows, judged)
    failed = _failed_repeats(rows, side, judged, repeats)
    answers: list[list[str]] = [[] for _ in repeats.firsts]
    in_failed = failed[repeats.codes]
    replies, row_checks = (array_of(rows, f"{name}{side}")[judged[in_failed]] for name in ("reply", "checks"))
    for code, reply, checks in zip(repeats.codes[in_failed].tolist(), replies, row_checks, strict=True):
        answers[code].append(vote_of(reply, checks))
    votes: dict[str, list[tuple[tuple[str, ...], bool]]] = {}
    names = array_of(rows, "conversation")[repeats.firsts]
    for name, repeat_answers, has_failed in zip(names, answers, failed.tolist(), strict=True):
        votes.setdefault(name, []).append((tuple(repeat_answers), not has_failed))
    return votes
