"""A row, its score, and its form as one line of `results.jsonl`: JSON with a checksum as its last key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, Self, cast
from zlib import crc32

from rwkvbatch.prompt.escaping import one_line
from rwkvbatch.results.row_values import FINISH_REASONS, SCORED, check_values
from rwkvbatch.script.choices import ChoiceScores

NOT_REACHED = "not reached:"
"""How the error of a turn begins that was not run because an earlier one of its conversation failed."""


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
    """`prompt` counts the whole history that the reply followed, `reply` the tokens generated.

    `thinking` of the latter belong to the thinking part, its end included; None in replies without one.
    """

    prompt: int
    reply: int
    thinking: int | None = None

    def as_dict(self) -> dict[str, int]:
        """JSON values; `thinking` only where there is any."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Logprob:
    """The reply's log-probability under the model's distribution, in nats; `mean` is per token."""

    mean: float | None
    sum: float


@dataclass(frozen=True)
class Reference:
    """The script's reply, or its plain text, and the likelihood under the model.

    Attributes:
        text: as in the script; a long plain text as `short_text` gives it.
        nll: mean negative log-likelihood per token, in nats.
        matched: share of the tokens that the model found likeliest; 1 if greedy decoding would write the text.
        logprob, bytes: of plain text only: the sum of its log-probabilities, in nats, and its UTF-8 bytes.
    """

    text: str
    nll: float
    matched: float
    tokens: int
    logprob: float | None = None
    bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values; those of plain text only where it is one."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ProbePlace:
    """Where a probe was asked.

    Attributes:
        after: the turn after which it was asked. number: its number among the probes of that turn.
        turns, tokens: distance from the user message that says what it asks about to the end of the dialogue so far:
            turns after that one, and tokens after the end of that message; `tokens` is None in a row of an error.
    """

    after: int
    number: int
    turns: int
    tokens: int | None


SHORT_TEXT = 2_000
"""The most characters of a plain text that its row holds."""


def short_text(text: str) -> str:
    """A plain text as its row holds it: beyond `SHORT_TEXT` characters its beginning, its size and its SHA-256."""
    if len(text) <= SHORT_TEXT:
        return text
    data = text.encode("utf-8", "surrogatepass")
    return f"{text[:200]}… [{len(data):,} bytes, sha256 {sha256(data).hexdigest()}]"


@dataclass(frozen=True)
class CheckResult:
    """One check's verdict; `score` is in [0, 1], `detail` says what was found.

    Where a judge gave no verdict, `passed` and `score` are both None, and `detail` says why. `judge` is the name and
    the digest of the judge that gave it, if one did.
    """

    kind: str
    expected: Any
    passed: bool | None
    score: float | None
    weight: float = 1.0
    detail: str | None = None
    judge: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values; `judge` only where there is one."""
        values = vars(self)
        return values if self.judge is not None else {name: values[name] for name in values if name != "judge"}


@dataclass(frozen=True)
class RowTiming:
    """Seconds, reply tokens per second, and the number of prompt tokens whose state came from the prefix cache.

    `cached_tokens` is here and not in `TokenCounts` because it depends on what else was running and on whether the
    run was interrupted, which nothing outside `timing` may.
    """

    queued_s: float
    prefill_s: float
    first_token_s: float
    total_s: float
    tokens_per_s: float
    cached_tokens: int


@dataclass(frozen=True)
class Row:
    """One turn.

    Attributes:
        prompt: the user's text. reply: the model's, as the template shows it.
        reply_ids: the tokens as generated, including those of a stop text; with `finish_reason` and `stopped_by`
            they determine the history of the next turn (`docs/design/durability.md`).
        finish_reason: `stop`, `eos`, `length`, `time`, `error` or `scored`; with `error` the text of the error is in
            `error`; with `scored` no reply was generated, and `reply` is the chosen text where the turn has choices.
        stopped_by: the stop text that ended the reply, when `finish_reason` is `stop`.
        choices: the likelihoods of the turn's choices, where it has any. probe: where a probe was asked.
    """

    conversation: str
    cell: str
    repeat: int
    turn: int
    seed: int
    tags: tuple[str, ...]
    prompt: str
    reply: str
    reply_ids: tuple[int, ...]
    finish_reason: str
    stopped_by: str | None
    tokens: TokenCounts
    logprob: Logprob
    reference: Reference | None
    checks: tuple[CheckResult, ...]
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
    def scored_tokens(self) -> int:
        """Tokens of the texts and choices of a turn in which nothing was generated; 0 in other rows."""
        if self.finish_reason != SCORED:
            return 0
        choices = 0 if self.choices is None else sum(score.tokens for score in self.choices.scores)
        return choices + (0 if self.reference is None else self.reference.tokens)

    def as_dict(self) -> dict[str, Any]:
        """JSON values in the order of the fields; `asdict` would copy every token id."""
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
        """The opposite of `as_dict`; unknown keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: `values` is not a row's.
        """
        plain: dict[str, Any] = {name: values[name] for name in _ROW_FIELDS}
        reference = values["reference"]
        plain["tags"] = tuple(values["tags"])
        plain["reply_ids"] = tuple(values["reply_ids"])
        plain["tokens"] = TokenCounts(**values["tokens"])
        plain["logprob"] = Logprob(**values["logprob"])
        plain["reference"] = None if reference is None else Reference(**reference)
        plain["checks"] = tuple(CheckResult(**check) for check in values["checks"])
        plain["timing"] = RowTiming(**values["timing"])
        if (choices := values.get("choices")) is not None:
            plain["choices"] = ChoiceScores.from_dict(choices)
        if (probe := values.get("probe")) is not None:
            plain["probe"] = ProbePlace(**probe)
        return cls(**plain)


_OPTIONAL = frozenset({"choices", "probe"})
"""Fields that only the rows of some turns have; earlier versions wrote none of them."""
_ROW_FIELDS = tuple(field.name for field in fields(Row) if field.name not in _OPTIONAL)


def weighted_score(checks: Sequence[tuple[float | None, float]]) -> float | None:
    """A row's score: the mean of its checks' scores by their weights, in [0, 1].

    None if the weights sum to zero, or a score is missing: the mean of the others would be another measure.

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


MAX_LINE_BYTES = 64 * 2**20
"""The longest line that is read into memory; a longer one is damage."""

_KEY = b',"crc":"'
_TAIL_BYTES = len(_KEY) + 8 + len(b'"}')

# Built once: `json.dumps` with options makes a new encoder at every call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ENCODE_ASCII = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class BadLineError(ValueError):
    """A line is not a whole row with the right checksum; the text says what is wrong with it."""


class WrongValuesError(BadLineError):
    """A line has the right checksum, so it is not torn, and is not a row."""


@dataclass(frozen=True, slots=True)
class RowDigest:
    """Hex digests of what a row was made from; a line has them, a `Row` does not.

    Attributes:
        content: of all that the reply and its numbers depend on, but the repeat: rows with equal digests and repeats
            are equal. judging: of the checks and tags.
    """

    content: str
    judging: str


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Row `number` of the plan as a line of the file, and what a run counts of it without decoding the line."""

    number: int
    line: bytes
    error: str | None = None
    failed_checks: int = 0
    reply_tokens: int = 0
    scored_tokens: int = 0

    @classmethod
    def of(cls, number: int, row: Row) -> Self:
        return cls(number, encode_row(row), row.error, row.failed_checks, row.tokens.reply, row.scored_tokens)


def encode_row(row: Row) -> bytes:
    """One line of UTF-8 with its line end.

    The key `crc` is the CRC-32, as 8 hexadecimal digits, of the line without that key (`{...}`, no line end).

    Raises:
        ValueError: a number of the row is NaN or infinite.
        TypeError: a check's `expected` is not JSON.
    """
    values = row.as_dict()
    try:
        body = one_line(_ENCODE(values)).encode()
    except UnicodeEncodeError:  # lone surrogates: UTF-8 has no bytes for them, JSON has escapes
        body = _ENCODE_ASCII(values).encode()
    return with_checksum(body)


def with_checksum(body: bytes) -> bytes:
    """A JSON object as a line with the key `crc`, which `content_of_line` checks."""
    return b'%s,"crc":"%08x"}\n' % (body[:-1], crc32(body))


def with_digest(line: bytes, digest: RowDigest) -> bytes:
    """A line of `encode_row` with its digests, under the keys `content` and `judging` before the checksum."""
    keys = f',"content":"{digest.content}","judging":"{digest.judging}"}}'.encode()
    return with_checksum(line[: -_TAIL_BYTES - 1] + keys)


_DIGEST = re.compile(rb',"content":"([0-9a-f]+)","judging":"([0-9a-f]+)","crc":"[0-9a-f]{8}"}\n$')


def digest_of(line: bytes) -> RowDigest | None:
    """The digests in a line; None where it has none, as lines of earlier versions."""
    found = _DIGEST.search(line, max(0, len(line) - 300))
    return None if found is None else RowDigest(found[1].decode(), found[2].decode())


@dataclass(frozen=True)
class RowHead:
    """Which row it is, and how the reply ended."""

    key: RowKey
    finish_reason: str


def decode_row(line: bytes) -> Row:
    """The row in `line`, which ends in its line end.

    Raises:
        BadLineError: it is cut short, was altered, or is not a row.
    """
    content = content_of_line(line)
    try:
        values = _current(json.loads(content))  # not orjson, which rounds integers above 64 bits
        check_values(values)
        return Row.from_dict(values)
    except BadLineError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WrongValuesError(f"it is not a row of this version ({type(error).__name__}: {error})") from None


def decode_head(line: bytes) -> RowHead:
    """As `decode_row`, four times as fast, for callers that do not need the rest of the row."""
    match decode_values(line):
        case {
            "conversation": str(conversation),
            "cell": str(cell),
            "repeat": int(repeat),
            "turn": int(turn),
            "finish_reason": str(finish_reason),
        } if finish_reason in FINISH_REASONS:
            return RowHead(RowKey(conversation, cell, repeat, turn), finish_reason)
        case _:
            raise WrongValuesError("it is not a row of this version")


def decode_values(line: bytes, *, needs_checksum: bool = True) -> dict[str, Any]:
    """The JSON object in `line`, under the keys of `Row.as_dict`; the caller checks the values that it uses.

    Args:
        needs_checksum: refuse a line without a checksum, as in a run directory; rows that were made by hand or by
            another program have none.

    Raises:
        BadLineError: it is cut short, was altered, or is not a JSON object.
    """
    import orjson

    content = content_of_line(line, needs_checksum=needs_checksum)
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError:  # half a surrogate pair, say: the standard library reads it
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            raise BadLineError("it is not JSON") from None
    return _current(values)


def content_of_line(line: bytes, *, needs_checksum: bool = True) -> bytes:
    """The line's JSON without its checksum, which was right; raises `BadLineError` otherwise."""
    body = line[:-1] if needs_checksum else line.rstrip()
    tail = body[-_TAIL_BYTES:]
    if not tail.startswith(_KEY) and not needs_checksum:
        return body
    if not tail.startswith(_KEY) or not body.endswith(b'"}') or not line.endswith(b"\n"):
        raise BadLineError("it does not end in a checksum")
    content = body[:-_TAIL_BYTES] + b"}"
    if tail[len(_KEY) : -2] != b"%08x" % crc32(content):
        raise BadLineError("its checksum does not match")
    return content


def _current(values: Any) -> dict[str, Any]:
    """A row's JSON object under the keys of this version: earlier ones wrote `finish` for `finish_reason`."""
    if not isinstance(values, dict):
        raise BadLineError("it is not a JSON object")
    record = cast("dict[str, Any]", values)
    if "finish" in record:
        record["finish_reason"] = record.pop("finish")
    return record
