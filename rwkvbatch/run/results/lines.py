"""A row as one line of `results.jsonl`: JSON with a checksum as its last key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from rwkvbatch.run.results.rows import Row, RowKey

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
    finish: str


def decode_row(line: bytes) -> Row:
    """The row in `line`, which ends in its line end.

    Raises:
        BadLineError: it is cut short, was altered, or is not a row.
    """
    content = _checked(line)
    try:
        return Row.from_dict(json.loads(content))
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
    return _head(values)


def _head(values: Any) -> RowHead:
    match values:
        case {
            "conversation": str(conversation),
            "cell": str(cell),
            "repeat": int(repeat),
            "turn": int(turn),
            "finish": str(finish),
        }:
            return RowHead(RowKey(conversation, cell, repeat, turn), finish)
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
