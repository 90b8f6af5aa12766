"""Matching of the rows of two variants that have the same conversation, turn and repeat, and ask the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rwkvbatch.comparison.metrics.declarations import Metric
from rwkvbatch.comparison.pairing.pairs import Pair
from rwkvbatch.comparison.runs.data import RunData, Variant
from rwkvbatch.comparison.runs.loading import joined
from rwkvbatch.comparison.values.columns import KEYS, JoinedColumns, cells_of, rows_of, same_keys
from rwkvbatch.comparison.values.metric_values import PairedValues, paired_values
from rwkvbatch.results.row import NOT_REACHED

if TYPE_CHECKING:
    import pandas as pd

# pandas has no type stubs.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

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


@dataclass(frozen=True)
class Dropped:
    """Numbers of rows that one variant lacks, or that do not count like the others.

    Attributes:
        errors: rows that ended in an error.
        unreached: rows after an error in the same conversation. Both count as failed in `score`, `passed` and pass@k,
            and are left out of all other means.
        missing: rows of the baseline that this variant lacks; for a baseline, the most that it lacks of one variant.
        different: rows left out because the baseline was asked a different question.
        unfinished: planned rows that do not exist (yet).
        unjudged: rows for which a judge gave no verdict; they have no `score` and are neither passed nor failed.
        without_preference: rows of which a judge did not say which side's reply is better (`compare --judge`).
    """

    label: str
    errors: int = 0
    unreached: int = 0
    missing: int = 0
    different: int = 0
    unfinished: int = 0
    unjudged: int = 0
    without_preference: int = 0

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


def match(pair: Pair, table: pd.DataFrame) -> MatchedRows:
    """Join both cells of `pair` on `KEYS`, and keep the rows with equal questions. `table`: see `comparable_rows`."""
    cells = cells_of(table)
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
    cells = cells_of(table)
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
