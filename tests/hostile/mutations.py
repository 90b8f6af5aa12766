"""Changes of sound files: of bytes, of JSON values, and of the JSON header of a safetensors file."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63, -(2**64), 10**400),
    *("", "x", "\0", "\ud800", "\u202e", "../../etc/passwd", "/etc/passwd", "NaN", "1e999", "a" * 10_000, "\n\r\u2028"),
    *([], [[]], {}, {"": None}, [0] * 1000, ["a", 1, None], [[[[[[[[1]]]]]]]], {"a": {"b": {"c": []}}}),
)
"""What takes the place of a value."""

Change = Callable[[bytes, random.Random], bytes]


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """Cut, overwrite, remove, repeat or insert a part; the beginning, where tables of contents are, more often."""
    reach = len(data) if chance.random() < 0.4 else min(len(data), 2000)
    at = chance.randrange(reach) if reach else 0
    length = chance.choice((1, 1, 2, 4, 8, 8, 40, 300))
    match chance.randrange(6):
        case 0:
            return data[:at]
        case 1:
            patch = chance.choice((b"\xff", b"\x00", b"\x7f", b"\x80", b"{", b"[", b'"', b",", b"9", b"\n"))
            return data[:at] + patch * length + data[at + length :]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + data[at : at + length] * chance.choice((2, 3, 50)) + data[at + length :]
        case 4:
            return data[:at] + chance.randbytes(length) + data[at:]
        case _:
            changed = bytearray(data)
            for _ in range(min(len(data), chance.choice((1, 3, 20)))):
                changed[chance.randrange(reach)] = chance.randrange(256)
            return bytes(changed)


def of_json(data: bytes, chance: random.Random) -> bytes:
    """Another value, a missing or doubled one, or another key, at one to three places."""
    content = json.loads(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        content = _changed(content, chance)
    text = json.dumps(content, ensure_ascii=chance.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def of_json_lines(data: bytes, chance: random.Random) -> bytes:
    """A change of one line."""
    lines = data.splitlines() or [b"{}"]
    at = chance.randrange(len(lines))
    lines[at] = of_json(lines[at], chance)
    return b"\n".join(lines) + b"\n"


def of_safetensors(data: bytes, chance: random.Random) -> bytes:
    """A change of the header, whose length is right again."""
    (size,) = struct.unpack("<Q", data[:8])
    header = of_json(data[8 : 8 + size], chance)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def of_cells(data: bytes, chance: random.Random) -> bytes:
    """Another text in a cell of a table of comma separated values."""
    lines = [line.split(b",") for line in data.splitlines()]
    line = lines[chance.randrange(len(lines))]
    value = chance.choice([*VALUES, '"', 'a"b', "a,b", "1;2", "=1+1", "0x10", "1_000", "١"])
    line[chance.randrange(len(line))] = str(value).encode("utf-8", "surrogatepass")[:20_000]
    return b"\n".join(b",".join(line) for line in lines) + b"\n"


def changed_files(seeds: Sequence[bytes], changes: Sequence[Change], chance: random.Random) -> Iterator[bytes]:
    """Endlessly many changed files; one in four is changed twice."""
    while True:
        change = chance.choice(changes)
        data = change(chance.choice(seeds), chance)
        yield of_bytes(data, chance) if chance.random() < 0.25 else data


def _changed(content: Any, chance: random.Random) -> Any:
    """A copy with one change somewhere in it, at each level with equal chance."""
    inner = isinstance(content, dict | list) and content and chance.random() < 0.85
    if not inner:
        return chance.choice(VALUES)
    if isinstance(content, list):
        values: list[Any] = list(content)
        at = chance.randrange(len(values))
        match chance.randrange(8):
            case 0:
                del values[at]
            case 1:
                values.insert(at, values[at])
            case _:
                values[at] = _changed(values[at], chance)
        return values
    members: dict[str, Any] = dict(content)
    key = chance.choice(list(members))
    match chance.randrange(8):
        case 0:
            del members[key]
        case 1:
            members[chance.choice((key + "x", key.upper(), "", "\0", "__proto__"))] = members.pop(key)
        case 2:
            members[chance.choice(("extra", "version", "type", "id"))] = chance.choice(VALUES)
        case _:
            members[key] = _changed(members[key], chance)
    return members
