"""`read_record`: reads JSON values into dataclasses, whose fields declare the types and limits of the values.

A dataclass declares them once, for type checkers and for `read_record`. Its constructor does not check them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import FailFast, Field, Strict, TypeAdapter, ValidationError

from rwkvbatch.errors import shown_json

MAX_COUNT = 2**31 - 1
"""The largest count, so that it fits every file and array."""
_MOST = 1e300  # sums of such numbers do not overflow

_Item = TypeVar("_Item")
_Record = TypeVar("_Record")

Count = Annotated[int, Strict(), Field(ge=0, le=MAX_COUNT)]
Size = Annotated[int, Strict(), Field(ge=1, le=MAX_COUNT)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**64 - 1)]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict(), Field(ge=-_MOST, le=_MOST, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Weight = Annotated[float, Strict(), Field(ge=0, le=_MOST)]
Items = Annotated[tuple[_Item, ...], FailFast()]
"""An array. Reading ends at its first wrong item: a damaged file may have millions."""


_EXPECTED: Mapping[str, str] = {
    "dataclass_type": "an object",
    "dict_type": "an object",
    "mapping_type": "an object",
    "tuple_type": "an array",
    "list_type": "an array",
    "too_short": "an array of at least {min_length}",
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""By the type of pydantic's error, what a value must be."""


def read_record(record: type[_Record], values: object) -> _Record:
    """The dataclass `record` with the JSON values of an object; unknown keys are ignored.

    Raises:
        ValueError: a value is missing or wrong. The text has its keys, what it must be and what it is.
    """
    try:
        return _adapter(record).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"])) or "it"
    match first["type"]:
        case "missing":
            raise ValueError(f"{name} is missing")
        case "string_unicode":  # of a key; texts may have them
            raise ValueError(f"{name} has a key with a lone surrogate")
        case "value_error":  # of a validator of this program
            raise ValueError(f"{name} {first['msg'].removeprefix('Value error, ')}")
        case kind:
            context: Mapping[str, Any] = first.get("ctx", {})
            expected = _EXPECTED.get(kind)
            must_be = first["msg"] if expected is None else f"must be {expected.format(**context)}"
            raise ValueError(f"{name} {must_be}, got {shown_json(first['input'])}")


@cache
def _adapter(record: type[_Record]) -> TypeAdapter[_Record]:
    return TypeAdapter(record)
