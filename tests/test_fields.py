"""Reading of JSON values into dataclasses: what is refused, and what a message says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rwkvbatch.fields import MAX_COUNT, Count, Flag, Items, Number, Seed, Share, Size, read_record


@dataclass(frozen=True)
class Inner:
    size: Size


@dataclass(frozen=True)
class Outer:
    count: Count
    seed: Seed = 0
    number: Number | None = None
    share: Share = 0.0
    flag: Flag = False
    inner: Items[Inner] = field(default=())
    names: list[str] = field(default_factory=list[str])


def test_values_of_the_declared_types_are_read_and_unknown_keys_are_ignored() -> None:
    values = {"count": MAX_COUNT, "seed": 2**64 - 1, "number": 3, "inner": [{"size": 1}, {"size": 2}], "new": []}
    assert read_record(Outer, values) == Outer(MAX_COUNT, 2**64 - 1, 3.0, inner=(Inner(1), Inner(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"count": MAX_COUNT + 1}, f"count must be at most {MAX_COUNT}, got {MAX_COUNT + 1}"),
        ({"count": True}, "count must be an integer, got true"),
        ({"count": 1.0}, "count must be an integer, got 1.0"),
        ({"seed": 2**64}, f"seed must be at most {2**64 - 1}, got {2**64}"),
        ({"number": "1"}, 'number must be a number, got "1"'),
        ({"number": float("nan")}, "number must be a finite number, got NaN"),
        ({"number": float("inf")}, "number must be a finite number, got Infinity"),
        ({"number": 1e301}, "number must be at most 1e+300, got 1e+301"),
        ({"share": 1.5}, "share must be at most 1.0, got 1.5"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"inner": {}}, "inner must be an array, got {}"),
        ({"names": 5}, "names must be an array, got 5"),
        ({"inner": [{"size": 1}, 5]}, "inner.1 must be an object, got 5"),
        ({"inner": [{}]}, "inner.0.size is missing"),
        ({"inner": [{"size": 0}]}, "inner.0.size must be at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_keys_and_what_it_must_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared below)
        read_record(Outer, {"count": 1, **change})
    assert str(caught.value) == message


def test_values_that_are_no_object_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^it must be an object, got \[\]$"):
        read_record(Outer, [])


def test_reading_ends_at_the_first_wrong_item() -> None:
    values = [*([{"size": 1}] * 3), *([5] * 1000)]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Items[Inner]).validate_python(values)
    assert caught.value.error_count() == 1


def test_texts_may_have_lone_surrogates_and_keys_may_not() -> None:
    assert read_record(Outer, {"count": 1, "names": ["\ud800"]}).names == ["\ud800"]
    with pytest.raises(ValueError, match=r"^it has a key with a lone surrogate$"):
        read_record(Outer, {"count": 1, "\ud800": 1})
