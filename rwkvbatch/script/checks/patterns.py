"""Translates regular expressions of Python's `re` so that the `regex` library matches the same texts.

Unlike `re`, the `regex` library has a time limit, but its syntax differs: `{e}` is fuzzy matching, `[[:alpha:]]` a
class, and `\\w` includes combining marks. Therefore `re` parses a pattern, and its syntax tree is written in a form
that both libraries read in the same way: https://docs.python.org/3/library/re.html#regular-expression-syntax. The tree
comes from the standard library's private parser (`re._parser`, unchanged since Python 3.11).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_parser: Any = re._parser  # type: ignore[attr-defined]
_constants: Any = re._constants  # type: ignore[attr-defined]

# The characters that `str.isalnum`, `isdecimal` and `isspace` accept, which are those of `re`.
_SPACES = "".join(f"\\u{code:04x}" for code in range(0x10000) if chr(code).isspace())
_UNICODE = {"WORD": r"\p{L}\p{N}_", "DIGIT": r"\p{Nd}", "SPACE": _SPACES}
_ASCII = {"WORD": "a-zA-Z0-9_", "DIGIT": "0-9", "SPACE": r"\t\n\r\x0b\x0c\x20"}
_NON_BOUNDARY_IN_EMPTY = re.search(r"\B", "") is not None
"""Whether `\\B` matches in an empty text, as it does from Python 3.14 on."""

_SCOPED = re.IGNORECASE | re.MULTILINE | re.DOTALL | re.ASCII | re.UNICODE


_LETTERS_I = tuple(map(ord, "iIİı"))
"""The letters that `re` takes for each other if it ignores case, and that the `regex` library does not."""


def translate(pattern: str, *, ignore_case: bool = False) -> tuple[str, bool]:
    """`pattern` for the `regex` library, and whether case is ignored in all of it.

    Args:
        ignore_case: translate the pattern as with `re.IGNORECASE`.

    Raises:
        ValueError: `pattern` is not a pattern of `re`, or has a feature that cannot be translated.
        RecursionError: `pattern` is nested too deeply.
    """
    try:
        tree = _parser.parse(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise ValueError(str(error)) from None
    flags = re.RegexFlag(tree.state.flags)
    if flags & (re.VERBOSE | re.DEBUG):
        raise ValueError("the flag x (verbose) is not supported")
    if flags & re.ASCII and flags & re.IGNORECASE:
        raise ValueError("the flags a and i cannot be combined")
    return _sequence(tree, flags), bool(flags & re.IGNORECASE)


def compiled_size(pattern: str) -> int:
    """The number of nodes of `pattern` with its counted repeats expanded, as the `regex` library compiles it.

    Raises:
        ValueError, RecursionError: as `translate`.
    """
    try:
        return _size(_parser.parse(pattern))
    except re.error as error:
        raise ValueError(str(error)) from None


def _size(node: Any) -> int:
    if isinstance(node, _parser.SubPattern):
        return 1 + sum(_size(item) for item in node.data)
    if isinstance(node, tuple | list):
        items: list[Any] = list(node)  # pyright: ignore[reportUnknownArgumentType]
        if len(items) == 2 and str(items[0]).endswith("_REPEAT"):
            min_count, max_count, item = items[1]
            return max(1, min_count, 0 if max_count is _constants.MAXREPEAT else max_count) * _size(item)
        return 1 + sum(_size(item) for item in items)
    return 0


def _sequence(items: Iterable[Any], flags: re.RegexFlag) -> str:
    return "".join(_item(str(name), value, flags) for name, value in items)


def _literal(code: int) -> str:
    return f"\\U{code:08x}"


def _category(name: str, flags: re.RegexFlag) -> tuple[str, bool]:
    """The contents of a character class, and whether it is negated."""
    name = name.removeprefix("CATEGORY_")
    table: Mapping[str, str] = _ASCII if flags & re.ASCII else _UNICODE
    return table[name.removeprefix("NOT_")], name.startswith("NOT_")


def _class(items: list[Any], flags: re.RegexFlag) -> str:
    """A character class. It is written as alternatives if it has a negated category, which a class cannot contain."""
    is_negated = bool(items) and str(items[0][0]) == "NEGATE"
    members: list[str] = []
    alternatives: list[str] = []
    has_i = False
    for name, value in items[is_negated:]:
        match str(name):
            case "LITERAL":
                members.append(_literal(value))
                has_i = has_i or value in _LETTERS_I
            case "RANGE":
                members.append(f"{_literal(value[0])}-{_literal(value[1])}")
                low, high = value
                has_i = has_i or any(low <= code <= high for code in _LETTERS_I)
            case _:
                contents, is_negated_category = _category(str(value), flags)
                if is_negated_category:
                    alternatives.append(f"[^{contents}]")
                else:
                    members.append(contents)
    if has_i and flags & re.IGNORECASE:
        members.extend(map(_literal, _LETTERS_I))
    if members:
        alternatives.insert(0, f"[{''.join(members)}]")
    if not is_negated:
        return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"
    if len(alternatives) == 1 and members:
        return f"[^{''.join(members)}]"
    return f"(?:(?!{'|'.join(alternatives)})(?s:.))"


def _anchor(name: str, flags: re.RegexFlag) -> str:
    """An assertion about the position, such as `^` or `\\b`."""
    word = f"[{_category('WORD', flags)[0]}]"
    not_empty = "" if _NON_BOUNDARY_IN_EMPTY else r"(?!\A\Z)"
    anchors = {
        "AT_BEGINNING": "(?m:^)" if flags & re.MULTILINE else r"\A",
        "AT_BEGINNING_STRING": r"\A",
        "AT_END": r"(?=\n|\Z)" if flags & re.MULTILINE else r"(?=\n?\Z)",
        "AT_END_STRING": r"\Z",
        "AT_BOUNDARY": f"(?:(?<={word})(?!{word})|(?<!{word})(?={word}))",
        "AT_NON_BOUNDARY": f"(?:(?<={word})(?={word})|(?<!{word})(?!{word}){not_empty})",
    }
    return anchors[name]


def _item(name: str, value: Any, flags: re.RegexFlag) -> str:
    match name:
        case "LITERAL":
            return _class([(name, value)], flags) if value in _LETTERS_I else _literal(value)
        case "NOT_LITERAL":
            return _class([("NEGATE", None), ("LITERAL", value)], flags)
        case "ANY":
            return "(?s:.)" if flags & re.DOTALL else r"[^\n]"
        case "IN":
            return _class(value, flags)
        case "AT":
            return _anchor(str(value), flags)
        case "BRANCH":
            return f"(?:{'|'.join(_sequence(choice, flags) for choice in value[1])})"
        case "SUBPATTERN":
            group, added, removed, item = value
            return _group(group, added, removed, item, flags)
        case "ATOMIC_GROUP":
            return f"(?>{_sequence(value, flags)})"
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            min_count, max_count, item = value
            suffix = {"MAX_REPEAT": "", "MIN_REPEAT": "?", "POSSESSIVE_REPEAT": "+"}[name]
            counts = f"{min_count}," if max_count is _constants.MAXREPEAT else f"{min_count},{max_count}"
            return f"(?:{_sequence(item, flags)}){{{counts}}}{suffix}"
        case "ASSERT" | "ASSERT_NOT":
            direction, item = value
            mark = ("<" if direction < 0 else "") + ("=" if name == "ASSERT" else "!")
            return f"(?{mark}{_sequence(item, flags)})"
        case "GROUPREF":
            return f"(?:\\{value})"
        case "GROUPREF_EXISTS":
            group, yes, no = value
            return f"(?({group}){_sequence(yes, flags)}|{_sequence(no or (), flags)})"
        case "FAILURE":
            return r"(?!)"
        case _:
            raise ValueError(f"{name.lower()} is not supported")


def _group(group: int | None, added: int, removed: int, item: Any, flags: re.RegexFlag) -> str:
    """A group, in which the flags `added` are set and the flags `removed` are not."""
    inner = (flags | re.RegexFlag(added)) & ~re.RegexFlag(removed)
    if added & re.ASCII:
        inner &= ~re.UNICODE
    if added & re.UNICODE:
        inner &= ~re.ASCII
    if added & re.VERBOSE:
        raise ValueError("the flag x (verbose) is not supported")
    if (added | removed) & ~_SCOPED:
        raise ValueError("only the flags a, i, m, s and u may be given for a group")
    if inner & re.ASCII and inner & re.IGNORECASE:
        raise ValueError("the flags a and i cannot be combined")
    text = _sequence(item, inner)
    changed = (inner ^ flags) & re.IGNORECASE
    if changed:
        text = f"(?{'' if inner & re.IGNORECASE else '-'}i:{text})"
    return f"({text})" if group is not None else f"(?:{text})"
