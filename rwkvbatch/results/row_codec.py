"""The encoding of a row as one line of `results.jsonl`: JSON whose last key is a checksum."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Self, cast
from zlib import crc32

from rwkvbatch.prompt.escaping import one_line
from rwkvbatch.results.row import FINISH_REASONS, Row, RowKey

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
        return cls(number, encode_row(row), row.error, row.failed_checks, row.reply_tokens, row.scored_tokens)


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


def digest_of(line: bytes) -> RowDigest:
    """The digests in a line of a run directory; raises `WrongValuesError` if it has none."""
    match = _DIGEST.search(line, max(0, len(line) - 300))
    if match is None:
        raise WrongValuesError("it lacks `content` or `judging`, the digests of what it was made from")
    return RowDigest(match[1].decode(), match[2].decode())


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
        return Row.from_dict(json.loads(content))  # not orjson, which rounds integers above 64 bits
    except (ValueError, RecursionError) as error:
        raise WrongValuesError(f"it is not a row of this version ({error})") from None


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
    if not isinstance(values, dict):
        raise BadLineError("it is not a JSON object")
    return cast("dict[str, Any]", values)


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
