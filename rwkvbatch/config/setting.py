"""`Settings`, the base of all records of settings, `setting`, which declares a field, and their error messages.

The records are frozen and refuse unknown keys and values out of range. `replace` makes a changed, validated copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rwkvbatch.config.names import ALIASES
from rwkvbatch.errors import UsageError, shown_value

_T = TypeVar("_T")
_Record = TypeVar("_Record", bound=BaseModel)
_LIMITS = ("ge", "gt", "le", "lt")


class Settings(BaseModel):
    """A frozen record that refuses unknown keys; invalid values raise `UsageError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Validate `values`; `where` names their origin (a file, an option) in the error.

        Raises:
            UsageError: the message names the key, the allowed values and the given value.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UsageError(
                explain(error, where, cls), hint="see `rwkvbatch run --help` for what is allowed"
            ) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes` applied and validated.

        Raises:
            UsageError: as `parse`.
        """
        return self.parse({**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def part(self, record: type[_Record]) -> _Record:
        """A `record` with its fields' values in this record."""
        return record(**{name: getattr(self, name) for name in record.model_fields})


Panel = Literal[
    "Model", "Endpoint", "Judge", "Sampling", "End of a reply", "Prompt", "What is replayed", "The run", "Output"
]
PANELS: tuple[Panel, ...] = get_args(Panel)
"""Groups of options in `--help`, in this order."""


@dataclass(frozen=True)
class Setting:
    """The option and the help of a setting, in addition to its name, type, limits and default.

    Attributes:
        help: the help text for `--help` and the documents; Rich markup.
        metavar: the placeholder of the value in `--help`.
        panel: the option's group in `--help`; None for settings without an option.
        flag: a one-letter option.
        allowed: the allowed values, for error messages; None derives them from the limits.
        split: whether an argument may hold several values, separated by commas.
        text: whether the value is any text, which may contain commas; several values need several options.
    """

    help: str
    metavar: str
    panel: Panel | None
    flag: str | None = None
    allowed: str | None = None
    split: bool = False
    text: bool = False


def setting(default: _T, help: str, metavar: str, panel: Panel | None, flag: str | None = None, **options: Any) -> _T:
    """A field of a record with its `Setting`.

    Args:
        options: `allowed`, `split` and `text` of `Setting`, and pydantic's limits (`ge`, ...).
    """
    attributes = {name: options.pop(name) for name in ("allowed", "split", "text") if name in options}
    declared = Setting(help, metavar, panel, flag, **attributes)
    field: Any = Field(default, **options)
    field.metadata.append(declared)
    if declared.text or metavar == "NAME":
        field.metadata.append(AfterValidator(_encodable))
    field.metadata.append(BeforeValidator(_no_bytes if isinstance(default, bool) else _no_boolean_or_bytes))
    return field


def _no_boolean_or_bytes(value: Any) -> Any:
    """Refuse true and false, which pydantic converts to 1 and 0, and bytes."""
    if any(isinstance(item, bool) for item in _items(value)):
        raise ValueError("must not be true or false")
    return _no_bytes(value)


def _no_bytes(value: Any) -> Any:
    """Refuse bytes, which pydantic decodes to text."""
    if any(isinstance(item, bytes | bytearray) for item in _items(value)):
        raise ValueError("must not be bytes")
    return value


def _items(value: object) -> Sequence[object]:
    """The items of a list; a value that is not a list is its only item."""
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else (value,)


def _encodable(value: Any) -> Any:
    """Refuse text with surrogates, which Python makes of options and variables that are not UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("must be UTF-8 text") from None
    return value


def allowed_values(record: type[BaseModel], key: str, message: str) -> str:
    """The allowed values of the setting `key`, such as `must be a number in [0, 1]`.

    Args:
        message: pydantic's message, which is used if the field has no limits.
    """
    if key not in record.model_fields:
        return as_requirement(message)
    field = record.model_fields[key]
    declared = next((item.allowed for item in field.metadata if isinstance(item, Setting)), None)
    annotation: Any = field.annotation
    kinds = {int: "a whole number", float: "a number"}
    kind = next((text for number, text in kinds.items() if annotation in (number, number | None)), None)
    if declared or kind is None:
        return declared or as_requirement(message)
    bounds = {limit: getattr(item, limit) for item in field.metadata for limit in _LIMITS if hasattr(item, limit)}
    lowest = bounds.get("ge", bounds.get("gt"))
    highest = bounds.get("le", bounds.get("lt"))
    if lowest is None:
        return f"must be {kind}"
    if highest is None:
        return f"must be {kind}, {'at least' if 'ge' in bounds else 'above'} {lowest}"
    return f"must be {kind} in {'[' if 'ge' in bounds else '('}{lowest}, {highest}{']' if 'le' in bounds else ')'}"


_SIZE = re.compile(r"\w+ should have (at (?:least|most) \d+ \w+)(?: after validation, not .*)?")


def as_requirement(message: str) -> str:
    """What a value must be, of a message of pydantic: `must be a valid string`, `must have at least 1 item`."""
    size = _SIZE.fullmatch(message)
    return f"must have {size[1]}" if size else message.removeprefix("Value error, ").replace("Input should", "must")


def explain(error: ValidationError, where: str, record: type[BaseModel]) -> str:
    """The message of a validation error of `record`: one problem per field, with the allowed values.

    Args:
        where: the origin of the values, put before each problem; may be empty.
    """
    problems: list[str] = []
    for item in error.errors():
        name = ".".join(map(str, item["loc"])) or "value"
        problem = f"unknown setting {name!r}" + (f", write {ALIASES[name]}" if name in ALIASES else "")
        if item["type"] != "extra_forbidden":
            requirement = allowed_values(record, str(item["loc"][0]), item["msg"]) if item["loc"] else item["msg"]
            problem = f"{name}: {requirement}, got {shown_value(item['input'])}"
        problems.append(f"{where}: {problem}" if where else problem)
    return "; ".join(problems)
