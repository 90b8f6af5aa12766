"""Reads and writes the native form of a conversation, and reads plain texts and the `defaults` line of a file.

All readers raise `ScriptError`, which names file, line and key, for an unknown key or a wrong value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import Field

from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.lines import SourceLine, is_object, refuse, type_name
from rwkvbatch.script.messages import Message, Role, check_needs, parse_choices, to_dialogue
from rwkvbatch.script.records import Check, Conversation, Probe, Turn
from rwkvbatch.script.shape import PARAM_NAMES, Shape, parse_params, read_id, read_tags
from rwkvbatch.script.tools import read_choice, read_tools


@dataclass(frozen=True)
class Additions:
    """Tags, params and checks that a line adds to a conversation or to all conversations of its file."""

    tags: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    checks: tuple[Check, ...] = ()

    def apply(self, conversation: Conversation) -> Conversation:
        """The conversation with these additions.

        Tags are added before its own and checks after its own; its own params take precedence. Checks that need a
        reference are added only to turns that have one. Scored plain texts and probes get no checks.
        """
        turns: list[Turn] = []
        for turn in conversation.turns:
            if (turn.plain and not turn.generate) or turn.probe is not None:
                turns.append(turn)
                continue
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
    content: str | None = None
    expect: Any = None
    params: dict[str, Any] | None = None
    reply_prefix: str | None = None
    choices: Any = None
    generate: bool | None = None
    probes: Any = None
    tool_calls: Any = None
    tool_call_id: str | None = None
    name: str | None = None


class _Additions(Shape):
    tags: list[str] = Field(default_factory=list[str])
    params: dict[str, Any] = Field(default_factory=dict[str, Any])
    expect: Any = None

    def parsed(self, source: SourceLine, prefix: str = "") -> Additions:
        checks = () if self.expect is None else parse_checks(self.expect, source, f"{prefix}expect")
        return Additions(read_tags(self.tags, source), parse_params(self.params, source, f"{prefix}params"), checks)


class _Conversation(_Additions):
    hint: ClassVar[str] = "`rwkvbatch script convert` writes lines of other programs with these keys alone"
    messages: list[Any]
    id: str | None = None
    probes: Any = None
    tools: Any = None
    tool_choice: Any = None


class _Plain(Shape):
    id: str | None = None
    tags: list[str] = Field(default_factory=list[str])
    params: Any = None


class _Text(_Plain):
    text: str


class _Continuation(_Plain):
    prompt: str
    continuation: str


class _Prompt(_Plain):
    prompt: str
    reference: str | None = None
    expect: Any = None


class _PlainChoices(_Plain):
    prompt: str
    choices: Any
    choice_prefix: str | None = None
    continuation: str | None = None
    expect: Any = None


class _AnyText(_Text):
    lenient: ClassVar[bool] = True


class _AnyContinuation(_Continuation):
    lenient: ClassVar[bool] = True


class _DefaultsLine(Shape):
    defaults: dict[str, Any]


def read_defaults(line: Mapping[str, Any], source: SourceLine) -> Additions:
    """The line `{"defaults": {"tags": [...], "params": {...}, "expect": [...]}}`."""
    return _Additions.read(_DefaultsLine.read(line, source).defaults, source, "defaults").parsed(source, "defaults.")


def read_native(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A line of the native form; see `docs/scripts.md`."""
    raw = _Conversation.read(line, source)
    messages: list[Message] = []
    for index, item in enumerate(raw.messages):
        where = f"messages[{index}]"
        read = _Message.read(item, source, where)
        if read.content is None and (read.tool_calls is None or "content" not in item):
            refuse(source, f"{where}.content: {'must be a string, got null' if 'content' in item else 'is missing'}")
        if read.role != "tool" and (key := next((k for k in ("tool_call_id", "name") if k in item), None)):
            refuse(source, f"{where}.{key}: belongs to tool messages", "remove it")
        of_reply = (read.expect, read.params, read.reply_prefix, read.choices, read.generate, read.probes)
        messages.append(Message(read.role, read.content or "", where, *of_reply, read.tool_calls, read.tool_call_id))
    tools, reply_prefix = read_tooling(raw.tools, raw.tool_choice, source)
    dialogue = to_dialogue(messages, source, raw.probes, None if "reply_prefix" in raw.params else reply_prefix)
    bare = dialogue.conversation(read_id(raw.id, default_id, source), source, tools=tools)
    return raw.parsed(source).apply(bare)


def read_tooling(
    tools: Any, choice: Any, source: SourceLine, prefix: str = "", keys: tuple[str, str] = ("tools", "tool_choice")
) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """The tools that the prompt lists, and the beginning of every reply; `()` and None without tools or by `none`.

    Args:
        tools, choice: values of `tools` and `tool_choice`.
        prefix, keys: name these two values in errors.
    """
    read = () if tools is None else read_tools(tools, source, f"{prefix}{keys[0]}")
    reply_prefix = read_choice(choice, read, source, f"{prefix}{keys[1]}")
    return (() if reply_prefix is None else read), reply_prefix


PROMPT_KEYS = _Prompt.known_keys()
"""Keys of a prompt of plain text after which a reply is generated."""


def is_prompt(line: Mapping[str, Any]) -> bool:
    """Whether a line holds a prompt of plain text after which a reply is generated, perhaps with misplaced params."""
    return isinstance(line.get("prompt"), str) and line.keys() <= PROMPT_KEYS | PARAM_NAMES


def is_plain_text(line: Mapping[str, Any]) -> bool:
    """Whether a line holds plain text: `text`, `prompt`, or `prompt` and `continuation`."""
    return "messages" not in line and not {"text", "prompt", "continuation"}.isdisjoint(line)


def read_plain_text(
    line: Mapping[str, Any], source: SourceLine, default_id: str, *, lenient: bool = False
) -> Conversation:
    """A line of plain text that is scored: `text`, or `prompt` and `continuation`, `choices` or both. A reply is
    generated after a `prompt` alone.

    See `docs/scripts.md`.

    Args:
        lenient: ignore unknown keys that do not resemble a known one; for lines of published data sets.
    """
    if "choices" in line and not lenient:
        return _read_plain_choices(line, source, default_id)
    if not lenient:
        _refuse_ambiguous(line, source)
        if "continuation" not in line and "text" not in line:
            return _read_prompt(line, source, default_id)
    if "continuation" in line:
        raw = (_AnyContinuation if lenient else _Continuation).read(line, source)
        prompt, text, key = raw.prompt, raw.continuation, "continuation"
        if not prompt:
            refuse(source, "prompt: is empty", "write `text` alone to score a whole text")
    elif lenient and "text" not in line:
        hint = "`rwkvbatch run` scores choices" if "choices" in line else 'write {"prompt": ..., "continuation": ...}'
        refuse(source, "continuation: is missing, and only a prompt is given", hint)
    else:
        raw = (_AnyText if lenient else _Text).read(line, source)
        prompt, text, key = "", raw.text, "text"
    if not text:
        refuse(source, f"{key}: is empty, so there is nothing to score", "remove the line")
    conversation = text_conversation(
        read_id(raw.id, default_id, source), text, source, prompt=prompt, tags=read_tags(raw.tags, source)
    )
    return conversation if lenient else _with_params(conversation, raw.params, source)


def _refuse_ambiguous(line: Mapping[str, Any], source: SourceLine) -> None:
    """Refuse a line that asks both for a score of a text and for a reply."""
    scored = "continuation" if "continuation" in line else "text"
    for key in ("expect", "reference", *(("prompt",) if scored == "text" else ())):
        if scored in line and key in line:
            hint = (
                "a reply is generated after `prompt` alone, which may have `expect` and `reference`; "
                "leave one of the two out"
            )
            refuse(source, f"{key}: belongs to a prompt after which a reply is generated; `{scored}` is scored", hint)


def _read_prompt(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A prompt, which may be empty, after which a reply is generated without a template."""
    raw = _Prompt.read(line, source)
    if raw.reference is not None and not raw.reference:
        refuse(source, "reference: is empty, so there is nothing to score", "leave it out")
    checks = () if raw.expect is None else parse_checks(raw.expect, source)
    turn = Turn(raw.prompt, raw.reference, checks, plain=True)
    check_needs(turn, source, "the prompt")
    name, tags = read_id(raw.id, default_id, source), read_tags(raw.tags, source)
    return _with_params(Conversation(name, None, (turn,), tags, {}, source), raw.params, source)


def _read_plain_choices(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A prompt, which may be empty, and choices without a template; all are read exactly as they are written.

    The choices are scored after the prompt. With a continuation, it is scored after the prompt and each choice.
    """
    raw = _PlainChoices.read(line, source)
    if raw.continuation is not None and not raw.continuation:
        refuse(source, "continuation: is empty, so there is nothing to score", "leave it out to score the choices")
    if raw.continuation is not None and raw.choice_prefix is not None:
        refuse(source, "choice_prefix: belongs to choices that are scored", "write it at the end of the prompt")
    if raw.choice_prefix and not raw.prompt:
        refuse(source, "choice_prefix: must follow a prompt, which is empty", "write it at the start of the choices")
    checks = () if raw.expect is None else parse_checks(raw.expect, source)
    turn = Turn(
        raw.prompt, None, checks, choices=parse_choices(raw.choices, source), generate=False, plain=True,
        continuation=raw.continuation, choice_prefix=raw.choice_prefix,
    )  # fmt: skip
    check_needs(turn, source, "the prompt")
    tags = read_tags(raw.tags, source)
    conversation = Conversation(read_id(raw.id, default_id, source), None, (turn,), tags, {}, source)
    return _with_params(conversation, raw.params, source)


def _with_params(conversation: Conversation, params: Any, source: SourceLine) -> Conversation:
    """A plain text with the params of its line, if it has any."""
    if params is None:
        return conversation
    if not is_object(params):
        refuse(source, f"params: must be an object, got {type_name(params)}")
    return replace(conversation, params=parse_params(params, source))


def text_conversation(
    name: str, text: str, source: SourceLine, *, prompt: str = "", tags: tuple[str, ...] = ()
) -> Conversation:
    """The conversation with the id `name` for a plain text, which is scored after `prompt`."""
    return Conversation(name, None, (Turn(prompt, text, generate=False, plain=True),), tags, {}, source)


def native_record(conversation: Conversation) -> dict[str, Any]:
    """The conversation as a line of a script in the native form; reading it gives an equal conversation.

    The line has everything explicitly: the additions of a `defaults` line, a generated id, and the conversation's own
    probes at each turn.
    """
    record: dict[str, Any] = {"id": conversation.id}
    first = conversation.turns[0]
    if first.plain and first.choices:
        message = _user_record(first)
        record |= {"prompt": message.pop("content"), **message}
        parts = {"choice_prefix": first.choice_prefix, "continuation": first.continuation}
        record |= {key: text for key, text in parts.items() if text is not None}
    elif first.plain and first.generate:
        message = _user_record(first)
        record |= {"prompt": message.pop("content"), **message}
        record |= {} if first.reference is None else {"reference": first.reference}
    elif first.plain:
        record |= {"prompt": first.user, "continuation": first.reference} if first.user else {"text": first.reference}
    else:
        messages: list[dict[str, Any]] = []
        if conversation.system is not None:
            messages.append({"role": "system", "content": conversation.system})
        if conversation.greeting is not None:
            messages.append({"role": "assistant", "content": conversation.greeting})
        probes: dict[int, list[dict[str, Any]]] = {}
        for turn in conversation.turns:
            if turn.probe is not None:
                probes.setdefault(turn.probe.after, []).append(_probe_record(turn, turn.probe))
        for number, turn in enumerate(conversation.turns):
            if turn.probe is not None:
                continue
            message = {"role": "user", **_user_record(turn)}
            if number in probes:
                message["probes"] = probes[number]
            messages.append(message)
            if turn.reference is not None:
                messages.append({"role": "assistant", "content": turn.reference})
        record["messages"] = messages
    if conversation.tools:
        record["tools"] = [{"type": "function", "function": dict(tool)} for tool in conversation.tools]
    if conversation.tags:
        record["tags"] = list(conversation.tags)
    if conversation.params:
        record["params"] = dict(conversation.params)
    return record


def native_line(conversation: Conversation) -> bytes:
    """`native_record` as a line of JSON; lone surrogates are escaped."""
    record = native_record(conversation)
    try:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _user_record(turn: Turn) -> dict[str, Any]:
    """The keys that a user message and a probe have in common."""
    record: dict[str, Any] = {"content": turn.user}
    if turn.checks:
        record["expect"] = [check.as_dict() for check in turn.checks]
    if turn.params:
        record["params"] = dict(turn.params)
    if turn.choices:
        has_names = any(choice.name != choice.text.strip() for choice in turn.choices)
        texts = {choice.name: choice.text for choice in turn.choices}
        record["choices"] = texts if has_names else list(texts.values())
        if turn.generate:
            record["generate"] = True
    return record


def _probe_record(turn: Turn, probe: Probe) -> dict[str, Any]:
    reference = {} if turn.reference is None else {"reference": turn.reference}
    return {**_user_record(turn), **reference, "since": "system" if probe.since < 0 else probe.since}
