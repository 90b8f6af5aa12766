"""JSON of unknown origin, one value a line: parsed strictly, every refusal with file, line and what to do."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from typing import Any, NoReturn, TypeGuard

from rwkvbatch.errors import ScriptError
from rwkvbatch.script.records import SourceLine

MAX_DEPTH = 64
_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse(source: SourceLine, message: str, hint: str | None = None, column: int | None = None) -> NoReturn:
    """Raise the `ScriptError` of a place."""
    path = "<stdin>" if source.path == "-" else source.path
    raise ScriptError(message, path=path, line=source.line, column=column, hint=hint)


def refuse_unknown_keys(
    keys: Iterable[str],
    known: AbstractSet[str],
    source: SourceLine,
    where: str = "",
    *,
    close_only: bool = False,
) -> None:
    """Refuse the first key that is not known, naming those that look like it.

    Args:
        where: the object that has the keys, such as `messages[2]`.
        close_only: accept unknown keys unless they look like a misspelt one; for forms that others define.
    """
    for key in keys:
        if key in known:
            continue
        close = get_close_matches(key, sorted(known), n=3, cutoff=0.85 if close_only else 0.6)
        if close_only and not (close and len(key) > 4):
            continue
        prefix = f"{where}: " if where else ""
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"allowed: {', '.join(sorted(known))}"
        refuse(source, f"{prefix}unknown key {shown(key)}", hint)


def parse_line(text: str, source: SourceLine) -> Mapping[str, Any]:
    """The JSON object of one line.

    Raises:
        ScriptError: the line is no JSON object, or holds what JSON readers disagree about (duplicate keys, NaN,
            numbers beyond a float's range, halves of surrogate pairs) or nests deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except json.JSONDecodeError as error:
        refuse(source, f"not JSON: {error.msg}", _json_hint(text), error.colno)
    except _NotStrictError as error:
        refuse(source, str(error), error.hint)
    except RecursionError:
        _refuse_depth(source)
    if not is_object(value):
        hint = "write one conversation a line (`jq -c '.[]' FILE` does that to an array)" if is_array(value) else None
        refuse(source, f"must be a JSON object, got {type_name(value)}", hint)
    _walk(value, source)
    return value


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether a JSON value is an array."""
    return isinstance(value, list)


def type_name(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    names: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "a boolean"),
        (str, "a string"),
        ((int, float), "a number"),
        (dict, "an object"),
        ((list, tuple), "an array"),
    ]
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def shown(value: object, limit: int = 60) -> str:
    """A value for a message: its representation, shortened."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class _NotStrictError(Exception):
    """Valid for Python's reader, refused here."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _NotStrictError(f"the key {shown(twice)} comes twice in one object", "keep one of the two")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _NotStrictError(f"{name} is not a JSON number", "write a finite number, or null")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _NotStrictError(f"the number {shown(digits)[1:-1]} is out of range", "write a number below 1e308")
    return number


def _bounded(digits: str) -> int:
    if len(digits) > 100:
        raise _NotStrictError(f"a number with {len(digits)} digits is out of range", "write it as a string")
    return int(digits)


def _json_hint(text: str) -> str:
    if text.strip() in ("{", "["):
        return "the file seems to be indented JSON; write one conversation a line (`jq -c . FILE`, `jq -c '.[]' FILE`)"
    return "every line must be one whole JSON object; control characters in strings must be escaped"


def _refuse_depth(source: SourceLine) -> NoReturn:
    refuse(
        source,
        f"nested deeper than {MAX_DEPTH} levels",
        "no form of a conversation needs that; remove the line",
    )


def _walk(value: Any, source: SourceLine) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii() and (found := _SURROGATE.search(item)):
                    code = f"\\u{ord(found[0]):04x}"
                    refuse(source, f"half of a surrogate pair, {code}", "write the whole character, or remove it")
            elif is_object(item):
                below += item.keys()
                below += item.values()
            elif is_array(item):
                below += item
        if not below:
            return
        level = below
    _refuse_depth(source)
