"""The native form of a conversation, and the `defaults` line that a file may begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.dialogue import Message, to_dialogue, with_checks
from rwkvbatch.script.params import parse_params
from rwkvbatch.script.records import Check, Conversation, SourceLine
from rwkvbatch.script.shapes import Shape, read_id, read_tags


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
