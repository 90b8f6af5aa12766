"""How a setting is declared: the base of the records of settings, what stands beside a field, and what an error says.

The records are frozen, refuse unknown keys and values out of range, and `replace` makes a changed, validated copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rwkvbatch.errors import UsageError

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
            UsageError: names the key, what was allowed and what was there.
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
        """The fields of `record` alone."""
        return record(**{name: getattr(self, name) for name in record.model_fields})


Panel = Literal[
    "Model", "Endpoint", "Judge", "Sampling", "End of a reply", "Prompt", "What is replayed", "The run", "Output"
]
PANELS: tuple[Panel, ...] = get_args(Panel)
"""Groups of options in `--help`, in their order."""


@dataclass(frozen=True)
class Setting:
    """How a setting is given and explained, besides its name, type, limits and default.

    Attributes:
        help: for `--help` and the documents; Rich markup.
        metavar: stands for the value.
        panel: the option's group in `--help`; None for what only the environment, files and the library give.
        flag: a one-letter option.
        allowed: what may be given, for errors; None says the limits.
        split: one word of the command line may hold several values, separated by commas.
        text: any text is a value, commas included; several values are several options.
    """

    help: str
    metavar: str
    panel: Panel | None
    flag: str | None = None
    allowed: str | None = None
    split: bool = False
    text: bool = False


def setting(default: _T, help: str, metavar: str, panel: Panel | None, flag: str | None = None, **more: Any) -> _T:
    """A field of a record with its `Setting`; `more`: `allowed`, `split`, `text`, and pydantic's limits (`ge`, ...)."""
    words = {name: more.pop(name) for name in ("allowed", "split", "text") if name in more}
    declared = Setting(help, metavar, panel, flag, **words)
    field: Any = Field(default, **more)
    field.metadata.append(declared)
    if declared.text or metavar == "NAME":
        field.metadata.append(AfterValidator(_encodable))
    if not isinstance(default, bool):
        field.metadata.append(BeforeValidator(_no_boolean))
    return field


def _no_boolean(value: Any) -> Any:
    """Refuses true and false, which pydantic takes for 1 and 0."""
    given: object = value
    items = cast("Sequence[object]", given) if isinstance(given, list | tuple) else (given,)
    if any(isinstance(item, bool) for item in items):
        raise ValueError("must not be true or false")
    return value


def _encodable(value: Any) -> Any:
    """Refuses text that no model can read: of an option or a variable that is not UTF-8, bytes become surrogates."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("must be UTF-8 text") from None
    return value


def allowed_values(record: type[BaseModel], key: str, message: str) -> str:
    """What the setting `key` may be: `must be a number in [0, 1]`; pydantic's `message` where no limits say it."""
    if key not in record.model_fields:
        return _in_words(message)
    field = record.model_fields[key]
    declared = next((item.allowed for item in field.metadata if isinstance(item, Setting)), None)
    annotation: Any = field.annotation
    kinds = {int: "a whole number", float: "a number"}
    kind = next((text for number, text in kinds.items() if annotation in (number, number | None)), None)
    if declared or kind is None:
        return declared or _in_words(message)
    bounds = {limit: getattr(item, limit) for item in field.metadata for limit in _LIMITS if hasattr(item, limit)}
    low = f"[{bounds['ge']}" if "ge" in bounds else f"({bounds['gt']}" if "gt" in bounds else ""
    high = f"{bounds['le']}]" if "le" in bounds else f"{bounds['lt']})" if "lt" in bounds else ""
    if low and high:
        return f"must be {kind} in {low}, {high}"
    return f"must be {kind}" + (f", {'at least' if 'ge' in bounds else 'above'} {low[1:]}" if low else "")


def _in_words(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "must")


def explain(error: ValidationError, where: str, record: type[BaseModel]) -> str:
    parts: list[str] = []
    for item in error.errors():
        name = ".".join(map(str, item["loc"])) or "value"
        problem = f"unknown setting {name!r}"
        if item["type"] != "extra_forbidden":
            words = allowed_values(record, str(item["loc"][0]), item["msg"]) if item["loc"] else item["msg"]
            problem = f"{name}: {words}, got {shown_value(item['input'])}"
        parts.append(f"{where}: {problem}" if where else problem)
    return "; ".join(parts)


def shown_value(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
