"""Rows that two variants have in common, and the numbers of a metric on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.distance import distance_groups
from rwkvbatch.comparison.loading import RunData, joined
from rwkvbatch.comparison.metrics import PAIR_METRICS, TURN_METRICS, Metric, is_majority, metric_named, pass_value
from rwkvbatch.comparison.pairing import Pair, Variant
from rwkvbatch.comparison.votes import majority_at_k, vote_of
from rwkvbatch.results.row import NOT_REACHED

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

Breakdown = Literal["turn", "tag", "distance"]


KEYS: Final = ("conversation", "conversation_code", "turn", "repeat")
"""The columns that a row and its counterpart have in common."""


PASS_COLUMNS: Final = ("score", "passed")
"""Columns in which a turn that ended in an error, or was not reached, counts as failed."""


@dataclass(frozen=True)
class MatchedRows:
    """The rows of a pair with equal (conversation, turn, repeat) and equal questions, side by side.

    Attributes:
        rows: the columns of both, with the suffixes `_a` (baseline) and `_b` (variant).
        only_baseline, only_variant: the number of rows without a counterpart.
        num_different: the number of rows that were left out because the two sides were not asked the same.
    """

    pair: Pair
    rows: pd.DataFrame
    only_baseline: int
    only_variant: int
    num_different: int

    def values(self, metric: Metric) -> Paired:
        """The numbers of a metric of turns or conversations, where both sides have one."""
        return paired_values(self.rows, metric)


@dataclass(frozen=True)
class Paired:
    """Matched numbers: `baseline` and `variant` `[n]`, `conversations` `[n]` integer codes.

    `weights` `[n]` say how much a pair counts in the means, 1 on average; None where all count equally.
    """

    baseline: NDArray[np.float64]
    variant: NDArray[np.float64]
    conversations: NDArray[np.int64]
    weights: NDArray[np.float64] | None = None

    def weighted(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`values` `[n]` times the weights."""
        return values if self.weights is None else values * self.weights


@dataclass(frozen=True)
class Dropped:
    """Rows of one variant that are not what was planned.

    Attributes:
        errors: rows that ended in an error. unreached: rows after one of those in their conversation. Both count as
            failed in `score`, `passed` and pass@k, and are left out of all other means.
        missing: rows without a counterpart here: those of the baseline, or for a baseline those of its variants.
        different: rows left out because the baseline was asked something else.
        unfinished: planned rows that are not there (yet).
        unjudged: rows of which a judge gave no verdict; they have no `score` and are neither passed nor failed.
    """

    label: str
    errors: int = 0
    unreached: int = 0
    missing: int = 0
    different: int = 0
    unfinished: int = 0
    unjudged: int = 0

    @property
    def any(self) -> bool:
        return any(count for name, count in vars(self).items() if name != "label")


def comparable_rows(runs: Sequence[RunData]) -> pd.DataFrame:
    """The rows of all runs with the columns `run`, `conversation_code` and `question`.

    Rows are comparable where `question` is equal: all users' texts up to the turn, its reference and its checks (and
    with gold history all references before it). Ids that were made from line numbers therefore never pair different
    questions. Errors count as failed in `PASS_COLUMNS` where the turn has checks.
    """
    table = joined(runs)
    table["conversation_code"] = table["conversation"].factorize()[0]
    table["question"] = _questions(runs)
    failed = table["finish_reason"] == "error"
    if bool(failed.any()):
        turns = [table["conversation_code"], table["turn"], table["question"]]
        for name in PASS_COLUMNS:
            judged = table[name].notna().groupby(turns).transform("any")
            table.loc[failed & judged & table[name].isna(), name] = 0.0
    return table


def _questions(runs: Sequence[RunData]) -> NDArray[np.int64]:
    """`[rows]` codes; 0 for all where the runs are known to have replayed the same script."""
    scripts = {run.facts.script_sha256 for run in runs}
    if len(runs) == 1 or (len(scripts) == 1 and None not in scripts):
        return np.zeros(sum(len(run.rows) for run in runs), dtype=np.int64)
    codes: dict[Any, int] = {}
    return np.concatenate([_questions_of(run, codes) for run in runs])


def _questions_of(run: RunData, codes: dict[Any, int]) -> NDArray[np.int64]:
    gold = any(settings.get("history") == "gold" for settings in run.facts.cells.values())
    rows = run.rows
    asked: dict[str, dict[int, list[Any]]] = {}
    for conversation, turn, prompt, reference, checks in zip(
        rows["conversation"], rows["turn"], rows["prompt"], rows["reference"], rows["checks"], strict=True
    ):
        known = asked.setdefault(conversation, {}).setdefault(int(turn), [prompt, None, ()])
        # A row that ended in an error may have neither.
        known[1] = reference if known[1] is None else known[1]
        known[2] = known[2] or tuple((c.get("kind"), repr(c.get("expected")), c.get("weight", 1.0)) for c in checks)
    code_of: dict[tuple[str, int], int] = {}
    for conversation, turns in asked.items():
        history = -1
        for turn, (prompt, reference, checks) in sorted(turns.items()):
            code_of[conversation, turn] = codes.setdefault((history, turn, prompt, reference, checks), len(codes))
            history = codes.setdefault((history, turn, prompt, reference if gold else None), len(codes))
    pairs = zip(rows["conversation"], rows["turn"], strict=True)
    return np.array([code_of[conversation, int(turn)] for conversation, turn in pairs], dtype=np.int64)


def rows_of(table: pd.DataFrame, variant: Variant, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows of one cell of one run, with some `columns` or (slower) with all."""
    own = (table["run"] == variant.run) & (table["cell"] == variant.cell)
    return (table if columns is None else table[list(columns)]).loc[own]


def match(pair: Pair, table: pd.DataFrame) -> MatchedRows:
    """Join both cells of `pair` on `KEYS`, where the questions are equal. `table`: see `comparable_rows`."""
    sides = [rows_of(table, side) for side in (pair.baseline, pair.variant)]
    both = sides[0].merge(sides[1], on=list(KEYS), how="inner", suffixes=("_a", "_b"))
    same = both["question_a"] == both["question_b"]
    found = both.loc[same].reset_index(drop=True)
    return MatchedRows(
        pair, found, len(sides[0]) - len(both), len(sides[1]) - len(both), num_different=len(both) - len(found)
    )


def count_dropped(
    variants: Sequence[Variant], matched: Sequence[MatchedRows], table: pd.DataFrame, runs: Sequence[RunData]
) -> tuple[Dropped, ...]:
    """What each variant lacks; planned cells without any row come last, under the names that they would have."""
    missing: dict[Variant, int] = {}
    different: dict[Variant, int] = {}
    for each in matched:
        missing[each.pair.variant] = each.only_baseline
        different[each.pair.variant] = each.num_different
        missing[each.pair.baseline] = max(missing.get(each.pair.baseline, 0), each.only_variant)
    unfinished = {(run.name, cell): count for run in runs for cell, count in run.unfinished.items()}
    found: list[Dropped] = []
    for variant in variants:
        rows = rows_of(table, variant, ["finish_reason", "error", "unjudged"])
        errors = rows.loc[rows["finish_reason"] == "error", "error"]
        unjudged = int(np.count_nonzero(rows["unjudged"]))
        unreached = sum(str(text).startswith(NOT_REACHED) for text in errors)
        found.append(
            Dropped(
                variant.label, len(errors) - unreached, unreached, missing.get(variant, 0), different.get(variant, 0),
                unfinished.pop((variant.run, variant.cell), 0), unjudged,
            )
        )  # fmt: skip
    several = len(runs) > 1
    for (run, cell), count in unfinished.items():
        found.append(Dropped(f"{run}::{cell}" if several else cell, unfinished=count))
    return tuple(found)


def metrics_of(rows: pd.DataFrame, sides: Sequence[str] = ("",), ks: Sequence[int] | None = None) -> list[Metric]:
    """The metrics that `rows` have numbers of, less those that repeat another: `TURN_METRICS`, pass@k and all-k.

    Args:
        sides: the suffixes of the columns; all must have numbers.
        ks: the k of pass@k and all-k; None for the smallest number of repeats of a conversation, if at least 2.
    """
    columns = {metric.name: [rows[f"{metric.column}{side}"].to_numpy() for side in sides] for metric in TURN_METRICS}
    found = [
        metric
        for metric in TURN_METRICS
        if all(not np.isnan(column).all() for column in columns[metric.name]) and not _redundant(metric, columns)
    ]
    if ks is None:
        fewest = min((len(passed) for side in sides for passed in _outcomes(rows, side).values()), default=0)
        ks = [fewest] if fewest > 1 else []
    found += [metric for metric in PAIR_METRICS if all(f"{metric.column}{side}" in rows for side in sides)]
    return found + [metric_named(f"{name}_{k}") for k in ks for name in ("pass_at", "all", "majority_at")]


def _redundant(metric: Metric, columns: Mapping[str, Sequence[NDArray[np.float64]]]) -> bool:
    """`passed` where it equals `score` in all rows, and `failed` where nothing failed."""
    if metric.name == "failed":
        return not any(np.nan_to_num(column).any() for column in columns["failed"])
    if metric.name == "truncated":
        return not any(np.nan_to_num(column).any() for column in columns["truncated"])
    if metric.name == "passed":
        pairs = zip(columns["passed"], columns["score"], strict=True)
        return all(np.array_equal(passed, score, equal_nan=True) for passed, score in pairs)
    return False


def groups_of(rows: pd.DataFrame, by: Breakdown | None, side: str = "") -> Iterator[tuple[str | None, pd.DataFrame]]:
    """Rows by turn, tag or distance of probes, each with its name; all of them for None.

    `side`: the suffix of the columns, of matched rows `_a` or `_b`.
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


def paired_values(rows: pd.DataFrame, metric: Metric) -> Paired:
    """The numbers of `metric` in matched rows (or conversations), where both sides have one."""
    if metric.level == "conversation":
        sides = (conversation_values(rows, metric, "_a"), conversation_values(rows, metric, "_b"))
        a, b = sides[0].align(sides[1], join="inner")
        codes = dict(zip(rows["conversation"], rows["conversation_code"], strict=True))
        conversations = np.array([codes[name] for name in a.index], dtype=np.int64)
        return Paired(a.to_numpy(dtype=np.float64), b.to_numpy(dtype=np.float64), conversations)
    a = rows[f"{metric.column}_a"].to_numpy(dtype=np.float64)
    b = rows[f"{metric.column}_b"].to_numpy(dtype=np.float64)
    known = ~(np.isnan(a) | np.isnan(b))
    weights = weights_of(rows, metric, ("_a", "_b"))
    if weights is not None:
        known &= ~np.isnan(weights)
        weights = weights[known]
        weights = weights / weights.mean() if weights.size else weights
    return Paired(a[known], b[known], rows["conversation_code"].to_numpy()[known], weights)


def weights_of(rows: pd.DataFrame, metric: Metric, sides: Sequence[str] = ("",)) -> NDArray[np.float64] | None:
    """`[rows]` the weights of a metric; None where all rows count equally.

    NaN where a row has none, and where the two sides of matched rows differ: two vocabularies make different numbers of
    tokens of a text, and numbers by token cannot be compared then.
    """
    if metric.weight_column is None or f"{metric.weight_column}{sides[0]}" not in rows:
        return None  # tables of other origin hold no weights
    first, *others = [rows[f"{metric.weight_column}{side}"].to_numpy(dtype=np.float64) for side in sides]
    for other in others:
        first = np.where(first == other, first, np.nan)
    return first


def conversation_values(rows: pd.DataFrame, metric: Metric, side: str = "") -> pd.Series:
    """A metric of conversations (`pass_at_K`, `all_K`), indexed by conversation; only known values.

    Args:
        side: the suffix of the columns of one side of matched rows.
    """
    import pandas as pd

    if is_majority(metric):
        k = int(metric.name.rpartition("_")[2])
        votes = _votes(rows, side)
        values = {name: majority_at_k(own, k) if len(own) >= k else math.nan for name, own in votes.items()}
    else:
        values = {name: pass_value(metric.name, passed) for name, passed in _outcomes(rows, side).items()}
    return pd.Series(values, dtype=np.float64).rename_axis("conversation").dropna()


def most_repeats(rows: pd.DataFrame, side: str = "") -> int:
    """The largest number of judged repeats of a conversation; 0 without checks."""
    return max(map(len, _outcomes(rows, side).values()), default=0)


def _outcomes(rows: pd.DataFrame, side: str) -> dict[str, list[bool]]:
    """By conversation with checks, whether all checks of all turns passed in each repeat."""
    passed = rows[f"passed{side}"].to_numpy(dtype=np.float64)
    judged = _judged(rows, side)
    repeats = _repeats_of(rows, judged)
    failed = np.bincount(repeats.codes, weights=passed[judged] < 1.0, minlength=repeats.firsts.size) > 0
    outcomes: dict[str, list[bool]] = {}
    for name, has_failed in zip(rows["conversation"].to_numpy()[repeats.firsts], failed.tolist(), strict=True):
        outcomes.setdefault(name, []).append(not has_failed)
    return outcomes


def _judged(rows: pd.DataFrame, side: str) -> NDArray[np.int64]:
    """The positions of rows with a verdict, of the repeats of conversations in which no judge's verdict is missing."""
    judged = np.flatnonzero(~np.isnan(rows[f"passed{side}"].to_numpy(dtype=np.float64)))
    unjudged = np.flatnonzero(rows[f"unjudged{side}"].to_numpy(dtype=bool))
    if not unjudged.size:
        return judged
    codes = _repeats_of(rows, np.concatenate([judged, unjudged])).codes
    return judged[~np.isin(codes[: judged.size], codes[judged.size :])]


@dataclass(frozen=True)
class _Repeats:
    """`codes` `[n]`: a number for each (conversation, repeat), from 0, in the order of their `firsts` in the table."""

    codes: NDArray[np.int64]
    firsts: NDArray[np.int64]


def _repeats_of(rows: pd.DataFrame, chosen: NDArray[np.int64]) -> _Repeats:
    """The repeats that the rows at the positions `chosen` `[n]` are of."""
    import pandas as pd

    conversations = pd.factorize(rows["conversation"].to_numpy()[chosen])[0].astype(np.int64)
    numbers, names = pd.factorize(rows["repeat"].to_numpy()[chosen])
    codes, found = pd.factorize(conversations * max(1, len(names)) + numbers)
    firsts = np.full(len(found), chosen.size, dtype=np.int64)
    np.minimum.at(firsts, codes, np.arange(chosen.size))
    return _Repeats(codes.astype(np.int64), chosen[firsts])


def _votes(rows: pd.DataFrame, side: str) -> dict[str, list[tuple[tuple[str, ...], bool]]]:
    """By conversation with checks, the answers to all its turns with checks in each repeat, and whether all passed.

    The repeats of a conversation are in their order. Those that passed have no answers: all answers that pass are one.
    """
    passed = rows[f"passed{side}"].to_numpy(dtype=np.float64)
    judged = _judged(rows, side)
    judged = judged[np.lexsort((rows["turn"].to_numpy()[judged], rows["repeat"].to_numpy()[judged]))]
    repeats = _repeats_of(rows, judged)
    failed = np.bincount(repeats.codes, weights=passed[judged] < 1.0, minlength=repeats.firsts.size) > 0
    answers: list[list[str]] = [[] for _ in repeats.firsts]
    asked = failed[repeats.codes]
    replies, checks = (rows[f"{name}{side}"].to_numpy()[judged[asked]] for name in ("reply", "checks"))
    for code, reply, own in zip(repeats.codes[asked].tolist(), replies, checks, strict=True):
        answers[code].append(vote_of(reply, own))
    votes: dict[str, list[tuple[tuple[str, ...], bool]]] = {}
    names = rows["conversation"].to_numpy()[repeats.firsts]
    for name, own, has_failed in zip(names, answers, failed.tolist(), strict=True):
        votes.setdefault(name, []).append((tuple(own), not has_failed))
    return votes
