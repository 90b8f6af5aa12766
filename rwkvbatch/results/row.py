"""A row of results, the records in it, and its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Strict

from rwkvbatch.errors import shown_json
from rwkvbatch.fields import MAX_COUNT, Count, Flag, Items, Number, Seed, Share, Size, Weight, read_record
from rwkvbatch.script.choices import ChoiceScores
from rwkvbatch.script.records import Turn

SCORED = "scored"
"""The `finish_reason` of a row in which texts were scored and no reply was generated."""
FINISH_REASONS = frozenset({"stop", "eos", "length", "time", "error", SCORED})

NOT_REACHED = "not reached:"
"""The beginning of the error of a turn that was not run because an earlier turn of its conversation failed."""
TOO_LONG_PROMPT = "the prompt has"
EMPTY_PROMPT = "the prompt is empty"
ONE_TOKEN_TEXT = "the text has one token"


def is_prompt_error(error: str) -> bool:
    """Whether an error is one of a prompt that is too long or too short, which the same command has again."""
    return error.startswith((TOO_LONG_PROMPT, EMPTY_PROMPT, ONE_TOKEN_TEXT))


@dataclass(frozen=True, order=True)
class RowKey:
    """Identifies a row in its run."""

    conversation: str
    cell: str
    repeat: int
    turn: int

    def in_words(self) -> str:
        return f"conversation {self.conversation}, cell {self.cell}, repeat {self.repeat}, turn {self.turn}"


@dataclass(frozen=True)
class TokenCounts:
    """Numbers of tokens.

    Attributes:
        prompt: the prompt with its whole history.
        reply: generated tokens.
        thinking: generated tokens of the thinking part, its end included; None in replies without one.
    """

    prompt: Count
    reply: Count
    thinking: Count | None = None

    def as_dict(self) -> dict[str, int]:
        """JSON values; `thinking` is left out if it is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Logprob:
    """The reply's log-probability under the model's distribution, in nats; `mean` is per token."""

    mean: Number | None
    sum: Number


@dataclass(frozen=True)
class Reference:
    """The script's reference reply or plain text, and its likelihood under the model.

    Attributes:
        text: as in the script; a long plain text is shortened by `short_text`.
        nll: mean negative log-likelihood per token, in nats.
        matched: share of the tokens that have the highest probability; 1 if greedy decoding would write the text.
        logprob, bytes: sum of the log-probabilities of a plain text, in nats, and its UTF-8 bytes; None for a reply.
    """

    text: str
    nll: Number
    matched: Number
    tokens: Count
    logprob: Number | None = None
    bytes: Size | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values; without `logprob` and `bytes` for a reply."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ProbePlace:
    """The position of a probe, and its distance from the user message that it asks about.

    Attributes:
        after: the turn after which the probe was asked.
        number: its number among the probes of that turn.
        turns: number of turns after that of the user message.
        tokens: number of tokens from the end of the user message to the end of the dialogue so far; None in an error
            row.
    """

    after: Count
    number: Count
    turns: Count
    tokens: Count | None


SHORT_TEXT = 2_000
"""The most characters of a plain text that are stored in its row."""


def short_text(text: str) -> str:
    """A plain text as stored in its row: above `SHORT_TEXT` characters only its beginning, size and SHA-256."""
    if len(text) <= SHORT_TEXT:
        return text
    data = text.encode("utf-8", "surrogatepass")
    return f"{text[:200]}… [{len(data):,} bytes, sha256 {sha256(data).hexdigest()}]"


def stored_prompt(turn: Turn) -> str:
    """The user message or the prompt of a turn as stored in its row."""
    return short_text(turn.shown_prompt) if turn.plain and not turn.generate else turn.user


@dataclass(frozen=True)
class CheckResult:
    """The verdict of one check.

    Attributes:
        passed, score: the verdict, and a score in [0, 1]; both None if a judge gave no verdict.
        detail: what the check found, or why there is no verdict.
        judge: name and digest of the judge that gave the verdict; None for checks without a judge.
    """

    kind: str
    expected: Any
    passed: Flag | None
    score: Share | None
    weight: Weight = 1.0
    detail: str | None = None
    judge: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `judge` is left out if it is None."""
        values = vars(self)
        return values if self.judge is not None else {name: values[name] for name in values if name != "judge"}


@dataclass(frozen=True)
class RowTiming:
    """Seconds, reply tokens per second, and the number of prompt tokens whose state came from the prefix cache.

    `cached_tokens` is not in `TokenCounts`, because it depends on concurrent requests and on interruptions of the run.
    Only values in `timing` may depend on these.
    """

    queued_s: Number
    prefill_s: Number
    first_token_s: Number
    total_s: Number
    tokens_per_s: Number
    cached_tokens: Count


def _token_ids(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Thousands of ids: limits of each would take twice as long."""
    if ids and not 0 <= min(ids) <= max(ids) <= MAX_COUNT:
        wrong = next(value for value in ids if not 0 <= value <= MAX_COUNT)
        raise ValueError(f"must contain token ids, got {wrong}")
    return ids


def _known_reason(reason: str) -> str:
    if reason not in FINISH_REASONS:
        raise ValueError(f"must be one of {', '.join(sorted(FINISH_REASONS))}, got {shown_json(reason)}")
    return reason


def _whole_verdict(check: CheckResult) -> CheckResult:
    if (check.passed is None) != (check.score is None):
        raise ValueError("must have both `passed` and `score`, or null for both")
    return check


@dataclass(frozen=True)
class Row:
    """One turn.

    Attributes:
        prompt: the user's text.
        reply: the model's text, as the template shows it.
        reply_ids: the generated tokens, including those of a stop text. Together with `finish_reason` and `stopped_by`
            they determine the history of the next turn (`docs/design/durability.md`).
        finish_reason: `stop`, `eos`, `length`, `time`, `error` or `scored`. After `error`, the field `error` has its
            text. After `scored`, no reply was generated, and `reply` is the text of the model's choice, if any.
        stopped_by: the stop text that ended the reply, if `finish_reason` is `stop`.
        choices: likelihoods of the turn's choices; None without choices.
        probe: the position of a probe; None in other rows.
    """

    conversation: str
    cell: str
    repeat: Count
    turn: Count
    seed: Seed
    tags: Items[str]
    prompt: str
    reply: str
    reply_ids: Annotated[Items[Annotated[int, Strict()]], AfterValidator(_token_ids)]
    finish_reason: Annotated[str, AfterValidator(_known_reason)]
    stopped_by: str | None
    tokens: TokenCounts
    logprob: Logprob
    reference: Reference | None
    checks: Items[Annotated[CheckResult, AfterValidator(_whole_verdict)]]
    error: str | None
    timing: RowTiming
    choices: ChoiceScores | None = None
    probe: ProbePlace | None = None

    @property
    def key(self) -> RowKey:
        return RowKey(self.conversation, self.cell, self.repeat, self.turn)

    @property
    def score(self) -> float | None:
        """See `weighted_score`."""
        return weighted_score([(check.score, check.weight) for check in self.checks])

    @property
    def failed_checks(self) -> int:
        return sum(check.passed is False for check in self.checks)

    @property
    def unjudged_checks(self) -> int:
        """Checks without a verdict."""
        return sum(check.passed is None for check in self.checks)

    @property
    def reply_tokens(self) -> int:
        return self.tokens.reply

    @property
    def scored_tokens(self) -> int:
        """Tokens of the texts and choices of a turn in which nothing was generated; 0 in other rows."""
        if self.finish_reason != SCORED:
            return 0
        choices = 0 if self.choices is None else sum(score.tokens for score in self.choices.scores)
        return choices + (0 if self.reference is None else self.reference.tokens)

    def as_dict(self) -> dict[str, Any]:
        """JSON values in the order of the fields (`asdict` would copy every token id)."""
        values = {
            **vars(self),
            "tokens": self.tokens.as_dict(),
            "logprob": vars(self.logprob),
            "reference": None if self.reference is None else self.reference.as_dict(),
            "checks": [check.as_dict() for check in self.checks],
            "timing": vars(self.timing),
            "choices": None if self.choices is None else self.choices.as_dict(),
            "probe": None if self.probe is None else vars(self.probe),
        }
        return {name: value for name, value in values.items() if value is not None or name not in _OPTIONAL}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`; unknown keys are ignored. Raises as `read_record`."""
        return read_record(cls, values)


_OPTIONAL = frozenset({"choices", "probe"})
"""Fields that only some rows have; the first version wrote none of them."""


def weighted_score(checks: Sequence[tuple[float | None, float]]) -> float | None:
    """A row's score in [0, 1]: the weighted mean of its checks' scores.

    None if the weights sum to 0, and if a score is missing: a mean over the other checks would be another measure.

    Args:
        checks: score and weight of each check.
    """
    total = weights = 0.0
    for score, weight in checks:
        if score is None:
            return None
        total += score * weight
        weights += weight
    return total / weights if weights > 0 else None
