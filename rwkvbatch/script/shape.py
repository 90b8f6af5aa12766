"""Readers that all forms of a script share: objects with known keys, ids, tags, and params."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from rwkvbatch.config import DialoguePrompt, Sampling, Stopping
from rwkvbatch.config.names import ALIASES
from rwkvbatch.config.setting import Settings
from rwkvbatch.errors import UsageError
from rwkvbatch.script.lines import SourceLine, is_object, refuse, refuse_unknown_keys, shown, type_name

MAX_ID_LENGTH = 200


class Shape(BaseModel):
    """A JSON object of a line, with strict types.

    Attributes:
        lenient: whether unknown keys are ignored unless they resemble a known one; for forms that others define.
        also_known: known keys that are not fields.
        hint: what to do about an unknown key that resembles no known one, after a list of these.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    lenient: ClassVar[bool] = False
    also_known: ClassVar[frozenset[str]] = frozenset()
    hint: ClassVar[str] = ""

    @classmethod
    @cache
    def known_keys(cls) -> frozenset[str]:
        return cls.also_known.union(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def read(cls, value: Any, source: SourceLine, where: str = "") -> Self:
        """`value` as this shape; raises `ScriptError`, in which `where` names the object."""
        if not is_object(value):
            refuse(source, f"{where}: must be an object, got {type_name(value)}")
        refuse_unknown_keys(value, cls.known_keys(), source, where, close_only=cls.lenient, hint=cls.hint)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            key = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            problem = _PROBLEMS.get(first["type"], first["msg"][:1].lower() + first["msg"][1:])
            got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
            refuse(source, f"{key.removeprefix('.')}: {problem}{got}")


_PROBLEMS = {
    "missing": "is missing",
    "string_type": "must be a string",
    "list_type": "must be an array",
    "dict_type": "must be an object",
}


_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _is_printable(character: str) -> bool:
    """Whether a character may be in an id: as `str.isprintable`, but also spaces of all widths and joiners.

    Bidirectional controls may not.
    """
    if character.isprintable():
        return True
    return unicodedata.category(character) in ("Zs", "Cf") and character not in _BIDI_CONTROLS


def read_id(raw: str | None, default: str, source: SourceLine, key: str = "id") -> str:
    """The id of a conversation, `default` for None. Ids are never file names, so `/` and `..` are allowed."""
    if raw is None:
        return default
    if not 0 < len(raw) <= MAX_ID_LENGTH or not all(map(_is_printable, raw)) or raw != raw.strip():
        hint = f"an id has 1 to {MAX_ID_LENGTH} printable characters and no space at its ends"
        refuse(source, f"{key}: cannot be an id: {shown(raw)}", hint)
    return raw


def read_tags(raw: Sequence[str], source: SourceLine) -> tuple[str, ...]:
    """The tags in order, without duplicates. The rules for ids apply."""
    return tuple(dict.fromkeys(read_id(tag, "", source, "tags") for tag in raw))


SEED = "seed"
_RECORDS: tuple[type[Settings], ...] = (Sampling, Stopping, DialoguePrompt)
SWITCHES = frozenset({"bos"})
"""Settings that may be given as true or false."""
PARAM_NAMES = frozenset({SEED, *ALIASES}.union(*(record.model_fields for record in _RECORDS)))


def parse_params(raw: Mapping[str, Any], source: SourceLine, where: str = "params") -> Mapping[str, Any]:
    """The validated params by full name: `seed`, and fields of `config.Sampling`, `Stopping` and `DialoguePrompt`."""
    refuse_unknown_keys(raw, PARAM_NAMES, source, where)
    for name, value in raw.items():
        if isinstance(value, bool) and name not in SWITCHES:
            refuse(source, f"{where}.{name}: must not be a boolean, got {str(value).lower()}")
        if name in ALIASES and ALIASES[name] in raw:
            refuse(source, f"{where}: {name} and {ALIASES[name]} are one setting", "leave one of the two out")
    raw = {ALIASES.get(name, name): value for name, value in raw.items()}
    params: dict[str, Any] = {}
    for record in _RECORDS:
        values = {name: value for name, value in raw.items() if name in record.model_fields}
        try:
            parsed = record.parse(values, where=where)
        except UsageError as error:
            refuse(source, error.message, "see `docs/scripts.md` for the settings a conversation may have")
        params |= {name: getattr(parsed, name) for name in values}
    if SEED in raw:
        seed = raw[SEED]
        if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
            refuse(source, f"{where}.seed: must be an integer of at most 64 bits, got {shown(seed)}")
        params[SEED] = seed
    return params
