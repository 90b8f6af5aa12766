"""Conversations that a program gives as mappings, written as lines of JSON for the reader of files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from rwkvbatch.errors import ScriptError, shown_value
from rwkvbatch.script.lines import MAX_DEPTH, TOO_DEEP, SourceLine, refuse
from rwkvbatch.script.raw_lines import RawLine

ARGUMENT = "scripts"
"""Name of the argument of `rwkvbatch.run` that has the mappings, for messages: `scripts[3]`."""

MAX_INT_BITS = 400
"""Size of a whole number that is not written as JSON; the reader refuses more than 100 digits."""

_HINTS: Mapping[type, str] = {tuple: "write a list", set: "write a list", bytes: "decode it to text"}


def mapping_lines(mappings: Iterable[tuple[int, Mapping[str, Any]]], max_bytes: int) -> Iterator[RawLine]:
    """Each mapping as a line; its `error` is set if a value is not a JSON value.

    Args:
        mappings: with the index of each in the argument.
        max_bytes: number of bytes of a line that are kept.
    """
    for index, mapping in mappings:
        source = SourceLine(ARGUMENT, index + 1, index=index)
        try:
            data, error = _encoded(_json_value(mapping, source, "", 0)), None
        except ScriptError as problem:
            shown = " ".join(shown_value(mapping, max_bytes).splitlines())
            data, error = shown.encode("utf-8", "backslashreplace"), problem
        yield RawLine(source, data[:max_bytes], len(data) <= max_bytes, error)


def _encoded(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which the reader refuses
        return json.dumps(value).encode()


def _json_value(value: object, source: SourceLine, where: str, depth: int) -> Any:
    """`value` with mappings as `dict`; refuses everything else than `json.loads` returns, so that nothing is converted.

    Args:
        where: the path of keys to the value, such as `messages[2].content`; empty for the whole.
    """
    if depth > MAX_DEPTH:
        refuse(source, *TOO_DEEP)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        for key, _ in pairs:
            if type(key) is not str:
                problem = f"{_named(where)}a key must be text (str), got {shown_value(key)} ({_type_name(key)})"
                refuse(source, problem, "write the key as text")
        return {
            key: _json_value(item, source, f"{where}.{key}" if where else str(key), depth + 1) for key, item in pairs
        }
    if isinstance(value, list):
        items = enumerate(cast("list[object]", value))
        return [_json_value(item, source, f"{where}[{index}]", depth + 1) for index, item in items]
    if type(value) is float and not math.isfinite(value):
        refuse(
            source, f"{_named(where)}{value} is not a JSON number", "give a finite number or None, or leave the key out"
        )
    if type(value) is int and value.bit_length() > MAX_INT_BITS:
        refuse(source, f"{_named(where)}the number is out of range", "write it as text")
    if value is not None and type(value) not in (str, int, float, bool):
        got = f"{shown_value(value)} ({_type_name(value)})"
        hint = _HINTS.get(type(value), "convert it; numpy's and torch's values have `.item()` and `.tolist()`")
        refuse(source, f"{_named(where)}must be a dict, list, str, int, float, bool or None, got {got}", hint)
    return value


def _named(where: str) -> str:
    return f"{where}: " if where else ""


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
