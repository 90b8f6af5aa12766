"""The native form of a conversation, read and written, the `defaults` line of a file, and what all forms share.

All readers raise `ScriptError`, which names file, line and key, for an unknown key or a wrong value.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rwkvbatch.config import DialoguePrompt, Sampling, Stopping
from rwkvbatch.errors import UsageError
from rwkvbatch.script.checks import parse_checks
from rwkvbatch.script.choices import MAX_CHOICES, MIN_CHOICES, Choice, find_choice
from rwkvbatch.script.records import (
    Check,
    Conversation,
    Probe,
    SourceLine,
    Turn,
    is_array,
    is_object,
    refuse,
    refuse_unknown_keys,
    shown,
    type_name,
)
from rwkvbatch.script.tools import RESULT_PREFIX, calls_text, read_calls, read_choice, read_tools
from rwkvbatch.setting import Settings
from rwkvbatch.setting_names import ALIASES, with_full_names

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


_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _is_printable(character: str) -> bool:
    """Whether it is text: spaces of all widths and joiners are (which `str.isprintable` denies), controls are not."""
    if character.isprintable():
        return True
    return unicodedata.category(character) in ("Zs", "Cf") and character not in _BIDI_CONTROLS


def read_id(given: str | None, default: str, source: SourceLine, key: str = "id") -> str:
    """The id of a conversation. Ids are never used as file names, so `/` and `..` are allowed."""
    if given is None:
        return default
    if not 0 < len(given) <= MAX_ID_LENGTH or not all(map(_is_printable, given)) or given != given.strip():
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


Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One message of any form; what belongs to the reply is not parsed yet. `reply_prefix` is one of the params.

    A message of the role `tool` is the result of a call, the content of an assistant message with `tool_calls` what is
    said before them. `where` names the message in its line, such as `messages[2]`.
    """

    role: Role
    content: str
    where: str
    expect: Any = None
    params: Mapping[str, Any] | None = None
    reply_prefix: str | None = None
    choices: Any = None
    generate: bool | None = None
    probes: Any = None
    tool_calls: Any = None
    tool_call_id: str | None = None


OF_THE_REPLY = frozenset({"expect", "params", "reply_prefix", "choices", "generate", "probes"})
"""Keys of a user or tool message that are about the reply that it asks for."""


def to_turns(
    messages: Sequence[Message], source: SourceLine, standing: Any = None, begins: str | None = None
) -> tuple[str | None, tuple[Turn, ...]]:
    """The system message, if any, and the turns; `standing` are the probes that are asked after every turn.

    Every user message begins a turn; an assistant message right after it is the turn's reference. Of two user messages
    in a row the first is a turn without a reference. Tool messages in a row are one turn.

    Args:
        begins: what every reply begins with unless its message says so, or its reference does not begin so: where tools
            are called.
    """
    system: str | None = None
    turns: list[Turn] = []
    probes: list[tuple[int, Any, str]] = []
    for at, message in enumerate(_as_text(messages, source)):
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
            if message.probes is not None:
                probes.append((len(turns), message.probes, f"{where}.probes"))
            turns.append(_turn(message, source))
        elif not turns:
            hint = "begin with a user message, or give an initial exchange with `--prelude`"
            refuse(source, f"{where}: an assistant message needs a user message before it", hint)
        elif turns[-1].reference is not None:
            refuse(source, f"{where}: two assistant messages in a row", "join them, or put a user message between")
        else:
            turns[-1] = replace(turns[-1], reference=message.content)
    if not turns:
        refuse(source, "has no user message, so there is nothing to reply to", "add a message of role user")
    if begins is not None:
        turns = [_beginning(turn, begins) for turn in turns]
    for number, turn in enumerate(turns):
        _check_needs(turn, source, f"turn {number}")
    if standing is not None:
        probes += [(number, standing, "probes") for number in range(len(turns))]
    return system, (*turns, *_read_probes(probes, len(turns), system is not None, source))


def _as_text(messages: Sequence[Message], source: SourceLine) -> list[Message]:
    """The messages with tool calls as text of the reply, and their results as a user message."""
    found: list[Message] = []
    ids: tuple[str | None, ...] = ()
    results: list[Message] = []

    def end_results() -> None:
        if results:
            # In the order of the calls, which is all that tells results apart.
            ordered = sorted(results, key=lambda one: ids.index(one.tool_call_id) if one.tool_call_id in ids else 0)
            content = RESULT_PREFIX + "\n".join(one.content for one in ordered)
            found.append(replace(results[-1], role="user", content=content, tool_call_id=None))
            results.clear()

    for message in messages:
        where = message.where
        if message.tool_calls is not None and message.role != "assistant":
            refuse(source, f"{where}.tool_calls: must be in an assistant message", "move it")
        if message.role != "tool":
            end_results()
            if message.tool_calls is not None:
                calls, ids = read_calls(message.tool_calls, source, f"{where}.tool_calls")
                text = "\n".join(filter(None, (message.content.strip(), calls_text(calls))))
                message = replace(message, content=text, tool_calls=None)
            elif message.role == "assistant":
                ids = ()
            found.append(message)
            continue
        if not any(earlier.role == "user" for earlier in found):
            refuse(source, f"{where}: a tool message is the result of a call, and there is none before it", "move it")
        if message.tool_call_id is not None and any(ids) and message.tool_call_id not in ids:
            known = ", ".join(shown(name) for name in ids if name)
            refuse(
                source, f"{where}.tool_call_id: {shown(message.tool_call_id)} is of no call before it", f"it is {known}"
            )
        if results and any(getattr(results[-1], key) is not None for key in OF_THE_REPLY):
            hint = "the reply comes after all of them: move it to the last one"
            refuse(source, f"{results[-1].where}: asks for a reply, and another tool message follows", hint)
        results.append(message)
    end_results()
    return found


def _beginning(turn: Turn, begins: str) -> Turn:
    """The turn with a reply that begins with `begins`, unless its message or its reference says another beginning."""
    is_other = turn.reference is not None and not turn.reference.startswith(begins)
    if "reply_prefix" in turn.params or turn.choices:
        return turn
    return replace(turn, params={**turn.params, "reply_prefix": "" if is_other else begins})


def _turn(message: Message, source: SourceLine) -> Turn:
    """The turn that a user message begins."""
    where = message.where
    checks = () if message.expect is None else parse_checks(message.expect, source, f"{where}.expect")
    params = _turn_params(message, source)
    choices = () if message.choices is None else parse_choices(message.choices, source, f"{where}.choices")
    if message.generate is not None and not choices:
        refuse(source, f"{where}: `generate` belongs to `choices`, and there are none", "leave it out")
    return Turn(message.content, None, checks, params, choices, generate=not choices or bool(message.generate))


def _check_needs(turn: Turn, source: SourceLine, where: str) -> None:
    """Refuse checks that lack the reference or the choices that they compare with."""
    names = [choice.name for choice in turn.choices]
    for check in turn.checks:
        if check.needs_reference and turn.reference is None:
            hint = "add the assistant message that the reply is compared with"
            refuse(source, f"{where}: the check {check.kind!r} needs a reference reply", hint)
        for wanted in check.choices:
            if not names:
                hint = 'add `"choices": ["...", "..."]` to the user message'
                refuse(source, f"{where}: the check {check.kind!r} needs choices", hint)
            try:
                find_choice(names, wanted)
            except KeyError:
                some = ", ".join(map(shown, names[:8])) + (", ..." if len(names) > 8 else "")
                hint = f"they are {some}; an index counts from 0, to {len(names) - 1}"
                refuse(source, f"{where}: the check {check.kind!r} names no choice of the turn: {shown(wanted)}", hint)


def parse_choices(raw: Any, source: SourceLine, where: str = "choices") -> tuple[Choice, ...]:
    """The `choices` of a message: an array of texts, which are their own names, or an object of names and texts."""
    if is_object(raw):
        pairs = list(raw.items())
    elif is_array(raw):
        pairs = [(text.strip() if isinstance(text, str) else "", text) for text in raw]
    else:
        hint = 'write ["Paris", "Rome"], or {"A": "Paris", "B": "Rome"}'
        refuse(
            source, f"{where}: must be an array of texts or an object of names and texts, got {type_name(raw)}", hint
        )
    if not MIN_CHOICES <= len(pairs) <= MAX_CHOICES:
        refuse(source, f"{where}: must be {MIN_CHOICES} to {MAX_CHOICES:,} choices, got {len(pairs):,}")
    texts: dict[str, str] = {}
    for at, (name, text) in enumerate(pairs):
        place = f"{where}[{at}]" if is_array(raw) else f"{where}.{shown(name)}"
        if not isinstance(text, str):
            refuse(source, f"{place}: must be a text, got {type_name(text)}")
        if not text.strip():
            refuse(source, f"{place}: is empty, so it has no likelihood", "remove it, or write what the reply would be")
        if not name.strip():
            refuse(source, f"{place}: its name is empty", "name it, such as A")
        if (other := texts.setdefault(" ".join(text.split()), place)) != place:
            refuse(source, f"{place}: is the same text as {other}", "remove one of the two")
    return tuple(Choice(name, text) for name, text in pairs)


class _Probe(Shape):
    content: str
    expect: Any = None
    params: dict[str, Any] | None = None
    choices: Any = None
    generate: bool | None = None
    reply_prefix: str | None = None
    reference: str | None = None
    since: int | Literal["system"] = 0


def _read_probes(
    given: Sequence[tuple[int, Any, str]], num_turns: int, has_system: bool, source: SourceLine
) -> list[Turn]:
    """The turns of `probes`, each with the number of its turn and its place in the line, in the order of the dialogue.

    A probe of the conversation is asked after every turn from `since` on.
    """
    found: list[Turn] = []
    count = dict.fromkeys(range(num_turns), 0)
    for after, raw, where in sorted(given, key=lambda item: item[0]):
        if not is_array(raw) or not raw:
            got = "none" if is_array(raw) else type_name(raw)
            refuse(
                source, f"{where}: must be an array of probes, got {got}", 'write [{"content": "...", "expect": ...}]'
            )
        for at, item in enumerate(raw):
            place = f"{where}[{at}]"
            one = _Probe.read(item, source, place)
            if one.since == "system" and not has_system:
                refuse(source, f"{place}.since: there is no system message", "name the turn that says it, from 0 up")
            since = -1 if one.since == "system" else one.since
            latest = num_turns - 1 if where == "probes" else after
            if not -1 <= since <= latest or one.since == -1:
                hint = "turns count from 0; since is the turn that says what the probe asks about"
                refuse(source, f'{place}.since: must be a turn from 0 to {latest}, or "system"; got {since}', hint)
            if since > after:
                continue
            own = (one.expect, one.params, one.reply_prefix, one.choices, one.generate)
            message = Message("user", one.content, place, *own)
            turn = replace(_turn(message, source), reference=one.reference, probe=Probe(after, count[after], since))
            _check_needs(turn, source, place)
            found.append(turn)
            count[after] += 1
    return found


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

        Turns without a reference do not get checks that compare with it; plain texts and probes get none at all.
        """
        turns: list[Turn] = []
        for turn in conversation.turns:
            if turn.plain or turn.probe is not None:  # no reply of the dialogue
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


class _PlainChoices(_Plain):
    prompt: str
    choices: Any
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
    for at, item in enumerate(raw.messages):
        where = f"messages[{at}]"
        one = _Message.read(item, source, where)
        if one.content is None and (one.tool_calls is None or "content" not in item):
            refuse(source, f"{where}.content: {'must be a string, got None' if 'content' in item else 'is missing'}")
        if one.role != "tool" and (key := next((k for k in ("tool_call_id", "name") if k in item), None)):
            refuse(source, f"{where}.{key}: belongs to tool messages", "remove it")
        own = (one.expect, one.params, one.reply_prefix, one.choices, one.generate, one.probes)
        messages.append(Message(one.role, one.content or "", where, *own, one.tool_calls, one.tool_call_id))
    tools, begins = read_tooling(raw.tools, raw.tool_choice, source)
    system, turns = to_turns(messages, source, raw.probes, None if "reply_prefix" in raw.params else begins)
    bare = Conversation(read_id(raw.id, default_id, source), system, turns, (), {}, source, tools)
    return raw.parsed(source).apply(bare)


def read_tooling(
    tools: Any, choice: Any, source: SourceLine, prefix: str = "", keys: tuple[str, str] = ("tools", "tool_choice")
) -> tuple[tuple[Mapping[str, Any], ...], str | None]:
    """The tools that a conversation shows, and what its replies begin with; none and None with the choice `none`."""
    found = () if tools is None else read_tools(tools, source, f"{prefix}{keys[0]}")
    begins = read_choice(choice, found, source, f"{prefix}{keys[1]}")
    return (() if begins is None else found), begins


def is_plain_text(line: Mapping[str, Any]) -> bool:
    """Whether a line holds plain text: `text`, or `prompt` and `continuation`."""
    return "messages" not in line and not {"text", "prompt", "continuation"}.isdisjoint(line)


def read_plain_text(
    line: Mapping[str, Any], source: SourceLine, default_id: str, *, lenient: bool = False
) -> Conversation:
    """A line of plain text that is scored: `text`, or `prompt` and `continuation` or `choices`; see `docs/scripts.md`.

    Args:
        lenient: ignore unknown keys that resemble no known one, as the lines of published data sets have them.
    """
    if "choices" in line and not lenient:
        return _read_plain_choices(line, source, default_id)
    if "continuation" in line or (not lenient and "prompt" in line):
        raw = (_AnyContinuation if lenient else _Continuation).read(line, source)
        prompt, text, key = raw.prompt, raw.continuation, "continuation"
        if not prompt:
            refuse(source, "prompt: is empty", "write `text` alone to score a whole text")
    else:
        raw = (_AnyText if lenient else _Text).read(line, source)
        prompt, text, key = "", raw.text, "text"
    if not text:
        refuse(source, f"{key}: is empty, so there is nothing to score", "remove the line")
    found = text_conversation(
        read_id(raw.id, default_id, source), text, source, prompt=prompt, tags=read_tags(raw.tags, source)
    )
    return found if lenient else _with_params(found, raw.params, source)


def _read_plain_choices(line: Mapping[str, Any], source: SourceLine, default_id: str) -> Conversation:
    """A prompt without a template, whose choices are scored after it exactly as they are written."""
    raw = _PlainChoices.read(line, source)
    if not raw.prompt:
        refuse(source, "prompt: is empty, so the choices have nothing to follow", "write what they continue")
    checks = () if raw.expect is None else parse_checks(raw.expect, source)
    choices = parse_choices(raw.choices, source)
    turn = Turn(raw.prompt, None, checks, choices=choices, generate=False, plain=True)
    _check_needs(turn, source, "the prompt")
    tags = read_tags(raw.tags, source)
    found = Conversation(read_id(raw.id, default_id, source), None, (turn,), tags, {}, source)
    return _with_params(found, raw.params, source)


def _with_params(found: Conversation, params: Any, source: SourceLine) -> Conversation:
    """A plain text with the params of its line."""
    if params is None:
        return found
    if not is_object(params):
        refuse(source, f"params: must be an object, got {type_name(params)}")
    return replace(found, params=parse_params(params, source))


def text_conversation(
    name: str, text: str, source: SourceLine, *, prompt: str = "", tags: tuple[str, ...] = ()
) -> Conversation:
    """The conversation with the id `name` that stands for a plain text, scored after `prompt`."""
    return Conversation(name, None, (Turn(prompt, text, generate=False, plain=True),), tags, {}, source)


def native_record(conversation: Conversation) -> dict[str, Any]:
    """The conversation as a line of a script, of which the reader makes an equal one.

    What `defaults` added, an id that the line did not have, and probes that stood on the conversation are written out.
    """
    record: dict[str, Any] = {"id": conversation.id}
    first = conversation.turns[0]
    if first.plain and first.choices:
        asked = _asked(first)
        record |= {"prompt": asked.pop("content"), **asked}
    elif first.plain:
        record |= {"prompt": first.user, "continuation": first.reference} if first.user else {"text": first.reference}
    else:
        messages: list[dict[str, Any]] = []
        if conversation.system is not None:
            messages.append({"role": "system", "content": conversation.system})
        probes: dict[int, list[dict[str, Any]]] = {}
        for turn in conversation.turns:
            if turn.probe is not None:
                probes.setdefault(turn.probe.after, []).append(_probe_record(turn, turn.probe))
        for number, turn in enumerate(conversation.turns):
            if turn.probe is not None:
                continue
            message = {"role": "user", **_asked(turn)}
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


def _asked(turn: Turn) -> dict[str, Any]:
    """The keys of a user message or a probe that `_turn` reads."""
    record: dict[str, Any] = {"content": turn.user}
    if turn.checks:
        record["expect"] = [check.as_dict() for check in turn.checks]
    if turn.params:
        record["params"] = dict(turn.params)
    if turn.choices:
        named = any(choice.name != choice.text.strip() for choice in turn.choices)
        texts = {choice.name: choice.text for choice in turn.choices}
        record["choices"] = texts if named else list(texts.values())
        if turn.generate:
            record["generate"] = True
    return record


def _probe_record(turn: Turn, probe: Probe) -> dict[str, Any]:
    since = probe.since
    given = {} if turn.reference is None else {"reference": turn.reference}
    return {**_asked(turn), **given, "since": "system" if since < 0 else since}
