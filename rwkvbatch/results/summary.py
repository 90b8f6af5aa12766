"""`summary.json`: figures by cell, made of the rows alone, so that it can be made again at any time."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rwkvbatch.errors import StorageError
from rwkvbatch.files import Files, replace_file
from rwkvbatch.results.row import Row

SUMMARY_NAME = "summary.json"


@dataclass(frozen=True)
class CellSummary:
    """One cell's figures.

    Attributes:
        rows: turns, those that failed included. errors: those that failed.
        checks, checks_passed: over all rows, those that failed included. score: mean over rows with checks of the
            weighted share that passed.
        finish_reasons: rows by how the reply ended.
        first_token_p50_s, first_token_p95_s: from a request's submission to its first token.
        prompt_tokens: the prompts' whole histories. cached_tokens: those that did not have to be read again.
        logprob_mean: of a reply token under the model. reference_nll: mean per token of the reference replies.
    """

    name: str
    rows: int
    errors: int
    checks: int
    checks_passed: int
    score: float | None
    reply_tokens: int
    finish_reasons: Mapping[str, int]
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    prompt_tokens: int
    cached_tokens: int
    logprob_mean: float | None
    reference_nll: float | None


@dataclass(frozen=True)
class Summary:
    """A run's figures. `planned` rows against `rows` says whether it is complete."""

    planned: int
    rows: int
    errors: int
    checks: int
    checks_passed: int
    reply_tokens: int
    prompt_tokens: int
    cached_tokens: int
    cells: tuple[CellSummary, ...]

    @property
    def complete(self) -> bool:
        return self.rows >= self.planned

    @property
    def passed(self) -> bool:
        """No row failed, and every check passed."""
        return self.errors == 0 and self.checks_passed == self.checks

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Tally:
    rows: int = 0
    errors: int = 0
    checks: int = 0
    checks_passed: int = 0
    scores: array[float] = field(default_factory=lambda: array("d"))
    reply_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter[str])
    first_token_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    logprob_sum: float = 0.0
    reference_sum: float = 0.0
    reference_tokens: int = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        self.finish_reasons[row.finish_reason] += 1
        self.reply_tokens += row.tokens.reply
        self.prompt_tokens += row.tokens.prompt
        self.cached_tokens += row.timing.cached_tokens
        # Of a turn that ended in an error, all checks count as failed.
        if (score := row.score) is not None:
            self.scores.append(score)
        self.checks += len(row.checks)
        self.checks_passed += sum(check.passed for check in row.checks)
        if row.finish_reason == "error":
            self.errors += 1
            return
        self.first_token_s.append(row.timing.first_token_s)
        self.logprob_sum += row.logprob.sum
        if row.reference is not None:
            self.reference_sum += row.reference.nll * row.reference.tokens
            self.reference_tokens += row.reference.tokens

    def result(self, name: str) -> CellSummary:
        waits = sorted(self.first_token_s)
        return CellSummary(
            name=name,
            rows=self.rows,
            errors=self.errors,
            checks=self.checks,
            checks_passed=self.checks_passed,
            score=sum(self.scores) / len(self.scores) if self.scores else None,
            reply_tokens=self.reply_tokens,
            finish_reasons=dict(sorted(self.finish_reasons.items())),
            first_token_p50_s=percentile(waits, 0.50),
            first_token_p95_s=percentile(waits, 0.95),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            logprob_mean=self.logprob_sum / self.reply_tokens if self.reply_tokens else None,
            reference_nll=self.reference_sum / self.reference_tokens if self.reference_tokens else None,
        )


class Tallies:
    """Makes a summary of rows that come one by one; their order matters to the last bits of sums.

    Args:
        cells: names, in the order of the summary.
    """

    def __init__(self, cells: Iterable[str]) -> None:
        self._cells = {name: _Tally() for name in cells}

    def add(self, row: Row) -> None:
        self._cells[row.cell].add(row)

    def summary(self, planned: int) -> Summary:
        """The figures so far, of a run that is to have `planned` rows."""
        parts = tuple(tally.result(name) for name, tally in self._cells.items())
        return Summary(
            planned=planned,
            rows=sum(part.rows for part in parts),
            errors=sum(part.errors for part in parts),
            checks=sum(part.checks for part in parts),
            checks_passed=sum(part.checks_passed for part in parts),
            reply_tokens=sum(part.reply_tokens for part in parts),
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in parts),
            cells=parts,
        )


def summarize(rows: Iterable[Row], cells: Iterable[str], planned: int) -> Summary:
    """The figures of `rows`; `cells` gives their order in the summary."""
    tallies = Tallies(cells)
    for row in rows:
        tallies.add(row)
    return tallies.summary(planned)


def percentile(ascending: list[float], share: float) -> float | None:
    """The value below which `share` of `ascending` lies, between neighbours linearly; None for no values."""
    if not ascending:
        return None
    at = share * (len(ascending) - 1)
    below = int(at)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (at - below) * (ascending[above] - ascending[below])


def write_summary(files: Files, directory: Path, summary: Summary, session: Mapping[str, Any]) -> None:
    """Replace the summary; `session` tells of the process that wrote it (seconds, tokens/s).

    Raises:
        StorageError: it could not be written; the rows are safe.
    """
    content = {**summary.as_dict(), "session": dict(session)}
    try:
        replace_file(files, directory / SUMMARY_NAME, [json.dumps(content, indent=2).encode(), b"\n"])
    except OSError as error:
        raise StorageError(f"{directory / SUMMARY_NAME}: write failed: {error.strerror or error}") from error
