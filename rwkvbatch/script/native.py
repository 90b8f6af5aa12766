"""The native form of a conversation, and the `defaults` line that a file may begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvbatch.config import ALIASES, Sampling, Settings, Stopping, with_full_names
from rwkvbatch.errors import UsageError
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.records import Check, Conversation, SourceLine, Turn
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


SEED = "seed"
_RECORDS: tuple[type[Settings], ...] = (Sampling, Stopping)
PARAM_NAMES = frozenset({SEED, *ALIASES}.union(*(record.model_fields for record in _RECORDS)))

_OPENAI_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": SEED,
    "stop": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
OPENAI_PARAM_NAMES = frozenset(_OPENAI_NAMES)


def parse_params(raw: Mapping[str, Any], source: SourceLine, where: str = "params") -> Mapping[str, Any]:
    """Validated overrides, by the names of `config.Sampling` and `config.Stopping` (short names too), and `seed`.

    Raises:
        ScriptError: an unknown name, or a value that the setting cannot have.
    """
    refuse_unknown_keys(raw, PARAM_NAMES, source, where)
    for name, value in raw.items():
        if isinstance(value, bool):
            refuse(source, f"{where}.{name}: must not be a boolean, got {str(value).lower()}")
        if name in ALIASES and ALIASES[name] in raw:
            refuse(source, f"{where}: {name} and {ALIASES[name]} are one setting", "leave one of the two out")
    raw = with_full_names(raw)
    found: dict[str, Any] = {}
    for record in _RECORDS:
        given = {name: value for name, value in raw.items() if name in record.model_fields}
        try:
            parsed = record.parse(given, where=where)
        except UsageError as error:
            refuse(source, error.message, "see `docs/scripts.md` for the settings a conversation may have")
        found |= {name: getattr(parsed, name) for name in given}
    if SEED in raw:
        seed = raw[SEED]
        if not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
            refuse(source, f"{where}.seed: must be an integer of at most 64 bits, got {shown(seed)}")
        found[SEED] = seed
    return found


def from_openai(raw: Mapping[str, Any], source: SourceLine, where: str) -> Mapping[str, Any]:
    """The sampling fields of an OpenAI request as `params`; null stands for a field that is not there.

    Raises:
        ScriptError: a value that the setting cannot have.
    """
    renamed: dict[str, Any] = {}
    for name, ours in _OPENAI_NAMES.items():
        value = raw.get(name)
        if value is not None:
            renamed[ours] = [value] if ours == "stop" and isinstance(value, str) else value
    return parse_params(renamed, source, where)


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of any form. `expect` and `params` are raw: they are parsed when the turn is complete.

    `where` names the message in its line, such as `messages[2]`.
    """

    role: Role
    content: str
    where: str
    expect: Any = None
    params: Any = None


@dataclass(frozen=True)
class Dialogue:
    """What a list of messages says."""

    system: str | None
    turns: tuple[Turn, ...]


def to_dialogue(messages: Sequence[Message], source: SourceLine) -> Dialogue:
    """Every user message becomes a turn; an assistant message right after it is the turn's reference.

    Two user messages in a row are two turns of which the first has no reference.

    Raises:
        ScriptError: no user message, a system message that is not the first, an assistant message with no user message
            before it, two assistant messages in a row, a wrong check, or one that needs a reference its turn lacks.
    """
    system: str | None = None
    turns: list[Turn] = []
    for at, message in enumerate(messages):
        if message.role != "user" and message.expect is not None:
            refuse(
                source,
                f"{message.where}: `expect` belongs to the user message that asks for the reply",
                "move it there",
            )
        if message.role != "user" and message.params is not None:
            refuse(
                source,
                f"{message.where}: `params` belong to the user message that asks for the reply",
                "move them there",
            )
        if message.role == "system":
            if at:
                refuse(
                    source,
                    f"{message.where}: a system message may only be the first",
                    "join it with the first message",
                )
            system = message.content
        elif message.role == "user":
            checks = () if message.expect is None else parse_checks(message.expect, source, f"{message.where}.expect")
            params: Mapping[str, Any] = (
                {} if message.params is None else parse_params(message.params, source, f"{message.where}.params")
            )
            turns.append(Turn(message.content, None, checks, params))
        elif not turns:
            hint = "begin with a user message, or give an initial exchange with `--prelude`"
            refuse(source, f"{message.where}: an assistant message needs a user message before it", hint)
        elif turns[-1].reference is not None:
            refuse(
                source,
                f"{message.where}: two assistant messages in a row",
                "join them, or put a user message between",
            )
        else:
            turns[-1] = replace(turns[-1], reference=message.content)
    if not turns:
        refuse(source, "has no user message, so there is nothing to reply to", "add a message of role user")
    for number, turn in enumerate(turns):
        for check in turn.checks:
            if check.needs_reference and turn.reference is None:
                hint = "add the assistant message that the reply is to be like"
                refuse(source, f"turn {number}: the check {check.kind!r} needs a reference reply", hint)
    return Dialogue(system, tuple(turns))


def with_checks(turns: Iterable[Turn], shared: Sequence[Check]) -> tuple[Turn, ...]:
    """The turns, each with the `shared` checks (of its conversation or file) behind its own.

    A shared check that compares with the reference is left out where a turn has none.
    """
    if not shared:
        return tuple(turns)
    return tuple(
        replace(
            turn,
            checks=(
                *turn.checks,
                *(c for c in shared if turn.reference is not None or not c.needs_reference),
            ),
        )
        for turn in turns
    )


class _Message(Shape):
    role: Literal["system", "user", "assistant"]
    content: str
    expect: Any = None
    params: dict[str, Any] | None = None


class _Conversation(Shape):
    messages: list[Any]
    id: str | None = None
    tags: list[str] = Field(default_factory=list[str])
    params: dict[str, Any] = Field(default_factory=dict[str, Any])
    expect: Any = None


class _Defaults(Shape):
    tags: list[str] = Field(default_factory=list[str])
    params: dict[str, Any] = Field(default_factory=dict[str, Any])
    expect: Any = None


class _DefaultsLine(Shape):
    defaults: dict[str, Any]


@dataclass(frozen=True)
class FileDefaults:
    """What the `defaults` line of a file gives to all its conversations."""

    tags: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checks: tuple[Check, ...] = ()

    def given_to(self, conversation: Conversation) -> Conversation:
        """The conversation with these tags and checks added, and these params where it has none of its own."""
        if not (self.tags or self.params or self.checks):
            return conversation
        return replace(
            conversation,
            turns=with_checks(conversation.turns, self.checks),
            tags=tuple(dict.fromkeys((*self.tags, *conversation.tags))),
            params={**self.params, **conversation.params},
        )


def read_defaults(line: Mapping[str, Any], source: SourceLine) -> FileDefaults:
    """The line `{"defaults": {"tags": [...], "params": {...}, "expect": [...]}}`.

    Raises:
        ScriptError: an unknown key or a wrong value.
    """
    raw = _Defaults.read(_DefaultsLine.read(line, source).defaults, source, "defaults")
    return FileDefaults(
        tags=read_tags(raw.tags, source),
        params=parse_params(raw.params, source, "defaults.params"),
        checks=() if raw.expect is None else parse_checks(raw.expect, source, "defaults.expect"),
    )


def read_native(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A line of the native form; see `docs/scripts.md`.

    Raises:
        ScriptError: an unknown key, a wrong value, or an order of messages that cannot be replayed.
    """
    raw = _Conversation.read(line, source)
    messages = [_read_message(item, source, f"messages[{at}]") for at, item in enumerate(raw.messages)]
    dialogue = to_dialogue(messages, source)
    shared = () if raw.expect is None else parse_checks(raw.expect, source, "expect")
    return Conversation(
        id=read_id(raw.id, default_id, source),
        system=dialogue.system,
        turns=with_checks(dialogue.turns, shared),
        tags=read_tags(raw.tags, source),
        params=parse_params(raw.params, source),
        source=source,
    )


def _read_message(item: Any, source: SourceLine, where: str) -> Message:
    raw = _Message.read(item, source, where)
    return Message(raw.role, raw.content, where, raw.expect, raw.params)
