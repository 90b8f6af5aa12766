"""Objects of a line with known keys and types: pydantic models whose refusals name the place in the file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from rwkvbatch.script.records import SourceLine
from rwkvbatch.script.source import is_object, refuse, refuse_unknown_keys, shown, type_name

MAX_ID_LENGTH = 200


class Shape(BaseModel):
    """An object as it stands in a line. Types are strict: a number is no string.

    `lenient` shapes belong to forms that others define: their unknown keys are ignored, unless they look like a known
    one misspelt.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    lenient: ClassVar[bool] = False
    also_known: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    @cache
    def known_keys(cls) -> frozenset[str]:
        return cls.also_known.union(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def read(cls, value: Any, source: SourceLine, where: str = "") -> Self:
        """`value` as this shape.

        Raises:
            ScriptError: not an object, an unknown key, or a value of a wrong type.
        """
        if not is_object(value):
            refuse(source, f"{where}: must be an object, got {type_name(value)}")
        refuse_unknown_keys(value, cls.known_keys(), source, where, close_only=cls.lenient)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            path = [where] if where else []
            for part in first["loc"]:
                if isinstance(part, int) and path:
                    path[-1] += f"[{part}]"
                else:
                    path.append(str(part))
            message = f"{'.'.join(path)}: {_reason(first['type'], first['msg'])}"
            refuse(source, message + ("" if first["type"] == "missing" else f", got {shown(first['input'])}"))


def _reason(kind: str, message: str) -> str:
    reasons = {
        "missing": "is missing",
        "string_type": "must be a string",
        "list_type": "must be an array",
        "dict_type": "must be an object",
    }
    return reasons.get(kind, message[:1].lower() + message[1:])


def read_id(given: str | None, default: str, source: SourceLine, key: str = "id") -> str:
    """The id of a conversation.

    Raises:
        ScriptError: it is empty, too long, or holds characters that cannot be printed. Ids are never used as file
            names, so `/` and `..` are as good as anything.
    """
    if given is None:
        return default
    if not 0 < len(given) <= MAX_ID_LENGTH or not given.isprintable() or given != given.strip():
        hint = f"an id has 1 to {MAX_ID_LENGTH} printable characters and no space at its ends"
        refuse(source, f"{key}: cannot be an id: {shown(given)}", hint)
    return given


def read_tags(given: Sequence[str], source: SourceLine) -> tuple[str, ...]:
    """Tags without repetition, in their order.

    Raises:
        ScriptError: as for an id.
    """
    return tuple(dict.fromkeys(read_id(tag, "", source, "tags") for tag in given))
