"""The native form of a conversation, read and written, the `defaults` line of a file, and what all forms share.

All readers raise `ScriptError`, which names file, line and key, for an unknown key or a wrong value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvbatch.config import ALIASES, DialoguePrompt, Sampling, Settings, Stopping, with_full_names
from rwkvbatch.errors import UsageError
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.records import (
    Check,
    Conversation,
    SourceLine,
    Turn,
    is_object,
    refuse,
    refuse_unknown_keys,
    shown,
    type_name,
)

MAX_ID_LENGTH = 200


class Shape(BaseModel):
    """A JSON object of a line, with strict types.

    `lenient` shapes belong to forms that others define: unknown keys are ignored unless they resemble a known one.
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
        """`value` as this shape."""
        if not is_object(value):
            refuse(source, f"{where}: must be an object, got {type_name(value)}")
        refuse_unknown_keys(value, cls.known_keys(), source, where, close_only=cls.lenient)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            reason = _REASONS.get(first["type"], first["msg"][:1].lower() + first["msg"][1:])
            got = "" if first["type"] == "missing" else f", got {shown(first['input'])}"
            refuse(source, f"{place.removeprefix('.')}: {reason}{got}")


_REASONS = {
    "missing": "is missing",
    "string_type": "must be a string",
    "list_type": "must be an array",
    "dict_type": "must be an object",
}


def read_id(given: str | None, default: str, source: SourceLine, key: str = "id") -> str:
    """The id of a conversation. Ids are never used as file names, so `/` and `..` are allowed."""
    if given is None:
        return default
    if not 0 < len(given) <= MAX_ID_LENGTH or not given.isprintable() or given != given.strip():
        hint = f"an id has 1 to {MAX_ID_LENGTH} printable characters and no space at its ends"
        refuse(source, f"{key}: cannot be an id: {shown(given)}", hint)
    return given


def read_tags(given: Sequence[str], source: SourceLine) -> tuple[str, ...]:
    """Tags without repetition, in their order; the same texts as ids."""
    return tuple(dict.fromkeys(read_id(tag, "", source, "tags") for tag in given))


SEED = "seed"
_RECORDS: tuple[type[Settings], ...] = (Sampling, Stopping, DialoguePrompt)
SWITCHES = frozenset({"bos"})
"""Settings that may be given as true or false."""
PARAM_NAMES = frozenset({SEED, *ALIASES}.union(*(record.model_fields for record in _RECORDS)))


def parse_params(raw: Mapping[str, Any], source: SourceLine, where: str = "params") -> Mapping[str, Any]:
    """Validated overrides: fields of `config.Sampling`, `Stopping` and `DialoguePrompt`, by any name, and `seed`."""
    refuse_unknown_keys(raw, PARAM_NAMES, source, where)
    for name, value in raw.items():
        if isinstance(value, bool) and name not in SWITCHES:
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


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of any form; `expect` and `params` are not parsed yet. `reply_prefix` is one of the params.

    `where` names the message in its line, such as `messages[2]`.
    """

    role: Role
    content: str
    where: str
    expect: Any = None
    params: Mapping[str, Any] | None = None
    reply_prefix: str | None = None


OF_THE_REPLY = frozenset({"expect", "params", "reply_prefix"})
"""Keys of a user message that are about the reply that it asks for."""


def to_turns(messages: Sequence[Message], source: SourceLine) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message, if any, and the turns.

    Every user message begins a turn; an assistant message right after it is the turn's reference. Of two user messages
    in a row the first is a turn without a reference.
    """
    system: str | None = None
    turns: list[Turn] = []
    for at, message in enumerate(messages):
        where = message.where
        if message.role != "user":
            for key in sorted(OF_THE_REPLY):
                if getattr(message, key) is not None:
                    refuse(source, f"{where}: `{key}` must be in the user message that asks for the reply", "move it")
        if message.role == "system":
            if at:
                refuse(source, f"{where}: a system message may only be the first", "join it with the first message")
            system = message.content
        elif message.role == "user":
            checks = () if message.expect is None else parse_checks(message.expect, source, f"{where}.expect")
            params = _turn_params(message, source)
            turns.append(Turn(message.content, None, checks, params))
        elif not turns:
            hint = "begin with a user message, or give an initial exchange with `--prelude`"
            refuse(source, f"{where}: an assistant message needs a user message before it", hint)
        elif turns[-1].reference is not None:
            refuse(source, f"{where}: two assistant messages in a row", "join them, or put a user message between")
        else:
            turns[-1] = replace(turns[-1], reference=message.content)
    if not turns:
        refuse(source, "has no user message, so there is nothing to reply to", "add a message of role user")
    for number, turn in enumerate(turns):
        for check in turn.checks:
            if check.needs_reference and turn.reference is None:
                hint = "add the assistant message that the reply is compared with"
                refuse(source, f"turn {number}: the check {check.kind!r} needs a reference reply", hint)
    return system, tuple(turns)


def _turn_params(message: Message, source: SourceLine) -> Mapping[str, Any]:
    """The params of the reply that a user message asks for, its `reply_prefix` among them."""
    where = f"{message.where}.params"
    params = parse_params(message.params or {}, source, where)
    if "bos" in params:
        refuse(source, f"{where}.bos: token 0 is read before the conversation", "move it to the conversation's params")
    if message.reply_prefix is None:
        return params
    if "reply_prefix" in params:
        refuse(source, f"{message.where}: has reply_prefix beside its content and in its params", "keep one of the two")
    return {**params, "reply_prefix": message.reply_prefix}


@dataclass(frozen=True)
class Additions:
    """Tags, params and checks that a line adds to a conversation or to all conversations of its file."""

    tags: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checks: tuple[Check, ...] = ()

    def apply(self, conversation: Conversation) -> Conversation:
        """The conversation with these tags first, these params unless it has its own, and these checks after its own.

        Turns without a reference do not get checks that compare with it.
        """
        turns: list[Turn] = []
        for turn in conversation.turns:
            added = [check for check in self.checks if turn.reference is not None or not check.needs_reference]
            turns.append(replace(turn, checks=(*turn.checks, *added)))
        return replace(
            conversation,
            turns=tuple(turns),
            tags=tuple(dict.fromkeys((*self.tags, *conversation.tags))),
            params={**self.params, **conversation.params},
        )


class _Message(Shape):
    role: Role
    content: str
    expect: Any = None
    params: dict[str, Any] | None = None
    reply_prefix: str | None = None


class _Additions(Shape):
    tags: list[str] = Field(default_factory=list[str])
    params: dict[str, Any] = Field(default_factory=dict[str, Any])
    expect: Any = None

    def parsed(self, source: SourceLine, prefix: str = "") -> Additions:
        checks = () if self.expect is None else parse_checks(self.expect, source, f"{prefix}expect")
        return Additions(read_tags(self.tags, source), parse_params(self.params, source, f"{prefix}params"), checks)


class _Conversation(_Additions):
    messages: list[Any]
    id: str | None = None


class _DefaultsLine(Shape):
    defaults: dict[str, Any]


def read_defaults(line: Mapping[str, Any], source: SourceLine) -> Additions:
    """The line `{"defaults": {"tags": [...], "params": {...}, "expect": [...]}}`."""
    return _Additions.read(_DefaultsLine.read(line, source).defaults, source, "defaults").parsed(source, "defaults.")


def read_native(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A line of the native form; see `docs/scripts.md`."""
    raw = _Conversation.read(line, source)
    messages: list[Message] = []
    for at, item in enumerate(raw.messages):
        one = _Message.read(item, source, f"messages[{at}]")
        messages.append(Message(one.role, one.content, f"messages[{at}]", one.expect, one.params, one.reply_prefix))
    bare = Conversation(read_id(raw.id, default_id, source), *to_turns(messages, source), (), {}, source)
    return raw.parsed(source).apply(bare)


def native_record(conversation: Conversation) -> dict[str, Any]:
    """The conversation as a line of the native form, of which `read_native` makes an equal one.

    What `defaults` added, and an id that the line did not have, are written out.
    """
    messages: list[dict[str, Any]] = []
    if conversation.system is not None:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        message: dict[str, Any] = {"role": "user", "content": turn.user}
        if turn.checks:
            message["expect"] = [check.as_dict() for check in turn.checks]
        if turn.params:
            message["params"] = dict(turn.params)
        messages.append(message)
        if turn.reference is not None:
            messages.append({"role": "assistant", "content": turn.reference})
    record: dict[str, Any] = {"id": conversation.id, "messages": messages}
    if conversation.tags:
        record["tags"] = list(conversation.tags)
    if conversation.params:
        record["params"] = dict(conversation.params)
    return record
