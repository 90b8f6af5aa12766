"""The check `json`, which can validate by a JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Self

from rwkvbatch.deadline import deadline
from rwkvbatch.errors import MissingExtraError, parsing_problem
from rwkvbatch.script.checks.text import answer, compile_pattern, excerpt, flag, search, verdict, wrong
from rwkvbatch.script.lines import is_array, is_number, is_object
from rwkvbatch.script.records import ReplyFacts, Verdict
from rwkvbatch.script.tools import interoperable_json

MAX_REFERENCES = 10_000
DEADLINE_S = 5.0
"""Time limit for validating one reply."""

_REFUSED_KEYWORDS = frozenset(
    {"patternProperties", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"}
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^`]*)")
_INFO_STRINGS = ("", "json", "application/json")
"""Info strings of a fenced block of JSON, in lower case."""


@dataclass(frozen=True)
class JsonRule:
    """The answer is JSON (`interoperable_json`), or one fenced block of it, and valid by the schema if there is one.

    Attributes:
        prose: whether other text may precede and follow the fenced block.
    """

    options: ClassVar[frozenset[str]] = frozenset({"prose"})
    schema: Mapping[str, Any] | None
    prose: bool

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        prose = flag(options, "prose")
        if expected is True or expected == "valid":
            return cls(None, prose)
        if not is_object(expected):
            wrong('must be true, "valid" or a JSON Schema', expected)
        _check_schema(expected)
        return cls(expected, prose)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        blocks, has_prose = _fenced_blocks(text)
        if self.prose and len(blocks) > 1:
            return verdict(False, f"has {len(blocks)} fenced blocks of JSON, expected one: {excerpt(text)}")
        fenced = len(blocks) == 1 and (self.prose or not has_prose)
        try:
            value = interoperable_json(blocks[0] if fenced else text)
        except (ValueError, RecursionError) as error:
            problem = parsing_problem(error)
            if problem == str(error):
                return verdict(False, f"not JSON ({problem}): {excerpt(text)}")
            return Verdict(False, 0.0, f"gave up reading JSON: {problem}", undecided=True)
        if self.schema is None:
            return verdict(True, "")
        try:
            with deadline(DEADLINE_S):
                problem = _first_problem(self.schema, value)
        except (TimeoutError, RecursionError, MemoryError) as error:
            reason = str(error) or "it is nested too deeply"
            return Verdict(False, 0.0, f"gave up validating by the schema: {reason}", undecided=True)
        return verdict(problem is None, problem or "")


def _fenced_blocks(text: str) -> tuple[list[str], bool]:
    """The contents of the fenced blocks of JSON, and whether there is other text.

    Source: https://spec.commonmark.org/0.31.2/#fenced-code-blocks. An unclosed block counts as other text.
    """
    blocks: list[str] = []
    has_prose = False
    block_lines: list[str] | None = None
    fence, is_json = "", False
    for line in text.replace("\r\n", "\n").split("\n"):
        match = _FENCE.fullmatch(line)
        if block_lines is None:
            if match is None:
                has_prose = has_prose or bool(line.strip())
                continue
            fence, block_lines = match[1], []
            is_json = match[2].strip().lower() in _INFO_STRINGS
        elif match is not None and match[1].startswith(fence) and not match[2].strip():
            if is_json:
                blocks.append("\n".join(block_lines))
            has_prose, block_lines = has_prose or not is_json, None
        else:
            block_lines.append(line)
    return blocks, has_prose or block_lines is not None


def _check_schema(schema: Mapping[str, Any]) -> None:
    """Raise `WrongValueError` for a schema that is invalid or uses what checks do not support."""
    library = _library()
    if refused := next((key for key, _ in _keywords(schema) if key in _REFUSED_KEYWORDS), None):
        wrong(f"is a JSON Schema with {refused!r}, which checks cannot use", schema)
    try:
        with deadline(DEADLINE_S):
            library.validators.validator_for(schema, default=library.Draft202012Validator).check_schema(schema)
    except library.exceptions.SchemaError as error:
        wrong(f"is not a JSON Schema ({error.message})", schema)
    except TimeoutError as error:
        wrong(f"is a JSON Schema that {error} to check", schema)
    for pattern in _texts(schema, "pattern"):
        try:
            compile_pattern(pattern)
        except ValueError as error:
            wrong(f"is a JSON Schema with a wrong pattern ({error})", pattern)
    for reference in _texts(schema, "$ref"):
        if not reference.startswith("#"):
            wrong(f"is a JSON Schema that refers to {reference!r}; references must stay inside the schema", schema)
    for name in _texts(schema, "format"):
        if name not in FORMATS:
            wrong(f"is a JSON Schema with the format {name!r}, which is not checked; known: {', '.join(FORMATS)}", name)


def _first_problem(schema: Mapping[str, Any], value: Any) -> str | None:
    """A description of the first violation of `schema` by `value`; None if it is valid.

    Raises:
        TimeoutError: too many references were followed, or a pattern took too long.
    """
    library = _library()
    base = library.validators.validator_for(schema, default=library.Draft202012Validator)
    num_followed = 0

    # Keywords with limits of time, and with exact arithmetic instead of floats.

    def follow_reference(validator: Any, reference: Any, instance: Any, subschema: Any) -> Iterator[Any]:
        nonlocal num_followed
        num_followed += 1
        if num_followed > MAX_REFERENCES:
            raise TimeoutError(f"it follows more than {MAX_REFERENCES:,} references")
        yield from base.VALIDATORS["$ref"](validator, reference, instance, subschema)

    def check_pattern(validator: Any, pattern: Any, instance: Any, subschema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not search(compile_pattern(pattern), instance):
            yield library.ValidationError(f"{excerpt(instance)} does not match {pattern!r}")

    def check_unique(validator: Any, must_be_unique: Any, instance: Any, subschema: Any) -> Iterator[Any]:
        if must_be_unique and is_array(instance) and len({hashable(item) for item in instance}) < len(instance):
            yield library.ValidationError("has two equal items, and they must be unique")

    def check_multiple(validator: Any, divisor: Any, instance: Any, subschema: Any) -> Iterator[Any]:
        if is_number(instance) and (_exact(instance) / _exact(divisor)).denominator != 1:
            yield library.ValidationError(f"{instance!r} is not a multiple of {divisor!r}")

    def check_format(validator: Any, name: Any, instance: Any, subschema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not _has_format(name, instance):
            yield library.ValidationError(f"{excerpt(instance)} is not a {name!r}")

    keywords = {
        "$ref": follow_reference,
        "pattern": check_pattern,
        "uniqueItems": check_unique,
        "multipleOf": check_multiple,
        "format": check_format,
    }
    limited = library.validators.extend(base, keywords)
    try:
        # With an empty registry, the library fetches no schemas.
        registry = import_module("referencing").Registry()
        error = next(limited(schema, registry=registry).iter_errors(value), None)
    except import_module("referencing.exceptions").Unresolvable as error:
        return f"the schema refers to something that is not in it: {error}"
    if error is None:
        return None
    return f"{error.json_path}: {error.message[:200]}"


def _exact(number: float) -> Fraction:
    """The decimal number as written, as a fraction: with floats, 19.99 is not a multiple of 0.01."""
    return Fraction(repr(number))


def hashable(value: Any) -> Any:
    """A hashable value that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    if is_object(value):
        return "object", frozenset((key, hashable(item)) for key, item in value.items())
    if is_array(value):
        return "array", tuple(hashable(item) for item in value)
    return type(value) is bool, value


_DATE = r"\d{4}-\d\d-\d\d"
_TIME = r"\d\d:\d\d:(?:\d\d)(?:\.\d+)?(?:[zZ]|[+-]\d\d:\d\d)"
FORMATS: Mapping[str, re.Pattern[str]] = {
    "date": re.compile(_DATE),
    "time": re.compile(_TIME),
    "date-time": re.compile(rf"{_DATE}[tT ]{_TIME}"),
    "email": re.compile(r"[^\s@<>(),;:\"\[\]\\]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"),
    "hostname": re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*"),
    "ipv4": re.compile(r"[\d.]+"),
    "ipv6": re.compile(r"[0-9A-Fa-f:.]+"),
    "uri": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[\w.~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", re.ASCII),
    "uuid": re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"),
    "regex": re.compile(r"(?s).*"),
}
"""The formats that are checked (JSON Schema Validation 2020-12, section 7.3); dates and addresses are parsed too."""


def _has_format(name: str, text: str) -> bool:
    if FORMATS[name].fullmatch(text) is None:
        return False
    try:
        match name:
            case "date":
                date.fromisoformat(text)
            case "time" | "date-time":
                clock = text if name == "time" else text[11:]
                if name == "date-time":
                    date.fromisoformat(text[:10])
                # A leap second is valid by RFC 3339, section 5.6, but Python's parser refuses it.
                hour, minute, second = int(clock[:2]), int(clock[3:5]), int(clock[6:8])
                offset = re.search(r"[+-](\d\d):(\d\d)$", clock)
                is_offset_valid = offset is None or (int(offset[1]) < 24 and int(offset[2]) < 60)
                is_second_valid = second < 60 or (second == 60 and minute == 59)
                return hour < 24 and minute < 60 and is_second_valid and is_offset_valid
            case "ipv4":
                IPv4Address(text)
            case "ipv6":
                IPv6Address(text)
            case "regex":
                compile_pattern(text)
            case _:
                pass
    except ValueError:
        return False
    return True


def _library() -> Any:
    try:
        import jsonschema
    except ImportError:
        raise MissingExtraError(
            "the check `json` with a schema needs the jsonschema library, which is not installed", extra="checks"
        ) from None
    return jsonschema


_DATA_KEYWORDS = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are data, not schemas."""
_SCHEMA_MAPS = frozenset(
    {"properties", "$defs", "definitions", "dependentSchemas", "dependencies", "patternProperties"}
)
"""Keywords whose values are objects of schemas by name."""


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """The keywords and their values of all schemas in `schema`, without data and names of properties."""
    if is_array(schema):
        for item in schema:
            yield from _keywords(item)
    elif is_object(schema):
        yield from schema.items()
        for key, value in schema.items():
            if key in _SCHEMA_MAPS and is_object(value):
                yield from _keywords(list(value.values()))
            elif key not in _DATA_KEYWORDS:
                yield from _keywords(value)


def _texts(schema: Any, key: str) -> Iterator[str]:
    """The texts that are values of the keyword `key`."""
    return (value for name, value in _keywords(schema) if name == key and isinstance(value, str))
