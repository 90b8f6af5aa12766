"""The checks `json` (with JSON Schema), `similarity` (sacrebleu's chrF: character n-grams; Popović 2015), `choice`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from rwkvbatch.errors import MissingExtraError
from rwkvbatch.script.checks.text import answer, compile_pattern, excerpt, search, text_of, verdict, wrong
from rwkvbatch.script.choices import NORMALIZE, Normalize
from rwkvbatch.script.records import ReplyFacts, Verdict, is_array, is_number, is_object

MAX_REFERENCES = 10_000
_REFUSED_KEYWORDS = frozenset(
    {"patternProperties", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"}
)
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL)
_MAX_JSON_DEPTH = 200


@dataclass(frozen=True)
class JsonRule:
    """The answer, or the fenced block that it consists of, is JSON, and valid by the schema if there is one."""

    options: ClassVar[frozenset[str]] = frozenset()
    schema: Mapping[str, Any] | None

    @classmethod
    def parse(cls, expected: Any, options: Mapping[str, Any]) -> Self:
        if expected is True or expected == "valid":
            return cls(None)
        if not is_object(expected):
            wrong('must be true, "valid" or a JSON Schema', expected)
        _check_schema(expected)
        return cls(expected)

    def judge(self, facts: ReplyFacts) -> Verdict:
        text = answer(facts)
        fenced = _FENCED.fullmatch(text)
        try:
            value = json.loads(fenced[1] if fenced else text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return verdict(False, f"not JSON ({error}): {excerpt(text)}")
        problem = None if self.schema is None else _first_problem(self.schema, value)
        return verdict(problem is None, problem or "")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_schema(schema: Mapping[str, Any]) -> None:
    library = _library()
    if found := next((key for key, _ in _items(schema) if key in _REFUSED_KEYWORDS), None):
        wrong(f"is a JSON Schema with {found!r}, which checks cannot use", schema)
    try:
        library.validators.validator_for(schema, default=library.Draft202012Validator).check_schema(schema)
    except library.exceptions.SchemaError as error:
        wrong(f"is not a JSON Schema ({error.message})", schema)
    for pattern in _texts(schema, "pattern"):
        try:
            compile_pattern(pattern)
        except ValueError as error:
            wrong(f"is a JSON Schema with a wrong pattern ({error})", pattern)
    for reference in _texts(schema, "$ref"):
        if not reference.startswith("#"):
            wrong(f"is a JSON Schema that refers to {reference!r}; references must stay inside the schema", schema)


def _first_problem(schema: Mapping[str, Any], value: Any) -> str | None:
    library = _library()
    base = library.validators.validator_for(schema, default=library.Draft202012Validator)
    followed = 0

    def by_reference(validator: Any, reference: Any, instance: Any, inside: Any) -> Iterator[Any]:
        nonlocal followed
        followed += 1
        if followed > MAX_REFERENCES:
            raise TimeoutError(f"gave up after {MAX_REFERENCES} references of the schema")
        yield from base.VALIDATORS["$ref"](validator, reference, instance, inside)

    def by_pattern(validator: Any, pattern: Any, instance: Any, inside: Any) -> Iterator[Any]:
        if isinstance(instance, str) and not search(compile_pattern(pattern), instance):
            yield library.ValidationError(f"{excerpt(instance)} does not match {pattern!r}")

    limited = library.validators.extend(base, {"$ref": by_reference, "pattern": by_pattern})
    try:
        # With an empty registry nothing is fetched.
        registry = import_module("referencing").Registry()
        error = next(limited(schema, registry=registry).iter_errors(value), None)
    except (RecursionError, TimeoutError) as error:
        return str(error) or "nested too deeply to be validated"
    except import_module("referencing.exceptions").Unresolvable as error:
        return f"the schema refers to something that is not in it: {error}"
    if error is None:
        return None
    return f"{error.json_path}: {error.message[:200]}"


def _library() -> Any:
    try:
        import jsonschema
    except ImportError:
        raise MissingExtraError(
            "the check `json` with a schema needs the jsonschema library, which is not installed", extra="checks"
        ) from None
    return jsonschema


def _items(schema: Any) -> Iterator[tuple[str, Any]]:
    """The keys and values of all objects in `schema`."""
    if is_object(schema):
        yield from schema.items()
    if is_object(schema) or is_array(schema):
        for item in schema.values() if is_object(schema) else schema:
            yield from _items(item)


def _texts(schema: Any, key: str) -> Iterator[str]:
    return (value for name, value in _items(schema) if name == key and isinstance(value, str))


MAX_COMPARED_CHARACTERS = 20_000


@dataclass(frozen=True)
class Similarity:
    """chrF of the answer and the reference, or the text `to`, is at least this, in [0, 1]; chrF is the score.

    The first `MAX_COMPARED_CHARACTERS` of both are compared.
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
        wanted = self.to if self.to is not None else facts.reference
        if wanted is None:
            return Verdict(False, 0.0, "the turn has no reference reply")
        text = answer(facts)
        found = _metric().sentence_score(text[:MAX_COMPARED_CHARACTERS], [wanted[:MAX_COMPARED_CHARACTERS]])
        score = min(1.0, max(0.0, float(found.score) / 100))
        passed = score >= self.at_least
        return Verdict(passed, score, None if passed else f"chrF {score:.3f}; got {excerpt(text)}")


@lru_cache(maxsize=1)
def _metric() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@dataclass(frozen=True)
class Chosen:
    """The likeliest of the turn's choices is the one of this name or index; the first of equally likely ones counts."""

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
        found, wanted = facts.choices.best(self.normalize).name, facts.choices.named(self.choice).name
        return verdict(found == wanted, f"chose {excerpt(found)}")
