"""`summary.json`: a run's figures by cell, computed from the rows."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from rwkvbatch.files import read_file
from rwkvbatch.prompt.escaping import printable_json
from rwkvbatch.results.equal_replies import CellEqualReplies, EqualRepliesCounter
from rwkvbatch.results.folder import Folder
from rwkvbatch.results.row import NOT_REACHED, SCORED, Row, is_prompt_error

SUMMARY_NAME = "summary.json"
MAX_SUMMARY_BYTES = 256 * 2**20
FORMER_VERDICTS = "former_verdicts"
"""Key of a race's result: whether its rows were judged again later, with other verdicts."""

OVERFLOW = ">1e308"
"""The text of a perplexity that is larger than every number of 64 bits; JSON has null in its place."""


@dataclass(frozen=True)
class FailureShare:
    """The number of failures among `of` turns or checks."""

    failed: int
    of: int


def percentage(part: float, whole: float = 1) -> str:
    """`part` of `whole` in percent: a whole number, with as many decimals as tell it from 0 % and 100 %."""
    digits, share = 0, 100 * part / whole
    while 0 < part < whole and float(f"{share:.{digits}f}") in (0, 100):
        digits += 1
    return f"{share:.{digits}f}%"


def worst(shares: Mapping[str, FailureShare], number: int = 3) -> list[tuple[str, FailureShare]]:
    """The `number` names with the largest shares of failures; equal shares are sorted by the number of failures."""
    failing = [(name, share) for name, share in shares.items() if share.failed]
    return sorted(failing, key=lambda item: (-item[1].failed / item[1].of, -item[1].failed, item[0]))[:number]


@dataclass(frozen=True)
class TextSummary:
    """The likelihood of one cell's plain texts.

    Attributes:
        texts, tokens, bytes: numbers of scored texts, tokens and bytes.
        nll: negative log-likelihood per token over all tokens, in nats.
        perplexity: exp(nll); None on overflow.
        bits_per_byte: negative log-likelihood per byte over all bytes, in bits.
        text_perplexity: exponential of the mean negative log-likelihood of a text, as in LAMBADA; None on overflow.
        accuracy: share of the continuations that greedy decoding would write; None if no text has a prompt.
    """

    texts: int
    tokens: int
    bytes: int
    nll: float
    perplexity: float | None
    bits_per_byte: float
    text_perplexity: float | None
    accuracy: float | None


@dataclass(frozen=True)
class CellSummary:
    """One cell's figures.

    Attributes:
        rows: number of turns, including errors.
        errors: number of turns that ended in an error.
        checks, checks_passed: numbers over all rows.
        prompt_errors: the part of `errors` whose prompts are too long or too short: the same command has these again.
        not_reached: the part of `errors` of turns after a failed one.
        unjudged: number of checks without a verdict of a judge.
        score: mean of the rows' scores, as `rwkvbatch compare` shows it for the run alone.
        finish_reasons: number of rows by finish reason.
        first_token_p50_s, first_token_p95_s: percentiles of the time from a request's submission to its first token.
        prompt_tokens: tokens of the prompts with their whole histories.
        cached_tokens: those whose state came from the prefix cache.
        scored_prompt_tokens: the part of `prompt_tokens` in turns in which texts were scored and nothing was generated;
            rows do not record how many of these came from the cache.
        logprob_mean: mean log-probability of a reply token, in nats, without turns that ended in an error.
        reference_nll: mean negative log-likelihood of a token of the reference replies, in nats.
        plain_text: None without plain texts.
        equal_replies: numbers of equal replies in repetitions, and in the first cell.
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
    plain_text: TextSummary | None = None
    unjudged: int = 0
    scored_prompt_tokens: int = 0
    prompt_errors: int = 0
    not_reached: int = 0
    equal_replies: CellEqualReplies = field(default_factory=CellEqualReplies)


@dataclass(frozen=True)
class Summary:
    """A run's figures.

    Attributes:
        planned: number of rows of the complete run.
        failed_tags: failed turns by tag, over all cells. A turn fails if it ends in an error or a check fails; turns
            without checks count only if they end in an error, and turns without a verdict only if they fail.
        failed_checks: failed checks by kind, over all cells, without those that have no verdict.
        unjudged: number of checks without a verdict of a judge.
        prompt_errors, not_reached: see `CellSummary`.
    """

    planned: int
    rows: int
    errors: int
    checks: int
    checks_passed: int
    reply_tokens: int
    prompt_tokens: int
    cached_tokens: int
    cells: tuple[CellSummary, ...]
    failed_tags: Mapping[str, FailureShare] = field(default_factory=dict[str, FailureShare])
    failed_checks: Mapping[str, FailureShare] = field(default_factory=dict[str, FailureShare])
    unjudged: int = 0
    scored_prompt_tokens: int = 0
    prompt_errors: int = 0
    not_reached: int = 0

    @property
    def complete(self) -> bool:
        return self.rows >= self.planned

    @property
    def passed(self) -> bool:
        """No row failed, and every check passed."""
        return self.errors == 0 and self.checks_passed == self.checks

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


_TOTALS = (
    *("rows", "errors", "checks", "checks_passed", "unjudged"),
    *("reply_tokens", "prompt_tokens", "cached_tokens", "scored_prompt_tokens", "prompt_errors", "not_reached"),
)


class _Tally:
    """Sums over one cell's rows; `counts` has the keys of `_TOTALS`."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_TOTALS, 0)
        self.finish_reasons = Counter[str]()
        self.scores, self.first_token_s = array("d"), array("d")
        self.logprob_sum = self.reference_sum = 0.0
        self.logprob_tokens = 0
        self.reference_tokens = 0
        self.text_tokens, self.text_bytes, self.continuations, self.greedy = 0, 0, 0, 0
        self.text_logprobs = array("d")

    def add(self, row: Row) -> None:
        counts = self.counts
        self.finish_reasons[row.finish_reason] += 1
        counts["rows"] += 1
        counts["reply_tokens"] += row.tokens.reply
        counts["prompt_tokens"] += row.tokens.prompt
        counts["cached_tokens"] += row.timing.cached_tokens
        counts["scored_prompt_tokens"] += row.tokens.prompt * (row.finish_reason == SCORED)
        # The checks of a turn that ended in an error count as failed: their `passed` is False.
        counts["checks"] += len(row.checks)
        counts["checks_passed"] += sum(bool(check.passed) for check in row.checks)
        counts["unjudged"] += row.unjudged_checks
        if (score := row.score) is not None:
            self.scores.append(score)
        if row.finish_reason == "error":
            counts["errors"] += 1
            counts["prompt_errors"] += is_prompt_error(row.error or "")
            counts["not_reached"] += (row.error or "").startswith(NOT_REACHED)
            return
        if row.finish_reason != SCORED:
            self.first_token_s.append(row.timing.first_token_s)
        self.logprob_sum += row.logprob.sum
        self.logprob_tokens += row.tokens.reply
        if row.reference is not None and row.reference.logprob is not None:
            self.text_tokens += row.reference.tokens
            self.text_bytes += row.reference.bytes or 0
            self.text_logprobs.append(row.reference.logprob)
            self.continuations += bool(row.prompt)
            self.greedy += bool(row.prompt) and row.reference.matched == 1
        elif row.reference is not None:
            self.reference_sum += row.reference.nll * row.reference.tokens
            self.reference_tokens += row.reference.tokens

    def result(self, name: str, equal_replies: CellEqualReplies) -> CellSummary:
        waits = sorted(self.first_token_s)
        return CellSummary(
            name=name,
            **self.counts,
            score=sum(self.scores) / len(self.scores) if self.scores else None,
            finish_reasons=dict(sorted(self.finish_reasons.items())),
            first_token_p50_s=percentile(waits, 0.50),
            first_token_p95_s=percentile(waits, 0.95),
            logprob_mean=self.logprob_sum / self.logprob_tokens if self.logprob_tokens else None,
            reference_nll=self.reference_sum / self.reference_tokens if self.reference_tokens else None,
            plain_text=self._plain_text() if self.text_logprobs else None,
            equal_replies=equal_replies,
        )

    def _plain_text(self) -> TextSummary:
        # `fsum` is exact, so the sum does not depend on the order of the rows.
        total, texts = -math.fsum(self.text_logprobs) + 0.0, len(self.text_logprobs)
        return TextSummary(
            texts,
            self.text_tokens,
            self.text_bytes,
            nll=total / self.text_tokens,
            perplexity=_exponential(total / self.text_tokens),
            bits_per_byte=total / math.log(2) / self.text_bytes,
            text_perplexity=_exponential(total / texts),
            accuracy=self.greedy / self.continuations if self.continuations else None,
        )


def _exponential(value: float) -> float | None:
    """exp(value); None if that overflows."""
    return math.exp(value) if value < 709 else None


class Tallies:
    """Adds up rows one by one; the last bits of the sums depend on their order.

    Args:
        cells: names of the cells, in the order of the summary.
    """

    def __init__(self, cells: Iterable[str]) -> None:
        self._cells = {name: _Tally() for name in cells}
        self._equal_replies = EqualRepliesCounter(self._cells)
        self._tags: Counter[tuple[str, bool]] = Counter()
        self._kinds: Counter[tuple[str, bool]] = Counter()

    def add(self, row: Row) -> None:
        self._cells[row.cell].add(row)
        self._equal_replies.add(row)
        is_error = row.finish_reason == "error"
        failed = is_error or row.failed_checks > 0
        if failed or (row.checks and not row.unjudged_checks):
            self._tags.update((tag, failed) for tag in row.tags)
        self._kinds.update((c.kind, is_error or not c.passed) for c in row.checks if is_error or c.passed is not None)

    def summary(self, planned: int) -> Summary:
        """The figures of the rows so far, in a run of `planned` rows."""
        equal_replies = self._equal_replies.result()
        cells = tuple(tally.result(name, equal_replies[name]) for name, tally in self._cells.items())
        totals = {name: sum(getattr(cell, name) for cell in cells) for name in _TOTALS}
        return Summary(
            planned=planned, **totals, cells=cells, failed_tags=_shares(self._tags), failed_checks=_shares(self._kinds)
        )


def _shares(counts: Counter[tuple[str, bool]]) -> dict[str, FailureShare]:
    names = sorted({name for name, _ in counts})
    return {name: FailureShare(counts[name, True], counts[name, True] + counts[name, False]) for name in names}


def summarize(rows: Iterable[Row], cells: Iterable[str], planned: int) -> Summary:
    """The figures of `rows`; `cells` gives their order in the summary."""
    tallies = Tallies(cells)
    for row in rows:
        tallies.add(row)
    return tallies.summary(planned)


def percentile(ascending: list[float], share: float) -> float | None:
    """The quantile `share` of values in ascending order, interpolated linearly; None without values."""
    if not ascending:
        return None
    position = share * (len(ascending) - 1)
    below = int(position)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (position - below) * (ascending[above] - ascending[below])


def write_summary(
    folder: Folder, summary: Summary, session: Mapping[str, Any], race: Mapping[str, Any] | None = None
) -> None:
    """Replace the summary; raises as `Folder.save`.

    Args:
        session: figures of the process that writes it (seconds, tokens/s).
        race: the result of a race.
    """
    content = {**summary.as_dict(), **({"race": dict(race)} if race else {}), "session": dict(session)}
    folder.save(SUMMARY_NAME, [printable_json(json.dumps(content, indent=2), log=True).encode(), b"\n"])


def read_part(directory: Path, key: str) -> dict[str, Any]:
    """The object `race` or `session` of a run's summary; empty without one, or if the summary cannot be read."""
    try:
        part = json.loads(read_file(directory / SUMMARY_NAME, MAX_SUMMARY_BYTES))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return cast("dict[str, Any]", part) if isinstance(part, dict) else {}
