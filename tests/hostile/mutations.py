"""Random changes of valid files: of bytes, JSON values, JSON headers of safetensors files, and cells of tables."""

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
"""Values that replace others."""

Change = Callable[[bytes, random.Random], bytes]


def of_bytes(data: bytes, generator: random.Random) -> bytes:
    """Truncate, overwrite, remove, repeat or insert a part, more often at the start, where headers are."""
    reach = len(data) if generator.random() < 0.4 else min(len(data), 2000)
    at = generator.randrange(reach) if reach else 0
    length = generator.choice((1, 1, 2, 4, 8, 8, 40, 300))
    match generator.randrange(6):
        case 0:
            return data[:at]
        case 1:
            patch = generator.choice((b"\xff", b"\x00", b"\x7f", b"\x80", b"{", b"[", b'"', b",", b"9", b"\n"))
            return data[:at] + patch * length + data[at + length :]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + data[at : at + length] * generator.choice((2, 3, 50)) + data[at + length :]
        case 4:
            return data[:at] + generator.randbytes(length) + data[at:]
        case _:
            changed = bytearray(data)
            for _ in range(min(len(data), generator.choice((1, 3, 20)))):
                changed[generator.randrange(reach)] = generator.randrange(256)
            return bytes(changed)


def of_json(data: bytes, generator: random.Random) -> bytes:
    """Change, remove or duplicate values or rename keys, one to three times."""
    content = json.loads(data)
    for _ in range(generator.choice((1, 1, 2, 3))):
        content = _changed(content, generator)
    text = json.dumps(content, ensure_ascii=generator.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def of_json_lines(data: bytes, generator: random.Random) -> bytes:
    """Change one line."""
    lines = data.splitlines() or [b"{}"]
    at = generator.randrange(len(lines))
    lines[at] = of_json(lines[at], generator)
    return b"\n".join(lines) + b"\n"


def of_safetensors(data: bytes, generator: random.Random) -> bytes:
    """Change the header, with its correct length."""
    (size,) = struct.unpack("<Q", data[:8])
    header = of_json(data[8 : 8 + size], generator)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def of_cells(data: bytes, generator: random.Random) -> bytes:
    """Replace a cell of a table of comma separated values."""
    lines = [line.split(b",") for line in data.splitlines()]
    line = lines[generator.randrange(len(lines))]
    value = generator.choice([*VALUES, '"', 'a"b', "a,b", "1;2", "=1+1", "0x10", "1_000", "١"])
    line[generator.randrange(len(line))] = str(value).encode("utf-8", "surrogatepass")[:20_000]
    return b"\n".join(b",".join(line) for line in lines) + b"\n"


def changed_files(seeds: Sequence[bytes], changes: Sequence[Change], generator: random.Random) -> Iterator[bytes]:
    """Endlessly many changed files; one in four is changed twice."""
    while True:
        change = generator.choice(changes)
        data = change(generator.choice(seeds), generator)
        yield of_bytes(data, generator) if generator.random() < 0.25 else data


def _changed(content: Any, generator: random.Random) -> Any:
    """A copy with one change; each level is equally likely."""
    inner = isinstance(content, dict | list) and content and generator.random() < 0.85
    if not inner:
        return generator.choice(VALUES)
    if isinstance(content, list):
        values: list[Any] = list(content)
        at = generator.randrange(len(values))
        match generator.randrange(8):
            case 0:
                del values[at]
            case 1:
                values.insert(at, values[at])
            case _:
                values[at] = _changed(values[at], generator)
        return values
    members: dict[str, Any] = dict(content)
    key = generator.choice(list(members))
    match generator.randrange(8):
        case 0:
            del members[key]
        case 1:
            members[generator.choice((key + "x", key.upper(), "", "\0", "__proto__"))] = members.pop(key)
        case 2:
            members[generator.choice(("extra", "version", "type", "id"))] = generator.choice(VALUES)
        case _:
            members[key] = _changed(members[key], generator)
    return members
