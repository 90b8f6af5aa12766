"""Lines of scripts: their position, strict parsing of their JSON, and errors about them.

Every error about a line names the file, the line, what was expected and what to do.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn, TypeGuard

from rwkvbatch.errors import ScriptError, shortened

STDIN = "-"
"""The path that stands for standard input."""


@dataclass(frozen=True)
class SourceLine:
    """The position of a line in a script.

    Attributes:
        path: the file as the user named it; `-` is standard input.
        line: 1-based line number.
        item: 1-based number in the array of a `.json` file; None in other files.
        index: 0-based index of a conversation that a program gave in its argument `path`; None in files.
    """

    path: str
    line: int
    item: int | None = None
    index: int | None = None

    def __str__(self) -> str:
        if self.index is not None:
            return f"{self.path}[{self.index}]"
        item = "" if self.item is None else f" (item {self.item})"
        return f"{shown_path(self.path)}:{self.line}{item}"


def shown_path(path: str) -> str:
    """The name of a script for messages."""
    return "<stdin>" if path == STDIN else path


MAX_DEPTH = 64
TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels", "no form of a conversation needs that; remove the line"
_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse(source: SourceLine, message: str, hint: str | None = None, column: int | None = None) -> NoReturn:
    """Raise a `ScriptError` with the file and line of `source`."""
    if source.index is not None:
        raise ScriptError(message, path=str(source), hint=hint)
    message = message if source.item is None else f"item {source.item}: {message}"
    raise ScriptError(message, path=shown_path(source.path), line=source.line, column=column, hint=hint)


def refuse_unknown_keys(
    keys: Iterable[str],
    known: AbstractSet[str],
    source: SourceLine,
    where: str = "",
    *,
    close_only: bool = False,
    hint: str = "",
) -> None:
    """Refuse the first unknown key, with similar known ones in the hint.

    Args:
        where: the object that has the keys, such as `messages[2]`.
        close_only: accept an unknown key unless it resembles a known one; for forms that other programs define.
        hint: the end of the hint if there are no similar keys.
    """
    for key in keys:
        if key in known:
            continue
        matches = get_close_matches(key, sorted(known), n=3, cutoff=0.85 if close_only else 0.6)
        if close_only and not (matches and len(key) > 2):
            continue
        prefix = f"{where}: " if where else ""
        allowed = "; ".join(filter(None, (f"allowed: {', '.join(sorted(known))}", hint)))
        similar = f"did you mean {' or '.join(map(repr, matches))}?" if matches else allowed
        refuse(source, f"{prefix}unknown key {shown(key)}", similar)


def parse_line(text: str, source: SourceLine) -> Mapping[str, Any]:
    """The JSON object of one line.

    Raises:
        ScriptError: the line is not a JSON object, is nested deeper than `MAX_DEPTH`, or has content on which JSON
            readers disagree: duplicate keys, NaN, numbers out of a float's range, lone surrogates.
    """
    return _object_of_line(text, source, parse_value)


def parse_columns(text: str, source: SourceLine) -> Mapping[str, Any]:
    """The JSON object of one line of a data set, as `load_with_faults` reads it.

    Raises:
        ScriptError: the line is not a JSON object.
    """
    return _object_of_line(text, source, load_with_faults)


def _object_of_line(text: str, source: SourceLine, load: Callable[[str], Any]) -> Mapping[str, Any]:
    try:
        value = load(text)
        if is_object(value):
            return value
    except json.JSONDecodeError as error:
        hint = "every line must be one whole JSON object; control characters in strings must be escaped"
        if text.strip() in ("{", "["):
            hint = "it seems to be indented JSON; write one conversation a line (`jq -c . FILE`, `jq -c '.[]' FILE`)"
        refuse(source, f"not JSON: {error.msg}", hint, error.colno)
    except NotStrictError as error:
        refuse(source, str(error), error.hint)
    except RecursionError:
        refuse(source, *TOO_DEEP)
    hint = "write one conversation a line (`jq -c '.[]' FILE` does that to an array)" if is_array(value) else None
    refuse(source, f"must be a JSON object, got {type_name(value)}", hint)


def parse_value(text: str) -> Any:
    """The JSON value of `text`, without the content that `parse_line` refuses.

    Raises:
        ValueError: the text is not JSON (`json.JSONDecodeError`), or has such content (`NotStrictError`).
        RecursionError: the text is nested too deeply for the parser.
    """
    value = load_strictly(text, _bounded_int)
    check_value(value)
    return value


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is an object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether a JSON value is an array."""
    return isinstance(value, list)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number. A boolean is not, although Python's `bool` is a subclass of `int`."""
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPE_NAMES: Mapping[type, str] = {
    bool: "a boolean",
    str: "a string",
    dict: "an object",
    list: "an array",
    type(None): "null",
}


def type_name(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    return _TYPE_NAMES.get(type(value), "a number")


def shown(value: object, limit: int = 60) -> str:
    """The representation of a value, shortened for a message."""
    return shortened(repr(value[: limit + 1] if isinstance(value, str) else value), limit)


class NotStrictError(ValueError):
    """JSON that Python's reader accepts and `load_strictly` refuses; `hint` is the way out."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint


def load_strictly(text: str, parse_int: Callable[[str], float]) -> Any:
    """The JSON value of `text`, without duplicate keys, NaN and numbers out of a float's range.

    Args:
        parse_int: reads the digits of a whole number, which Python would read at any size.

    Raises:
        ValueError: the text is not JSON (`json.JSONDecodeError`), or not strict (`NotStrictError`).
        RecursionError: the text is nested too deeply.
    """
    return json.loads(
        text,
        object_pairs_hook=_unique_keys,
        parse_constant=_refuse_constant,
        parse_float=finite_float,
        parse_int=parse_int,
    )


def load_with_faults(text: str) -> Any:
    """The JSON value of `text`, with a `NotStrictError` in place of each value that `load_strictly` refuses.

    A repeated key has one as its value. `check_value` raises those inside a value.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: the text is nested too deeply for the parser.
    """
    return json.loads(
        text,
        object_pairs_hook=_keys_with_faults,
        parse_constant=_or_fault(_refuse_constant),
        parse_float=_or_fault(finite_float),
        parse_int=_or_fault(_bounded_int),
    )


def _or_fault(parse: Callable[[str], float]) -> Callable[[str], float | NotStrictError]:
    def parse_or_fault(text: str) -> float | NotStrictError:
        try:
            return parse(text)
        except NotStrictError as error:
            return error

    return parse_or_fault


def _keys_with_faults(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        values |= {key: _twice(key) for key, number in Counter(key for key, _ in pairs).items() if number > 1}
    return values


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        [(duplicate, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise _twice(duplicate)
    return values


def _twice(key: str) -> NotStrictError:
    return NotStrictError(f"the key {shown(key)} is repeated in one object", "keep one of the two")


def _refuse_constant(name: str) -> NoReturn:
    raise NotStrictError(f"{name} is not a JSON number", "write a finite number, or null")


def finite_float(digits: str) -> float:
    """The number that JSON writes with `digits`; raises `NotStrictError` beyond a float's range."""
    number = float(digits)
    if not math.isfinite(number):
        quoted = shown(digits)
        problem = f"the number {quoted.strip(quoted[0])} is out of range"
        raise NotStrictError(problem, "write a number below 1e308")
    return number


def _bounded_int(digits: str) -> int:
    if len(digits) > 100:
        raise NotStrictError(f"a number with {len(digits)} digits is out of range", "write it as a string")
    return int(digits)


def check_value(value: Any) -> None:
    """Raise `NotStrictError` for an unpaired surrogate, nesting deeper than `MAX_DEPTH`, or a fault in the value."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        next_level: list[Any] = []
        for item in level:
            if is_object(item):
                next_level += (*item.keys(), *item.values())
            elif is_array(item):
                next_level += item
            elif isinstance(item, NotStrictError):
                raise item
            elif isinstance(item, str) and not item.isascii() and (match := _SURROGATE.search(item)):
                message = f"unpaired surrogate, \\u{ord(match[0]):04x}"
                raise NotStrictError(message, "write the whole character, or remove it")
        if not next_level:
            return
        level = next_level
    raise NotStrictError(*TOO_DEEP)
