"""A row as one line of `results.jsonl`: JSON with a checksum as its last key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, cast
from zlib import crc32

NOT_REACHED = "not reached:"
"""How the error of a turn begins that was not run because an earlier one of its conversation failed."""


@dataclass(frozen=True, order=True)
class RowKey:
    """What tells a row from every other of its run."""

    conversation: str
    cell: str
    repeat: int
    turn: int

    def in_words(self) -> str:
        """For messages."""
        return f"conversation {self.conversation}, cell {self.cell}, repeat {self.repeat}, turn {self.turn}"


@dataclass(frozen=True)
class TokenCounts:
    """`prompt` counts the whole history that the reply followed, `reply` the tokens generated."""

    prompt: int
    reply: int


@dataclass(frozen=True)
class Logprob:
    """The reply's own log-probability under the model's distribution, in nats."""

    mean: float | None
    sum: float


@dataclass(frozen=True)
class Reference:
    """The script's reply and how likely the model found it: `nll` is the mean over its tokens, in nats.

    `matched` is the share of its tokens that were the likeliest ones.
    """

    text: str
    nll: float
    matched: float
    tokens: int


@dataclass(frozen=True)
class CheckResult:
    """One check's verdict: `score` in [0, 1], `passed`, its `weight`, and in `detail` what was found."""

    kind: str
    expected: Any
    passed: bool
    score: float
    weight: float = 1.0
    detail: str | None = None


@dataclass(frozen=True)
class RowTiming:
    """How the reply came about: seconds, reply tokens per second, and prompt tokens that were not read again.

    `cached_tokens` stands here and not in `TokenCounts` because it depends on what else was running, and on
    whether the run was interrupted; nothing outside `timing` may.
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
        reply_ids: the tokens as they were generated, those of a stop text included; with `finish_reason` and
            `stopped_by` they are all that the history of the next turn needs (`docs/design/durability.md`).
        finish_reason: `stop`, `eos`, `length`, `time` or `error`; with `error` the text of the error is in `error`.
        stopped_by: the stop text that ended the reply, when `finish_reason` is `stop`.
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

    @property
    def key(self) -> RowKey:
        return RowKey(self.conversation, self.cell, self.repeat, self.turn)

    @property
    def score(self) -> float | None:
        """The weighted mean of the checks' scores, in [0, 1]; None without checks (of any weight)."""
        weight = sum(check.weight for check in self.checks)
        return sum(check.score * check.weight for check in self.checks) / weight if weight > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, in the order of the fields. Written out: `asdict` copies every token id one by one."""
        return {
            "conversation": self.conversation,
            "cell": self.cell,
            "repeat": self.repeat,
            "turn": self.turn,
            "seed": self.seed,
            "tags": self.tags,
            "prompt": self.prompt,
            "reply": self.reply,
            "reply_ids": self.reply_ids,
            "finish_reason": self.finish_reason,
            "stopped_by": self.stopped_by,
            "tokens": vars(self.tokens),
            "logprob": vars(self.logprob),
            "reference": None if self.reference is None else vars(self.reference),
            "checks": [vars(check) for check in self.checks],
            "error": self.error,
            "timing": vars(self.timing),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a row; keys that are not a row's (such as the line's checksum) are passed over.

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
        return cls(**plain)


_ROW_FIELDS = tuple(field.name for field in fields(Row))


MAX_LINE_BYTES = 256 * 2**20
"""No row is longer; what is longer in a file is damage, and is not read into memory."""

_KEY = b',"crc":"'
_TAIL_BYTES = len(_KEY) + 8 + len(b'"}')

# Built once: `json.dumps` with options makes a new encoder at every call.
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
_ENCODE_ASCII = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class BadLineError(ValueError):
    """A line that is not a whole row with the right checksum; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Row `number` of the plan as a line of the file; `failed` for an error row."""

    number: int
    line: bytes
    failed: bool


def encode_row(row: Row) -> bytes:
    """One line of UTF-8, its line end included.

    The key `crc` is the CRC-32, as 8 hexadecimal digits, of the line without that key (`{...}`, no line end).

    Raises:
        ValueError: a number of the row is NaN or infinite.
        TypeError: a check's `expected` is not JSON.
    """
    values = row.as_dict()
    try:
        body = _ENCODE(values).encode()
    except UnicodeEncodeError:  # lone surrogates: UTF-8 has no bytes for them, JSON has escapes
        body = _ENCODE_ASCII(values).encode()
    return b'%s,"crc":"%08x"}\n' % (body[:-1], crc32(body))


@dataclass(frozen=True)
class RowHead:
    """What tells where a row belongs, and how it ended."""

    key: RowKey
    finish_reason: str


def decode_row(line: bytes) -> Row:
    """The row in `line`, which ends in its line end.

    Raises:
        BadLineError: it is cut short, was altered, or is not a row.
    """
    content = _checked(line)
    try:
        return Row.from_dict(with_current_keys(json.loads(content)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadLineError(f"it is not a row of this version ({type(error).__name__}: {error})") from None


def decode_head(line: bytes) -> RowHead:
    """As `decode_row`, four times as fast, for who does not need the rest of the row."""
    import orjson

    content = _checked(line)
    try:
        values: Any = orjson.loads(content)
    except orjson.JSONDecodeError:  # half a surrogate pair, say: the standard library takes it
        return _head(vars(decode_row(line)))
    return _head(with_current_keys(values))


def with_current_keys(values: Any) -> Any:
    """The JSON value of a line, where it is an object, with the keys that this version writes.

    Older versions wrote `finish` for `finish_reason`.
    """
    if isinstance(values, dict) and "finish" in values:
        record = cast("dict[str, Any]", values)
        record["finish_reason"] = record.pop("finish")
    return cast("Any", values)


def _head(values: Any) -> RowHead:
    match values:
        case {
            "conversation": str(conversation),
            "cell": str(cell),
            "repeat": int(repeat),
            "turn": int(turn),
            "finish_reason": str(finish_reason),
        }:
            return RowHead(RowKey(conversation, cell, repeat, turn), finish_reason)
        case _:
            raise BadLineError("it is not a row of this version")


def _checked(line: bytes) -> bytes:
    """The line's JSON without its checksum, which was right."""
    body = line[:-1]
    tail = body[-_TAIL_BYTES:]
    if not line.endswith(b'"}\n') or not tail.startswith(_KEY):
        raise BadLineError("it does not end in a checksum")
    content = body[:-_TAIL_BYTES] + b"}"
    if tail[len(_KEY) : -2] != b"%08x" % crc32(content):
        raise BadLineError("its checksum does not match")
    return content
