"""A row of results, its score, and its encoding as one line of `results.jsonl`: JSON whose last key is a checksum."""

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
"""The beginning of the error of a turn that was not run because an earlier turn of its conversation failed."""


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

    prompt: int
    reply: int
    thinking: int | None = None

    def as_dict(self) -> dict[str, int]:
        """JSON values; `thinking` is left out if it is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Logprob:
    """The reply's log-probability under the model's distribution, in nats; `mean` is per token."""

    mean: float | None
    sum: float


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
    nll: float
    matched: float
    tokens: int
    logprob: float | None = None
    bytes: int | None = None

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

    after: int
    number: int
    turns: int
    tokens: int | None


SHORT_TEXT = 2_000
"""The most characters of a plain text that are stored in its row."""


def short_text(text: str) -> str:
    """A plain text as stored in its row: above `SHORT_TEXT` characters only its beginning, size and SHA-256."""
    if len(text) <= SHORT_TEXT:
        return text
    data = text.encode("utf-8", "surrogatepass")
    return f"{text[:200]}… [{len(data):,} bytes, sha256 {sha256(data).hexdigest()}]"


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
    passed: bool | None
    score: float | None
    weight: float = 1.0
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
        """The inverse of `as_dict`; unknown keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: `values` are not those of a row.
        """
        arguments: dict[str, Any] = {name: values[name] for name in _ROW_FIELDS}
        reference = values["reference"]
        arguments["tags"] = tuple(values["tags"])
        arguments["reply_ids"] = tuple(values["reply_ids"])
        arguments["tokens"] = TokenCounts(**values["tokens"])
        arguments["logprob"] = Logprob(**values["logprob"])
        arguments["reference"] = None if reference is None else Reference(**reference)
        arguments["checks"] = tuple(CheckResult(**check) for check in values["checks"])
        arguments["timing"] = RowTiming(**values["timing"])
        if (choices := values.get("choices")) is not None:
            arguments["choices"] = ChoiceScores.from_dict(choices)
        if (probe := values.get("probe")) is not None:
            arguments["probe"] = ProbePlace(**probe)
        return cls(**arguments)


_OPTIONAL = frozenset({"choices", "probe"})
"""Fields that only some rows have; the first version wrote none of them."""
_ROW_FIELDS = tuple(field.name for field in fields(Row) if field.name not in _OPTIONAL)


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


MAX_LINE_BYTES = 64 * 2**20
"""The longest line that is read into memory; a longer line counts as damaged."""

_KEY = b',"crc":"'
_TAIL_BYTES = len(_KEY) + 8 + len(b'"}')

# Built once, because `json.dumps` with options builds a new encoder in every call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ENCODE_ASCII = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class BadLineError(ValueError):
    """A line is not a complete row with a matching checksum; the text says what is wrong with it."""


class WrongValuesError(BadLineError):
    """A line has a matching checksum, so it is not torn, but it is not a valid row."""


@dataclass(frozen=True, slots=True)
class RowDigest:
    """Hex digests of a row's inputs. They are part of a line, but not of a `Row`.

    Attributes:
        content: digest of everything that the reply and its numbers depend on except the repeat, so that rows with
            equal digests and repeats are equal.
        judging: digest of the checks and tags.
    """

    content: str
    judging: str


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Row `number` of the plan as a line of the file, with the figures that a run adds up without decoding the line."""

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
    """The row as one line of UTF-8 with its line end.

    The value of the key `crc` is the CRC-32 of the line without that key and without the line end, as 8 hex digits.

    Raises:
        ValueError: a number of the row is NaN or infinite.
        TypeError: a check's `expected` is not JSON.
    """
    values = row.as_dict()
    try:
        body = one_line(_ENCODE(values)).encode()
    except UnicodeEncodeError:  # lone surrogates, which UTF-8 cannot encode and JSON can escape
        body = _ENCODE_ASCII(values).encode()
    return with_checksum(body)


def with_checksum(body: bytes) -> bytes:
    """A JSON object as a line with the additional key `crc`, which `content_of_line` checks."""
    return b'%s,"crc":"%08x"}\n' % (body[:-1], crc32(body))


def with_digest(line: bytes, digest: RowDigest) -> bytes:
    """A line of `encode_row` with the additional keys `content` and `judging` before the checksum."""
    keys = f',"content":"{digest.content}","judging":"{digest.judging}"}}'.encode()
    return with_checksum(line[: -_TAIL_BYTES - 1] + keys)


_DIGEST = re.compile(rb',"content":"([0-9a-f]+)","judging":"([0-9a-f]+)","crc":"[0-9a-f]{8}"}\n$')


def digest_of(line: bytes) -> RowDigest | None:
    """The digests in a line; None if it has none, like lines of earlier versions."""
    match = _DIGEST.search(line, max(0, len(line) - 300))
    return None if match is None else RowDigest(match[1].decode(), match[2].decode())


@dataclass(frozen=True)
class RowHead:
    """The key of a row, and why its reply ended."""

    key: RowKey
    finish_reason: str


def decode_row(line: bytes) -> Row:
    """The row in `line`, which includes its line end.

    Raises:
        BadLineError: the line is incomplete, was altered, or is not a row.
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
    """The key and finish reason of a row; four times as fast as `decode_row`, and raises the same errors."""
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
    """The JSON object in `line` with the keys of `Row.as_dict`; the caller checks the values that it uses.

    Args:
        needs_checksum: refuse a line without a checksum. True for run directories; rows written by hand or by another
            program have no checksum.

    Raises:
        BadLineError: the line is incomplete, was altered, or is not a JSON object.
    """
    import orjson

    content = content_of_line(line, needs_checksum=needs_checksum)
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError:  # for example half a surrogate pair, which the standard library accepts
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            raise BadLineError("it is not JSON") from None
    return _current(values)


def content_of_line(line: bytes, *, needs_checksum: bool = True) -> bytes:
    """The line's JSON without its checksum; raises `BadLineError` if the checksum does not match."""
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
    """A row's JSON object with the keys of this version; earlier versions wrote `finish` for `finish_reason`."""
    if not isinstance(values, dict):
        raise BadLineError("it is not a JSON object")
    record = cast("dict[str, Any]", values)
    if "finish" in record:
        record["finish_reason"] = record.pop("finish")
    return record
