"""Matching of the rows of two variants, and the values of a metric in matched rows."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
"""The columns on which rows of two variants are matched."""


_KEY_CODES: Final = KEYS[1:]
"""The columns of `KEYS` that are integers and determine the key."""

PASS_COLUMNS: Final = ("score", "passed")
"""Columns in which a turn that ended in an error, or was not reached, counts as failed."""


@dataclass(frozen=True)
class MatchedRows:
    """The rows of a pair with equal (conversation, turn, repeat) and equal questions, side by side.

    Attributes:
        columns: by name, the columns of the baseline with the suffix `_a`, and of the variant with the suffix `_b`.
        only_baseline, only_variant: number of rows without a counterpart.
        num_different: number of rows left out because the two sides were asked different questions.
    """

    pair: Pair
    columns: pd.DataFrame | JoinedColumns
    only_baseline: int
    only_variant: int
    num_different: int

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The columns as a table."""
        return self.columns.table() if isinstance(self.columns, JoinedColumns) else self.columns

    def values(self, metric: Metric) -> PairedValues:
        """See `paired_values`."""
        return paired_values(self.columns, metric)


class JoinedColumns:
    """The columns of two cells side by side, each made when it is asked for: most comparisons need a few of them.

    Args:
        cells: the table of both cells.
        baseline, variant: `[rows]` positions in the table of the rows of both sides, which have equal `KEYS`.
    """

    def __init__(self, cells: _Cells, baseline: NDArray[np.int64], variant: NDArray[np.int64]) -> None:
        self._cells = cells
        self._positions = {"_a": baseline, "_b": variant}

    def __len__(self) -> int:
        return len(self._positions["_a"])

    def __contains__(self, name: str) -> bool:
        return name in KEYS or (name[-2:] in self._positions and name[:-2] in self._cells)

    def array(self, name: str) -> NDArray[Any]:
        """`[rows]` the values of a column."""
        column, side = (name, "_a") if name in KEYS else (name[:-2], name[-2:])
        return self._cells.column(column)[self._positions[side]]

    def __getitem__(self, name: str) -> pd.Series:
        import pandas as pd

        dtype = self._cells.types[name if name in KEYS else name[:-2]]
        return pd.Series(self.array(name), dtype=dtype)

    def table(self) -> pd.DataFrame:
        """All columns, in the order of `pandas.merge`."""
        import pandas as pd

        others = [name for name in self._cells.names if name not in KEYS]
        left = [name if name in KEYS else f"{name}_a" for name in self._cells.names]
        return pd.DataFrame({name: self[name] for name in (*left, *(f"{name}_b" for name in others))})


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


@dataclass(frozen=True)
class Dropped:
    """Numbers of rows that one variant lacks, or that do not count like the others.

    Attributes:
        errors: rows that ended in an error. unreached: rows after an error in the same conversation. Both count as
            failed in `score`, `passed` and pass@k, and are left out of all other means.
        missing: rows of the baseline that this variant lacks; for a baseline, the most that it lacks of one variant.
        different: rows left out because the baseline was asked a different question.
        unfinished: planned rows that do not exist (yet).
        unjudged: rows for which a judge gave no verdict; they have no `score` and are neither passed nor failed.
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
        """Whether any of the numbers is above 0."""
        return any(count for name, count in vars(self).items() if name != "label")


def comparable_rows(runs: Sequence[RunData]) -> pd.DataFrame:
    """The rows of all runs with the additional columns `run`, `conversation_code` and `question`.

    Rows are comparable if their `question` is equal. It stands for all user messages up to the turn, the turn's
    reference and checks and, with gold history, all earlier references. Conversation ids made from line numbers
    therefore never pair different questions. Errors count as failed in `PASS_COLUMNS` in turns that have checks.
    """
    table = joined(runs)
    table["conversation_code"] = table["conversation"].factorize()[0]
    table["question"] = _questions(runs)
    failed = table["finish_reason"] == "error"
    if bool(failed.any()):
        turns = [table["conversation_code"], table["turn"], table["question"]]
        for name in PASS_COLUMNS:
            has_checks = table[name].notna().groupby(turns).transform("any")
            table.loc[failed & has_checks & table[name].isna(), name] = 0.0
    return table


def _questions(runs: Sequence[RunData]) -> NDArray[np.int64]:
    """`[rows]` a code for each question; 0 in all rows if the runs are known to have replayed the same script."""
    scripts = {run.facts.script_sha256 for run in runs}
    if len(runs) == 1 or (len(scripts) == 1 and None not in scripts):
        return np.zeros(sum(len(run.rows) for run in runs), dtype=np.int64)
    asked = [_asked(run) for run in runs]
    _complete(asked)
    codes: dict[Any, int] = {}
    return np.concatenate([_codes(run, own, codes) for run, own in zip(runs, asked, strict=True)])


@dataclass
class _Question:
    """What a turn asks in one run; an error in every row can leave the reference and the checks unknown."""

    prompt: str
    reference: str | None = None
    checks: tuple[Any, ...] = ()
    only_errors: bool = True


_Questions = dict[tuple[str, int], _Question]
"""By conversation and turn."""


def _asked(run: RunData) -> _Questions:
    """The questions of a run, from all repeats and cells."""
    rows = run.rows
    questions: _Questions = {}
    columns = (rows[name] for name in ("conversation", "turn", "prompt", "reference", "checks", "finish_reason"))
    for conversation, turn, prompt, reference, checks, finish_reason in zip(*columns, strict=True):
        question = questions.setdefault((conversation, int(turn)), _Question(prompt))
        # A row that ended in an error may have no reference and no checks; another repeat of the turn has them.
        question.reference = reference if question.reference is None else question.reference
        question.checks = question.checks or tuple(
            (check.get("kind"), repr(check.get("expected")), check.get("weight", 1.0)) for check in checks
        )
        question.only_errors = question.only_errors and finish_reason == "error"
    return questions


def _complete(runs: Sequence[_Questions]) -> None:
    """Give turns that ended in an error in every row the reference and the checks of the first run that has them.

    Otherwise they would differ from the other run's turns and be left out, and errors would not count as failed.
    """
    for questions in runs:
        for key, question in questions.items():
            if not question.only_errors:
                continue
            for other in (own[key] for own in runs if key in own):
                if other.prompt == question.prompt and not other.only_errors:
                    question.reference = other.reference if question.reference is None else question.reference
                    question.checks = question.checks or other.checks
                    break


def _codes(run: RunData, asked: _Questions, codes: dict[Any, int]) -> NDArray[np.int64]:
    """`[rows]` a code for each question of one run; `codes` maps what identifies a question to its code."""
    gold = any(settings.get("history") == "gold" for settings in run.facts.cells.values())
    code_of: dict[tuple[str, int], int] = {}
    histories: dict[str, int] = {}
    for (conversation, turn), question in sorted(asked.items(), key=lambda item: item[0]):
        history, prompt, reference = histories.get(conversation, -1), question.prompt, question.reference
        asks = (history, turn, prompt, reference, question.checks)
        code_of[conversation, turn] = codes.setdefault(asks, len(codes))
        seen = (history, turn, prompt, reference if gold else None)
        histories[conversation] = codes.setdefault(seen, len(codes))
    keys = zip(run.rows["conversation"], run.rows["turn"], strict=True)
    return np.array([code_of[conversation, int(turn)] for conversation, turn in keys], dtype=np.int64)


class _Cells:
    """The columns of a table as arrays, and the positions of the rows of each cell of each run.

    Searching the table for each cell would take a time proportional to the square of the number of cells.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = weakref.ref(table, _forget)
        self.names = [str(name) for name in table.columns]
        self.types = {name: table[name].dtype for name in self.names}
        self._columns = {name: table[name].to_numpy() for name in self.names}
        self._positions = table.groupby(["run", "cell"], sort=False).indices

    def is_of(self, table: pd.DataFrame) -> bool:
        """Whether these are the columns of `table`."""
        return self.table() is table and len(table) == len(self._columns["run"])

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def column(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def positions(self, variant: Variant) -> NDArray[np.int64]:
        """`[rows]` the positions of the rows of one cell of one run, in order."""
        return self._positions.get((variant.run, variant.cell), np.empty(0, dtype=np.int64))


_last_cells: list[_Cells] = []
"""The cells of the table that was used last, if any."""


def _forget(table: weakref.ref[pd.DataFrame]) -> None:
    """Free the columns of a table that is no longer in use."""
    if _last_cells and _last_cells[0].table is table:
        _last_cells.clear()


def _cells_of(table: pd.DataFrame) -> _Cells:
    """The cells of `table`, which does not change from the first call on."""
    if not (_last_cells and _last_cells[0].is_of(table)):
        _last_cells[:] = [_Cells(table)]
    return _last_cells[0]


def rows_of(table: pd.DataFrame, variant: Variant, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """The rows of one cell of one run, with the given `columns` or (slower) with all.

    Args:
        table: see `comparable_rows`. It must not change between calls.
    """
    import pandas as pd

    cells = _cells_of(table)
    positions = cells.positions(variant)
    if columns is None:
        return table.take(positions)
    index = table.index.take(positions)
    chosen = {name: pd.Series(cells.column(name)[positions], index, cells.types[name]) for name in columns}
    return pd.DataFrame(chosen, index=index)


def same_keys(table: pd.DataFrame, variants: Sequence[Variant], names: Sequence[str]) -> NDArray[np.int64] | None:
    """`[variants, rows]` the positions of the rows of each variant, or None if their keys or the keys' order differ.

    Args:
        names: integer columns that are the key.
    """
    cells = _cells_of(table)
    positions = [cells.positions(variant) for variant in variants]
    if not positions or len({len(each) for each in positions}) > 1:
        return None
    stacked = np.stack(positions)
    for name in names:
        values = cells.column(name)[stacked]
        if not (values == values[0]).all():
            return None
    return stacked


def match(pair: Pair, table: pd.DataFrame) -> MatchedRows:
    """Join both cells of `pair` on `KEYS`, and keep the rows with equal questions. `table`: see `comparable_rows`."""
    cells = _cells_of(table)
    positions = same_keys(table, (pair.baseline, pair.variant), _KEY_CODES)
    if positions is not None and _are_unique([cells.column(name)[positions[0]] for name in _KEY_CODES]):
        questions = cells.column("question")[positions]
        baseline_positions, variant_positions = positions[:, questions[0] == questions[1]]
        columns = JoinedColumns(cells, baseline_positions, variant_positions)
        return MatchedRows(pair, columns, 0, 0, positions.shape[1] - len(columns))
    baseline, variant = (rows_of(table, side) for side in (pair.baseline, pair.variant))
    joined_rows = baseline.merge(variant, on=list(KEYS), how="inner", suffixes=("_a", "_b"))
    matched = joined_rows.loc[joined_rows["question_a"] == joined_rows["question_b"]].reset_index(drop=True)
    return MatchedRows(
        pair,
        matched,
        only_baseline=len(baseline) - len(joined_rows),
        only_variant=len(variant) - len(joined_rows),
        num_different=len(joined_rows) - len(matched),
    )


def _are_unique(keys: Sequence[NDArray[np.int64]]) -> bool:
    """Whether no two rows have the same `keys`, each `[rows]`."""
    order = np.lexsort(keys)
    is_repeated = np.ones(max(0, order.size - 1), dtype=bool)
    for key in keys:
        is_repeated &= key[order[1:]] == key[order[:-1]]
    return not is_repeated.any()


def count_dropped(
    variants: Sequence[Variant], matched: Sequence[MatchedRows], table: pd.DataFrame, runs: Sequence[RunData]
) -> tuple[Dropped, ...]:
    """The rows that each variant lacks; planned cells without any row come last, labelled as if they had rows."""
    missing: dict[Variant, int] = {}
    different: dict[Variant, int] = {}
    for pair_rows in matched:
        baseline, variant = pair_rows.pair.baseline, pair_rows.pair.variant
        missing[variant] = pair_rows.only_baseline
        different[variant] = pair_rows.num_different
        missing[baseline] = max(missing.get(baseline, 0), pair_rows.only_variant)
    unfinished = {(run.name, cell): count for run in runs for cell, count in run.unfinished.items()}
    dropped: list[Dropped] = []
    cells = _cells_of(table)
    for variant in variants:
        positions = cells.positions(variant)
        errors = cells.column("error")[positions[cells.column("finish_reason")[positions] == "error"]]
        unreached = sum(str(text).startswith(NOT_REACHED) for text in errors)
        dropped.append(
            Dropped(
                variant.label,
                errors=len(errors) - unreached,
                unreached=unreached,
                missing=missing.get(variant, 0),
                different=different.get(variant, 0),
                unfinished=unfinished.pop((variant.run, variant.cell), 0),
                unjudged=int(np.count_nonzero(cells.column("unjudged")[positions])),
            )
        )
    for (run, cell), count in unfinished.items():
        dropped.append(Dropped(f"{run}::{cell}" if len(runs) > 1 else cell, unfinished=count))
    return tuple(dropped)


def _array(rows: pd.DataFrame | JoinedColumns, name: str, dtype: Any = None) -> NDArray[Any]:
    """`[rows]` the values of a column."""
    values = rows.array(name) if isinstance(rows, JoinedColumns) else rows[name].to_numpy()
    return values if dtype is None else values.astype(dtype, copy=False)


def metrics_of(
    rows: pd.DataFrame | JoinedColumns,
    sides: Sequence[str] = ("",),
    ks: Sequence[int] | None = None,
    known: Collection[str] = (),
) -> list[Metric]:
    """The metrics of which `rows` have values: `TURN_METRICS` without redundant ones, pass@k, all-k and majority@k.

    Args:
        sides: suffixes of the columns; each side must have values.
        ks: the k of pass@k, all-k and majority@k; None for the smallest number of repeats of a conversation, if that
            is at least 2.
        known: names of metrics of turns that are left out, because it is known that rows have them.
    """

    def columns_of(metric: Metric) -> list[NDArray[np.float64]]:
        return [_array(rows, f"{metric.column}{side}") for side in sides]

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


def paired_values(rows: pd.DataFrame | JoinedColumns, metric: Metric) -> PairedValues:
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
    return PairedValues(baseline[known], variant[known], _array(rows, "conversation_code")[known], weights)


def has_both_values(rows: pd.DataFrame | JoinedColumns, metric: Metric) -> NDArray[np.bool_]:
    """`[rows]` whether both sides of a matched row have a value of a metric of turns, and of equal weight."""
    return _known(*_sides(rows, metric))


def _sides(
    rows: pd.DataFrame | JoinedColumns, metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None]:
    """`[rows]` the values of both sides of matched rows, and their weights as in `weights_of`."""
    baseline, variant = (_array(rows, f"{metric.column}{side}", np.float64) for side in ("_a", "_b"))
    return baseline, variant, weights_of(rows, metric, ("_a", "_b"))


def _known(
    baseline: NDArray[np.float64], variant: NDArray[np.float64], weights: NDArray[np.float64] | None
) -> NDArray[np.bool_]:
    known = ~(np.isnan(baseline) | np.isnan(variant))
    return known if weights is None else known & ~np.isnan(weights)


def weights_of(
    rows: pd.DataFrame | JoinedColumns, metric: Metric, sides: Sequence[str] = ("",)
) -> NDArray[np.float64] | None:
    """`[rows]` the weights of a metric; None if all rows have equal weight.

    NaN in rows without a weight, and in matched rows whose two sides have different weights: two vocabularies split a
    text into different numbers of tokens, so values per token are not comparable.
    """
    if metric.weight_column is None or f"{metric.weight_column}{sides[0]}" not in rows:
        return None  # tables from other programs have no weights
    first, *others = [_array(rows, f"{metric.weight_column}{side}", np.float64) for side in sides]
    for other in others:
        first = np.where(first == other, first, np.nan)
    return first


def conversation_values(rows: pd.DataFrame | JoinedColumns, metric: Metric, side: str = "") -> pd.Series:
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


def judged_repeats(rows: pd.DataFrame | JoinedColumns, side: str = "") -> dict[str, int]:
    """The number of judged repeats of each conversation with checks."""
    return {name: len(passed) for name, passed in _outcomes(rows, side).items()}


def _outcomes(rows: pd.DataFrame | JoinedColumns, side: str) -> dict[str, list[bool]]:
    """For each conversation with checks, whether all checks of all turns passed, one bool per repeat."""
    judged = _judged(rows, side)
    repeats = _repeats_of(rows, judged)
    failed = _failed_repeats(rows, side, judged, repeats)
    outcomes: dict[str, list[bool]] = {}
    for name, has_failed in zip(_array(rows, "conversation")[repeats.firsts], failed.tolist(), strict=True):
        outcomes.setdefault(name, []).append(not has_failed)
    return outcomes


def _judged(rows: pd.DataFrame | JoinedColumns, side: str) -> NDArray[np.int64]:
    """Positions of the rows with a verdict, without repeats of conversations that have an unjudged row."""
    judged = np.flatnonzero(~np.isnan(_array(rows, f"passed{side}", np.float64)))
    unjudged = np.flatnonzero(_array(rows, f"unjudged{side}", bool))
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


def _repeats_of(rows: pd.DataFrame | JoinedColumns, positions: NDArray[np.int64]) -> _Repeats:
    """The repeats of the rows at `positions` `[n]`."""
    import pandas as pd

    conversations = pd.factorize(_array(rows, "conversation")[positions])[0].astype(np.int64)
    repeat_codes, distinct_repeats = pd.factorize(_array(rows, "repeat")[positions])
    codes, distinct_codes = pd.factorize(conversations * max(1, len(distinct_repeats)) + repeat_codes)
    firsts = np.full(len(distinct_codes), positions.size, dtype=np.int64)
    np.minimum.at(firsts, codes, np.arange(positions.size))
    return _Repeats(codes.astype(np.int64), positions[firsts])


def _failed_repeats(
    rows: pd.DataFrame | JoinedColumns, side: str, positions: NDArray[np.int64], repeats: _Repeats
) -> NDArray[np.bool_]:
    """`[repeats]` whether a check failed in any of the rows at `positions`, whose repeats are `repeats`."""
    failed_rows = _array(rows, f"passed{side}", np.float64)[positions] < 1.0
    return np.bincount(repeats.codes, weights=failed_rows, minlength=repeats.firsts.size) > 0


def _votes(rows: pd.DataFrame | JoinedColumns, side: str) -> dict[str, list[tuple[tuple[str, ...], bool]]]:
    """For each conversation with checks, one vote per repeat in their order: its answers, and whether all passed.

    A repeat's answers are those to all its turns with checks. Repeats that passed have no answers, because all passing
    answers count as the same answer.
    """
    judged = _judged(rows, side)
    judged = judged[np.lexsort((_array(rows, "turn")[judged], _array(rows, "repeat")[judged]))]
    repeats = _repeats_of(rows, judged)
    failed = _failed_repeats(rows, side, judged, repeats)
    answers: list[list[str]] = [[] for _ in repeats.firsts]
    in_failed = failed[repeats.codes]
    replies, row_checks = (_array(rows, f"{name}{side}")[judged[in_failed]] for name in ("reply", "checks"))
    for code, reply, checks in zip(repeats.codes[in_failed].tolist(), replies, row_checks, strict=True):
        answers[code].append(vote_of(reply, checks))
    votes: dict[str, list[tuple[tuple[str, ...], bool]]] = {}
    names = _array(rows, "conversation")[repeats.firsts]
    for name, repeat_answers, has_failed in zip(names, answers, failed.tolist(), strict=True):
        votes.setdefault(name, []).append((tuple(repeat_answers), not has_failed))
    return votes
