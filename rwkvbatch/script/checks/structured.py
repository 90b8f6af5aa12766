"""The checks `json`, `similarity`, `choice` and `tool_call`.

`json` can validate by a JSON Schema; `similarity` is the chrF score (character n-grams, Popović 2015) of sacrebleu.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Self

from rwkvbatch.deadline import deadline
from rwkvbatch.errors import MissingExtraError, parsing_problem
from rwkvbatch.script.checks.text import answer, compile_pattern, excerpt, flag, search, text_of, verdict, wrong
from rwkvbatch.script.choices import NORMALIZE, Normalize
from rwkvbatch.script.lines import is_array, is_number, is_object
from rwkvbatch.script.records import ReplyFacts, Verdict
from rwkvbatch.script.tools import Call, calls_in, calls_text, interoperable_json

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
        if must_be_unique and is_array(instance) and len({_hashable(item) for item in instance}) < len(instance):
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


def _hashable(value: Any) -> Any:
    """A hashable value that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    if is_object(value):
        return "object", frozenset((key, _hashable(item)) for key, item in value.items())
    if is_array(value):
        return "array", tuple(_hashable(item) for item in value)
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


MAX_COMPARED_CHARACTERS = 20_000


@dataclass(frozen=True)
class Similarity:
    """The chrF score of the answer and a text is at least `at_least`, in [0, 1].

    The text is `to`, or the turn's reference if `to` is None. The first `MAX_COMPARED_CHARACTERS` of both are compared.
    """

    options: ClassVar[frozenset[str]] = frozenset({"to"})
    at_least: float
    to: str | None

    @property
    def needs_reference(self) -> bool:
        return self.to is None

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if not is_number(expected) or not 0 <= expected <= 1:
            wrong("must be a number in [0, 1]", expected)
        if find_spec("sacrebleu") is None:
            raise MissingExtraError(
                "the check `similarity` needs the sacrebleu library, which is not installed", extra="metrics"
            )
        return cls(float(expected), text_of(options["to"]) if "to" in options else None)

    def judge(self, facts: ReplyFacts) -> Verdict:
        reference = self.to if self.to is not None else facts.reference
        if reference is None:
            return Verdict(False, 0.0, "the turn has no reference reply", undecided=True)
        text = answer(facts)
        chrf = _metric().sentence_score(text[:MAX_COMPARED_CHARACTERS], [reference[:MAX_COMPARED_CHARACTERS]])
        score = min(1.0, max(0.0, float(chrf.score) / 100))
        passed = score >= self.at_least
        return Verdict(passed, score, None if passed else f"chrF {score:.3f}; got {excerpt(text)}")


@lru_cache(maxsize=1)
def _metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@dataclass(frozen=True)
class Chosen:
    """The likeliest of the turn's choices has this name or index; of equally likely choices, the first one counts."""

    options: ClassVar[frozenset[str]] = frozenset({"normalize"})
    choice: str | int
    normalize: Normalize

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if isinstance(expected, bool) or not isinstance(expected, str | int):
            wrong("must be the name of a choice, or its index from 0 up", expected)
        normalize = options.get("normalize", "none")
        if normalize not in NORMALIZE:
            wrong(f"must be one of {', '.join(NORMALIZE)}", normalize, key="normalize")
        return cls(expected, normalize)

    def judge(self, facts: ReplyFacts) -> Verdict:
        if facts.choices is None:
            return Verdict(False, 0.0, "the turn has no choices")
        if self.normalize not in facts.choices.measures:
            reason = "a row of an earlier version, which did not count the characters of choices; run it again"
            return Verdict(False, 0.0, reason, undecided=True)
        best, expected = facts.choices.best(self.normalize).name, facts.choices.named(self.choice).name
        return verdict(best == expected, f"chose {excerpt(best)}")


@dataclass(frozen=True)
class ToolCall:
    """The answer makes these calls, in any order: the same functions with equal arguments, compared as JSON values.

    Attributes:
        calls: the expected calls; None for those of the reference. If the arguments of a call are None, any match.
        allow_extra: whether a call may have further arguments.
    """

    options: ClassVar[frozenset[str]] = frozenset({"allow_extra"})
    calls: tuple[tuple[str, Mapping[str, Any] | None], ...] | None
    allow_extra: bool

    @property
    def needs_reference(self) -> bool:
        return self.calls is None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the expected functions."""
        return tuple(name for name, _ in self.calls or ())

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        allow_extra = flag(options, "allow_extra")
        if expected is True:
            return cls(None, allow_extra)
        items: list[Any] = expected if is_array(expected) else [expected]
        return cls(tuple(map(_expected_call, items)), allow_extra)

    def judge(self, facts: ReplyFacts) -> Verdict:
        expected = self.calls
        if expected is None:
            if facts.reference is None:
                return Verdict(False, 0.0, "the turn has no reference reply", undecided=True)
            reference = calls_in(answer(ReplyFacts(facts.reference, facts.finish_reason, 0)))
            if isinstance(reference, str):
                return Verdict(False, 0.0, f"the reference {reference}", undecided=True)
            expected = tuple((call.name, call.arguments) for call in reference)
        text = answer(facts)
        calls = calls_in(text)
        if isinstance(calls, str):
            return verdict(False, f"{calls}: {excerpt(text)}")
        unmatched = list(calls)
        # Expected calls with the most arguments are matched first, because fewer calls match them.
        for name, arguments in sorted(expected, key=lambda call: -1 if call[1] is None else -1 - len(call[1])):
            match = next((call for call in unmatched if self._matches(call, name, arguments)), None)
            if match is None:
                got = excerpt(calls_text(calls)) if calls else f"no call: {excerpt(text)}"
                return verdict(False, f"expected a call of {name!r}{_with(arguments)}; got {got}")
            unmatched.remove(match)
        return verdict(not unmatched, f"makes {len(calls)} calls, expected {len(expected)}" if unmatched else "")

    def _matches(self, call: Call, name: str, arguments: Mapping[str, Any] | None) -> bool:
        """Whether `call` is the expected call of `name` with `arguments`."""
        if call.name != name:
            return False
        if arguments is None:
            return True
        compared = {key: value for key, value in call.arguments.items() if key in arguments or not self.allow_extra}
        return _hashable(compared) == _hashable(arguments)


def _with(arguments: Mapping[str, Any] | None) -> str:
    return "" if arguments is None else f" with {excerpt(json.dumps(arguments, ensure_ascii=False))}"


def _expected_call(item: Any) -> tuple[str, Mapping[str, Any] | None]:
    name, arguments = item, None
    if is_object(item) and "name" in item and item.keys() <= {"name", "arguments"}:
        name, arguments = item["name"], item.get("arguments")
        if "arguments" in item and not is_object(arguments):
            wrong("must have arguments that are an object", arguments)
    if not isinstance(name, str) or not name.strip():
        hint = 'write "NAME", {"name": "...", "arguments": {...}}, an array of such, or true for those of the reference'
        wrong("must be a call, an array of calls, or true", item, hint=hint)
    return name, arguments
