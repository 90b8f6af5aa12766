"""Rows of other programs' results, and the parts that the readers of foreign files share."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rwkvbatch.errors import RunDamagedError, RunDirectoryError, counted, shown_json
from rwkvbatch.results.row import SCORED, CheckResult, Logprob, Row, RowTiming, TokenCounts

MAX_BYTES = 2**31
MAX_ID = 120
MAX_REPEAT = 2**31 - 1
"""The largest number of a repeat or turn."""
BASE = "base"
"""The cell of results without a name."""


@dataclass
class ForeignRun:
    """The rows of another program's file.

    Attributes:
        program: the program that wrote the file, for notes.
        rows: one row per sample, repeat and variant.
        notes: remarks for readers of a comparison.
        is_metric: whether the cells are metrics of the same replies; the first one is compared unless another is named.
        prompt_hashes: by conversation, a hash of its prompt; empty if the program does not give that of every row.
    """

    program: str
    rows: list[Row] = field(default_factory=list[Row])
    notes: list[str] = field(default_factory=list[str])
    is_metric: bool = False
    prompt_hashes: dict[str, str] = field(default_factory=dict[str, str])


class BadRecordError(Exception):
    """A record that does not follow its format; the text says what is wrong."""


def is_missing(value: object) -> bool:
    """Whether a value stands for a score that was not given: null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def make_row(
    name: str,
    cell: str,
    repeat: int,
    scores: Sequence[tuple[str, float | None]],
    *,
    turn: int = 0,
    tags: tuple[str, ...] = (),
    prompt: str = "",
    reply: str = "",
    error: str | None = None,
    passed: bool | None = None,
) -> Row:
    """A row with the scores as checks, those of None without a verdict; if `passed` is None, a score of 1 passes."""
    checks = tuple(
        CheckResult(kind, None, None if value is None else value >= 1 if passed is None else passed, value)
        for kind, value in scores
    )
    return Row(
        conversation=name,
        cell=cell,
        repeat=repeat,
        turn=turn,
        seed=0,
        tags=tags,
        prompt=prompt,
        reply=reply,
        reply_ids=(),
        finish_reason=SCORED if error is None else "error",
        stopped_by=None,
        tokens=TokenCounts(0, 0),
        logprob=Logprob(None, 0.0),
        reference=None,
        checks=checks,
        error=error,
        timing=RowTiming(0.0, 0.0, 0.0, 0.0, 0.0, 0),
    )


def read_score(value: object, where: str) -> float:
    """A score in [0, 1]; raises `BadRecordError`, whose text begins with `where`."""
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRecordError(f"{where} must be a number in [0, 1], got {shown_json(value)}")
    if not 0 <= value <= 1:
        raise BadRecordError(f"{where} must be in [0, 1], got {value:g}; divide it by the highest possible score")
    return float(value)


def as_id(text: str) -> str:
    """`text` as an id of at most `MAX_ID` characters; a longer text is cut and gets a hash."""
    text = " ".join(text.split())
    if len(text) <= MAX_ID:
        return text
    return f"{text[: MAX_ID - 10]}…{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def damaged(path: Path, problem: object, *, line: int | None = None) -> RunDamagedError:
    return RunDamagedError(
        str(problem), path=path, line=line, hint="docs/compare.md describes the formats that are read"
    )


def checked(run: ForeignRun, path: Path) -> ForeignRun:
    """`run` with notes on rows without a score.

    Rows that lack a score which others of their cell have get that check without a verdict, so that they count as
    unjudged and fail gates.

    Raises:
        RunDirectoryError: there are no rows.
        RunDamagedError: two rows have the same key.
    """
    if not run.rows:
        raise RunDirectoryError("it contains no result", path=path)
    [(key, count)] = Counter(row.key for row in run.rows).most_common(1)
    if count > 1:
        raise damaged(path, f"{count} results have the same place: {key.in_words()}; number them by `repeat`")
    if errors := sum(row.error is not None for row in run.rows):
        run.notes.append(f"{path}: {counted(errors, 'result')} ended in an error, without a score")
    run.rows = _with_missing_scores(run.rows)
    if unscored := sum(row.error is None and any(check.score is None for check in row.checks) for row in run.rows):
        run.notes.append(f"{path}: {counted(unscored, 'result')} without a score")
    return run


def _with_missing_scores(rows: Sequence[Row]) -> list[Row]:
    """`rows` with all checks of their cell (of all cells if it has none), unjudged where a row lacks one."""
    kinds_of: dict[str, dict[str, None]] = {}
    for row in rows:
        kinds_of.setdefault(row.cell, {}).update(dict.fromkeys(check.kind for check in row.checks))
    others = {kind: None for kinds in kinds_of.values() for kind in kinds} or {"score": None}
    return [
        row
        if row.error is not None
        else replace(row, checks=(*row.checks, *_missing(row, kinds_of[row.cell] or others)))
        for row in rows
    ]


def _missing(row: Row, kinds: Iterable[str]) -> list[CheckResult]:
    """Checks without a verdict of the `kinds` that a row lacks."""
    present = {check.kind for check in row.checks}
    return [CheckResult(kind, None, None, None) for kind in kinds if kind not in present]
