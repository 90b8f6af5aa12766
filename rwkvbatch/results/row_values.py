"""Types and ranges of the JSON values of a row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, NamedTuple, cast

SCORED = "scored"
"""The `finish_reason` of a row whose texts were scored and no reply was generated."""
FINISH_REASONS = frozenset({"stop", "eos", "length", "time", "error", SCORED})
MAX_COUNT = 2**31 - 1
"""The largest token id, turn and number of tokens."""


class _Kind(NamedTuple):
    """What a value may be: its types, its range where it is a number, and both in words."""

    types: frozenset[type]
    expected: str
    lowest: float | None = None
    highest: float = math.inf


class _Record:
    """What the values of an object may be, by key.

    Where the types of all values are those of an object that was right, only their ranges are looked at: rows have few
    combinations of types, and a comparison reads 100,000 of them.

    Args:
        prefix: before the keys in messages. optional: the values of keys that may be absent.
    """

    def __init__(self, prefix: str, kinds: Mapping[str, _Kind], optional: Mapping[str, Any] | None = None) -> None:
        self._prefix, self._kinds, self._optional = prefix, kinds, optional or {}
        self._values = itemgetter(*kinds)
        self._ranges = [(name, kind.lowest, kind.highest) for name, kind in kinds.items() if kind.lowest is not None]
        self._right: set[tuple[type, ...]] = set()

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises KeyError or TypeError: a key is missing, or a value is wrong."""
        try:
            types = tuple(map(type, self._values(values)))
        except KeyError:
            if not self._optional:
                raise
            values = {**self._optional, **values}
            types = tuple(map(type, self._values(values)))
        if types in self._right:
            for name, lowest, highest in self._ranges:
                value = values[name]
                if value is not None and not lowest <= value <= highest:
                    break
            else:
                return
        for name, (allowed, expected, lowest, highest) in self._kinds.items():
            value = values[name]
            if type(value) not in allowed or not (lowest is None or value is None or lowest <= value <= highest):
                raise TypeError(f"{self._prefix}{name} must be {expected}, got {_shown(value)}")
        self._right.add(types)


_NULL = type(None)
_MOST = math.nextafter(1e300, 0.0)  # sums of squares of numbers beyond it would overflow
_TEXT = _Kind(frozenset({str}), "a string")
_TEXT_OR_NULL = _Kind(frozenset({str, _NULL}), "a string or null")
_COUNT = _Kind(frozenset({int}), f"an integer in 0 to {MAX_COUNT}", 0, MAX_COUNT)
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


def check_values(values: Mapping[str, Any]) -> None:
    """Raise unless the JSON values of a row have the types and ranges of `Row`: a checksum only says who wrote them.

    Raises:
        KeyError, TypeError, ValueError: which key has what, and what was expected.
    """
    _ROW.check(values)
    if values["finish_reason"] not in FINISH_REASONS:
        expected = f"one of {', '.join(sorted(FINISH_REASONS))}"
        raise TypeError(f"finish_reason must be {expected}, got {_shown(values['finish_reason'])}")
    for name, record in _PARTS.items():
        part = values[name]
        if part is None and name == "reference":
            continue
        if type(part) is not dict:
            raise TypeError(f"{name} must be an object, got {_shown(part)}")
        record.check(cast("dict[str, Any]", part))
    for check in _listed(values, "checks"):
        if type(check) is not dict:
            raise TypeError(f"checks must contain objects, got {_shown(check)}")
        own = cast("dict[str, Any]", check)
        _CHECK.check(own)
        if (own["passed"] is None) != (own["score"] is None):
            raise TypeError("checks must have both `passed` and `score`, or null for both")
        if "judge" in own:
            _JUDGE.check(own)
    for tag in _listed(values, "tags"):
        if not isinstance(tag, str):
            raise TypeError(f"tags must contain strings, got {_shown(tag)}")
    ids = _listed(values, "reply_ids")
    # Written as JSON, non-negative integers have digits alone: one pass in C over thousands of ids.
    if ids and (_written(ids).translate(None, b"0123456789,") != b"[]" or max(ids) > MAX_COUNT):
        wrong = next(value for value in ids if type(value) is not int or not 0 <= value <= MAX_COUNT)
        raise ValueError(f"reply_ids must contain token ids, got {_shown(wrong)}")


def _written(ids: list[Any]) -> bytes:
    import orjson

    try:
        return orjson.dumps(ids)
    except TypeError:  # an integer above 64 bits, or half a surrogate pair in a text
        return b""


def _listed(values: Mapping[str, Any], name: str) -> list[Any]:
    found = values[name]
    if type(found) is not list:
        raise TypeError(f"{name} must be an array, got {_shown(found)}")
    return cast("list[Any]", found)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
