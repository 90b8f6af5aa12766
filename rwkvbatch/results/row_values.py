"""Validation of the types and ranges of a row's JSON values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple, cast

from rwkvbatch.errors import shown_json

SCORED = "scored"
"""The `finish_reason` of a row in which texts were scored and no reply was generated."""
FINISH_REASONS = frozenset({"stop", "eos", "length", "time", "error", SCORED})
MAX_COUNT = 2**31 - 1
"""The largest token id, turn and number of tokens."""


class _Kind(NamedTuple):
    """The allowed types and range of a value; `expected` describes both in messages."""

    types: frozenset[type]
    expected: str
    lowest: float | None = None
    highest: float = math.inf


class _Record:
    """The allowed values of an object, by key.

    If the types of all values are a combination that was accepted before, only the ranges are checked. Rows have few
    such combinations, and a comparison reads 100,000 rows.

    Args:
        prefix: precedes the keys in messages.
        optional: default values of keys that may be absent.
    """

    def __init__(self, prefix: str, kinds: Mapping[str, _Kind], optional: Mapping[str, Any] | None = None) -> None:
        self._prefix, self._kinds, self._optional = prefix, kinds, optional or {}
        # With a single key, `itemgetter` returns a value and no tuple.
        (only, *others) = kinds
        self._values: Callable[[Any], tuple[Any, ...]]
        self._values = itemgetter(*kinds) if others else lambda values: (values[only],)
        self._ranges = [(name, kind.lowest, kind.highest) for name, kind in kinds.items() if kind.lowest is not None]
        self._accepted_types: set[tuple[type, ...]] = set()

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises KeyError for a missing key, and TypeError for a wrong value."""
        try:
            types = tuple(map(type, self._values(values)))
        except KeyError:
            if not self._optional:
                raise
            values = {**self._optional, **values}
            types = tuple(map(type, self._values(values)))
        if types in self._accepted_types:
            for name, lowest, highest in self._ranges:
                value = values[name]
                if value is not None and not lowest <= value <= highest:
                    break
            else:
                return
        for name, (allowed, expected, lowest, highest) in self._kinds.items():
            value = values[name]
            if type(value) not in allowed or not (lowest is None or value is None or lowest <= value <= highest):
                raise TypeError(f"{self._prefix}{name} must be {expected}, got {shown_json(value)}")
        self._accepted_types.add(types)


_NULL = type(None)
_MOST = math.nextafter(1e300, 0.0)  # sums of squares of numbers beyond it would overflow
_TEXT = _Kind(frozenset({str}), "a string")
_TEXT_OR_NULL = _Kind(frozenset({str, _NULL}), "a string or null")
_COUNT = _Kind(frozenset({int}), f"an integer in 0 to {MAX_COUNT}", 0, MAX_COUNT)
_SIZE = _Kind(frozenset({int}), f"an integer in 1 to {MAX_COUNT}", 1, MAX_COUNT)
_COUNT_OR_NULL = _Kind(frozenset({int, _NULL}), f"{_COUNT.expected} or null", 0, MAX_COUNT)
_NUMBER = _Kind(frozenset({int, float}), "a finite number", -_MOST, _MOST)
_NUMBER_OR_NULL = _Kind(frozenset({int, float, _NULL}), "a finite number or null", -_MOST, _MOST)

_ROW = _Record(
    "",
    {
        **dict.fromkeys(("conversation", "cell", "prompt", "reply", "finish_reason"), _TEXT),
        **dict.fromkeys(("repeat", "turn"), _COUNT),
        **dict.fromkeys(("stopped_by", "error"), _TEXT_OR_NULL),
        "seed": _Kind(frozenset({int}), "an integer in 0 to 2^64 - 1", 0, 2**64 - 1),
    },
)
_PARTS: Mapping[str, _Record] = {
    name: _Record(f"{name}.", kinds)
    for name, kinds in (
        ("tokens", {"prompt": _COUNT, "reply": _COUNT}),
        ("logprob", {"mean": _NUMBER_OR_NULL, "sum": _NUMBER}),
        ("reference", {"text": _TEXT, "nll": _NUMBER, "matched": _NUMBER, "tokens": _COUNT}),
        (
            "timing",
            {
                **dict.fromkeys(("queued_s", "prefill_s", "first_token_s", "total_s", "tokens_per_s"), _NUMBER),
                "cached_tokens": _COUNT,
            },
        ),
    )
}
_CHECK = _Record(
    "checks.",
    {
        "kind": _TEXT,
        "passed": _Kind(frozenset({bool, _NULL}), "true, false or null"),
        "score": _Kind(frozenset({int, float, _NULL}), "a number in [0, 1] or null", 0, 1),
        "weight": _Kind(frozenset({int, float}), "a number that is not negative", 0, _MOST),
        "detail": _TEXT_OR_NULL,
    },
    {"weight": 1.0, "detail": None},
)
_JUDGE = _Record("checks.", {"judge": _TEXT})
_THINKING = _Record("tokens.", {"thinking": _COUNT})
_PLAIN_TEXT = _Record("reference.", {"logprob": _NUMBER, "bytes": _SIZE})
_CHOICE = _Record(
    "choices.scores.", {"name": _TEXT, "logprob": _NUMBER, **dict.fromkeys(("tokens", "bytes", "characters"), _SIZE)}
)
_PROBE = _Record("probe.", {**dict.fromkeys(("after", "number", "turns"), _COUNT), "tokens": _COUNT_OR_NULL})


def check_values(values: Mapping[str, Any]) -> None:
    """Check that the JSON values of a row have the types and ranges of `Row`; a checksum does not ensure that.

    Raises:
        KeyError, TypeError, ValueError: a key is missing or has another value than expected.
    """
    _ROW.check(values)
    if values["finish_reason"] not in FINISH_REASONS:
        expected = f"one of {', '.join(sorted(FINISH_REASONS))}"
        raise TypeError(f"finish_reason must be {expected}, got {shown_json(values['finish_reason'])}")
    for name, record in _PARTS.items():
        part = values[name]
        if part is None and name == "reference":
            continue
        record.check(_object(part, name))
    if "thinking" in values["tokens"]:
        _THINKING.check(values["tokens"])
    if (reference := values["reference"]) is not None and not {"logprob", "bytes"}.isdisjoint(reference):
        _PLAIN_TEXT.check(reference)
    for fields in _objects(values, "checks"):
        _CHECK.check(fields)
        if (fields["passed"] is None) != (fields["score"] is None):
            raise TypeError("checks must have both `passed` and `score`, or null for both")
        if "judge" in fields:
            _JUDGE.check(fields)
    if (choices := values.get("choices")) is not None:
        scores = _objects(_object(choices, "choices"), "scores", "choices.scores")
        if not scores:
            raise ValueError("choices.scores must have a score or more")
        for score in scores:
            _CHOICE.check(score)
    if (probe := values.get("probe")) is not None:
        _PROBE.check(_object(probe, "probe"))
    for tag in _array(values, "tags"):
        if not isinstance(tag, str):
            raise TypeError(f"tags must contain strings, got {shown_json(tag)}")
    ids = _array(values, "reply_ids")
    # The JSON of non-negative integers consists of digits and commas, so thousands of ids are checked in one pass of C.
    if ids and (_json(ids).translate(None, b"0123456789,") != b"[]" or max(ids) > MAX_COUNT):
        wrong = next(value for value in ids if type(value) is not int or not 0 <= value <= MAX_COUNT)
        raise ValueError(f"reply_ids must contain token ids, got {shown_json(wrong)}")


def _json(ids: list[Any]) -> bytes:
    """The ids as JSON; empty if one cannot be encoded."""
    import orjson

    try:
        return orjson.dumps(ids)
    except TypeError:  # an integer above 64 bits, or half a surrogate pair in a text
        return b""


def _array(values: Mapping[str, Any], key: str, name: str = "") -> list[Any]:
    value = values[key]
    if type(value) is not list:
        raise TypeError(f"{name or key} must be an array, got {shown_json(value)}")
    return cast("list[Any]", value)


def _object(value: Any, name: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError(f"{name} must be an object, got {shown_json(value)}")
    return cast("dict[str, Any]", value)


def _objects(values: Mapping[str, Any], key: str, name: str = "") -> list[dict[str, Any]]:
    """The objects in the array `values[key]`; `name` is the array's in messages, the key by default."""
    array = _array(values, key, name)
    for item in array:
        if type(item) is not dict:
            raise TypeError(f"{name or key} must contain objects, got {shown_json(item)}")
    return array
